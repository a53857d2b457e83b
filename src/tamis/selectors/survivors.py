"""Which of many near-duplicates stay: the greedy maximal independent set in rank order.

A row is dropped exactly if a better-ranked row that stays is its verified duplicate. The
comparisons that this takes are drawn in rounds. In the first two every undecided row asks for a
few of its best-ranked bucket mates only (star edges): a cluster of n copies so costs a few n
comparisons, not n**2 / 2. What is left then asks for all it needs, as many pairs a round as there
is room for; the pairs asked for are verified together, and what they decide is decided.

A bucket of thousands of rows that are not duplicates (documents of one template) would still be
quadratic. Where such a bucket stops deciding rows it is split by a further signature row, as if
its band were longer; splits are counted and reported.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from numba import int64, njit, uint16

from tamis.selectors.banding import Banding, Buckets, grouped
from tamis.selectors.jaccard import Float64s
from tamis.selectors.known_pairs import Verify
from tamis.storage.grouping import Int32s
from tamis.storage.kernels import KERNEL, Bytes, Int64s

UNDECIDED, KEPT, DROPPED = 0, 1, 2

#: Buckets above this size may be split; below it all comparisons are made.
OVERSIZED = 256
#: While stars are drawn, a row looks at this many mates a round in an oversized bucket.
REACH = 16
#: Rounds in which stars are drawn, and the pairs that a row may ask for in each of them.
STAR_ROUNDS, STAR_EDGES = 2, 4
#: After them, a component's oversized buckets are split once a round decides less than this share
#: of its rows that they hold up.
MIN_PROGRESS = 0.05
#: Pairs of a component that are verified in one round, for each row and at least.
PAIRS_PER_ROW, MIN_PAIRS = 4, 1 << 20

#: Edges kept of what one row asks for in one round: the most similar.
EDGES_PER_ROW = 8


class Pairs(NamedTuple):
    """Verified pairs of ranks, sorted by `row`; `other` is the better one."""

    row: Int32s
    other: Int32s
    value: Float64s

    @classmethod
    def none(cls) -> Self:
        return cls(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float64))

    def where(self, mask: npt.NDArray[np.bool_]) -> Self:
        return type(self)(self.row[mask], self.other[mask], self.value[mask])

    def joined(self, more: Self) -> Self:
        """These and more, sorted again."""
        if not len(self.row):
            return more
        row = np.concatenate([self.row, more.row])
        order = np.argsort(row, kind="stable")
        other = np.concatenate([self.other, more.other])
        value = np.concatenate([self.value, more.value])
        return type(self)(row[order], other[order], value[order])


@njit(**KERNEL)
def _best_of_rows(row, other, value, limit, best):  # type: ignore[no-untyped-def]
    """Mark of every row's run of pairs the `limit` most similar, the better-ranked of equals."""
    chosen = np.empty(limit, np.int64)
    begin = 0
    while begin < row.shape[0]:
        end = begin
        count = 0
        while end < row.shape[0] and row[end] == row[begin]:
            place = count
            while place > 0 and (
                value[end] > value[chosen[place - 1]]
                or (
                    value[end] == value[chosen[place - 1]] and other[end] < other[chosen[place - 1]]
                )
            ):
                if place < limit:
                    chosen[place] = chosen[place - 1]
                place -= 1
            if place < limit:
                chosen[place] = end
                count = min(count + 1, limit)
            end += 1
        for i in range(count):
            best[chosen[i]] = True
        begin = end


def best_edges(pairs: Pairs, limit: int) -> Pairs:
    best = np.zeros(len(pairs.row), np.bool_)
    _best_of_rows(*pairs, limit, best)
    return pairs.where(best)


class Survival(NamedTuple):
    """Outcome by rank: `partner` is the rank of the row that stays (-1 where none)."""

    kept: npt.NDArray[np.bool_]
    partner: Int32s
    similarity: Float64s
    edges: Pairs
    edges_left_out: int
    verified: int
    rounds: int
    splits: int


@njit(**KERNEL)
def _estimate(sketch, a, b):  # type: ignore[no-untyped-def]
    """Equal places of two sketches."""
    equal = uint16(0)
    left, right = sketch[a], sketch[b]
    for k in range(sketch.shape[1]):
        equal = uint16(equal + uint16(left[k] == right[k]))
    return int64(equal)


