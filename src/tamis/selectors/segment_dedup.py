"""Lines and paragraphs that occurred before, in whatever row, cut out of the text."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numba import njit, uint64
from pydantic import Field

from tamis.scoring.cuts import Stretches
from tamis.scoring.segments import Normalisation, SegmentKeys, SegmentUnit, keys_of
from tamis.selectors.table import Table
from tamis.selectors.text_cutter import Cutter, TextCutter, canonical_rank
from tamis.storage.columns import Mask
from tamis.storage.grouping import first_with_pair
from tamis.storage.kernels import KERNEL, Int64s, UInt64s

#: Segments whose keys are in memory at a time; more are compared in passes, by ranges of the key.
SEGMENTS_AT_ONCE = 1 << 23
#: Bytes that one of them takes there: key, row, number, and the table that groups them.
_SEGMENT_BYTES = 72
#: With a lower minimum of characters, the bytes that lines have at the least on average.
_BYTES_PER_SEGMENT = 8


@njit(**KERNEL)
def _collect(keys, start, begin, number, part, parts, high, low, row, place, size):  # type: ignore[no-untyped-def]
    """Append the segments of a batch whose key lies in one of `parts` equal ranges."""
    for i in range(start.shape[0] - 1):
        for k in range(start[i], start[i + 1]):
            if (keys[k, 0] >> uint64(32)) * uint64(parts) >> uint64(32) == uint64(part):
                high[size], low[size] = keys[k, 0], keys[k, 1]
                row[size] = begin + i
                place[size] = number + k
                size += 1
    return size


@njit(**KERNEL)
def _decide(first, row, place, rank, min_count, keep_first, removed, lead, holder):  # type: ignore[no-untyped-def]
    """Mark the segments that go.

    Args:
        first: of every segment, the first in the table that is the same; of those, the one that is
            earliest in canonical order stays.
        lead: by row, number of its first segment that goes; updated with `holder`.
        holder: by row, the row that holds the first occurrence of that segment.
    """
    count = np.zeros(first.shape[0], np.int32)
    best = np.empty(first.shape[0], np.int32)
    for i in range(first.shape[0]):
        group = first[i]
        if count[group] == 0:
            best[group] = i
        else:
            held = best[group]
            # Segments of one row are numbered in order.
            if rank[row[i]] < rank[row[held]]:
                best[group] = i
        count[group] += 1
    for i in range(first.shape[0]):
        group = first[i]
        if count[group] < min_count or (keep_first and best[group] == i):
            continue
        removed[place[i]] = True
        if lead[row[i]] < 0 or place[i] < lead[row[i]]:
            lead[row[i]] = place[i]
            holder[row[i]] = row[best[group]]


@dataclass
class _Segments(Cutter):
    """Segments that go.

    Attributes:
        start: int64, number of every row's first segment, and of all last.
        removed: bool, by segment.
        holder: int64, by row, the row with the first occurrence of its first segment that goes.
    """

    signal: SegmentKeys
    start: Int64s
    removed: Mask
    holder: Int64s

    def stretches(self, text: pa.Array, begin: int) -> tuple[Stretches, Int64s]:
        here = self.removed[self.start[begin] : self.start[begin + len(text)]]
        found = self.signal.stretches(text, here)
        return found, self.holder[begin + found.row]


class SegmentDedup(TextCutter):
    """Cuts repeated lines or paragraphs; the base of both operators."""

    unit: ClassVar[SegmentUnit]

    min_characters: int = Field(
        default=50,
        ge=1,
        description="shorter ones stay, white space at both ends not counted; FineWeb's trial with "
        "lines of ten words or more comes near (unconfirmed)",
    )
    normalisation: Normalisation = Field(
        default="exact",
        description="what counts as the same: `exact` bytes, `stripped` of white space at both "
        "ends, or `folded`: also case, compatibility forms and runs of white space",
    )
    min_count: int = Field(
        default=2, ge=2, description="occurrences in the corpus from which any is cut"
    )
    keep_first: bool = Field(
        default=True,
        description="whether the first occurrence stays; false leaves none (boilerplate)",
    )

    @property
    def signal(self) -> SegmentKeys:
        return SegmentKeys(
            unit=self.unit, min_characters=self.min_characters, normalisation=self.normalisation
        )

    def memory(self, rows: int, text_bytes: int) -> int:
        segments = text_bytes // max(_BYTES_PER_SEGMENT, self.min_characters)
        return rows * 40 + segments + min(segments, SEGMENTS_AT_ONCE) * _SEGMENT_BYTES

    def cutter(self, table: Table) -> _Segments:
        signal = self.signal
        start = np.zeros(len(table) + 1, np.int64)
        begin = 0
        for batch in table.signal(signal):
            _, starts = keys_of(batch["keys"])
            start[begin + 1 : begin + len(starts)] = start[begin] + starts[1:]
            begin += batch.num_rows
        segments = int(start[-1])
        rank = canonical_rank(table)
        removed = np.zeros(segments, np.bool_)
        lead, holder = np.full(len(table), -1, np.int64), np.full(len(table), -1, np.int64)
        parts = -(-segments // SEGMENTS_AT_ONCE)
        for part in range(parts):
            high, low, row, place = self._part(table, start, part, parts)
            first = first_with_pair(high, low)
            del high, low
            _decide(first, row, place, rank, self.min_count, self.keep_first, removed, lead, holder)
            table.progress(f"{self.unit}s compared", part + 1, parts)
        return _Segments(signal, start, removed, holder)

    def _part(
        self, table: Table, start: Int64s, part: int, parts: int
    ) -> tuple[UInt64s, UInt64s, Int64s, Int64s]:
        """Keys, rows and numbers of the segments of one pass."""
        chunks = []
        begin = 0
        for batch in table.signal(self.signal):
            keys, starts = keys_of(batch["keys"])
            found = [np.empty(len(keys), kind) for kind in ("u8", "u8", "i8", "i8")]
            size = _collect(keys, starts, begin, start[begin], part, parts, *found, 0)
            chunks.append([column[:size].copy() for column in found] if parts > 1 else found)
            begin += batch.num_rows
        joined = []
        for column in range(4):
            joined.append(np.concatenate([chunk[column] for chunk in chunks]))
            for chunk in chunks:
                chunk[column] = chunk[column][:0]
        high, low, row, place = joined
        return high, low, row, place


class LineDedup(SegmentDedup):
    """Cut lines that occurred before, in any row, out of the text.

    A line that is long enough and occurs at least `min_count` times in the rows still kept stays
    where it occurs first, in the order of row_id, copy and place, and is cut with its line end
    everywhere else. A row of which nothing but white space is left has an empty text; it stays
    until a rule drops it, such as `line_dedup_share < 1`.
    """

    operator: Literal["line_dedup"] = "line_dedup"
    unit: ClassVar[SegmentUnit] = "line"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Wenzek et al. 2020 (CCNet), section 3.1, for paragraphs, which are lines there; Penedo "
        "et al. 2024 (FineWeb), appendix on global deduplication variants, found that removing all "
        "repeated lines lowers quality"
    )


class ParagraphDedup(SegmentDedup):
    """Cut paragraphs that occurred before, in any row, out of the text.

    A paragraph is a run of lines that are not blank. Everything else is as for `line_dedup`.
    """

    operator: Literal["paragraph_dedup"] = "paragraph_dedup"
    unit: ClassVar[SegmentUnit] = "paragraph"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Wenzek et al. 2020 (CCNet), section 3.1; Soldaini et al. 2024 (Dolma), paragraph "
        "deduplication"
    )
