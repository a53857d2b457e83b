"""Two-component mixtures of one score: Gaussian (DivideMix) and beta (Arazo et al.), by group.

Both are fitted by one expectation-maximisation. Its M-step takes weighted means and variances: for
Gaussians these are the most likely parameters, for betas the published M-step matches moments. So
a component is a weight, a mean and a variance, whatever its kind, and the log-odds of the two are
``p f(x) + q g(x) + c``, with ``f, g = x², x`` or ``log x, log(1 - x)``: one exponential a row.

The values are sorted first and added up in blocks, so a fit depends on the values alone, not on
the order of rows.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from numba import njit

from tamis.storage.grouping import counting_sort
from tamis.storage.kernels import INLINE, KERNEL, Int64s

Float64s = npt.NDArray[np.float64]

Kind = Literal["gaussian", "beta"]
Scale = Literal["none", "minmax", "percentiles"]
End = Literal["high", "low"]
#: As DivideMix scales losses for a Gaussian mixture, and Arazo et al. for a beta mixture.
PUBLISHED_SCALE: dict[Kind, Scale] = {"gaussian": "minmax", "beta": "percentiles"}
#: Percentiles between which the beta mixture is fitted (Arazo et al.'s public code).
PERCENTILES = (5.0, 95.0)
#: Distance that a beta mixture keeps from 0 and 1, where its density may be infinite: in its EM,
#: and where values beyond the percentiles are cut off (the same code).
MARGIN = 1e-4
CUT_MARGIN = 1e-3
#: DivideMix's settings of scikit-learn's GaussianMixture: most iterations, the change of the mean
#: log-likelihood at which they end, and what is added to variances. Arazo et al. also run 10
#: iterations, all of them.
ITERATIONS = 10
TOLERANCE = 1e-2
ADDED_VARIANCE = 5e-4
#: The same where a fit is to stand still.
CONVERGED_ITERATIONS = 200
CONVERGED_TOLERANCE = 1e-6
#: Most a + b of a beta component, so that equal values do not make it infinitely narrow.
MOST_CONCENTRATED = 1e4
#: Moves of the cut between the first two clusters, as scikit-learn's KMeans.
MOST_MOVES = 300
_BLOCK = 4096
_LOG_2PI = math.log(2 * math.pi)
#: What scikit-learn adds to the rows of a component, so that an empty one can be divided by.
_NO_ROWS = 10 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Sample:
    """Scores of every group on a scale from 0 to 1, sorted; what mixtures are fitted to.

    Attributes:
        scores: float64, those that are finite, the groups one after the other, each ascending.
        x: the same on the scale; below 0 or above 1 only outside the percentiles.
        begin, end: int64 ``(groups,)``, where in `x` the values of a group lie that are fitted.
        low, high: float64 ``(groups,)``, the scores that are 0 and 1; nan for a group without any.
        scored: int64 ``(groups,)``, finite scores, those that are not fitted included.
        margin: distance to 0 and 1 that a beta mixture keeps.
    """

    scores: Float64s
    x: Float64s
    begin: Int64s
    end: Int64s
    low: Float64s
    high: Float64s
    scored: Int64s
    margin: float

    @property
    def rows(self) -> Int64s:
        """Values that are fitted, by group."""
        return self.end - self.begin


def _between(value: Float64s, low: Float64s, high: Float64s) -> Float64s:
    # Halves, because the difference of two finite numbers may be infinite.
    found: Float64s = (value / 2 - low / 2) / (high / 2 - low / 2)
    return found


def scaled_sample(
    value: Float64s, group: Int64s | None = None, groups: int = 1, scale: Scale = "minmax"
) -> Sample:
    """Scores as mixtures are fitted to them.

    Args:
        value: any numbers; nan and infinities are left out.
        group: number of each one's group, all 0 if not given.
        scale: `none` takes scores in [0, 1] as they are; `minmax` makes the lowest of a group 0
            and the highest 1; `percentiles` does so with the 5th and the 95th percentile
            (interpolated as numpy does) and fits only what lies between them.

    Example:
        >>> sample = scaled_sample(np.array([4.0, 2.0, np.nan, 3.0]))
        >>> sample.x.tolist(), sample.low.tolist(), sample.high.tolist()
        ([0.0, 0.5, 1.0], [2.0], [4.0])
    """
    there = np.isfinite(value)
    scores = value[there]
    if group is None or groups == 1:
        start = np.array([0, *[len(scores)] * groups])
    else:
        order, start = counting_sort(group[there], groups)
        scores = scores[order]
    begin, end = start[:-1], start[1:].copy()
    size = end - begin
    for number in np.flatnonzero(size > 1):
        scores[begin[number] : end[number]].sort()
    low, high = np.full(groups, np.nan), np.full(groups, np.nan)
    filled = size > 0
    if scale == "none":
        low[filled], high[filled] = 0.0, 1.0
        return Sample(scores, scores, begin, end, low, high, size, MARGIN)
    ends = (0.0, 100.0) if scale == "minmax" else PERCENTILES
    for limit, percent in zip((low, high), ends, strict=True):
        limit[filled] = _percentile(scores, begin[filled], size[filled], percent)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = _between(scores, np.repeat(low, size), np.repeat(high, size))
    if scale == "minmax":
        return Sample(scores, x, begin, end, low, high, size, MARGIN)
    first = begin.copy()
    for number in np.flatnonzero(filled):
        run = scores[begin[number] : end[number]]
        first[number] += np.searchsorted(run, low[number])
        end[number] = begin[number] + np.searchsorted(run, high[number], "right")
    return Sample(scores, x, first, end, low, high, size, CUT_MARGIN)


def _percentile(scores: Float64s, begin: Int64s, size: Int64s, percent: float) -> Float64s:
    """Of runs of ascending scores, interpolated."""
    place = percent / 100 * (size - 1)
    below = np.floor(place).astype(np.int64)
    low = scores[begin + below]
    high = scores[begin + np.minimum(below + 1, size - 1)]
    part = place - below
    found: Float64s = np.clip(low * (1 - part) + high * part, low, high)
    return found


@njit(**INLINE)
def log_density(beta, mean, variance):  # type: ignore[no-untyped-def]
    """p, q, c of a component's log-density ``p f(x) + q g(x) + c``."""
    if beta:
        both = mean * (1 - mean) / variance - 1
        a, b = mean * both, (1 - mean) * both
        return a - 1, b - 1, math.lgamma(both) - math.lgamma(a) - math.lgamma(b)
    p = -0.5 / variance
    return p, mean / variance, p * mean * mean - 0.5 * (math.log(variance) + _LOG_2PI)


