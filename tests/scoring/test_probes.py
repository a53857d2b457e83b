"""Probes: gradients and formulas against slow ones, training against torch and scikit-learn."""

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.scoring.probe_study import Dynamics, Rows, folds_of, study, threshold_samples
from tamis.scoring.probes import (
    Loss,
    Probe,
    Training,
    next_targets,
    softmax,
    standardise,
    train,
    upward_gradient,
)
from tamis.storage.errors import UserError

Floats = npt.NDArray[Any]


def training(**changes: Any) -> Training:
    given: dict[str, Any] = {
        "hidden": 0,
        "loss": "cross_entropy",
        "q": 0.7,
        "beta": 0.7,
        "lam": 3.0,
        "epochs": 3,
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "batch_rows": 16,
    }
    return Training(**(given | changes))


def rows_of(n: int = 80, classes: int = 3, size: int = 6, seed: int = 0) -> Rows:
    """Clusters of vectors, one for each class, and keys."""
    random = np.random.default_rng(seed)
    labels = np.append(np.arange(classes), random.integers(0, classes, n - classes))
    matrix = random.normal(size=(classes, size))[labels] + random.normal(size=(n, size))
    found = matrix.astype(np.float32)
    standardise(found)
    return Rows(found, labels, classes, random.integers(0, 2**63, n).astype(np.uint64))


def trained(
    rows: Rows, how: Training, seen: Any = None, order: Any = None, labels: Any = None
) -> Probe:
    every = np.arange(len(rows.labels))
    labels = rows.labels if labels is None else labels
    order = order or (lambda epoch: rows.order(every, 9, epoch))
    *_, probe = train(rows.matrix, every, labels, int(labels.max()) + 1, how, order, seen)
    return probe


def slow_loss(
    weights: Floats, sizes: list[int], rows: Floats, labels: Floats, how: Training, targets: Floats
) -> float:
    """The mean loss of a batch, from the published formulas in float64."""
    at, out = 0, rows.astype(np.float64)
    biases = sum(a * b for a, b in pairwise(sizes))
    for place, (a, b) in enumerate(pairwise(sizes)):
        out = out @ weights[at : at + a * b].reshape(a, b) + weights[biases : biases + b]
        at, biases = at + a * b, biases + b
        if place < len(sizes) - 2:
            out = np.where(out > 0, out, 0)
    total = 0.0
    for z, label, target in zip(out, labels, targets, strict=True):
        p = np.exp(z) / np.exp(z).sum()
        if how.loss == "gce":
            total += (1 - p[label] ** how.q) / how.q
            continue
        total -= np.log(p[label])
        if how.loss == "elr":
            total += how.lam * np.log(1 - (target * np.clip(p, 1e-4, 1 - 1e-4)).sum())
    return total / len(labels)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("loss", ["cross_entropy", "gce", "elr"])
def test_gradients_are_those_of_the_published_losses(loss: Loss, hidden: int) -> None:
    random = np.random.default_rng(1)
    sizes = [4, *([hidden] if hidden else []), 3]
    how = training(loss=loss, hidden=hidden)
    probe = Probe(sizes, seed=2)
    probe.weights[:] = random.normal(size=len(probe.weights))
    rows = random.normal(size=(7, 4)).astype(np.float32)
    labels = random.integers(0, 3, 7)
    targets = random.dirichlet([1, 1, 1], 7).astype(np.float32)
    activations = probe.activations(rows)
    upward = upward_gradient(activations[-1], labels, how, targets if loss == "elr" else None)
    found = probe.gradient(activations, upward)
    weights = probe.weights.astype(np.float64)
    for place in range(len(weights)):
        step = np.zeros(len(weights))
        step[place] = 1e-5
        up, down = (
            slow_loss(weights + way * step, sizes, rows, labels, how, targets) for way in (1, -1)
        )
        assert found[place] == pytest.approx((up - down) / 2e-5, rel=2e-3, abs=2e-5)


def test_worked_gradients() -> None:
    # p = (1/4, 3/4): cross-entropy p - y; GCE that times p_y ** q.
    logits = np.array([[0, np.log(3)]], np.float32)
    label = np.array([0])
    plain = upward_gradient(logits, label, training())
    assert plain.ravel().tolist() == pytest.approx([-0.75, 0.75])
    robust = upward_gradient(logits, label, training(loss="gce"))
    assert robust.ravel().tolist() == pytest.approx([-0.75 * 0.25**0.7, 0.75 * 0.25**0.7])
    # ELR, t = (0, 1): d log(1 - p_1) / dz_1 = -p_1, so 3 * 3/4 is taken off.
    t = np.array([[0, 1]], np.float32)
    early = upward_gradient(logits, label, training(loss="elr"), t)
    assert early.ravel().tolist() == pytest.approx([-0.75 + 2.25, 0.75 - 2.25])


