"""The nearest rows of another set of vectors, exactly and in bounded memory."""

from typing import NamedTuple

import numpy as np

from tamis.selectors.clusters import nearest_centroids
from tamis.selectors.inner_products import Float32s, Float64s
from tamis.storage.kernels import Int64s

#: Reference rows compared at a time.
REFERENCES = 1 << 15


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

    Every pair is compared: the time grows with n * n * d. A row of zeros is near to nothing.

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
    row = np.full((len(matrix), k), -1, np.int64)
    similarity = np.full((len(matrix), k), np.nan)
    most = min(k, len(unit) - 1)
    if most < 1:
        return Neighbours(row, similarity)
    # Itself is among the first k + 1, or k others that are equal to it come before.
    best = np.full((len(unit), k + 1), -1, np.int64)
    value = np.full((len(unit), k + 1), -np.inf)
    for first in range(0, len(unit), REFERENCES):
        found, cosine = nearest_centroids(unit, unit[first : first + REFERENCES], k + 1, workers)
        if first:
            both = np.hstack([value, cosine])
            order = np.argsort(-both, axis=1, kind="stable")[:, : k + 1]
            value = np.take_along_axis(both, order, axis=1)
            best = np.take_along_axis(np.hstack([best, found + first]), order, axis=1)
        else:
            best[:, : found.shape[1]], value[:, : found.shape[1]] = found, cosine
    itself = best == np.arange(len(unit))[:, None]
    itself[~itself.any(axis=1), k] = True
    others = np.argsort(itself, axis=1, kind="stable")[:, :most]
    row[some, :most] = some[np.take_along_axis(best, others, axis=1)]
    similarity[some, :most] = np.take_along_axis(value, others, axis=1)
    return Neighbours(row, similarity)
