"""Which rows may have to do with one another, and how they are cut into batches.

Rows that share a bucket are joined, over all bands. What is decided within a connected component
depends on nothing outside of it, so components can be decided apart from each other, as many at a
time as memory allows.
"""

from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from tamis.scoring.shingles import ShingleSets, Shingling
from tamis.selectors.banding import Digests
from tamis.selectors.survivors import MIN_PAIRS, PAIRS_PER_ROW
from tamis.storage.grouping import Int32s, counting_sort, first_with_key
from tamis.storage.kernels import KERNEL, Int64s, in_threads
from tamis.storage.spill import Spill, SpillRoom

#: Bytes that deciding a batch takes, for each: row, membership in a bucket, pair that may be asked
#: for, shingle. Counted from the arrays that live at once.
ROW_BYTES, MEMBER_BYTES, PAIR_BYTES, SHINGLE_BYTES = 450, 64, 70, 8
#: Shingles of which sets are held at a time (8 bytes each).
SHINGLES_AT_ONCE = 1 << 26
#: Bytes that grouping the rows by one band's keys takes for each, and of the bands that are grouped
#: at once, which are two at least.
GROUPING_BYTES, GROUPING_AT_ONCE = 28, 512 << 20
#: Bytes of the components that are decided together. One that is larger is a batch by itself.
BATCH_BYTES = 512 << 20


@njit(**KERNEL)
def _root(parent, row):  # type: ignore[no-untyped-def]
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


