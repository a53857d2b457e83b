"""Exact duplicate removal."""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from tamis.scoring.operator import RowScorer, Signal
from tamis.selectors.ranks import RankedSelector
from tamis.selectors.table import Table
from tamis.storage.grouping import first_with_pair
from tamis.storage.hashing import hash_array
from tamis.storage.kernels import string_buffers
from tamis.storage.ledger import Drops


class ContentKey(Signal):
    """128-bit hash of exactly the bytes of a text.

    Example:
        >>> import pyarrow as pa
        >>> keys = ContentKey().compute(pa.record_batch({"text": pa.array(["a", "b", "a"])}))
        >>> keys["key_hi"][0] == keys["key_hi"][2]
        True
    """

    operator: Literal["content_key"] = "content_key"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def fields(self) -> pa.Schema:
        """``key_hi``, ``key_lo`` (uint64 halves) and ``bytes`` (length in UTF-8)."""
        return pa.schema(
            [
                pa.field("key_hi", pa.uint64(), nullable=False),
                pa.field("key_lo", pa.uint64(), nullable=False),
                pa.field("bytes", pa.int64(), nullable=False),
            ]
        )

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        text = batch["text"]
        hashes = hash_array(text)
        lengths = np.diff(string_buffers(text)[1])
        return pa.record_batch(
            [pa.array(hashes.high), pa.array(hashes.low), pa.array(lengths)], schema=self.fields()
        )


class ExactDedup(RankedSelector):
    """Keep one of the rows whose text is the same, byte for byte."""

    operator: Literal["exact_dedup"] = "exact_dedup"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 120

    def signals(self) -> tuple[RowScorer, ...]:
        return (ContentKey(),)

    def select(self, table: Table) -> Drops:
        signal = ContentKey()
        columns = pa.Table.from_batches(list(table.signal(signal)), schema=signal.fields())
        high, low = columns["key_hi"].to_numpy(), columns["key_lo"].to_numpy()
        ranking = self.ranking(table, columns["bytes"].to_numpy().astype(np.float64))
        first = first_with_pair(high, low).astype(np.int64)
        repeats = np.flatnonzero(first != np.arange(len(first)))
        shared = np.unique(np.r_[repeats, first[repeats]])
        best = np.full(len(first), -1, np.int64)
        worst_first = ranking.order(shared)[::-1]
        best[first[worst_first]] = worst_first  # the best rank is written last
        partner = best[first[shared]]
        lost = partner != shared
        return Drops.of(
            shared[lost],
            "",
            partner=partner[lost],
            similarity=np.ones(int(lost.sum())),
            report={"groups": int((~lost).sum())},
        )
