"""Columns of a shard's rows, whether they lie in the corpus or in sidecars beside it."""

from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from pydantic import BaseModel, ConfigDict

from tamis.storage.corpus import BATCH_BYTES, BATCH_ROWS, Shard
from tamis.storage.errors import RunError
from tamis.storage.files import kept_json, whole_file
from tamis.storage.kernels import Int64s
from tamis.storage.places import Place, kind_of, place_errors, place_of, shown
from tamis.storage.sidecar import sidecar_batches, sidecar_path

Mask = npt.NDArray[np.bool_]


class Beside(BaseModel):
    """A column of sidecars: plain JSON, so that any process can read it.

    Attributes:
        results: file (of `keep_json`) with the ``folder`` of the sidecars and, by shard, their
            ``steps``.
        column: name in the sidecars.
    """

    model_config = ConfigDict(frozen=True)

    results: str
    column: str

    def place(self, shard: Shard) -> tuple[Place, str]:
        """Path and step of a shard's sidecar."""
        found = kept_json(self.results)
        step: str = found["steps"][shard.index]
        return sidecar_path(place_of(found["folder"]), shard, step), step

    def key(self, shard: Shard) -> list[str]:
        """What of it decides the values it holds for a shard."""
        return [self.column, self.place(shard)[1]]


_NO_COLUMNS = pa.record_batch({})

#: Where values come from: a column of the corpus by name, or of sidecars.
Source = str | Beside


def source_key(source: Source, shard: Shard) -> str | list[str]:
    """What of a source decides its values for a shard."""
    return source.key(shard) if isinstance(source, Beside) else source


class Cursor:
    """Reads a column of a shard's sidecar forward, at the rows it is asked for."""

    def __init__(self, source: Beside, shard: Shard) -> None:
        self._path, step = source.place(shard)
        self._parts = sidecar_batches(self._path, shard, step, ["row", source.column])
        self._column = source.column
        self._rows: Int64s = np.zeros(0, np.int64)
        self._values: list[pa.Array] = []

    def rows_at_once(self) -> int:
        """Rows to take at a time, so that their values are of bounded bytes."""
        if not len(self._rows):
            self._more()
        held: int = sum(values.nbytes for values in self._values)
        return max(1, min(BATCH_ROWS, BATCH_BYTES * len(self._rows) // max(1, held)))

    def _more(self) -> bool:
        """Read on; says whether there was anything."""
        part = next(self._parts, None)
        if part is not None:
            self._rows = np.concatenate([self._rows, part["row"].to_numpy()])
            self._values.append(part[self._column])
        return part is not None

    def take(self, rows: Int64s) -> pa.Array:
        """Values of some rows, at least one; ascending, also from call to call.

        Raises:
            RunError: if the sidecar lacks one of them.
        """
        while (not len(self._rows) or self._rows[-1] < rows[-1]) and self._more():
            pass
        at = np.searchsorted(self._rows, rows)
        if at[-1] == len(self._rows) or not np.array_equal(self._rows[at], rows):
            raise RunError(
                f"column {self._column!r} has no value for a row between {rows[0]} and {rows[-1]}",
                where=shown(self._path),
                mend="remove the file and run again: it will be computed anew",
            )
        values = pa.concat_arrays(self._values)
        found = values.take(pa.array(at))
        passed = int(at[-1]) + 1
        self._rows = self._rows[passed:]
        self._values = [values[passed:]]
        return found


def read_columns(
    shard: Shard, sources: Mapping[str, Source], inside: Mask
) -> Iterator[tuple[Int64s, pa.RecordBatch]]:
    """Batches of some columns for the rows of a shard that are `inside`, named by `sources`.

    Yields:
        Ascending rows of the shard, and a batch with a column for every source.
    """
    own = list(dict.fromkeys(s for s in sources.values() if isinstance(s, str)))
    cursors = {n: Cursor(s, shard) for n, s in sources.items() if isinstance(s, Beside)}
    for rows, batch in _own_batches(shard, own, inside):
        if not len(rows):
            continue
        height = min((cursor.rows_at_once() for cursor in cursors.values()), default=len(rows))
        for begin in range(0, len(rows), height):
            some = rows[begin : begin + height]
            columns = [
                cursors[name].take(some)
                if isinstance(source, Beside)
                else batch[source].slice(begin, height)
                for name, source in sources.items()
            ]
            yield some, pa.record_batch(columns, names=list(sources))


def _own_batches(
    shard: Shard, names: list[str], inside: Mask
) -> Iterator[tuple[Int64s, pa.RecordBatch]]:
    if not names:
        rows = np.flatnonzero(inside)
        for begin in range(0, len(rows), BATCH_ROWS):
            yield rows[begin : begin + BATCH_ROWS], _NO_COLUMNS
        return
    begin = 0
    for batch in shard.batches(names):
        here = inside[begin : begin + batch.num_rows]
        found = batch if here.all() else batch.filter(pa.array(here))
        yield begin + np.flatnonzero(here), found
        begin += batch.num_rows


def keep_mask(mask: Mask, folder: Place) -> str:
    """Write a mask of all rows under its own digest, once; gives the path, for `kept_mask`."""
    packed = np.packbits(mask).tobytes()
    path = folder / f"{xxhash.xxh3_128_hexdigest(packed)}-{len(mask)}.bits"
    if kind_of(path) is None:
        with whole_file(path, stands=lambda: True) as temporary:
            temporary.write_bytes(packed)
    return str(path)


@lru_cache(maxsize=4)
def kept_mask(path: str) -> Mask:
    """The mask that `keep_mask` wrote; the same object for every caller, not to be changed."""
    place = place_of(path)
    with place_errors(place):
        packed = np.frombuffer(place.read_bytes(), np.uint8)
    rows = int(place.stem.rpartition("-")[2])
    return np.unpackbits(packed, count=rows).astype(np.bool_)
