"""What a selector sees: whole columns of the rows still kept, never more text than it asks for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tamis.scoring.evaluate import Evaluated, evaluate
from tamis.scoring.operator import RowScorer
from tamis.selectors.known_pairs import Known
from tamis.storage.columns import Mask, Source, read_columns
from tamis.storage.corpus import Corpus, Progress
from tamis.storage.files import digest_of
from tamis.storage.kernels import Int64s, UInt64s, in_threads
from tamis.storage.places import Place
from tamis.storage.rows import Rows, UInt32s
from tamis.storage.tasks import Runner

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Table:
    """The rows still kept at a stage, numbered from 0 in corpus order.

    Attributes:
        positions: place of each of them in the corpus.
        columns: where the values of every role come from.
        rewritten: where the values of a column of the corpus come from that a stage has rewritten.
        scores: by score name, the evaluated operator that gives it.
        workspace: its room ``signals`` holds the sidecars of signals.
        progress: called with a name, work done and work in all.
        orders: folder of what workers are told; the workspace's own if None.
        signed: by `signal_key`, the rows that an earlier stage has asked a signal of.
        known: similarities of pairs that were computed before for the same texts in the same way.
        spare: bytes of memory that the run was allowed beyond what it said it may need; None where
            nobody set a limit.
    """

    corpus: Corpus
    rows: Rows
    kept: Mask
    positions: Int64s
    columns: Mapping[str, Source]
    rewritten: Mapping[str, Source]
    scores: Mapping[str, Evaluated]
    workspace: Place
    runner: Runner
    progress: Progress
    orders: Place | None = None
    signed: Mapping[str, Mask] = field(default_factory=dict)
    known: Known | None = None
    spare: int | None = None

    @property
    def workers(self) -> int:
        """Threads that a step over the whole table may use."""
        return self.runner.workers

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def id_hi(self) -> UInt64s:
        return self._of_mine(self.rows.id_hi)

    @property
    def id_lo(self) -> UInt64s:
        return self._of_mine(self.rows.id_lo)

    @property
    def copy(self) -> UInt32s:
        return self._of_mine(self.rows.copy)

    def _of_mine(self, column: npt.NDArray[T]) -> npt.NDArray[T]:
        """A column of all rows for those of the table; itself where that is all of them."""
        return column if len(self.positions) == len(column) else column[self.positions]

    @property
    def spill_folder(self) -> Path | None:
        """Where large arrays may lie for a while: on this machine, or nowhere said."""
        return self.workspace if isinstance(self.workspace, Path) else None

    def names(self) -> set[str]:
        """Scores and columns of the corpus that can be asked for."""
        return {*self.scores, *self.corpus.schema.names}

    def source(self, name: str) -> Source:
        """Where a score or a column of the corpus lies."""
        if name in self.scores:
            return self.scores[name].column(name)
        return self.rewritten.get(name, name)

    def column(self, name: str) -> pa.ChunkedArray:
        """A score, or a column of the corpus, for every row; null where it was not evaluated."""
        chunks = [batch[name] for batch in self.batches([name])]
        if chunks:
            return pa.chunked_array(chunks)
        if name in self.scores:
            return pa.chunked_array([], self.scores[name].operator.fields().field(name).type)
        return pa.chunked_array([], self.corpus.schema.field(name).type)

    def role(self, role: str) -> pa.ChunkedArray:
        """What a role holds for every row, as a stage before may have rewritten it."""
        chunks = [batch[role] for batch in self._read({role: self.columns[role]})]
        return pa.chunked_array(chunks) if chunks else pa.chunked_array([], pa.null())

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Scores and columns of the rows still kept, in bounded batches, in order."""
        return self._read({name: self.source(name) for name in names})

    def _read(self, sources: Mapping[str, Source]) -> Iterator[pa.RecordBatch]:
        for shard in self.corpus.shards:
            inside = self.kept[self.rows.of(shard)]
            if inside.any():
                for _, batch in read_columns(shard, sources, inside):
                    yield batch

    def signal(self, operator: RowScorer) -> Iterator[pa.RecordBatch]:
        """A signal's columns for the rows still kept, in batches, computed where missing."""
        evaluated = self.evaluated(operator)
        for index in range(len(self.corpus.shards)):
            yield from self.signal_batches(evaluated, index)

    def map_signal(
        self, operator: RowScorer, function: Callable[[int, pa.RecordBatch], None]
    ) -> None:
        """Call a function with a signal's columns, batch by batch on all workers.

        Args:
            function: gets the row of this table that a batch begins with, and the batch.
        """
        evaluated = self.evaluated(operator)
        first_row = np.searchsorted(self.positions, self.rows.start)

        def work(index: int) -> None:
            row = int(first_row[index])
            for batch in self.signal_batches(evaluated, index):
                function(row, batch)
                row += batch.num_rows

        in_threads(work, range(len(self.corpus.shards)), self.workers)

    def signal_batches(self, evaluated: Evaluated, index: int) -> Iterator[pa.RecordBatch]:
        """A signal's columns for the rows of one shard."""
        inside = self.kept[self.rows.of(self.corpus.shards[index])]
        return evaluated.of_shard(index, evaluated.operator.fields().names, inside)

    def evaluated(self, operator: RowScorer) -> Evaluated:
        """A signal, computed where it is missing, for these rows or more."""
        rows = self.signed.get(signal_key(operator, self.columns), self.kept)
        return evaluate(
            operator,
            self.corpus,
            self.kept if (self.kept & ~rows).any() else rows,
            self.columns,
            self.workspace,
            "signals",
            self.runner,
            self.corpus.advance(operator.operator, self.progress),
            self.orders,
        )

    def map_text(
        self, role: str, wanted: Int64s, function: Callable[[pa.Array, Int64s, slice], None]
    ) -> None:
        """Call a function with the text of some rows, batch by batch on all workers.

        Args:
            wanted: rows of this table, ascending.
            function: gets a text array, positions in it, and the places in `wanted` they are.
        """
        positions = self.positions[wanted]
        cuts = np.searchsorted(positions, self.rows.start)

        def work(index: int) -> None:
            shard = self.corpus.shards[index]
            mine = positions[cuts[index] : cuts[index + 1]] - self.rows.start[index]
            inside = np.zeros(shard.rows, np.bool_)
            inside[mine] = True
            begin = int(cuts[index])
            for rows, batch in read_columns(shard, {role: self.columns[role]}, inside):
                place = slice(begin, begin + len(rows))
                function(batch[role], np.arange(len(rows), dtype=np.int64), place)
                begin += len(rows)

        touched = [i for i in range(len(self.corpus.shards)) if cuts[i + 1] > cuts[i]]
        in_threads(work, touched, self.workers)

    def texts(self, rows: Int64s, most: int | None = None) -> pa.Array:
        """Texts of some rows, in any order and also several times, as one large_string array.

        Args:
            most: characters of each that are wanted; all if not given.
        """
        wanted, at = np.unique(rows, return_inverse=True)
        parts: dict[int, pa.Array] = {}

        def keep(text: pa.Array, places: Int64s, inside: slice) -> None:
            whole = text.take(pa.array(places)).cast(pa.large_string())
            cut = whole if most is None else pc.utf8_slice_codeunits(whole, 0, most)
            parts[inside.start] = cut

        self.map_text("text", wanted, keep)
        none = pa.nulls(0, pa.large_string())  # `pa.array` would load pandas
        return pa.concat_arrays([none, *(parts[b] for b in sorted(parts))]).take(pa.array(at))


def signal_key(operator: RowScorer, columns: Mapping[str, Source]) -> str:
    """What decides the values of a signal, but for the rows that it is computed for."""
    read = [columns[role] for role in operator.used_roles()]
    return digest_of(
        [operator.key_parts(), [s if isinstance(s, str) else s.model_dump() for s in read]]
    )


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
