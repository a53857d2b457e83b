"""Confident learning in a run is what cleanlab says of the same numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pytest
from cleanlab.count import compute_confident_joint, estimate_latent
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from tamis.selectors.confident_learning import ConfidentLearning
from tamis.storage.errors import UserError
from tests.selectors.sample_tools import Ran, run, shuffled

ADD = ["confident_learning", "confident_learning_error", "confident_learning_class_noise"]
Matrix = npt.NDArray[Any]


def drawn(rows: int, classes: int) -> tuple[Matrix, Matrix]:
    """Probabilities around the right class, and labels of which a quarter are another's."""
    random = np.random.default_rng(rows)
    right = random.integers(0, classes, rows)
    probs = random.dirichlet(np.full(classes, 0.7), rows) + 1.2 * np.eye(classes)[right]
    probs /= probs.sum(axis=1, keepdims=True)
    wrong = random.random(rows) < 0.25
    label = np.where(wrong, (right + 1) % classes, right)
    return probs.astype(np.float32), label


def corpus_of(probs: Any, label: Any) -> pa.Table:
    rows = len(label)
    return pa.table(
        {
            "id": pa.array([f"r{i:05d}" for i in range(rows)], pa.string()),
            "text": pa.array(["text"] * rows, pa.string()),
            "p_probs": pa.array(probs, pa.list_(pa.float32())),
            "p_label": pa.array(label, pa.int32()),
        }
    )


def scored(folder: Path, table: pa.Table, memory: str | None = None, **params: Any) -> Ran:
    stage = {"operator": "confident_learning", "probs": "p", **params}
    return run(folder, table, stage, add=ADD, memory=memory)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"filter_by": "both", "quality": "normalized_margin"},
        {"filter_by": "confident_learning", "adjust": True},
        {"filter_by": "predicted_neq_given", "quality": "confidence_weighted_entropy"},
        {"filter_by": "low_self_confidence"},
    ],
)
def test_equal_to_a_plain_call_of_cleanlab(tmp_path: Path, params: dict[str, Any]) -> None:
    probs, label = drawn(400, 4)
    rows = scored(tmp_path, corpus_of(probs.tolist(), label), **params).rows
    wide = probs.astype(np.float64)
    filter_by = params.get("filter_by", "prune_by_noise_rate")
    error = find_label_issues(label, wide, filter_by=filter_by)
    quality = get_label_quality_scores(
        label,
        wide,
        method=params.get("quality", "self_confidence"),
        adjust_pred_probs=params.get("adjust", False),
    )
    assert 20 < error.sum() < 200
    assert rows["confident_learning_error"].to_list() == error.tolist()
    assert rows["confident_learning"].to_list() == pytest.approx(quality.tolist(), rel=1e-12)
    _, noise, inverse = estimate_latent(compute_confident_joint(label, wide), label)
    assert noise.shape == (4, 4)
    expected = 1 - np.diagonal(inverse)[label]
    found = rows["confident_learning_class_noise"].to_list()
    assert found == pytest.approx(expected.tolist(), abs=1e-12)
    assert 0.1 < min(found) < max(found) < 0.4  # a quarter was planted


def test_order_and_sharding_do_not_matter(tmp_path: Path) -> None:
    probs, label = drawn(200, 3)
    probs = probs.round(1)  # ties, which cleanlab breaks by position
    table = corpus_of(probs.tolist(), label)
    first = scored(tmp_path / "a", table).rows
    again = scored(tmp_path / "b", shuffled(table)).rows
    assert again.equals(first)


def test_rows_without_probabilities_are_left_out(tmp_path: Path) -> None:
    probs, label = drawn(100, 3)
    given, known = probs.tolist(), label.tolist()
    given[3], given[40], known[60] = None, [math.nan, 0.5, 0.5], None
    rows = scored(tmp_path / "a", corpus_of(given, known)).rows
    gone = rows.filter(pl.col("confident_learning").is_null())
    assert gone["id"].to_list() == ["r00003", "r00040", "r00060"]
    assert all(gone[name].null_count() == 3 for name in ADD)
    others = np.setdiff1d(np.arange(100), [3, 40, 60])
    expected = find_label_issues(label[others], probs[others].astype(np.float64))
    there = rows.filter(pl.col("confident_learning").is_not_null())
    assert there["confident_learning_error"].to_list() == expected.tolist()
    none = scored(tmp_path / "b", corpus_of([None, None], [0, 1])).rows
    assert none["confident_learning"].to_list() == [None, None]


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one(tmp_path: Path, rows: int) -> None:
    found = scored(tmp_path, corpus_of([[0.25, 0.75]][:rows], [0][:rows])).rows
    if rows:
        assert found.select(ADD).row(0) == (0.25, False, 0.0)


@pytest.mark.parametrize("quality", ["self_confidence", "confidence_weighted_entropy"])
def test_one_class(tmp_path: Path, quality: str) -> None:
    rows = scored(tmp_path, corpus_of([[1.0]] * 3, [0] * 3), quality=quality).rows
    assert [row[:3] for row in rows.select(ADD).rows()] == [(1.0, False, 0.0)] * 3


def test_a_class_with_one_row_and_one_with_none(tmp_path: Path) -> None:
    """The classes are those of all rows; earlier stages may have dropped all of one."""
    probs, label = drawn(100, 4)
    label[label >= 2] = 0
    label[7] = 3
    rows = scored(tmp_path, corpus_of(probs.tolist(), label)).rows
    with pytest.warns(UserWarning, match="too few examples"):
        expected = find_label_issues(label, probs.astype(np.float64), n_jobs=1)
    assert rows["confident_learning_error"].to_list() == expected.tolist()
    assert not rows["confident_learning_error"][7]  # a class's last row is never flagged


def test_numbers_that_are_no_probabilities(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="p_probs: expected probabilities from 0 to 1, found -2"):
        scored(tmp_path / "a", corpus_of([[-2.0, 3.0]], [0]))
    with pytest.raises(UserError, match="p_label: expected class numbers from 0 to 1"):
        scored(tmp_path / "b", corpus_of([[0.5, 0.5]], [2]))
    with pytest.raises(UserError, match="expected lists of one length, found 1 and 2"):
        scored(tmp_path / "c", corpus_of([[1.0], [0.5, 0.5]], [0, 0]))


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tamis.scoring.model_files.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package cleanlab") as caught:
        ConfidentLearning().resolve(tmp_path)
    assert "tamis[labels]" in str(caught.value.mend)


def test_more_classes_than_memory_is_left_for(tmp_path: Path) -> None:
    """Held before anything is allocated: cleanlab's matrices have classes x classes numbers."""
    table = corpus_of([[1 / 9000] * 9000] * 2, [0, 1])
    with pytest.raises(UserError, match=r"2 rows by 9,000 classes need .* more than memory"):
        scored(tmp_path, table, memory="2GB")