@njit(**INLINE)
def _variance(beta, mean, variance, added):  # type: ignore[no-untyped-def]
    """A variance that a component may have."""
    if beta:
        return max(variance, mean * (1 - mean) / (MOST_CONCENTRATED + 1))
    return max(variance, 0.0) + added


@njit(**KERNEL)
def _two_means(x, mean):  # type: ignore[no-untyped-def]
    """Values of ascending ones in the lower of two clusters: Lloyd's k-means from their mean.

    A cut stands still where it lies midway between the means of both sides. There may be several
    such cuts; the one nearest to the mean on the way is taken, the same for any order of rows.
    """
    n = x.shape[0]
    total = 0.0
    for value in x:
        total += value
    cut, below, limit = 0, 0.0, mean
    for _ in range(MOST_MOVES):
        before = cut
        while cut < n - 1 and (x[cut] <= limit or cut == 0):
            below += x[cut]
            cut += 1
        while cut > 1 and x[cut - 1] > limit:
            cut -= 1
            below -= x[cut]
        if cut == before:
            break
        limit = 0.5 * (below / cut + (total - below) / (n - cut))
    return cut


@njit(**KERNEL)
def _fit(  # type: ignore[no-untyped-def]
    values,
    begin,
    end,
    beta,
    margin,
    split,
    most,
    tolerance,
    added,
    weight,
    mean,
    variance,
    likely,
):
    """Expectation-maximisation of every group; what has no two different values stays as it is."""
    for g in range(begin.shape[0]):
        x = values[begin[g] : end[g]]
        n = x.shape[0]
        if n < 2 or x[0] == x[n - 1]:
            continue
        f, q_of = np.empty(n), np.empty(n)
        centre = sum_f = sum_g = 0.0
        if beta:
            x = x.copy()
        for i in range(n):
            if beta:
                x[i] = min(max(x[i], margin), 1 - margin)
                f[i], q_of[i] = math.log(x[i]), math.log1p(-x[i])
            else:
                f[i], q_of[i] = x[i] * x[i], x[i]
            centre += x[i]
            sum_f += f[i]
            sum_g += q_of[i]
        centre /= n

        w, m, v = np.full(2, 0.5), np.empty(2), np.empty(2)
        if not split or x[0] == x[n - 1]:  # a = 1, b = 2 and a = 2, b = 1
            m[0], m[1] = 1.0 / 3.0, 2.0 / 3.0
            v[:] = 1.0 / 18.0
        else:
            cut = _two_means(x, centre)
            for k in range(2):
                part = x[:cut] if k == 0 else x[cut:]
                first = second = 0.0
                for value in part:
                    first += value - centre
                    second += (value - centre) ** 2
                rows = part.shape[0] + _NO_ROWS
                m[k] = centre + first / rows
                v[k] = _variance(beta, m[k], second / rows - (first / rows) ** 2, added)
                w[k] = part.shape[0] / n

        before = -np.inf
        step, ended = 0, False
        while True:
            p0, q0, c0 = log_density(beta, m[0], v[0])
            p1, q1, c1 = log_density(beta, m[1], v[1])
            c0, c1 = c0 + math.log(w[0]), c1 + math.log(w[1])
            p, q, c = p1 - p0, q1 - q0, c1 - c0
            # Rows, first and second moments of the lower component and of the higher; likelihood.
            r0 = r1 = s0 = s1 = t0 = t1 = more = 0.0
            for block in range(0, n, _BLOCK):
                br0 = br1 = bs0 = bs1 = bt0 = bt1 = bmore = 0.0
                for i in range(block, min(block + _BLOCK, n)):
                    odds = p * f[i] + q * q_of[i] + c
                    e = math.exp(-abs(odds))
                    large = 1.0 / (1.0 + e)
                    small = e * large
                    high = large if odds >= 0 else small
                    low = small if odds >= 0 else large
                    y = x[i] - centre
                    br0 += low
                    br1 += high
                    bs0 += low * y
                    bs1 += high * y
                    bt0 += low * y * y
                    bt1 += high * y * y
                    bmore += max(odds, 0.0) + math.log1p(e)
                r0, r1, s0, s1 = r0 + br0, r1 + br1, s0 + bs0, s1 + bs1
                t0, t1, more = t0 + bt0, t1 + bt1, more + bmore
            now = (p0 * sum_f + q0 * sum_g + more) / n + c0
            if ended:  # this was for the likelihood alone
                break
            ended = step + 1 == most or abs(now - before) < tolerance
            before = now
            step += 1
            r0, r1 = r0 + _NO_ROWS, r1 + _NO_ROWS
            m[0], m[1] = centre + s0 / r0, centre + s1 / r1
            v[0] = _variance(beta, m[0], t0 / r0 - (s0 / r0) ** 2, added)
            v[1] = _variance(beta, m[1], t1 / r1 - (s1 / r1) ** 2, added)
            w[0], w[1] = r0 / (r0 + r1), r1 / (r0 + r1)
        likely[g] = now * n
        for k in range(2):
            to = k if m[0] <= m[1] else 1 - k
            weight[g, to], mean[g, to], variance[g, to] = w[k], m[k], v[k]


