"""The nearest rows of another set of vectors, exactly: blocked products, decided pair by pair."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import float32, float64, int64, njit
from threadpoolctl import threadpool_limits

from tamis.storage.kernels import INLINE, KERNEL, Int64s, in_threads, pointer

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

#: Rows and reference rows of one product: its result (2 MB) stays in a core's second cache.
QUERIES, REFERENCES = 512, 1024


class Nearest(NamedTuple):
    """For every row the nearest reference row (int64, -1 where there is none) and its cosine."""

    row: Int64s
    similarity: Float64s


@njit(**INLINE)
def dot(a, b, width):  # type: ignore[no-untyped-def]
    """Dot product of two float32 runs in float64, always summed in the same order."""
    s0 = s1 = s2 = s3 = float64(0)
    i = int64(0)
    while i + 4 <= width:
        s0 += float64(a[i]) * float64(b[i])
        s1 += float64(a[i + 1]) * float64(b[i + 1])
        s2 += float64(a[i + 2]) * float64(b[i + 2])
        s3 += float64(a[i + 3]) * float64(b[i + 3])
        i += 4
    while i < width:
        s0 += float64(a[i]) * float64(b[i])
        i += 1
    return (s0 + s1) + (s2 + s3)


@njit(**KERNEL)
def _improve(product, queries, reference, first, slack, row, best):  # type: ignore[no-untyped-def]
    """Take what a block of the reference has that is nearer than the best so far.

    `product` is only near the truth: what it says lies within `slack` of the best or above it is
    computed exactly. Rows come in ascending order, so of equal ones the first stays.
    """
    width = queries.shape[1]
    for i in range(product.shape[0]):
        bar = float32(best[i] - slack)
        for j in range(product.shape[1]):
            if product[i, j] >= bar:
                exact = dot(pointer(queries[i]), pointer(reference[j]), width)
                if exact > best[i]:
                    best[i] = exact
                    row[i] = first + j
                    bar = float32(exact - slack)


def nearest(queries: Float32s, reference: Float32s, workers: int = 1) -> Nearest:
    """The reference row with the highest cosine to every row, the first of equal ones.

    Args:
        queries: ``(n, d)`` unit rows.
        reference: ``(m, d)`` unit rows.

    The float32 products only rule pairs out; the cosine that decides is summed in float64 in a
    fixed order, so the result depends on neither blocks nor threads.

    Example:
        >>> import numpy as np
        >>> found = nearest(np.eye(3, dtype="f"), np.eye(3, dtype="f")[[2, 0, 0]])
        >>> found.row.tolist(), found.similarity.tolist()
        ([1, 0, 0], [1.0, 0.0, 1.0])
    """
    row = np.full(len(queries), -1, np.int64)
    best = np.full(len(queries), -2.0)
    # A float32 sum of d products errs by at most d * 2**-24 for unit vectors, in whatever order.
    slack = (queries.shape[1] + 2) * 2.0**-23

    def work(begin: int) -> None:
        mine = slice(begin, begin + QUERIES)
        block = np.ascontiguousarray(queries[mine])
        for first in range(0, len(reference), REFERENCES):
            other = reference[first : first + REFERENCES]
            _improve(block @ other.T, block, other, first, slack, row[mine], best[mine])

    with threadpool_limits(1, user_api="blas"):
        in_threads(work, range(0, len(queries), QUERIES), workers)
    return Nearest(row, np.where(row < 0, np.nan, best))
