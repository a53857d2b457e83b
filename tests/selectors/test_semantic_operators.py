"""semdedup, prototype_pruning, d4 and cluster as stages of a recipe."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.selectors import semantic_duplicates
from tamis.storage.edges import Edges
from tamis.storage.errors import UserError
from tests.conftest import write_corpus
from tests.guarantees.guarantee_tools import (
    Key,
    decisions_by_row,
    manifest_of,
    partner_of,
    read_dataset,
    workspace_of,
)
from tests.selectors.test_clusters import mixture

ROWS = 600


def corpus_table(rows: int = ROWS, kind: pa.DataType | None = None) -> pa.Table:
    """Texts with vectors of which a third are near copies, some equal and some zero."""
    matrix = mixture(rows, 16, 25, spread=0.6).astype(np.float64)
    random = np.random.default_rng(2)
    third = rows // 3
    matrix[:third] = matrix[third : 2 * third] + 0.02 * random.standard_normal((third, 16))
    matrix[:10] = matrix[10:20]
    if rows >= 40:
        matrix[20:23] = 0
    texts = [f"row {i} " + "x" * int(random.integers(0, 9)) for i in range(rows)]
    return pa.table(
        {
            "id": [f"id-{i}" for i in range(rows)],
            "text": texts,
            "quality": random.random(rows),
            "vector": pa.array(matrix.tolist(), kind or pa.list_(pa.float32(), 16)),
        }
    )


def run(
    table: pa.Table, folder: Path, stages: list[dict[str, Any]], parts: int = 1, **options: Any
) -> dict[Key, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "in"
    source.mkdir()
    size = -(-len(table) // parts) if len(table) else 1
    for part in range(parts):
        pq.write_table(table.slice(part * size, size), source / f"{part}.parquet")
    tamis.run(
        {
            "corpus": {"path": str(source), "roles": {"text": "text", "id": "id"}},
            "stages": stages,
            "output": {"path": str(folder / "out"), **options.pop("output", {})},
            **options,
        }
    )
    return decisions_by_row(workspace_of(folder / "out"))


STAGES: dict[str, dict[str, Any]] = {
    "greedy": {"operator": "semdedup", "threshold": 0.95, "k": 12, "probes": 3},
    "by_score": {"operator": "semdedup", "threshold": 0.95, "rank": "quality"},
    "published": {"operator": "semdedup", "threshold": 0.95, "greedy": False},
    "share": {"operator": "semdedup", "fraction": 0.75, "greedy": False},
    "prototypes": {"operator": "prototype_pruning", "fraction": 0.6},
    "d4": {"operator": "d4", "fraction": 0.5},
}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_order_shards_and_workers_change_no_decision(tmp_path: Path, name: str) -> None:
    stage = {"embedding": "vector", **STAGES[name]}
    table = corpus_table()
    expected = run(table, tmp_path / "a", [stage], workers=1)
    assert 0 < sum(row["action"] == "drop" for row in expected.values()) < ROWS
    shuffled = table.take(pa.array(np.random.default_rng(7).permutation(ROWS)))
    assert run(shuffled, tmp_path / "b", [stage], parts=5, workers=3) == expected
    wide = shuffled.set_column(3, "vector", shuffled["vector"].cast(pa.large_list(pa.float64())))
    assert run(wide, tmp_path / "c", [stage], parts=2) == expected


def test_clusters_do_not_depend_on_order(tmp_path: Path) -> None:
    stages = [
        {"operator": "cluster", "embedding": "vector", "k": 10},
        {"operator": "top", "by": "cluster_similarity", "rows": 20, "per": "cluster"},
    ]
    table = corpus_table()
    options = {"output": {"add": ["cluster", "cluster_similarity"]}}
    expected = run(table, tmp_path / "a", stages, **options)
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(ROWS)))
    assert run(shuffled, tmp_path / "b", stages, parts=4, **options) == expected
    a, b = (read_dataset(tmp_path / name / "out").sort_by("id") for name in "ab")
    assert a.equals(b)
    assert max(Counter(a["cluster"].to_pylist()).values()) <= 20
    assert a["cluster"].type == pa.int32()
    vectors = np.array(a["vector"].to_pylist())
    assert (np.array(a["cluster_similarity"]) <= 1 + 1e-6).all()
    assert (np.array(a["cluster_similarity"])[~vectors.any(axis=1)] == 0).all()


def test_a_dropped_row_names_a_kept_partner(tmp_path: Path) -> None:
    for name in ("greedy", "by_score", "published", "share"):
        found = run(corpus_table(), tmp_path / name, [{"embedding": "vector", **STAGES[name]}])
        for row in found.values():
            if row["action"] == "drop":
                partner = partner_of(row)
                assert partner is not None
                assert found[partner]["action"] == "keep"
                assert row["value"] >= row["threshold"]
                if name in ("greedy", "by_score"):
                    assert row["similarity"] == row["value"] >= 0.95


def test_the_longest_or_the_best_score_stays(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "text": ["short", "a longer one", "mid size"],
            "quality": [0.5, 0.1, 0.9],
            "vector": pa.array([[1.0, 0.0]] * 3, pa.list_(pa.float32(), 2)),
        }
    )
    stage = {"operator": "semdedup", "embedding": "vector"}
    run(table, tmp_path / "longest", [stage])
    assert read_dataset(tmp_path / "longest" / "out")["id"].to_pylist() == ["b"]
    run(table, tmp_path / "score", [{**stage, "rank": "quality"}])
    assert read_dataset(tmp_path / "score" / "out")["id"].to_pylist() == ["c"]
    run(table, tmp_path / "low", [{**stage, "rank": "quality", "rank_order": "lowest"}])
    assert read_dataset(tmp_path / "low" / "out")["id"].to_pylist() == ["b"]


def test_d4_keeps_the_shares_and_names_both_parts(tmp_path: Path) -> None:
    found = run(corpus_table(), tmp_path, [{"embedding": "vector", **STAGES["d4"]}])
    assert Counter(row["reason"] for row in found.values()) == {
        None: 300,
        "d4:semantic_duplicate": 150,
        "d4:prototypical": 150,
    }
    prototypes = [row for row in found.values() if row["reason"] == "d4:prototypical"]
    assert all(row["value"] >= row["threshold"] for row in prototypes)
    assert all(row["partner_hi"] is None for row in prototypes)
    stays = {(row["id_hi"], row["id_lo"]) for row in found.values() if row["reason"] is None}
    named = [row for row in found.values() if row["partner_hi"] is not None]
    assert len(named) > 100
    assert all((row["partner_hi"], row["partner_lo"]) in stays for row in named)
    assert all(row["similarity"] is not None for row in named)
    (stage,) = manifest_of(workspace_of(tmp_path / "out"))["stages"]
    # Clusters are made again, of the rows that the first part left.
    report = stage["report"]
    assert report["semantic_duplicate"]["clusters"] == round(600**0.5)
    assert report["prototypical"]["clusters"] == round(450**0.5)


def test_prototypes_are_the_rows_most_like_their_centroid(tmp_path: Path) -> None:
    table = corpus_table()
    cluster = {"operator": "cluster", "embedding": "vector", "k": 9, "seed": 4}
    prune = {"operator": "prototype_pruning", "embedding": "vector", "k": 9, "seed": 4, "rows": 150}
    run(table, tmp_path / "a", [cluster], output={"add": ["cluster_similarity"]})
    similarity = read_dataset(tmp_path / "a" / "out")["cluster_similarity"].to_numpy()
    run(table, tmp_path / "b", [prune])
    kept = set(read_dataset(tmp_path / "b" / "out")["id"].to_pylist())
    assert len(kept) == 150
    by_similarity = np.sort(similarity)
    inside = {f"id-{i}" for i in np.flatnonzero(similarity < by_similarity[149])}
    assert inside <= kept
    assert {"id-20", "id-21", "id-22"} <= kept  # zero vectors are like no centroid


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("name", sorted(STAGES))
def test_few_rows(tmp_path: Path, rows: int, name: str) -> None:
    stages = [
        {"operator": "cluster", "embedding": "vector"},
        {"embedding": "vector", **STAGES[name]},
    ]
    found = run(corpus_table(40).slice(0, rows), tmp_path, stages)
    assert len(found) == rows


@pytest.mark.parametrize(
    "bad", [[float("nan")] + [1.0] * 15, [float("inf")] + [1.0] * 15, [1.0] * 15, None]
)
def test_a_vector_that_is_none_is_named(tmp_path: Path, bad: list[float] | None) -> None:
    table = corpus_table(50)
    vectors = table["vector"].to_pylist()
    vectors[33] = bad
    table = table.set_column(3, "vector", pa.array(vectors, pa.list_(pa.float32())))
    for name in ("greedy", "prototypes", "d4"):
        with pytest.raises(UserError, match="vector") as error:
            run(table, tmp_path / name, [{"embedding": "vector", **STAGES[name]}])
        assert "row" in str(error.value)


def test_edges_lie_in_the_workspace_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path | None] = []

    def noted(folder: Path | None = None) -> Edges:
        folders.append(folder)
        return Edges(folder)

    monkeypatch.setattr(semantic_duplicates, "Edges", noted)
    for name in ("greedy", "published", "d4"):
        run(corpus_table(60), tmp_path / name, [{"embedding": "vector", **STAGES[name]}])
        assert folders == [workspace_of(tmp_path / name / "out").resolve()]
        folders.clear()


@pytest.mark.parametrize("kind", ["semdedup", "d4", "topics", "semantic_leak"])
def test_a_column_of_no_vectors_is_told_before_any_stage(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "other.parquet", ["a text"])
    more: dict[str, Any] = {
        "d4": {"fraction": 0.5},
        "topics": {"topics": {"a": ["b"]}},
        "semantic_leak": {"references": [{"path": str(tmp_path / "other.parquet")}]},
    }
    for name in ("quality", "characters"):  # a column, and a score of a stage before
        stage = {"operator": kind, "embedding": name, **more.get(kind, {})}
        with pytest.raises(UserError, match=rf"stages.1. .*list of numbers.*'{name}'"):
            run(corpus_table(20), tmp_path / name, [{"operator": "text_stats"}, stage])
        assert not list(workspace_of(tmp_path / name / "out").glob("scores/**/*.parquet"))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"operator": "semdedup", "fraction": 0.5}, "greedy: false"),
        ({"operator": "semdedup", "greedy": False, "rank": "quality"}, "centroids rank"),
        ({"operator": "semdedup", "threshold": 0.9, "edge_floor": 0.95}, "above the threshold"),
        ({"operator": "d4", "fraction": 0.8}, "nothing left to prune"),
        ({"operator": "prototype_pruning"}, "rows or fraction"),
        ({"operator": "semdedup", "embedding": "nowhere"}, "nowhere"),
        ({"operator": "semdedup", "embedding": "text"}, "list of numbers"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    tmp_path: Path, stage: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(corpus_table(50), tmp_path, [{"embedding": "vector", **stage}])


def test_edges_tell_how_near_the_rest_is(tmp_path: Path) -> None:
    stage = {"embedding": "vector", **STAGES["greedy"], "edge_floor": 0.9}
    run(corpus_table(), tmp_path, [stage])
    work = workspace_of(tmp_path / "out")
    manifest = manifest_of(work)
    (edges,) = manifest["edges"].values()
    similarity = pq.read_table(work / edges)["similarity"].to_numpy()
    assert len(similarity) == manifest["stages"][0]["report"]["edges"] > 200
    assert similarity.min() >= 0.9
    assert similarity.max() <= 1


@pytest.mark.parametrize("greedy", [True, False])
def test_what_if_equals_a_run_at_that_threshold(tmp_path: Path, greedy: bool) -> None:
    stage = {"operator": "semdedup", "embedding": "vector", "greedy": greedy}
    run(corpus_table(), tmp_path / "a", [stage])
    found = tamis.what_if(workspace_of(tmp_path / "a" / "out"), {"semdedup.threshold": 0.8})
    rerun = run(corpus_table(), tmp_path / "b", [{**stage, "threshold": 0.8}])
    assert found.after["rows"] == sum(row["action"] == "keep" for row in rerun.values())
    assert found.after["rows"] < found.before["rows"]
    assert found.exact
