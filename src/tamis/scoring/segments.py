"""Lines and paragraphs of a text: where they are, and a hash of each."""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numba import int64, njit, uint64
from pydantic import Field

from tamis.scoring.cuts import Stretches
from tamis.scoring.operator import Signal
from tamis.scoring.words import IGNORED, SPACE, decode, unicode_tables
from tamis.storage.hashing import absorb, finish
from tamis.storage.kernels import KERNEL, Int64s, UInt64s, string_buffers

SegmentUnit = Literal["line", "paragraph"]
Normalisation = Literal["exact", "stripped", "folded"]
_NORMALISATIONS: dict[Normalisation, int] = {"exact": 0, "stripped": 1, "folded": 2}

#: Bytes of a segment's hash.
KEY_BYTES = 16

_NEWLINE, _RETURN = 10, 13


@njit(**KERNEL)
def _is_blank(byte):  # type: ignore[no-untyped-def]
    return byte == 32 or 9 <= byte <= 13


@njit(**KERNEL)
def _line_end(data, at, end):  # type: ignore[no-untyped-def]
    """End of the line at `at` without its line end, and where the next one begins."""
    stop = at
    while stop < end and data[stop] != _NEWLINE:
        stop += 1
    last = stop - 1 if stop > at and stop < end and data[stop - 1] == _RETURN else stop
    return last, min(stop + 1, end)


@njit(**KERNEL)
def _all_blank(data, start, stop):  # type: ignore[no-untyped-def]
    while start < stop and _is_blank(data[start]):
        start += 1
    return start == stop


@njit(**KERNEL)
def _next_segment(data, at, end, paragraphs):  # type: ignore[no-untyped-def]
    """First and last byte of the segment at `at`, and where the next one begins.

    A paragraph is a run of lines that are not blank; the blank lines before the first one are
    handed out as a segment of their own, which is never long enough to be removed.
    """
    last, following = _line_end(data, at, end)
    if paragraphs and not _all_blank(data, at, last):
        while following < end:
            stop, after = _line_end(data, following, end)
            if _all_blank(data, following, stop):
                break
            last, following = stop, after
    if paragraphs:
        while following < end:
            stop, after = _line_end(data, following, end)
            if not _all_blank(data, following, stop):
                break
            following = after
    return last, following


@njit(**KERNEL)
def _trim(data, start, stop):  # type: ignore[no-untyped-def]
    while start < stop and _is_blank(data[start]):
        start += 1
    while stop > start and _is_blank(data[stop - 1]):
        stop -= 1
    return start, stop


@njit(**KERNEL)
def _long_enough(data, start, stop, fewest):  # type: ignore[no-untyped-def]
    """Whether a segment has so many characters between its first and last that is not blank."""
    start, stop = _trim(data, start, stop)
    found = 0
    for i in range(uint64(start), uint64(stop)):
        found += (data[i] & 0xC0) != 0x80
    return found > 0 and found >= fewest


@njit(**KERNEL)
def _exact_key(data, start, stop):  # type: ignore[no-untyped-def]
    """128-bit hash of some bytes."""
    high, low = uint64(0), uint64(0)
    at, end = uint64(start), uint64(stop)
    while at < end:
        value = uint64(0)
        for k in range(min(uint64(8), end - at)):
            value |= uint64(data[at + uint64(k)]) << uint64(8 * k)
        high, low = absorb(high, low, value)
        at += uint64(8)
    return finish(high, low, end - uint64(start))


@njit(**KERNEL)
def _folded_key(data, start, stop, tables):  # type: ignore[no-untyped-def]
    """128-bit hash of the folded characters, with one space for every run of white space."""
    classes, _, fold_start, fold_length, folded = tables
    high, low = uint64(0), uint64(0)
    length = uint64(0)
    space_due = uint64(0)
    at = start
    while at < stop:
        code = int64(data[at])
        if code < 0x80:
            at += 1
            run, last = 0, 1
        else:
            code, at = decode(data, at, stop)
            if code >= classes.shape[0]:
                code = int64(0xFFFD)
            run = int64(fold_start[code])
            last = run + int64(fold_length[code])
        for k in range(run, last):
            if code < 0x80:
                c = code + 32 if 65 <= code <= 90 else code
            else:
                c = int64(folded[k])
            kind = classes[c]
            if kind == IGNORED:
                continue
            if kind == SPACE:
                space_due = min(length, uint64(1))
                continue
            # A space and the character after it are taken in as one.
            high, low = absorb(high, low, uint64(c) | space_due << uint64(32))
            length += uint64(1)
            space_due = uint64(0)
    return finish(high, low, length)


