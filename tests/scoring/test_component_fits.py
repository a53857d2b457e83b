"""Mixtures against worked numbers, scikit-learn, and a slow independent fit."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.mixture import GaussianMixture

from tamis.scoring.component_fits import Kind, Mixtures, Scale, fit_mixtures, scaled_sample
from tamis.scoring.component_goodness import beta_share, chance_bound, distances

KINDS: tuple[Kind, ...] = ("gaussian", "beta")
SCALES: tuple[Scale, ...] = ("minmax", "percentiles")
SCORES = st.lists(
    st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf])),
    max_size=60,
)


def draws() -> np.ndarray[Any, Any]:
    """The worked example's: 700 of Beta(2, 10), then 300 of Beta(8, 3)."""
    random = np.random.default_rng(0)
    return np.concatenate([random.beta(2, 10, 700), random.beta(8, 3, 300)])


def fit(x: Any, kind: Kind = "gaussian", scale: Scale = "minmax") -> Mixtures:
    return fit_mixtures(scaled_sample(np.asarray(x, np.float64), scale=scale), kind)


def test_the_worked_beta_mixture() -> None:
    found = fit(draws(), "beta", "none")
    assert found.a.round(5).tolist() == [[2.43131, 2.91331]]
    assert found.b.round(5).tolist() == [[14.43878, 1.48489]]
    assert found.weight.round(5).tolist() == [[0.63447, 0.36553]]
    # The published code looks posteriors up at 100 places, the one before a score taken for the
    # k-th of the 99 steps between them. At the scores themselves one row fewer is noisy.
    places = np.minimum((100 * draws()).astype(int), 99) / 99
    assert (found.posterior(places) > 0.5).sum() == 334
    assert (found.posterior(draws()) > 0.5).sum() == 333


def test_the_worked_gaussian_mixture() -> None:
    found = fit(draws())
    assert found.mean.round(5).tolist() == [[0.15739, 0.74797]]
    assert (found.posterior(draws(), monotone=False) <= 0.5).sum() == 688
    assert (found.posterior(draws()) <= 0.5).sum() == 688


def reference(x: np.ndarray[Any, Any], start: int) -> GaussianMixture:
    """scikit-learn's, with DivideMix's settings, from the same two clusters."""
    low, high = x[:start], x[start:]
    return GaussianMixture(
        2,
        max_iter=10,
        tol=1e-2,
        reg_covar=5e-4,
        weights_init=[len(low) / len(x), len(high) / len(x)],
        means_init=[[low.mean()], [high.mean()]],
        precisions_init=[[[1 / (part.var() + 5e-4)]] for part in (low, high)],
    ).fit(x[:, None])


@pytest.mark.parametrize("seed", range(6))
def test_gaussians_are_those_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = np.sort(
        np.concatenate([random.exponential(1, 900), random.normal(seed, 1 + seed / 4, 200)])
    )
    scaled = (x - x.min()) / (x.max() - x.min())
    cut, before = 0, -1
    limit = scaled.mean()
    while cut != before:  # Lloyd's k-means from the mean
        before, cut = cut, int(np.searchsorted(scaled, limit, "right"))
        limit = (scaled[:cut].mean() + scaled[cut:].mean()) / 2
    theirs = reference(scaled, cut)
    order = np.argsort(theirs.means_.ravel())
    ours = fit(x)
    assert ours.mean[0] == pytest.approx(theirs.means_.ravel()[order], rel=1e-9)
    assert ours.variance[0] == pytest.approx(theirs.covariances_.ravel()[order], rel=1e-9)
    assert ours.weight[0] == pytest.approx(theirs.weights_[order], rel=1e-9)
    assert ours.log_likelihood[0] == pytest.approx(theirs.score(scaled[:, None]) * len(x), rel=1e-9)
    expected = theirs.predict_proba(scaled[:, None])[:, order[1]]
    assert ours.posterior(x, monotone=False) == pytest.approx(expected, abs=1e-9)
    again = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    again.fit(scaled[:, None])  # from a random k-means: near, not the same
    assert ours.mean[0] == pytest.approx(np.sort(again.means_.ravel()), abs=0.02)


def slow_beta(x: np.ndarray[Any, Any]) -> tuple[list[float], list[float], list[float]]:
    """Arazo et al.'s EM, with scipy's densities."""
    x = np.clip(x, 1e-4, 1 - 1e-4)
    a, b, w = [1.0, 2.0], [2.0, 1.0], [0.5, 0.5]
    for _ in range(10):
        density = np.stack([w[k] * stats.beta.pdf(x, a[k], b[k]) for k in range(2)])
        share = density / density.sum(axis=0)
        for k in range(2):
            mean = (share[k] * x).sum() / share[k].sum()
            variance = (share[k] * (x - mean) ** 2).sum() / share[k].sum()
            a[k] = mean * (mean * (1 - mean) / variance - 1)
            b[k] = a[k] * (1 - mean) / mean
            w[k] = share[k].sum() / len(x)
    return a, b, w


