"""Exact repeated substrings, wherever they are, cut out of the text."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from tamis.scoring.anchors import SubstringAnchors, Winnow, anchors_of
from tamis.scoring.cuts import Bounds, Stretches, draw_in
from tamis.selectors.repeats import (
    Cuts,
    Filter,
    Surroundings,
    gather,
    merged,
    partial_repeats,
    surroundings,
    whole_repeats,
)
from tamis.selectors.table import Table
from tamis.selectors.text_cutter import Cutter, TextCutter, canonical_rank
from tamis.storage.kernels import Bytes, Int64s, string_buffers

#: Repeated anchors in memory at a time; more are worked on in passes over the texts they are in.
ANCHORS_AT_ONCE = 1 << 23
#: Bytes of one there: hashes, place, groups, cut.
_ANCHOR_BYTES = 120
#: Anchors whose surroundings are in memory at a time.
TEXTS_AT_ONCE = 1 << 19


@dataclass
class _Repeats(Cutter):
    cuts: Cuts
    bounds: Bounds

    def stretches(self, text: pa.Array, begin: int) -> tuple[Stretches, Int64s]:
        a, b = np.searchsorted(self.cuts.row, [begin, begin + len(text)])
        row, start, stop, holder = (column[a:b] for column in self.cuts)
        found = draw_in(text, Stretches(row - begin, start, stop), self.bounds)
        left = found.stop > found.start
        return Stretches(*(column[left] for column in found)), holder[left]


class SubstringDedup(TextCutter):
    """Cut every stretch of at least `min_bytes` bytes that occurred before out of the text.

    A byte goes exactly if it lies in a stretch of `min_bytes` bytes that occurs earlier in the rows
    still kept, in the order of row_id, copy and place. So of every repeated substring that is long
    enough the first occurrence stays; where it overlaps its own copy, one period of it. Cuts are
    then drawn in to whole characters, words or lines. A row of which nothing but white space is
    left has an empty text; it stays until a rule drops it, such as `substring_dedup_share < 1`.
    """

    operator: Literal["substring_dedup"] = "substring_dedup"
    min_bytes: int = Field(
        default=200,
        ge=16,
        description="UTF-8 bytes of the shortest repeat that is cut; Lee et al. 2022 take 50 BPE "
        "tokens, about 200 bytes of English",
    )
    bounds: Bounds = Field(
        default="character",
        description="what is cut whole: `character` (with its marks), `word` or `line`",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Lee et al. 2022, Deduplicating training data makes language models better (ExactSubstr, "
        "section 4.1); Schleimer, Wilkerson and Aiken 2003 (winnowing)"
    )

    @property
    def signal(self) -> SubstringAnchors:
        return SubstringAnchors(length=self.min_bytes)

    def memory(self, rows: int, text_bytes: int) -> int:
        winnow = self.signal.winnow
        anchors = 2 * text_bytes // winnow.window
        texts = min(anchors, TEXTS_AT_ONCE) * 2 * self.min_bytes
        return (
            rows * 40 + Filter.room(anchors) + min(anchors, ANCHORS_AT_ONCE) * _ANCHOR_BYTES + texts
        )

    def cutter(self, table: Table) -> _Repeats:
        return _Repeats(self.cuts(table), self.bounds)

    def cuts(self, table: Table) -> Cuts:
        """All bytes that occurred before."""
        winnow = self.signal.winnow
        repeated, wanted, anchors = self._candidates(table)
        rank = canonical_rank(table)
        lengths = np.zeros(len(table), np.int64)
        found = Cuts.none()
        parts = max(1, -(-anchors // ANCHORS_AT_ONCE))
        for part in range(parts):
            entries, own = _entries(table, wanted, lengths, winnow, repeated, part, parts)
            whole, heads = whole_repeats(entries, rank, lengths, winnow)
            del entries
            rest = _partial(table, heads, lengths, winnow)
            found = merged([found, *own, whole, *rest], rank)
            table.progress("repeats found", part + 1, parts)
        return found

    def _candidates(self, table: Table) -> tuple[Filter, Int64s, int]:
        """The filter of repeated anchors, the rows that have one, and how many they have."""
        signal = self.signal
        total = sum(len(anchors_of(b["anchors"])[0]) for b in table.signal(signal))
        repeated = Filter(total)
        for batch in table.signal(signal):
            repeated.put(anchors_of(batch["anchors"])[0])
        rows = []
        begin = anchors = 0
        for batch in table.signal(signal):
            hashes, starts = anchors_of(batch["anchors"])
            sums = np.concatenate([[0], np.cumsum(repeated.repeated(hashes))])
            rows.append(begin + np.flatnonzero(np.diff(sums[starts])))
            anchors += int(sums[-1])
            begin += batch.num_rows
        return repeated, np.concatenate([np.zeros(0, np.int64), *rows]), anchors


def _entries(
    table: Table,
    wanted: Int64s,
    lengths: Int64s,
    winnow: Winnow,
    repeated: Filter,
    part: int,
    parts: int,
) -> tuple[Surroundings, list[Cuts]]:
    """Anchors of the wanted rows that may be repeats; fills in the `lengths` of their texts."""
    entries: list[Surroundings] = []
    cuts: list[Cuts] = []

    def look(text: pa.Array, rows: Int64s, places: slice) -> None:
        data, offsets = string_buffers(text)
        lengths[wanted[places]] = np.diff(offsets)[rows]
        found, own = surroundings(data, offsets, rows, places.start, winnow, repeated, part, parts)
        entries.append(found._replace(row=wanted[found.row]))
        cuts.append(own._replace(row=wanted[own.row], holder=wanted[own.holder]))

    table.map_text("text", wanted, look)
    return Surroundings.joined(entries), cuts


def _partial(table: Table, heads: Surroundings, lengths: Int64s, winnow: Winnow) -> list[Cuts]:
    """Bytes of the surroundings of anchors that those of an earlier one have too."""
    found = []
    ends = np.r_[np.flatnonzero(heads.gram[1:] != heads.gram[:-1]) + 1, len(heads.row)]
    begin = 0
    while begin < len(heads.row):
        # Anchors of one k-gram are compared together, however many they are.
        stop = int(ends[max(np.searchsorted(ends, begin + TEXTS_AT_ONCE, side="right") - 1, 0)])
        if stop <= begin:
            stop = int(ends[np.searchsorted(ends, begin, side="right")])
        here = heads.part(begin, stop)
        found.append(partial_repeats(here, _texts(table, here, winnow), lengths[here.row], winnow))
        begin = stop
    return found


def _texts(table: Table, anchors: Surroundings, winnow: Winnow) -> Bytes:
    """The surroundings of some anchors, ``(n, 2 * length - gram)`` uint8."""
    by_row = np.argsort(anchors.row, kind="stable")
    wanted, number = np.unique(anchors.row[by_row], return_inverse=True)
    place = anchors.place[by_row]
    texts = np.empty((len(by_row), 2 * winnow.length - winnow.gram), np.uint8)

    def copy(text: pa.Array, rows: Int64s, places: slice) -> None:
        a, b = np.searchsorted(number, [places.start, places.stop])
        gather(
            *string_buffers(text),
            rows,
            places.start,
            number[a:b],
            place[a:b],
            by_row[a:b],
            winnow,
            texts,
        )

    table.map_text("text", wanted, copy)
    return texts
