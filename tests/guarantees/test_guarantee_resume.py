"""Killed at any moment and run again: the bytes of an undisturbed run, and nothing twice."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from guarantee_tools import (
    SIDECARS,
    Stages,
    check_balance,
    decisions_by_row,
    digests,
    documents,
    leftovers,
    manifest_of,
    read_dataset,
    recipe,
    table_of,
    workspace_of,
    write_jsonl,
    write_parquet,
)

import tamis
from tamis.scoring.minhash import MinHashSignature
from tamis.scoring.shingles import ShingleSets
from tamis.selectors import duplicates
from tamis.storage.kernels import Int64s

Bytes = dict[str, str]


def _start(home: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tamis.cli", "run", "recipe.yaml", "--json"],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(home: Path) -> Bytes:
    """Run to the end; digests of everything that must not depend on what happened before."""
    process = _start(home)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return _bytes(home)


def _bytes(home: Path) -> Bytes:
    names = (*SIDECARS, "ingest", "quarantine")
    found = {f"work/{k}": v for k, v in digests(home / "work", names).items()}
    found |= {f"out/{k}": v for k, v in digests(home / "out").items()}
    # The workspace's manifest names its shards by absolute path.
    text = (home / "work/manifest.json").read_text().replace(str(home), "HOME")
    return {**found, "work/manifest.json": text}


def _prepare(home: Path, kind: str, rows: int) -> Path:
    """A corpus in four files and shards of 250 rows, and the recipe beside it."""
    table = table_of([*documents(21, rows - 3), None, None, None])
    part = -(-rows // 4)
    for number in range(4):
        piece = table.slice(number * part, part)
        if kind == "parquet":
            write_parquet(home / f"in/{number}.parquet", piece, 250)
        else:
            path = write_jsonl(home / f"in/{number}.jsonl", piece)
            with path.open("a") as file:
                file.write("{broken\n")
    value = recipe("in", "out", corpus_options={"shard_bytes": 1}, workspace="work")
    (home / "recipe.yaml").write_text(yaml.safe_dump(value))
    return home


def _kill_and_resume(tmp_path: Path, kind: str, rows: int, kills: int, seed: int) -> None:
    calm = _prepare(tmp_path / "calm", kind, rows)
    begun = time.monotonic()
    expected = _finish(calm)
    duration = time.monotonic() - begun

    stormy = _prepare(tmp_path / "stormy", kind, rows)
    draw = random.Random(seed)
    killed = 0
    while killed < kills:
        process = _start(stormy)
        try:
            process.wait(draw.uniform(0.1, duration))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        if process.returncode == 0:  # it was done before its time: begin anew
            assert _bytes(stormy) == expected
            for name in ("work", "out"):
                shutil.rmtree(stormy / name)
        elif (stormy / "out").exists():
            assert digests(stormy / "out") == digests(calm / "out"), "half a dataset"
    assert _finish(stormy) == expected
    assert leftovers(stormy) == []
    assert {path.name for path in stormy.iterdir()} == {"in", "out", "work", "recipe.yaml"}


def test_killed_thrice_and_run_again_gives_the_undisturbed_bytes(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, "jsonl", rows=1500, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_killed_many_times_and_run_again_gives_the_undisturbed_bytes(
    tmp_path: Path, kind: str
) -> None:
    _kill_and_resume(tmp_path, kind, rows=20_000, kills=25, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "work/ids",
        "work/signals",
        "work/decisions",
        "work/ledger",
        ".out.*.tmp",
        "out",
        "work/.catalog*",
        "work/.catalog*wal",
    ],
)
def test_killed_as_a_step_begins_and_run_again_leaves_no_temporary_file(
    tmp_path: Path, moment: str
) -> None:
    home = _prepare(tmp_path / "home", "parquet", 3000)
    process = _start(home)
    while process.poll() is None:
        if any(home.glob(moment)):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    first = _finish(home)
    assert leftovers(home) == []
    for name in ("work", "out"):
        shutil.rmtree(home / name)
    assert _finish(home) == first


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["work/ids", ".out.*.tmp"])
def test_stopped_from_the_keyboard_is_one_line_and_leaves_nothing_half(
    tmp_path: Path, moment: str
) -> None:
    home = _prepare(tmp_path / "home", "parquet", 6000)
    process = _start(home)
    while process.poll() is None:
        if any(home.glob(moment)):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate()
    assert process.returncode == 1, "the run was over too soon"
    assert errors.startswith("tamis: stopped")
    assert errors.count("\n") == 1
    assert not (home / "out").exists()
    assert leftovers(home) == []
    _finish(home)


def _stamps(folder: Path, parts: tuple[str, ...] = ("",)) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for part in parts
        for path in (folder / part).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_finished_run_computes_nothing_again(tmp_path: Path, kind: str) -> None:
    table = table_of(documents(22, 300))
    if kind == "parquet":
        source = write_parquet(tmp_path / "in.parquet", table, 50)
    else:
        source = write_jsonl(tmp_path / "in.jsonl", table)
    out = tmp_path / "out"
    value = recipe(source, out, corpus_options={"shard_bytes": 1})
    tamis.run(value)
    parts = (*SIDECARS, "ingest") if kind == "jsonl" else SIDECARS
    sidecars, data = _stamps(workspace_of(out), parts), _stamps(out)
    tamis.run(value)
    assert _stamps(workspace_of(out), parts) == sidecars
    again = _stamps(out)
    files = [name for name in data if name.endswith(".parquet")]
    assert files
    assert {name: again[name] for name in files} == {name: data[name] for name in files}


def test_a_moved_threshold_computes_no_signal_again(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", table_of(documents(23, 300)), 50)
    out = tmp_path / "out"
    for threshold in (0.8, 0.6):
        stages = [{"operator": "near_dedup", "threshold": threshold}]
        tamis.run(recipe(source, out, stages, corpus_options={"shard_bytes": 1}))
        signals = _stamps(workspace_of(out), ("signals", "ids"))
        if threshold == 0.8:
            before = signals
    assert signals == before


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts whose signature is computed while the test goes on."""
    seen: list[str] = []
    honest: Callable[[MinHashSignature, pa.RecordBatch], pa.RecordBatch] = MinHashSignature.compute

    def spy(self: MinHashSignature, batch: pa.RecordBatch) -> pa.RecordBatch:
        seen.extend(batch["text"].to_pylist())
        return honest(self, batch)

    monkeypatch.setattr(MinHashSignature, "compute", spy)
    return seen


