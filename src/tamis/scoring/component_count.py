"""Whether scores have two components, or one would do.

Two components always describe scores better than one of the same kind, if only because losses are
skewed and Gaussians are not. So two components compete with single distributions of many shapes:
the exponential families on [0, 1] below, among them the (truncated) normal, gamma, log-normal and
beta distributions and both exponentials, as long as they have one peak. Two components win if they
gain more than BIC asks for their further parameters, and `LEAST_GAIN` more on every row.

How often that errs was measured on drawn scores; docs/mixture-thresholds.md has the figures.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from tamis.scoring.component_fits import (
    MARGIN,
    Float64s,
    Kind,
    Mixtures,
    Sample,
    Scale,
    converged_mixtures,
    scaled_sample,
)
from tamis.scoring.component_goodness import share_below
from tamis.storage.kernels import KERNEL, Int64s

#: Scores of a group that are looked at: its quantiles at even steps.
MOST_SCORES = 4096
#: Fewer different scores say nothing of components: few rows look like two groups by chance, and
#: counts, such as the epochs in which a row was right, like a peak at every number.
LEAST_SCORES = 50
#: Gain of two components over one, nats a row: what a model that is only nearly right may gain on
#: many rows is no reason to cut. Chosen by measurement, see docs/mixture-thresholds.md.
LEAST_GAIN = 0.01
#: Pairs of components that compete, and the scales that they are fitted on.
PAIRS: tuple[tuple[Kind, Scale], ...] = (
    ("gaussian", "minmax"),
    ("beta", "minmax"),
    ("gaussian", "percentiles"),
    ("beta", "percentiles"),
)
#: Single distributions with densities proportional to exp(s f + t g), by the numbers of f and g
#: among x, x², log x, log² x, log(1 - x), log²(1 - x); -1 is none.
SINGLES: dict[str, tuple[int, int]] = {
    "exponential": (0, -1),
    "power": (2, -1),
    "mirrored power": (4, -1),
    "normal": (0, 1),
    "gamma": (2, 0),
    "mirrored gamma": (4, 0),
    "log-normal": (2, 3),
    "mirrored log-normal": (4, 5),
    "beta": (2, 4),
}
_PARAMETERS = 5
_NODES = 512


@dataclass(frozen=True)
class Components:
    """By group, what two components gain over one.

    Attributes:
        gain: float64, nats a row by which the best pair describes the scores better than the best
            single distribution, BIC's penalty for its parameters taken off; -inf where no pair has
            two places. nan for a group of fewer than `LEAST_SCORES` different ones.
        single: name of the best single distribution, a key of `SINGLES`.
    """

    gain: Float64s
    single: list[str]

    @property
    def two(self) -> npt.NDArray[np.bool_]:
        """Whether one component would not do."""
        found: npt.NDArray[np.bool_] = self.gain > LEAST_GAIN
        return found


def count_components(sample: Sample) -> Components:
    """See the module.

    Example:
        >>> draws = np.random.default_rng(0)
        >>> one, other = draws.exponential(1, 2000), draws.normal(9, 1, 500)
        >>> count_components(scaled_sample(one)).two.tolist()
        [False]
        >>> count_components(scaled_sample(np.concatenate([one, other]))).two.tolist()
        [True]
    """
    groups = len(sample.begin)
    x, group = _thinned(sample)
    new = np.r_[True, (x[1:] != x[:-1]) | (group[1:] != group[:-1])][: len(x)]
    different = np.bincount(group[new], minlength=groups)
    gain, best = np.full(groups, np.nan), np.zeros(groups, np.int64)
    scales = dict.fromkeys(scale for _, scale in PAIRS)
    for scale in scales:
        scaled = scaled_sample(x, group, groups, scale)
        rows = scaled.rows.astype(np.float64)
        one, which = _best_single(scaled, different >= LEAST_SCORES)
        for kind, on in PAIRS:
            if on == scale:
                pair = converged_mixtures(scaled, kind)
                with np.errstate(invalid="ignore", divide="ignore"):
                    two = _mean_log_density(pair) - _penalty(_PARAMETERS, rows)
                    found = np.where(pair.apart(), two - one, -np.inf)
                found[np.isnan(pair.mean[:, 0]) | (different < LEAST_SCORES)] = np.nan
                better = ~(found <= gain) & ~np.isnan(found)
                gain[better], best[better] = found[better], which[better]
    names = list(SINGLES)
    return Components(gain, [names[number] for number in best])


def _penalty(parameters: int, rows: Float64s) -> Float64s:
    """BIC's, in nats a row."""
    found: Float64s = parameters * np.log(rows) / (2 * rows)
    return found


def _thinned(sample: Sample) -> tuple[Float64s, Int64s]:
    """Scores of every group, or quantiles of them, and their groups; those not fitted too."""
    size = sample.scored
    kept = np.minimum(size, MOST_SCORES)
    group = np.repeat(np.arange(len(size)), kept)
    place = np.arange(len(group)) - np.repeat(np.cumsum(kept) - kept, kept)
    inside = (place * 2 + 1) * size[group] // (2 * kept[group])
    return sample.scores[(np.cumsum(size) - size)[group] + inside], group


