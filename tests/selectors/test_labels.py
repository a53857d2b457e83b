"""Labels become numbers that do not depend on the order or the type of what is stored."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.flows.direct import open_run
from tamis.flows.steps import table_of
from tamis.recipe import Recipe, check_recipe
from tamis.selectors.labels import Labels, labels_of
from tamis.storage.errors import UserError
from tamis.storage.tasks import Threads


def _recipe(folder: Path, labels: pa.Array, **changes: Any) -> Recipe:
    rows = pa.table({"id": range(len(labels)), "text": ["a"] * len(labels), "label": labels})
    pq.write_table(rows, folder / "rows.parquet", row_group_size=2)
    corpus = {"path": str(folder / "rows.parquet"), "roles": {"label": "label", "id": "id"}}
    stages: list[Any] = []
    return check_recipe(
        {"corpus": corpus, "stages": stages, "workspace": str(folder / "w"), **changes}
    )


def _labels(folder: Path, labels: pa.Array) -> Labels:
    recipe = _recipe(folder, labels)
    run, _ = open_run(recipe, recipe.workspace_path, Threads(1), lambda *_: None)
    return labels_of(table_of(run))


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        (pa.array(["b", "a", "b"]), ["a", "b"], [1, 0, 1]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["a", "b"], [1, 0, 1]),
        (pa.array([10, 9, 10], pa.int8()), ["10", "9"], [0, 1, 0]),
        (pa.array([10.0, 9.0, 10.0]), ["10", "9"], [0, 1, 0]),
        (pa.array([True, False, True]), ["false", "true"], [1, 0, 1]),
        (pa.array(["", "é", "z", "", "漢"]), ["", "z", "é", "漢"], [0, 2, 1, 0, 3]),
        (pa.array(["one"] * 5), ["one"], [0] * 5),
        (pa.array([], pa.string()), [], []),
    ],
)
def test_classes(tmp_path: Path, labels: pa.Array, classes: list[str], codes: list[int]) -> None:
    found = _labels(tmp_path, labels)
    assert found.classes == classes
    assert found.codes.tolist() == codes


@pytest.mark.parametrize("bad", [0.5, float("nan"), float("inf")])
def test_floats_that_are_no_class(tmp_path: Path, bad: float) -> None:
    with pytest.raises(UserError, match=r"expected classes, found .* in row [0-9a-f]{32}"):
        _labels(tmp_path, pa.array([1.0, bad]))


@pytest.mark.parametrize("labels", [pa.array([["a"], ["b"]]), pa.array([{"a": 1}, {"a": 2}])])
def test_several_labels_a_row_are_refused(tmp_path: Path, labels: pa.Array) -> None:
    with pytest.raises(UserError, match="expected one class a row"):
        tamis.run(_recipe(tmp_path, labels))


def test_a_row_without_label_is_quarantined(tmp_path: Path) -> None:
    result = tamis.run(_recipe(tmp_path, pa.array(["a", None, "b"]), max_quarantine=0.5))
    assert result.manifest["rows"]["quarantined"] == 1
    assert result.kept.collect().height == 2
