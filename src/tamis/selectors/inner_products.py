"""Inner products of vectors: fast ones that may only reject a pair, exact ones that decide.

A matrix product in float32 depends on how it is cut into blocks, on the number of threads and on
the library. Its error is bounded, so it is used to find the few pairs that may matter; those are
computed again, each alone, in float64 and in one fixed order of summation. What is decided from
them is the same for any blocks, any number of workers and any machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from numba import float64, njit

from tamis.storage.kernels import INLINE, KERNEL, Int64s, in_threads

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

#: Scores of one block of a matrix product: 16 MB of float32 for every thread.
SCORES_AT_ONCE = 1 << 22
#: Pairs that a thread computes at a time.
_PAIRS_AT_ONCE = 1 << 14
#: From here on lengths matter: two roundings of one direction to float32 have an inner product
#: of 1 - 2**-23 at least.
_NEAR_ONE = 1 - 2.0**-22
#: Two directions that differ by float32 rounding alone have a cosine of 1 - 2**-47 at least;
#: float64 sums of 8,192 numbers add an error of 2**-43.
_EQUAL = 1 - 2.0**-40


@njit(**INLINE)
def exact_product(a, b):  # type: ignore[no-untyped-def]
    """Inner product of two float32 vectors in float64, in eight interleaved sums.

    Products of float32 values are exact in float64, so it does not matter whether the machine
    fuses multiplication and addition.
    """
    size = a.shape[0]
    whole = size - size % 8
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    for i in range(0, whole, 8):
        s0 += float64(a[i]) * float64(b[i])
        s1 += float64(a[i + 1]) * float64(b[i + 1])
        s2 += float64(a[i + 2]) * float64(b[i + 2])
        s3 += float64(a[i + 3]) * float64(b[i + 3])
        s4 += float64(a[i + 4]) * float64(b[i + 4])
        s5 += float64(a[i + 5]) * float64(b[i + 5])
        s6 += float64(a[i + 6]) * float64(b[i + 6])
        s7 += float64(a[i + 7]) * float64(b[i + 7])
    for i in range(whole, size):
        s0 += float64(a[i]) * float64(b[i])
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@njit(**INLINE)
def exact_similarity(a, b):  # type: ignore[no-untyped-def]
    """Cosine of two float32 rows of about length one: their exact inner product, at most 1.

    Rounding to float32 leaves rows a little longer or shorter than 1. Close to 1, where that would
    tell equal directions apart, the product is divided by both lengths, and is 1 from `_EQUAL` on.
    """
    value = exact_product(a, b)
    if value >= _NEAR_ONE:
        value /= np.sqrt(exact_product(a, a) * exact_product(b, b))
        if value >= _EQUAL:
            value = 1.0
    return value


@njit(**KERNEL)
def _similarities(matrix, left, right, first, last, result):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        result[i] = exact_similarity(matrix[left[i]], matrix[right[i]])


def similarities(matrix: Float32s, left: Int64s, right: Int64s, workers: int = 1) -> Float64s:
    """Exact cosine similarity of pairs of rows: see `exact_similarity`.

    Args:
        matrix: float32 ``(n, d)`` of unit rows (or zero rows, which are similar to nothing).
        left, right: row numbers.

    Returns:
        float64, as long as `left`.

    Example:
        >>> rows = np.array([[1, 0], [0.6, 0.8]], np.float32)
        >>> similarities(rows, np.array([0, 0]), np.array([0, 1])).round(6).tolist()
        [1.0, 0.6]
    """
    result = np.empty(len(left), np.float64)
    in_threads(
        lambda first: _similarities(
            matrix, left, right, first, min(first + _PAIRS_AT_ONCE, len(left)), result
        ),
        range(0, len(left), _PAIRS_AT_ONCE),
        workers,
    )
    return result


def slack(dimensions: int) -> float:
    """How far a float32 inner product of unit vectors may be off, in any order of summation.

    At most ``d u / (1 - d u)`` with ``u = 2**-24`` (Higham, Accuracy and Stability of Numerical
    Algorithms, 2002, section 3.1); eight more roundings allow for rows that are not quite units
    and for what `exact_similarity` takes as 1.
    """
    return (dimensions + 8) * 2.0**-24 * 1.01


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Matrix products on the calling thread alone: the callers are the threads."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
