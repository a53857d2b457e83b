"""Results of costly operators found again by content: no text is computed twice.

A sidecar of a costly operator also holds the content key of every row, the hash of exactly the
bytes that were read. Where a shard's own sidecar is missing, rows are looked up in the finished
sidecars of the same operator, whatever shard or run they are of. Where a shard takes long, its
results are stored in portions beside the sidecar to be, so that a run that was killed goes on from
the last of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tamis.storage.errors import TamisError
from tamis.storage.files import keep_json, kept_json, whole_file
from tamis.storage.hashing import Hashes, hash_batch
from tamis.storage.kernels import Int64s, in_threads
from tamis.storage.places import Place, kind_of, parquet_file, place_errors, place_of
from tamis.storage.sidecar import Part

#: Columns that a costly operator's sidecar ends with.
KEYS = [
    pa.field("content_hi", pa.uint64(), nullable=False),
    pa.field("content_lo", pa.uint64(), nullable=False),
]
#: What is known of a row computed before: its key, the sidecar and the place in it.
_KNOWN = np.dtype(
    [("hi", np.uint64), ("lo", np.uint64), ("file", np.int32), ("place", np.int32)], align=True
)


@dataclass(frozen=True)
class Known:
    """Rows of finished sidecars by content key, each key once, in order."""

    files: tuple[Place, ...]
    rows: npt.NDArray[np.void]

    def find(self, keys: Hashes) -> Int64s:
        """Entry of every key, -1 where it is new."""
        at = np.searchsorted(self.rows["hi"], keys.high)
        at = np.minimum(at, len(self.rows) - 1)
        there = (self.rows["hi"][at] == keys.high) & (self.rows["lo"][at] == keys.low)
        return np.where(there, at, -1)

    def take(self, entries: Int64s, columns: pa.Schema) -> pa.RecordBatch:
        """Results of some entries; of every sidecar only the row groups that hold one are read."""
        found = self.rows[entries]
        order = np.lexsort((found["place"], found["file"]))
        parts = []
        for number in np.unique(found["file"]):
            places = found["place"][order][found["file"][order] == number]
            with place_errors(self.files[number]), parquet_file(self.files[number]) as file:
                sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
                starts = np.cumsum([0, *sizes])
                groups = np.searchsorted(starts, places, side="right") - 1
                for group in np.unique(groups):
                    table = file.read_row_group(group, columns=columns.names, use_threads=False)
                    mine = places[groups == group] - starts[group]
                    parts += table.select(columns.names).take(pa.array(mine)).to_batches()
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        whole = pa.Table.from_batches(parts).cast(columns).combine_chunks()
        return whole.take(pa.array(back)).combine_chunks().to_batches()[0]


def keep_known(
    folder: Place, wanted: Iterable[str], columns: pa.Schema, orders: Place, workers: int
) -> str | None:
    """Write an index of what the sidecars in a folder hold, if one of those wanted is missing.

    Sidecars that cannot be read are left out: what they hold is computed again.

    Args:
        wanted: names of the sidecars that will be needed.
        columns: what they must hold.
        orders: where the index goes.

    Returns:
        Its path, for `known_rows`; None if nothing is missing or nothing is there.
    """
    if kind_of(folder) is None:
        return None
    with place_errors(folder):
        there = sorted((p for p in folder.iterdir() if p.name.endswith(".parquet")), key=str)
    if set(wanted) <= {path.name for path in there}:
        return None
    files = [path for path in there if not path.name.startswith(".")]
    keys = in_threads(lambda path: _stored_keys(path, columns), files, workers)
    rows = np.zeros(sum(map(len, keys)), _KNOWN)
    at = 0
    for number, table in enumerate(keys):
        here = rows[at : at + len(table)]
        here["hi"], here["lo"] = (np.asarray(table[field.name]) for field in KEYS)
        here["file"] = number
        here["place"] = np.arange(len(table))
        at += len(table)
    # Of a key that is there more than once the first: the same whatever runs at the same time.
    rows = rows[np.lexsort((rows["place"], rows["file"], rows["lo"], rows["hi"]))]
    first = np.ones(len(rows), np.bool_)
    first[1:] = (rows["hi"][1:] != rows["hi"][:-1]) | (rows["lo"][1:] != rows["lo"][:-1])
    rows = rows[first]
    if not len(rows):
        return None
    note = keep_json(orders, {"files": list(map(str, files)), "rows": len(rows)})
    path = _rows_file(note)
    with whole_file(path) as temporary:
        rows.tofile(temporary)
    return note


def _rows_file(note: str) -> Place:
    return place_of(note).with_suffix(".known")


@lru_cache(maxsize=2)
def known_rows(note: str) -> Known:
    """What `keep_known` wrote; of a local file only the pages that are looked at are held."""
    path = _rows_file(note)
    files = tuple(place_of(name) for name in kept_json(note)["files"])
    with place_errors(path):
        if isinstance(path, Path):
            return Known(files, np.memmap(path, _KNOWN, mode="r"))
        return Known(files, np.frombuffer(path.read_bytes(), _KNOWN))


def _stored_keys(path: Place, columns: pa.Schema) -> pa.Table:
    """The keys that a sidecar holds; none if it is not whole or holds something else."""
    none = pa.schema(KEYS).empty_table()
    try:
        with place_errors(path), parquet_file(path) as file:
            schema = file.schema_arrow
            for field in (*columns, *KEYS):
                if field.name not in schema.names or schema.field(field.name).type != field.type:
                    return none
            return file.read(columns=[field.name for field in KEYS], use_threads=False)
    except (pa.ArrowException, OSError, TamisError):
        return none


Compute = Callable[[pa.RecordBatch], pa.RecordBatch]
#: Computes a batch of rows with these content keys, and stores what comes of it.
Store = Callable[[pa.RecordBatch, Compute, Hashes], pa.RecordBatch]


def store_portion(
    sidecar: Place, portion_bytes: int, batch: pa.RecordBatch, compute: Compute, keys: Hashes
) -> pa.RecordBatch:
    """Compute a batch in portions of about so many bytes, each stored when it is done.

    Args:
        sidecar: that the results will go into; the portions lie beside it.
        keys: content keys of the batch's rows.
    """
    rows = max(1, batch.num_rows * portion_bytes // max(1, batch.nbytes))
    parts = []
    for begin in range(0, batch.num_rows, rows):
        here = slice(begin, begin + rows)
        made = compute(batch.slice(begin, rows))
        parts.append(made)
        halves = [pa.array(half[here]) for half in keys]
        schema = pa.schema([*made.schema, *KEYS])
        name = xxhash.xxh3_64_hexdigest(b"".join(half[here].tobytes() for half in keys))
        path = sidecar.with_name(f"{sidecar.stem}.{name}.parquet")
        with whole_file(path) as temporary:
            pq.write_table(pa.table([*made.columns, *halves], schema=schema), temporary)
    return pa.concat_batches(parts)


def remove_portions(sidecar: Place) -> None:
    """Remove the portions of a sidecar that is finished and so holds them."""
    with place_errors(sidecar):
        for path in sidecar.parent.iterdir():
            if path.name.startswith(f"{sidecar.stem}.") and path.name != sidecar.name:
                path.unlink(missing_ok=True)


class Once:
    """Computes the rows of a shard, each content once, and takes what is known already.

    Args:
        compute: gives the results of a batch.
        columns: what it gives.
        keys: content keys of all the rows that will come.
        store: computes a batch and stores the results on the way; plain `compute` if not given.
    """

    def __init__(
        self,
        compute: Compute,
        columns: pa.Schema,
        keys: Hashes,
        known: Known | None,
        store: Store | None = None,
    ) -> None:
        self._compute = compute
        self._store = store
        self._columns = columns
        self._keys = keys
        self._known = known
        count = len(keys.high)
        self._entry = np.full(count, -1) if known is None else known.find(keys)
        self._first = _first_of_each(keys)
        self._again = np.zeros(count, np.bool_)  # rows whose content comes once more, later
        self._again[self._first[self._first != np.arange(count)]] = True
        self._held: list[pa.RecordBatch] = []
        self._held_at = np.full(count, -1)
        self._held_rows = 0
        self._begin = 0

    def next(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Results of the batch that comes next, and its keys."""
        index = np.arange(self._begin, self._begin + batch.num_rows)
        self._begin += batch.num_rows
        parts, place = [], np.full(batch.num_rows, -1)
        known = self._entry[index] >= 0
        stored = self._stored(self._entry[index[known]])
        total = 0
        if stored is None:
            known[:] = False
        elif stored.num_rows:
            parts.append(stored)
            place[known] = np.arange(stored.num_rows)
            total = stored.num_rows
        first = self._first[index]
        held = ~known & (self._held_at[first] >= 0)
        if held.any():
            parts += self._held
            place[held] = total + self._held_at[first[held]]
            total += self._held_rows
        # A row whose first was taken from a sidecar that is gone by now counts as new.
        fresh = ~known & ~held & ((first == index) | (first < index[:1]))
        if fresh.any():
            made = self._made(batch.filter(pa.array(fresh)), index[fresh])
            parts.append(made)
            place[fresh] = total + np.arange(made.num_rows)
            self._hold(made, index[fresh])
        rest = place < 0  # their first is in this batch
        place[rest] = place[first[rest] - index[0]] if rest.any() else place[rest]
        whole = pa.Table.from_batches(parts, self._columns).take(pa.array(place))
        values = whole.combine_chunks().to_batches()[0].columns
        keys = [pa.array(half[index]) for half in self._keys]
        return pa.record_batch([*values, *keys], schema=pa.schema([*self._columns, *KEYS]))

    def _made(self, batch: pa.RecordBatch, index: Int64s) -> pa.RecordBatch:
        """Results of rows of the shard that nobody has computed."""
        if self._store is None:
            return self._compute(batch)
        keys = Hashes(self._keys.high[index], self._keys.low[index])
        return self._store(batch, self._compute, keys)

    def _stored(self, entries: Int64s) -> pa.RecordBatch | None:
        """Results from other sidecars; None if one of them has gone or is broken."""
        if not len(entries) or self._known is None:
            return pa.RecordBatch.from_pylist([], schema=self._columns)
        try:
            return self._known.take(entries, self._columns)
        except (pa.ArrowException, OSError, TamisError):
            return None

    def _hold(self, made: pa.RecordBatch, index: Int64s) -> None:
        keep = self._again[index]
        if keep.any():
            part = made.filter(pa.array(keep))
            self._held.append(part)
            self._held_at[index[keep]] = self._held_rows + np.arange(part.num_rows)
            self._held_rows += part.num_rows


def _first_of_each(keys: Hashes) -> Int64s:
    """For every row the first row with the same key."""
    count = len(keys.high)
    order = np.lexsort((keys.low, keys.high))
    high, low = keys.high[order], keys.low[order]
    new = np.ones(count, np.bool_)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first = np.empty(count, np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1] if count else order
    return first


def content_keys(batches: Iterator[Part]) -> Hashes:
    """Keys of all rows of some batches, whose columns are named by role."""
    found: Sequence[Hashes] = [hash_batch(batch) for _, batch in batches]
    empty = np.zeros(0, np.uint64)
    return Hashes(
        np.concatenate([empty, *(keys.high for keys in found)]),
        np.concatenate([empty, *(keys.low for keys in found)]),
    )
