"""The noise model against plain Python and cleanlab, and on noise that was planted."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cleanlab.count import compute_confident_joint

from tamis.scoring.label_noise import Noise, confident_rate, fit_noise

Matrix = npt.NDArray[Any]


def planted(
    rows: int, transition: Matrix, seed: int = 0, sharp: float = 3.0
) -> tuple[Matrix, Matrix, Matrix]:
    """Calibrated probabilities, labels drawn by a transition matrix, and which are wrong."""
    random = np.random.default_rng(seed)
    classes = len(transition)
    logits = sharp * random.normal(size=(rows, classes))
    probs = np.exp(logits)
    probs /= probs.sum(axis=1, keepdims=True)
    right = (probs.cumsum(axis=1) < random.random((rows, 1))).sum(axis=1)
    label = (transition[right].cumsum(axis=1) < random.random((rows, 1))).sum(axis=1)
    return probs.astype(np.float32), label.astype(np.int64), label != right


def symmetric(classes: int, rate: float) -> Matrix:
    return np.where(np.eye(classes) == 1, 1 - rate, rate / (classes - 1))


def pair(classes: int, rate: float) -> Matrix:
    return (1 - rate) * np.eye(classes) + rate * np.roll(np.eye(classes), 1, axis=1)


def slow(probs: Matrix, label: Matrix, rate: float, iterations: int) -> tuple[Matrix, Matrix]:
    """The same EM, row by row."""
    n, classes = probs.shape
    prior = symmetric(classes, rate)
    t = prior.copy()

    def posterior(row: int) -> list[float]:
        joint = [float(probs[row, j]) * t[j, label[row]] for j in range(classes)]
        return [value / sum(joint) for value in joint]

    for _ in range(iterations):
        counts = prior * n / classes
        for row in range(n):
            for j, share in enumerate(posterior(row)):
                counts[j, label[row]] += share
        t = counts / counts.sum(axis=1, keepdims=True)
    return np.array([1 - posterior(row)[label[row]] for row in range(n)]), t


@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_em_is_the_slow_one(iterations: int) -> None:
    probs, label, _ = planted(120, symmetric(4, 0.3))
    found = fit_noise(probs, label, iterations)
    wrong, transition = slow(probs, label, found.prior_rate, iterations)
    assert found.wrong == pytest.approx(wrong, abs=1e-9)
    assert found.transition == pytest.approx(transition, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_the_rate_is_cleanlabs(classes: int) -> None:
    probs, label, _ = planted(1500, symmetric(classes, 0.25), seed=classes)
    joint = compute_confident_joint(label, probs.astype(np.float64))
    expected = 1 - np.trace(joint) / joint.sum()
    # cleanlab rounds its counts to whole rows.
    assert confident_rate(probs, label) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("make", [symmetric, pair])
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_planted_noise_is_found(make: Any, rate: float) -> None:
    transition = make(5, rate)
    probs, label, wrong = planted(20_000, transition, seed=3, sharp=6.0)
    found = fit_noise(probs, label)
    assert found.wrong.mean() == pytest.approx(wrong.mean(), abs=0.02)
    # Half of the weight is the prior's, which knows no direction.
    assert np.diagonal(found.transition) == pytest.approx(1 - rate, abs=0.06)
    if make is pair:
        others = np.where(np.eye(5) == 1, 0, found.transition)
        assert others.argmax(axis=1).tolist() == [1, 2, 3, 4, 0]
    assert found.wrong[wrong].mean() > found.wrong[~wrong].mean() + 0.4
    for low in np.arange(0, 1, 0.2):  # calibrated, symmetric noise being what the prior says
        rows = (found.wrong >= low) & (found.wrong < low + 0.2)
        if make is symmetric and rows.sum() > 200:
            assert wrong[rows].mean() == pytest.approx(found.wrong[rows].mean(), abs=0.1)


def test_labels_that_are_right() -> None:
    probs, label, _ = planted(5000, np.eye(4), seed=5)
    found = fit_noise(probs, label)
    assert found.wrong.mean() < 0.05


@pytest.mark.parametrize(
    ("probs", "label"),
    [
        (np.zeros((0, 3), np.float32), []),
        (np.ones((4, 1), np.float32), [0] * 4),
        (np.array([[0.2, 0.8]], np.float32), [0]),
        (np.zeros((3, 2), np.float32), [0, 1, 1]),
        (np.full((6, 3), 1 / 3, np.float32), [0, 0, 1, 1, 2, 2]),
        (np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], [0, 1, 2, 1]),
        (np.eye(4, dtype=np.float32)[[0, 1]], [0, 1]),  # classes without a row
    ],
)
def test_few_rows_and_extremes(probs: Matrix, label: list[int]) -> None:
    found: Noise = fit_noise(probs, np.array(label, np.int64))
    assert found.wrong.shape == (len(label),)
    assert ((found.wrong >= 0) & (found.wrong <= 1)).all()
    assert np.isfinite(found.transition).all()
    if len(label):
        assert found.transition.sum(axis=1) == pytest.approx(np.ones(probs.shape[1]))
    if probs.shape[1] == 1:
        assert (found.wrong == 0).all()


def test_a_sure_row_stands_out() -> None:
    probs = np.tile(np.array([[0.995, 0.005], [0.005, 0.995]], np.float32), (50, 1))
    label = np.tile(np.array([0, 1]), 50)
    label[0] = 1
    found = fit_noise(probs, label)
    assert found.wrong.argmax() == 0
    assert found.wrong[0] > 0.3 > 0.05 > found.wrong[1:].max()