@njit(**KERNEL)
def _round(  # type: ignore[no-untyped-def]
    state,
    partner,
    similarity,
    sketch,
    min_equal,
    row_start,
    entry_bucket,
    bucket_start,
    members,
    seen,
    component,
    room,
    split,
    known_start,
    known_other,
    known_value,
    threshold,
    quota,
    wanted_row,
    wanted_other,
    decided,
    held_up,
):
    """Decide what can be decided in rank order; list the pairs that must be verified first.

    Returns the number of pairs wanted. Counts by component in `decided` the rows that are, in
    `held_up` those that an oversized bucket holds up.
    """
    wanted = 0
    asked = np.zeros(room.shape[0], np.int64)
    met = np.full(state.shape[0], -1, np.int32)  # the last row that knows or asks for this one
    for row in range(state.shape[0]):
        if state[row] != UNDECIDED:
            continue
        group = component[row]
        if asked[group] == room[group]:
            continue
        waits = False
        for edge in range(known_start[row], known_start[row + 1]):
            other = known_other[edge]
            met[other] = row
            if known_value[edge] < threshold:
                continue
            if state[other] == KEPT:
                # Best similarity, then best rank, among the verified partners that stay.
                better = known_value[edge] > similarity[row]
                if better or (known_value[edge] == similarity[row] and other < partner[row]):
                    partner[row] = other
                    similarity[row] = known_value[edge]
            elif state[other] == UNDECIDED:
                waits = True
        if partner[row] >= 0:
            state[row] = DROPPED
            decided[group] += 1
            continue
        if waits:
            continue
        limit = wanted + min(quota, room[group] - asked[group])
        first_wanted = wanted
        cut_short = False
        for entry in range(row_start[row], row_start[row + 1]):
            bucket = entry_bucket[entry]
            begin, end = bucket_start[bucket], bucket_start[bucket + 1]
            oversized = end - begin > OVERSIZED and not split[group]
            at = begin + seen[entry]
            settled = True
            looked = 0
            while at < end and wanted < limit:
                other = members[at]
                if other >= row:
                    break
                if state[other] != DROPPED:
                    if oversized and looked == REACH:
                        cut_short = True
                        break
                    looked += 1
                    if met[other] != row and _estimate(sketch, row, other) >= min_equal:
                        met[other] = row
                        wanted_row[wanted] = row
                        wanted_other[wanted] = other
                        wanted += 1
                        settled = False
                at += 1
                if settled:
                    seen[entry] = at - begin
        asked[group] += wanted - first_wanted
        if cut_short:
            held_up[group] += 1
        elif wanted == first_wanted:
            state[row] = KEPT
            decided[group] += 1
    return wanted


def _split(
    buckets: Buckets,
    seen: Int32s,
    state: Bytes,
    sketch: Bytes,
    banding: Banding,
    stuck: npt.NDArray[np.bool_],
) -> tuple[Buckets, Int32s, int]:
    """Split the oversized buckets of some rows by their next signature rows.

    That goes on until a bucket is small or the rows of a signature run out.

    Args:
        stuck: by rank, the rows of the components whose buckets are to be split.

    Returns:
        The new buckets, how much of each is seen, and the number of splits.
    """
    stuck_entry = stuck[buckets.entry_row]
    live = ~stuck_entry | (state[buckets.entry_row] != DROPPED)
    stuck_entry = stuck_entry[live]
    entry_row, entry_bucket = buckets.entry_row[live], buckets.entry_bucket[live]
    seen = np.where(stuck_entry, 0, seen[live]).astype(np.int32)
    band = buckets.band
    of_stuck = np.zeros(len(band), np.bool_)
    of_stuck[entry_bucket[stuck_entry]] = True
    depth = np.zeros(len(band), np.int16)
    columns = sketch.shape[1]
    splits = 0
    while True:
        sizes = np.bincount(entry_bucket, minlength=len(band))
        over = (sizes > OVERSIZED) & (depth < columns - banding.rows) & of_stuck
        inside = over[entry_bucket]
        if not inside.any():
            break
        splits += int(over.sum())
        old = entry_bucket[inside]
        column = (band[old].astype(np.int64) * banding.rows + banding.rows + depth[old]) % columns
        value = sketch[entry_row[inside], column].astype(np.int64)
        distinct, name = np.unique(old.astype(np.int64) * 256 + value, return_inverse=True)
        parent = distinct // 256
        entry_bucket = entry_bucket.copy()
        entry_bucket[inside] = len(band) + name
        band = np.concatenate([band, band[parent]])
        depth = np.concatenate([depth, depth[parent] + np.int16(1)])
        of_stuck = np.concatenate([of_stuck, of_stuck[parent]])
    used, renamed = np.unique(entry_bucket, return_inverse=True)
    # Memberships are in order of rows already, so that what is seen stays beside them.
    return grouped(entry_row, renamed.astype(np.int32), band[used], len(state)), seen, splits


