"""One component or two: drawn scores of known make, and the single distributions by themselves."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from tamis.scoring import component_count
from tamis.scoring.component_count import SINGLES, count_components
from tamis.scoring.component_fits import MARGIN, scaled_sample

Draw = Callable[[np.random.Generator, int], Any]
ONE: dict[str, Draw] = {
    "normal": lambda r, n: r.normal(size=n),
    "uniform": lambda r, n: r.random(n),
    "exponential": lambda r, n: r.exponential(size=n),
    "gamma": lambda r, n: r.gamma(0.5, size=n),
    "log-normal": lambda r, n: r.lognormal(0, 1, n),
    "skewed beta": lambda r, n: r.beta(2, 10, n),
    "j-shaped beta": lambda r, n: r.beta(0.5, 3, n),
    "heavy tails": lambda r, n: r.standard_t(4, size=n),
    "laplace": lambda r, n: r.laplace(size=n),
    "losses of a calibrated model": lambda r, n: -np.log(r.beta(8, 1, n)),
    "losses of normal logits": lambda r, n: np.log1p(np.exp(r.normal(-3, 2, n))),
}
ENOUGH = np.array([True])
TWO: dict[str, Draw] = {
    "normal": lambda r, n: np.concatenate([r.normal(0, 1, n * 4 // 5), r.normal(4, 1, n // 5)]),
    "beta": lambda r, n: np.concatenate([r.beta(2, 10, n * 7 // 10), r.beta(8, 3, n * 3 // 10)]),
    "losses": lambda r, n: np.concatenate(
        [r.exponential(0.3, n * 9 // 10), abs(r.normal(3, 1, n // 10))]
    ),
    "confidences": lambda r, n: np.concatenate(
        [r.beta(8, 1, n * 8 // 10), r.beta(1, 5, n * 2 // 10)]
    ),
}


@pytest.mark.parametrize("name", ONE)
def test_one_component_is_not_taken_for_two(name: str) -> None:
    random = np.random.default_rng(5)
    wrong = [count_components(scaled_sample(ONE[name](random, 2000))).two[0] for _ in range(5)]
    assert sum(wrong) == 0


@pytest.mark.parametrize("name", TWO)
def test_two_components_are_found(name: str) -> None:
    random = np.random.default_rng(6)
    found = [count_components(scaled_sample(TWO[name](random, 2000))).two[0] for _ in range(5)]
    assert sum(found) == 5


def test_groups_are_counted_as_if_alone_in_any_order_at_any_scale() -> None:
    random = np.random.default_rng(7)
    parts = [ONE["exponential"](random, 900), TWO["normal"](random, 6000), [], [2.0, 2.0]]
    x = np.concatenate(parts)
    group = np.repeat(np.arange(4), [len(part) for part in parts])
    order = random.permutation(len(x))
    for scale in ("minmax", "percentiles"):
        found = count_components(scaled_sample(x[order], group[order], 4, scale))
        assert found.two.tolist() == [False, True, False, False]
        assert np.isnan(found.gain[2:]).all()
        for number in range(2):
            alone = count_components(scaled_sample(np.asarray(parts[number])))
            assert alone.gain[0] == found.gain[number]
            assert alone.single[0] == found.single[number]
    moved = count_components(scaled_sample(TWO["normal"](np.random.default_rng(1), 900) * 7 - 90))
    still = count_components(scaled_sample(TWO["normal"](np.random.default_rng(1), 900)))
    assert moved.gain[0] == pytest.approx(still.gain[0], abs=1e-6)


@pytest.mark.parametrize("draw", [(5, 0.8), (20, 0.5)])
@pytest.mark.parametrize("rows", [5_000, 50_000])
def test_counts_are_not_taken_for_components(draw: tuple[int, float], rows: int) -> None:
    counts = np.random.default_rng(8).binomial(*draw, rows)
    found = count_components(scaled_sample(counts.astype(float)))
    assert np.isnan(found.gain[0])
    assert not found.two[0]


def test_few_rows_are_not_taken_for_two_components_by_chance() -> None:
    x = np.random.default_rng(9).normal(size=(500, 12))
    group = np.repeat(np.arange(500), 12)
    assert not count_components(scaled_sample(x.ravel(), group, 500)).two.any()


def mean_log_density(name: str, x: Any) -> float:
    """The best of a family on [0, 1], by a general optimiser and a fine integral."""
    i, j = SINGLES[name]
    edge = math.log((1 - MARGIN) / MARGIN)
    steps = np.linspace(-edge, edge, 20_001)
    places = 1 / (1 + np.exp(-steps))
    features = component_count._features(places)
    mine = component_count._features(np.clip(x, MARGIN, 1 - MARGIN)).mean(axis=1)
    rows = [i] if j < 0 else [i, j]

    def loss(theta: Any) -> float:
        exponent = theta @ features[rows] + np.log(places * (1 - places))
        most = exponent.max()
        total = most + math.log(np.trapezoid(np.exp(exponent - most), steps))
        return float(total - theta @ mine[rows])

    best = optimize.minimize(
        loss,
        np.zeros(len(rows)),
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-11, "maxiter": 5000},
    )
    return -float(best.fun)


@pytest.mark.parametrize("name", SINGLES)
def test_single_distributions_are_fitted_as_by_an_optimiser(name: str, monkeypatch: Any) -> None:
    x = np.random.default_rng(8).beta(2, 4, 800)
    monkeypatch.setattr(component_count, "SINGLES", {name: SINGLES[name]})
    value, _ = component_count._best_single(scaled_sample(x, scale="none"), ENOUGH)
    parameters = 1 if SINGLES[name][1] < 0 else 2
    found = value[0] + parameters * math.log(800) / 1600
    assert found == pytest.approx(mean_log_density(name, x), abs=1e-5)


def test_the_beta_among_them_is_that_of_scipy(monkeypatch: Any) -> None:
    x = np.random.default_rng(9).beta(2, 4, 800)
    monkeypatch.setattr(component_count, "SINGLES", {"beta": SINGLES["beta"]})
    value, _ = component_count._best_single(scaled_sample(x, scale="none"), ENOUGH)
    a, b, _, _ = stats.beta.fit(x, floc=0, fscale=1)
    assert value[0] + math.log(800) / 800 == pytest.approx(
        stats.beta.logpdf(x, a, b).mean(), abs=1e-5
    )


def test_a_u_shape_is_no_single_component(monkeypatch: Any) -> None:
    x = np.random.default_rng(10).beta(0.3, 0.3, 800)
    monkeypatch.setattr(component_count, "SINGLES", {"beta": SINGLES["beta"]})
    assert component_count._best_single(scaled_sample(x, scale="none"), ENOUGH)[0][0] == -math.inf
    monkeypatch.undo()
    assert count_components(scaled_sample(x)).two[0]