@njit(**KERNEL)
def _segment_keys(data, offsets, paragraphs, fewest, normalisation, tables, keys, counts):  # type: ignore[no-untyped-def]
    """Fill in the keys of all segments that are long enough; -1 where there is no room for all."""
    size = 0
    for row in range(counts.shape[0]):
        at, end = offsets[row], offsets[row + 1]
        begin = size
        while at < end:
            last, following = _next_segment(data, at, end, paragraphs)
            if _long_enough(data, at, last, fewest):
                if size == keys.shape[0]:
                    return -1
                first, stop = _trim(data, at, last) if normalisation else (at, last)
                if normalisation == 2:
                    key = _folded_key(data, first, stop, tables)
                else:
                    key = _exact_key(data, first, stop)
                keys[size, 0], keys[size, 1] = key
                size += 1
            at = following
        counts[row] = size - begin
    return size


@njit(**KERNEL)
def _segment_cuts(data, offsets, paragraphs, fewest, removed, row_of, start, stop):  # type: ignore[no-untyped-def]
    """Stretches to cut so that what is left is joined as before; gives how many there are."""
    found = 0
    number = 0
    for row in range(offsets.shape[0] - 1):
        first, end = offsets[row], offsets[row + 1]
        at = first
        before = first
        any_kept = False
        while at < end:
            last, following = _next_segment(data, at, end, paragraphs)
            gone = False
            if _long_enough(data, at, last, fewest):
                gone = removed[number]
                number += 1
            if gone:
                row_of[found] = row
                start[found] = (before if any_kept else at) - first
                stop[found] = (last if any_kept else following) - first
                found += 1
            else:
                any_kept = True
            before = last
            at = following
    return found


class SegmentKeys(Signal):
    """128-bit hashes of the lines or paragraphs of a text that are long enough.

    A line ends at a line feed, with or without a carriage return before it, or at the end of the
    text. A paragraph is a run of lines that are not blank.

    Example:
        >>> batch = pa.record_batch({"text": pa.array(["one\\ntwo\\n\\none"])})
        >>> (keys,) = SegmentKeys(min_characters=1).compute(batch)["keys"].to_pylist()
        >>> len(keys) // KEY_BYTES, keys[:KEY_BYTES] == keys[-KEY_BYTES:]
        (3, True)
    """

    operator: Literal["segment_keys"] = "segment_keys"
    unit: SegmentUnit = Field(default="line", description="what is hashed")
    min_characters: int = Field(default=50, ge=1, description="shorter ones are left out")
    normalisation: Normalisation = Field(default="exact", description="what counts as the same")
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def fields(self) -> pa.Schema:
        """``keys`` (large_binary): 16 bytes a segment, two uint64 as the machine has them."""
        return pa.schema([pa.field("keys", pa.large_binary(), nullable=False)])

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        data, offsets = string_buffers(batch["text"])
        counts = np.zeros(batch.num_rows, np.int64)
        room = 1024 + int(offsets[-1] - offsets[0]) // max(40, self.min_characters)
        while True:
            keys = np.empty((room, 2), np.uint64)
            found = _segment_keys(
                data,
                offsets,
                self.unit == "paragraph",
                self.min_characters,
                _NORMALISATIONS[self.normalisation],
                unicode_tables(),
                keys,
                counts,
            )
            if found >= 0:
                break
            room *= 4
        starts = np.zeros(batch.num_rows + 1, np.int64)
        np.cumsum(counts * KEY_BYTES, out=starts[1:])
        held = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            batch.num_rows,
            [None, pa.py_buffer(starts), pa.py_buffer(keys[:found].copy())],
        )
        return pa.record_batch([held], schema=self.fields())

    def stretches(self, text: pa.Array, removed: np.ndarray) -> Stretches:
        """Where to cut so that some segments are gone and the others joined as they were.

        Args:
            text: string array.
            removed: bool, for every segment of these texts that has a key, in order.
        """
        data, offsets = string_buffers(text)
        room = int(removed.sum())
        row, start, stop = (np.empty(room, np.int64) for _ in range(3))
        _segment_cuts(
            data,
            offsets,
            self.unit == "paragraph",
            self.min_characters,
            removed,
            row,
            start,
            stop,
        )
        return Stretches(row, start, stop)


def keys_of(column: pa.Array) -> tuple[UInt64s, Int64s]:
    """Keys of a batch as ``(n, 2)`` uint64, and where those of every row begin."""
    data, offsets = string_buffers(column)
    held = data[offsets[0] : offsets[-1]].view(np.uint64).reshape(-1, 2)
    return held, (offsets - offsets[0]) // KEY_BYTES