def survivors(
    buckets: Buckets,
    component: Int32s,
    sketch: Bytes,
    verify: Verify,
    *,
    banding: Banding,
    threshold: float,
    edge_floor: float,
    progress: Callable[[int, int], None] | None = None,
) -> Survival:
    """Keep the greedy maximal independent set of the verified candidate graph.

    Args:
        buckets: shared buckets, rows numbered by rank (0 is best).
        component: number of every row's component, from 0: rows of different components share no
            bucket. What is decided in one does not depend on the others.
        sketch: ``(rows, num_perm)`` uint8, low bytes of the signatures (b-bit MinHash, Li and
            König 2010). It may only reject a pair.
        verify: exact similarity of pairs of ranks, sorted by the first.
        threshold: Jaccard similarity from which two rows are duplicates.
        edge_floor: verified pairs down to this similarity are returned as edges, for each row
            and round the `EDGES_PER_ROW` most similar.
        progress: called with rows decided and rows in all.
    """
    rows = len(sketch)
    min_equal = least_equal(sketch.shape[1], threshold)
    state = np.zeros(rows, np.uint8)
    partner = np.full(rows, -1, np.int32)
    similarity = np.zeros(rows, np.float64)
    known = Pairs.none()
    edges = [known]
    size = np.bincount(component)
    room = np.maximum(PAIRS_PER_ROW * size, MIN_PAIRS)
    at_once = int(np.minimum(_pairs_in(buckets, component, len(size)), room).sum())
    wanted_row, wanted_other = np.empty(at_once, np.int32), np.empty(at_once, np.int32)
    seen = np.zeros(len(buckets.entry_row), np.int32)
    row_start = row_starts(buckets.entry_row, rows)
    split = np.zeros(len(size), np.bool_)
    rounds = splits = done = verified = left_out = 0
    while done < rows:
        rounds += 1
        decided, held_up = np.zeros(len(size), np.int64), np.zeros(len(size), np.int64)
        wanted = _round(
            state,
            partner,
            similarity,
            sketch,
            min_equal,
            row_start,
            buckets.entry_bucket,
            buckets.start,
            buckets.members,
            seen,
            component,
            room,
            split,
            row_starts(known.row, rows),
            known.other,
            known.value,
            threshold,
            STAR_EDGES if rounds <= STAR_ROUNDS else at_once,
            wanted_row,
            wanted_other,
            decided,
            held_up,
        )
        done += int(decided.sum())
        verified += wanted
        if progress is not None:
            progress(done, rows)
        left, right = wanted_row[:wanted].copy(), wanted_other[:wanted].copy()
        found = Pairs(left, right, verify(left, right))
        near = found.where(found.value >= edge_floor)
        edges.append(best_edges(near, EDGES_PER_ROW))
        left_out += len(near.row) - len(edges[-1].row)
        # What an undecided row knows must be remembered, so that it does not ask again.
        known = known.where(state[known.row] == UNDECIDED).joined(found)
        stuck = ~split & (decided < MIN_PROGRESS * held_up)
        if rounds > STAR_ROUNDS and stuck.any():
            buckets, seen, more = _split(buckets, seen, state, sketch, banding, stuck[component])
            row_start = row_starts(buckets.entry_row, rows)
            split |= stuck
            splits += more
    row, other, value = (np.concatenate(part) for part in zip(*edges, strict=True))
    stored = Pairs(row, other, value)
    return Survival(state == KEPT, partner, similarity, stored, left_out, verified, rounds, splits)


def _pairs_in(buckets: Buckets, component: Int32s, components: int) -> Int64s:
    """By component, the pairs in its buckets: no more can be asked for."""
    size = np.diff(buckets.start)
    of_bucket = component[buckets.members[buckets.start[:-1]]]
    pairs = np.bincount(of_bucket, size * (size - 1) / 2, components)
    return pairs.astype(np.int64)


def least_equal(num_perm: int, threshold: float) -> int:
    """Equal places below which a sketch clearly rejects a pair.

    That is 4.5 standard deviations below what a pair at the threshold has: one in 300,000 has
    less. Equal low bytes of different values only add to the count.
    """
    spread = np.sqrt(threshold * (1 - threshold) * num_perm)
    return int(np.floor(threshold * num_perm - 4.5 * spread))


def row_starts(rows_of: Int32s, rows: int) -> Int64s:
    """Where each row's run begins in a sorted list of rows, and the length last."""
    start: Int64s = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(rows_of, minlength=rows), out=start[1:])
    return start
