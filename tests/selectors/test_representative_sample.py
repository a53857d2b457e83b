"""Representative samples: evenness, centres, budgets, and what does not matter."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import tamis
from tests.selectors.sample_tools import blobs, run, shuffled, table_of

STAGE: dict[str, Any] = {"operator": "representative_sample", "embedding": "vector"}


def slowly(table: pa.Table, ids: list[str], cluster: dict[str, int], budget: int) -> set[str]:
    """Given the clusters: one row from each in turn, the nearest to the mean direction first."""
    vectors = np.array(table["vector"].to_pylist())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    at = dict(zip(table["id"].to_pylist(), vectors, strict=True))
    queues = []
    for number in sorted(set(cluster.values())):
        members = [i for i in ids if cluster[i] == number]
        centre = np.sum([at[i] for i in members], axis=0)
        centre /= np.linalg.norm(centre)
        queues.append(sorted((float(-at[i] @ centre), i) for i in members))
    taken: list[str] = []
    depth = 0
    while len(taken) < budget and any(depth < len(queue) for queue in queues):
        taken += [i for _, i in sorted(queue[depth] for queue in queues if depth < len(queue))]
        depth += 1
    return set(taken[:budget])


@pytest.mark.parametrize("budget", [3, 10, 40, 120])
def test_planted_clusters_give_their_central_rows_in_turn(tmp_path: Path, budget: int) -> None:
    table = blobs([100, 60, 30, 5])
    found = run(tmp_path, table, {**STAGE, "rows": budget, "k": 4})
    cluster = dict(zip(table["id"].to_pylist(), table["blob"].to_pylist(), strict=True))
    assert found.kept == slowly(table, table["id"].to_pylist(), cluster, budget)
    lost = found.decisions.filter(pl.col("action") == "drop")
    assert (lost["value"] <= lost["threshold"]).filter(lost["threshold"].is_not_null()).all()


def test_a_large_cluster_does_not_drown_a_small_one(tmp_path: Path) -> None:
    table = blobs([470, 10, 10, 10])
    ours = run(tmp_path / "a", table, {**STAGE, "rows": 40, "k": 4, "seed": 3})
    assert np.bincount(ours.rows["blob"]).tolist() == [10, 10, 10, 10]


def test_partners_are_central_rows_that_stay(tmp_path: Path) -> None:
    table = blobs([40, 40])
    found = run(tmp_path, table, {**STAGE, "rows": 6, "k": 2})
    keys = {(r["id_hi"], r["id_lo"]): r["id"] for r in found.decisions.to_dicts()}
    blob = dict(zip(table["id"].to_pylist(), table["blob"].to_pylist(), strict=True))
    at = dict(zip(table["id"].to_pylist(), np.array(table["vector"].to_pylist()), strict=True))
    lost = found.decisions.filter(pl.col("action") == "drop").to_dicts()
    for row in lost:
        partner = keys[row["partner_hi"], row["partner_lo"]]
        assert partner in found.kept
        assert blob[partner] == blob[row["id"]]
        a, b = at[row["id"]], at[partner]
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert row["similarity"] == pytest.approx(cosine, abs=1e-6)
    assert len({(r["partner_hi"], r["partner_lo"]) for r in lost}) == 2
    assert found.report["report"] == {"clusters": 2, "clusters_without_a_row_kept": 0}


def test_each_group_has_its_own_clusters_and_budget(tmp_path: Path) -> None:
    table = blobs([60, 60]).append_column("domain", [["a"] * 30 + ["b"] * 80 + [None] * 10])
    found = run(tmp_path, table, {**STAGE, "fraction": 0.1, "k": 2, "per": "domain"})
    counts = dict(found.rows.group_by("domain").len().iter_rows())
    assert counts == {"a": 3, "b": 8, None: 1}


def test_order_sharding_and_workers_do_not_matter(tmp_path: Path) -> None:
    table = blobs([150, 90, 60])
    stage = {**STAGE, "rows": 25, "seed": 3}
    first = run(tmp_path / "0", table, stage, workers=1)
    for seed in (1, 2):
        again = run(
            tmp_path / str(seed), shuffled(table, seed), stage, workers=2, rows_per_group=7 * seed
        )
        columns = ["id", "action", "value", "threshold", "partner_hi", "similarity"]
        assert again.decisions.select(columns).equals(first.decisions.select(columns))


@pytest.mark.parametrize(("rows", "kept"), [(0, 0), (1, 1), (9, 5)])
def test_few_rows(tmp_path: Path, rows: int, kept: int) -> None:
    table = blobs([rows]) if rows else blobs([1]).slice(0, 0)
    assert len(run(tmp_path, table, {**STAGE, "rows": 5}).kept) == kept


def test_vectors_of_zeros_and_equal_vectors(tmp_path: Path) -> None:
    zeros = run(tmp_path / "a", table_of(np.zeros((6, 4))), {**STAGE, "rows": 2})
    assert len(zeros.kept) == 2
    equal = run(tmp_path / "b", table_of(np.ones((6, 4))), {**STAGE, "rows": 2, "k": 3})
    assert len(equal.kept) == 2


def test_one_budget_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(tamis.UserError, match="either rows or fraction"):
        run(tmp_path, blobs([5]), STAGE)
    with pytest.raises(tamis.UserError, match="expected a list of numbers"):
        run(tmp_path, blobs([5]), {**STAGE, "rows": 1, "embedding": "text"})
