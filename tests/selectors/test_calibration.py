"""Thresholds against slow counts, measures of isotropy against what their papers say."""

from typing import Any

import numpy as np
import pytest

from tamis.selectors.calibration import (
    _at_rate,
    _best_f1,
    calibrate,
    isoscore,
    partition_isotropy,
)
from tamis.storage.errors import UserError
from tests.selectors.test_nearest import unit_rows


def planted(pairs: int = 400, noise: float = 0.5, seed: int = 0) -> tuple[Any, Any, Any]:
    """Pairs of vectors some way apart, every text its own."""
    left = unit_rows(pairs, 32, seed)
    right = left + noise * unit_rows(pairs, 32, seed + 1)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return left, right.astype(np.float32), (np.arange(pairs), np.arange(pairs))


def test_the_threshold_keeps_the_rate_of_false_positives() -> None:
    left, right, same = planted()
    found = calibrate(left, right, same, false_positives=0.01)
    at = found["thresholds"]["false_positives"]
    every = left.astype(np.float64) @ right.T
    others = every[~np.eye(len(left), dtype=bool)]
    # Of all pairs, of which the sample is a quarter.
    assert (others >= at["threshold"]).mean() == pytest.approx(0.01, abs=0.002)
    assert at["low"] < np.quantile(others, 0.99) < at["high"]
    assert at["false_positives"] <= 0.01
    assert at["recall"] == (np.diag(every) >= at["threshold"]).mean()
    f1 = found["thresholds"]["best_f1"]
    nearest = np.where(np.eye(len(left), dtype=bool), -1, every).max(axis=1)
    assert found["top1"]["accuracy"] == (np.diag(every) > nearest).mean()

    def f1_at(t: float) -> float:
        hits, false = (np.diag(every) >= t).sum(), (nearest >= t).sum()
        return float(2 * hits / (hits + false + len(every)))

    assert f1["f1"] == pytest.approx(max(f1_at(t) for t in np.linspace(-1, 1, 4001)))
    assert f1["low"] <= f1["threshold"] <= f1["high"]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """The truth is the quantile over many more pairs; 40 samples, 95 % each."""
    left, right, _ = planted(2000, seed=50)
    every = left.astype(np.float64) @ right.T
    truth = np.quantile(every[~np.eye(len(left), dtype=bool)], 0.99)
    inside = 0
    for sample in range(40):
        rows = np.random.default_rng(sample).choice(2000, 100, replace=False)
        same = (np.arange(100), np.arange(100))
        at = calibrate(left[rows], right[rows], same, false_positives=0.01, seed=sample)
        at = at["thresholds"]["false_positives"]
        inside += at["low"] <= truth <= at["high"]
    assert inside >= 33  # binomial(40, .95): fewer has a chance of 0.003


def test_the_same_text_is_no_random_partner() -> None:
    left, right, _ = planted(200)
    # The first 100 texts occur twice, with another partner each time.
    left[100:] = left[:100]
    right[100:] = left[:100] + 0.5 * unit_rows(100, 32, 7)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    same = (np.tile(np.arange(100), 2), np.arange(200))
    told = calibrate(left, right, same, false_positives=0.01)
    not_told = calibrate(left, right, (np.arange(200), np.arange(200)), false_positives=0.01)
    assert told["thresholds"]["false_positives"]["threshold"] < 0.7
    assert told["similarity"]["nearest_other"]["0.5"] < 0.7
    assert not_told["similarity"]["nearest_other"]["0.5"] > 0.85


def test_overlap_of_what_is_alike_and_what_is_not() -> None:
    left, right, same = planted(noise=0.1)
    assert calibrate(left, right, same)["overlap"]["pairs_random"] == 0
    mixed = calibrate(left, unit_rows(400, 32, 9), same)
    assert mixed["overlap"]["pairs_random"] > 0.8
    assert mixed["top1"]["accuracy"] < 0.05


def test_ties_and_small_samples() -> None:
    assert _at_rate(np.array([0.5] * 10), 0.1) > 0.5  # all ten would be false positives
    assert _at_rate(np.array([0.1, np.nan]), 1.0) == 0.1
    assert _best_f1(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0.5
    left, right, same = planted(20)
    with pytest.raises(UserError, match="20 pairs are too few for a rate of"):
        calibrate(left, right, same)
    with pytest.raises(UserError, match="all pairs share a text"):
        calibrate(left, right, (np.zeros(20, int), np.arange(20)), false_positives=0.5)


@pytest.mark.parametrize(("used", "of"), [(1, 8), (3, 8), (8, 8)])
def test_isoscore_counts_dimensions(used: int, of: int) -> None:
    points = np.zeros((2 * used, of))
    points[np.arange(used), np.arange(used)] = 1
    points[used + np.arange(used), np.arange(used)] = -1
    assert isoscore(points + 5) == pytest.approx((used - 1) / (of - 1), abs=1e-9)


def test_isotropy_of_one_sided_and_of_even_vectors() -> None:
    even = unit_rows(20000, 8, 0)
    assert partition_isotropy(even) > 0.95
    assert isoscore(even) > 0.99
    aside = even + np.array([5] + [0] * 7)
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    assert partition_isotropy(aside) < 0.2
    assert isoscore(np.ones((3, 4))) == 0
    assert isoscore(np.ones((3, 1))) == 1
