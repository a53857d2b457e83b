"""Merges training records: what was said of a row in every epoch of every run, in one row.

The files of all epochs are read side by side, by ascending row_id. A block ends before the smallest
of the row_ids that they have been read up to, so all records of its rows are at hand. Where the
row_ids of all files are equal position for position, as recorders write them, nothing is searched.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from tamis.storage.dynamics import Dynamics
from tamis.storage.kernels import KERNEL, Int64s, in_threads
from tamis.storage.record_streams import KINDS, Column, Ids, Stream, Taken, joined, streams_of

#: Columns that can be asked for beside ``margin``.
COLUMNS = ("label_prob", "loss", "entropy", "el2n", "label", "other", "correct", "threshold")
_MARGIN = ["label_logit", "other_logit"]
#: Bytes that all files together are read ahead, about.
_AHEAD_BYTES = 128 << 20
#: Rows of a file that are read at a time, at most and at least.
_MOST_ROWS, LEAST_ROWS = 1 << 17, 1 << 8
#: Rows of a block, at most and at least, and numbers of a matrix, which stay in a core's cache
#: while its columns are filled one by one.
_BLOCK_ROWS, _FEWEST_ROWS, _CACHED = 1 << 13, 1 << 8, 1 << 17

Int32s = npt.NDArray[np.int32]
R = TypeVar("R")


class Block(NamedTuple):
    """Some rows, with all that the records say of them.

    Attributes:
        row_id: int64 or large_string ``(n,)``, ascending, no two alike.
        columns: matrices ``(n, runs * epochs)``, run-major: ``margin`` (label's logit minus the
            largest other) and those asked for. Floats are float32, nan where missing; ``label`` and
            ``other`` int32, ``correct`` and ``threshold`` int8, -1 where missing. ``logits`` has
            all ordinary classes of an epoch one after the other: float32, minus infinity for
            classes that the model did not have yet.
        updates: int32 ``(n, runs * epochs)``, how many records a row has in an epoch.

    Where a row has several records in an epoch, floats are their means and other values those of
    the last by step, rank, window and place in the file. A record whose margin is not finite counts
    as an update and is missing in all columns but ``label`` and ``threshold``.
    """

    row_id: pa.Array
    columns: dict[str, Column]
    updates: Int32s


@njit(**KERNEL)
def _repeats(ids):  # type: ignore[no-untyped-def]
    found = False
    for i in range(1, ids.shape[0]):
        found |= ids[i] == ids[i - 1]
    return found


@njit(**KERNEL)
def _same(a, b):  # type: ignore[no-untyped-def]
    same = True
    for i in range(a.shape[0]):
        same &= a[i] == b[i]
    return same


@njit(**KERNEL)
def _merge(a, b, out):  # type: ignore[no-untyped-def]
    """Distinct values of two ascending arrays, ascending; gives how many."""
    i, j, n = 0, 0, 0
    while i < a.shape[0] or j < b.shape[0]:
        if j >= b.shape[0] or (i < a.shape[0] and a[i] <= b[j]):
            value = a[i]
            i += 1
        else:
            value = b[j]
            j += 1
        if n == 0 or out[n - 1] != value:
            out[n] = value
            n += 1
    return n


@njit(**KERNEL)
def _places(all_ids, ids, out):  # type: ignore[no-untyped-def]
    at = 0
    for i in range(ids.shape[0]):
        while all_ids[at] != ids[i]:
            at += 1
        out[i] = at


@njit(**KERNEL)
def _put(matrix, t, values):  # type: ignore[no-untyped-def]
    for i in range(values.shape[0]):
        matrix[i, t] = values[i]


@njit(**KERNEL)
def _put_margin(matrix, t, label_logit, other_logit):  # type: ignore[no-untyped-def]
    for i in range(label_logit.shape[0]):
        matrix[i, t] = label_logit[i] - other_logit[i]


@njit(**KERNEL)
def _put_at(matrix, t, places, values):  # type: ignore[no-untyped-def]
    for i in range(values.shape[0]):
        matrix[places[i], t] = values[i]


@njit(**KERNEL)
def _count_at(matrix, t, places):  # type: ignore[no-untyped-def]
    most = 0
    for i in range(places.shape[0]):
        matrix[places[i], t] += 1
        most = max(most, matrix[places[i], t])
    return most


@njit(**KERNEL)
def _put_means(matrix, t, places, values, order):  # type: ignore[no-untyped-def]
    """Mean of the values that share a place; `order` brings them together."""
    i = 0
    while i < order.shape[0]:
        place, total, count = places[order[i]], 0.0, 0
        while i < order.shape[0] and places[order[i]] == place:
            total += np.float64(values[order[i]])
            count += 1
            i += 1
        matrix[place, t] = total / count


@njit(**KERNEL)
def _has_unknown(margin, updates):  # type: ignore[no-untyped-def]
    """Whether the margin of a record is not finite."""
    found = False
    for i in range(margin.shape[0]):
        for t in range(margin.shape[1]):
            found |= updates[i, t] > 0 and not np.isfinite(margin[i, t])
    return found


def read_blocks(
    dynamics: Dynamics, columns: Sequence[str], *, workers: int, folder: Path | None = None
) -> Iterator[Block]:
    """The blocks that `map_blocks` gives to its function."""
    return map_blocks(dynamics, columns, lambda block: block, workers=workers, folder=folder)


def map_blocks(
    dynamics: Dynamics,
    columns: Sequence[str],
    function: Callable[[Block], R],
    *,
    workers: int,
    folder: Path | None = None,
) -> Iterator[R]:
    """What a function makes of all rows of the records, block by block.

    Blocks ascend by row_id, and no row is in two. What is in them is the same whatever the number
    of workers, the order of files and the order of records in them; but of repeated records that
    share step, rank and window, the last in the file is the last. Memory is bounded by the number
    of files, not of rows.

    Args:
        columns: some of `COLUMNS`, or ``logits``.
        function: called by several threads.
        folder: for sorted copies of files that are not; the system's for temporary files.

    Raises:
        UserError: for a file that is damaged, has a null, or is not sorted as its footer says; if
            logits are wanted, for one without.
    """
    names = [*_MARGIN, *columns]
    width = 8 + sum(np.dtype(KINDS[name]).itemsize for name in names)
    classes = dynamics.classes() if "logits" in columns else 0
    rows = _AHEAD_BYTES // ((width + 4 * classes) * len(dynamics.files))
    rows = max(LEAST_ROWS, min(_MOST_ROWS, rows))
    with tempfile.TemporaryDirectory(prefix=".records-", dir=folder) as aside:

        def opened(place: int) -> list[Stream]:
            return streams_of(dynamics.files[place], names, classes, rows, Path(aside))

        found = in_threads(opened, range(len(dynamics.files)), workers)
        streams = [stream for several in found for stream in several]
        while taken := _take(streams, rows, workers):
            merged = _Merged(dynamics, names, classes, taken, workers)
            begins = range(0, len(merged.ids), merged.size)
            yield from in_threads(partial(_of_block, merged, function), begins, workers)


def _of_block(merged: "_Merged", function: Callable[[Block], R], begin: int) -> R:
    return function(merged.block(begin))


def _take(streams: list[Stream], rows: int, workers: int) -> list[Taken]:
    """The next records of every stream, of rows all of whose records are at hand."""
    going = [stream for stream in streams if stream.next_id is not None]
    short = [stream for stream in going if len(stream.ids) < (rows + 1) // 2]
    while True:
        in_threads(Stream.fill, short, workers)
        limit = min((s.next_id for s in going if s.next_id is not None), default=None)
        counts = [stream.below(limit) for stream in streams]
        if any(counts) or limit is None:
            return [s.take(count) for s, count in zip(streams, counts, strict=True) if count]
        short = [stream for stream in going if stream.next_id == limit]


class _Merged:
    """Rows all of whose records are at hand, and how these become blocks.

    Attributes:
        ids: of the rows, ascending.
        size: rows of a block.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        names: list[str],
        classes: int,
        taken: list[Taken],
        workers: int,
    ) -> None:
        self.ids, places = _aligned(taken, workers)
        self._epochs = dynamics.runs * dynamics.epochs
        self._names, self._classes, self._taken = names, classes, taken
        wide = self._epochs * max(1, classes)
        self.size = max(_FEWEST_ROWS, min(_BLOCK_ROWS, _CACHED // wide))
        by_epoch: dict[int, list[int]] = {}
        for n, some in enumerate(taken):
            file = some.stream.file
            epoch = file.run * dynamics.epochs + file.epoch - dynamics.first
            by_epoch.setdefault(epoch, []).append(n)
        #: The epochs whose records are those of the rows, one by one, and the stream of each.
        self._full = {t: mine[0] for t, mine in by_epoch.items() if places[mine[0]] is None}
        self._whole: tuple[dict[str, Column], Int32s] | None = None
        rest = by_epoch.keys() - self._full.keys()
        if rest:
            self._whole = columns, updates = self._empty(len(self.ids))

            def merge(t: int) -> None:
                parts = [(taken[n], p) for n in by_epoch[t] if (p := places[n]) is not None]
                _merge_epoch(t, parts, columns, updates)

            in_threads(merge, rest, workers)

    def _empty(self, rows: int) -> tuple[dict[str, Column], Int32s]:
        """Matrices of the columns and the updates, with nothing in epochs that are not full."""
        kinds = {"margin": np.float32, **{name: KINDS[name] for name in self._names[2:]}}
        columns = {
            name: _room(rows, self._epochs * (self._classes if name == "logits" else 1), kind)
            for name, kind in kinds.items()
        }
        updates = _room(rows, self._epochs, np.int32)
        updates[:] = 1
        for t in range(self._epochs):
            if t not in self._full:
                updates[:, t] = 0
                for matrix in columns.values():
                    _of_epoch(matrix, t, self._epochs)[:] = _missing(matrix)
        return columns, updates

    def block(self, begin: int) -> Block:
        """The block that begins with a row."""
        here = slice(begin, begin + self.size)
        ids = self.ids[here]
        if self._whole is None:
            columns, updates = self._empty(len(ids))
        else:
            columns = {name: matrix[here] for name, matrix in self._whole[0].items()}
            updates = self._whole[1][here]
        for t, n in self._full.items():
            mine, other, *rest = (values[here] for values in self._taken[n].values)
            _put_margin(columns["margin"], t, mine, other)
            for name, values in zip(self._names[2:], rest, strict=True):
                if name == "logits":
                    _of_epoch(columns[name], t, self._epochs)[:] = values
                else:
                    _put(columns[name], t, values)
        if _has_unknown(columns["margin"], updates):
            unknown = (updates > 0) & ~np.isfinite(columns["margin"])
            for name, matrix in columns.items():
                if name == "logits":
                    matrix[np.repeat(unknown, self._classes, axis=1)] = np.nan
                elif name not in ("label", "threshold"):
                    matrix[unknown] = _missing(matrix)
        return Block(pa.array(ids), columns, updates)


def _room(rows: int, columns: int, kind: npt.DTypeLike) -> Column:
    """A matrix without values, in memory that Arrow hands out again: the system's own allocator
    gives blocks of this size back and fetches them anew, page by page."""
    size = rows * columns * np.dtype(kind).itemsize
    return np.frombuffer(pa.allocate_buffer(size), kind).reshape(rows, columns)


def _of_epoch(matrix: Column, t: int, epochs: int) -> Column:
    """The columns of a matrix that belong to an epoch: one, or one for every class."""
    width = matrix.shape[1] // epochs
    return matrix[:, t * width : (t + 1) * width]


def _missing(matrix: Column) -> float:
    return np.nan if matrix.dtype.kind == "f" else -1


def _aligned(taken: list[Taken], workers: int) -> tuple[Ids, list[Int64s | None]]:
    """The distinct row_ids of a block, and where the records of every stream belong.

    None stands for a stream that has exactly these rows and is alone in its epoch.
    """
    files = [some.stream.file for some in taken]
    count = Counter((file.run, file.epoch) for file in files)
    alone = [count[file.run, file.epoch] == 1 for file in files]
    first = taken[0].ids
    alike = [_equal(first, some.ids) for some in taken]
    if all(alike) and not _has_repeats(first):
        whole = np.arange(len(first))
        return first, [None if one else whole for one in alone]
    if isinstance(first, np.ndarray):
        ids = first
        for some, same in zip(taken, alike, strict=True):
            if not same or some is taken[0]:
                out = np.empty(len(ids) + len(some.ids), np.int64)
                ids = out[: _merge(ids, some.ids, out)]
    else:
        distinct = pc.unique(joined([some.ids for some in taken]))
        ids = distinct.take(pc.sort_indices(distinct))

    def placed(n: int) -> Int64s | None:
        mine = taken[n].ids
        if alone[n] and _equal(ids, mine):
            return None
        if isinstance(mine, np.ndarray):
            places = np.empty(len(mine), np.int64)
            _places(ids, mine, places)
            return places
        return np.asarray(pc.index_in(mine, value_set=ids)).astype(np.int64)

    return ids, in_threads(placed, range(len(taken)), workers)


def _equal(a: Ids, b: Ids) -> bool:
    if len(a) != len(b):
        return False
    return bool(_same(a, b)) if isinstance(a, np.ndarray) else bool(a.equals(b))


def _has_repeats(ids: Ids) -> bool:
    if isinstance(ids, np.ndarray):
        return bool(_repeats(ids))
    return bool(np.asarray(pc.equal(ids[1:], ids[:-1])).any())


def _merge_epoch(
    t: int,
    parts: list[tuple[Taken, Int64s]],
    columns: dict[str, Column],
    updates: Int32s,
) -> None:
    """Write the records of an epoch that do not simply lie in the order of the block's rows."""
    most = max([_count_at(updates, t, places) for _, places in parts])
    places = np.concatenate([places for _, places in parts])
    values = [np.concatenate(arrays) for arrays in zip(*(s.values for s, _ in parts), strict=True)]
    margin = values[0] - values[1]
    named = dict(zip(columns, [margin, *values[2:]], strict=True))
    order = None if most == 1 else _order(parts, places)
    for name, found in named.items():
        matrix = _of_epoch(columns[name], t, updates.shape[1])
        for k, one in enumerate(found.reshape(len(found), -1).T):
            if order is None:
                _put_at(matrix, k, places, one)
            elif found.dtype.kind == "f":
                _put_means(matrix, k, places, one, order)
            else:
                _put_at(matrix, k, places[order], one[order])


def _order(parts: list[tuple[Taken, Int64s]], places: Int64s) -> Int64s:
    """Brings the records of a row together, in the order of training."""
    steps = [some.stream.steps(some.first, len(some.ids)) for some, _ in parts]
    ranks = [np.full(len(some.ids), some.stream.file.rank) for some, _ in parts]
    windows = [np.full(len(some.ids), some.stream.file.window) for some, _ in parts]
    keys = [np.concatenate(key) for key in (windows, ranks, steps)]
    return np.lexsort((*keys, places))
