"""Training records from the logits that other tools have logged.

Read are tables with a line for every row and epoch, and the files of dataset cartography
(Swayamdipta et al. 2020, github.com/allenai/cartography): ``dynamics_epoch_N.jsonl`` with ``guid``,
``logits_epoch_N`` and ``gold``.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tamis.scoring.training_records import records_of
from tamis.storage.blocks import BadLine
from tamis.storage.compressed import ending
from tamis.storage.dynamics import FOOTER, LOGITS, RECORD, VERSION, is_text
from tamis.storage.errors import UserError
from tamis.storage.files import whole_file
from tamis.storage.inputs import find_files, is_empty_folder
from tamis.storage.jsonl import JsonLines
from tamis.storage.kernels import Int64s
from tamis.storage.places import Place, kind_of, parquet_file, place_errors, place_of, shown

_EPOCH = re.compile(r"logits_epoch_(\d+)")
#: By what it is for, the names that a column may have; the last that is there.
_NAMES = {
    "row_id": ("guid", "row_id"),
    "label": ("gold", "label"),
    "logits": ("logits",),
    "step": ("step",),
}
_EXPECTED = "expected row_id or guid, epoch, logits, and label or gold; or the files of cartography"
#: Lines read at a time.
_ROWS = 1 << 15


def table_of(
    ids: Any, epoch: int, logits: Any, labels: Any, *, steps: Any = None, keep_logits: bool = False
) -> pa.Table:
    """Records of n rows in one epoch, as `RECORD` says.

    Args:
        ids: n integers or strings.
        logits: ``(n, classes)``.
        labels: ``(n,)`` integers.
        steps: ``(n,)`` integers; unknown if not given.

    Raises:
        UserError: as `records_of`.
    """
    ids = ids if isinstance(ids, pa.Array) else pa.array(ids)
    known = records_of(logits, labels)
    columns: dict[str, Any] = {
        "row_id": ids.cast(pa.string() if is_text(ids.type) else pa.int64()),
        "epoch": np.full(len(ids), epoch, np.int32),
        "step": pa.nulls(len(ids), pa.int64()) if steps is None else steps,
        "label": np.asarray(labels, np.int32),
        "threshold": np.zeros(len(ids), np.bool_),
        **known._asdict(),
    }
    schema = RECORD.set(0, pa.field("row_id", columns["row_id"].type, nullable=False))
    if keep_logits:
        schema = schema.append(LOGITS)
        values = np.ascontiguousarray(logits, np.float32)
        width = values.shape[1]
        offsets = np.arange(0, (len(ids) + 1) * width, width, dtype=np.int32)
        columns[LOGITS.name] = pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(values.ravel()), type=LOGITS.type
        )
    return pa.table([pa.array(columns[name]) for name in schema.names], schema=schema)


def import_logits(
    source: str, folder: str, *, classes: Sequence[str] | None = None, keep_logits: bool = False
) -> dict[str, int]:
    """Write the logits of a file or folder as training records, a file for every epoch of one run.

    Args:
        source: Parquet or JSON lines with the columns ``row_id`` or ``guid``, ``epoch``,
            ``logits``, ``label`` or ``gold``, and perhaps ``step``; or the files of cartography.
        folder: for the records; must not hold any.
        classes: names of the logits, in their order, where labels are names; if None, labels are
            places of logits, from 0.
        keep_logits: whether to keep all logits as well.

    Returns:
        ``records``, and ``first`` and ``last`` epoch.

    Raises:
        UserError: naming file and line, for what cannot be read, lacks a column or a value, or has
            logits of one class or a label outside of them.
    """
    if classes is not None and len(set(classes)) < len(classes):
        raise UserError(f"classes {', '.join(classes)}: one is named twice")
    home = place_of(folder)
    if kind_of(home) is not None and not is_empty_folder(folder):
        raise UserError("there are files already", where=shown(home), mend="name a new folder")
    records = 0
    epochs: dict[int, _Epoch] = {}
    with ExitStack() as stack:
        for place in find_files(source):
            for lines, batch in _batches(place, classes):
                records += batch.num_rows
                for epoch, some in _by_epoch(batch):
                    mine = batch.take(pa.array(some))
                    where = f"{shown(place)} line {lines[some[0]]}"
                    logits = _logits(mine, lines[some], place, classes)
                    table = _records(mine, epoch, logits, where, keep_logits)
                    if epoch not in epochs:
                        path = home / "run-0" / f"epoch-{epoch:05d}.parquet"
                        opened = _epoch_file(path, epoch, table.schema)
                        epochs[epoch] = stack.enter_context(opened)
                    epochs[epoch].write(table, logits.shape[1], where)
        if not epochs:
            raise UserError("no logits in any file", where=shown(source), mend=_EXPECTED)
    return {"records": records, "first": min(epochs), "last": max(epochs)}


class _Epoch:
    """A file of records that is written part by part."""

    def __init__(self, out: pq.ParquetWriter) -> None:
        self._out = out
        self._last: pa.Array = None
        self.classes = 0
        self.sorted = True

    def write(self, table: pa.Table, classes: int, where: str) -> None:
        if table.schema != self._out.schema:
            raise UserError(
                f"row ids are {table.schema.field(0).type}, and "
                f"{self._out.schema.field(0).type} in what came before",
                where=where,
                mend="name rows alike in all files",
            )
        ids = table["row_id"].combine_chunks()
        line = ids if self._last is None else pa.concat_arrays([self._last, ids])
        self.sorted &= not pc.any(pc.less(line[1:], line[:-1])).as_py()
        self._last = ids[-1:]
        self.classes = max(self.classes, classes)
        self._out.write_table(table)


@contextmanager
def _epoch_file(path: Place, epoch: int, schema: pa.Schema) -> Iterator[_Epoch]:
    with (
        whole_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=1) as out,
    ):
        written = _Epoch(out)
        yield written
        told = {"version": VERSION, "run": 0, "epoch": epoch, "window": 0, "rank": 0}
        told |= {"classes": written.classes, "sorted": written.sorted}
        out.add_key_value_metadata({FOOTER: json.dumps(told)})


def _batches(
    place: Place, classes: Sequence[str] | None
) -> Iterator[tuple[Int64s, pa.RecordBatch]]:
    """Numbers of a file's lines, and these with the columns row_id, logits, and int64 label, epoch,
    and step if there is one."""
    found = _parquet_batches(place) if ending(place) == ".parquet" else _json_batches(place)
    for lines, batch, columns in found:
        for name, column in columns.items():
            if name != "step" and batch[column].null_count:
                line = lines[int(np.flatnonzero(np.asarray(batch[column].is_null()))[0])]
                raise UserError(f"no {column!r} in line {line}", where=shown(place), mend=_EXPECTED)
        arrays = {name: batch[column] for name, column in columns.items()}
        if "epoch" not in arrays:
            (epoch,) = _EPOCH.findall(columns["logits"])
            arrays["epoch"] = pa.array(np.full(batch.num_rows, int(epoch)))
        for name in arrays.keys() & {"epoch", "step"}:
            arrays[name] = _integers(arrays[name], name, lines, place)
        wrong = np.flatnonzero((np.asarray(arrays["epoch"]) >> 31) != 0)
        if len(wrong):
            raise UserError(
                f"epoch {arrays['epoch'][wrong[0]]} in line {lines[wrong[0]]}: epochs are from 0",
                where=shown(place),
                mend="number epochs 0, 1, 2, …",
            )
        if not is_text(arrays["row_id"].type):
            arrays["row_id"] = _integers(
                arrays["row_id"], columns["row_id"], lines, place, "integers or strings"
            )
        arrays["label"] = _labels(arrays["label"], columns["label"], classes, lines, place)
        yield lines, pa.record_batch(arrays)


def _integers(
    column: pa.Array, name: str, lines: Int64s, place: Place, expected: str = "whole numbers"
) -> pa.Array:
    """A column of integers, whole floats or booleans as int64; nulls stay."""
    kind, line = column.type, int(lines[0]) if len(lines) else 1
    tests = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null
    if any(test(kind) for test in tests):
        try:
            return column.cast(pa.int64())
        except pa.ArrowException:
            values = np.asarray(column.fill_null(0))
            bad = np.flatnonzero(~((values == np.trunc(values)) & (np.abs(values) < 2**63)))
            line, found = int(lines[bad[0]]), str(values[bad[0]])
    else:
        found = str(kind)
    raise UserError(
        f"{name} in line {line}: expected {expected}, found {found}", where=shown(place)
    )


def _labels(
    column: pa.Array, name: str, classes: Sequence[str] | None, lines: Int64s, place: Place
) -> pa.Array:
    """A column of labels as the places of their logits."""
    if classes is None:
        if is_text(column.type) and len(column):
            raise UserError(
                f"{name} in line {lines[0]} is {column[0].as_py()!r}: a name does not say which "
                "logit is its class's",
                where=shown(place),
                mend="name the classes in the order of the logits: --classes a,b,c",
            )
        return _integers(column, name, lines, place)
    if not (is_text(column.type) or pa.types.is_boolean(column.type)):
        column = _integers(column, name, lines, place, "names of classes")
    column = column.cast(pa.string())
    found = pc.index_in(column, value_set=pa.array(classes, pa.string()))
    if found.null_count:
        at = int(np.flatnonzero(np.asarray(found.is_null()))[0])
        raise UserError(
            f"{name} in line {lines[at]} is {column[at].as_py()!r}, which is none of the classes "
            + ", ".join(classes),
            where=shown(place),
            mend="name all classes, in the order of the logits",
        )
    return found.cast(pa.int64())


_Lines = tuple[Int64s, pa.RecordBatch, dict[str, str]]


def _parquet_batches(place: Place) -> Iterator[_Lines]:
    try:
        with place_errors(place), parquet_file(place) as file:
            columns = _columns(file.schema_arrow.names, place)
            first = 1
            for batch in file.iter_batches(_ROWS, columns=list(columns.values())):
                lines = np.arange(first, first + batch.num_rows, dtype=np.int64)
                yield lines, batch, columns
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"not a whole Parquet file ({str(error).splitlines()[0]})",
            where=shown(place),
            mend="remove it, or write it again",
        ) from error


def _json_batches(place: Place) -> Iterator[_Lines]:
    reader = JsonLines()
    schema = reader.schema([place], 1)
    columns = _columns(schema.names, place)
    schema = pa.schema([schema.field(name) for name in columns.values()])
    logits = schema.field(columns["logits"])
    if pa.types.is_list(logits.type) and pa.types.is_integer(logits.type.value_type):
        # A line of whole numbers may have NaN beside them.
        at = schema.get_field_index(logits.name)
        schema = schema.set(at, logits.with_type(pa.list_(pa.float64())))
    for block in reader.blocks(place, schema):
        # Python writes NaN and Infinity, which are no JSON.
        loose = [_loose(bad, schema, place) for bad in block.bad]
        table = pa.concat_tables([block.rows.select(schema.names), *loose])
        lines = np.array([*block.lines.to_pylist(), *(bad.line for bad in block.bad)], np.int64)
        order = np.argsort(lines)
        for begin in range(0, len(order), _ROWS):
            some = order[begin : begin + _ROWS]
            (batch,) = table.take(pa.array(some)).combine_chunks().to_batches()
            yield lines[some], batch, columns


def _loose(bad: BadLine, schema: pa.Schema, place: Place) -> pa.Table:
    try:
        found = json.loads(bad.raw)
        if isinstance(found, dict):
            return pa.Table.from_pylist([found], schema)
    except (ValueError, TypeError, OverflowError, pa.ArrowException):
        pass  # for the same reason
    raise UserError(
        f"line {bad.line}: {bad.reason}", where=shown(place), mend="remove it, or mend it"
    )


def _columns(names: list[str], place: Place) -> dict[str, str]:
    """By what it is for, the column of a file that has it."""
    found = {name: one for name, several in _NAMES.items() for one in several if one in names}
    logits = [name for name in names if _EPOCH.fullmatch(name)]
    if len(logits) == 1:
        found["logits"] = logits[0]
    elif "epoch" in names:
        found["epoch"] = "epoch"
    if not {"row_id", "label", "logits"} <= found.keys() or len(logits) + ("epoch" in found) != 1:
        raise UserError(f"has the columns {', '.join(names)}", where=shown(place), mend=_EXPECTED)
    return found


def _by_epoch(batch: pa.RecordBatch) -> Iterator[tuple[int, Int64s]]:
    """Every epoch of a batch, and its lines in it."""
    epoch = np.asarray(batch["epoch"])
    for one in np.unique(epoch):
        yield int(one), np.flatnonzero(epoch == one)


def _logits(
    batch: pa.RecordBatch, lines: Int64s, place: Place, classes: Sequence[str] | None
) -> npt.NDArray[np.float32]:
    """The column logits as a matrix."""
    column = batch["logits"]
    lists = pa.large_list(pa.float32())
    try:
        column = column.cast(lists, safe=False)
    except pa.ArrowException as error:
        raise UserError(
            f"logits: expected lists of numbers, found {column.type}", where=shown(place)
        ) from error
    lengths = np.diff(np.asarray(column.offsets))
    wrong = np.flatnonzero(lengths != lengths[0])
    if len(wrong):
        raise UserError(
            f"{lengths[wrong[0]]} logits in line {lines[wrong[0]]}, {lengths[0]} in line "
            f"{lines[0]} of the same epoch",
            where=shown(place),
            mend="every row needs a logit for each class",
        )
    if classes is not None and len(classes) != lengths[0]:
        raise UserError(
            f"{lengths[0]} logits in line {lines[0]}, {len(classes)} classes are named",
            where=shown(place),
            mend="name the class of every logit, in their order",
        )
    values = pc.fill_null(column.flatten(), float("nan"))
    return np.asarray(values).reshape(len(batch), lengths[0])


def _records(
    batch: pa.RecordBatch, epoch: int, logits: Any, where: str, keep_logits: bool
) -> pa.Table:
    labels = batch["label"].to_numpy(zero_copy_only=False)
    steps = batch["step"] if "step" in batch.schema.names else None
    try:
        return table_of(
            batch["row_id"], epoch, logits, labels, steps=steps, keep_logits=keep_logits
        )
    except UserError as error:
        raise UserError(error.what, where=f"{where} and after", mend=error.mend) from error