@pytest.mark.parametrize("seed", range(4))
def test_betas_are_those_of_a_slow_fit(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = np.concatenate([random.beta(1 + seed, 9, 500), random.beta(6, 2, 60 * (seed + 1))])
    a, b, w = slow_beta(x)
    found = fit(x, "beta", "none")
    assert found.a[0] == pytest.approx(a, rel=1e-7)
    assert found.b[0] == pytest.approx(b, rel=1e-7)
    assert found.weight[0] == pytest.approx(w, rel=1e-7)
    inside = np.clip(x, 1e-4, 1 - 1e-4)
    density = [w[k] * stats.beta.pdf(inside, a[k], b[k]) for k in range(2)]
    assert found.posterior(x, monotone=False) == pytest.approx(density[1] / sum(density), abs=1e-7)
    total = np.log(sum(density)).sum()
    assert found.log_likelihood[0] == pytest.approx(total, rel=1e-7)


def test_percentiles_leave_out_the_ends_as_published() -> None:
    x = np.append(draws() * 3, [50.0, -7.0])
    low, high = np.percentile(x, [5, 95])
    inside = x[(x >= low) & (x <= high)]
    sample = scaled_sample(x, scale="percentiles")
    assert (sample.low[0], sample.high[0]) == pytest.approx((low, high))
    assert sample.rows[0] == len(inside)
    found = fit_mixtures(sample, "beta")
    a, b, _ = slow_beta(np.clip((inside - low) / (high - low), 0.001, 0.999))
    assert found.a[0] == pytest.approx(a, rel=1e-7)
    assert found.b[0] == pytest.approx(b, rel=1e-7)
    ends = found.posterior(np.array([50.0, high, -7.0, low]))
    assert ends[0] == ends[1]
    assert ends[2] == ends[3]


@settings(deadline=None)
@given(
    scores=SCORES,
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from(SCALES),
    seed=st.integers(0, 9),
)
def test_posteriors_are_probabilities_that_rise_in_any_order(
    scores: list[float], kind: Kind, scale: Scale, seed: int
) -> None:
    x = np.array(scores, np.float64)
    order = np.random.default_rng(seed).permutation(len(x))
    found = fit(x, kind, scale)
    shuffled = fit(x[order], kind, scale)
    for name in ("weight", "mean", "variance", "log_likelihood"):
        assert np.array_equal(getattr(found, name), getattr(shuffled, name), equal_nan=True)
    high, low = found.posterior(x), found.posterior(x, end="low")
    fitted = not np.isnan(found.mean[0, 0])
    assert np.array_equal(~np.isnan(high), np.isfinite(x) & fitted)
    if not fitted:
        finite = x[np.isfinite(x)]
        if scale == "minmax":
            assert len(np.unique(finite)) < 2
        return
    there = np.isfinite(x)
    assert high[there] + low[there] == pytest.approx(1)
    assert found.mean[0, 0] <= found.mean[0, 1]
    assert found.weight[0].sum() == pytest.approx(1)
    rising = high[there][np.argsort(x[there])]
    assert ((rising >= 0) & (rising <= 1)).all()
    assert (np.diff(rising) >= -1e-12).all()
    for probability in (0.2, 0.5):
        cut = found.crossing(probability)[0]
        away = there & ~np.isclose(x, cut, rtol=1e-9, atol=1e-9)
        assert ((high > probability) == (x > cut))[away].all()
        cut = found.crossing(probability, "low")[0]
        away = there & ~np.isclose(x, cut, rtol=1e-9, atol=1e-9)
        assert ((low > probability) == (x < cut))[away].all()


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    factor=st.floats(1e-6, 1e6),
    offset=st.floats(-1e3, 1e3),
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from(SCALES),
)
def test_the_scale_of_the_scores_does_not_matter(
    seed: int, factor: float, offset: float, kind: Kind, scale: Scale
) -> None:
    random = np.random.default_rng(seed)
    x = np.concatenate([random.exponential(1, 80), random.normal(6, 1, 30)])
    moved = x * factor + offset * factor
    once, again = fit(x, kind, scale), fit(moved, kind, scale)
    assert again.posterior(moved) == pytest.approx(once.posterior(x), abs=1e-6)
    # Turned about, the other end is noisy.
    turned = fit(-x, kind, scale)
    assert turned.posterior(-x, end="low") == pytest.approx(once.posterior(x), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_fitted_as_if_alone(kind: Kind) -> None:
    random = np.random.default_rng(3)
    x = np.concatenate([random.beta(2, 8, 300), random.beta(7, 2, 90), [0.5, math.nan, 0.1, 0.1]])
    group = np.concatenate([random.integers(0, 3, 390), [3, 3, 4, 4]])
    for scale in SCALES:
        together = fit_mixtures(scaled_sample(x, group, 6, scale), kind)
        posterior = together.posterior(x, group)
        for number in range(3):
            mine = group == number
            alone = fit(x[mine], kind, scale)
            assert np.array_equal(together.mean[number], alone.mean[0])
            assert np.array_equal(together.weight[number], alone.weight[0])
            assert np.array_equal(posterior[mine], alone.posterior(x[mine]))
        assert np.isnan(together.mean[3:]).all()
        assert np.isnan(posterior[group >= 3]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "scores", [[], [1.0], [2.0] * 9, [math.nan, math.inf], [0.0] * 5, [1.0] * 5, [3.0, math.nan]]
)
def test_nothing_is_fitted_to_fewer_than_two_values(kind: Kind, scores: list[float]) -> None:
    for scale in SCALES:
        found = fit(scores, kind, scale)
        assert np.isnan(found.mean).all()
        assert np.isnan(found.posterior(np.array(scores, np.float64))).all()
        assert np.isnan(distances(found)).all()
        assert np.isnan(found.crossing()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_two_values_are_two_components(kind: Kind) -> None:
    x = np.array([0.0] * 70 + [1.0] * 30)
    found = fit(x, kind, "none")
    assert found.weight[0] == pytest.approx([0.7, 0.3], abs=1e-3)
    assert found.posterior(x)[[0, -1]] == pytest.approx([0, 1], abs=1e-6)
    assert found.apart().all()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_as_far_apart_as_there_are(kind: Kind) -> None:
    x = np.array([-1.7e308, -1.6e308, -1.65e308, 1.6e308, 1.7e308])
    assert fit(x, kind).posterior(x).round().tolist() == [0, 0, 0, 1, 1]
    tiny = np.array([0.0, 5e-324, 1e-323, 1.0, 1.0 + 2**-52])
    assert np.isfinite(fit(tiny, kind).posterior(tiny)).all()


def test_shares_of_a_beta_distribution_are_those_of_scipy() -> None:
    for a in (0.05, 0.5, 1.0, 2.5, 40.0, 5000.0):
        for b in (0.05, 1.0, 3.0, 700.0, 5000.0):
            for x in (0.0, 1e-4, 0.01, 0.3, 0.5, 0.77, 0.999, 1.0):
                assert beta_share(a, b, x) == pytest.approx(
                    stats.beta.cdf(x, a, b), rel=1e-9, abs=1e-13
                )


@pytest.mark.parametrize(("kind", "scale"), [("gaussian", "minmax"), ("beta", "none")])
def test_distances_are_those_of_scipy(kind: Kind, scale: Scale) -> None:
    x = draws()
    found = fit(x, kind, scale)
    low, high = found.sample.low[0], found.sample.high[0]

    def share(value: Any) -> Any:
        place = (value - low) / (high - low)
        total = 0.0
        for k in range(2):
            if kind == "gaussian":
                part = stats.norm.cdf(place, found.mean[0, k], found.variance[0, k] ** 0.5)
            else:
                part = stats.beta.cdf(place, found.a[0, k], found.b[0, k])
            total = total + found.weight[0, k] * part
        return total

    expected = stats.kstest(x, share)
    assert distances(found)[0] == pytest.approx(expected.statistic, abs=1e-9)
    # The bound holds for a distribution that was not fitted to the scores.
    assert chance_bound(distances(found), np.array([1000.0]))[0] >= expected.pvalue
    many = np.tile(x, 30)  # more than are compared one by one
    assert distances(fit(many, kind, scale))[0] == pytest.approx(expected.statistic, abs=1 / 2048)


def test_beyond_its_extremum_a_posterior_stays_as_it_is() -> None:
    """A wide noisy component is likelier on both sides of a narrow clean one."""
    random = np.random.default_rng(1)
    x = np.concatenate([random.normal(0, 0.2, 800), random.normal(2, 2, 200)])
    found = fit(x)
    least = x.min()
    assert found.posterior(np.array([least]), monotone=False)[0] > 0.9
    assert found.posterior(np.array([least]))[0] < 0.05
    low, _ = found.monotone()
    turn = found.sample.low + low * (found.sample.high - found.sample.low)
    assert found.posterior(turn)[0] == pytest.approx(found.posterior(np.array([least]))[0])