@njit(**KERNEL)
def _join(first, parent, members, pairs):  # type: ignore[no-untyped-def]
    """Join rows that share a bucket of one band; a parent always comes before its row.

    Counts the memberships of every row, and at a bucket's first row the pairs in it (at most
    2**31).
    """
    rows = first.shape[0]
    size = np.zeros(rows, np.int32)
    for d in range(rows):
        size[first[d]] += 1
    most = np.int64(1) << 31
    for d in range(rows):
        count = np.int64(size[first[d]])
        if count < 2:
            continue
        members[d] += 1
        if first[d] == d:
            pairs[d] = min(most, np.int64(pairs[d]) + count * (count - 1) // 2)
            continue
        a, b = _root(parent, first[d]), _root(parent, d)
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b


@njit(**KERNEL)
def _name(parent, members):  # type: ignore[no-untyped-def]
    """Rows that are a member of any bucket, their components by number, and how many there are."""
    count = 0
    for d in range(parent.shape[0]):
        count += members[d] > 0
    rows = np.empty(count, np.int32)
    component = np.empty(count, np.int32)
    at = names = 0
    for d in range(parent.shape[0]):
        if members[d] == 0:
            continue
        # Parents come first: theirs is named already.
        if parent[d] == d:
            parent[d] = names
            names += 1
        else:
            parent[d] = parent[parent[d]]
        rows[at] = d
        component[at] = parent[d]
        at += 1
    return rows, component, names


@njit(**KERNEL)
def _pack(component, count, members, pairs, shingles, each, least_room, room_per_row, limit):  # type: ignore[no-untyped-def]
    """Batch of every component: in order, as many as fit the limit together.

    Also gives the rows of the largest component, and the bytes of the costliest.
    """
    rows = np.zeros(count, np.int64)
    asked = np.zeros(count, np.int64)
    cost = np.zeros(count, np.int64)
    for i in range(component.shape[0]):
        c = component[i]
        rows[c] += 1
        asked[c] += pairs[i]
        cost[c] += each[0] + each[1] * np.int64(members[i]) + each[3] * shingles[i]
    batch = np.empty(count, np.int32)
    current = used = 0
    for c in range(count):
        cost[c] += each[2] * min(asked[c], max(room_per_row * rows[c], least_room))
        if used and used + cost[c] > limit:
            current += 1
            used = 0
        batch[c] = current
        used += cost[c]
    largest = most = np.int64(0)
    for c in range(count):
        largest, most = max(largest, rows[c]), max(most, cost[c])
    return batch, largest, most


class Batches(NamedTuple):
    """Rows that share a bucket with another, by batch.

    Attributes:
        rows: int64, the rows, ascending.
        batch: int32, the batch of each.
        place: int32, where each stands in the order of batches.
        sorted: int64, the rows in the order of batches; those of a batch ascend.
        start: int64, the places that batches begin with, and the number of rows last.
        component: int32, by place, the component of a row.
        largest: rows of the largest component.
        most_bytes: that deciding a component takes.
    """

    rows: Int64s
    batch: Int32s
    place: Int32s
    sorted: Int64s
    start: Int64s
    component: Int32s
    largest: int
    most_bytes: int

    @classmethod
    def find(
        cls, digests: Digests, picked: Int64s, shingles: Int64s, limit: int, workers: int
    ) -> "Batches":
        """Join the `picked` rows of a table, band by band, and pack their components.

        Args:
            picked: rows, ascending.
            shingles: number of every row of the table.
            limit: bytes of a batch.
        """
        at_once = max(GROUPING_AT_ONCE // (GROUPING_BYTES * max(1, len(picked))), 2)
        parent = np.arange(len(picked), dtype=np.int32)
        members, pairs = np.zeros(len(picked), np.uint16), np.zeros(len(picked), np.uint32)
        one_at_a_time = Lock()

        def join(keys: Spill) -> None:
            found = keys.get(0, len(keys))
            if len(picked) < len(found):
                found = found[picked]
            first = first_with_key(found)
            del found
            with one_at_a_time:
                _join(first, parent, members, pairs)

        in_threads(join, digests.keys, min(workers, at_once))
        inside, component, count = _name(parent, members)
        rows = picked[inside]
        each = (ROW_BYTES, MEMBER_BYTES, PAIR_BYTES, SHINGLE_BYTES)
        batch_of, largest, most = _pack(
            component,
            count,
            members[inside],
            pairs[inside],
            shingles[rows],
            each,
            MIN_PAIRS,
            PAIRS_PER_ROW,
            limit,
        )
        batch = batch_of[component]
        order, start = counting_sort(batch, int(batch_of[-1]) + 1 if count else 0)
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        return cls(
            rows, batch, place, rows[order], start, component[order], int(largest), int(most)
        )

    def __len__(self) -> int:
        return len(self.start) - 1

    def of(self, number: int) -> slice:
        """Places of a batch's rows."""
        return slice(int(self.start[number]), int(self.start[number + 1]))

    def pieces(self, first: int, last: int) -> list[tuple[int, Int64s]]:
        """The run ``rows[first:last]`` by batch: the place each begins at, and which of the run."""
        batch = self.batch[first:last]
        order = np.argsort(batch, kind="stable")
        cuts = np.flatnonzero(np.diff(batch[order])) + 1
        return [(int(self.place[first + run[0]]), run) for run in np.split(order, cuts) if len(run)]

    def sort(self, spill: Spill, room: SpillRoom) -> Spill:
        """The rows' records in the order of batches; those of other rows are let go of."""
        found = room.array((len(self.rows), *spill.shape[1:]), spill.kind)
        for begin in range(0, len(spill), spill.block):
            end = min(begin + spill.block, len(spill))
            first, last = np.searchsorted(self.rows, [begin, end]).tolist()
            if first == last:
                continue
            records = spill.get(begin, end)
            inside = self.rows[first:last] - begin
            for place, run in self.pieces(first, last):
                found.put(place, records[inside[run]])
        spill.close()
        return found


#: Gives the shingle sets of rows, ascending.
SetSource = Callable[[Int64s], ShingleSets]


class SpilledSets:
    """Shingle sets of all rows of `Batches`, in the order of batches.

    Args:
        counts: shingles of every row, repeats included, by place.
    """

    def __init__(self, batches: Batches, counts: Int64s, room: SpillRoom) -> None:
        self._batches = batches
        self._start: Int64s = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=self._start[1:])
        self._size: Int64s = np.zeros(len(counts), np.int64)
        self._hashes = room.array((int(self._start[-1]),), np.uint64)

    def fill(self, text: pa.Array, rows: Int64s, at: slice, shingling: Shingling) -> None:
        """Put in the sets of a run of the batches' rows; threads may do so at once.

        Args:
            text: string or large_string array.
            rows: their positions in `text`.
            at: the run of `Batches.rows`.
        """
        for place, run in self._batches.pieces(at.start, at.stop):
            end = place + len(run)
            start = self._start[place : end + 1]
            with self._hashes.filling(int(start[0]), int(start[-1])) as hashes:
                sets = ShingleSets(hashes, start - start[0], self._size[place:end])
                sets.fill(slice(0, len(run)), text, rows[run], shingling)

    def close(self) -> None:
        """Let go of the sets."""
        self._hashes.close()

    def of(self, number: int) -> SetSource:
        """The sets of a batch, whose rows are numbered from 0."""
        here = self._batches.of(number)
        start, size = self._start[here.start : here.stop + 1], self._size[here]
        hashes = self._hashes
        if start[-1] - start[0] <= SHINGLES_AT_ONCE:
            together = hashes.get(int(start[0]), int(start[-1]))
            return lambda wanted: ShingleSets(together, start[wanted] - start[0], size[wanted])

        def gather(wanted: Int64s) -> ShingleSets:
            sets = ShingleSets.room_for(size[wanted])
            sets.size[:] = size[wanted]
            begin = 0
            while begin < len(wanted):
                # As many rows as lie in one block of the file; a row larger than that by itself.
                reach = start[wanted[begin]] + hashes.block
                end = max(begin + 1, int(np.searchsorted(start[wanted + 1], reach, side="right")))
                first = int(start[wanted[begin]])
                block = hashes.get(first, int(start[wanted[end - 1] + 1]))
                _copy_runs(
                    block,
                    start[wanted[begin:end]] - first,
                    sets.start[begin:],
                    size[wanted[begin:end]],
                    sets.hashes,
                )
                begin = end
            return sets

        return gather


@njit(**KERNEL)
def _copy_runs(source, begin, target_begin, size, target):  # type: ignore[no-untyped-def]
    for i in range(begin.shape[0]):
        for j in range(size[i]):
            target[target_begin[i] + j] = source[begin[i] + j]
