"""Which of many near-duplicates stay: the greedy maximal independent set in rank order.

A row is dropped exactly if a better-ranked row that stays is its verified duplicate. The
comparisons that this takes are drawn in rounds: every undecided row asks for its best-ranked
bucket mates first (star edges), the pairs asked for are verified together, what they decide is
decided, and the rest asks again. A cluster of n copies thus costs n comparisons, not n**2 / 2.

A bucket of thousands of rows that are not duplicates (documents of one template) would still be
quadratic. Where such a bucket stops deciding rows it is split by a further signature row, as if
its band were longer; splits are counted and reported.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import int64, njit, uint16

from tamis.selectors.banding import Banding, Buckets, grouped
from tamis.selectors.jaccard import Float64s
from tamis.storage.grouping import Int32s
from tamis.storage.kernels import KERNEL, Bytes, Int64s

UNDECIDED, KEPT, DROPPED = 0, 1, 2

#: Buckets above this size may be split; below it all comparisons are made.
OVERSIZED = 256
#: In an oversized bucket a row looks at this many mates a round.
REACH = 16
#: An oversized bucket is split once a round decides less than this share of the undecided rows.
MIN_PROGRESS = 0.05

#: Pairs a row asks for in the first round; each further round asks for as many times more, up to
#: the maximum. Rounds cost a reading of the texts, comparisons little.
FIRST_QUOTA, MAX_QUOTA = 4, 64

Verify = Callable[[Int64s, Int64s], Float64s]


class Survival(NamedTuple):
    """Outcome by rank: `partner` is the rank of the row that stays (-1 where none)."""

    kept: npt.NDArray[np.bool_]
    partner: Int32s
    similarity: Float64s
    edges: tuple[Int32s, Int32s, Float64s]
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
    cursor,
    known_head,
    known_next,
    known_other,
    known_value,
    threshold,
    quota,
    wanted_row,
    wanted_other,
):
    """Decide what can be decided in rank order; list the pairs that must be verified first.

    Returns the number of pairs wanted, rows decided, and rows held up by an oversized bucket.
    """
    wanted = 0
    decided = 0
    held_up = 0
    for row in range(state.shape[0]):
        if state[row] != UNDECIDED:
            continue
        waits = False
        edge = known_head[row]
        while edge >= 0:
            other = known_other[edge]
            if known_value[edge] >= threshold:
                if state[other] == KEPT:
                    # Best similarity, then best rank, among the verified partners that stay.
                    better = known_value[edge] > similarity[row]
                    if better or (known_value[edge] == similarity[row] and other < partner[row]):
                        partner[row] = other
                        similarity[row] = known_value[edge]
                elif state[other] == UNDECIDED:
                    waits = True
            edge = known_next[edge]
        if partner[row] >= 0:
            state[row] = DROPPED
            decided += 1
            continue
        if waits:
            continue
        first_wanted = wanted
        cut_short = False
        for entry in range(row_start[row], row_start[row + 1]):
            bucket = entry_bucket[entry]
            end = bucket_start[bucket + 1]
            oversized = end - bucket_start[bucket] > OVERSIZED
            at = cursor[entry]
            settled = True
            looked = 0
            while at < end:
                other = members[at]
                if other >= row:
                    break
                if state[other] != DROPPED:
                    if oversized and looked == REACH:
                        cut_short = True
                        break
                    looked += 1
                    if _estimate(sketch, row, other) >= min_equal:
                        known = False
                        edge = known_head[row]
                        while edge >= 0:
                            if known_other[edge] == other:
                                known = True
                                break
                            edge = known_next[edge]
                        if not known:
                            asked = False
                            for w in range(first_wanted, wanted):
                                if wanted_other[w] == other:
                                    asked = True
                                    break
                            if not asked:
                                wanted_row[wanted] = row
                                wanted_other[wanted] = other
                                wanted += 1
                            settled = False
                at += 1
                if settled:
                    cursor[entry] = at
                if wanted - first_wanted >= quota:
                    break
            if wanted - first_wanted >= quota:
                break
        if wanted == first_wanted:
            if cut_short:
                held_up += 1
            else:
                state[row] = KEPT
                decided += 1
        if wanted + quota > wanted_row.shape[0]:
            break
    return wanted, decided, held_up


def _split(buckets: Buckets, state: Bytes, sketch: Bytes, banding: Banding) -> tuple[Buckets, int]:
    """Split every oversized bucket by its next signature rows until it is small or they run out.

    Returns the new buckets and the number of splits.
    """
    live = state[buckets.entry_row] != DROPPED
    entry_row, entry_bucket = buckets.entry_row[live], buckets.entry_bucket[live]
    band = buckets.band
    depth = np.zeros(len(band), np.int16)
    columns = sketch.shape[1]
    splits = 0
    while True:
        sizes = np.bincount(entry_bucket, minlength=len(band))
        over = (sizes > OVERSIZED) & (depth < columns - banding.rows)
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
    used, renamed = np.unique(entry_bucket, return_inverse=True)
    return grouped(entry_row, renamed.astype(np.int32), band[used], len(state)), splits


def survivors(
    buckets: Buckets,
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
        sketch: ``(rows, num_perm)`` uint8, low bytes of the signatures (b-bit MinHash, Li and
            König 2010). It may only reject a pair: three standard deviations under `edge_floor`.
        verify: exact similarity of pairs of ranks.
        threshold: Jaccard similarity from which two rows are duplicates.
        edge_floor: verified pairs down to this similarity are returned as edges.
        progress: called with rows decided and rows in all.
    """
    rows, num_perm = sketch.shape
    floor = min(edge_floor, threshold)
    spread = np.sqrt(floor * (1 - floor) * num_perm)
    min_equal = int(np.floor(floor * num_perm - 3 * spread))
    state = np.zeros(rows, np.uint8)
    partner = np.full(rows, -1, np.int32)
    similarity = np.zeros(rows, np.float64)
    known_head = np.full(rows, -1, np.int64)
    known_next = np.zeros(0, np.int64)
    known_row, known_other = np.zeros(0, np.int32), np.zeros(0, np.int32)
    known_value = np.zeros(0, np.float64)
    room = max(4 * rows, 1 << 16)
    wanted_row, wanted_other = np.empty(room, np.int32), np.empty(room, np.int32)
    cursor = _cursors(buckets)
    row_start = np.searchsorted(buckets.entry_row, np.arange(rows + 1)).astype(np.int64)
    rounds = splits = done = 0
    quota = FIRST_QUOTA
    while done < rows:
        rounds += 1
        wanted, decided, held_up = _round(
            state,
            partner,
            similarity,
            sketch,
            min_equal,
            row_start,
            buckets.entry_bucket,
            buckets.start,
            buckets.members,
            cursor,
            known_head,
            known_next,
            known_other,
            known_value,
            threshold,
            quota,
            wanted_row,
            wanted_other,
        )
        done += decided
        if progress is not None:
            progress(done, rows)
        if wanted:
            left, right = wanted_row[:wanted].copy(), wanted_other[:wanted].copy()
            values = verify(left.astype(np.int64), right.astype(np.int64))
            base = len(known_value)
            known_row = np.concatenate([known_row, left])
            known_other = np.concatenate([known_other, right])
            known_value = np.concatenate([known_value, values])
            known_next = np.concatenate([known_next, np.zeros(wanted, np.int64)])
            _link(known_head, known_next, left, base)
        stuck = rounds > 2 and decided < MIN_PROGRESS * held_up
        if stuck and not splits:
            buckets, splits = _split(buckets, state, sketch, banding)
            cursor = _cursors(buckets)
            row_start = np.searchsorted(buckets.entry_row, np.arange(rows + 1)).astype(np.int64)
        quota = min(FIRST_QUOTA * quota, MAX_QUOTA)
    edge = known_value >= edge_floor
    edges = (known_row[edge], known_other[edge], known_value[edge])
    return Survival(state == KEPT, partner, similarity, edges, len(known_value), rounds, splits)


def _cursors(buckets: Buckets) -> Int64s:
    return buckets.start[:-1][buckets.entry_bucket].copy()


@njit(**KERNEL)
def _link(head, following, rows, base):  # type: ignore[no-untyped-def]
    """Chain new known pairs to their row."""
    for i in range(rows.shape[0]):
        following[base + i] = head[rows[i]]
        head[rows[i]] = base + i


def sketch_of(signatures: npt.NDArray[np.uint32]) -> Bytes:
    """The low byte of every signature value."""
    return (signatures & np.uint32(255)).astype(np.uint8)
