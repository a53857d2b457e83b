"""Scores of training dynamics over several runs: worked numbers and slow versions."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tamis.recipe import row_scorer
from tamis.scoring.early_learning import EarlyLearningTarget
from tamis.scoring.label_dynamics import Aum
from tamis.storage.errors import UserError

#: An epoch of a row: None where it was not seen, else updates and the values of its columns.
Epoch = dict[str, float] | None
#: Of a row by run: whether it was an ordinary row, and its epochs.
Run = tuple[bool, list[Epoch]]

FLOATS = {"margin": (-9, 9), "label_prob": (0, 1), "loss": (0, 9), "el2n": (0, 1.4)}
MISSING = {"correct": -1, "updates": 0, **dict.fromkeys(FLOATS, math.nan)}


def fixed(values: Any, kind: pa.DataType) -> pa.Array:
    matrix = np.asarray(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel(), kind), matrix.shape[1])


def columns(rows: list[list[Run]]) -> dict[str, pa.Array]:
    """As a stage ``d`` leaves them."""
    kinds = {"correct": pa.int8(), "updates": pa.int32(), **dict.fromkeys(FLOATS, pa.float32())}
    found = {}
    for name, kind in kinds.items():
        values = [
            [epoch[name] if epoch else MISSING[name] for _, epochs in row for epoch in epochs]
            for row in rows
        ]
        found[f"d_{name}"] = fixed(values, kind)
    found["d_ordinary"] = fixed([[ordinary for ordinary, _ in row] for row in rows], pa.bool_())
    return found


def scores(operator: str, given: dict[str, Any], /, **params: Any) -> dict[str, list[Any]]:
    scorer = row_scorer(operator)(dynamics="d", **params)  # type: ignore[call-arg]
    found = scorer.compute(pa.record_batch(given))
    assert found.schema == scorer.fields()
    return found.to_pydict()  # type: ignore[no-any-return]


def simple(**given: Any) -> dict[str, Any]:
    """One run of ordinary rows, seen once in every epoch."""
    (first, *_) = given.values()
    shape = np.asarray(first).shape
    kinds = {"correct": pa.int8(), **dict.fromkeys(FLOATS, pa.float32())}
    return {
        **{f"d_{name}": fixed(values, kinds[name]) for name, values in given.items()},
        "d_updates": fixed(np.ones(shape, int), pa.int32()),
        "d_ordinary": fixed(np.ones((shape[0], 1), bool), pa.bool_()),
    }


def test_aum_of_the_packages_published_test() -> None:
    """Sample b at two updates, of logits [6, 5, 4] (label 0) and [7, 8, 9] (label 2)."""
    given = simple(margin=[[-1, -1], [1, 1], [-1, -1]])
    given["d_updates"] = fixed([[1, 0], [1, 1], [0, 1]], pa.int32())
    assert scores("aum", given, skip_epochs=0)["aum"] == [-1, 1, -1]


def test_worked_scores_of_one_epoch() -> None:
    """z = [2, 1, 0], y = 0: EL2N .424336, loss .407606, margin 1."""
    given = simple(margin=[[1.0]], el2n=[[0.424336]], loss=[[0.407606]])
    assert scores("aum", given, skip_epochs=0) == {"aum": [1.0], "aum_by_run": [[1.0]]}
    assert scores("el2n", given)["el2n"] == pytest.approx([0.424336])
    for of in ("mean", "last"):
        assert scores("training_loss", given, of=of)["training_loss"] == pytest.approx([0.407606])


#: The score of one run from its epochs that are there, with their numbers.
Seen = list[tuple[int, dict[str, float]]]


def weighted(seen: Seen) -> float:
    counted = [(t, e) for t, e in seen if t >= 1]
    total = sum(e["updates"] for _, e in counted)
    if not total:
        return math.nan
    return math.fsum(e["updates"] * e["margin"] for _, e in counted) / total


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def events(seen: Seen) -> float:
    right = [e["correct"] for _, e in seen]
    return sum(a == 1 and b == 0 for a, b in pairwise(right)) if any(right) else len(right)


def deviation(seen: Seen) -> float:
    probs = [e["label_prob"] for _, e in seen]
    return math.sqrt(mean([(p - mean(probs)) ** 2 for p in probs]))


def learnt(seen: Seen, k: int, epochs: int) -> float:
    for place in range(k, len(seen) + 1):
        if all(e["correct"] for _, e in seen[place - k : place]):
            return seen[place - 1][0] + 1
    return epochs + 1


SLOW: list[tuple[str, dict[str, Any], str, Callable[[Seen, int], float]]] = [
    ("aum", {}, "aum", lambda s, n: weighted(s)),
    ("data_map", {}, "confidence", lambda s, n: mean([e["label_prob"] for _, e in s])),
    ("data_map", {}, "variability", lambda s, n: deviation(s)),
    ("data_map", {"name": "map"}, "map_correctness", lambda s, n: sum(e["correct"] for _, e in s)),
    ("forgetting", {}, "forgetting", lambda s, n: events(s)),
    ("el2n", {"epochs": 2}, "el2n", lambda s, n: mean([e["el2n"] for t, e in s if t < 2])),
    ("training_loss", {}, "training_loss", lambda s, n: mean([e["loss"] for _, e in s])),
    ("training_loss", {"of": "last"}, "training_loss", lambda s, n: s[-1][1]["loss"]),
    *(
        ("late_stopping", {"k": k}, "late_stopping", lambda s, n, k=k: learnt(s, k, n))
        for k in (1, 2, 3)
    ),
]


@st.composite
def dynamics(draw: Any) -> list[list[Run]]:
    runs, epochs = draw(st.integers(1, 3)), draw(st.integers(3, 6))
    rows = draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def epoch() -> Epoch:
        if random.random() < 0.3:
            return None
        values = {name: float(np.float32(random.uniform(*ends))) for name, ends in FLOATS.items()}
        return {**values, "correct": int(random.random() < 0.5), "updates": random.integers(1, 4)}

    return [
        [(random.random() < 0.7, [epoch() for _ in range(epochs)]) for _ in range(runs)]
        for _ in range(rows)
    ]


@pytest.mark.parametrize(("name", "params", "column", "slow"), SLOW)
@given(rows=dynamics())
@settings(max_examples=30)
def test_scores_are_means_over_runs_of_plain_python(
    name: str, params: dict[str, Any], column: str, slow: Any, rows: list[list[Run]]
) -> None:
    found = scores(name, columns(rows), **params)[column]
    for value, row in zip(found, rows, strict=True):
        by_run = []
        for ordinary, epochs in row:
            seen = [(t, e) for t, e in enumerate(epochs) if e]
            if name == "aum":
                counts = any(t >= 1 for t, _ in seen)
            elif name == "el2n":
                counts = any(t < 2 for t, _ in seen)
            else:
                counts = bool(seen)
            if ordinary and counts:
                by_run.append(slow(seen, len(epochs)))
        if by_run:
            assert value == pytest.approx(mean(by_run), rel=1e-9, abs=1e-12)
        else:
            assert value is None


@pytest.mark.parametrize("name", ["aum", "data_map", "el2n", "training_loss"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_record_leaves_no_score(name: str, bad: float) -> None:
    """Of an epoch that counts, in a run with the row as an ordinary one; not elsewhere."""
    good: dict[str, float] = {
        **dict.fromkeys(FLOATS, 0.5),
        "correct": 1,
        "updates": 1,
    }
    broken = {**good, **dict.fromkeys(FLOATS, bad), "correct": -1}
    rows: list[list[Run]] = [
        [(True, [good, broken]), (True, [good, good])],
        [(False, [good, broken]), (True, [good, good])],
    ]
    for column, found in scores(name, columns(rows)).items():
        if column == "aum_by_run":
            assert found == [[None, 0.5], [None, 0.5]]
        else:
            assert found[0] is None
            assert found[1] is not None


@pytest.mark.parametrize("name", ["forgetting", "late_stopping"])
def test_a_broken_record_leaves_no_count(name: str) -> None:
    given = simple(correct=[[1, -1, 1], [1, 1, 1]])
    found = scores(name, given)[name]
    assert found[0] is None
    assert found[1] is not None


def test_more_epochs_running_than_there_are_is_told() -> None:
    with pytest.raises(UserError, match="no row can be right 4 epochs running in 3"):
        scores("late_stopping", simple(correct=[[1, 1, 1]]), k=4)


def test_aum_leaves_epochs_out_at_both_ends() -> None:
    given = simple(margin=[[100, 1, 2, 50]])
    assert scores("aum", given, until=3)["aum"] == [1.5]
    assert scores("aum", given)["aum"] == [pytest.approx(53 / 3)]
    assert scores("aum", given, skip_epochs=0, until=1)["aum"] == [100]
    with pytest.raises(ValidationError, match="until 1 leaves no epoch after the first 1"):
        Aum(until=1)


def test_aum_of_every_run_and_of_those_with_ordinary_rows() -> None:
    given = {
        "d_margin": fixed([[0, 1, 0, 3], [0, 2, 0, -6]], pa.float32()),
        "d_updates": fixed(np.ones((2, 4), int), pa.int32()),
        "d_ordinary": fixed([[True, True], [True, False]], pa.bool_()),
    }
    found = scores("aum", given)
    assert found == {"aum": [2.0, 2.0], "aum_by_run": [[1.0, 3.0], [2.0, -6.0]]}


def test_too_few_epochs_for_aum_are_told() -> None:
    with pytest.raises(UserError, match="d has 1 epoch a run, and `skip_epochs` leaves out 1"):
        scores("aum", simple(margin=[[1.0]]))


def test_rows_that_no_run_saw() -> None:
    """Rows of the corpus that the records lack have nulls for lists, or zeros for updates."""
    nothing = {
        "d_margin": pa.array([[1.0, 1.0], None], pa.list_(pa.float32(), 2)),
        "d_updates": pa.array([[1, 1], None], pa.list_(pa.int32(), 2)),
        "d_ordinary": pa.array([[True], None], pa.list_(pa.bool_(), 1)),
    }
    assert scores("aum", nothing) == {"aum": [1.0, None], "aum_by_run": [[1.0], [None]]}
    alone = {name: column.slice(1) for name, column in nothing.items()}
    assert scores("aum", alone)["aum"] == [None]
    assert scores("aum", {name: column.slice(2) for name, column in nothing.items()})["aum"] == []


def test_lists_that_do_not_fit_one_another() -> None:
    given = simple(margin=[[1.0, 2.0, 3.0]])
    given["d_ordinary"] = fixed([[True, True]], pa.bool_())
    with pytest.raises(UserError, match="as many epochs in each of 2 runs, found 3 numbers"):
        scores("aum", given)
    given = simple(margin=[[1.0, 2.0, 3.0]])
    given["d_updates"] = fixed([[1, 1]], pa.int32())
    with pytest.raises(UserError, match="d_margin: expected 2 numbers a row"):
        scores("aum", given)


def target_by_torch(logits: Any, beta: float) -> Any:
    """The target of the authors' loss after epochs of logits, by row."""
    target = torch.zeros(logits.shape[0], logits.shape[2], dtype=torch.float64)
    for epoch in range(logits.shape[1]):
        p = torch.softmax(torch.from_numpy(logits[:, epoch]), dim=1).clamp(1e-4, 1 - 1e-4)
        target = beta * target + (1 - beta) * p / p.sum(dim=1, keepdim=True)
    return target.numpy()


