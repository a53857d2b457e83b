"""Which rows of a matrix are similar: within and between neighbouring clusters, and by all pairs.

Rows are numbered by rank, 0 the best. A row is compared with the better-ranked rows of the
clusters nearest to it, and with those that have its own cluster among their nearest: a pair is met
if either of the two reaches the other's cluster. Blocks of matrix products say which pairs may be
near enough; those get an exact inner product, which alone decides.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from tamis.selectors.clusters import Clusters
from tamis.selectors.inner_products import (
    Float32s,
    Float64s,
    exact_similarity,
    one_blas_thread,
    slack,
)
from tamis.selectors.survivors import Pairs, best_edges
from tamis.storage.grouping import Int32s, counting_sort
from tamis.storage.kernels import KERNEL, Int64s, in_threads

Bools = npt.NDArray[np.bool_]

#: Rows that one piece of work asks for, and how many of them a matrix product takes at a time.
ROWS_A_JOB, ROWS_AT_ONCE = 2048, 256
#: Rows that they are compared with at a time.
OTHERS_AT_ONCE = 4096
#: Rows asked for between two clearings of what was found: bounds the memory of unsorted pairs.
ROWS_A_ROUND = 1 << 20


class Found(NamedTuple):
    """What a search gives about the rows that were asked for.

    Attributes:
        star_row, star_other: duplicates of a row, the best-ranked of each piece of work; sorted
            by row.
        complete: bool ``(n,)``, whether the stars of a row are all of its duplicates.
        edges: the most similar pairs of every row down to the floor, with exact similarity.
        duplicates: pairs at least as similar as the threshold.
        near: pairs at least as similar as the floor.
        compared: pairs whose similarity was estimated.
    """

    star_row: Int32s
    star_other: Int32s
    complete: Bools
    edges: Pairs
    duplicates: int
    near: int
    compared: int


class _Job(NamedTuple):
    rows: Int32s
    others: Int32s
    back: bool


@dataclass(frozen=True)
class PairSearch:
    """Rows by rank, and the clusters that say where to look.

    Attributes:
        matrix: float32 ``(m, d)``, unit rows.
        ranked: int64 ``(n,)``, rows of the matrix from the best rank down.
        own: int32 ``(n,)``, cluster of every ranked row.
        nearest: int32 ``(n, probes)``, the clusters it looks into; its own comes first.
        clusters: how many there are.
    """

    matrix: Float32s
    ranked: Int64s
    own: Int32s
    nearest: Int32s
    clusters: int

    @classmethod
    def of(cls, matrix: Float32s, clusters: Clusters, ranked: Int64s) -> "PairSearch":
        own, nearest = clusters.assignment[ranked], clusters.nearest[ranked]
        return cls(matrix, ranked, own, nearest, len(clusters))

    def __call__(
        self,
        threshold: float,
        floor: float,
        *,
        stars: int,
        edges: int,
        rows: Bools | None = None,
        others: Bools | None = None,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Found:
        """Similar pairs of rows and better-ranked others.

        Args:
            threshold: similarity of a duplicate.
            floor: similarity of an edge; at most `threshold`.
            stars: duplicates listed for a row in every piece of work, the best-ranked.
            edges: edges listed for a row, the most similar; ties by rank.
            rows: the ranks that are asked for; all if not given.
            others: the ranks that they are compared with; all if not given.
            progress: called with rows compared and rows to compare.
        """
        count = len(self.ranked)
        jobs = list(self._jobs(_ranks(rows, count), _ranks(others, count)))
        complete: Bools = np.ones(count, np.bool_)
        found_edges = Pairs.none()
        star_row, star_other = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        totals = np.zeros(3, np.int64)

        def work(job: _Job) -> _Piece:
            return self._compare(job, threshold, floor, stars, edges)

        todo = sum(len(job.rows) for job in jobs)
        done = 0
        with one_blas_thread():
            for batch in _rounds(jobs):
                pieces = in_threads(work, batch, workers)
                for piece in pieces:
                    star_row.append(piece.star_row)
                    star_other.append(piece.star_other)
                    complete[piece.cut_short] = False
                    totals += piece.totals
                if edges:
                    found_edges = best_edges(found_edges.joined(_sorted(pieces)), edges)
                done += sum(len(job.rows) for job in batch)
                if progress is not None:
                    progress(done, todo)
        row, other = np.concatenate(star_row), np.concatenate(star_other)
        order = np.argsort(row, kind="stable")
        duplicates, near, compared = map(int, totals)
        return Found(row[order], other[order], complete, found_edges, duplicates, near, compared)

    def _jobs(self, rows: Int32s, others: Int32s) -> Iterator[_Job]:
        """Pieces of work: rows that look into a cluster, then rows of it that are looked at."""
        looking = _lists(rows, self.nearest, self.clusters)
        asked = _lists(rows, self.own[:, None], self.clusters)
        inside = _lists(others, self.own[:, None], self.clusters)
        outside = _lists(others, self.nearest[:, 1:], self.clusters)
        for cluster in range(self.clusters):
            yield from _cut(looking(cluster), inside(cluster), False)
            yield from _cut(asked(cluster), outside(cluster), True)

    def _compare(
        self, job: _Job, threshold: float, floor: float, stars: int, edges: int
    ) -> "_Piece":
        lists = _RowLists.room_for(len(job.rows), stars, edges)
        x = self.matrix[self.ranked[job.rows]]
        margin = slack(x.shape[1])
        compared = 0
        for begin in range(0, len(job.others), OTHERS_AT_ONCE):
            others = job.others[begin : begin + OTHERS_AT_ONCE]
            first = int(np.searchsorted(job.rows, others[0], side="right"))
            if first == len(job.rows):
                break  # none of them ranks better than any row
            y = self.matrix[self.ranked[others]]
            for at in range(first, len(job.rows), ROWS_AT_ONCE):
                block = slice(at, min(at + ROWS_AT_ONCE, len(job.rows)))
                better = int(np.searchsorted(others, job.rows[block.stop - 1]))
                compared += (block.stop - at) * better
                _collect(
                    x[block] @ y[:better].T,
                    job.rows[block],
                    others[:better],
                    x[block],
                    y[:better],
                    self.own,
                    self.nearest,
                    job.back,
                    threshold,
                    floor,
                    margin,
                    lists.star[block],
                    lists.duplicates[block],
                    lists.other[block],
                    lists.value[block],
                    lists.near[block],
                )
        return lists.piece(job.rows, compared)


class _Piece(NamedTuple):
    star_row: Int32s
    star_other: Int32s
    cut_short: Int32s
    edges: Pairs
    totals: Int64s


class _RowLists(NamedTuple):
    """Bounded lists of what every row of a piece of work has found."""

    star: Int32s
    duplicates: Int64s
    other: Int32s
    value: Float64s
    near: Int64s

    @classmethod
    def room_for(cls, rows: int, stars: int, edges: int) -> "_RowLists":
        return cls(
            np.empty((rows, stars), np.int32),
            np.zeros(rows, np.int64),
            np.empty((rows, edges), np.int32),
            np.empty((rows, edges), np.float64),
            np.zeros(rows, np.int64),
        )

    def piece(self, rows: Int32s, compared: int) -> _Piece:
        starred = np.arange(self.star.shape[1]) < self.duplicates[:, None]
        edged = np.arange(self.other.shape[1]) < self.near[:, None]
        return _Piece(
            np.repeat(rows, starred.sum(axis=1)),
            self.star[starred],
            rows[self.duplicates > self.star.shape[1]],
            Pairs(np.repeat(rows, edged.sum(axis=1)), self.other[edged], self.value[edged]),
            np.array([self.duplicates.sum(), self.near.sum(), compared], np.int64),
        )


@njit(**KERNEL)
def _collect(  # type: ignore[no-untyped-def]
    scores,
    rows,
    others,
    x,
    y,
    own,
    nearest,
    back,
    threshold,
    floor,
    margin,
    star,
    duplicates,
    edge_other,
    edge_value,
    near,
):
    """Put the pairs of a block into the lists of its rows; `margin` bounds the scores' error.

    With `back`, pairs that the row meets in the other's cluster anyway are passed over.
    """
    stars, edges = star.shape[1], edge_other.shape[1]
    least = floor - margin
    for i in range(rows.shape[0]):
        row = rows[i]
        line = scores[i]
        for j in range(others.shape[0]):
            score = line[j]
            if score < least:
                continue
            other = others[j]
            if other >= row:
                break  # others are sorted by rank
            if back:
                met = False
                for probe in range(nearest.shape[1]):
                    met |= nearest[row, probe] == own[other]
                if met:
                    continue
            value = np.nan
            if abs(score - threshold) <= margin or abs(score - floor) <= margin:
                value = exact_similarity(x[i], y[j])
                if value < floor:
                    continue
            if value >= threshold or score > threshold + margin:
                if duplicates[i] < stars:
                    star[i, duplicates[i]] = other
                duplicates[i] += 1
            full = near[i] >= edges
            near[i] += 1
            if edges == 0 or (full and score + margin < edge_value[i, edges - 1]):
                continue
            if np.isnan(value):
                value = exact_similarity(x[i], y[j])
            place = edges if full else near[i] - 1
            # Others come in rank order within a piece of work: the better of equals stays.
            while place > 0 and value > edge_value[i, place - 1]:
                if place < edges:
                    edge_value[i, place] = edge_value[i, place - 1]
                    edge_other[i, place] = edge_other[i, place - 1]
                place -= 1
            if place < edges:
                edge_value[i, place] = value
                edge_other[i, place] = other


def _ranks(mask: Bools | None, count: int) -> Int32s:
    if mask is None:
        return np.arange(count, dtype=np.int32)
    return np.flatnonzero(mask).astype(np.int32)


def _lists(
    ranks: Int32s, clusters_of: npt.NDArray[np.int32], clusters: int
) -> Callable[[int], Int32s]:
    """By cluster, the ranks that have it in their line of `clusters_of`, ascending."""
    lines = clusters_of[ranks]
    order, start = counting_sort(lines.ravel(), clusters)
    width = max(1, lines.shape[1])
    return lambda cluster: ranks[order[start[cluster] : start[cluster + 1]] // width]


def _cut(rows: Int32s, others: Int32s, back: bool) -> Iterator[_Job]:
    if len(others):
        rows = rows[np.searchsorted(rows, others[0], side="right") :]
        for begin in range(0, len(rows), ROWS_A_JOB):
            yield _Job(rows[begin : begin + ROWS_A_JOB], others, back)


def _rounds(jobs: list[_Job]) -> Iterator[list[_Job]]:
    batch: list[_Job] = []
    rows = 0
    for job in jobs:
        batch.append(job)
        rows += len(job.rows)
        if rows >= ROWS_A_ROUND:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch


def _sorted(pieces: list[_Piece]) -> Pairs:
    row, other, value = (
        np.concatenate(part) for part in zip(*(piece.edges for piece in pieces), strict=True)
    )
    order = np.argsort(row, kind="stable")
    return Pairs(row[order], other[order], value[order])


class Neighbours(NamedTuple):
    """Pairs of a row asked for and another, with exact similarity; sorted by row, then other."""

    row: Int64s
    other: Int64s
    similarity: Float64s


def true_neighbours(
    matrix: Float32s, rows: Int64s, threshold: float, workers: int = 1
) -> Neighbours:
    """All rows at least `threshold` similar to some rows, by comparing them with every row.

    What a search misses is measured with this: it costs ``len(rows) * n`` products.

    Args:
        matrix: float32 ``(n, d)``, unit rows.
        rows: the rows asked for, ascending.

    Example:
        >>> matrix = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], np.float32)
        >>> found = true_neighbours(matrix, np.array([1]), 0.7)
        >>> found.other.tolist(), found.similarity.round(3).tolist()
        ([0, 2], [0.8, 0.96])
    """
    margin = slack(matrix.shape[1])

    def work(begin: int) -> Neighbours:
        mine = rows[begin : begin + ROWS_AT_ONCE]
        x = matrix[mine]
        parts = []
        for first in range(0, len(matrix), OTHERS_AT_ONCE):
            y = matrix[first : first + OTHERS_AT_ONCE]
            parts.append(_near_pairs(x @ y.T, mine, first, x, y, threshold, margin))
        row, other, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.lexsort((other, row))
        return Neighbours(row[order], other[order], value[order])

    with one_blas_thread():
        parts = in_threads(work, range(0, len(rows), ROWS_AT_ONCE), workers)
    if not parts:
        return Neighbours(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Neighbours(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@njit(**KERNEL)
def _near_pairs(scores, rows, first, x, y, threshold, margin):  # type: ignore[no-untyped-def]
    room = 0
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            room += scores[i, j] >= threshold - margin
    row = np.empty(room, np.int64)
    other = np.empty(room, np.int64)
    value = np.empty(room, np.float64)
    count = 0
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            if scores[i, j] >= threshold - margin and first + j != rows[i]:
                exact = exact_similarity(x[i], y[j])
                if exact >= threshold:
                    row[count] = rows[i]
                    other[count] = first + j
                    value[count] = exact
                    count += 1
    return row[:count], other[:count], value[:count]
