"""Which rows are semantic duplicates of which: as SemDeDup has it, and greedily."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numba import njit, uint64

from tamis.selectors.budgets import draws
from tamis.selectors.clusters import Clusters, default_k, kmeans
from tamis.selectors.duplicates import Duplicates
from tamis.selectors.inner_products import Float32s, Float64s, similarities
from tamis.selectors.nearest import nearest
from tamis.selectors.similar_pairs import Bools, PairSearch
from tamis.selectors.survivors import (
    DROPPED,
    EDGES_PER_ROW,
    KEPT,
    UNDECIDED,
    Pairs,
    best_edges,
    row_starts,
)
from tamis.selectors.vectors import normalise
from tamis.storage.edges import Edges
from tamis.storage.grouping import counting_sort, first_with_pair
from tamis.storage.kernels import KERNEL, Int64s, UInt64s, fmix64, in_threads

#: Edges are kept this far below the threshold, so that it can be moved later.
EDGE_MARGIN = 0.1
#: Duplicates that a row asks for at first, the best-ranked, and when these did not decide it.
FIRST_STARS, MORE_STARS = 4, 64

#: Up to this many rows all pairs are compared, which takes seconds.
ALL_PAIRS = 1 << 15
#: Above, as many clusters are looked into as bring a row about so many comparisons: at 200,000
#: rows nine, which finds .99 of the pairs and more (docs/semantic-dedup.md).
COMPARISONS_A_ROW = 4096
LEAST_PROBES = 3

Progress = Callable[[int, int], None]


def search_effort(rows: int, k: int | None = None, probes: int | None = None) -> tuple[int, int]:
    """Clusters, and how many of them a row is compared with, where the user does not say.

    Example:
        >>> search_effort(10_000), search_effort(200_000), search_effort(5_000_000)
        ((1, 1), (447, 9), (2236, 3))
    """
    if k is None:
        k = 1 if rows <= ALL_PAIRS and probes is None else default_k(rows)
    if probes is None:
        # Half of the first cluster and all of the others, each of rows / k, from either side.
        probes = int(COMPARISONS_A_ROW * k / max(1, rows) + 0.5)
        probes = min(k, max(LEAST_PROBES, probes))
    return k, probes


@dataclass(frozen=True)
class SemanticDuplicates(Duplicates):
    """Duplicates by cosine similarity.

    Attributes:
        value: what decided about a dropped row: greedily the similarity to its partner, as
            published the highest similarity to an earlier row; nan for a kept row.
        threshold: the similarity from which rows were dropped; nan where `fraction` dropped none.
    """

    value: Float64s
    threshold: float


def semantic_duplicates(
    vectors: Float32s,
    threshold: float,
    *,
    k: int | None = None,
    probes: int | None = None,
    seed: int = 0,
    edge_floor: float | None = None,
    workers: int | None = None,
) -> SemanticDuplicates:
    """Find semantic duplicates among vectors held in memory; the first of a pair stays.

    Args:
        vectors: ``(n, d)``, of any length.
        threshold: cosine similarity of a duplicate.
        k: clusters; see `search_effort`, also for `probes`.
        probes: clusters that every row is compared with.
        edge_floor: smallest similarity reported as an edge; `threshold` - 0.1 if not given.
        workers: threads; all cores if not given.

    Example:
        >>> found = semantic_duplicates(np.array([[3, 0], [4, 1], [0, 2]], np.float32), 0.9)
        >>> found.kept.tolist(), found.partner.tolist()
        ([True, False, True], [-1, 0, -1])
    """
    workers = workers or len(os.sched_getaffinity(0))
    matrix = np.array(vectors, np.float32, order="C")
    normalise(matrix)
    position = np.arange(len(matrix), dtype=np.uint64)
    draw = draws(position, position, np.zeros(len(matrix), np.uint32), seed)
    k, probes = search_effort(len(matrix), k, probes)
    return greedy(
        matrix,
        kmeans(matrix, k, draw=draw, probes=probes, workers=workers),
        position.astype(np.int64),
        threshold,
        edge_floor=threshold - EDGE_MARGIN if edge_floor is None else edge_floor,
        workers=workers,
    )


def greedy(
    matrix: Float32s,
    clusters: Clusters,
    order: Int64s,
    threshold: float,
    *,
    edge_floor: float,
    workers: int = 1,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> SemanticDuplicates:
    """Keep the greedy maximal independent set of the similar pairs, in the order given.

    A row is dropped exactly if a row before it that stays is at least `threshold` similar and
    one of the two lies in a cluster that the other is compared with. Its partner is the most
    similar of those rows, the first of equals.

    Args:
        matrix: float32 ``(n, d)``, unit rows in canonical order.
        order: int64 ``(n,)``, rows from the best rank down.
        edge_floor: similarity down to which the `EDGES_PER_ROW` most similar earlier rows of
            every row are reported.
        folder: where edges may lie; the system's folder for temporary files if not given.
    """
    groups = _Groups.of(matrix, order, workers)
    search = PairSearch.of(matrix, clusters, groups.ranked)
    ask = partial(search, threshold, workers=workers)
    found = ask(edge_floor, stars=FIRST_STARS, edges=EDGES_PER_ROW, progress=progress)
    count = len(groups.ranked)
    state = np.zeros(count, np.uint8)
    _settle(state, row_starts(found.star_row, count), found.star_other, found.complete)
    compared, rounds = found.compared, 1
    while (state == UNDECIDED).any():
        more = ask(
            threshold,
            stars=MORE_STARS,
            edges=0,
            rows=state == UNDECIDED,
            others=state != DROPPED,
        )
        _settle(state, row_starts(more.star_row, count), more.star_other, more.complete)
        compared += more.compared
        rounds += 1
    kept: Bools = state == KEPT
    partners = _most_similar(found.edges, threshold, kept)
    unknown = ~kept
    unknown[partners.row] = False
    if unknown.any():
        rest = ask(threshold, stars=0, edges=1, rows=unknown, others=kept)
        compared += rest.compared
        partners = partners.joined(rest.edges)
    rows = len(matrix)
    partner, similarity = np.full(rows, -1, np.int64), np.full(rows, np.nan)
    partner[groups.ranked[partners.row]] = groups.ranked[partners.other]
    similarity[groups.ranked[partners.row]] = partners.value
    stays = partner[groups.stand_in] < 0
    partner[groups.collapsed] = np.where(stays, groups.stand_in, partner[groups.stand_in])
    similarity[groups.collapsed] = np.where(stays, 1.0, similarity[groups.stand_in])
    return SemanticDuplicates(
        partner < 0,
        partner,
        similarity,
        _stored(groups.edges(found.edges), folder),
        counts={
            **_sizes(clusters, groups),
            "compared_pairs": compared,
            "duplicate_pairs": found.duplicates,
            "rounds": rounds,
            "edges_left_out": found.near - len(found.edges.row),
        },
        value=similarity,
        threshold=threshold,
    )


def published(
    matrix: Float32s,
    clusters: Clusters,
    *,
    threshold: float | None = None,
    fraction: float | None = None,
    edge_floor: float = 0.0,
    workers: int = 1,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> SemanticDuplicates:
    """SemDeDup (Abbas et al. 2023, section 3 and the authors' code): drop by any earlier row.

    Rows are ordered from the least like their centroid to the most, ties by row_id. A row is
    dropped if its similarity to any row before it reaches the threshold, also if that row is itself
    dropped. Its partner is found by going on from the most similar earlier row until one stays:
    the similarity to it is exact, and may lie below the threshold.

    The paper drops above its threshold, here at it too, so that 1 means equal directions. With
    one probe only rows of the same cluster are compared, as in the paper.

    Args:
        fraction: share of rows to keep, in place of `threshold`: those with the lowest similarity
            to an earlier row; of equals those of smaller row_id. A row without an earlier one to
            compare with always stays.
        edge_floor: similarity down to which the most similar earlier row of every row is reported.
        folder: where edges may lie; the system's folder for temporary files if not given.
    """
    rows = len(matrix)
    order = np.lexsort((np.arange(rows), clusters.similarity)).astype(np.int64)
    groups = _Groups.of(matrix, order, workers)
    search = PairSearch.of(matrix, clusters, groups.ranked)
    limit = -1.0 if threshold is None else threshold
    floor = min(edge_floor, limit)
    found = search(limit, floor, stars=0, edges=1, workers=workers, progress=progress)
    edges = groups.edges(found.edges)
    value = np.full(rows, np.nan)
    earlier = np.arange(rows)
    row, other, how_similar = edges
    value[row], earlier[row] = how_similar, other
    met = np.flatnonzero(~np.isnan(value))
    lost = met[value[met] >= limit]
    if fraction is not None:
        most_redundant = lost[np.lexsort((-lost, -value[lost]))]
        lost = most_redundant[: rows - kept_rows(rows, fraction)]
        limit = float(value[lost].min()) if len(lost) else float("nan")
    lost.sort()
    kept: Bools = np.ones(rows, np.bool_)
    kept[lost] = False
    # Go on from row to earlier row until one stays: every step halves the way that is left.
    earlier[kept] = np.flatnonzero(kept)
    while not kept[earlier].all():
        earlier = earlier[earlier]
    partner, similarity = np.full(rows, -1, np.int64), np.full(rows, np.nan)
    partner[lost] = earlier[lost]
    similarity[lost] = similarities(matrix, lost, earlier[lost], workers)
    equal = (partner[groups.collapsed] == groups.stand_in).nonzero()
    similarity[groups.collapsed[equal]] = 1.0
    value[kept] = np.nan
    return SemanticDuplicates(
        kept,
        partner,
        similarity,
        _stored(edges, folder),
        counts={**_sizes(clusters, groups), "compared_pairs": found.compared},
        value=value,
        threshold=limit,
    )


def with_kept_partners(
    found: SemanticDuplicates, matrix: Float32s, clusters: Clusters, kept: Bools, workers: int
) -> SemanticDuplicates:
    """The same duplicates after more rows were dropped; each names a row that stays, or none.

    In place of a partner that was dropped comes the most similar row of the duplicate's cluster
    that stays, the first of equals, with its similarity.

    Args:
        kept: bool ``(n,)``, the rows that stay in the end.
    """
    partner, similarity = found.partner.copy(), found.similarity.copy()
    orphans = np.flatnonzero((partner >= 0) & ~kept[partner])
    partner[orphans], similarity[orphans] = -1, np.nan
    stays = np.flatnonzero(kept & matrix.any(axis=1))
    lone, lone_start = counting_sort(clusters.assignment[orphans], len(clusters))
    other, other_start = counting_sort(clusters.assignment[stays], len(clusters))
    for cluster in range(len(clusters)):
        mine = orphans[lone[lone_start[cluster] : lone_start[cluster + 1]]]
        theirs = stays[other[other_start[cluster] : other_start[cluster + 1]]]
        if len(mine) and len(theirs):
            near = nearest(matrix[mine], matrix[theirs], workers)
            partner[mine], similarity[mine] = theirs[near.row], near.similarity
    return replace(found, partner=partner, similarity=similarity)


def _stored(pairs: tuple[Int64s, Int64s, Float64s], folder: Path | None) -> Edges:
    edges = Edges(folder)
    edges.add(*pairs)
    return edges


def kept_rows(rows: int, fraction: float) -> int:
    """A share of rows as a number, rounded down."""
    return int(np.floor(rows * fraction + 1e-9))


@dataclass(frozen=True)
class _Groups:
    """Rows with equal vectors, of which the best-ranked speaks for all.

    Attributes:
        ranked: int64, rows that speak for themselves, from the best rank down. Zero vectors, which
            are similar to nothing, are not among them.
        collapsed: int64, all others but zero vectors, from the best rank down.
        stand_in: int64, the row that speaks for each of them.
        rows, zeros: rows in all, and zero vectors.
    """

    ranked: Int64s
    collapsed: Int64s
    stand_in: Int64s
    rows: int
    zeros: int

    @classmethod
    def of(cls, matrix: Float32s, order: Int64s, workers: int) -> "_Groups":
        high, low = _row_keys(matrix, workers)
        first = first_with_pair(high, low).astype(np.int64)
        best = np.full(len(matrix), -1, np.int64)
        best[first[order[::-1]]] = order[::-1]  # the best rank is written last
        usable = order[np.any(matrix, axis=1)[order]]
        speaks = best[first[usable]]
        alone = speaks == usable
        return cls(
            ranked=usable[alone],
            collapsed=usable[~alone],
            stand_in=speaks[~alone],
            rows=len(matrix),
            zeros=len(matrix) - len(usable),
        )

    def edges(self, found: Pairs) -> tuple[Int64s, Int64s, Float64s]:
        """Pairs of ranks as pairs of rows, and those of equal vectors."""
        return (
            np.concatenate([self.collapsed, self.ranked[found.row]]),
            np.concatenate([self.stand_in, self.ranked[found.other]]),
            np.concatenate([np.ones(len(self.collapsed)), found.value]),
        )


def _sizes(clusters: Clusters, groups: _Groups) -> dict[str, int]:
    sizes = np.bincount(clusters.assignment, minlength=1)
    return {
        "rows": groups.rows,
        "clusters": len(clusters),
        "largest_cluster": int(sizes.max()),
        "iterations": clusters.iterations,
        "equal_vectors": len(groups.collapsed),
        "zero_vectors": groups.zeros,
    }


@njit(**KERNEL)
def _settle(state, star_start, star_other, complete):  # type: ignore[no-untyped-def]
    """Decide in rank order what the stars decide."""
    for row in range(state.shape[0]):
        if state[row] != UNDECIDED:
            continue
        waits = False
        for star in range(star_start[row], star_start[row + 1]):
            held = state[star_other[star]]
            if held == KEPT:
                state[row] = DROPPED
                break
            waits |= held == UNDECIDED
        if state[row] == UNDECIDED and complete[row] and not waits:
            state[row] = KEPT


def _most_similar(edges: Pairs, threshold: float, kept: Bools) -> Pairs:
    """Of every dropped row's edges the best one to a row that stays."""
    return best_edges(
        edges.where((edges.value >= threshold) & kept[edges.other] & ~kept[edges.row]), 1
    )


@njit(**KERNEL)
def _hash_rows(bits, first, last, high, low):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        a, b = uint64(0x9E3779B97F4A7C15), uint64(0xC2B2AE3D27D4EB4F)
        for value in bits[row]:
            a = fmix64(a ^ uint64(value))
            b = fmix64(b + uint64(value) * uint64(0x9FB21C651E98DF25))
        high[row] = a
        low[row] = b


def _row_keys(matrix: Float32s, workers: int) -> tuple[UInt64s, UInt64s]:
    """128-bit hashes of the bytes of every row."""
    high, low = np.empty(len(matrix), np.uint64), np.empty(len(matrix), np.uint64)
    cuts = np.linspace(0, len(matrix), workers * 4 + 1).astype(np.int64)
    bits = matrix.view(np.uint32)
    in_threads(
        lambda cut: _hash_rows(bits, cut[0], cut[1], high, low), list(pairwise(cuts)), workers
    )
    return high, low