def elr(logits: Any, label: Any, runs: int = 1, **params: Any) -> dict[str, list[Any]]:
    rows, epochs, _ = logits.shape
    given = {
        "d_logits": fixed(logits.reshape(rows, -1), pa.float32()).cast(pa.list_(pa.float32())),
        "d_label": pa.array(label, pa.int32()),
        "d_updates": params.pop("updates", fixed(np.ones((rows, epochs), int), pa.int32())),
        "d_ordinary": params.pop("ordinary", fixed(np.ones((rows, runs), bool), pa.bool_())),
    }
    return scores("early_learning_target", given, **params)


@pytest.mark.parametrize("beta", [0.0, 0.7, 0.9])
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_early_learning_targets_are_those_of_the_authors_loss(beta: float, classes: int) -> None:
    random = np.random.default_rng(classes)
    logits = (4 * random.normal(size=(60, 5, classes))).astype(np.float32)
    label = random.integers(0, classes, 60)
    target = target_by_torch(logits.astype(np.float64), beta)
    found = elr(logits, label, beta=beta)
    mass = 1 - beta**5
    assert found["early_learning_target"] == pytest.approx(target[np.arange(60), label] / mass)
    assert found["early_learning_target_class"] == target.argmax(axis=1).tolist()
    fitted = logits[:, -1].argmax(axis=1) == label
    memorised = fitted & (target.argmax(axis=1) != label)
    assert found["early_learning_target_memorised"] == memorised.tolist()
    if classes == 7:
        assert memorised.any() == (beta > 0)


