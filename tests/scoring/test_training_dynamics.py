"""Records from logits, and scores from records: worked numbers, slow versions, the aum package."""

import itertools
import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from aum import AUMCalculator

from tamis.scoring.training_dynamics import (
    area_under_margin,
    data_map,
    forgetting,
    last_value,
    mean_over_epochs,
    mean_over_runs,
)
from tamis.scoring.training_records import records_of
from tamis.storage.errors import UserError

ONCE = np.ones((1, 4), np.int32)


def test_margins_of_the_published_test_cases() -> None:
    """The package's own test: sample 1 at four updates."""
    logits = [[1, 2, 3], [6, 5, 4], [7, 8, 9], [12, 11, 10]]
    found = records_of(logits, [1, 0, 2, 1])
    assert (found.label_logit - found.other_logit).tolist() == [-1, 1, 1, -1]
    assert found.other.tolist() == [2, 1, 1, 0]
    assert found.correct.tolist() == [False, True, True, False]


def test_worked_record() -> None:
    found = records_of([[2, 1, 0]], [0])
    assert found.el2n[0] == pytest.approx(0.424336, abs=5e-7)
    assert found.loss[0] == pytest.approx(0.407606, abs=5e-7)
    assert found.label_logit[0] - found.other_logit[0] == 1


def slow_record(logits: list[float], label: int) -> dict[str, float]:
    with localcontext(prec=80):
        p = [Decimal(z).exp() for z in logits]
        total = sum(p)
        p = [v / total for v in p]
        off = [v - (k == label) for k, v in enumerate(p)]
        return {
            "loss": float(-p[label].ln()),
            "label_prob": float(p[label]),
            "entropy": float(-sum(v * v.ln() for v in p)),
            "el2n": float(sum(v * v for v in off).sqrt()),
        }


@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0, 60.0])
@pytest.mark.parametrize("classes", [2, 3, 17])
def test_records_against_eighty_digits(scale: float, classes: int) -> None:
    """Loss and EL2N keep their digits where the model is all but sure."""
    random = np.random.default_rng(classes)
    logits = (random.normal(size=(40, classes)) * scale).astype(np.float32)
    labels = random.integers(0, classes, 40)
    found = records_of(logits, labels)
    for row in range(40):
        for name, value in slow_record(logits[row].tolist(), int(labels[row])).items():
            assert getattr(found, name)[row] == pytest.approx(value, rel=3e-7, abs=1e-38), name


def test_a_tie_is_not_correct() -> None:
    assert records_of([[1, 1], [0, 1]], [0, 1]).correct.tolist() == [False, True]