def test_elr_clamps_as_the_authors_do() -> None:
    logits = np.array([[20, 0]], np.float32)  # p_0 is over 1 - 1e-4: no gradient goes through it
    t = np.array([[1, 0]], np.float32)
    found = upward_gradient(logits, np.array([0]), training(loss="elr"), t)
    assert np.abs(found).max() < 1e-6
    p = next_targets(np.zeros((1, 2), np.float32), logits, 0.7)
    assert p.ravel().tolist() == pytest.approx([0.3 * 0.9999, 0.3 * 1e-4], rel=1e-4)
    half = next_targets(np.array([[1.0, 0.0]], np.float32), np.zeros((1, 2), np.float32), 0.9)
    assert half.ravel().tolist() == pytest.approx([0.95, 0.05])


@pytest.mark.parametrize("hidden", [0, 4])
def test_training_is_that_of_torch_and_the_area_that_of_aum(hidden: int) -> None:
    """The same batches through torch's AdamW; logits of every batch through the aum package."""
    import torch
    from aum import AUMCalculator

    from tamis.scoring.training_records import records_of

    rows = rows_of()
    how = training(hidden=hidden, weight_decay=0.3)
    places = np.arange(len(rows.labels))
    margins: list[list[float]] = [[] for _ in places]

    def seen(epoch: int, batch: Floats, logits: Floats) -> None:
        found = records_of(logits, rows.labels[batch])
        for place, margin in zip(batch, found.label_logit - found.other_logit, strict=True):
            margins[place].append(float(margin))

    probe = trained(rows, how, seen)
    start = Probe([6, *([hidden] if hidden else []), 3], how.seed)
    start.layers[-1][1][:] = np.log((np.bincount(rows.labels) + 1) / len(rows.labels))
    tensors = [torch.tensor(x) for layer in start.layers for x in layer]
    for tensor in tensors:
        tensor.requires_grad_()
    optimiser = torch.optim.AdamW(
        [
            {"params": tensors[::2], "weight_decay": how.weight_decay},
            {"params": tensors[1::2], "weight_decay": 0.0},
        ],
        lr=how.learning_rate,
    )
    area = AUMCalculator("/dev/null", compressed=True)
    x, y = torch.tensor(rows.matrix), torch.tensor(rows.labels)
    size = min(16, -(-len(places) // 16))  # sixteen steps an epoch at least
    for epoch in range(how.epochs):
        order = torch.tensor(rows.order(places, 9, epoch))
        for batch in order.split(size):
            out = x[batch]
            for at in range(0, len(tensors), 2):
                out = out @ tensors[at] + tensors[at + 1]
                out = out.relu() if at + 2 < len(tensors) else out
            area.update(out.detach(), y[batch], [str(int(i)) for i in batch])
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(out, y[batch]).backward()
            optimiser.step()
    for mine, theirs in zip([x for layer in probe.layers for x in layer], tensors, strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=2e-3, atol=2e-4)
    for place in places:
        reference = area.counts[str(place)], area.sums[str(place)]
        assert reference[0] == how.epochs
        assert np.mean(margins[place]) == pytest.approx(reference[1] / how.epochs, abs=2e-4)


def test_a_linear_probe_ends_where_logistic_regression_does() -> None:
    from sklearn.linear_model import LogisticRegression

    rows = rows_of(n=300, size=3)
    how = training(epochs=400, learning_rate=0.01, batch_rows=300)
    probe = trained(rows, how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of parameters change between its versions
        reference = LogisticRegression(C=1e9, max_iter=2000).fit(rows.matrix, rows.labels)
    expected = reference.predict_proba(rows.matrix)
    assert np.abs(softmax(probe.logits(rows.matrix)) - expected).max() < 0.03


def test_weights_without_bounds_are_told() -> None:
    with pytest.raises(UserError, match=r"beyond all bounds in epoch \d.*"):
        trained(rows_of(), training(learning_rate=1e38))


def test_standardise() -> None:
    random = np.random.default_rng(3)
    matrix = random.normal(5, [1, 1e4, 1e-3], (500, 3)).astype(np.float32)
    matrix = np.column_stack([matrix, np.full(500, 7.0), 1e-9 * matrix[:, 0]]).astype(np.float32)
    given = matrix[:, [0, 1]].copy()
    expected = (given - given.mean(0, dtype=np.float64)) / given.std(0, dtype=np.float64)
    standardise(given)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    standardise(matrix)  # beside a column of 1e4, one of 1e-3 and one of 1e-9 are rounding
    assert not matrix[:, [2, 3, 4]].any()
    zero = np.zeros((4, 2), np.float32)
    standardise(zero)
    assert not zero.any()
    standardise(np.zeros((0, 2), np.float32))


def test_threshold_samples() -> None:
    rows = rows_of(n=83, classes=3)
    chosen = threshold_samples(rows, 4)
    assert chosen.sum(axis=0).tolist() == [20] * 4  # 83 / (3 + 1)
    assert chosen.sum(axis=1).max() == 1
    shuffled = np.random.default_rng(0).permutation(83)
    other = Rows(rows.matrix, rows.labels[shuffled], 3, rows.keys[shuffled])
    assert (threshold_samples(other, 4) == chosen[shuffled]).all()
    with pytest.raises(UserError, match="5 runs with 20 threshold samples each need 100 rows"):
        threshold_samples(rows, 5)
    tiny = rows_of(n=3, classes=3)  # 3 / 4 rows are rounded up to one
    assert threshold_samples(tiny, 2).sum(axis=0).tolist() == [1, 1]


@given(st.integers(2, 60), st.integers(2, 7), st.integers(2, 9), st.integers(0, 99))
def test_folds_spread_every_class(n: int, classes: int, folds: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    keys = random.integers(0, 2**63, n).astype(np.uint64)
    fold = folds_of(Rows(np.zeros((n, 1), np.float32), labels, classes, keys), folds, 1)
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    for label in range(classes):
        sizes = np.bincount(fold[labels == label], minlength=folds)
        assert sizes.max() - sizes.min() <= 1


def run(rows: Rows, **changes: Any) -> tuple[Dynamics, Floats]:
    given: dict[str, Any] = {
        "threshold_runs": 2,
        "folds": 3,
        "repeats": 2,
        "logits": True,
        "workers": 1,
    }
    hows = [training(), training(hidden=4)]
    return study(rows, hows, **(given | changes))


def test_what_is_judged_was_not_seen() -> None:
    """Another label of a row changes what is said of others, never of the row itself."""
    rows = rows_of(n=60)
    _, before = run(rows)
    folds = [folds_of(rows, 3, 1 + cut) for cut in range(2)]
    other = rows.labels.copy()
    alone = 17
    # The folds are cut by class: exchange the labels of two rows that share a fold in both cuts.
    same = (folds[0] == folds[0][alone]) & (folds[1] == folds[1][alone])
    partner = int(np.flatnonzero(same & (rows.labels != rows.labels[alone]))[0])
    other[[alone, partner]] = rows.labels[[partner, alone]]
    changed = rows._replace(labels=other)
    if not all((folds_of(changed, 3, 1 + cut) == folds[cut]).all() for cut in range(2)):
        keys = rows.keys.copy()
        keys[[alone, partner]] = keys[[partner, alone]]
        changed = changed._replace(keys=keys)
    assert all((folds_of(changed, 3, 1 + cut) == folds[cut]).all() for cut in range(2))
    _, after = run(changed)
    np.testing.assert_array_equal(after[[alone, partner]], before[[alone, partner]])
    assert (after != before).any()


def test_records_are_those_of_their_trainings() -> None:
    """The whole of a study against trainings made one by one."""
    rows = rows_of(n=50)
    found, probs = run(rows)
    assert found.logits is not None
    z, times = found.logits, 6
    assert z.shape == (50, times, 3)
    assert probs.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (found.recorded["updates"] == 1).all()
    at = np.arange(50)[:, None], np.arange(times)[None], rows.labels[:, None]
    rest = z.copy()
    rest[at] = -np.inf
    ordinary = np.repeat(found.ordinary, 3, axis=1)
    assert (~found.ordinary).sum(axis=0).tolist() == [50 // 4] * 2
    margin, other = found.recorded["margin"], found.recorded["other"]
    known = ordinary & (other < 3)  # the largest other class is not the extra one
    assert known.any()
    assert (ordinary & (other == 3)).any()
    np.testing.assert_array_equal(margin[known], (z[at] - rest.max(axis=2))[known])
    np.testing.assert_array_equal(other[known], rest.argmax(axis=2)[known])
    assert (found.recorded["correct"] == (margin > 0)).all()
    np.testing.assert_allclose(
        found.recorded["loss"], -np.log(found.recorded["label_prob"].astype(float)), atol=1e-5
    )
    # The first batch of a run, of 50 / 16 rows, sees the classes' shares (and the extra class's).
    labels = np.where(found.ordinary[:, 0], rows.labels, 3)
    share = (np.bincount(labels) + 1) / (50 + 4)
    untrained = np.isclose(found.recorded["label_prob"][:, 0], share[labels], rtol=1e-6)
    assert 4 <= untrained.sum() < 10


def test_nothing_depends_on_workers_or_other_rows_order() -> None:
    rows = rows_of(n=70)
    first, judged = run(rows)
    again, same = run(rows, workers=4)
    np.testing.assert_array_equal(judged, same)
    for name, values in first.recorded.items():
        np.testing.assert_array_equal(values, again.recorded[name])
    np.testing.assert_array_equal(first.logits, again.logits)
    assert (run(rows, repeats=3)[1] != judged).any()
