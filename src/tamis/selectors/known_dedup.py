"""Removal of what another corpus holds already: earlier days, a published dataset, a benchmark."""

from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from tamis.scoring.operator import RowScorer
from tamis.selectors.exact_dedup import ContentKey
from tamis.selectors.jaccard import Float64s
from tamis.selectors.matching import (
    BLOCK_ROWS,
    EQUAL_BYTES,
    PAIRS_AT_ONCE,
    Matches,
    TableSide,
    matches,
)
from tamis.selectors.reference import EXCERPT, Reference, left_out, told_apart
from tamis.selectors.resemblance import Resemblance
from tamis.selectors.selector import Selector
from tamis.selectors.table import Table
from tamis.storage.grouping import first_with_pair
from tamis.storage.kernels import Int64s, UInt64s
from tamis.storage.ledger import OUTSIDE, Drops
from tamis.storage.places import Place


class KnownDedup(Selector, Resemblance):
    """Drop rows that resemble a row of another corpus, whose own rows always stay.

    The partner is the most similar row of the references; of equally similar ones that with the
    smallest row_id. Candidates share a band of their MinHash signatures; no estimate ever accepts
    a pair. Rows of the corpus are not compared with each other: `near_dedup` does that.
    """

    operator: Literal["known_dedup"] = "known_dedup"
    references: Annotated[list[Reference], AfterValidator(told_apart)] = Field(
        min_length=1, description="the other corpora: path, text column, name"
    )
    exact: bool = Field(
        default=False, description="only texts that are the same, byte for byte; much quicker"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Broder 1997 (resemblance); Lee et al. 2022, Deduplicating training data makes language "
        "models better (word 5-grams, threshold .8)"
    )
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def resolve(self, workspace: Place) -> Self:
        found = [reference.resolve(workspace) for reference in self.references]
        return self.model_copy(update={"references": found})

    def signals(self) -> tuple[RowScorer, ...]:
        return (ContentKey(),) if self.exact else (self.signal,)

    def memory(self, rows: int, text_bytes: int) -> int:
        """Hash tables of a block, candidates, ids, and what tells equal rows of both sides."""
        theirs = max(reference.rows for reference in self.references)
        if self.exact:
            return 50 * theirs + 80 * rows
        a_row = 5 * self.num_perm + 24 * self.banding.bands + 48
        return (
            (50 + EQUAL_BYTES) * theirs
            + (68 + EQUAL_BYTES) * rows
            + a_row * min(rows, BLOCK_ROWS)
            + 160 * PAIRS_AT_ONCE
        )

    def select(self, table: Table) -> Drops:
        tables = [reference.table(table) for reference in self.references]
        if self.exact:
            keys = _keys(table)
            found = [_same(keys, other) for other in tables]
        else:
            found = [self._matches(table, other) for other in tables]
        best = _best(found, tables)
        apart = left_out(self.references, tables)
        outside = pa.concat_tables(
            _outside(reference.title, other, best.partner[best.reference == number])
            for number, (reference, other) in enumerate(zip(self.references, tables, strict=True))
        )
        # Tables of the references one after the other, brought into the order of the rows.
        place = np.argsort(np.argsort(best.reference, kind="stable"), kind="stable")
        drops = Drops.of(
            best.rows,
            "",
            value=best.similarity,
            threshold=1.0 if self.exact else self.threshold,
            similarity=best.similarity,
            outside=outside.take(pa.array(place)).combine_chunks(),
            report={
                "references": {
                    reference.title: {
                        "rows": len(other),
                        **apart[reference.title],
                        "resembled": len(one.rows),
                        **one.counts,
                    }
                    for reference, other, one in zip(self.references, tables, found, strict=True)
                }
            },
        )
        drops.reasons = [reference.title for reference in self.references]
        drops.reason = best.reference.astype(np.int32)
        return drops

    def _matches(self, table: Table, other: Table) -> Matches:
        return matches(
            TableSide(table),
            TableSide(other),
            self.signal,
            self.banding,
            self.threshold,
            table.workers,
            lambda done, of: table.progress("compared with the references", done, of),
        )


