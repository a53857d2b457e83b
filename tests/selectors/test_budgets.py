"""Budgets against slow implementations."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis

ROWS = 400


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    score = random.normal(size=ROWS).round(1)  # rounded: ties
    score[:5] = np.nan
    score[5], score[6] = np.inf, -np.inf
    table = pa.table(
        {
            "id": [f"r{i}" for i in range(ROWS)],
            "score": pa.array(score, mask=np.arange(ROWS) == 7),
            "group": pa.array([f"g{i % 3}" if i % 10 else None for i in range(ROWS)]),
        }
    )
    path = tmp_path_factory.mktemp("budgets") / "corpus.parquet"
    pq.write_table(table, path, row_group_size=50)
    return path


def run(corpus: Path, tmp_path: Path, *stages: dict[str, Any]) -> tuple[pd.DataFrame, tamis.Any]:
    result = tamis.run(
        {
            "corpus": {"path": str(corpus), "roles": {"id": "id"}, "shard_bytes": 1},
            "stages": list(stages),
            "output": {"path": str(tmp_path / "out")},
            "workers": 2,
        }
    )
    kept = pd.read_parquet(sorted((tmp_path / "out").glob("*.parquet")))
    return kept, result


def by_id(result: Any) -> pl.DataFrame:
    return result.decisions.sort("shard", "row").collect()  # type: ignore[no-any-return]


def test_top_rows(corpus: Path, tmp_path: Path) -> None:
    kept, result = run(corpus, tmp_path, {"operator": "top", "by": "score", "rows": 30})
    whole = pq.read_table(corpus).to_pandas()
    best = whole["score"].dropna().sort_values(ascending=False).iloc[:30]
    assert sorted(kept["score"]) == sorted(best)
    assert result.manifest["rows"]["dropped"] == {"top": 400 - 6 - 30, "top:no_score": 6}
    dropped = by_id(result).filter(pl.col("reason") == "top")
    assert dropped["threshold"].unique().to_list() == [best.iloc[-1]]
    assert (dropped["value"] <= best.iloc[-1]).all()


def test_top_fraction_in_each_group_lowest_first(corpus: Path, tmp_path: Path) -> None:
    stage = {"operator": "top", "by": "score", "fraction": 0.25, "order": "lowest", "per": "group"}
    kept, _ = run(corpus, tmp_path, stage)
    whole = pq.read_table(corpus).to_pandas()
    for name, rows in whole.groupby("group", dropna=False):
        mine = kept[kept["group"].isna()] if pd.isna(name) else kept[kept["group"] == name]
        expected = rows["score"].dropna().sort_values().iloc[: int(len(rows) * 0.25)]
        assert sorted(mine["score"]) == sorted(expected)


def test_quantile_band(corpus: Path, tmp_path: Path) -> None:
    stage = {"operator": "quantile", "by": "score", "low": 0.1, "high": 0.9}
    kept, result = run(corpus, tmp_path, stage)
    scores = pq.read_table(corpus).to_pandas()["score"].dropna()
    low, high = np.quantile(scores, [0.1, 0.9], method="inverted_cdf")
    assert sorted(kept["score"]) == sorted(scores[(scores >= low) & (scores <= high)])
    found = by_id(result).filter(pl.col("reason") == "quantile")
    assert set(found["threshold"]) == {low, high}


def test_quantile_keeps_all_scored_rows_by_default(corpus: Path, tmp_path: Path) -> None:
    kept, _ = run(corpus, tmp_path, {"operator": "quantile", "by": "score"})
    assert len(kept) == 394


def test_samples_are_nested_and_depend_on_the_id_only(corpus: Path, tmp_path: Path) -> None:
    small, _ = run(corpus, tmp_path, {"operator": "sample", "fraction": 0.2, "seed": 3})
    large, _ = run(corpus, tmp_path, {"operator": "sample", "fraction": 0.6, "seed": 3})
    exact, _ = run(corpus, tmp_path, {"operator": "sample", "rows": len(small), "seed": 3})
    other, _ = run(corpus, tmp_path, {"operator": "sample", "fraction": 0.2, "seed": 4})
    assert set(small["id"]) < set(large["id"])
    assert set(exact["id"]) == set(small["id"])
    assert set(other["id"]) != set(small["id"])
    assert 50 < len(small) < 110


def test_sample_rows_per_group(corpus: Path, tmp_path: Path) -> None:
    kept, _ = run(corpus, tmp_path, {"operator": "sample", "rows": 10, "per": "group"})
    assert kept.groupby("group", dropna=False).size().tolist() == [10] * 4


def test_draws_are_uniform() -> None:
    from tamis.selectors.budgets import draws

    ids = np.arange(100_000, dtype=np.uint64)
    value = draws(ids, ids, np.zeros(len(ids), np.uint32), 0)
    counts, _ = np.histogram(value, bins=20, range=(0, 1))
    # Chi-square with 19 degrees of freedom: 43.8 is the 99.9th percentile.
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"operator": "top", "by": "score"}, "either rows or fraction"),
        ({"operator": "top", "by": "score", "rows": 1, "fraction": 0.5}, "either rows or fraction"),
        ({"operator": "quantile", "by": "score", "low": 0.9, "high": 0.1}, "low lies above high"),
        ({"operator": "top", "by": "nowhere", "rows": 1}, "nowhere"),
        ({"operator": "top", "by": "words", "rows": 1}, "text_stats"),
    ],
)
def test_what_cannot_be_is_said(
    corpus: Path, tmp_path: Path, stage: dict[str, Any], message: str
) -> None:
    with pytest.raises(tamis.UserError, match=message):
        run(corpus, tmp_path, stage)
