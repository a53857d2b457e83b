"""Files of training records as streams in ascending order of row_id.

A file is read batch by batch; one that is not sorted is cut into runs that are sorted and set aside
first. Values are checked on the way: no nulls, types that hold the same numbers.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from tamis.storage.dynamics import RECORD, RecordFile
from tamis.storage.errors import UserError
from tamis.storage.kernels import KERNEL, Int64s
from tamis.storage.places import parquet_file, place_errors

#: What of a record is read as, in numpy.
KINDS: dict[str, npt.DTypeLike] = {
    **{name: np.float32 for name in RECORD.names if RECORD.field(name).type == pa.float32()},
    "step": np.int64,
    "label": np.int32,
    "other": np.int32,
    "correct": np.int8,
    "threshold": np.int8,
    "logits": np.float32,
}
#: Rows of a file without order that are sorted at a time.
SORT_ROWS = 1 << 21
_BUFFER = 1 << 20

#: Row_ids: int64, or large_string.
Ids: TypeAlias = "Int64s | pa.LargeStringArray"
Column = npt.NDArray[Any]
#: Opens some columns of a stream from its beginning.
Opener = Callable[[list[str]], Iterator[pa.RecordBatch]]


@njit(**KERNEL)
def _descent(ids, before):  # type: ignore[no-untyped-def]
    """The first place whose id is below the one before it; -1 if none is."""
    for i in range(ids.shape[0]):
        if ids[i] < before:
            return i
        before = ids[i]
    return -1


class Taken(NamedTuple):
    """The next records of a stream.

    Attributes:
        stream: which it is.
        first: place of the first of them in the stream.
        ids: ascending.
        values: arrays as the stream's `names`.
    """

    stream: "Stream"
    first: int
    ids: Ids
    values: list[Column]


class Stream:
    """Records in ascending order of row_id, read as they are needed.

    Attributes:
        file: where they come from.
        ids: of the records that are read and not yet taken.
        next_id: row_id of the record after them; None if there is none.
    """

    def __init__(self, file: RecordFile, names: list[str], classes: int, opener: Opener) -> None:
        self.file, self.names, self._classes = file, names, classes
        self.next_id: int | str | None = None
        self.ids: Ids = ids_of(
            pa.array([], pa.large_string() if file.text_ids else pa.int64()), file.path
        )
        self._values: list[Column] = [
            _fixed(np.zeros((0, classes) if name == "logits" else 0, KINDS[name])) for name in names
        ]
        self._opener = opener
        self._batches = opener(["row_id", *names])
        self._ahead: tuple[Ids, list[Column]] = (self.ids, self._values)
        self._read = 0  # records so far, with those ahead
        self._steps: _Forward | None = None
        self.fill()

    def fill(self) -> None:
        """Read one more batch."""
        ids, values = self._ahead
        classes = self._classes
        if len(self.ids):
            self.ids = _fixed(joined([self.ids, ids]))
            pairs = zip(self._values, values, strict=True)
            self._values = [_fixed(np.concatenate(pair)) for pair in pairs]
        else:
            self.ids, self._values = ids, values
        ids, values = ids[:0], [array[:0] for array in values]
        while not len(ids) and (batch := _next(self._batches, self.file)) is not None:
            ids = ids_of(_whole(batch["row_id"], "row_id", self.file, self._read), self.file.path)
            wrong = first_descent(ids, self.ids[-1:])
            if wrong >= 0:
                raise UserError(
                    f"its footer says that row_id ascends, but record {self._read + wrong} does "
                    "not",
                    where=self.file.path,
                    mend="sort the file, or leave `sorted` out of its footer",
                )
            values = [column_of(batch, name, self.file, self._read, classes) for name in self.names]
            self._read += len(ids)
        self._ahead = ids, values
        self.next_id = None
        if len(ids):
            self.next_id = id_at(ids, 0)

    def below(self, limit: int | str | None) -> int:
        """Records at hand whose row_id is smaller; all of them if there is no limit."""
        return len(self.ids) if limit is None else below(self.ids, limit)

    def take(self, count: int) -> Taken:
        """The next records."""
        first = self._read - len(self._ahead[0]) - len(self.ids)
        taken = Taken(self, first, self.ids[:count], [v[:count] for v in self._values])
        self.ids = self.ids[count:]
        self._values = [values[count:] for values in self._values]
        return taken

    def steps(self, first: int, count: int) -> Int64s:
        """Steps of some records of the stream, -1 where unknown; forwards from call to call.

        Only repeated records need them, so they are not read with the rest.
        """
        if self._steps is None:
            self._steps = _Forward(self.file, self._opener(["step"]))
        return self._steps.take(first, count)


class _Forward:
    """Steps of a stream, read forwards."""

    def __init__(self, file: RecordFile, batches: Iterator[pa.RecordBatch]) -> None:
        self._file, self._batches = file, batches
        self._first = 0
        self._values = np.zeros(0, np.int64)

    def take(self, first: int, count: int) -> Int64s:
        parts = []
        while count:
            passed = min(first - self._first, len(self._values))
            self._values, self._first = self._values[passed:], self._first + passed
            if not len(self._values):
                batch = _next(self._batches, self._file)
                assert batch is not None, "a stream has a step for every record"
                self._values = column_of(batch, "step", self._file, self._first, 0)
            elif self._first == first:
                parts.append(self._values[:count])
                first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)


def _next(batches: Iterator[pa.RecordBatch], file: RecordFile) -> pa.RecordBatch | None:
    try:
        with place_errors(file.place):
            return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"cannot be read ({str(error).splitlines()[0]})",
            where=file.path,
            mend="remove it, or write it again",
        ) from error


def ids_of(column: pa.Array, where: str) -> Ids:
    """Row_ids, of what lies at `where`, as int64 or large_string.

    Raises:
        UserError: for an integer of 2**63 or more.
    """
    if not pa.types.is_integer(column.type):
        return column.cast(pa.large_string())
    try:
        return _fixed(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid as error:
        raise UserError(
            f"row ids: expected integers below 2**63, found {pc.max(column).as_py()}",
            where=where,
            mend="name rows by strings, or by smaller integers, here and in the training",
        ) from error


def column_of(
    batch: pa.RecordBatch, name: str, file: RecordFile, begin: int, classes: int
) -> Column:
    """A column of a batch, whose first row is record `begin` of its file, as `KINDS` says; logits
    of the first `classes`, minus infinity where there are fewer."""
    if name == "step":
        if name not in batch.schema.names:
            return np.full(batch.num_rows, -1, np.int64)
        known = pc.fill_null(batch[name].cast(pa.int64()), -1)
        return np.asarray(known, np.int64)
    if name == "logits":
        return _logits(_whole(batch[name], name, file, begin), file, begin, classes)
    kind = pa.from_numpy_dtype(KINDS[name])
    safe = not pa.types.is_floating(kind)  # a float64 may be rounded
    values = _whole(batch[name], name, file, begin).cast(kind, safe=safe)
    return _fixed(values.to_numpy(zero_copy_only=False))


def _logits(column: pa.Array, file: RecordFile, begin: int, classes: int) -> Column:
    lists = column.cast(pa.large_list(pa.float32()), safe=False)
    lengths = np.diff(np.asarray(lists.offsets))
    long = np.flatnonzero(lengths > file.classes)
    if len(long):
        raise UserError(
            f"{lengths[long[0]]} logits in record {begin + long[0]}, its footer says at most "
            f"{file.classes}",
            where=file.path,
            mend="write the number of `classes` into the footer",
        )
    values = np.asarray(_whole(lists.flatten(), "logits", file, begin))
    wide = np.full((len(lengths), max(classes, int(lengths.max(initial=0)))), -np.inf, np.float32)
    wide[np.arange(wide.shape[1]) < lengths[:, None]] = values
    return _fixed(np.ascontiguousarray(wide[:, :classes]))


def _whole(column: pa.Array, name: str, file: RecordFile, begin: int) -> pa.Array:
    if column.null_count:
        at = begin + int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise UserError(
            f"column {name!r}: expected a value, found null in record {at}",
            where=file.path,
            mend="write nan where a number is unknown",
        )
    return column


def id_at(ids: Ids, place: int) -> int | str:
    """One of some row_ids."""
    found: int | str = ids[place].item() if isinstance(ids, np.ndarray) else ids[place].as_py()
    return found


def below(ids: Ids, limit: int | str) -> int:
    """How many of some ascending row_ids are smaller."""
    if isinstance(ids, np.ndarray):
        return int(np.searchsorted(ids, limit))
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if ids[middle].as_py() < limit:
            low = middle + 1
        else:
            high = middle
    return low


def _fixed(array: Ids) -> Ids:
    """The array, not to be written to, as those on Arrow's memory: one type for kernels."""
    if isinstance(array, np.ndarray):
        array.flags.writeable = False
    return array


