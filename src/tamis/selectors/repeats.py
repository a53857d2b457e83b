"""Which stretches of a corpus occurred before: from repeated anchors to bytes, exactly.

A stretch is a window of `length` bytes. It holds an anchor, and so does every copy of it, at the
same place (`scoring.anchors`). So only the surroundings of anchors that occur more than once are
looked at. An anchor whose whole surroundings occurred before is a repeat with all windows it lies
in; the first of each different surroundings are compared byte by byte, window by window.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import int64, njit, uint32, uint64

from tamis.scoring.anchors import BLOCK, Winnow, begin_text, next_anchors, power_of, work_for
from tamis.storage.grouping import first_with_key, first_with_pair
from tamis.storage.hashing import absorb, finish
from tamis.storage.kernels import KERNEL, Bytes, Int64s, UInt64s

#: The filter has two bits for each of 2 ** `bits` hashes, at least so many a hash put in.
_SLOTS_PER_ANCHOR = 8
#: At most 1 GB. It is too small beyond some 30 GB of text: more is looked at than need be.
_MAX_BITS = 32
_MIN_BITS = 10


class Cuts(NamedTuple):
    """Bytes that occurred before.

    Attributes:
        row: int64, row of the table.
        start, stop: int64, bytes from the row's beginning.
        holder: int64, the row where they occurred first.
    """

    row: Int64s
    start: Int64s
    stop: Int64s
    holder: Int64s

    @classmethod
    def none(cls) -> "Cuts":
        return cls(*(np.zeros(0, np.int64) for _ in range(4)))


class Surroundings(NamedTuple):
    """Anchors that may be repeats: the first of a row with the same surroundings.

    Attributes:
        gram: uint64, hash of the k-gram.
        high, low: uint64, hash of the surroundings.
        row: int64, row of the table.
        place: int64, byte of the row.
    """

    gram: UInt64s
    high: UInt64s
    low: UInt64s
    row: Int64s
    place: Int64s

    def part(self, begin: int, stop: int) -> "Surroundings":
        """Some consecutive ones."""
        columns: Any = self
        return Surroundings(*(column[begin:stop] for column in columns))

    @classmethod
    def joined(cls, parts: "list[Surroundings]") -> "Surroundings":
        """Those of several batches together."""
        kinds: tuple[Any, ...] = ("u8", "u8", "u8", "i8", "i8")
        none = [np.zeros(0, kind) for kind in kinds]
        columns: Any = zip(none, *parts, strict=True)
        return cls(*(np.concatenate(column) for column in columns))


class Filter:
    """Says of a hash whether it was put in more than once; now and then yes for one that was not.

    Attributes:
        bits: a hash has a slot by so many of its bits.
        slots: two bits each.
    """

    def __init__(self, hashes: int) -> None:
        wanted = int(max(1, hashes) * _SLOTS_PER_ANCHOR - 1).bit_length()
        self.bits = min(_MAX_BITS, max(_MIN_BITS, wanted))
        self.slots: UInt64s = np.zeros(1 << (self.bits - 5), np.uint64)

    def put(self, hashes: UInt64s) -> None:
        _put(self.slots, self.bits, hashes)

    def repeated(self, hashes: UInt64s) -> npt.NDArray[np.bool_]:
        """Whether each was put in more than once."""
        found = np.empty(len(hashes), np.bool_)
        _look_up(self.slots, self.bits, hashes, found)
        return found

    @staticmethod
    def room(hashes: int) -> int:
        """Bytes that one for so many hashes takes."""
        return min(1 << (_MAX_BITS - 2), hashes * _SLOTS_PER_ANCHOR // 2)


@njit(**KERNEL)
def _slot(value, bits):  # type: ignore[no-untyped-def]
    """Slot of a hash, by its low bits: of anchors, which are minima, the high ones are mostly 0."""
    return value & (uint64(1) << uint64(bits)) - uint64(1)


@njit(**KERNEL)
def _put(slots, bits, hashes):  # type: ignore[no-untyped-def]
    for i in range(hashes.shape[0]):
        slot = _slot(hashes[i], bits)
        shift = (slot & uint64(31)) * uint64(2)
        word = slots[slot >> uint64(5)]
        once = word >> shift & uint64(1)
        slots[slot >> uint64(5)] = word | (uint64(1) + once) << shift


@njit(**KERNEL)
def _is_repeated(slots, bits, value):  # type: ignore[no-untyped-def]
    slot = _slot(value, bits)
    return (slots[slot >> uint64(5)] >> ((slot & uint64(31)) * uint64(2) + uint64(1))) & uint64(1)


@njit(**KERNEL)
def _look_up(slots, bits, hashes, found):  # type: ignore[no-untyped-def]
    for i in range(hashes.shape[0]):
        found[i] = _is_repeated(slots, bits, hashes[i])


@njit(**KERNEL)
def _hash_run(data, start, stop, seed):  # type: ignore[no-untyped-def]
    """128-bit hash of some bytes and a number."""
    high, low = absorb(uint64(0), uint64(0), uint64(seed))
    at, end = uint64(start), uint64(stop)
    while at < end:
        value = uint64(0)
        for k in range(min(uint64(8), end - at)):
            value |= uint64(data[at + uint64(k)]) << uint64(8 * k)
        high, low = absorb(high, low, value)
        at += uint64(8)
    return finish(high, low, end - uint64(start))


@njit(**KERNEL)
def _emit_cut(cuts, count, row, start, stop):  # type: ignore[no-untyped-def]
    """Note bytes that a row itself had before; joined to the last ones if they meet."""
    if count and cuts[0, count - 1] == row and start <= cuts[2, count - 1]:
        cuts[2, count - 1] = max(cuts[2, count - 1], stop)
        return count
    cuts[0, count], cuts[1, count], cuts[2, count], cuts[3, count] = row, start, stop, row
    return count + 1


@njit(**KERNEL)
def _grown(high, low, stamp, now):  # type: ignore[no-untyped-def]
    """A table of twice the size with what was put in for this row."""
    size = high.shape[0] * 2
    new_high, new_low = np.empty(size, np.uint64), np.empty(size, np.uint64)
    new_stamp = np.full(size, -1, np.int64)
    mask = uint64(size - 1)
    for i in range(high.shape[0]):
        if stamp[i] == now:
            slot = high[i] & mask
            while new_stamp[slot] == now:
                slot = (slot + uint64(1)) & mask
            new_high[slot], new_low[slot], new_stamp[slot] = high[i], low[i], now
    return new_high, new_low, new_stamp


@njit(**KERNEL)
def _surroundings(  # type: ignore[no-untyped-def]
    data, offsets, rows, begin, winnow, slots, bits, part, parts, first_row, grams, high, low, row,
    place, cuts, size, count,
):  # fmt: skip
    """Anchors of some rows that may be repeats; gives rows done, entries and cuts written.

    Stops before a row for which there is no room.
    """
    work = work_for(winnow)
    power = power_of(winnow.gram - 1)
    reach = winnow.length - winnow.gram
    table_high, table_low = np.empty(1024, np.uint64), np.empty(1024, np.uint64)
    stamp = np.full(1024, -1, np.int64)
    for i in range(first_row, rows.shape[0]):
        first, end = offsets[rows[i]], offsets[rows[i] + 1]
        size_before, count_before = size, count
        held = 0
        begin_text(work)
        while True:
            found = next_anchors(data, first, end, winnow, power, work)
            if size + found > grams.shape[0] or count + found > cuts.shape[1]:
                return i, size_before, count_before
            for k in range(found):
                gram = work[4][k]
                if not _is_repeated(slots, bits, gram):
                    continue
                if (gram & uint64(0xFFFFFFFF)) * uint64(parts) >> uint64(32) != uint64(part):
                    continue
                at = work[3][k]
                start, stop = max(first, at - reach), min(end, at + winnow.length)
                h, g = _hash_run(data, start, stop, at - start)
                mask = uint64(table_high.shape[0] - 1)
                slot = h & mask
                while stamp[slot] == i and not (table_high[slot] == h and table_low[slot] == g):
                    slot = (slot + uint64(1)) & mask
                if stamp[slot] == i:
                    count = _emit_cut(cuts, count, begin + i, start - first, stop - first)
                    continue
                table_high[slot], table_low[slot], stamp[slot] = h, g, i
                held += 1
                if 2 * held > table_high.shape[0]:
                    table_high, table_low, stamp = _grown(table_high, table_low, stamp, i)
                grams[size], high[size], low[size] = gram, h, g
                row[size], place[size] = begin + i, at - first
                size += 1
            if found < BLOCK:
                break
    return rows.shape[0], size, count


def surroundings(
    data: Bytes,
    offsets: Int64s,
    rows: Int64s,
    begin: int,
    winnow: Winnow,
    repeated: Filter,
    part: int,
    parts: int,
) -> tuple[Surroundings, Cuts]:
    """Anchors of some rows that may be repeats, and bytes that the rows themselves repeat.

    Args:
        rows: rows of the text buffers.
        begin: number of the first of them; the results count from it.
        part, parts: only anchors of this one of so many equal ranges of hashes.
    """
    kinds = (np.uint64, np.uint64, np.uint64, np.int64, np.int64)
    total = int((offsets[rows + 1] - offsets[rows]).sum())
    room = BLOCK + total // winnow.window
    entries: list[npt.NDArray[Any]] = [np.empty(room, kind) for kind in kinds]
    cuts = np.empty((4, room), np.int64)
    done = size = count = 0
    while done < len(rows):
        done, size, count = _surroundings(
            data, offsets, rows, begin, winnow, repeated.slots, repeated.bits, part, parts, done,
            *entries, cuts, size, count,
        )  # fmt: skip
        if done < len(rows):
            entries = [np.concatenate([column, np.empty_like(column)]) for column in entries]
            cuts = np.concatenate([cuts, np.empty_like(cuts)], axis=1)
    return (
        Surroundings(*(column[:size].copy() for column in entries)),
        Cuts(*(column[:count].copy() for column in cuts)),
    )


@njit(**KERNEL)
def _firsts(group, rank, row, place):  # type: ignore[no-untyped-def]
    """Of every group (named by a member) the member that is first in canonical order."""
    best = np.full(group.shape[0], -1, np.int32)
    for i in range(group.shape[0]):
        held = best[group[i]]
        if held < 0 or (rank[row[i]], place[i]) < (rank[row[held]], place[held]):
            best[group[i]] = i
    return best


@njit(**KERNEL)
def _sizes(group):  # type: ignore[no-untyped-def]
    sizes = np.zeros(group.shape[0], np.int32)
    for i in range(group.shape[0]):
        sizes[group[i]] += 1
    return sizes


def whole_repeats(
    found: Surroundings, rank: Int64s, lengths: Int64s, winnow: Winnow
) -> tuple[Cuts, Surroundings]:
    """Anchors whose surroundings occurred before, and those left to be compared with others.

    Args:
        rank: canonical place of every row of the table.
        lengths: bytes of every row.

    Returns:
        Cuts; and anchors that are the first of their surroundings while another first has the same
        k-gram, together by k-gram and in canonical order.
    """
    group = first_with_pair(found.high, found.low)
    best = _firsts(group, rank, found.row, found.place)
    first = best[group]
    later = np.flatnonzero(first != np.arange(len(first)))
    row, place = found.row[later], found.place[later]
    cuts = Cuts(
        row,
        np.maximum(place - winnow.reach, 0),
        np.minimum(place + winnow.length, lengths[row]),
        found.row[first[later]],
    )
    heads = np.flatnonzero(first == np.arange(len(first)))
    by_gram = first_with_key(found.gram[heads])
    heads = heads[_sizes(by_gram)[by_gram] > 1]
    order = np.lexsort((found.place[heads], rank[found.row[heads]], found.gram[heads]))
    return cuts, Surroundings(*(column[heads[order]] for column in found))


@njit(**KERNEL)
def gather(data, offsets, rows, begin, row, place, target, winnow, texts):  # type: ignore[no-untyped-def]
    """Copy the surroundings of anchors, the k-gram always at the same column.

    Args:
        rows: rows of the text buffers; the first is number `begin` of those that `row` counts.
        row, place: of the anchors to copy, sorted by row.
        target: row of `texts` for each of them.
        texts: ``(n, 2 * length - gram)`` uint8, filled.
    """
    reach = winnow.length - winnow.gram
    for i in range(row.shape[0]):
        first, end = offsets[rows[row[i] - begin]], offsets[rows[row[i] - begin] + 1]
        at = first + place[i]
        start, stop = max(first, at - reach), min(end, at + winnow.length)
        texts[target[i], start - at + reach : stop - at + reach] = data[start:stop]


@njit(**KERNEL)
def _equal(texts, a, b, start, stop):  # type: ignore[no-untyped-def]
    c, end = uint64(start), uint64(stop)
    while c < end and texts[a, c] == texts[b, c]:
        c += uint64(1)
    return c == end


@njit(**KERNEL)
def _windows(grams, texts, place, lengths, winnow, earlier, first, last):  # type: ignore[no-untyped-def]
    """For every anchor the windows with it that an earlier one of the same k-gram has too.

    Windows are compared offset by offset: equal ones have the k-gram at the same place. Together
    those of an anchor cover the bytes from `first` to `last` of the row; `earlier` is the anchor
    that had the leftmost of them, -1 where there is none.
    """
    length, gram = winnow.length, winnow.gram
    reach = length - gram
    power = power_of(length - 1)
    count = grams.shape[0]
    begin = 0
    while begin < count:
        stop = begin + 1
        while stop < count and grams[stop] == grams[begin]:
            stop += 1
        members = stop - begin
        room = 4
        while room < 2 * members:
            room *= 2
        mask = uint64(room - 1)
        table = np.full(room, -1, np.int64)
        hashes = np.zeros(members, np.uint64)
        started = np.zeros(members, np.bool_)
        match = np.full(members, -1, np.int64)
        for d in range(reach, -1, -1):  # the window begins d bytes before the k-gram
            column = reach - d
            for m in range(members):
                i = begin + m
                if d > place[i] or place[i] - d + length > lengths[i]:
                    match[m] = -1
                    continue
                h = hashes[m]
                if started[m]:
                    h -= uint64(texts[i, column - 1]) * power
                    h = h * uint64(0x9E3779B97F4A7C15) + uint64(texts[i, column + length - 1])
                else:
                    for c in range(column, column + length):
                        h = h * uint64(0x9E3779B97F4A7C15) + uint64(texts[i, c])
                    started[m] = True
                hashes[m] = h
                slot = (h ^ h >> uint64(32)) & mask
                now_matched = int64(-1)
                while True:
                    held = table[slot]
                    if held < 0 or held >> int64(32) != d:
                        table[slot] = int64(d) << int64(32) | int64(m)
                        break
                    other = int64(uint32(held))
                    if hashes[other] == h:
                        # What the window before has shown to be equal need not be compared again.
                        known = length - 1 if match[m] == other else 0
                        if _equal(texts, i, begin + other, column + known, column + length):
                            now_matched = other
                            break
                    slot = (slot + uint64(1)) & mask
                match[m] = now_matched
                if now_matched >= 0:
                    if earlier[i] < 0:
                        earlier[i] = begin + now_matched
                        first[i] = place[i] - d
                    last[i] = place[i] - d + length
        begin = stop


def partial_repeats(anchors: Surroundings, texts: Bytes, lengths: Int64s, winnow: Winnow) -> Cuts:
    """Bytes of anchors' surroundings that those of an earlier one have too.

    Args:
        anchors: together by k-gram and in canonical order.
        texts: their surroundings, as `gather` copies them.
        lengths: bytes of the row of each.
    """
    count = len(anchors.row)
    earlier = np.full(count, -1, np.int64)
    first, last = np.zeros(count, np.int64), np.zeros(count, np.int64)
    _windows(anchors.gram, texts, anchors.place, lengths, winnow, earlier, first, last)
    hit = earlier >= 0
    return Cuts(anchors.row[hit], first[hit], last[hit], anchors.row[earlier[hit]])


@njit(**KERNEL)
def _merge(row, start, stop, holder):  # type: ignore[no-untyped-def]
    """Join what overlaps or meets, in place; gives how many are left."""
    size = 0
    for i in range(row.shape[0]):
        if size and row[size - 1] == row[i] and start[i] <= stop[size - 1]:
            stop[size - 1] = max(stop[size - 1], stop[i])
        else:
            row[size], start[size], stop[size], holder[size] = row[i], start[i], stop[i], holder[i]
            size += 1
    return size


def merged(parts: list[Cuts], rank: Int64s) -> Cuts:
    """Cuts in order of row and start, joined where they overlap or meet.

    Args:
        rank: canonical place of every row of the table.
    """
    if not parts:
        return Cuts.none()
    row, start, stop, holder = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((rank[holder], stop, start, row))
    columns = [row[order], start[order], stop[order], holder[order]]
    size = _merge(*columns)
    return Cuts(*(column[:size].copy() for column in columns))
