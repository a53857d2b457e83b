"""Random subsets: how epochs share the rows."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis

ROWS = 103


def subset(folder: Path, rows: int = ROWS, order: int | None = None, **params: Any) -> set[str]:
    """Ids that a subset keeps of rows ``r0``, ``r1``, …, in groups ``g0`` to ``g2``."""
    places = np.arange(rows)
    if order is not None:
        np.random.default_rng(order).shuffle(places)
    path = folder / f"{order}-{rows}.parquet"
    table = pa.table({"id": [f"r{i}" for i in places], "group": [f"g{i % 3}" for i in places]})
    pq.write_table(table, path, row_group_size=20)
    result = tamis.run(
        {
            "corpus": {"path": str(path), "roles": {"id": "id"}, "shard_bytes": 1},
            "stages": [{"operator": "random_subset", **params}],
            "output": {"path": str(folder / "out")},
        }
    )
    found = result.manifest["rows"]
    assert found["kept"] + sum(found["dropped"].values()) == rows
    dropped = result.dropped.collect()
    assert dropped.filter(pl.col("value") == pl.col("threshold")).is_empty()
    return set(pl.read_parquet(folder / "out/*.parquet")["id"]) if found["kept"] else set()


def test_epochs_walk_a_shuffle_and_then_shuffle_anew(tmp_path: Path) -> None:
    epochs = [subset(tmp_path, fraction=0.25, epoch=e) for e in range(8)]
    assert [len(e) for e in epochs] == [25] * 8
    for four in (epochs[:4], epochs[4:]):
        assert len(set.union(*four)) == 100, "a row came twice before all had come"
    assert all(a != b for a in epochs[:4] for b in epochs[4:])


def test_with_replacement_every_epoch_draws_from_all_rows(tmp_path: Path) -> None:
    epochs = [subset(tmp_path, fraction=0.25, epoch=e, replacement=True) for e in range(8)]
    assert [len(e) for e in epochs] == [25] * 8
    assert len(set.union(*epochs[:4])) < 100
    counts = np.array([sum(f"r{i}" in e for e in epochs) for i in range(ROWS)])
    assert counts.min() == 0
    assert counts.max() >= 3  # 8 draws of a quarter: binomial, mean 2


def test_a_subset_depends_on_the_ids_only(tmp_path: Path) -> None:
    params: dict[str, Any] = {"fraction": 0.3, "epoch": 2, "seed": 5}
    same = [subset(tmp_path, order=order, **params) for order in (None, 1, 2)]
    assert same[0] == same[1] == same[2]
    assert subset(tmp_path, fraction=0.3, epoch=2, seed=6) != same[0]


def test_each_group_gives_its_share(tmp_path: Path) -> None:
    for epoch in range(3):
        kept = subset(tmp_path, fraction=0.3, epoch=epoch, per="group")
        groups = np.bincount([int(name[1:]) % 3 for name in kept])
        assert groups.tolist() == [10, 10, 10]  # of 35, 34 and 34


@pytest.mark.parametrize(
    ("rows", "fraction", "kept"), [(0, 0.5, 0), (1, 0.5, 0), (1, 1.0, 1), (3, 0.34, 1), (7, 1.0, 7)]
)
def test_small_corpora(tmp_path: Path, rows: int, fraction: float, kept: int) -> None:
    assert len(subset(tmp_path, rows=rows, fraction=fraction, epoch=3)) == kept


def test_random_subsets_are_random() -> None:
    """Over many shuffles every row is drawn equally often."""
    from tamis.selectors.budgets import draws

    ids = np.arange(200, dtype=np.uint64)
    none = np.zeros(200, np.uint32)
    counts = np.zeros(200)
    for shuffle in range(2000):
        counts[np.argsort(draws(ids, ids, none, 7 + (shuffle << 32)))[:50]] += 1
    # Chi-square of 200 cells with mean 500 and variance 375; 99.9th percentile of 199 is 267.
    assert ((counts - 500) ** 2 / 375).sum() < 267