@pytest.mark.parametrize("added", ["z.parquet", "a.parquet", "k.parquet"])
def test_a_file_added_costs_only_its_own_signals(
    tmp_path: Path, added: str, signed: list[str]
) -> None:
    texts = documents(24, 400)
    write_parquet(tmp_path / "in/b.parquet", table_of(texts[:150]), 50)
    write_parquet(tmp_path / "in/m.parquet", table_of(texts[150:300], 150), 50)
    stages: Stages = [{"operator": "text_stats"}, {"operator": "near_dedup", "threshold": 0.8}]
    out, clean = tmp_path / "out", tmp_path / "clean"
    options = {"shard_bytes": 1}
    tamis.run(recipe(tmp_path / "in", out, stages, corpus_options=options))
    assert sorted(signed) == sorted(texts[:300])
    signed.clear()

    write_parquet(tmp_path / "in" / added, table_of(texts[300:], 300), 50)
    tamis.run(recipe(tmp_path / "in", out, stages, corpus_options=options))
    assert sorted(signed) == sorted(texts[300:])

    tamis.run(recipe(tmp_path / "in", clean, stages, corpus_options=options))
    assert decisions_by_row(workspace_of(out)) == decisions_by_row(workspace_of(clean))
    assert read_dataset(out).equals(read_dataset(clean))
    check_balance(workspace_of(out), out)


