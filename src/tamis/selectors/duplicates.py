"""From signatures to survivors: the near-duplicate search over whole columns."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numba import njit, uint64

from tamis.scoring.minhash import Signatures
from tamis.scoring.shingles import ShingleSets
from tamis.selectors.banding import Banding, Buckets, bucket_lists, shared_buckets
from tamis.selectors.jaccard import Float64s, exact_jaccard
from tamis.selectors.known_pairs import KnownPairs, Verify, foresee, remembering
from tamis.selectors.survivors import Survival, sketch_of, survivors
from tamis.storage.grouping import Int32s, first_with_pair
from tamis.storage.kernels import KERNEL, Bytes, Int64s, UInt64s, fmix64, in_threads

#: Shingles whose sets are held at a time while pairs are verified (8 bytes each).
SHINGLES_AT_ONCE = 1 << 26

#: Gives the shingle sets of the rows asked for (ascending positions).
SetSource = Callable[[Int64s], ShingleSets]


@dataclass(frozen=True)
class Duplicates:
    """What was found; rows are numbered as they came in.

    Attributes:
        kept: rows that stay.
        partner: for a dropped row, the row that stays in its place; -1 for a kept row.
        similarity: exact Jaccard similarity to the partner; nan for a kept row.
        edge_row, edge_other, edge_similarity: verified pairs down to the edge floor (the most
            similar of each row); `edge_row` ranks below `edge_other`.
        counts: rows, equal sets, candidate rows, verified pairs, rounds, bucket splits, and
            pairs down to the edge floor that are not among the edges.
    """

    kept: npt.NDArray[np.bool_]
    partner: Int64s
    similarity: Float64s
    edge_row: Int64s
    edge_other: Int64s
    edge_similarity: Float64s
    counts: dict[str, int]


@dataclass(frozen=True)
class Ranking:
    """Which of two duplicates stays: higher `value` first, ties by id, then by copy.

    `value` is float64 (nan ranks last); `id_hi`, `id_lo` are uint64, `copy` any integer.
    """

    value: Float64s
    id_hi: UInt64s
    id_lo: UInt64s
    copy: npt.NDArray[np.integer]

    def order(self, rows: Int64s) -> Int64s:
        """`rows` sorted from the best rank down."""
        value = self.value[rows]
        worst = np.isnan(value)
        keys = (self.copy[rows], self.id_lo[rows], self.id_hi[rows], -np.where(worst, 0, value))
        return rows[np.lexsort((*keys, worst))]


@njit(**KERNEL)
def _signature_hashes(signatures, first, last, result):  # type: ignore[no-untyped-def]
    for d in range(first, last):
        h = uint64(0)
        for value in signatures[d]:
            h = fmix64(h ^ uint64(value))
        result[d] = h


def _collapse(found: Signatures, ranking: Ranking, workers: int) -> tuple[Int64s, Int64s, Int64s]:
    """Rows with equal shingle multisets: (those left, those collapsed, what stands for them).

    Equality is of 128 bits over signature and multiset, together with the number of shingles.
    """
    rows = len(found.matrix)
    high = np.empty(rows, np.uint64)
    edges = np.linspace(0, rows, workers * 4 + 1).astype(np.int64)
    in_threads(
        lambda cut: _signature_hashes(found.matrix, cut[0], cut[1], high),
        list(pairwise(edges)),
        workers,
    )
    first = first_with_pair(high, found.multiset + found.shingles.astype(np.uint64)).astype(
        np.int64
    )
    everyone = np.arange(rows, dtype=np.int64)
    repeats = np.flatnonzero(first != everyone)
    if len(repeats) == 0:
        return everyone, repeats, repeats
    several = np.zeros(rows, np.bool_)
    several[repeats] = True
    several[first[repeats]] = True
    by_rank = ranking.order(np.flatnonzero(several))
    best = np.full(rows, -1, np.int64)
    best[first[by_rank[::-1]]] = by_rank[::-1]  # the best rank is written last
    stands_for = np.where(several, best[first], everyone)
    collapsed = np.flatnonzero(stands_for != everyone)
    left = np.flatnonzero(stands_for == everyone)
    return left, collapsed, stands_for[collapsed]


def _verifier(ranked: Int64s, counts: Int64s, sets_of: SetSource, workers: int) -> Verify:
    """Exact similarity of pairs of ranks, in blocks that bound the sets in memory."""

    def verify(left: Int32s, right: Int32s) -> Float64s:
        values = np.empty(len(left), np.float64)
        again = np.zeros(len(left), np.bool_)
        again[1:] = left[1:] == left[:-1]
        cost = np.cumsum(counts[ranked[right]] + np.where(again, 0, counts[ranked[left]]))
        begin = 0
        while begin < len(left):
            spent = cost[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(cost, spent + SHINGLES_AT_ONCE)))
            block = slice(begin, end)
            a, b = ranked[left[block]], ranked[right[block]]
            needed = np.zeros(len(counts), np.bool_)
            needed[a] = needed[b] = True
            place = np.cumsum(needed) - 1
            sets = sets_of(np.flatnonzero(needed))
            values[block] = exact_jaccard(sets, place[a], place[b], workers)
            begin = end
        return values

    return verify


@dataclass(frozen=True)
class Candidates:
    """What signatures say: rows with equal sets, and rows that share a bucket with another.

    Signatures are not needed any more; the caller may let go of them.
    """

    collapsed: Int64s
    stand_in: Int64s
    ranked: Int64s
    buckets: Buckets
    sketch: Bytes
    banding: Banding
    counts: Int64s

    @classmethod
    def find(
        cls, found: Signatures, ranking: Ranking, banding: Banding, workers: int = 1
    ) -> "Candidates":
        """Collapse equal sets, band the rest, and bring what is left into rank order."""
        left, collapsed, stand_in = _collapse(found, ranking, workers)
        shared = shared_buckets(found.matrix, left, banding, workers)
        candidate = np.zeros(len(left), np.bool_)
        for members, _ in shared:
            candidate[members] = True
        ranked = ranking.order(left[candidate])
        place = np.full(len(found.matrix), -1, np.int32)
        place[ranked] = np.arange(len(ranked), dtype=np.int32)
        buckets = bucket_lists(shared, place[left], len(ranked))
        sketch = sketch_of(found.matrix, ranked)
        return cls(collapsed, stand_in, ranked, buckets, sketch, banding, found.shingles)


def decide(
    candidates: Candidates,
    sets_of: SetSource,
    *,
    threshold: float,
    edge_floor: float,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    known: tuple[KnownPairs, Int64s] | None = None,
) -> Duplicates:
    """Verify candidates and say who survives.

    Args:
        sets_of: shingle sets of given rows, for exact similarities.
        threshold: exact Jaccard similarity from which two rows are duplicates.
        edge_floor: smallest similarity of a pair that is reported as an edge.
        known: pairs compared before, and the position in the corpus of every row. It changes how
            much is compared, not what is found.
    """
    ranked, collapsed, stand_in = candidates.ranked, candidates.collapsed, candidates.stand_in
    verify = _verifier(ranked, candidates.counts, sets_of, workers)

    def run(verify: Verify) -> Survival:
        return survivors(
            candidates.buckets,
            candidates.sketch,
            verify,
            banding=candidates.banding,
            threshold=threshold,
            edge_floor=edge_floor,
            progress=progress,
        )

    if known is not None:
        pairs, positions = known[0], known[1][ranked]
        verify = remembering(verify, pairs, positions)
        verify(*foresee(run, candidates.sketch, pairs, positions, threshold))
    outcome = run(verify)
    rows = len(candidates.counts)
    kept = np.ones(rows, np.bool_)
    partner = np.full(rows, -1, np.int64)
    similarity = np.full(rows, np.nan)
    kept[ranked] = outcome.kept
    lost = ~outcome.kept
    partner[ranked[lost]] = ranked[outcome.partner[lost]]
    similarity[ranked[lost]] = outcome.similarity[lost]
    kept[collapsed] = False
    stays = kept[stand_in]
    partner[collapsed] = np.where(stays, stand_in, partner[stand_in])
    similarity[collapsed] = np.where(stays, 1.0, similarity[stand_in])
    a, b, value = outcome.edges
    return Duplicates(
        kept=kept,
        partner=partner,
        similarity=similarity,
        edge_row=np.concatenate([collapsed, ranked[a]]),
        edge_other=np.concatenate([stand_in, ranked[b]]),
        edge_similarity=np.concatenate([np.ones(len(collapsed)), value]),
        counts={
            "rows": rows,
            "equal_sets": len(collapsed),
            "candidates": len(ranked),
            "verified_pairs": outcome.verified,
            "rounds": outcome.rounds,
            "bucket_splits": outcome.splits,
            "edges_left_out": outcome.edges_left_out,
        },
    )