def joined(parts: list[Ids]) -> Ids:
    """Row_ids one after the other."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return pa.concat_arrays(parts)


def first_descent(ids: Ids, before: Ids) -> int:
    """The first id below the one before it, where `before` has the last of those before all.

    Returns:
        Its place; -1 if there is none.
    """
    if isinstance(ids, np.ndarray):
        return int(_descent(ids, before[0] if len(before) else np.iinfo(np.int64).min))
    line = pa.concat_arrays([before, ids])
    found = np.flatnonzero(np.asarray(pc.less(line[1:], line[:-1])))
    return int(found[0]) + 1 - len(before) if len(found) else -1


def streams_of(
    file: RecordFile, names: list[str], classes: int, rows: int, folder: Path
) -> list[Stream]:
    """The records of a file as streams: one if it is sorted, else one for every sorted run.

    Args:
        classes: how many logits of a record are wanted.
        rows: read at a time.
        folder: for sorted runs.
    """
    if file.sorted or _is_sorted(file, rows):
        return [Stream(file, names, classes, lambda columns: _batches(file, columns, rows))]
    return [
        Stream(file, names, classes, _reader(path))
        for path in _sorted_runs(file, [*names, "step"], rows, folder)
    ]


def _batches(file: RecordFile, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    with parquet_file(file.place, _BUFFER) as parquet:
        there = [name for name in columns if name in parquet.schema_arrow.names]
        if there and file.rows > rows:
            # One reader for all row groups would keep what it has read of each.
            for group in range(parquet.num_row_groups):
                yield from parquet.iter_batches(rows, [group], there, use_threads=False)
            return
        # A small file is closed at once: there may be thousands.
        whole = parquet.read(there, use_threads=False) if there else None
    if whole is None:  # files without steps
        yield pa.record_batch([pa.nulls(file.rows, pa.int64())], names=columns)
    else:
        yield from whole.combine_chunks().to_batches()


def _is_sorted(file: RecordFile, rows: int) -> bool:
    before: Ids | None = None
    batches = _batches(file, ["row_id"], rows)
    while (batch := _next(batches, file)) is not None:
        ids = ids_of(_whole(batch["row_id"], "row_id", file, 0), file.path)
        if first_descent(ids, ids[:0] if before is None else before) >= 0:
            return False
        before = ids[-1:] if len(ids) else before
    return True


def _sorted_runs(file: RecordFile, names: list[str], rows: int, folder: Path) -> Iterator[Path]:
    """Sorted copies of a file's records, as many in each as are sorted at a time."""
    batches = _batches(file, ["row_id", *names], min(rows, SORT_ROWS))
    held: list[pa.RecordBatch] = []
    begin, size = 0, 0
    while True:
        batch = _next(batches, file)
        if held and (batch is None or size + batch.num_rows > SORT_ROWS):
            path = folder / f"{file.run}-{file.epoch}-{file.window}-{file.rank}-{begin}.arrow"
            _write_sorted(pa.concat_batches(held), names, file, begin, rows, path)
            yield path
            begin, size, held = begin + size, 0, []
        if batch is None:
            return
        held.append(batch)
        size += batch.num_rows


def _write_sorted(
    batch: pa.RecordBatch, names: list[str], file: RecordFile, begin: int, rows: int, path: Path
) -> None:
    ids = pa.array(ids_of(_whole(batch["row_id"], "row_id", file, begin), file.path))
    columns = [
        batch[name] if name == "logits" else pa.array(column_of(batch, name, file, begin, 0))
        for name in names
    ]
    table = pa.table([ids, *columns], names=["row_id", *names])
    table = table.take(pc.sort_indices(ids))  # stable
    with place_errors(path), pa.ipc.new_file(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=rows)


def _reader(path: Path) -> Opener:
    def read(columns: list[str]) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for n in range(reader.num_record_batches):
                yield reader.get_batch(n).select(columns)

    return read
