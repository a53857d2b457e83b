"""Exact Jaccard similarity of pairs of rows, from their shingle sets."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numba import njit, uint64

from tamis.scoring.shingles import ShingleSets, insert_distinct, table_size
from tamis.storage.kernels import KERNEL, Int64s, in_threads

Float64s = npt.NDArray[np.float64]


@njit(**KERNEL)
def _jaccard(hashes, start, size, left, right, first, last, result):  # type: ignore[no-untyped-def]
    table = np.zeros(1024, np.uint64)
    room = 0
    held = -1
    for p in range(first, last):
        a, b = left[p], right[p]
        if a != held:
            room = table_size(size[a])
            if table.shape[0] < room:
                table = np.zeros(room, np.uint64)
            table[:room] = uint64(0)
            for i in range(start[a], start[a] + size[a]):
                insert_distinct(table[:room], hashes[i])
            held = a
        mask = uint64(room - 1)
        common = 0
        for i in range(start[b], start[b] + size[b]):
            value = hashes[i]
            slot = value & mask
            while table[slot] != uint64(0):
                if table[slot] == value:
                    common += 1
                    break
                slot = (slot + uint64(1)) & mask
        result[p] = common / (size[a] + size[b] - common)


def exact_jaccard(sets: ShingleSets, left: Int64s, right: Int64s, workers: int = 1) -> Float64s:
    """|A ∩ B| / |A ∪ B| for every pair; `left` and `right` index the rows of `sets`.

    Pairs are quickest sorted by `left`: its set is hashed once for a run of equal values.
    """
    result = np.empty(len(left), np.float64)
    edges = np.linspace(0, len(left), workers * 4 + 1).astype(np.int64)
    in_threads(
        lambda cut: _jaccard(
            sets.hashes, sets.start, sets.size, left, right, cut[0], cut[1], result
        ),
        list(pairwise(edges)),
        workers,
    )
    return result
