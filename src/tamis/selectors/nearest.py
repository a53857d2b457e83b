"""The nearest rows of the same or of another set of vectors, exactly and in bounded memory."""

from contextlib import nullcontext
from threading import Lock
from typing import NamedTuple

import numpy as np
from numba import float32, njit

from tamis.selectors.clusters import nearest_centroids
from tamis.selectors.inner_products import (
    Float32s,
    Float64s,
    exact_similarity,
    one_blas_thread,
    slack,
)
from tamis.storage.kernels import KERNEL, Int64s, in_threads

#: Reference rows compared at a time.
REFERENCES = 1 << 15
#: Rows of one set compared at a time with as many others: 16 MB of scores for every thread.
BLOCK_ROWS = 1 << 11


class Nearest(NamedTuple):
    """For every row the nearest reference row (int64, -1 where there is none) and its cosine."""

    row: Int64s
    similarity: Float64s


def nearest(queries: Float32s, reference: Float32s, workers: int = 1) -> Nearest:
    """The reference row with the highest cosine to every row, the first of equal ones.

    Args:
        queries: ``(n, d)`` unit rows.
        reference: ``(m, d)`` unit rows.

    Example:
        >>> import numpy as np
        >>> found = nearest(np.eye(3, dtype="f"), np.eye(3, dtype="f")[[2, 0, 0]])
        >>> found.row.tolist(), found.similarity.tolist()
        ([1, 0, 0], [1.0, 0.0, 1.0])
    """
    row = np.full(len(queries), -1, np.int64)
    best = np.full(len(queries), np.nan)
    for first in range(0, len(reference), REFERENCES):
        found, value = nearest_centroids(queries, reference[first : first + REFERENCES], 1, workers)
        better = ~(value[:, 0] <= best)
        row[better] = found[better, 0] + first
        best[better] = value[better, 0]
    return Nearest(row, best)


class Neighbours(NamedTuple):
    """For every row its nearest other rows, best first, and their cosines, ``(n, k)`` each.

    Numbers are int64, -1 (and a cosine of nan) where a row has fewer.
    """

    row: Int64s
    similarity: Float64s


def nearest_others(matrix: Float32s, k: int, workers: int = 1) -> Neighbours:
    """The k rows with the highest cosine to every row, itself left out; ties by the smaller number.

    Every pair is compared, once for both of its rows: the time grows with n * n * d / 2. A row of
    zeros is near to nothing.

    Args:
        matrix: float32 ``(n, d)``, unit rows or zeros.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1], [0, 0]], np.float32)
        >>> found = nearest_others(rows, 2)
        >>> found.row.tolist()
        [[1, 2], [0, 2], [1, 0], [-1, -1]]
    """
    some = np.flatnonzero(matrix.any(axis=1))
    unit = matrix if len(some) == len(matrix) else matrix[some]
    near = np.full((len(unit), k), -1, np.int64)
    value = np.full((len(unit), k), -np.inf)
    bar = np.full(len(unit), -np.inf, np.float32)
    margin = np.float32(slack(matrix.shape[1]))
    begins = range(0, len(unit), BLOCK_ROWS)
    locks = {begin: Lock() for begin in begins}

    def work(pair: tuple[int, int]) -> None:
        first, second = pair
        x, y = (unit[begin : begin + BLOCK_ROWS] for begin in pair)
        scores = x @ y.T
        # In one order everywhere, so that no two wait for each other.
        with locks[first], locks[second] if second > first else nullcontext():
            _keep_nearest(scores, unit, first, second, margin, near, value, bar)

    # Diagonals one after the other, so that threads seldom want the same block.
    pairs = [
        (begin, begin + gap)
        for gap in begins
        for begin in begins[: len(begins) - gap // BLOCK_ROWS]
    ]
    with one_blas_thread():
        in_threads(work, pairs, workers)
    row = np.full((len(matrix), k), -1, np.int64)
    similarity = np.full((len(matrix), k), np.nan)
    row[some] = np.where(near >= 0, some[near] if len(some) else near, -1)
    similarity[some] = np.where(near >= 0, value, np.nan)
    return Neighbours(row, similarity)


@njit(**KERNEL)
def _keep_nearest(scores, rows, first, second, margin, near, value, bar):  # type: ignore[no-untyped-def]
    """Put the pairs of two blocks into the lists of both rows of each.

    `scores` are within `margin` of the similarities: they only say which pairs may matter. A row's
    `bar` is what a score must reach for that.
    """
    hits = np.empty(scores.shape[1], np.int64)
    for i in range(scores.shape[0]):
        a = first + i
        line = scores[i]
        count = 0
        mine = bar[a]
        # Few pairs get beyond this loop, which is all that most of the time goes into.
        for j in range(i + 1 if first == second else 0, scores.shape[1]):
            hits[count] = j
            count += (line[j] >= mine) | (line[j] >= bar[second + j])
        for place in range(count):
            j = hits[place]
            b = second + j
            if line[j] < bar[a] and line[j] < bar[b]:
                continue  # the bar has risen since
            exact = exact_similarity(rows[a], rows[b])
            for side in range(2):
                row, other = (a, b) if side == 0 else (b, a)
                last = near.shape[1] - 1
                if exact < value[row, last] or (
                    exact == value[row, last] and other > near[row, last] >= 0
                ):
                    continue
                at = last
                while at > 0 and (
                    exact > value[row, at - 1]
                    or (exact == value[row, at - 1] and other < near[row, at - 1])
                ):
                    value[row, at] = value[row, at - 1]
                    near[row, at] = near[row, at - 1]
                    at -= 1
                value[row, at] = exact
                near[row, at] = other
                bar[row] = float32(value[row, last]) - margin
