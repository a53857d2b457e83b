"""Cutting stretches of bytes out of texts, and taking stretches as texts of their own."""

from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from tamis.scoring.words import IGNORED, MARK, WORD, decode, unicode_tables
from tamis.storage.kernels import KERNEL, Bytes, Int64s, string_buffers

#: How far a cut may reach: any character, whole words, whole lines.
Bounds = Literal["character", "word", "line"]
_BOUNDS: dict[Bounds, int] = {"character": 0, "word": 1, "line": 2}

_NEWLINE, _RETURN = 10, 13
_JOINER = 0x200D
_TONES = (0x1F3FB, 0x1F3FF)  # emoji modifiers: they colour the character before


class Stretches(NamedTuple):
    """Stretches of bytes of some rows: sorted by row and start, none overlapping another.

    Attributes:
        row: int64, which row.
        start, stop: int64, bytes from the row's beginning.
    """

    row: Int64s
    start: Int64s
    stop: Int64s


class CutText(NamedTuple):
    """Texts without some of their stretches.

    Attributes:
        text: large_string.
        characters: int64, code points of every text before.
        removed: int64, code points that are gone.
    """

    text: pa.Array
    characters: Int64s
    removed: Int64s


@njit(**KERNEL)
def _characters(data, start, stop):  # type: ignore[no-untyped-def]
    """Code points of a UTF-8 run: bytes that do not continue one."""
    found = 0
    for i in range(np.uint64(start), np.uint64(stop)):
        found += (data[i] & 0xC0) != 0x80
    return found


@njit(**KERNEL)
def _before(data, i, first):  # type: ignore[no-untyped-def]
    """Where the character before `i` begins."""
    i -= 1
    while i > first and (data[i] & 0xC0) == 0x80:
        i -= 1
    return i


@njit(**KERNEL)
def _is_bound(data, i, first, end, bounds, classes):  # type: ignore[no-untyped-def]
    """Whether the text may be cut before byte `i`."""
    if i in (first, end):
        return True
    if (data[i] & 0xC0) == 0x80:
        return False
    if bounds == 2:
        return data[i - 1] == _NEWLINE
    if data[i - 1] == _RETURN and data[i] == _NEWLINE:
        return False
    code, _ = decode(data, i, end)
    last, _ = decode(data, _before(data, i, first), end)
    here = classes[code] if code < classes.shape[0] else 0
    if here in (MARK, IGNORED) or _TONES[0] <= code <= _TONES[1] or last == _JOINER:
        return False
    if bounds == 1:
        there = classes[last] if last < classes.shape[0] else 0
        inside = there in (WORD, MARK, IGNORED)
        return not (inside and here == WORD)
    return True


@njit(**KERNEL)
def _draw_in(data, offsets, row, start, stop, bounds, classes):  # type: ignore[no-untyped-def]
    """Draw stretches in to where a text may be cut."""
    for k in range(row.shape[0]):
        first, end = offsets[row[k]], offsets[row[k] + 1]
        a, b = first + start[k], first + stop[k]
        while a < b and not _is_bound(data, a, first, end, bounds, classes):
            a += 1
        while b > a and not _is_bound(data, b, first, end, bounds, classes):
            b -= 1
        start[k], stop[k] = a - first, b - first


def draw_in(text: pa.Array, stretches: Stretches, bounds: Bounds) -> Stretches:
    """Shorten stretches until they begin and end where a text may be cut.

    Never inside a character, between a letter and its marks, inside an emoji joined of several,
    or between carriage return and line feed; if asked for, only between words or lines. A stretch
    of which nothing is left stops where it starts.

    Args:
        text: string array.
        stretches: rows count in it.

    Example:
        >>> import numpy as np
        >>> found = Stretches(*(np.array([value]) for value in (0, 1, 8)))
        >>> draw_in(pa.array(["ab cd efg"]), found, "word")
        Stretches(row=array([0]), start=array([2]), stop=array([6]))
    """
    data, offsets = string_buffers(text)
    row, start, stop = (np.array(part) for part in stretches)
    _draw_in(data, offsets, row, start, stop, _BOUNDS[bounds], unicode_tables().classes)
    return Stretches(row, start, stop)


@njit(**KERNEL)
def _copy(data, start, stop, out, size):  # type: ignore[no-untyped-def]
    length = stop - start
    if length > 0:
        out[size : size + length] = data[start:stop]
    return size + max(length, 0)


@njit(**KERNEL)
def _cut(data, offsets, row, start, stop, out, out_offsets, characters, removed):  # type: ignore[no-untyped-def]
    size = 0
    k = 0
    for i in range(characters.shape[0]):
        first, end = offsets[i], offsets[i + 1]
        begin = size
        at = first
        any_cut = False
        while k < row.shape[0] and row[k] == i:
            size = _copy(data, at, first + start[k], out, size)
            at = first + stop[k]
            any_cut |= stop[k] > start[k]
            k += 1
        size = _copy(data, at, end, out, size)
        characters[i] = _characters(data, first, end)
        if any_cut:
            # What is left of a text that has lost all but white space is nothing.
            blank = True
            for j in range(begin, size):
                byte = out[j]
                if not (byte == 32 or 9 <= byte <= 13):
                    blank = False
                    break
            if blank:
                size = begin
            removed[i] = characters[i] - _characters(out, begin, size)
        out_offsets[i + 1] = size


def cut(text: pa.Array, stretches: Stretches) -> CutText:
    """Cut stretches out of texts. A text of which only white space is left becomes empty.

    Example:
        >>> import numpy as np
        >>> found = Stretches(*(np.array([value]) for value in (0, 1, 8)))
        >>> cut(pa.array(["ab cd efg"]), found).text.to_pylist()
        ['ag']
    """
    data, offsets = string_buffers(text)
    rows = len(text)
    out = np.empty(int(offsets[-1] - offsets[0]), np.uint8)
    out_offsets = np.zeros(rows + 1, np.int64)
    characters, removed = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    _cut(data, offsets, *stretches, out, out_offsets, characters, removed)
    return CutText(_texts(out[: out_offsets[-1]], out_offsets), characters, removed)


@njit(**KERNEL)
def _take(data, offsets, row, start, stop, longest, out, out_offsets):  # type: ignore[no-untyped-def]
    size = 0
    for k in range(row.shape[0]):
        first = offsets[row[k]] + start[k]
        end = offsets[row[k]] + stop[k]
        last = min(end, first + longest)
        while last > first and last < end and (data[last] & 0xC0) == 0x80:
            last -= 1
        if size + last - first > out.shape[0]:
            return -1
        size = _copy(data, first, last, out, size)
        out_offsets[k + 1] = size
    return size


def take(text: pa.Array, stretches: Stretches, longest: int) -> pa.Array:
    """Every stretch as a text of its own, cut to at most `longest` bytes at a character."""
    data, offsets = string_buffers(text)
    room = int(np.minimum(stretches.stop - stretches.start, longest).sum())
    out = np.empty(room, np.uint8)
    out_offsets = np.zeros(len(stretches.row) + 1, np.int64)
    _take(data, offsets, *stretches, longest, out, out_offsets)
    return _texts(out[: out_offsets[-1]], out_offsets)


def _texts(data: Bytes, offsets: Int64s) -> pa.Array:
    return pa.LargeStringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))
    )
