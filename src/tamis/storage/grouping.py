"""Grouping of rows by hashed keys: who is the first row with the same key."""

import numpy as np
import numpy.typing as npt
from numba import njit, uint64

from tamis.storage.kernels import KERNEL, fmix64

Int32s = npt.NDArray[np.int32]


@njit(**KERNEL)
def first_with_key(keys):  # type: ignore[no-untyped-def]
    """For every row the smallest index that holds the same 64-bit key (itself where new)."""
    rows = keys.shape[0]
    size = 8
    while size < 2 * rows:
        size *= 2
    mask = uint64(size - 1)
    slots = np.full(size, -1, np.int32)
    first = np.empty(rows, np.int32)
    for row in range(rows):
        key = keys[row]
        slot = fmix64(key) & mask
        while True:
            held = slots[slot]
            if held < 0:
                slots[slot] = row
                first[row] = row
                break
            if keys[held] == key:
                first[row] = held
                break
            slot = (slot + uint64(1)) & mask
    return first


@njit(**KERNEL)
def first_with_pair(high, low):  # type: ignore[no-untyped-def]
    """As `first_with_key`, for 128-bit keys held as two columns."""
    rows = high.shape[0]
    size = 8
    while size < 2 * rows:
        size *= 2
    mask = uint64(size - 1)
    slots = np.full(size, -1, np.int32)
    first = np.empty(rows, np.int32)
    for row in range(rows):
        slot = (high[row] ^ fmix64(low[row])) & mask
        while True:
            held = slots[slot]
            if held < 0:
                slots[slot] = row
                first[row] = row
                break
            if high[held] == high[row] and low[held] == low[row]:
                first[row] = held
                break
            slot = (slot + uint64(1)) & mask
    return first


@njit(**KERNEL)
def counting_sort(keys, groups):  # type: ignore[no-untyped-def]
    """Stable order of integer keys in ``[0, groups)``, and where each group begins."""
    start = np.zeros(groups + 1, np.int64)
    for i in range(keys.shape[0]):
        start[keys[i] + 1] += 1
    for g in range(groups):
        start[g + 1] += start[g]
    cursor = start[:-1].copy()
    order = np.empty(keys.shape[0], np.int32)
    for i in range(keys.shape[0]):
        g = keys[i]
        order[cursor[g]] = i
        cursor[g] += 1
    return order, start
