"""The same bytes from the same shards; the same decisions from any order, sharding and workers."""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from guarantee_tools import (
    SIDECARS,
    STAGES,
    Key,
    Stages,
    decisions_by_row,
    digests,
    documents,
    manifest_of,
    recipe,
    table_of,
    workspace_of,
    write_jsonl,
    write_parquet,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tamis

ROWS = 350

#: Number of shards to rows per row group of each of its files.
LAYOUTS: dict[int, list[tuple[int, int]]] = {
    1: [(ROWS, ROWS)],
    7: [(100, 50), (120, 60), (130, 50)],
    50: [(70, 7), (210, 7), (70, 7)],
}


def _lay_out(table: pa.Table, folder: Path, layout: Sequence[tuple[int, int]]) -> Path:
    first = 0
    for number, (rows, per_group) in enumerate(layout):
        write_parquet(folder / f"part-{number}.parquet", table.slice(first, rows), per_group)
        first += rows
    assert first >= table.num_rows
    return folder


def _comparable(value: Any, home: Path) -> Any:
    """A manifest without what names or digests a path."""
    if isinstance(value, dict):
        return {k: _comparable(v, home) for k, v in value.items() if k != "recipe_digest"}
    if isinstance(value, list):
        return [_comparable(item, home) for item in value]
    return value.replace(str(home), "HOME") if isinstance(value, str) else value


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_run_in_another_folder_gives_the_same_bytes(
    tmp_path: Path, kind: str, workers: int
) -> None:
    table = table_of([*documents(1, 300), None])
    homes = [tmp_path / "first", tmp_path / "second place"]
    for home in homes:
        if kind == "parquet":
            _lay_out(table, home / "in", LAYOUTS[7])
        else:
            for part in range(3):
                write_jsonl(home / f"in/{part}.jsonl", table.slice(part * 110, 110))
        tamis.run(
            recipe(home / "in", home / "out", corpus_options={"shard_bytes": 1}, workers=workers)
        )
    first, second = (digests(workspace_of(home / "out"), SIDECARS) for home in homes)
    assert first == second
    assert len({name.split("/")[0] for name in first}) == len(SIDECARS)
    data = [digests(home / "out") for home in homes]
    for found in data:
        del found["manifest.json"]
    assert data[0] == data[1]
    for place in ("out", "out.tamis"):
        one, other = (_comparable(manifest_of(home / place), home) for home in homes)
        assert one == other


def test_the_same_run_with_relative_paths_gives_the_same_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for name in ("first", "second"):
        write_jsonl(tmp_path / name / "in.jsonl", table_of(documents(2, 150)))
        monkeypatch.chdir(tmp_path / name)
        tamis.run(recipe("in.jsonl", "out"))
        seen.append({**digests(Path("out.tamis"), SIDECARS), **digests(Path("out"))})
    assert "manifest.json" in seen[0]
    assert seen[0] == seen[1]


@pytest.fixture(scope="module")
def shuffled() -> pa.Table:
    """Rows with copies, shared ids (of equal and of different content) and nulls."""
    texts: list[str | None] = [*documents(3, ROWS - 10)]
    texts += [
        None,
        None,
        "",
        "",
        "one",
        "one",
        "日本語の文章です",
        "日本語の文章です",
        "é",
        "e\u0301",
    ]
    table = table_of(texts)
    names = table["id"].to_pylist()
    names[40:50] = names[50:60]  # ten ids twice, content differs
    table = table.set_column(0, "id", pa.array(names))
    return pa.concat_tables([table.slice(0, ROWS - 5), table.slice(0, 5)])  # five rows twice


def _reference(table: pa.Table, roles: dict[str, str], home: Path) -> dict[Key, dict[str, Any]]:
    return _decide(table, LAYOUTS[1], roles, 1, home / "reference")


def _decide(
    table: pa.Table,
    layout: Sequence[tuple[int, int]],
    roles: dict[str, str],
    workers: int,
    home: Path,
) -> dict[Key, dict[str, Any]]:
    _lay_out(table, home / "in", layout)
    out = home / "out"
    options = {"shard_bytes": 1, "on_duplicate_id": "copy"}
    tamis.run(recipe(home / "in", out, roles=roles, corpus_options=options, workers=workers))
    shards = manifest_of(workspace_of(out))["shards"]
    assert len(shards) == sum(-(-rows // group) for rows, group in layout)
    return decisions_by_row(workspace_of(out))


@pytest.mark.parametrize(("shards", "workers"), [(1, 2), (7, 1), (7, 2), (50, 2)])
@pytest.mark.parametrize("roles", [{"text": "text", "id": "id"}, {"text": "text"}], ids=str)
def test_any_order_sharding_and_workers_give_the_same_decisions(
    tmp_path: Path, shuffled: pa.Table, shards: int, workers: int, roles: dict[str, str]
) -> None:
    expected = _reference(shuffled, roles, tmp_path)
    reasons = {row["reason"] for row in expected.values()}
    assert {"where:short", "exact_dedup", "near_dedup", "top"} <= reasons
    order = np.random.default_rng(shards * 10 + workers).permutation(ROWS)
    found = _decide(shuffled.take(pa.array(order)), LAYOUTS[shards], roles, workers, tmp_path)
    assert found == expected


def test_sample_quantile_and_groups_do_not_depend_on_order(
    tmp_path: Path, shuffled: pa.Table
) -> None:
    stages: Stages = [
        {"operator": "text_stats"},
        {"operator": "compression_ratio"},
        {"operator": "sample", "fraction": 0.8, "seed": 3},
        {"operator": "quantile", "by": "compression_ratio", "low": 0.05, "high": 0.95},
        {"operator": "near_dedup", "threshold": 0.6, "rank": "number", "rank_order": "lowest"},
        {"operator": "top", "by": "letter_share", "rows": 2, "per": "number"},
        {"operator": "sample", "name": "few", "rows": 100},
    ]
    found = []
    for turn in range(2):
        order = np.random.default_rng(turn).permutation(ROWS)
        home = tmp_path / str(turn)
        _lay_out(shuffled.take(pa.array(order)), home / "in", LAYOUTS[(7, 50)[turn]])
        options = {"shard_bytes": 1, "on_duplicate_id": "copy"}
        tamis.run(recipe(home / "in", home / "out", stages, corpus_options=options))
        found.append(decisions_by_row(workspace_of(home / "out")))
    assert found[0] == found[1]
    assert {row["stage"] for row in found[0].values()} >= {s["operator"] for s in stages[2:6]}


@pytest.mark.slow
def test_the_hash_seed_of_the_process_does_not_matter(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", table_of(documents(4, 100)))
    seen = []
    for seed in ("1", "2"):
        out = tmp_path / "out"
        subprocess.run(
            [sys.executable, "-m", "tamis.cli", "dedup", tmp_path / "in.jsonl", out, "--id", "id"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
        seen.append({**digests(workspace_of(out), SIDECARS), **digests(out)})
        for folder in (workspace_of(out), out):
            folder.rename(folder.with_name(f"{seed} {folder.name}"))
    assert seen[0] == seen[1]


WORDS = ["ba", "be", "bi", "bo", "bu", "da", "de", "di"]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    texts=st.lists(
        st.none() | st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join),
        min_size=1,
        max_size=25,
    ),
    names=st.lists(st.integers(0, 30), min_size=25, max_size=25),
    seed=st.integers(0, 2**32 - 1),
    group=st.integers(1, 8),
    workers=st.integers(1, 2),
)
def test_any_small_corpus_has_one_set_of_decisions(
    texts: list[str | None], names: list[int], seed: int, group: int, workers: int
) -> None:
    table = table_of(texts).set_column(0, "id", pa.array(names[: len(texts)]))
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    stages: Stages = [
        {"operator": "text_stats"},
        {"operator": "where", "keep": "words >= 2"},
        *STAGES[2:],
    ]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for turn, rows in enumerate((table, table.take(pa.array(order)))):
            home = Path(folder, str(turn))
            write_parquet(home / "in.parquet", rows, None if turn == 0 else group)
            tamis.run(
                recipe(
                    home / "in.parquet",
                    home / "out",
                    stages,
                    corpus_options={"shard_bytes": 1, "on_duplicate_id": "copy"},
                    max_quarantine=1.0,
                    workers=1 if turn == 0 else workers,
                )
            )
            found.append(decisions_by_row(workspace_of(home / "out")))
    assert found[0] == found[1]