@dataclass(frozen=True)
class Mixtures:
    """Two components of every group's scores, on the scale of a `Sample`; the lower mean first.

    Attributes:
        kind: of both components.
        sample: the scores that were fitted.
        weight, mean, variance: float64 ``(groups, 2)``; nan for a group without two different
            scores.
        log_likelihood: float64 ``(groups,)``, of the values that were fitted.
    """

    kind: Kind
    sample: Sample
    weight: Float64s
    mean: Float64s
    variance: Float64s
    log_likelihood: Float64s

    @property
    def a(self) -> Float64s:
        """First parameter of beta components."""
        return self.mean * (self.mean * (1 - self.mean) / self.variance - 1)

    @property
    def b(self) -> Float64s:
        """Second parameter of beta components."""
        return (1 - self.mean) * (self.mean * (1 - self.mean) / self.variance - 1)

    @property
    def means(self) -> Float64s:
        """Means on the scale of the scores themselves."""
        low, high = self.sample.low[:, None], self.sample.high[:, None]
        return low * (1 - self.mean) + high * self.mean

    def odds(self) -> Float64s:
        """``(groups, 3)``: p, q, c of the log-odds ``p f(x) + q g(x) + c`` of the higher one."""
        found = np.full((len(self.mean), 3), np.nan)
        _odds(self.kind == "beta", self.weight, self.mean, self.variance, found)
        return found

    def monotone(self) -> tuple[Float64s, Float64s]:
        """By group, between which x the higher component's probability does not fall.

        It falls beyond an extremum where the wider component wins on both sides. Arazo et al. hold
        it at its maximum from there on, on both sides here: x is cut off at these bounds.
        """
        p, q, _ = self.odds().T
        with np.errstate(invalid="ignore", divide="ignore"):
            turn = p / (p + q) if self.kind == "beta" else -q / (2 * p)
            rises_to = (p > 0) & (q > 0) if self.kind == "beta" else p < 0
            rises_from = (p < 0) & (q < 0) if self.kind == "beta" else p > 0
        low = np.where(rises_from, np.clip(turn, 0.0, 1.0), 0.0)
        return low, np.where(rises_to, np.clip(turn, 0.0, 1.0), 1.0)

    def posterior(
        self,
        value: Float64s,
        group: Int64s | None = None,
        *,
        end: End = "high",
        monotone: bool = True,
    ) -> Float64s:
        """Probability that a score comes from the component at one end.

        Args:
            value: scores, which need not be those that were fitted.
            group: number of each one's group, all 0 if not given.
            end: the component of the higher mean, or of the lower.
            monotone: whether a score nearer to that end never has a lower probability; see
                `monotone`. DivideMix does without.

        Returns:
            float64 in [0, 1]; nan for a score that is not finite and for a group without a fit.
        """
        low, high = self.sample.low, self.sample.high
        bounds = self.monotone() if monotone else (np.zeros(len(low)), np.ones(len(low)))
        return self._posterior(value, group, low, high, bounds, end)

    def at(self, x: Float64s, end: End = "high") -> Float64s:
        """The monotone posterior at a place of every group's scale, x in [0, 1]."""
        scale = np.zeros(len(x)), np.ones(len(x))
        return self._posterior(x, np.arange(len(x)), *scale, self.monotone(), end)

    def _posterior(
        self,
        value: Float64s,
        group: Int64s | None,
        low: Float64s,
        high: Float64s,
        bounds: tuple[Float64s, Float64s],
        end: End,
    ) -> Float64s:
        group = np.zeros(len(value), np.int64) if group is None else group
        odds = self.odds() if end == "high" else -self.odds()
        found = np.empty(len(value))
        beta, margin = self.kind == "beta", self.sample.margin
        _posterior(value, group, low, high, *bounds, beta, margin, odds, found)
        return found

    def crossing(self, probability: float = 0.5, end: End = "high") -> Float64s:
        """By group the score beyond which the monotone posterior of an end exceeds a probability.

        At 0.5 both components, by their weights, are equally dense there. Infinite where no score
        reaches it, or every score does; nan for a group without a fit.
        """
        low, high = self.monotone()
        inner, outer = (low, high) if end == "high" else (high, low)
        out = np.inf if end == "high" else -np.inf
        near, far = inner.copy(), outer.copy()
        for _ in range(60):
            middle = (near + far) / 2
            above = self.at(middle, end) > probability
            near, far = np.where(above, near, middle), np.where(above, middle, far)
        found = self.sample.low * (1 - far) + self.sample.high * far
        found[self.at(inner, end) > probability] = -out
        found[self.at(outer, end) <= probability] = out
        found[np.isnan(self.mean[:, 0])] = np.nan
        return found

    def apart(self) -> npt.NDArray[np.bool_]:
        """By group, whether each component is the likelier one at its own mean."""
        lower, higher = self.at(self.mean[:, 0]), self.at(self.mean[:, 1])
        found: npt.NDArray[np.bool_] = (lower < 0.5) & (higher > 0.5)
        return found


