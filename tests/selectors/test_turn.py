"""TURN's data step against plain Python."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tests.selectors.test_component_rules import corpus, posterior, worked


def labelled() -> pa.Table:
    """Three classes of about 600, 300 and 100 rows, and one of which no row is clean."""
    random = np.random.default_rng(2)
    labels = random.choice(["a", "b", "c"], 1000, p=[0.6, 0.3, 0.1])
    labels[-5:] = "noisy only"
    return corpus(worked(), label=pa.array(labels.tolist()))


def turn(folder: Path, table: pa.Table, **params: Any) -> tuple[dict[str, int], Any]:
    folder.mkdir()
    pq.write_table(table, folder / "in.parquet", row_group_size=100)
    roles = {"text": "text", "id": "id", "label": "label"}
    result = tamis.run(
        {
            "corpus": {"path": str(folder / "in.parquet"), "roles": roles, "shard_bytes": 1},
            "stages": [{"operator": "turn", "by": "s", **params}],
            "output": {"path": str(folder / "out")},
        }
    )
    rows = pa.concat_tables([pq.read_table(f) for f in sorted((folder / "out").glob("*.parquet"))])
    kept = dict(zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    return kept, result.manifest


@pytest.mark.parametrize("balance", ["none", "smallest", "median"])
@pytest.mark.parametrize("limit", [0.5, 0.99])
def test_as_many_clean_rows_of_every_class(tmp_path: Path, balance: str, limit: float) -> None:
    table = labelled()
    noisy = np.array(posterior(worked()), np.float64)
    clean = np.flatnonzero(1 - noisy > limit)
    labels = table["label"].to_pylist()
    size = {name: sum(labels[i] == name for i in clean) for name in "abc"}
    most = {"none": 1000, "smallest": min(size.values()), "median": sorted(size.values())[1]}
    kept, manifest = turn(tmp_path / "1", table, balance=balance, threshold=limit)
    assert {int(name[1:]) for name in kept} <= set(clean.tolist())
    counts = {name: list(kept.values()).count(name) for name in "abc"}
    assert counts == {name: min(size[name], most[balance]) for name in "abc"}
    dropped = manifest["rows"]["dropped"]
    assert dropped["turn:noisy"] == 1000 - len(clean)
    assert dropped.get("turn:unbalanced", 0) == len(clean) - sum(counts.values())
    report = manifest["stages"][0]["report"]
    assert report["clean"] == len(clean)
    assert report["classes_without_a_clean_row"] == 1
    again, _ = turn(
        tmp_path / "2",
        table.take(np.random.default_rng(1).permutation(1000)),
        balance=balance,
        threshold=limit,
    )
    assert again == kept


def test_another_seed_draws_others_and_a_threshold_is_told(tmp_path: Path) -> None:
    kept, manifest = turn(tmp_path / "1", labelled())
    other, _ = turn(tmp_path / "2", labelled(), seed=1)
    assert kept != other
    assert sorted(kept.values()) == sorted(other.values())
    fit = manifest["stages"][0]["report"]["fits"][0]
    scores = {f"r{i:05}": score for i, score in enumerate(worked())}
    assert max(scores[name] for name in kept) <= fit["cut_at"]


def test_losses_of_one_component_are_all_clean(tmp_path: Path) -> None:
    losses = np.random.default_rng(1).exponential(1, 1000)
    table = corpus([*losses, None], label=pa.array(["a", "b"] * 500 + ["a"]))
    kept, manifest = turn(tmp_path / "1", table)
    assert len(kept) == 1000
    assert manifest["rows"]["dropped"] == {"turn:no_score": 1}


def test_an_empty_corpus(tmp_path: Path) -> None:
    pq.write_table(labelled().slice(0, 0), tmp_path / "in.parquet")
    roles = {"text": "text", "id": "id", "label": "label"}
    result = tamis.run(
        {
            "corpus": {"path": str(tmp_path / "in.parquet"), "roles": roles},
            "stages": [{"operator": "turn", "by": "s"}],
            "workspace": str(tmp_path / "work"),
        }
    )
    assert (result.manifest["rows"]["in"], result.manifest["rows"]["kept"]) == (0, 0)
