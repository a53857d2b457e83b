"""How well two fitted components describe the scores: the distance of the distributions."""

import math

import numpy as np
from numba import njit

from tamis.scoring.component_fits import Float64s, Mixtures
from tamis.storage.kernels import KERNEL

#: Scores of a group at which the distributions are compared; the distance is exact to one part in
#: as many.
COMPARED = 4096
_TINY = 1e-300


@njit(**KERNEL)
def beta_share(a, b, x):  # type: ignore[no-untyped-def]
    """P(X <= x) of a beta distribution: the regularised incomplete beta function.

    By its continued fraction (Abramowitz and Stegun 26.5.8), evaluated as Lentz does.
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_share(b, a, 1.0 - x)
    log_front = a * math.log(x) + b * math.log1p(-x)
    log_front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, 2000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = 1.0 + term / c
            c = c if abs(c) > _TINY else _TINY
            change = c * d
            value *= change
        if abs(change - 1.0) < 1e-14:
            break
    return min(1.0, math.exp(log_front) * value / a)


@njit(**KERNEL)
def share_below(beta, mean, variance, x):  # type: ignore[no-untyped-def]
    """P(X <= x) of a component, by its mean and variance."""
    if beta:
        both = mean * (1 - mean) / variance - 1
        return beta_share(mean * both, (1 - mean) * both, x)
    return 0.5 * math.erfc((mean - x) / math.sqrt(2 * variance))


@njit(**KERNEL)
def _distances(values, begin, end, beta, weight, mean, variance, most, found):  # type: ignore[no-untyped-def]
    for g in range(begin.shape[0]):
        n = end[g] - begin[g]
        if math.isnan(mean[g, 0]):
            continue
        places = min(n, most)
        largest = 0.0
        for k in range(places):
            i = k if n <= most else int(k * (n - 1) / (most - 1))
            x = values[begin[g] + i]
            share = 0.0
            for c in range(2):
                share += weight[g, c] * share_below(beta, mean[g, c], variance[g, c], x)
            largest = max(largest, (i + 1) / n - share, share - i / n)
        found[g] = largest


def distances(mixtures: Mixtures) -> Float64s:
    """By group the Kolmogorov-Smirnov distance of the fitted distribution to the scores.

    That is the largest difference between the share of scores below a place and the share that the
    two components expect there, from 0 to 1; of the scores that were fitted. nan without a fit.

    Example:
        >>> from tamis.scoring.component_fits import fit_mixtures, scaled_sample
        >>> draws = np.random.default_rng(0)
        >>> x = np.concatenate([draws.normal(0, 1, 700), draws.normal(6, 1, 300)])
        >>> distances(fit_mixtures(scaled_sample(x), "gaussian")).round(3).tolist()
        [0.019]
    """
    sample = mixtures.sample
    found = np.full(len(sample.begin), np.nan)
    beta = mixtures.kind == "beta"
    parts = (mixtures.weight, mixtures.mean, mixtures.variance)
    _distances(sample.x, sample.begin, sample.end, beta, *parts, COMPARED, found)
    return found


def chance_bound(distance: Float64s, rows: Float64s) -> Float64s:
    """Most probability of a distance as large, were the scores drawn from the distribution itself.

    The bound of Dvoretzky, Kiefer and Wolfowitz with Massart's constant, 2 exp(-2 n D²), at most 1.
    A distribution that was fitted to the scores lies nearer to them than one that was not, so the
    bound is on the safe side: a small one says that the shape is wrong. With many rows it always
    is, if only a little: read the distance then.

    Example:
        >>> chance_bound(np.array([0.05, 0.05]), np.array([100.0, 2000.0])).round(6).tolist()
        [1.0, 9.1e-05]
    """
    found: Float64s = np.minimum(1.0, 2.0 * np.exp(-2.0 * rows * distance**2))
    return found
