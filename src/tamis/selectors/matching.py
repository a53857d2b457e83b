"""Which rows of one set of texts resemble rows of another: bands in common, exact Jaccard.

Of rows whose shingles are the same, one on each side is compared for all. The smaller side is taken
in blocks; the band keys of a block lie in hash tables, and the signatures of the larger side stream
past them. So memory grows only by what tells equal rows, `EQUAL_BYTES` each.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Lock
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import int64, njit, uint8, uint16, uint64

from tamis.scoring.evaluate import Evaluated
from tamis.scoring.minhash import MinHashSignature, Signatures
from tamis.scoring.shingles import ShingleSets, Shingling
from tamis.selectors.banding import Banding, band_key, digest
from tamis.selectors.components import SHINGLES_AT_ONCE
from tamis.selectors.jaccard import Float64s, exact_jaccard
from tamis.selectors.survivors import least_equal
from tamis.selectors.table import Table
from tamis.storage.grouping import first_with_pair
from tamis.storage.kernels import KERNEL, Int64s, UInt64s, in_threads
from tamis.storage.rows import UInt32s

#: Rows of the smaller side in hash tables at a time, at about 600 bytes each.
BLOCK_ROWS = 1 << 19
#: Rows of the other side that are compared exactly with one row: those whose signatures are most
#: like its own. It is only reached where there are dozens of near-copies, as of a template.
CANDIDATES_PER_ROW = 32
#: Candidates in memory before those of them that will not be compared are let go.
PAIRS_AT_ONCE = 1 << 20
#: Bytes a row of either side that finding the equal ones takes.
EQUAL_BYTES = 50
#: Candidates that a thread finds before it hands them on.
PAIRS_AT_A_TIME = 1 << 16

#: The number of a run's first row, and what gives the signatures of the run in batches.
Part = tuple[int, Callable[[], Iterator[pa.RecordBatch]]]


class Side(Protocol):
    """Texts with their signatures, numbered from 0."""

    def __len__(self) -> int: ...

    def parts(self, signal: MinHashSignature) -> Sequence[Part]:
        """Signatures of all rows, in order."""

    def fill(self, rows: Int64s, sets: ShingleSets, at: int, shingling: Shingling) -> None:
        """Put the shingle sets of some rows (ascending) into places from `at` on."""

    def ids(self, rows: Int64s) -> tuple[UInt64s, UInt64s, UInt32s]:
        """What ties between rows are broken by: row_id in two halves, and copy."""


class TableSide:
    """The rows of a table that are still kept."""

    def __init__(self, table: Table, signed: Evaluated | None = None) -> None:
        """`signed` says where the signatures are; they are computed where missing if not given."""
        self.table = table
        self._signed = signed

    def __len__(self) -> int:
        return len(self.table)

    def parts(self, signal: MinHashSignature) -> Sequence[Part]:
        table = self.table
        if self._signed is None:
            self._signed = table.evaluated(signal)
        first = np.searchsorted(table.positions, table.rows.start)
        return [
            (int(first[index]), partial(table.signal_batches, self._signed, index))
            for index in np.flatnonzero(np.diff(first)).tolist()
        ]

    def fill(self, rows: Int64s, sets: ShingleSets, at: int, shingling: Shingling) -> None:
        def put(text: pa.Array, places: Int64s, inside: slice) -> None:
            sets.fill(slice(at + inside.start, at + inside.stop), text, places, shingling)

        self.table.map_text("text", rows, put)

    def ids(self, rows: Int64s) -> tuple[UInt64s, UInt64s, UInt32s]:
        at = self.table.positions[rows]
        found = self.table.rows
        return found.id_hi[at], found.id_lo[at], found.copy[at]


class TextSide:
    """Texts in memory, without nulls."""

    def __init__(self, text: pa.Array) -> None:
        self.text = text
        self._signed: pa.RecordBatch | None = None

    def __len__(self) -> int:
        return len(self.text)

    def parts(self, signal: MinHashSignature) -> Sequence[Part]:
        found = self._signed
        if found is None:
            found = self._signed = signal.compute(pa.record_batch({"text": self.text}))
        return [(0, lambda: iter([found]))]

    def fill(self, rows: Int64s, sets: ShingleSets, at: int, shingling: Shingling) -> None:
        sets.fill(slice(at, at + len(rows)), self.text, rows, shingling)

    def ids(self, rows: Int64s) -> tuple[UInt64s, UInt64s, UInt32s]:
        number = rows.astype(np.uint64)
        return number, number, np.zeros(len(rows), np.uint32)


class Matches(NamedTuple):
    """Rows of the one side with the row of the other that each resembles most.

    Attributes:
        rows: int64, ascending.
        partner: int64, row of the other side.
        similarity: float64, exact.
        counts: candidates, those compared exactly, and those that were left out.
    """

    rows: Int64s
    partner: Int64s
    similarity: Float64s
    counts: dict[str, int]


class _Pairs(NamedTuple):
    """Candidate pairs: rows of both sides, equal places of their sketches, whether their shingle
    multisets are the same, and how many shingles each has."""

    left: Int64s
    right: Int64s
    equal: Int64s
    same: npt.NDArray[np.bool_]
    left_shingles: Int64s
    right_shingles: Int64s

    def take(self, at: Int64s | slice) -> Self:
        return type(self)._make(column[at] for column in self)

    def turned(self) -> Self:
        """The same with left and right exchanged."""
        sizes = self.right_shingles, self.left_shingles
        return type(self)(self.right, self.left, self.equal, self.same, *sizes)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        if not parts:
            none = np.zeros(0, np.int64)
            return cls(none, none, none, np.zeros(0, np.bool_), none, none)
        return cls._make(np.concatenate(column) for column in zip(*parts, strict=True))


@njit(**KERNEL)
def _chain_up(keys, slots, chain):  # type: ignore[no-untyped-def]
    """Put rows into an open-addressing table; rows of one key are chained behind the first."""
    mask = uint64(slots.shape[0] - 1)
    for row in range(keys.shape[0]):
        slot = keys[row] & mask
        while True:
            held = slots[slot]
            if held < 0:
                slots[slot] = row
                chain[row] = -1
                break
            if keys[held] == keys[row]:
                chain[row] = chain[held]
                chain[held] = row
                break
            slot = (slot + uint64(1)) & mask


@njit(**KERNEL)
def _meet(  # type: ignore[no-untyped-def]
    signatures,
    band_rows,
    begin,
    keys,
    slots,
    chain,
    sketch,
    min_equal,
    floor,
    most,
    met,
    built,
    probed,
    equals,
):
    """Pairs that share a band and that their sketches do not reject, from row `begin` on.

    Args:
        min_equal: equal places of sketches that make a pair a candidate.
        floor: equal places that a row of the block still asks for.
        most: of a probing row only its best candidates are given, as many, and any as good as the
            last of them.
        built, probed, equals: room for what is found; more than a block has rows.

    Returns the number of candidates, of those given, and the row to go on with: not the last if
    there is no more room.
    """
    room = built.shape[0]
    mask = uint64(slots.shape[1] - 1)
    histogram = np.zeros(sketch.shape[1] + 1, np.int64)
    seen = count = 0
    for row in range(begin, signatures.shape[0]):
        first = count
        if room - first < sketch.shape[0]:
            return seen, first, row
        mine = signatures[row]
        for band in range(keys.shape[0]):
            key = band_key(mine, band, band_rows)
            slot = key & mask
            member = slots[band, slot]
            while member >= 0 and keys[band, member] != key:
                slot = (slot + uint64(1)) & mask
                member = slots[band, slot]
            while member >= 0:
                if met[member] != row:
                    met[member] = row
                    equal = uint16(0)
                    other = sketch[member]
                    for k in range(sketch.shape[1]):
                        equal = uint16(equal + uint16(uint8(mine[k]) == other[k]))
                    seen += equal >= min_equal
                    if equal >= floor[member]:
                        built[count] = member
                        probed[count] = row
                        equals[count] = int64(equal)
                        count += 1
                member = chain[band, member]
        if count - first > most:
            histogram[:] = 0
            for pair in range(first, count):
                histogram[equals[pair]] += 1
            least, better = sketch.shape[1], histogram[sketch.shape[1]]
            while better < most:
                least -= 1
                better += histogram[least]
            end, count = count, first
            for pair in range(first, end):
                if equals[pair] >= least:
                    built[count], probed[count] = built[pair], probed[pair]
                    equals[count] = equals[pair]
                    count += 1
    return seen, count, signatures.shape[0]


class _Block:
    """Rows of the smaller side in hash tables, one a band."""

    def __init__(self, room: int, num_perm: int, banding: Banding) -> None:
        size = 8
        while 2 * size < 3 * room:
            size *= 2
        self._banding = banding
        self._rows = np.empty(room, np.int64)
        self._keys = np.empty((banding.bands, room), np.uint64)
        self._sketch = np.empty((room, num_perm), np.uint8)
        self._multiset = np.empty(room, np.uint64)
        self._shingles = np.empty(room, np.int64)
        self._slots = np.empty((banding.bands, size), np.int32)
        self._chain = np.empty((banding.bands, room), np.int32)
        self._room = room
        self._filled = 0

    def put(self, rows: Int64s, found: Signatures) -> int:
        """Take in the first rows, as many as there is room for; gives how many."""
        taken = min(self._room - self._filled, len(rows))
        here = slice(self._filled, self._filled + taken)
        some = Signatures._make(column[:taken] for column in found)
        self._rows[here] = rows[:taken]
        self._keys[:, here], self._sketch[here], _ = digest(some, self._banding)
        self._multiset[here], self._shingles[here] = some.multiset, some.shingles
        self._filled += taken
        return taken

    @property
    def is_full(self) -> bool:
        return self._filled == self._room

    @property
    def is_empty(self) -> bool:
        return self._filled == 0

    def close(self, workers: int) -> None:
        """Make the tables of what has been put in."""
        self._slots[:] = -1
        keys, filled = self._keys, self._filled
        in_threads(
            lambda band: _chain_up(keys[band, :filled], self._slots[band], self._chain[band]),
            range(len(keys)),
            workers,
        )

    def empty(self) -> None:
        self._filled = 0

    def meet(
        self, rows: Int64s, found: Signatures, min_equal: int, most: int, floor: Int64s | None
    ) -> Iterator[tuple[int, _Pairs]]:
        """How many candidates there are among other rows, and those that are worth a look.

        `left` is a row of this block.

        Args:
            min_equal, most, floor: see `_meet`; the floor is by row.
        """
        filled = self._filled
        mine = self._rows[:filled]
        met = np.full(filled, -1, np.int32)
        tables = (self._keys, self._slots, self._chain, self._sketch[:filled])
        room = filled + PAIRS_AT_A_TIME
        built, probed, equals = (np.empty(room, np.int64) for _ in range(3))
        row = 0
        while row < len(rows):
            asked = np.full(filled, min_equal) if floor is None else floor[mine]
            places = (found.matrix, self._banding.rows, row)
            seen, count, row = _meet(
                *places, *tables, min_equal, asked, most, met, built, probed, equals
            )
            a, b, equal = built[:count], probed[:count], equals[:count].copy()
            same = (
                (equal == found.matrix.shape[1])
                & (self._multiset[a] == found.multiset[b])
                & (self._shingles[a] == found.shingles[b])
            )
            sizes = self._shingles[a], found.shingles[b]
            yield seen, _Pairs(mine[a], rows[b], equal, same, *sizes)


class _Distinct:
    """Of rows of a side whose shingles are the same, the one with the smallest id.

    Equality is of 128 bits over signature and multiset, together with the number of shingles.

    Attributes:
        stand_in: int64, for every row the row that is compared in its place.
        kept: which rows are.
    """

    def __init__(self, side: Side, signal: MinHashSignature, workers: int) -> None:
        whole, multiset = np.empty(len(side), np.uint64), np.empty(len(side), np.uint64)
        self._parts = side.parts(signal)

        def read(part: Part) -> None:
            at, batches = part
            for batch in batches():
                here = slice(at, at + batch.num_rows)
                found = Signatures.stored(batch)
                _, _, whole[here] = digest(found, Banding(0, 0))
                multiset[here] = found.multiset + found.shingles.astype(np.uint64)
                at += batch.num_rows

        in_threads(read, self._parts, workers)
        self.stand_in = first_with_pair(whole, multiset).astype(np.int64)
        repeats = np.flatnonzero(self.stand_in != np.arange(len(side)))
        several = np.union1d(repeats, self.stand_in[repeats])
        high, low, copy = side.ids(several)
        by_id = several[np.lexsort((copy, low, high))][::-1]
        group = self.stand_in[by_id]
        lowest = np.arange(len(side))
        lowest[group] = by_id  # the smallest is written last
        self.stand_in[several] = lowest[self.stand_in[several]]
        self.kept = self.stand_in == np.arange(len(side))

    def __len__(self) -> int:
        return int(self.kept.sum())

    def batches(self, part: Part) -> Iterator[tuple[Int64s, Signatures]]:
        """Rows that are compared, with their signatures."""
        at, batches = part
        for batch in batches():
            found = Signatures.stored(batch)
            rows = np.flatnonzero(self.kept[at : at + batch.num_rows])
            if len(rows) < batch.num_rows:
                found = Signatures._make(column[rows] for column in found)
            yield rows + at, found
            at += batch.num_rows

    def parts(self) -> Sequence[Part]:
        """Signatures of all rows, for `batches`."""
        return self._parts

    def blocks(self, num_perm: int, banding: Banding, workers: int) -> Iterator[_Block]:
        """`BLOCK_ROWS` of the rows that are compared at a time; each holds until the next."""
        block = _Block(min(len(self), BLOCK_ROWS), num_perm, banding)
        for part in self._parts:
            for rows, found in self.batches(part):
                at = 0
                while at < len(rows):
                    rest = Signatures._make(column[at:] for column in found)
                    at += block.put(rows[at:], rest)
                    if block.is_full:
                        block.close(workers)
                        yield block
                        block.empty()
        if not block.is_empty:
            block.close(workers)
            yield block


class _Candidates:
    """The candidates seen so far, of every row the most alike. What stays does not depend on the
    order in which they came."""

    def __init__(self, left: Side, right: Side, min_equal: int) -> None:
        """`floor` tells by row of `left` how many equal places it still asks for."""
        self.floor: Int64s = np.full(len(left), min_equal, np.int64)
        self._right = right
        self._parts: list[_Pairs] = []
        self._held = 0
        self._room = PAIRS_AT_ONCE
        self._lock = Lock()
        self.seen = 0

    def add(self, seen: int, pairs: _Pairs) -> None:
        """Take in what is worth a look of so many candidates."""
        with self._lock:
            self._parts.append(pairs)
            self._held += len(pairs.left)
            self.seen += seen
            if self._held > self._room:
                best = self._best()
                self._parts = [best]
                self._held = len(best.left)
                self._room = max(PAIRS_AT_ONCE, 2 * self._held)
                last = CANDIDATES_PER_ROW - 1
                full = np.flatnonzero(best.left[last:] == best.left[: len(best.left) - last])
                self.floor[best.left[full]] = best.equal[full + last]

    def best(self) -> _Pairs:
        """Sorted by the left row, the most alike first."""
        return self._best()

    def _best(self) -> _Pairs:
        pairs = _Pairs.joined(self._parts)
        high, low, copy = self._right.ids(pairs.right)
        pairs = pairs.take(np.lexsort((copy, low, high, -pairs.equal, pairs.left)))
        begins = np.flatnonzero(np.r_[True, pairs.left[1:] != pairs.left[:-1]][: len(pairs.left)])
        lengths = np.diff(np.r_[begins, len(pairs.left)])
        place = np.arange(len(pairs.left)) - np.repeat(begins, lengths)
        return pairs.take(np.flatnonzero(place < CANDIDATES_PER_ROW))


def matches(
    left: Side,
    right: Side,
    signal: MinHashSignature,
    banding: Banding,
    threshold: float,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Matches:
    """The rows of `left` that resemble one of `right`, with the one they resemble most.

    Ties are broken by the ids of `right`. The result depends neither on the order of rows nor on
    `workers`.

    Args:
        threshold: exact Jaccard similarity from which two texts resemble each other.
        progress: called with rows looked at and rows in all.
    """
    min_equal = least_equal(signal.num_perm, threshold)
    candidates = _Candidates(left, right, min_equal)
    mine, theirs = (_Distinct(side, signal, workers) for side in (left, right))
    swapped = len(mine) > len(theirs)
    built, probed = (theirs, mine) if swapped else (mine, theirs)
    done, lock = 0, Lock()
    total = max(1, -(-len(built) // BLOCK_ROWS)) * len(probed)
    for block in built.blocks(signal.num_perm, banding, workers) if len(probed) else ():

        def meet(part: Part, block: _Block = block) -> None:
            nonlocal done
            for rows, found in probed.batches(part):
                bounds = (CANDIDATES_PER_ROW, None) if swapped else (len(built), candidates.floor)
                for seen, pairs in block.meet(rows, found, min_equal, *bounds):
                    candidates.add(seen, pairs.turned() if swapped else pairs)
                with lock:
                    done += len(rows)
                    if progress is not None:
                        progress(done, total)

        in_threads(meet, probed.parts(), workers)
    pairs = candidates.best()
    value = _similarities(pairs, left, right, signal.shingling, workers)
    counts = {
        "candidate_pairs": candidates.seen,
        "verified_pairs": int((~pairs.same).sum()),
        "candidates_left_out": candidates.seen - len(pairs.left),
    }
    near = np.flatnonzero(value >= threshold)
    left_rows, other, value = pairs.left[near], pairs.right[near], value[near]
    high, low, copy = right.ids(other)
    order = np.lexsort((copy, low, high, -value, left_rows))
    rows, at = np.unique(left_rows[order], return_index=True)
    place = np.full(len(left), -1, np.int64)
    place[rows] = order[at]
    place = place[mine.stand_in]
    rows = np.flatnonzero(place >= 0)
    return Matches(rows, other[place[rows]], value[place[rows]], counts)


def _similarities(
    pairs: _Pairs, left: Side, right: Side, shingling: Shingling, workers: int
) -> Float64s:
    """Exact similarity of pairs sorted by `left`, in blocks that bound the sets in memory."""
    value = np.ones(len(pairs.left))
    wanted = np.flatnonzero(~pairs.same)
    pairs = pairs.take(wanted)
    again = np.r_[False, pairs.left[1:] == pairs.left[:-1]][: len(wanted)]
    cost = np.cumsum(pairs.right_shingles + np.where(again, 0, pairs.left_shingles))
    begin = 0
    while begin < len(wanted):
        spent = cost[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(cost, spent + SHINGLES_AT_ONCE)))
        block = pairs.take(slice(begin, end))
        mine, first_mine, a = np.unique(block.left, return_index=True, return_inverse=True)
        other, first_other, b = np.unique(block.right, return_index=True, return_inverse=True)
        sizes = block.left_shingles[first_mine], block.right_shingles[first_other]
        sets = ShingleSets.room_for(np.concatenate(sizes))
        left.fill(mine, sets, 0, shingling)
        right.fill(other, sets, len(mine), shingling)
        value[wanted[begin:end]] = exact_jaccard(sets, a, b + len(mine), workers)
        begin = end
    return value
