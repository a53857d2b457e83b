"""Certificates of duplicate removal by embeddings, against all pairs; and what-if on it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.selectors import vector_certificate

Matrix = npt.NDArray[np.float32]
#: Many small clusters and one probe: most pairs are never compared.
COARSE: dict[str, Any] = {"operator": "semdedup", "threshold": 0.9, "k": 200, "probes": 1}


def vectors(seed: int, rows: int = 1500, dimensions: int = 24) -> Matrix:
    """Unit vectors around one direction, half of them near others."""
    random = np.random.default_rng(seed)
    base = random.standard_normal((rows // 2, dimensions)) + 0.5
    spread = random.choice([0.1, 0.3, 0.5], size=(rows - rows // 2, 1))
    near = base[random.integers(0, len(base), rows - rows // 2)]
    near = near + spread * random.standard_normal((rows - rows // 2, dimensions))
    found = np.concatenate([base, near])
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32)


def recipe(
    folder: Path, matrix: Matrix, stage: dict[str, Any], order: Any = None
) -> dict[str, Any]:
    order = np.arange(len(matrix)) if order is None else order
    listed = pa.FixedSizeListArray.from_arrays(pa.array(matrix[order].reshape(-1)), matrix.shape[1])
    table = pa.table(
        {
            "id": pa.array([f"row-{i}" for i in order], pa.string()),
            "text": pa.array([f"text number {i}" for i in order], pa.string()),
            "embedding": listed,
        }
    )
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "in.parquet", row_group_size=400)
    return {
        "corpus": {
            "path": str(folder / "in.parquet"),
            "roles": {"text": "text", "id": "id"},
            "shard_bytes": 1,
        },
        "stages": [stage],
        "workspace": str(folder / "w"),
    }


def certified(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = result.manifest["stages"][0]["report"]["certificate"]
    return found


def should_go(result: Any, matrix: Matrix, threshold: float) -> int:
    """Rows that stay although a better-ranked one stays that is as similar."""
    rows = result.decisions.collect()
    texts = [f"text number {i}" for i in range(len(matrix))]
    order = sorted(
        np.flatnonzero((rows["action"] == "keep").to_numpy()).tolist(),
        key=lambda i: (-len(texts[i]), rows["id_hi"][i], rows["id_lo"][i]),
    )
    wide = matrix[order].astype(np.float64)
    similar = np.tril(wide @ wide.T >= threshold, -1)
    return int(similar.any(axis=1).sum())


@pytest.mark.parametrize("cuts", [4, 40])
def test_a_sample_covers_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: int
) -> None:
    monkeypatch.setattr(vector_certificate, "CUTS", cuts)
    inside, estimates, truths = 0, [], []
    for seed in range(8):
        monkeypatch.setattr(vector_certificate, "SEED", seed)
        matrix = vectors(seed)
        result = tamis.run(recipe(tmp_path / str(seed), matrix, COARSE))
        truth = should_go(result, matrix, 0.9)
        missed = certified(result)["recall"]["missed"]
        inside += missed["low"] <= truth <= missed["high"]
        estimates.append(missed["estimate"])
        truths.append(truth)
    assert min(truths) > 5
    assert inside >= 7
    assert np.mean(estimates) == pytest.approx(np.mean(truths), rel=0.3)


def test_all_pairs_are_certified_as_good(tmp_path: Path) -> None:
    matrix = vectors(1)
    stage = {"operator": "semdedup", "threshold": 0.9}
    result = tamis.run(recipe(tmp_path, matrix, stage))
    assert should_go(result, matrix, 0.9) == 0
    found = certified(result)
    assert found["recall"]["estimate"] == found["precision"]["estimate"] == 1.0
    assert found["recall"]["low"] > 0.9
    assert found["precision"]["largest_difference"] < 1e-6


def test_neither_order_nor_workers_change_a_certificate(tmp_path: Path) -> None:
    matrix = vectors(2)
    shuffled = np.random.default_rng(0).permutation(len(matrix))
    told = [
        recipe(tmp_path / "a", matrix, COARSE),
        {**recipe(tmp_path / "b", matrix, COARSE, shuffled), "workers": 1},
    ]
    first, second = (certified(tamis.run(one)) for one in told)
    assert first == second


def test_giant_groups_of_vectors(tmp_path: Path) -> None:
    matrix = vectors(3, rows=400)
    matrix[100:300] = matrix[0]
    result = tamis.run(recipe(tmp_path, matrix, {"operator": "semdedup", "threshold": 0.95}))
    (group,) = certified(result)["giant_groups"]
    assert group["rows"] >= 200
    assert group["text"].startswith("text number")


@pytest.mark.parametrize("rows", [0, 1, 2, 40])
def test_small_tables(tmp_path: Path, rows: int) -> None:
    matrix = np.ones((rows, 4), np.float32)
    found = certified(tamis.run(recipe(tmp_path, matrix, {"operator": "semdedup"})))
    assert found["precision"]["checked"] == max(0, rows - 1)


def test_no_certificate_of_the_published_rule(tmp_path: Path) -> None:
    stage = {"operator": "semdedup", "greedy": False, "k": 4}
    result = tamis.run(recipe(tmp_path, vectors(4, rows=100), stage))
    assert "certificate" not in result.manifest["stages"][0]["report"]


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.8), (0.8, 0.95)])
@pytest.mark.parametrize("greedy", [True, False])
def test_what_if_equals_a_run(tmp_path: Path, before: float, after: float, greedy: bool) -> None:
    matrix = vectors(5)
    stage = {"operator": "semdedup", "threshold": before, "greedy": greedy, "k": 12}
    first = tamis.run(recipe(tmp_path / "a", matrix, stage))
    found = tamis.what_if(first, {"semdedup.threshold": after})
    second = tamis.run(recipe(tmp_path / "b", matrix, {**stage, "threshold": after}))
    assert found.exact
    lost = set(found.changed.filter(found.changed["change"] == "lost")["row_id"])
    gained = set(found.changed.filter(found.changed["change"] == "gained")["row_id"])

    def kept(result: Any) -> set[str]:
        rows = result.kept.collect()
        return {f"{a:016x}{b:016x}" for a, b in zip(rows["id_hi"], rows["id_lo"], strict=True)}

    assert kept(second) == (kept(first) - lost) | gained