class _Best(NamedTuple):
    """By row, the best match over all references."""

    rows: Int64s
    partner: Int64s
    similarity: Float64s
    reference: Int64s


def _best(found: list[Matches], references: list[Table]) -> _Best:
    """Ties by the partner's id, then by the order of the references."""
    numbers = [np.full(len(one.rows), number) for number, one in enumerate(found)]
    ids = [TableSide(t).ids(one.partner) for t, one in zip(references, found, strict=True)]
    rows, partner, similarity, number = (
        np.concatenate(column)
        for column in zip(
            *((*one[:3], n) for one, n in zip(found, numbers, strict=True)), strict=True
        )
    )
    high, low, copy = (np.concatenate(column) for column in zip(*ids, strict=True))
    order = np.lexsort((number, copy, low, high, -similarity, rows))
    rows, at = np.unique(rows[order], return_index=True)
    chosen = order[at]
    return _Best(rows, partner[chosen], similarity[chosen], number[chosen])


def _outside(title: str, table: Table, partner: Int64s) -> pa.Table:
    """Who the partners are, and how their texts begin."""
    high, low, copy = TableSide(table).ids(partner)
    return pa.table(
        {
            "partner_source": pa.array([title] * len(partner), pa.string()),
            "partner_hi": high,
            "partner_lo": low,
            "partner_copy": copy,
            "evidence": table.texts(partner, EXCERPT).cast(pa.string()),
        },
        schema=OUTSIDE,
    )


class _Keys(NamedTuple):
    """The content keys of a table: distinct ones in order, and the distinct one of every row."""

    high: UInt64s
    low: UInt64s
    of: Int64s


def _keys(table: Table) -> _Keys:
    names = ("key_hi", "key_lo")
    parts = [[part[n].to_numpy() for n in names] for part in table.signal(ContentKey())]
    none = np.zeros(0, np.uint64)
    high, low = (
        (np.concatenate([none, *column]) for column in zip(*parts, strict=True))
        if parts
        else (none, none)
    )
    first = first_with_pair(high, low).astype(np.int64)
    distinct = np.unique(first)
    distinct = distinct[np.lexsort((low[distinct], high[distinct]))]
    number = np.full(len(high), -1, np.int64)
    number[distinct] = np.arange(len(distinct))
    return _Keys(high[distinct], low[distinct], number[first])


def _same(keys: _Keys, other: Table) -> Matches:
    """For every row the row of `other` with the smallest id that has the same bytes."""
    side = TableSide(other)
    partner = np.full(len(keys.high), -1, np.int64)
    first = 0
    for batch in other.signal(ContentKey()) if len(partner) else ():
        high, low = batch["key_hi"].to_numpy(), batch["key_lo"].to_numpy()
        at = np.searchsorted(keys.high, high)
        end = np.searchsorted(keys.high, high, side="right")
        while (later := (at < end) & (keys.low[np.minimum(at, len(keys.low) - 1)] != low)).any():
            at = at + later
        met = np.flatnonzero(at < end)
        _lower(partner, at[met], first + met, side)
        first += batch.num_rows
    found = partner[keys.of]
    rows = np.flatnonzero(found >= 0)
    return Matches(rows, found[rows], np.ones(len(rows)), {})


def _lower(partner: Int64s, key: Int64s, row: Int64s, side: TableSide) -> None:
    """Put rows in as the partners of keys where none with a smaller id is there."""
    there = np.flatnonzero(partner[key] >= 0)
    key, row = np.r_[key, key[there]], np.r_[row, partner[key[there]]]
    high, low, copy = side.ids(row)
    order = np.lexsort((copy, low, high, key))
    distinct, at = np.unique(key[order], return_index=True)
    partner[distinct] = row[order][at]
