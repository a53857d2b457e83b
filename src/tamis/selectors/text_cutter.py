"""What the table scorers have in common that cut repeated text out of rows."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.scoring.cuts import Stretches, cut, take
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.storage.columns import read_columns
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s

#: Bytes of the first stretch that a row has lost, kept as evidence.
EVIDENCE_BYTES = 200


class TextCutter(TableScorer):
    """Cuts out of every text what occurred earlier, in the order of row_id, copy and place."""

    roles: ClassVar[tuple[str, ...]] = ("text",)

    def fields(self) -> pa.Schema:
        """``<operator>_text`` (what is left), ``_cuts`` (stretches that are gone), ``_removed``
        (their characters), ``_share`` (0 to 1, of the characters; 0 for an empty text),
        ``_evidence`` (beginning of the first stretch) and ``_partner`` (row_id of the row that
        holds its first occurrence), both null where nothing is gone."""
        name = self.operator
        return pa.schema(
            [
                pa.field(f"{name}_text", pa.large_string(), nullable=False),
                pa.field(f"{name}_cuts", pa.int64(), nullable=False),
                pa.field(f"{name}_removed", pa.int64(), nullable=False),
                pa.field(f"{name}_share", pa.float64(), nullable=False),
                pa.field(f"{name}_evidence", pa.large_string()),
                pa.field(f"{name}_partner", pa.string()),
            ]
        )

    def rewrites(self) -> dict[str, str]:
        return {"text": f"{self.operator}_text"}

    @abstractmethod
    def cutter(self, table: Table) -> "Cutter":
        """Decide what is to go."""

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        cutter = self.cutter(table)
        begin = 0
        for shard in table.corpus.shards:
            inside = table.kept[table.rows.of(shard)]
            for rows, batch in read_columns(shard, {"text": table.columns["text"]}, inside):
                yield self._cut(table, batch["text"], begin, cutter)
                begin += len(rows)

    def _cut(self, table: Table, text: pa.Array, begin: int, cutter: "Cutter") -> pa.RecordBatch:
        rows = len(text)
        stretches, partner = cutter.stretches(text, begin)
        done = cut(text, stretches)
        touched, first, cuts = np.unique(stretches.row, return_index=True, return_counts=True)
        gone = take(text, Stretches(*(part[first] for part in stretches)), EVIDENCE_BYTES)
        evidence = pc.utf8_trim_whitespace(gone)
        holder = hex_ids(table.id_hi[partner[first]], table.id_lo[partner[first]])
        counts = np.zeros(rows, np.int64)
        counts[touched] = cuts
        at = pa.array(np.searchsorted(touched, np.arange(rows)), mask=counts == 0)
        share = done.removed / np.maximum(done.characters, 1)
        columns = [
            done.text,
            pa.array(counts),
            pa.array(done.removed),
            pa.array(share),
            evidence.take(at),
            pa.array(holder, pa.string()).take(at),
        ]
        return pa.record_batch(columns, schema=self.fields())


class Cutter:
    """What is to go of every row of a table."""

    def stretches(self, text: pa.Array, begin: int) -> tuple[Stretches, Int64s]:
        """What is to go of the rows ``begin … begin + len(text) - 1``, whose texts are given.

        Returns:
            Stretches, rows counting from 0 in `text`; and for each stretch the row of the table
            that holds its first occurrence.
        """
        raise NotImplementedError


def canonical_rank(table: Table) -> Int64s:
    """Place of every row in the order of row_id and copy, which no order of files can change."""
    order = np.lexsort((table.copy, table.id_lo, table.id_hi))
    rank = np.empty(len(table), np.int64)
    rank[order] = np.arange(len(table))
    return rank
