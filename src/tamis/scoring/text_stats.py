"""Plain statistics of a text: how long, how much of it letters, how much of it repeated."""

import unicodedata
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numba import int64, njit, uint64

from tamis.scoring.operator import RowScorer
from tamis.scoring.shingles import insert_distinct, scratch, table_size
from tamis.scoring.words import STATE_SIZE, is_ascii, next_tokens, unicode_tables
from tamis.storage.kernels import KERNEL, Bytes, fmix64, string_buffers

_NEWLINE, _SPACE, _TAB, _RETURN = 10, 32, 9, 13


@cache
def _letter_table() -> Bytes:
    """1 for code points of a Unicode letter category."""
    size = 0x32400
    table = np.zeros(size, np.uint8)
    table[[c for c in range(size) if unicodedata.category(chr(c))[0] == "L"]] = 1
    return table


@njit(**KERNEL)
def _letters(data, start, stop, table):  # type: ignore[no-untyped-def]
    """Code points of a UTF-8 run, and how many of them are letters."""
    characters = 0
    letters = 0
    i = start
    while i < stop:
        first = int64(data[i])
        if first < 0x80:
            code, i = first, i + 1
        elif first >= 0xF0 and i + 3 < stop:
            code = (first & 7) << 18 | (int64(data[i + 1]) & 63) << 12
            code |= (int64(data[i + 2]) & 63) << 6 | (int64(data[i + 3]) & 63)
            i += 4
        elif first >= 0xE0 and i + 2 < stop:
            code = (first & 15) << 12 | (int64(data[i + 1]) & 63) << 6
            code |= int64(data[i + 2]) & 63
            i += 3
        elif i + 1 < stop:
            code, i = (first & 31) << 6 | (int64(data[i + 1]) & 63), i + 2
        else:
            code, i = 0, i + 1
        characters += 1
        if code < table.shape[0]:
            letters += table[code]
    return characters, letters


@njit(**KERNEL)
def _repeated_lines(data, start, stop, table):  # type: ignore[no-untyped-def]
    """Lines that are not blank, and how many of them equal an earlier one, ends trimmed."""
    lines = 0
    repeated = 0
    at = start
    while at < stop:
        end = at
        while end < stop and data[end] != _NEWLINE:
            end += 1
        first, last = at, end
        while first < last and data[first] in (_SPACE, _TAB, _RETURN):
            first += 1
        while last > first and data[last - 1] in (_SPACE, _TAB, _RETURN):
            last -= 1
        if last > first:
            h = uint64(last - first)
            for i in range(first, last):
                h = (h ^ uint64(data[i])) * uint64(0x9E3779B97F4A7C15)
                h ^= h >> uint64(29)
            h = fmix64(h)
            lines += 1
            if not insert_distinct(table, h if h else uint64(1)):
                repeated += 1
        at = end + 1
    return lines, repeated


@njit(**KERNEL)
def _text_stats(  # type: ignore[no-untyped-def]
    data, offsets, tables, letter_table, characters, words, letter_share, repeated_share
):
    work = scratch(1)
    tokens, state = work[0], work[3]
    table = np.zeros(1024, np.uint64)
    for row in range(characters.shape[0]):
        start, end = offsets[row], offsets[row + 1]
        ascii_row = is_ascii(data, start, end)
        count, letters = _letters(data, start, end, letter_table)
        characters[row] = count
        letter_share[row] = letters / count if count else np.nan
        total = 0
        position = start
        state[:STATE_SIZE] = uint64(0)
        while position < end:
            found, position = next_tokens(
                data, position, end, ascii_row, False, tables, state, tokens, 0
            )
            total += found
        words[row] = total
        newlines = 1
        for i in range(start, end):
            newlines += data[i] == _NEWLINE
        room = table_size(newlines)
        if table.shape[0] < room:
            table = np.zeros(room, np.uint64)
        table[:room] = uint64(0)
        lines, repeated = _repeated_lines(data, start, end, table[:room])
        repeated_share[row] = repeated / lines if lines else np.nan


class TextStats(RowScorer):
    """Characters, words, share of letters and share of repeated lines of a text.

    A word is what near_dedup takes for one; a character without spaces around it in its script
    (Han, Kana, Thai) is a word. Shares are nan for a text that has no character or no line.

    Example:
        >>> import pyarrow as pa
        >>> batch = pa.record_batch({"text": pa.array(["one two\\none two\\n3"])})
        >>> TextStats().compute(batch).to_pylist()[0]["repeated_line_share"]
        0.3333333333333333
    """

    operator: Literal["text_stats"] = "text_stats"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Rae et al. 2021 (Gopher), table A1: duplicate line fraction"
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "unicode": unicodedata.unidata_version}

    def fields(self) -> pa.Schema:
        """``characters`` and ``words`` (counts), ``letter_share`` (0 to 1, of characters),
        ``repeated_line_share`` (0 to 1, lines equal to an earlier one, of lines not blank)."""
        return pa.schema(
            [
                pa.field("characters", pa.int64(), nullable=False),
                pa.field("words", pa.int64(), nullable=False),
                pa.field("letter_share", pa.float64(), nullable=False),
                pa.field("repeated_line_share", pa.float64(), nullable=False),
            ]
        )

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        data, offsets = string_buffers(batch["text"])
        rows = batch.num_rows
        counts = np.empty(rows, np.int64), np.empty(rows, np.int64)
        shares = np.empty(rows, np.float64), np.empty(rows, np.float64)
        _text_stats(data, offsets, unicode_tables(), _letter_table(), *counts, *shares)
        return pa.record_batch([pa.array(c) for c in (*counts, *shares)], schema=self.fields())
