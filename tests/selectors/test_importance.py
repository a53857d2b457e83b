"""Importance sampling towards a target: histograms, weights, what the corpus lacks."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tests.selectors.sample_tools import blobs, run, shuffled, table_of

ADD = ["importance_weight", "importance_cluster"]


def stage(folder: Path, target: pa.Table, name: str = "importance_sample", **more: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(target, folder / "target.parquet")
    return {
        "operator": name,
        "embedding": "vector",
        "target": {"path": str(folder / "target.parquet"), "name": "wanted"},
        **more,
    }


def test_the_sample_has_the_targets_histogram(tmp_path: Path) -> None:
    corpus, target = blobs([300, 300, 300, 100]), blobs([10, 0, 30, 60], seed=7)
    found = run(tmp_path, corpus, stage(tmp_path, target, rows=100, k=4, seed=5))
    assert np.bincount(found.rows["blob"], minlength=4).tolist() == [10, 0, 30, 60]
    assert found.report["dropped"] == {
        "importance_sample": 600,
        "importance_sample:outside_target": 300,
    }
    report = found.report["report"]
    assert report["distance_to_target"] == pytest.approx(0)
    assert report["clusters_of_the_target"] == 3
    assert report["rows_within_reach"] == 700
    # Weights .1/.3, 0, .3/.3 and .6/.1 on 300, 300, 300 and 100 rows.
    weights = np.repeat([1 / 3, 0, 1, 6], [300, 300, 300, 100])
    assert report["effective_sample_size"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert report["highest_weight"] == pytest.approx(6)


def test_an_exhausted_cluster_leaves_its_part_to_the_others(tmp_path: Path) -> None:
    corpus, target = blobs([200, 200, 20]), blobs([25, 25, 50], seed=7)
    found = run(tmp_path, corpus, stage(tmp_path, target, rows=120, k=3, seed=2))
    assert np.bincount(found.rows["blob"], minlength=3).tolist() == [50, 50, 20]
    assert found.report["report"]["distance_to_target"] == pytest.approx(1 / 2 - 20 / 120)


def test_larger_budgets_contain_smaller_ones(tmp_path: Path) -> None:
    corpus, target = blobs([200, 100, 100]), blobs([7, 11, 3], seed=7)
    kept: set[str] = set()
    for rows in (5, 50, 200, 399, 400):
        found = run(tmp_path, corpus, stage(tmp_path, target, rows=rows, k=3)).kept
        assert kept < found
        assert len(found) == rows
        kept = found


def test_smoothing_reaches_every_cluster(tmp_path: Path) -> None:
    corpus, target = blobs([100, 100]), blobs([10, 0], seed=7)
    found = run(tmp_path, corpus, stage(tmp_path, target, rows=80, k=2, smoothing=0.5))
    assert np.bincount(found.rows["blob"]).tolist() == [60, 20]
    alone = run(tmp_path, corpus, stage(tmp_path, target, rows=180, k=2))
    assert len(alone.kept) == 100, "rows that the target does not touch were kept"


def test_weights_are_shares_over_shares(tmp_path: Path) -> None:
    corpus, target = blobs([300, 300, 300, 100]), blobs([10, 0, 30, 60], seed=7)
    rows = run(
        tmp_path, corpus, stage(tmp_path, target, "importance_weight", k=4, seed=5), add=ADD
    ).rows
    found = dict(rows.group_by("blob").agg(pl.col("importance_weight").unique()).iter_rows())
    expected = [1 / 3, 0, 1, 6]
    assert {b: w[0] for b, w in found.items()} == pytest.approx(dict(enumerate(expected)))
    assert rows["importance_weight"].mean() == pytest.approx(1)
    assert rows["importance_cluster"].n_unique() == 4


def test_what_the_corpus_lacks_is_counted(tmp_path: Path) -> None:
    corpus = blobs([100, 100], spread=0.05)
    target = pa.concat_tables(
        [blobs([10, 10], spread=0.01, seed=7), table_of(np.eye(16)[:3], blob=np.zeros(3, int))]
    )
    found = run(tmp_path, corpus, stage(tmp_path, target, rows=10, k=2))
    assert found.report["report"]["target_rows_outside"] == 3
    assert found.report["report"]["target_rows"] == 23


def test_order_sharding_and_workers_do_not_matter(tmp_path: Path) -> None:
    corpus, target = blobs([150, 90, 60]), blobs([5, 5, 20], seed=7)
    which = stage(tmp_path, target, rows=40, seed=4)
    first = run(tmp_path / "0", corpus, which, workers=1)
    which = stage(tmp_path, shuffled(target), rows=40, seed=4)
    again = run(tmp_path / "1", shuffled(corpus), which, workers=2, rows_per_group=11)
    assert again.decisions.select("id", "action", "value").equals(
        first.decisions.select("id", "action", "value")
    )
    assert again.report["report"] == first.report["report"]


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    corpus, target = blobs([20]), blobs([5], seed=7)
    with pytest.raises(tamis.UserError, match="the target has no rows"):
        run(tmp_path, corpus, stage(tmp_path, target.slice(0, 0), rows=1))
    with pytest.raises(tamis.UserError, match="16 numbers, those of the target 8"):
        run(tmp_path, corpus, stage(tmp_path, blobs([5], width=8), rows=1))
    with pytest.raises(tamis.UserError, match="either rows or fraction"):
        run(tmp_path, corpus, stage(tmp_path, target))
    assert run(tmp_path, corpus.slice(0, 0), stage(tmp_path, target, rows=3)).kept == set()
    assert len(run(tmp_path, corpus.slice(0, 1), stage(tmp_path, target, rows=3)).kept) == 1
    weights = run(
        tmp_path, corpus.slice(0, 1), stage(tmp_path, target, "importance_weight"), add=ADD
    )
    assert weights.rows["importance_weight"].to_list() == [1.0]


def test_scores_without_their_report_are_computed_again(tmp_path: Path) -> None:
    corpus, target = blobs([30, 30]), blobs([5, 15], seed=7)
    weigh = stage(tmp_path, target, "importance_weight", k=2)
    first = run(tmp_path, corpus, weigh).report
    (told,) = tmp_path.rglob("importance_weight/report-*.json")
    told.unlink()  # as in a workspace of a release that did not write one
    assert run(tmp_path, corpus, weigh).report == first
    assert first["report"]["clusters"] == 2
