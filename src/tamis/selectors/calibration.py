"""What a cosine means: thresholds, their uncertainty and the shape of an embedder's space."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tamis.selectors.inner_products import (
    Float32s,
    Float64s,
    one_blas_thread,
    similarities,
)
from tamis.storage.errors import UserError
from tamis.storage.kernels import Int64s

#: Random partners drawn for every pair, and times that the pairs are drawn anew.
NEGATIVES, RESAMPLES = 100, 1000
#: False positives that a rate must allow for in the sample, or its threshold is chance.
LEAST_FALSE_POSITIVES = 10
_ROWS_AT_ONCE = 512

Threshold = Callable[[Float64s, Float64s], float]


def calibrate(
    left: Float32s,
    right: Float32s,
    same: tuple[Int64s, Int64s],
    *,
    false_positives: float = 0.001,
    seed: int = 0,
    workers: int = 1,
) -> dict[str, Any]:
    """Find thresholds that tell pairs that mean the same from pairs that do not.

    Args:
        left, right: ``(n, d)`` unit rows, the vectors of the two texts of every pair.
        same: numbers of the left and of the right texts; equal ones are the same text. A row is
            never held against a partner whose own text on either side is the same.
        false_positives: share of random pairs that may lie at or above the threshold.
        seed: of the random partners and of the bootstrap.

    Returns:
        ``similarity``: quantiles of the cosine of given pairs, of random ones, and of each left
        text to the nearest text that is not its partner. ``thresholds``: that for the rate of
        false positives among random pairs with its recall, and that of the highest F1 between
        pairs and nearest others; each with a 95 % interval by the percentile bootstrap over
        pairs. ``overlap``: of the distributions (sum of the smaller share over 100 bins, 0 to 1).
        ``top1``: share of pairs whose partner is nearest. ``isotropy``: see `partition_isotropy`
        and `isoscore`.

    Raises:
        UserError: if there are too few pairs for the rate, or all share a text.

    Source:
        Roychowdhury et al. 2024, A compass for navigating the world of sentence embeddings for
        the telecom domain (thresholds, bootstrap intervals, overlap, isotropy). Its own formulas
        for thresholds are not confirmed.
    """
    pairs = len(left)
    check_enough(pairs, false_positives)
    random = np.random.default_rng(seed)
    positive = _products(left, right, np.arange(pairs), np.arange(pairs), workers)
    negative = _random_pairs(left, right, same, random, workers)
    nearest = _nearest_others(left, right, same)
    if not np.isfinite(negative).any():
        raise UserError("all pairs share a text: none can be held against another's")
    resamples = random.integers(0, pairs, (RESAMPLES, pairs))

    def found(rule: Threshold, others: Float64s) -> dict[str, float]:
        drawn = [rule(positive[rows], others[rows]) for rows in resamples]
        low, high = np.quantile(drawn, [0.025, 0.975])
        at = rule(positive, others)
        # A row whose every partner is the same text has none to be held against: nan.
        return {
            "threshold": at,
            "low": float(low),
            "high": float(high),
            "recall": float((positive >= at).mean()),
            "false_positives": float((negative >= at).sum() / np.isfinite(negative).sum()),
            "f1": _f1(positive, nearest, at),
        }

    top1 = positive > nearest
    drawn_top1 = np.quantile([top1[rows].mean() for rows in resamples], [0.025, 0.975])
    return {
        "pairs": pairs,
        "random_pairs": int(np.isfinite(negative).sum()),
        "similarity": {
            "pairs": _quantiles(positive),
            "random": _quantiles(negative),
            "nearest_other": _quantiles(nearest),
        },
        "thresholds": {
            "false_positives": {
                "rate": false_positives,
                **found(lambda _, others: _at_rate(others, false_positives), negative),
            },
            "best_f1": found(_best_f1, nearest),
        },
        "overlap": {
            "pairs_random": _overlap(positive, negative),
            "pairs_nearest_other": _overlap(positive, nearest),
        },
        "top1": {
            "accuracy": float(top1.mean()),
            "low": float(drawn_top1[0]),
            "high": float(drawn_top1[1]),
        },
        "isotropy": {
            "partition": partition_isotropy(np.concatenate([left, right])),
            "isoscore": isoscore(np.concatenate([left, right])),
        },
    }


def check_enough(pairs: int, false_positives: float) -> None:
    """Raise unless the pairs are enough for a rate of false positives.

    Raises:
        UserError: with the number that would be.
    """
    least = int(np.ceil(LEAST_FALSE_POSITIVES / NEGATIVES / false_positives))
    if pairs < least:
        raise UserError(
            f"{pairs} pairs are too few for a rate of {false_positives:g}: fewer than "
            f"{LEAST_FALSE_POSITIVES} of {pairs * NEGATIVES} random pairs would be false positives",
            mend=f"give at least {least} pairs, or raise the rate",
        )


def _products(left: Float32s, right: Float32s, a: Int64s, b: Int64s, workers: int) -> Float64s:
    return similarities(np.concatenate([left, right]), a, b + len(left), workers)


def _random_pairs(
    left: Float32s,
    right: Float32s,
    same: tuple[Int64s, Int64s],
    random: np.random.Generator,
    workers: int,
) -> Float64s:
    """Cosines of every left text to some random right ones, ``(n, NEGATIVES)``; nan for its own."""
    pairs = len(left)
    partner = random.integers(0, pairs, (pairs, NEGATIVES))
    own = np.repeat(np.arange(pairs), NEGATIVES)
    found = _products(left, right, own, partner.ravel(), workers).reshape(partner.shape)
    for numbers in same:
        found[numbers[partner] == numbers[:, None]] = np.nan
    return found


def _nearest_others(left: Float32s, right: Float32s, same: tuple[Int64s, Int64s]) -> Float64s:
    """The highest cosine of every left text to a right one that is not its own; nan if none."""
    nearest = np.full(len(left), np.nan)
    with one_blas_thread():
        for begin in range(0, len(left), _ROWS_AT_ONCE):
            mine = slice(begin, begin + _ROWS_AT_ONCE)
            product = left[mine].astype(np.float64) @ right.T.astype(np.float64)
            for numbers in same:
                product[numbers[mine][:, None] == numbers[None, :]] = -np.inf
            best = product.max(axis=1)
            nearest[mine] = np.where(np.isfinite(best), best, np.nan)
    return nearest


def _at_rate(negative: Float64s, rate: float) -> float:
    """The lowest threshold that at most a share `rate` of the negatives reach.

    Example:
        >>> _at_rate(np.array([0.1, 0.2, 0.3, 0.4]), 0.25) > 0.3
        True
    """
    known = negative[np.isfinite(negative)]
    place = len(known) - 1 - int(np.floor(rate * len(known) + 1e-9))
    if place < 0:
        return float(known.min())
    return float(np.nextafter(np.partition(known, place)[place], 2))


def _f1(positive: Float64s, negative: Float64s, threshold: float) -> float:
    hits, false = (positive >= threshold).sum(), (negative >= threshold).sum()
    return float(2 * hits / (hits + false + len(positive))) if len(positive) else 0.0


def _best_f1(positive: Float64s, negative: Float64s) -> float:
    """The threshold with the highest F1, the lowest of equals.

    Example:
        >>> _best_f1(np.array([0.6, 0.8, 0.9]), np.array([0.1, 0.7, 0.2]))
        0.6
    """
    positive, known = np.sort(positive), np.sort(negative[np.isfinite(negative)])
    at = np.unique(positive)
    hits = len(positive) - np.searchsorted(positive, at)
    false = len(known) - np.searchsorted(known, at)
    return float(at[np.argmax(2 * hits / (hits + false + len(positive)))])


def _quantiles(values: Float64s) -> dict[str, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {}
    at = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    return {f"{q:g}": float(v) for q, v in zip(at, np.quantile(known, at), strict=True)}


def _overlap(a: Float64s, b: Float64s, bins: int = 100) -> float:
    """Sum over bins of [-1, 1] of the smaller share: 1 for the same histogram, 0 for disjoint."""
    shares = []
    for values in (a, b):
        known = np.clip(values[np.isfinite(values)], -1, 1)
        shares.append(np.histogram(known, bins, (-1, 1))[0] / max(len(known), 1))
    return float(np.minimum(*shares).sum())


def partition_isotropy(vectors: npt.NDArray[np.floating]) -> float:
    """How even the partition function is over directions: 1 is isotropic, 0 one-sided.

    The least over the greatest of Z(c) = sum over rows w of exp(c·w), for the eigenvectors c of
    the matrix of second moments, both signs of each.

    Source:
        Mu and Viswanath 2018, All-but-the-top, equations 2 and 3.

    Example:
        >>> round(partition_isotropy(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), 6)
        1.0
    """
    wide = np.asarray(vectors, np.float64)
    with one_blas_thread():
        _, directions = np.linalg.eigh(wide.T @ wide)
        along = wide @ directions
    sums = np.concatenate([np.exp(along).sum(axis=0), np.exp(-along).sum(axis=0)])
    return float(sums.min() / sums.max())


def isoscore(vectors: npt.NDArray[np.floating]) -> float:
    """How evenly the variance is spread over dimensions: 1 over all, 0 over one.

    If it is spread evenly over k of n dimensions, the score is (k - 1) / (n - 1).

    Source:
        Rudman et al. 2022, IsoScore: measuring the uniformity of embedding space utilization,
        algorithm 1.

    Example:
        >>> points = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
        >>> round(isoscore(points), 6)
        0.5
    """
    wide = np.asarray(vectors, np.float64)
    size = wide.shape[1]
    if size < 2:
        return 1.0
    with one_blas_thread():
        variance = np.linalg.eigvalsh(np.cov(wide, rowvar=False, bias=True))
    length = np.linalg.norm(variance)
    if length == 0:
        return 0.0
    even = np.sqrt(size) * variance / length
    defect = np.linalg.norm(even - 1) / np.sqrt(2 * (size - np.sqrt(size)))
    share = (size - defect**2 * (size - np.sqrt(size))) ** 2 / size**2
    return float((size * share - 1) / (size - 1))