@njit(**KERNEL)
def _odds(beta, weight, mean, variance, found):  # type: ignore[no-untyped-def]
    for g in range(mean.shape[0]):
        if not math.isnan(mean[g, 0]):
            p0, q0, c0 = log_density(beta, mean[g, 0], variance[g, 0])
            p1, q1, c1 = log_density(beta, mean[g, 1], variance[g, 1])
            found[g, 0], found[g, 1] = p1 - p0, q1 - q0
            found[g, 2] = c1 - c0 + math.log(weight[g, 1]) - math.log(weight[g, 0])


@njit(**KERNEL)
def _posterior(value, group, low, high, bound_low, bound_high, beta, margin, odds, found):  # type: ignore[no-untyped-def]
    for i in range(value.shape[0]):
        g = group[i]
        if math.isnan(odds[g, 0]) or not math.isfinite(value[i]):
            found[i] = np.nan
            continue
        x = (value[i] / 2 - low[g] / 2) / (high[g] / 2 - low[g] / 2)
        x = min(max(x, bound_low[g]), bound_high[g])
        if beta:
            x = min(max(x, margin), 1 - margin)
            d = odds[g, 0] * math.log(x) + odds[g, 1] * math.log1p(-x) + odds[g, 2]
        else:
            d = odds[g, 0] * x * x + odds[g, 1] * x + odds[g, 2]
        e = math.exp(-abs(d))
        found[i] = 1.0 / (1.0 + e) if d >= 0 else e / (1.0 + e)