def _mean_log_density(pair: Mixtures) -> Float64s:
    """Mean log-density of the pair within [0, 1], where single distributions have theirs."""
    inside = np.full(len(pair.mean), np.nan)
    _inside(pair.kind == "beta", pair.weight, pair.mean, pair.variance, MARGIN, inside)
    found: Float64s = pair.log_likelihood / pair.sample.rows - np.log(inside)
    return found


@njit(**KERNEL)
def _inside(beta, weight, mean, variance, margin, found):  # type: ignore[no-untyped-def]
    low, high = (margin, 1 - margin) if beta else (0.0, 1.0)
    for g in range(mean.shape[0]):
        if not math.isnan(mean[g, 0]):
            share = 0.0
            for k in range(2):
                below = share_below(beta, mean[g, k], variance[g, k], low)
                share += weight[g, k] * (
                    share_below(beta, mean[g, k], variance[g, k], high) - below
                )
            found[g] = share


def _features(x: Float64s) -> Float64s:
    low, high = np.log(x), np.log1p(-x)
    return np.stack([x, x * x, low, low * low, high, high * high])


def _best_single(sample: Sample, enough: npt.NDArray[np.bool_]) -> tuple[Float64s, Int64s]:
    """By group the best single distribution's mean log-density less its penalty, and its number;
    nan for groups without enough scores.
    """
    # Integrals over x are sums over even steps of log(x / (1 - x)), which are dense at both ends.
    edge = math.log((1 - MARGIN) / MARGIN)
    step = 2 * edge / _NODES
    x = 1 / (1 + np.exp(edge - (np.arange(_NODES) + 0.5) * step))
    families = np.array(list(SINGLES.values()), np.int64)
    groups = len(sample.begin)
    best, which = np.full(groups, np.nan), np.zeros(groups, np.int64)
    mean = np.full((groups, 6), np.nan)
    for number in np.flatnonzero(enough & (sample.rows > 0)):
        mine = sample.x[sample.begin[number] : sample.end[number]]
        mean[number] = _features(np.clip(mine, MARGIN, 1 - MARGIN)).mean(axis=1)
    _best(_features(x), x * (1 - x) * step, families, mean, sample.rows, best, which)
    return best, which


@njit(**KERNEL)
def _best(features, widths, families, mean, rows, best, which):  # type: ignore[no-untyped-def]
    ones = np.ones(widths.shape[0])
    for g in range(mean.shape[0]):
        if math.isnan(mean[g, 0]):
            continue
        best[g] = -np.inf
        for k in range(families.shape[0]):
            i, j = families[k]
            second, target = (features[j], mean[g, j]) if j >= 0 else (ones, 1.0)
            value = _one_peak(features[i], second, widths, mean[g, i], target, j >= 0)
            value -= (2 if j >= 0 else 1) * math.log(rows[g]) / (2 * rows[g])
            if value > best[g]:
                best[g], which[g] = value, k


@njit(**KERNEL)
def _log_total(f, g, widths, s, t, share):  # type: ignore[no-untyped-def]
    """Log of the integral of exp(s f + t g); `share` gets every node's part of it."""
    most = -np.inf
    for i in range(f.shape[0]):
        share[i] = s * f[i] + t * g[i]
        most = max(most, share[i])
    total = 0.0
    for i in range(f.shape[0]):
        share[i] = widths[i] * math.exp(share[i] - most)
        total += share[i]
    for i in range(f.shape[0]):
        share[i] /= total
    return most + math.log(total)


@njit(**KERNEL)
def _one_peak(f, g, widths, mean_f, mean_g, both):  # type: ignore[no-untyped-def]
    """Highest mean log-density of a density exp(s f + t g), by Newton's method.

    -inf if that density has two peaks: then it is no single component.
    """
    s = t = 0.0
    share = np.empty(f.shape[0])
    value = s * mean_f + t * mean_g - _log_total(f, g, widths, s, t, share)
    for _ in range(60):
        ef = eg = eff = egg = efg = 0.0
        for i in range(f.shape[0]):
            ef += share[i] * f[i]
            eg += share[i] * g[i]
        for i in range(f.shape[0]):
            eff += share[i] * (f[i] - ef) ** 2
            egg += share[i] * (g[i] - eg) ** 2
            efg += share[i] * (f[i] - ef) * (g[i] - eg)
        df, dg = mean_f - ef, mean_g - eg
        eff, egg = eff + 1e-12, egg + 1e-12
        if both:
            size = eff * egg - efg * efg
            move_s, move_t = (egg * df - efg * dg) / size, (eff * dg - efg * df) / size
        else:
            move_s, move_t = df / eff, 0.0
        rise = move_s * df + move_t * dg
        if not rise > 1e-9:
            break
        part = 1.0
        while part > 1e-8:
            now = (s + part * move_s) * mean_f + (t + part * move_t) * mean_g
            now -= _log_total(f, g, widths, s + part * move_s, t + part * move_t, share)
            if now >= value:
                break
            part /= 2
        if part <= 1e-8:
            break
        s, t, value = s + part * move_s, t + part * move_t, now
    falling = False
    before = s * f[0] + t * g[0]
    for i in range(1, f.shape[0]):
        here = s * f[i] + t * g[i]
        if here > before and falling:
            return -np.inf
        falling |= here < before
        before = here
    return value