def test_early_learning_targets_over_runs_and_missing_epochs() -> None:
    random = np.random.default_rng(2)
    logits = random.normal(size=(1, 6, 3)).astype(np.float32)
    first, second = (
        target_by_torch(logits[:, :3].astype(np.float64), 0.7),
        target_by_torch(logits[:, [3, 5]].astype(np.float64), 0.7),
    )
    masses = 1 - 0.7**3, 1 - 0.7**2
    gone = logits.copy()
    gone[0, 4] = np.nan
    updates = fixed([[1, 1, 1, 1, 0, 2]], pa.int32())
    both = elr(gone, [1], runs=2, updates=updates)["early_learning_target"]
    expected = (first[0, 1] / masses[0] + second[0, 1] / masses[1]) / 2
    assert both == pytest.approx([expected])
    ordinary = fixed([[True, False]], pa.bool_())
    found = elr(gone, [1], runs=2, updates=updates, ordinary=ordinary)["early_learning_target"]
    assert found == pytest.approx([first[0, 1] / masses[0]])


def test_logits_that_are_no_numbers() -> None:
    logits = np.zeros((4, 2, 3), np.float32)
    logits[0, 1, 2] = np.nan
    logits[1, 1, 2] = np.inf
    logits[2, 0] = -np.inf
    logits[3, 0, 0] = -np.inf  # a class that is ruled out
    found = elr(logits, [0, 0, 0, 0])["early_learning_target"]
    assert found[:3] == [None] * 3
    assert found[3] is not None
    assert elr(logits[3:], [None])["early_learning_target"] == [None]
    with pytest.raises(UserError, match="class numbers from 0 to 2"):
        elr(logits[3:], [3])


def test_logits_of_other_epochs_are_told() -> None:
    given = {
        "d_logits": fixed([[1, 2, 3]], pa.float32()),
        "d_label": pa.array([0]),
        "d_updates": fixed([[1, 1]], pa.int32()),
        "d_ordinary": fixed([[True]], pa.bool_()),
    }
    with pytest.raises(UserError, match="as many logits for each of 2 epochs, found 3"):
        scores("early_learning_target", given)


def test_early_learning_of_ten_thousand_classes() -> None:
    logits = np.random.default_rng(0).normal(size=(300, 2, 10_000)).astype(np.float32)
    found = elr(logits, np.arange(300))
    alone = elr(logits[250:251], [250])
    assert found["early_learning_target"][250] == alone["early_learning_target"][0]
    assert EarlyLearningTarget().beta == 0.7
