"""A memory limit that cannot be met is refused at the start; a run stays under its own bound."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from guarantee_tools import (
    Outcome,
    digests,
    documents,
    table_of,
    vocabulary,
    write_parquet,
)

from tamis.flows.checks import ROW_BYTES
from tamis.selectors.components import GROUPING_BYTES

Command = Callable[..., Outcome]
Words = npt.NDArray[np.int64]


@pytest.mark.parametrize("limit", ["1MB", "100 MB", "64MiB", "1"])
def test_a_limit_that_cannot_be_met_is_refused_at_the_start(
    tmp_path: Path, command: Command, limit: str
) -> None:
    source = write_parquet(tmp_path / "in.parquet", table_of(documents(1, 100)))
    out = tmp_path / "out"
    line = command("dedup", source, out, "--id", "id", "--memory", limit).line(2)
    assert "memory" in line
    assert not out.exists()
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert written <= {"in.parquet", "out.tamis", "out.tamis/.lock"}


def test_a_limit_that_is_refused_leaves_the_earlier_dataset_alone(
    tmp_path: Path, command: Command
) -> None:
    source = write_parquet(tmp_path / "in.parquet", table_of(documents(2, 100)))
    out = tmp_path / "out"
    assert command("dedup", source, out, "--id", "id", "--memory", "8GB").code == 0
    before = digests(out)
    command("dedup", source, out, "--id", "id", "--memory", "1MB").line(2)
    assert digests(out) == before


def _json_of(*arguments: object) -> dict[str, int]:
    """What a run in a process of its own says of itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tamis.cli", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, int] = json.loads(done.stdout)
    return said


def test_the_peak_of_a_small_run_is_under_its_bound(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", table_of(documents(3, 2000)))
    said = _json_of("dedup", source, tmp_path / "out", "--id", "id")
    assert 0 < said["peak_memory"] < said["memory_bound"]


def test_a_limit_just_above_the_bound_is_accepted(tmp_path: Path, command: Command) -> None:
    source = write_parquet(tmp_path / "in.parquet", table_of(documents(4, 100)))
    first = command("dedup", source, tmp_path / "out", "--id", "id", "--json")
    bound = json.loads(first.out)["memory_bound"]
    arguments = ("dedup", source, tmp_path / "out", "--id", "id", "--memory")
    assert command(*arguments, bound).code == 0
    command(*arguments, bound - 1).line(2)


def _short_rows(path: Path, rows: int, seed: int, words: int = 12) -> Path:
    """Rows of about `words` words, a tenth of them copies; made without a loop over rows."""
    random = np.random.default_rng(seed)
    known = pa.array(vocabulary())
    with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
        for first in range(0, rows, 500_000):
            count = min(500_000, rows - first)
            columns = [known.take(pa.array(random.integers(0, 2000, count))) for _ in range(words)]
            text = pc.binary_join_element_wise(*columns, " ")
            from_place = np.arange(count)
            copies = random.random(count) < 0.1
            from_place[copies] = random.integers(0, count, int(copies.sum()))
            ids = pa.array(np.arange(first, first + count))
            table = pa.table({"id": ids, "text": text.take(pa.array(from_place))})
            writer.write_table(table, row_group_size=100_000)
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_peak_of_five_million_short_rows_is_under_the_bound(tmp_path: Path) -> None:
    source = _short_rows(tmp_path / "in.parquet", 5_000_000, seed=5)
    out = tmp_path / "out"
    said = _json_of("dedup", source, out, "--id", "id")
    assert said["peak_memory"] < said["memory_bound"]
    rows = json.loads((out / "manifest.json").read_text())["rows"]
    assert rows["in"] == 5_000_000 == rows["kept"] + sum(rows["dropped"].values())
    assert 0.05 < sum(rows["dropped"].values()) / 5_000_000 < 0.15


def _choose(random: np.random.Generator, rows: int, words: int) -> Words:
    return random.integers(0, 2000, (rows, words))


def _unrelated(random: np.random.Generator) -> Words:
    return _choose(random, 1_000_000, 30)


def _clusters(random: np.random.Generator) -> Words:
    """A thousand documents, each with a thousand copies whose first word is another."""
    words = _choose(random, 1000, 30)[random.integers(0, 1000, 1_000_000)]
    words[:, 0] = random.integers(0, 2000, len(words))
    return words


def _template(random: np.random.Generator) -> Words:
    """One header of 44 words and 7 words of each row's own: J = .74, just no duplicates."""
    words = np.repeat(_choose(random, 1, 51), 20_000, axis=0)
    words[:, 44:] = _choose(random, len(words), 7)
    return words


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make", [_unrelated, _clusters, _template])
def test_the_peak_of_rows_in_large_groups_is_under_the_bound(
    tmp_path: Path, make: Callable[[np.random.Generator], Words]
) -> None:
    """All rows in one row group, alike in several ways."""
    words = make(np.random.default_rng(6))
    known = pa.array(vocabulary())
    columns = [known.take(pa.array(words[:, k])) for k in range(words.shape[1])]
    text = pc.binary_join_element_wise(*columns, " ")
    table = pa.table({"id": np.arange(len(words)), "text": text})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=len(words))
    said = _json_of("dedup", tmp_path / "in.parquet", tmp_path / "out", "--id", "id")
    assert said["peak_memory"] < said["memory_bound"]
    assert said["seconds"] < 60


_IN_BATCHES = """
import json, sys
import tamis
from tamis.selectors import duplicates
from tamis.storage import spill

source, workspace, some = sys.argv[1:]
duplicates.BATCH_BYTES = spill.IN_MEMORY = int(some)
corpus = {"path": source, "roles": {"text": "text", "id": "id"}}
stages = [{"operator": "near_dedup"}]
recipe = {"corpus": corpus, "stages": stages, "workspace": workspace, "workers": 1}
result = tamis.run(recipe)
print(json.dumps([result.peak_memory, result.manifest["rows"]["kept"]]))
"""


def _peak_in_batches(source: Path, workspace: Path, some: int) -> tuple[int, int]:
    """Peak memory and rows kept of a run whose batches and spills in memory take so many bytes."""
    command = [sys.executable, "-c", _IN_BATCHES, str(source), str(workspace), str(some)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, kept = json.loads(done.stdout)
    return peak, kept


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_spills_takes_no_memory(tmp_path: Path) -> None:
    """More rows take what the bound says of a row, not what is kept of their signatures."""
    few = _short_rows(tmp_path / "few.parquet", 100_000, seed=7, words=30)
    many = _short_rows(tmp_path / "many.parquet", 700_000, seed=7, words=30)
    base, _ = _peak_in_batches(few, tmp_path / "few", 4 << 20)
    peak, kept = _peak_in_batches(many, tmp_path / "many", 4 << 20)
    whole, same = _peak_in_batches(many, tmp_path / "whole", 1 << 30)
    assert kept == same
    more = 600_000
    # Keys and sketches alone are 328 bytes a row; without spilling they are all in memory.
    assert whole - base > more * 328
    # The allocator's own ups and downs count for little beside them.
    assert peak - base < more * (ROW_BYTES + 50 + 2 * GROUPING_BYTES) + (50 << 20) < more * 328
