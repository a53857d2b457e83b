"""Subclasses of long-tailed classes."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests.selectors.sample_tools import blobs, run, shuffled, table_of

STAGE: dict[str, Any] = {
    "operator": "subclass_balanced",
    "embedding": "vector",
    "label": "label",
}
ADD = ["subclass", "subclass_weight"]


def long_tailed() -> pa.Table:
    """Class ``head`` of four kinds of 25 rows, and class ``tail`` of one kind of 25."""
    table = blobs([25] * 5)
    labels = ["tail" if blob == 4 else "head" for blob in table["blob"].to_pylist()]
    return table.append_column("label", pa.array(labels))


def test_the_head_is_cut_into_its_kinds(tmp_path: Path) -> None:
    rows = run(tmp_path, long_tailed(), STAGE, add=ADD).rows
    pairs = rows.select("label", "blob", "subclass").unique()
    assert len(pairs) == 5
    assert sorted(pairs["subclass"]) == [0, 1, 2, 3, 4]
    assert rows["subclass_weight"].unique().to_list() == [1.0]


def test_an_equal_quota_of_each_subclass(tmp_path: Path) -> None:
    table = long_tailed()
    quota = {"operator": "sample", "rows": 2, "per": "subclass"}
    rows = run(tmp_path, table, STAGE, quota).rows
    assert np.bincount(rows["blob"]).tolist() == [2] * 5


def test_sizes_and_weights(tmp_path: Path) -> None:
    table = blobs([47, 12, 5]).append_column("label", pa.array([None] * 64, pa.string()))
    table = table.set_column(4, "label", table["blob"].cast(pa.string()))
    found = run(tmp_path / "a", table, {**STAGE, "size": 10}, add=ADD).rows
    sizes = found.group_by("label", "subclass").len()
    by_label = {label: sorted(rows["len"].to_list()) for (label,), rows in sizes.group_by("label")}
    assert by_label == {"0": [9, 9, 9, 10, 10], "1": [6, 6], "2": [5]}
    total = found.group_by("subclass").agg(pl.col("subclass_weight").sum())["subclass_weight"]
    assert total.to_list() == pytest.approx([64 / 8] * 8)
    # Without a size it is that of the smallest class, but at least `least`.
    counts = {}
    for least in (1, 10):
        rows = run(tmp_path / str(least), table, {**STAGE, "least": least}, add=ADD).rows
        counts[least] = rows["subclass"].n_unique()
    assert counts == {1: 10 + 3 + 1, 10: 5 + 2 + 1}


def test_order_sharding_and_workers_do_not_matter(tmp_path: Path) -> None:
    table = long_tailed()
    stage = {**STAGE, "size": 7, "seed": 2}
    first = run(tmp_path / "0", table, stage, add=ADD, workers=1).rows
    again = run(tmp_path / "1", shuffled(table), stage, add=ADD, workers=2, rows_per_group=9).rows
    assert again.equals(first)


def test_nulls_are_a_class_and_few_rows_are_enough(tmp_path: Path) -> None:
    one = table_of(np.ones((1, 3)), label=pa.array(["a"]))
    assert run(tmp_path / "a", one, STAGE, add=ADD).rows["subclass"].to_list() == [0]
    none = run(tmp_path / "b", one.slice(0, 0), STAGE, add=ADD)
    assert len(none.rows) == 0
    mixed = table_of(np.ones((4, 3)), label=pa.array(["a", None, "b", None]))
    rows = run(tmp_path / "c", mixed, {**STAGE, "size": 2}, add=ADD).rows
    assert rows["subclass"].n_unique() == 3
    assert rows.filter(pl.col("label").is_null())["subclass"].n_unique() == 1
