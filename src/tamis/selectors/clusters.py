"""Spherical k-means, the same bit for bit whatever the blocks, the workers and the machine."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import float32, njit

from tamis.selectors.budgets import draws
from tamis.selectors.inner_products import (
    SCORES_AT_ONCE,
    Float32s,
    Float64s,
    exact_similarity,
    one_blas_thread,
    slack,
)
from tamis.selectors.table import Table
from tamis.selectors.vectors import Vectors
from tamis.storage.grouping import Int32s, counting_sort
from tamis.storage.kernels import KERNEL, in_threads

#: Rows that train one centroid: faiss's `max_points_per_centroid` is 256, its least 39. For the
#: search of pairs more than 64 bring no recall (docs/semantic-dedup.md).
POINTS_PER_CENTROID = 64
ITERATIONS = 10


@dataclass(frozen=True)
class Clusters:
    """A partition of rows by their most similar centroid.

    Attributes:
        centroids: float32 ``(k, d)``, unit rows.
        assignment: int32 ``(n,)``, the centroid most similar to a row; the first of equals.
        similarity: float64 ``(n,)``, exact inner product with that centroid.
        nearest: int32 ``(n, probes)``, the most similar centroids, best first: the first column is
            `assignment`.
        iterations: passes over the training rows.
    """

    centroids: Float32s
    assignment: Int32s
    similarity: Float64s
    nearest: Int32s
    iterations: int

    def __len__(self) -> int:
        return len(self.centroids)


def default_k(rows: int) -> int:
    """The square root of the number of rows, as SemDeDup and D4 choose it for their sizes."""
    return max(1, round(float(np.sqrt(rows))))


def kmeans(
    matrix: Float32s,
    k: int | None = None,
    *,
    draw: Float64s,
    iterations: int = ITERATIONS,
    points_per_centroid: int = POINTS_PER_CENTROID,
    probes: int = 1,
    workers: int = 1,
) -> Clusters:
    """Cluster unit vectors by cosine similarity (spherical k-means, Dhillon and Modha 2001).

    Centroids begin as the rows with the smallest draws and are trained on the
    ``k * points_per_centroid`` rows with the smallest draws. A centroid that loses all its rows
    begins anew at the training row that is least like its own centroid. Sums are made in float64 in
    the order of the rows, and assignments are decided by exact inner products, ties by the smaller
    centroid: the result depends on the rows, their order and their draws only.

    Args:
        matrix: float32 ``(n, d)``, unit rows in canonical order. Zero rows train nothing; they
            fall to the first cluster with a similarity of 0.
        k: clusters; the square root of n if not given, and never more than the rows that are not
            zero.
        draw: float64 ``(n,)``, a random number of every row, such as `budgets.draws` of its
            row_id and a seed.
        iterations: passes over the training rows at most; fewer where nothing moves any more.
        probes: how many centroids of every row are listed in `Clusters.nearest`.

    Example:
        >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], np.float32)
        >>> found = kmeans(rows, 2, draw=np.array([0.1, 0.7, 0.2, 0.9]))
        >>> found.assignment.tolist(), found.similarity.round(3).tolist()
        ([0, 0, 1, 1], [0.949, 0.949, 0.949, 0.949])
    """
    usable = np.flatnonzero(matrix.any(axis=1))
    k = min(default_k(len(matrix)) if k is None else k, len(usable))
    by_draw = usable[np.lexsort((usable, draw[usable]))]
    centroids = matrix[by_draw[:k]].copy()
    if not k:
        centroids = np.zeros((min(1, len(matrix)), matrix.shape[1]), np.float32)
    sample = matrix[np.sort(by_draw[: k * points_per_centroid])]
    done = 0
    before: Int32s | None = None
    while k and done < iterations:
        nearest, similarity = nearest_centroids(sample, centroids, 1, workers)
        assignment = nearest[:, 0]
        if before is not None and np.array_equal(assignment, before):
            break
        centroids = _means(sample, assignment, similarity[:, 0], k, workers)
        before = assignment
        done += 1
    nearest, similarity = nearest_centroids(matrix, centroids, probes, workers)
    return Clusters(
        centroids=centroids,
        assignment=nearest[:, 0].copy() if len(matrix) else np.zeros(0, np.int32),
        similarity=similarity[:, 0].copy() if len(matrix) else np.zeros(0, np.float64),
        nearest=nearest,
        iterations=done,
    )


def clusters_of(
    table: Table, vectors: Vectors, k: int | None, *, seed: int, probes: int = 1
) -> Clusters:
    """Cluster the vectors of a table's rows; draws come from row_ids and the seed."""
    draw = draws_of(table, vectors, seed)
    return kmeans(vectors.matrix, k, draw=draw, probes=probes, workers=table.workers)


