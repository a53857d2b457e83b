"""Scores of out-of-sample probabilities: cleanlab's where it has them, else plain Python."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from cleanlab import rank

from tamis.recipe import row_scorer
from tamis.storage.errors import UserError

NAMES = (
    "self_confidence",
    "normalized_margin",
    "confidence_weighted_entropy",
    "max_softmax",
    "label_loss",
    "label_entropy",
)


def scores(name: str, probs: Any, label: Any, kind: pa.DataType | None = None) -> list[Any]:
    lists = (
        probs if isinstance(probs, pa.Array) else pa.array(probs, kind or pa.list_(pa.float64()))
    )
    batch = pa.record_batch({"p_probs": lists, "p_label": pa.array(label, pa.int32())})
    found = row_scorer(name)(probs="p").compute(batch)  # type: ignore[call-arg]
    assert found.schema.names == [name]
    return found[name].to_pylist()  # type: ignore[no-any-return]


def drawn(rows: int, classes: int, sharpness: float = 0.3) -> tuple[npt.NDArray[Any], Any]:
    random = np.random.default_rng(classes)
    return random.dirichlet(np.full(classes, sharpness), rows), random.integers(0, classes, rows)


@pytest.mark.parametrize("classes", [2, 3, 20])
@pytest.mark.parametrize(
    "name", ["self_confidence", "normalized_margin", "confidence_weighted_entropy"]
)
def test_quality_is_cleanlabs(name: str, classes: int) -> None:
    probs, label = drawn(500, classes)
    # Of surer rows cleanlab's entropy score fails: see the next test.
    sound = probs.max(axis=1) < 1 - 1e-6
    probs, label = probs[sound], label[sound]
    assert len(label) > 350
    for kind, stored in ((pa.float64(), probs), (pa.float32(), probs.astype(np.float32))):
        wide = stored.astype(np.float64)
        expected = rank.get_label_quality_scores(label, wide, method=name)
        found = scores(name, stored.tolist(), label, pa.list_(kind))
        assert found == pytest.approx(expected.tolist(), rel=1e-9)  # log(1 + x) against log1p


def test_entropy_of_sure_rows_goes_to_1_where_cleanlab_falls_to_0() -> None:
    probs = [[1.0, 0.0], [1 - 1e-9, 1e-9], [1e-9, 1 - 1e-9]]
    with warnings.catch_warnings(record=True):
        theirs = rank.get_label_quality_scores(
            np.zeros(3, int), np.array(probs), method="confidence_weighted_entropy"
        )
    assert theirs[0] == 0
    assert theirs[1] < 0.1  # the surest rows, called the worst
    found = scores("confidence_weighted_entropy", probs, [0, 0, 0])
    assert found[:2] == pytest.approx([1, 1], abs=1e-6)
    assert found[2] == pytest.approx(theirs[2], rel=1e-6)


SLOW: dict[str, Callable[[list[float], int], float]] = {
    "max_softmax": lambda p, y: max(p),
    "label_loss": lambda p, y: -math.log(p[y]),
    "label_entropy": lambda p, y: -math.fsum(x * math.log(x) for x in p if x),
}


@pytest.mark.parametrize("name", SLOW)
def test_the_others_are_plain_python(name: str) -> None:
    probs, label = drawn(100, 5)
    probs[3] = [0, 0.25, 0.75, 0, 0]
    label[3] = 1
    expected = [SLOW[name](p, y) for p, y in zip(probs.tolist(), label.tolist(), strict=True)]
    assert scores(name, probs.tolist(), label) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("self_confidence", 1.0),
        ("normalized_margin", 1.0),
        ("confidence_weighted_entropy", 1.0),
        ("max_softmax", 1.0),
        ("label_loss", 0.0),
        ("label_entropy", 0.0),
    ],
)
def test_one_class(name: str, expected: float) -> None:
    assert scores(name, [[1.0]], [0]) == [expected]


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_probabilities_have_no_score(name: str) -> None:
    probs = [None, [0.5, 0.5], [math.nan, 1.0], [0.5, None], [0.9, 0.1]]
    found = scores(name, probs, [0, None, 0, 0, 0])
    assert found[:4] == [None] * 4
    assert found[4] is not None
    assert scores(name, pa.nulls(2), [0, 1]) == [None, None]
    assert scores(name, [], []) == []


def test_a_label_of_probability_0_has_infinite_loss() -> None:
    assert scores("label_loss", [[1.0, 0.0]], [1]) == [math.inf]


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_are_none_of_the_classes(label: int) -> None:
    with pytest.raises(UserError, match="p_label: expected class numbers from 0 to 1"):
        scores("self_confidence", [[0.5, 0.5]], [label])


@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_classes_and_rows_in_several_blocks(name: str) -> None:
    random = np.random.default_rng(0)
    probs = random.random((900, 10_000), np.float32)
    probs /= probs.sum(axis=1, keepdims=True)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), 10_000)
    label = random.integers(0, 10_000, 900)
    found = scores(name, flat, label)
    for row in (0, 418, 419, 899):  # 419 rows are a block
        assert scores(name, flat.slice(row, 1), label[row : row + 1]) == [found[row]]
    if name == "self_confidence":
        assert found == probs[np.arange(900), label].astype(float).tolist()