def test_a_class_that_is_ruled_out_has_probability_0() -> None:
    found = records_of([[0, 0, -np.inf]], [0])
    assert found.entropy[0] == pytest.approx(math.log(2))
    assert found.loss[0] == pytest.approx(math.log(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_logits_that_are_no_numbers_stay_seen(bad: float, place: int) -> None:
    logits = [[2.0, 1.0, 0.0]]
    logits[0][place] = bad
    found = records_of(logits, [0])
    assert not np.isfinite(found.label_logit[0] - found.other_logit[0])
    for name in ("loss", "label_prob", "entropy", "el2n"):
        assert np.isnan(getattr(found, name)[0])


def test_a_label_ruled_out_is_broken() -> None:
    found = records_of([[-np.inf, 0.0]], [0])
    assert found.label_logit[0] == -np.inf
    assert np.isnan(found.loss[0])


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        ([[1.0]], [0], "1 class"),
        ([[1.0, 2.0]], [2], "label 2"),
        ([[1.0, 2.0]], [-1], "label -1"),
        ([[1.0, 2.0]], [0.0], "type float64"),
        ([[1.0, 2.0]], [0, 1], "shape"),
        ([1.0, 2.0], [0, 1], "shape"),
    ],
)
def test_records_refuse(logits: Any, labels: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        records_of(logits, labels)


def test_no_rows() -> None:
    assert records_of(np.zeros((0, 3)), np.zeros(0, int)).loss.shape == (0,)


def test_area_under_margin_equals_the_aum_package(tmp_path: Any) -> None:
    """Rows seen several times an epoch, and epochs without some of them."""
    random = np.random.default_rng(5)
    rows, epochs, classes = 30, 6, 4
    labels = random.integers(0, classes, rows)
    updates = random.integers(0, 4, (rows, epochs)).astype(np.int32)
    updates[:, 0] = 1
    theirs = AUMCalculator(str(tmp_path))
    margin = np.full((rows, epochs), np.nan, np.float32)
    for epoch in range(epochs):
        for row in range(rows):
            several = []
            for _ in range(updates[row, epoch]):
                logits = random.normal(size=(2, classes)).astype(np.float32)
                found = records_of(logits, labels[[row, row]])
                several.append((found.label_logit - found.other_logit)[0])
                # A batch of one crashes it.
                pair = torch.from_numpy(logits), torch.from_numpy(labels[[row, row]])
                theirs.update(*pair, [row, -1])
            if several:
                margin[row, epoch] = np.mean(several, dtype=np.float64)
    expected = [theirs.sums[row] / theirs.counts[row] for row in range(rows)]
    assert area_under_margin(margin, updates) == pytest.approx(expected, abs=1e-6)


def slow_scores(prob: Any, correct: Any, updates: Any) -> list[float]:
    present = [t for t in range(len(updates)) if updates[t]]
    if not present or any(not math.isfinite(prob[t]) for t in present):
        return [math.nan] * 4
    values = [float(prob[t]) for t in present]
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    right = [int(correct[t]) for t in present]
    events = sum(a == 1 and b == 0 for a, b in itertools.pairwise(right))
    return [mean, deviation, sum(right), events if sum(right) else len(right)]


@pytest.mark.parametrize("order", ["C", "F"])
def test_data_map_and_forgetting_against_a_slow_version(order: Any) -> None:
    random = np.random.default_rng(9)
    prob = random.random((300, 7)).astype(np.float32)
    correct = (random.random((300, 7)) < 0.4).astype(np.int8)
    updates = random.integers(0, 3, (300, 7)).astype(np.int32)
    prob[(updates > 0) & (random.random((300, 7)) < 0.02)] = np.nan
    correct[np.isnan(prob)] = -1
    prob[updates == 0], correct[updates == 0] = np.nan, -1
    expected = np.array([slow_scores(*row) for row in zip(prob, correct, updates, strict=True)])
    assert 0 < np.isnan(expected[:, 0]).sum() < 100
    matrices = [np.asarray(m, order=order) for m in (prob, correct, updates)]
    found = [*data_map(*matrices), forgetting(*matrices[1:])]
    for column, name in enumerate(("confidence", "variability", "correctness", "forgetting")):
        np.testing.assert_allclose(
            found[column], expected[:, column], rtol=1e-12, atol=1e-15, err_msg=name
        )


def test_an_infinite_margin_is_no_score() -> None:
    seen = np.ones((2, 2), np.int32)
    margin = np.array([[np.inf, 1], [-np.inf, np.inf]], np.float32)
    assert np.isnan(area_under_margin(margin, seen)).all()
    assert np.isnan(last_value(margin[:, ::-1], seen)).all()


def test_epochs_without_a_row_count_nowhere() -> None:
    seen = np.array([[0, 3, 0, 1], [0, 0, 0, 0]], np.int32)
    loss = np.array([[np.nan, 1, np.nan, 3], [np.nan] * 4], np.float32)
    np.testing.assert_equal(mean_over_epochs(loss, seen), [2, np.nan])
    np.testing.assert_equal(last_value(loss, seen), [3, np.nan])
    np.testing.assert_equal(area_under_margin(loss, seen), [1.5, np.nan])


def test_mean_over_runs_leaves_out_runs_that_do_not_count() -> None:
    by_run = np.array([[1.0, 3.0], [1.0, 3.0], [np.nan, 3.0], [1.0, 3.0]])
    counted = np.array([[1, 1], [0, 1], [1, 1], [0, 0]], bool)
    np.testing.assert_equal(mean_over_runs(by_run, counted), [2, 3, np.nan, np.nan])