def draws_of(table: Table, vectors: Vectors, seed: int) -> Float64s:
    """A random number for every vector that depends on its row's id and the seed."""
    rows = vectors.rows
    return draws(table.id_hi[rows], table.id_lo[rows], table.copy[rows], seed)


def nearest_centroids(
    matrix: Float32s, centroids: Float32s, probes: int, workers: int = 1
) -> tuple[Int32s, Float64s]:
    """The centroids most similar to every row, best first, ties by the smaller number.

    Returns:
        Their numbers, int32 ``(n, p)``, and exact similarities, float64 ``(n, p)``, with ``p``
        the smaller of `probes` and the number of centroids.
    """
    rows, dimensions = matrix.shape
    probes = min(probes, len(centroids))
    nearest = np.empty((rows, probes), np.int32)
    similarity = np.empty((rows, probes), np.float64)
    if not rows:
        return nearest, similarity
    height = max(16, min(4096, SCORES_AT_ONCE // len(centroids)))
    columns = centroids.T

    def work(first: int) -> None:
        block = slice(first, min(first + height, rows))
        _nearest(
            matrix[block] @ columns,
            matrix[block],
            centroids,
            np.float32(2 * slack(dimensions)),
            nearest[block],
            similarity[block],
        )

    with one_blas_thread():
        in_threads(work, range(0, rows, height), workers)
    return nearest, similarity


@njit(**KERNEL)
def _nearest(scores, rows, centroids, margin, nearest, similarity):  # type: ignore[no-untyped-def]
    """Exact order of the best centroids; scores (within half of `margin`) say which may be."""
    probes = nearest.shape[1]
    best = np.empty(probes, np.float32)
    for row in range(scores.shape[0]):
        line = scores[row]
        best[:] = -np.inf
        for c in range(line.shape[0]):
            if line[c] > best[probes - 1]:
                place = probes - 1
                while place > 0 and line[c] > best[place - 1]:
                    best[place] = best[place - 1]
                    place -= 1
                best[place] = line[c]
        least = float32(best[probes - 1] - margin)
        count = 0
        for c in range(line.shape[0]):
            if line[c] < least:
                continue
            value = exact_similarity(rows[row], centroids[c])
            # Centroids come in ascending order, so that the first of equals stays in front.
            place = count
            while place > 0 and value > similarity[row, place - 1]:
                if place < probes:
                    similarity[row, place] = similarity[row, place - 1]
                    nearest[row, place] = nearest[row, place - 1]
                place -= 1
            if place < probes:
                similarity[row, place] = value
                nearest[row, place] = c
                count = min(count + 1, probes)


def _means(
    sample: Float32s, assignment: Int32s, similarity: Float64s, k: int, workers: int
) -> Float32s:
    """Directions of the sums of every cluster's rows; empty clusters begin at outlying rows."""
    order, start = counting_sort(assignment, k)
    centroids = np.empty((k, sample.shape[1]), np.float32)
    directed = np.empty(k, np.bool_)
    cuts = np.linspace(0, k, min(k, 8 * workers) + 1).astype(np.int64)
    in_threads(
        lambda cut: _directions(sample, order, start, cut[0], cut[1], centroids, directed),
        list(pairwise(cuts)),
        workers,
    )
    empty = np.flatnonzero(~directed)
    if len(empty):
        shared = np.flatnonzero(np.diff(start)[assignment] > 1)
        outliers = shared[np.argsort(similarity[shared], kind="stable")[: len(empty)]]
        centroids[empty[: len(outliers)]] = sample[outliers]
        centroids[empty[len(outliers) :]] = 0
    return centroids


@njit(**KERNEL)
def _directions(  # type: ignore[no-untyped-def]
    sample, order, start, first, last, centroids, directed
):
    total = np.empty(sample.shape[1], np.float64)
    for c in range(first, last):
        total[:] = 0.0
        for place in range(start[c], start[c + 1]):
            row = sample[order[place]]
            for i in range(total.shape[0]):
                total[i] += row[i]
        square = 0.0
        for i in range(total.shape[0]):
            square += total[i] * total[i]
        directed[c] = square > 0.0
        if directed[c]:
            norm = np.sqrt(square)
            for i in range(total.shape[0]):
                centroids[c, i] = total[i] / norm
