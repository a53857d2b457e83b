"""Shingles: windows of n tokens as 64-bit hashes, block by block, and the sets they form.

A document with fewer tokens than the window is a single shingle of all it has; one without any
token is the hash of its bytes, so that it equals its exact copies and nothing else.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit, uint64

from tamis.scoring.words import (
    BLOCK_BYTES,
    STATE_SIZE,
    TOKENS_PER_BYTE,
    UnicodeForm,
    UnicodeTables,
    Unit,
    is_ascii,
    next_tokens,
    unicode_tables,
)
from tamis.storage.kernels import (
    KERNEL,
    Int64s,
    UInt64s,
    fmix64,
    string_buffers,
)

#: Default window by unit: 5 words (Lee et al. 2022, FineWeb), 24 characters (NeMo Curator).
DEFAULT_NGRAM: dict[Unit, int] = {"word": 5, "character": 24}

_MULTIPLIER = uint64(0x9E3779B97F4A7C15)


class Shingling(NamedTuple):
    """How text becomes shingles; equal settings give comparable signatures and sets."""

    ngram: int = 5
    unit: Unit = "word"
    form: UnicodeForm = "NFKD"

    @property
    def tables(self) -> UnicodeTables:
        return unicode_tables(self.form)


class ShingleSets(NamedTuple):
    """Distinct shingles of some rows: row ``i`` owns ``hashes[start[i]:start[i] + size[i]]``.

    There is room up to ``start[i + 1]``, for as many shingles as the row has with repeats.
    """

    hashes: UInt64s
    start: Int64s
    size: Int64s

    @classmethod
    def room_for(cls, counts: Int64s) -> "ShingleSets":
        """Room for the sets of rows that have so many shingles, repeats included."""
        start = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=start[1:])
        return cls(np.empty(int(start[-1]), np.uint64), start, np.zeros(len(counts), np.int64))

    def fill(self, at: slice, text: pa.Array, rows: Int64s, shingling: "Shingling") -> None:
        """Put the sets of some rows of a text array into places `at`; threads may share a buffer.

        Args:
            at: as many consecutive places as `rows`.
            text: string or large_string array.
            rows: positions in `text`.
        """
        data, offsets = string_buffers(text)
        _fill_sets(
            data,
            offsets,
            rows,
            shingling.ngram,
            shingling.unit == "character",
            shingling.tables,
            self.start[at.start : at.stop + 1],
            self.hashes,
            self.size[at],
        )


@njit(**KERNEL)
def scratch(ngram):  # type: ignore[no-untyped-def]
    """Work arrays of one thread: tokens, shingles, their 32-bit forms, tokeniser state."""
    room = BLOCK_BYTES * TOKENS_PER_BYTE + ngram + 32
    return (
        np.empty(room, np.uint64),
        np.empty(room, np.uint64),
        np.empty(room, np.uint32),
        np.zeros(STATE_SIZE, np.uint64),
    )


@njit(**KERNEL)
def hash_bytes(data, start, stop):  # type: ignore[no-untyped-def]
    """A 64-bit hash of raw bytes, for documents that have no token."""
    h = uint64(stop - start)
    for i in range(start, stop):
        h = fmix64(h ^ uint64(data[i])) * _MULTIPLIER
    return fmix64(h)


@njit(**KERNEL)
def _combine(words, count, ngram, shingles):  # type: ignore[no-untyped-def]
    """Hash every window of `ngram` tokens; loops run over arrays so that they vectorise."""
    windows = count - ngram + 1
    for i in range(windows):
        shingles[i] = words[i]
    for j in range(1, ngram):
        shifted = words[j : j + windows]
        for i in range(windows):
            shingles[i] = shingles[i] * _MULTIPLIER + shifted[i]
    for i in range(windows):
        shingles[i] = fmix64(shingles[i])
    return windows


@njit(**KERNEL)
def next_shingles(  # type: ignore[no-untyped-def]
    data, position, start, end, ascii_row, ngram, characters, tables, work, carried
):
    """Shingles of the next block of a document.

    Returns the number of shingles in ``work[1]``, the position to go on from and the number of
    tokens carried over in ``work[0]``.
    """
    words, shingles, _, state = work
    count, position = next_tokens(
        data, position, end, ascii_row, characters, tables, state, words, carried
    )
    windows = count - ngram + 1
    if windows > 0:
        _combine(words, count, ngram, shingles)
        carried = ngram - 1
        for i in range(carried):
            words[i] = words[windows + i]
        return windows, position, carried
    if position < end:
        return 0, position, count
    first_block = state[STATE_SIZE - 1] == uint64(0)
    if first_block:
        if count == 0:
            shingles[0] = hash_bytes(data, start, end)
        else:
            _combine(words, count, count, shingles)
        return 1, position, count
    return 0, position, count


@njit(**KERNEL)
def begin_document(work):  # type: ignore[no-untyped-def]
    work[3][:] = uint64(0)


@njit(**KERNEL)
def mark_begun(work):  # type: ignore[no-untyped-def]
    """Remember that this document has given a shingle, so that its tail is not one by itself."""
    work[3][STATE_SIZE - 1] = uint64(1)


@njit(**KERNEL)
def insert_distinct(table, value):  # type: ignore[no-untyped-def]
    """Insert into an open-addressing table of a power-of-two size; False where it was there.

    Zero marks a free slot, so a shingle of zero is stored as one.
    """
    mask = uint64(table.shape[0] - 1)
    slot = value & mask
    while True:
        held = table[slot]
        if held == uint64(0):
            table[slot] = value
            return True
        if held == value:
            return False
        slot = (slot + uint64(1)) & mask


@njit(**KERNEL)
def table_size(items):  # type: ignore[no-untyped-def]
    """Smallest power of two that keeps an open-addressing table at most two thirds full."""
    size = 8
    while 2 * size < 3 * items:
        size *= 2
    return size


@njit(**KERNEL)
def _fill_sets(  # type: ignore[no-untyped-def]
    data, offsets, rows, ngram, characters, tables, start, hashes, size
):
    work = scratch(ngram)
    shingles = work[1]
    table = np.zeros(1024, np.uint64)
    for i in range(rows.shape[0]):
        room = table_size(start[i + 1] - start[i])
        if table.shape[0] < room:
            table = np.zeros(room, np.uint64)
        slots = table[:room]
        slots[:] = uint64(0)
        begin, end = offsets[rows[i]], offsets[rows[i] + 1]
        ascii_row = is_ascii(data, begin, end)
        begin_document(work)
        position = begin
        carried = 0
        distinct = start[i]
        while True:
            count, position, carried = next_shingles(
                data, position, begin, end, ascii_row, ngram, characters, tables, work, carried
            )
            for j in range(count):
                value = shingles[j]
                if value == uint64(0):
                    value = uint64(1)
                if insert_distinct(slots, value):
                    hashes[distinct] = value
                    distinct += 1
            if count:
                mark_begun(work)
            if position >= end:
                break
        size[i] = distinct - start[i]
