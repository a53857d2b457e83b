"""What a selector sees: whole columns of the rows still kept, never more text than it asks for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.scoring.evaluate import Evaluated, Mask, evaluate
from tamis.scoring.operator import RowScorer
from tamis.storage.corpus import Corpus
from tamis.storage.kernels import Int64s, UInt64s, in_threads
from tamis.storage.rows import Rows, UInt32s


@dataclass(frozen=True)
class Table:
    """The rows still kept at a stage, numbered from 0 in corpus order.

    Attributes:
        positions: place of each of them in the corpus.
        columns: column of every role.
        scores: by score name, the evaluated operator that gives it.
        signals: folder for the sidecars of signals.
        progress: called with a name, work done and work in all.
    """

    corpus: Corpus
    rows: Rows
    kept: Mask
    positions: Int64s
    columns: Mapping[str, str]
    scores: Mapping[str, Evaluated]
    signals: Path
    workers: int
    progress: Callable[[str, int, int], None]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def id_hi(self) -> UInt64s:
        return self.rows.id_hi[self.positions]

    @property
    def id_lo(self) -> UInt64s:
        return self.rows.id_lo[self.positions]

    @property
    def copy(self) -> UInt32s:
        return self.rows.copy[self.positions]

    def names(self) -> set[str]:
        """Scores and columns of the corpus that can be asked for."""
        return {*self.scores, *self.corpus.schema.names}

    def column(self, name: str) -> pa.ChunkedArray:
        """A score, or a column of the corpus, for every row; null where it was not evaluated."""
        if name in self.scores:
            return self._score(self.scores[name], name)
        chunks: list[pa.Array] = []
        for batch in self.batches([name]):
            chunks.append(batch[name])
        kind = chunks[0].type if chunks else self.corpus.schema.field(name).type
        return pa.chunked_array(chunks, kind)

    def _score(self, evaluated: Evaluated, name: str) -> pa.ChunkedArray:
        chunks: list[pa.Array] = []
        for shard, table in zip(self.corpus.shards, evaluated.tables(["row", name]), strict=True):
            wanted = np.flatnonzero(self.kept[self.rows.of(shard)])
            values = table[name].combine_chunks()
            if len(table) != len(wanted):  # some rows were dropped since it was computed
                at = np.searchsorted(table["row"].to_numpy(), wanted)
                values = values.take(pa.array(at))
            chunks.append(values)
        return pa.chunked_array(chunks, evaluated.operator.fields().field(name).type)

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Scores and columns of the rows still kept, in bounded batches, in order."""
        scores = {name: self.column(name) for name in names if name in self.scores}
        columns = [name for name in names if name not in scores]
        done = 0
        for shard in self.corpus.shards:
            inside = self.kept[self.rows.of(shard)]
            if not inside.any():
                continue
            if not columns:
                rows = int(inside.sum())
                parts = {n: scores[n].slice(done, rows).combine_chunks() for n in names}
                yield pa.record_batch(parts)
                done += rows
                continue
            begin = 0
            for batch in shard.batches(columns):
                here = inside[begin : begin + batch.num_rows]
                begin += batch.num_rows
                found = batch if here.all() else batch.filter(pa.array(here))
                if not found.num_rows:
                    continue
                parts = {
                    name: (
                        scores[name].slice(done, found.num_rows).combine_chunks()
                        if name in scores
                        else found[name]
                    )
                    for name in names
                }
                yield pa.record_batch(parts)
                done += found.num_rows

    def signal(self, operator: RowScorer) -> Iterator[pa.RecordBatch]:
        """A signal's columns for the rows still kept, in batches, computed where missing."""
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            self.progress(operator.operator, done, self.corpus.rows)

        folder = self.signals / operator.operator
        yield from evaluate(
            operator,
            self.corpus,
            self.rows,
            self.kept,
            self.columns,
            folder,
            workers=self.workers,
            progress=advance,
        ).batches(operator.fields().names)

    def map_text(
        self, role: str, wanted: Int64s, function: Callable[[pa.Array, Int64s, slice], None]
    ) -> None:
        """Call a function with the text of some rows, batch by batch on all workers.

        Args:
            wanted: rows of this table, ascending.
            function: gets a text array, positions in it, and the places in `wanted` they are.
        """
        positions = self.positions[wanted]
        name = self.columns[role]

        def work(index: int) -> None:
            shard = self.corpus.shards[index]
            begin = int(self.rows.start[index])
            for batch in shard.batches([name]):
                first, last = np.searchsorted(positions, [begin, begin + batch.num_rows])
                if last > first:
                    inside = positions[first:last] - begin
                    function(batch[name], inside, slice(int(first), int(last)))
                begin += batch.num_rows

        cuts = np.searchsorted(positions, self.rows.start)
        touched = [i for i in range(len(self.corpus.shards)) if cuts[i + 1] > cuts[i]]
        in_threads(work, touched, self.workers)


def as_floats(column: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Numbers as float64 (times by their stored integer), nan where null.

    Integers beyond 2**53 are rounded: rows that then tie are told apart by row_id.
    """
    kind = column.type
    if pa.types.is_temporal(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    return np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), float("nan")))


def is_number(kind: pa.DataType) -> bool:
    """Whether `as_floats` takes a column of this type."""
    tests = (
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
        pa.types.is_temporal,
    )
    return any(test(kind) for test in tests) and not pa.types.is_interval(kind)