def fit_mixtures(sample: Sample, kind: Kind) -> Mixtures:
    """Fit two components to the scores of every group.

    `gaussian`: scikit-learn's GaussianMixture with two components, at most 10 iterations, a
    tolerance of 1e-2 and 5e-4 added to variances, as DivideMix has it; its k-means
    starts from the mean, not at random. `beta`: 10 iterations from (1, 2) and (2, 1) with
    weights of a half; the M-step matches moments.

    Source:
        Li et al. 2020, DivideMix (arXiv 2002.07394); Arazo et al. 2019, Unsupervised label noise
        modeling and loss correction (arXiv 1904.11238).

    Example:
        >>> draws = np.random.default_rng(0)
        >>> x = np.concatenate([draws.beta(2, 10, 700), draws.beta(8, 3, 300)])
        >>> found = fit_mixtures(scaled_sample(x, scale="none"), "beta")
        >>> found.a.round(3).tolist(), found.b.round(3).tolist(), found.weight.round(3).tolist()
        ([[2.431, 2.913]], [[14.439, 1.485]], [[0.634, 0.366]])
    """
    beta = kind == "beta"
    return _fitted(sample, kind, not beta, ITERATIONS, 0.0 if beta else TOLERANCE)


def converged_mixtures(sample: Sample, kind: Kind) -> Mixtures:
    """As `fit_mixtures`, but from the two clusters of 2-means and until the fit stands still.

    The published beta mixture may end where one component holds both sorts of rows.
    """
    return _fitted(sample, kind, True, CONVERGED_ITERATIONS, CONVERGED_TOLERANCE)


def _fitted(sample: Sample, kind: Kind, split: bool, iterations: int, tolerance: float) -> Mixtures:
    shape = (len(sample.begin), 2)
    weight, mean, variance = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    likely = np.full(shape[0], np.nan)
    beta = kind == "beta"
    where = (sample.x, sample.begin, sample.end, beta, sample.margin, split)
    how = (iterations, tolerance, 0.0 if beta else ADDED_VARIANCE)
    _fit(*where, *how, weight, mean, variance, likely)
    return Mixtures(kind, sample, weight, mean, variance, likely)