def _decided(out: Path) -> dict[str, bytes]:
    """Bytes of a dataset and of what was decided for it, by the places they have in the run."""
    work = workspace_of(out)
    manifest = manifest_of(work)
    names = [*manifest["ledger"], *manifest["edges"].values()]
    found = {f"work/{name}": (work / name).read_bytes() for name in names}
    for stage in manifest["stages"]:
        (path,) = {
            path.name: path
            for path in (work / "decisions").glob(f"{stage['operator']}-*.parquet")
            if path.name in {Path(name).name for name in manifest["edges"].values()}
        }.values()
        found[path.name] = path.read_bytes()
    return found | {f"out/{path.name}": path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("rank", ["longest", "number"])
@pytest.mark.parametrize("added", ["z.parquet", "a.parquet"])
def test_an_increment_has_the_bytes_of_a_clean_run(
    tmp_path: Path, added: str, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    honest = duplicates.exact_jaccard

    def spy(sets: ShingleSets, left: Int64s, *rest: Any) -> Any:
        compared.append(len(left))
        return honest(sets, left, *rest)

    monkeypatch.setattr(duplicates, "exact_jaccard", spy)
    texts = documents(28, 600)
    # Better-ranked than survivors of old, and dropped by them, and new to all.
    later = [f"{text} and what was added to it later" for text in texts[:40]]
    later += [*texts[100:120], *(text[: len(text) * 9 // 10] for text in texts[200:240])]
    later += documents(29, 30)
    for number in range(3):
        piece = texts[number * 200 : number * 200 + 200]
        write_parquet(tmp_path / f"in/m{number}.parquet", table_of(piece, number * 200), 50)
    stages = [{"operator": "near_dedup", "threshold": 0.7, "rank": rank}]
    options = {"shard_bytes": 1}
    out, clean = tmp_path / "out", tmp_path / "clean"
    first = tamis.run(recipe(tmp_path / "in", out, stages, corpus_options=options))
    before = first.kept.collect()
    compared.clear()
    write_parquet(tmp_path / "in" / added, table_of(later, 600), 50)
    tamis.run(recipe(tmp_path / "in", out, stages, corpus_options=options))
    again, compared[:] = sum(compared), []
    after = tamis.run(recipe(tmp_path / "in", clean, stages, corpus_options=options))
    for name, found in _decided(clean).items():
        if name != "out/manifest.json":
            assert _decided(out)[name] == found, name
    ids = ["id_hi", "id_lo", "copy"]
    assert len(before.join(after.kept.collect(), on=ids, how="anti")) > 5, "no survivor was beaten"
    assert again < 0.8 * sum(compared)


def test_pairs_of_texts_that_have_changed_are_compared_again(tmp_path: Path) -> None:
    """The same ids with other texts: nothing that was known of them holds."""
    texts = documents(30, 200)
    stages = [{"operator": "near_dedup", "threshold": 0.7}]
    out, clean = tmp_path / "out", tmp_path / "clean"
    write_parquet(tmp_path / "in/a.parquet", table_of(texts[:150]))
    write_parquet(tmp_path / "in/b.parquet", table_of(texts[150:], 150))
    tamis.run(recipe(tmp_path / "in", out, stages))
    write_parquet(tmp_path / "in/b.parquet", table_of(texts[:50], 150))
    for place in (out, clean):
        tamis.run(recipe(tmp_path / "in", place, stages))
    assert decisions_by_row(workspace_of(out)) == decisions_by_row(workspace_of(clean))


def test_a_changed_file_costs_only_its_own_signals(tmp_path: Path, signed: list[str]) -> None:
    texts = documents(25, 300)
    for number in range(3):
        piece = texts[number * 100 : number * 100 + 100]
        write_parquet(tmp_path / f"in/{number}.parquet", table_of(piece, number * 100))
    stages = [{"operator": "near_dedup", "threshold": 0.8}]
    out = tmp_path / "out"
    tamis.run(recipe(tmp_path / "in", out, stages))
    signed.clear()
    changed = ["something else entirely that no other document says", *texts[101:200]]
    write_parquet(tmp_path / "in/1.parquet", table_of(changed, 100))
    tamis.run(recipe(tmp_path / "in", out, stages))
    assert signed == changed
    check_balance(workspace_of(out), out)


@pytest.mark.parametrize("part", SIDECARS)
def test_a_damaged_sidecar_is_computed_anew(tmp_path: Path, part: str) -> None:
    source = write_parquet(tmp_path / "in.parquet", table_of(documents(26, 200)), 50)
    out = tmp_path / "out"
    value = recipe(source, out, corpus_options={"shard_bytes": 1})
    tamis.run(value)
    data, sidecars = digests(out), digests(workspace_of(out), SIDECARS)
    for victim in sorted((workspace_of(out) / part).rglob("*.parquet")):
        whole = victim.read_bytes()
        victim.write_bytes(whole[: len(whole) // 2])  # a disk that lied about fsync
    tamis.run(value)
    assert digests(out) == data
    # What rests on it is decided anew.
    for name in ("decisions", "ledger"):
        shutil.rmtree(workspace_of(out) / name)
    tamis.run(value)
    assert digests(out) == data
    assert digests(workspace_of(out), SIDECARS) == sidecars


def test_results_of_other_parameters_are_not_mixed_up(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", table_of(documents(27, 300)), 50)
    found = {}
    for turn in ("first", "again"):
        for threshold in (0.5, 0.9):
            for rank in ("longest", "number"):
                out = tmp_path / "out"
                stage = {"operator": "near_dedup", "threshold": threshold, "rank": rank}
                tamis.run(recipe(source, out, [stage], corpus_options={"shard_bytes": 1}))
                clean = tmp_path / f"{turn}-{threshold}-{rank}"
                if turn == "first":
                    tamis.run(recipe(source, clean, [stage]))
                    found[threshold, rank] = decisions_by_row(workspace_of(clean))
                assert decisions_by_row(workspace_of(out)) == found[threshold, rank]
    assert len({str(sorted(map(str, rows.items()))) for rows in found.values()}) == 4
