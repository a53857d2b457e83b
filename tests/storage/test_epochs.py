"""Training records of many files, merged by row_id: against a slow version, and bad files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.storage import epochs, record_streams
from tamis.storage.dynamics import FOOTER, RECORD, find_dynamics, write_records
from tamis.storage.epochs import COLUMNS, read_blocks

FLOATS = ("label_prob", "loss", "entropy", "el2n")


def records(
    random: np.random.Generator, ids: list[Any], epoch: int, *, steps: bool = True
) -> pa.Table:
    """Made-up records, one for each of the ids in their order."""
    n = len(ids)
    columns: dict[str, Any] = {
        "row_id": pa.array(ids, pa.string() if ids and isinstance(ids[0], str) else pa.int64()),
        "epoch": np.full(n, epoch, np.int32),
        "step": random.permutation(n) if steps else pa.nulls(n, pa.int64()),
        "label": random.integers(0, 5, n).astype(np.int32),
        "other": random.integers(0, 5, n).astype(np.int32),
        "correct": random.random(n) < 0.5,
        "threshold": random.random(n) < 0.1,
    }
    for name in ("label_logit", "other_logit", *FLOATS):
        columns[name] = random.normal(size=n).astype(np.float32)
    schema = RECORD.set(0, pa.field("row_id", columns["row_id"].type, nullable=False))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def write(folder: Path, name: str, table: pa.Table, **told: Any) -> Path:
    """A file as some other trainer writes it; with a footer if anything is told."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if told:
        table = table.replace_schema_metadata({FOOTER: json.dumps({"version": 1, **told})})
    pq.write_table(table, path)
    return path


def read(folder: Path | list[str], workers: int = 2) -> tuple[list[Any], dict[str, Any]]:
    """All blocks, one after the other."""
    where = folder if isinstance(folder, list) else str(folder)
    blocks = list(read_blocks(find_dynamics(where), COLUMNS, workers=workers))
    ids = [v for block in blocks for v in block.row_id.to_pylist()]
    columns = {
        name: np.concatenate([block.columns[name] for block in blocks])
        for name in blocks[0].columns
    }
    return ids, {**columns, "updates": np.concatenate([block.updates for block in blocks])}


def slow(files: list[tuple[int, int, int, int, pa.Table]], wide: int) -> dict[Any, dict[str, Any]]:
    """By row_id and name a list of T values: what the reader should give."""
    found: dict[tuple[Any, int], list[Any]] = {}
    for run, epoch, window, rank, table in files:
        for place, row in enumerate(table.to_pylist()):
            step = -1 if row["step"] is None else row["step"]
            key = row["row_id"], run * wide + epoch
            found.setdefault(key, []).append(((step, rank, window, place), row))
    epochs_in_all = wide * (1 + max(run for run, *_ in files))
    result: dict[Any, dict[str, Any]] = {}
    for (row_id, t), several in found.items():
        several.sort(key=lambda pair: pair[0])
        rows = [row for _, row in several]
        mine = result.setdefault(
            row_id,
            {
                **{name: [math.nan] * epochs_in_all for name in ("margin", *FLOATS)},
                **{n: [-1] * epochs_in_all for n in ("label", "other", "correct", "threshold")},
                "updates": [0] * epochs_in_all,
            },
        )
        margins = [np.float32(r["label_logit"]) - np.float32(r["other_logit"]) for r in rows]
        known = all(math.isfinite(m) for m in margins)
        mine["updates"][t] = len(rows)
        for name in ("label", "threshold"):
            mine[name][t] = int(rows[-1][name])
        if known:
            mine["margin"][t] = np.float32(sum(map(float, margins)) / len(rows))
            for name in FLOATS:
                mine[name][t] = np.float32(sum(row[name] for row in rows) / len(rows))
            for name in ("other", "correct"):
                mine[name][t] = int(rows[-1][name])
    return result


def assert_equals_slow(got: tuple[list[Any], dict[str, Any]], files: list[Any], wide: int) -> None:
    ids, columns = got
    expected = slow(files, wide)
    assert ids == sorted(expected)
    for name, matrix in columns.items():
        want = np.array([expected[row_id][name] for row_id in ids], matrix.dtype)
        np.testing.assert_array_equal(matrix, want, err_msg=name)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks and many sorted runs from little data."""
    monkeypatch.setattr(epochs, "_MOST_ROWS", 40)
    monkeypatch.setattr(epochs, "_LEAST_ROWS", 16)
    monkeypatch.setattr(epochs, "_AHEAD_BYTES", 1)
    monkeypatch.setattr(epochs, "_CACHED_ROWS", 7)
    monkeypatch.setattr(record_streams, "SORT_ROWS", 50)


def made(
    folder: Path, seed: int, *, kind: Any, order: str, repeats: bool, parts: str
) -> list[tuple[int, int, int, int, pa.Table]]:
    """Files of two runs of three epochs, over 200 rows of which some are missing."""
    random = np.random.default_rng(seed)
    files = []
    for run in range(2):
        for epoch in range(3):
            count = 1 if parts == "whole" else 2
            for part in range(count):
                present = random.permutation(200)[: 200 if order == "same" else 120]
                if order == "same" and count == 2:
                    present = present[present % 2 == part]
                ids = [kind(v) for v in present]
                if repeats:
                    ids += [kind(v) for v in random.choice(present, 30)]
                table = records(random, ids, epoch, steps=random.random() < 0.8)
                broken = random.random(len(ids)) < 0.02
                logit = np.where(broken, random.choice([np.nan, np.inf, -np.inf]), 0.5)
                place = table.schema.get_field_index("label_logit")
                table = table.set_column(
                    place, table.schema.field(place), [pa.array(logit, pa.float32())]
                )
                window, rank = (part, 0) if parts == "windows" else (0, part)
                files.append((run, epoch, window, rank, table))
                name = f"run-{run}/epoch-{epoch:05d}.window-{window:05d}.rank-{rank}.parquet"
                if order == "shuffled":
                    write(folder, name, table)
                else:
                    told = {"run": run, "epoch": epoch, "window": window, "rank": rank}
                    write_records(folder / name, table, told)
    return files


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", [int, lambda v: f"row-{v:x}é"], ids=["int", "text"])
@pytest.mark.parametrize("order", ["same", "differing", "shuffled"])
@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("parts", ["whole", "ranks", "windows"])
def test_blocks_equal_a_slow_version(
    tmp_path: Path, kind: Any, order: str, repeats: bool, parts: str
) -> None:
    files = made(tmp_path, 3, kind=kind, order=order, repeats=repeats, parts=parts)
    found = read(tmp_path)
    assert_equals_slow(found, files, 3)
    ids, columns = read(tmp_path, workers=1)
    assert ids == found[0]
    for name, matrix in columns.items():
        assert matrix.tobytes() == found[1][name].tobytes(), name
