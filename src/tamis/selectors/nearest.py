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
