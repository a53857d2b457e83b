"""Density ratios by classifiers: against scikit-learn, and against ratios that are known."""

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from tamis.scoring.propensity import auc, judge
from tamis.selectors.inner_products import one_blas_thread


def sets(
    n: int, t: int, away: float, width: int = 4, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Normal rows of deviation 1; the target's lie `away` along the first axis."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n + t, width))
    wanted = np.arange(n + t) >= n
    rows[wanted, 0] += away
    return rows.astype(np.float32), wanted, random.integers(0, 3, n + t)


@pytest.mark.parametrize("l2", [0.1, 10.0, 1000.0])
def test_each_row_is_judged_as_by_scikit_learn_on_the_others(l2: float) -> None:
    rows, wanted, fold = sets(300, 40, 1.0)
    found = judge(rows, wanted, fold, [l2])
    logit = np.empty(len(rows))
    for part in range(3):
        held = fold == part
        model = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000)
        model.fit(rows[~held].astype(float), wanted[~held])
        shares = np.log(wanted[~held].sum() / (~wanted[~held]).sum())
        logit[held] = model.decision_function(rows[held].astype(float)) - shares
    np.testing.assert_allclose(found.log_ratio, logit, atol=2e-4)
    probability = 1 / (1 + np.exp(-logit - np.log(40 / 300)))
    np.testing.assert_allclose(found.probability, probability, atol=1e-4)
    assert found.losses[l2] == pytest.approx(log_loss(wanted, probability), abs=1e-5)
    assert found.auc == pytest.approx(roc_auc_score(wanted, probability), abs=1e-3)


def test_known_ratios_are_found() -> None:
    """Of N(1, 1) and N(0, 1) the log of the ratio is x - 1/2."""
    rows, wanted, fold = sets(8000, 2000, 1.0, width=3)
    found = judge(rows, wanted, fold)
    off = found.log_ratio - (rows[:, 0] - 0.5)
    assert np.abs(off).mean() < 0.1
    assert np.exp(found.log_ratio[~wanted]).mean() == pytest.approx(1, abs=0.05)
    # Phi(1 / sqrt(2)), of two normals whose means are one deviation apart.
    assert found.auc == pytest.approx(0.7602, abs=0.015)


def test_a_row_is_judged_by_classifiers_that_have_not_seen_it() -> None:
    rows, wanted, fold = sets(200, 50, 0.5)
    before = judge(rows, wanted, fold, [1.0]).log_ratio
    changed = rows.copy()
    changed[7] = 30
    after = judge(changed, wanted, fold, [1.0]).log_ratio
    same = fold == fold[7]
    same[7] = False
    assert (before[same] == after[same]).all()
    assert (before[fold != fold[7]] != after[fold != fold[7]]).all()


def test_the_penalty_with_the_least_loss_is_taken() -> None:
    rows, wanted, fold = sets(150, 30, 0.5, width=60)
    found = judge(rows, wanted, fold)
    assert list(found.losses) == [1e5, 1e4, 1e3, 1e2, 1e1, 1e0]
    assert found.losses[found.l2] == min(found.losses.values())
    assert found.l2 > 1, "sixty columns of which one matters want a penalty"


def test_without_folds_the_strongest_penalty_is_taken() -> None:
    rows, wanted, fold = sets(20, 1, 1.0)
    found = judge(rows, wanted, fold * 0)
    assert (found.l2, found.folds) == (1e5, 1)
    assert np.isfinite(found.log_ratio).all()


def test_sets_that_are_far_apart_stay_finite() -> None:
    rows, wanted, fold = sets(60, 30, 1e4)
    found = judge(rows, wanted, fold, [1e-6])
    assert np.isfinite(found.log_ratio).all()
    assert found.auc == 1.0


def test_workers_do_not_change_a_bit() -> None:
    rows, wanted, fold = sets(20_000, 300, 0.5, width=5)
    with one_blas_thread():
        found = [judge(rows, wanted, fold, [10.0], w).log_ratio.tobytes() for w in (1, 2, 3)]
    assert found[0] == found[1] == found[2]


def test_area_under_the_curve_with_ties() -> None:
    random = np.random.default_rng(3)
    positive, negative = random.integers(3, 9, 40) / 7, random.integers(0, 7, 60) / 7
    expected = roc_auc_score(np.r_[np.ones(40), np.zeros(60)], np.r_[positive, negative])
    assert auc(positive, negative) == pytest.approx(expected)
