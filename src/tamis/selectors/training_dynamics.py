"""Records of a model's training, from files that its trainer wrote, as columns of the corpus."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PrivateAttr

from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.dynamics import Dynamics, find_dynamics, is_text
from tamis.storage.epochs import LEAST_ROWS, Block, read_blocks
from tamis.storage.errors import RunError, UserError
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s
from tamis.storage.places import Place, shown
from tamis.storage.record_streams import KINDS, Column, Ids, below, ids_of

#: Columns with a number for every epoch of every run.
_RECORDED = ("margin", "label_prob", "loss", "entropy", "el2n", "correct", "other", "updates")
_READ = ("label_prob", "loss", "entropy", "el2n", "correct", "other", "label")
#: Bytes of columns that are held at a time; more rows are more passes over the records.
_PASS_BYTES = 512 << 20


class TrainingDynamics(TableScorer):
    """What a model said of each row's label, epoch by epoch, as its trainer recorded it.

    Records are joined to the corpus by row_id: to the values of its id column, or, where it has
    none or none of them matches, to tamis's own row_id as 32 hex digits. All copies of a row get
    the same records. Rows without any have no updates, and scores on these columns are null.

    The classes of records are numbered by the trainer, and are not compared with the corpus's.
    """

    operator: Literal["training_dynamics"] = "training_dynamics"
    path: str | list[str] = Field(
        description="folder of training records; several folders are runs of one training set"
    )
    logits: bool = Field(
        default=False, description="also give all logits, which the recorder must have kept"
    )
    digest: str | None = Field(
        default=None, description="of the records; if given, others are refused"
    )
    unmatched: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the rows without records beyond which they are refused, as ids that "
        "match by accident (unconfirmed)",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Pleiss et al. 2020 (AUM); Swayamdipta et al. 2020 (data maps); Toneva et al. 2019 "
        "(forgetting); Paul et al. 2021 (EL2N)"
    )

    _records: Dynamics | None = PrivateAttr(default=None)

    def resolve(self, workspace: Place) -> Self:
        records = find_dynamics(self.path)
        digest = records.digest(workspace)
        if self.digest not in (None, digest):
            raise UserError(
                f"the training records have the digest {digest}, the recipe pins {self.digest}",
                where=self._where,
                mend="restore the files, or remove `digest` from the recipe",
            )
        found = self.model_copy(update={"digest": digest})
        found._records = records
        return found

    def key_parts(self) -> dict[str, Any]:
        parts = super().key_parts()
        del parts["path"]
        return {**parts, "column": self.stage}

    @property
    def records(self) -> Dynamics:
        """The files, as `find_dynamics` gives them."""
        if self._records is None:
            self._records = find_dynamics(self.path)
        return self._records

    @property
    def _where(self) -> str:
        return ", ".join(map(shown, [self.path] if isinstance(self.path, str) else self.path))

    def fields(self) -> pa.Schema:
        """Columns by the stage's name S. T = runs * epochs, a run after the other.

        ``S_margin`` (logit of the label less the largest other), ``S_label_prob``, ``S_loss``
        (cross-entropy, nats), ``S_entropy`` (nats), ``S_el2n``: float32 [T], nan where a row has no
        record or one whose margin is not finite; ``S_correct`` (0 or 1): int8 [T] and ``S_other``
        (the class of that other logit): int32 [T], -1 there; ``S_updates`` (records of the row in
        the epoch): int32 [T]; ``S_ordinary`` (false in a run where the row was a threshold sample,
        whose label there is the extra class): bool [runs]; ``S_label`` (the trainer's number of the
        row's class in the last epoch of an ordinary run; null if there is none): int32.
        ``S_logits``, if asked for: of the ordinary classes, T of them one after the other, nan
        where ``S_margin`` is, minus infinity for classes that came later.
        """
        stage, records = self.stage, self.records
        epochs = records.runs * records.epochs

        def many(name: str, kind: pa.DataType, size: int = epochs) -> pa.Field:
            item = pa.field("item", kind, nullable=False)
            return pa.field(f"{stage}_{name}", pa.list_(item, size), nullable=False)

        kinds = [pa.from_numpy_dtype(_kind_of(name)) for name in _RECORDED]
        return pa.schema(
            [
                pa.field(f"{stage}_label", pa.int32()),
                *map(many, _RECORDED, kinds),
                many("ordinary", pa.bool_(), records.runs),
                *([many("logits", pa.float32(), epochs * self._classes)] if self.logits else []),
            ]
        )

    def memory(self, rows: int, text_bytes: int) -> int:
        """Ids and their order, columns of a pass, and what is read ahead."""
        ahead = max(_PASS_BYTES, 2 * LEAST_ROWS * self._width)
        return 80 * rows + max(_PASS_BYTES, self._width) + ahead

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        """Batches of the columns above.

        Raises:
            UserError: if no row of the table has records, or fewer than `unmatched` allows.
            RunError: if the records changed since their digest was taken.
        """
        if not len(table):
            return
        records = self.records
        ids, order = self._join(table)
        for begin in range(0, len(table), self._rows_of_a_pass):
            end = min(begin + self._rows_of_a_pass, len(table))
            mine = order[(order >= begin) & (order < end)]
            columns = self._of_rows(
                end - begin, _taken(ids, mine), mine - begin, records, table.workers
            )
            self._require_unchanged(table.workspace)  # before any of it is stored
            for first in range(0, end - begin, BATCH_ROWS):
                some = [values[first : first + BATCH_ROWS] for values in columns]
                kinds = [field.type for field in self.fields()]
                arrays = [_array(*pair) for pair in zip(some, kinds, strict=True)]
                yield pa.record_batch(arrays, schema=self.fields())

    def _require_unchanged(self, workspace: Place) -> None:
        found = None
        with suppress(FileNotFoundError):
            found = self.records.digest(workspace)
        if found != self.digest:
            raise RunError(
                "the training records changed while they were read",
                where=self._where,
                mend="run again when nothing writes to them any more",
            )

    def _join(self, table: Table) -> tuple[Ids, Int64s]:
        """What names the table's rows in the records, and the rows that have such a name in its
        order; says how well it does."""
        records = self.records
        most = 0
        for column in self._names(table):
            ids = ids_of(pc.fill_null(column, "" if records.text_ids else 0), "the corpus")
            order = _order(ids)
            if column.null_count:
                order = order[np.asarray(column.is_valid())[order]]
            ordered = _taken(ids, order)
            rows, there, recorded = 0, 0, 0
            for block in read_blocks(records, [], workers=table.workers):
                _, found = _matches(ordered, block)
                rows += int((found >= 0).sum())
                there += len(np.unique(found[found >= 0]))
                recorded += len(block.row_id)
            if rows and len(table) - rows <= self.unmatched * len(table):
                self._tell(table, len(table) - rows, recorded - there)
                return ids, order
            most = max(most, rows)
        if most:
            raise UserError(
                f"only {most:,} of {len(table):,} rows have records, and `unmatched` allows "
                f"{self.unmatched:.0%} without",
                where=self._where,
                mend="set corpus.roles.id to the column that the trainer took row ids from, or "
                "`unmatched` to the share of rows that were not trained on",
            )
        named = next((block.row_id[0] for block in read_blocks(records, [], workers=1)), None)
        mine = next((column[0] for column in self._names(table, any_type=True)), None)
        raise UserError(
            f"none of the {len(table):,} rows has records; these name rows by "
            f"{'strings' if records.text_ids else 'integers'}"
            + (f" such as {named.as_py()!r}" if named is not None else "")
            + (f", the corpus by {mine.as_py()!r}" if mine is not None else ""),
            where=self._where,
            mend="set corpus.roles.id to the column that the trainer took row ids from",
        )

    def _names(self, table: Table, *, any_type: bool = False) -> Iterator[pa.Array]:
        """What may name the table's rows as the records do; row_ids only where they are asked
        for."""
        text = self.records.text_ids
        if "id" in table.columns:
            column = table.role("id").combine_chunks()
            if any_type or (is_text(column.type) if text else pa.types.is_integer(column.type)):
                yield column
        if text:
            yield pa.array(hex_ids(table.id_hi, table.id_lo))

    def _tell(self, table: Table, without: int, outside: int) -> None:
        if without or outside:
            told = f"{without:,} of {len(table):,} rows have no records"
            told += f", {outside:,} recorded rows are not among them"
            table.progress(f"{self.stage}: {told}", 1, 1)

    @property
    def _classes(self) -> int:
        """Logits of an epoch that are given."""
        return self.records.classes() if self.logits else 0

    @property
    def _width(self) -> int:
        """Bytes of a row's columns."""
        epochs = self.records.runs * self.records.epochs
        width = sum(np.dtype(_kind_of(name)).itemsize for name in (*_RECORDED, "label"))
        return epochs * (width + 4 * self._classes)

    @property
    def _rows_of_a_pass(self) -> int:
        return max(1, _PASS_BYTES // self._width)

    def _of_rows(
        self, rows: int, ids: Ids, places: Int64s, records: Dynamics, workers: int
    ) -> list[Column]:
        """Columns of some rows as `fields` says, by their ascending ids and where they belong."""
        epochs = records.runs * records.epochs
        found = {
            name: np.full((rows, epochs), _missing(name), _kind_of(name))
            for name in (*_RECORDED, "label")
        }
        ordinary = np.ones((rows, records.runs), np.bool_)
        read = [*_READ, *(["threshold"] if records.thresholds else [])]
        if self.logits:
            found["logits"] = np.full((rows, epochs * self._classes), np.nan, np.float32)
            read.append("logits")
        for block in read_blocks(records, read, workers=workers):
            here, at = _matches(ids, block)
            mine, at = places[here][at >= 0], at[at >= 0]
            for name, matrix in found.items():
                matrix[mine] = (block.updates if name == "updates" else block.columns[name])[at]
            if records.thresholds:
                sampled = block.columns["threshold"][at] > 0
                by_run = sampled.reshape(len(at), records.runs, records.epochs)
                ordinary[mine] = ~by_run.any(axis=2)
        label = np.full(rows, -1, np.int32)
        for t in range(epochs):
            said = (found["label"][:, t] >= 0) & ordinary[:, t // records.epochs]
            label[said] = found["label"][said, t]
        logits = [found["logits"]] if self.logits else []
        return [label, *(found[name] for name in _RECORDED), ordinary, *logits]


def _kind_of(name: str) -> npt.DTypeLike:
    return {"margin": np.float32, "updates": np.int32}.get(name) or KINDS[name]


def _missing(name: str) -> float:
    if name == "updates":
        return 0
    return np.nan if _kind_of(name) == np.float32 else -1


def _order(ids: Ids) -> Int64s:
    """Places of ids, ascending by id."""
    if isinstance(ids, np.ndarray):
        return np.argsort(ids, kind="stable")
    return np.asarray(pc.sort_indices(ids)).astype(np.int64)


def _taken(ids: Ids, places: Int64s) -> Ids:
    return ids[places] if isinstance(ids, np.ndarray) else ids.take(pa.array(places))


def _matches(ids: Ids, block: Block) -> tuple[slice, Int64s]:
    """Of ascending ids those within a block's, and the row of the block each is; -1 for none."""
    last = block.row_id[-1].as_py()
    begin = below(ids, block.row_id[0].as_py())
    if isinstance(ids, np.ndarray):
        here = slice(begin, int(np.searchsorted(ids, last, side="right")))
        theirs = np.asarray(block.row_id)
        at = np.searchsorted(theirs, ids[here])
        return here, np.where(theirs[at] == ids[here], at, -1)
    here = slice(begin, below(ids, last + "\0"))
    found = pc.index_in(ids[here], value_set=block.row_id)
    return here, np.asarray(pc.fill_null(found, -1)).astype(np.int64)


def _array(values: Column, kind: pa.DataType) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values, kind, mask=values < 0)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)
