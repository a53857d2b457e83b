"""Rows that a stage makes: balanced, traced to parents, the same every time, none made twice."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from guarantee_tools import (
    check_balance,
    digests,
    key_of,
    leftovers,
    manifest_of,
    read_dataset,
    workspace_of,
    write_parquet,
)
from tests.tiny_models import save_model

import tamis
from tamis.scoring.responses import Responses
from tamis.scoring.sampling import Sampler
from tamis.storage.ledger import Balance

FOLDERS = ("ids", "signals", "ledger", "generated")
ROLES = {"id": "id", "prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    seeds = {"policy": 1, "reference": 2}
    return {name: str(save_model(home / name, "qwen2", seed)) for name, seed in seeds.items()}


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers were drawn, call by call."""
    counts: list[int] = []
    honest = Sampler.answers

    def counting(self: Sampler, prompts: Any, *args: Any, **more: Any) -> Any:
        counts.append(len(prompts))
        return honest(self, prompts, *args, **more)

    monkeypatch.setattr(Sampler, "answers", counting)
    return counts


def pairs(count: int, first: int = 0) -> pa.Table:
    """Pairs of which every fifth shares its prompt with another."""
    numbers = range(first, first + count)
    return pa.table(
        {
            "id": [f"row-{i}" for i in numbers],
            "prompt": [f"Name row {i - i % 5 if i % 5 == 1 else i}." for i in numbers],
            "chosen": [f"It is {i}." for i in numbers],
            "rejected": ["No."] * count,
            "stars": pa.array(list(numbers), pa.int8()),
        },
        schema=pa.schema(
            [
                *((name, pa.string()) for name in ("id", "prompt", "chosen", "rejected")),
                pa.field("stars", pa.int8(), nullable=False),
            ]
        ),
    )


def recipe(
    corpus: Path, output: Path | None, models: dict[str, str], **more: Any
) -> dict[str, Any]:
    of = {"of": "pair", "dtype": "float32"}
    return {
        "corpus": {"path": str(corpus), "roles": ROLES, "shard_bytes": 1},
        "stages": [
            *(
                {"operator": "logprobs", "name": name, "model": folder, **of}
                for name, folder in models.items()
            ),
            {
                "operator": "sera_bootstrap",
                "samples": 3,
                "max_new_tokens": 6,
                "unfinished": "keep",
                "fraction": more.pop("fraction", 0.4),
            },
            {"operator": "where", "keep": "stars % 3 > 0"},
        ],
        **({} if output is None else {"output": {"path": str(output)}}),
        **more,
    }


def test_conservation_with_new_rows(models: dict[str, str], tmp_path: Path) -> None:
    table = pairs(20)
    chosen = [None if i == 7 else text for i, text in enumerate(table["chosen"].to_pylist())]
    write_parquet(tmp_path / "in.parquet", table.set_column(2, "chosen", pa.array(chosen)), 6)
    out = tmp_path / "out"
    tamis.run(recipe(tmp_path / "in.parquet", out, models, max_quarantine=0.1))
    manifest = check_balance(workspace_of(out), out)
    assert manifest["rows"] == {
        "in": 20,
        "kept": 12,
        "relabelled": 0,
        "in_review": 0,
        "dropped": {"where": 7},
        "quarantined": 1,
        "generated": 7,
        "written": 19,
    }
    new = read_dataset(out).to_pylist()[12:]
    assert {row["prompt"] for row in new} <= set(table["prompt"].to_pylist())
    assert all(row["stars"] is not None for row in new)  # it must not be null
    assert len({row["prompt"] for row in new}) == 7


def test_a_run_that_loses_a_new_row_fails_and_publishes_nothing(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tamis.flows import direct

    write_parquet(tmp_path / "in.parquet", pairs(5))
    honest = direct.ledger_counts
    monkeypatch.setattr(
        direct,
        "ledger_counts",
        lambda paths: (
            {**honest(paths)[0], "generate": honest(paths)[0]["generate"] - 1},
            honest(paths)[1],
        ),
    )
    with pytest.raises(tamis.RunError, match="2 rows were generated, the ledger holds 1"):
        tamis.run(recipe(tmp_path / "in.parquet", tmp_path / "out", models))
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_written_rows_are_kept_and_new_ones() -> None:
    marked = {"relabel": 2, "review": 0}
    balance = Balance(10, 6, marked, {"a": 3}, 1, generated=2, written=7)
    with pytest.raises(tamis.RunError, match="8 rows should have been written, 7 were"):
        balance.check(marked, expected_generated=2, expected_written=8)
    with pytest.raises(tamis.RunError, match="3 rows were marked relabel, the ledger holds 2"):
        balance.check({"relabel": 3}, expected_generated=2, expected_written=7)


def made_by(workspace: Path, output: Path) -> dict[Any, tuple[Any, ...]]:
    """By key, what every new row is and comes from; its value apart."""
    manifest = manifest_of(workspace)
    told: dict[Any, tuple[Any, ...]] = {}
    dataset = {row["id"]: row for row in read_dataset(output).to_pylist()}
    for made in manifest["generated"].values():
        for shard, name in zip(made["shards"], made["ledger"], strict=True):
            rows = pq.read_table(workspace / shard["path"]).to_pylist()
            for row, decision in zip(
                rows, pq.read_table(workspace / name).to_pylist(), strict=True
            ):
                assert dataset[row["id"]] == row
                parent = tuple(decision[f"parent_{part}"] for part in ("hi", "lo", "copy"))
                told[key_of(decision)] = (tuple(row.values()), parent, decision["value"])
    return told


def test_new_rows_do_not_depend_on_order_shards_or_workers(
    models: dict[str, str], tmp_path: Path
) -> None:
    table = pairs(20)
    write_parquet(tmp_path / "a/in.parquet", table, 20)
    tamis.run(recipe(tmp_path / "a/in.parquet", tmp_path / "a/out", models, workers=1))
    other = table.take(pa.array([(7 * i) % 20 for i in range(20)]))
    write_parquet(tmp_path / "b/in/1.parquet", other.slice(0, 12), 5)
    write_parquet(tmp_path / "b/in/2.parquet", other.slice(12), 3)
    tamis.run(recipe(tmp_path / "b/in", tmp_path / "b/out", models, workers=3))
    one, two = (made_by(tmp_path / f"{n}/out.tamis", tmp_path / f"{n}/out") for n in "ab")
    assert {key: row[:2] for key, row in one.items()} == {key: row[:2] for key, row in two.items()}
    assert [one[k][2] for k in one] == pytest.approx([two[k][2] for k in one], abs=1e-4)
    assert len(one) == 8


def _bytes(home: Path) -> dict[str, str]:
    found = {f"work/{k}": v for k, v in digests(home / "work", FOLDERS).items()}
    return {**found, **{f"out/{k}": v for k, v in digests(home / "out").items()}}


def test_what_was_sampled_is_not_sampled_again(
    models: dict[str, str],
    tmp_path: Path,
    sampled: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Responses, "portion_bytes", 60)  # about four prompts
    write_parquet(tmp_path / "in/a.parquet", pairs(20))
    told = recipe(tmp_path / "in", tmp_path / "out", models, workspace=str(tmp_path / "work"))
    honest = Responses.compute

    def stops(self: Responses, batch: pa.RecordBatch) -> pa.RecordBatch:
        if len(sampled) == 3:
            raise KeyboardInterrupt
        return honest(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Responses, "compute", stops)
        with pytest.raises(KeyboardInterrupt):
            tamis.run({**told, "workers": 1})
    before = sum(sampled)
    assert 0 < before < 48
    assert not (tmp_path / "out").exists()
    tamis.run(told)
    assert sum(sampled) == 3 * 16  # 16 prompts, each once, over both runs
    check_balance(tmp_path / "work", tmp_path / "out")
    whole = _bytes(tmp_path)

    sampled.clear()
    tamis.run(told)
    assert sampled == []
    assert _bytes(tmp_path) == whole
    # Which pairs are kept is a matter of stored rewards.
    changed = tamis.run(
        {**told, **{"stages": recipe(tmp_path, None, models, fraction=0.1)["stages"]}}
    )
    assert changed.manifest["rows"]["generated"] == 2
    assert sampled == []
    # Of a new file only the prompts that were not there.
    write_parquet(tmp_path / "in/b.parquet", pairs(10, 15))
    tamis.run(told)
    assert sum(sampled) == 3 * 4
    check_balance(tmp_path / "work", tmp_path / "out")


_KILLED = """
import os, signal, sys
from tamis.scoring.responses import Responses
from tamis.cli import main
Responses.portion_bytes = 60
honest, left = Responses.compute, int(sys.argv.pop(1))
def compute(self, batch):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    print("portion", file=sys.stderr, flush=True)
    return honest(self, batch)
Responses.compute = compute
sys.exit(main())
"""


@pytest.mark.slow
def test_killed_while_sampling_and_run_again_gives_the_same_bytes(
    models: dict[str, str], tmp_path: Path
) -> None:
    def run(home: Path, portions: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", _KILLED, str(portions), "run", "recipe.yaml", "--json"]
        return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=300)

    home = tmp_path / "home"
    write_parquet(home / "in/a.parquet", pairs(12), 8)
    told = recipe(Path("in"), Path("out"), models, workspace="work", workers=1)
    (home / "recipe.yaml").write_text(yaml.safe_dump(told))
    undisturbed = run(home, -1)
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected, portions = _bytes(home), undisturbed.stderr.count("portion")
    assert portions >= 3
    shutil.rmtree(home / "work")
    shutil.rmtree(home / "out")
    done = 0
    for _ in range(portions):
        killed = run(home, 1)
        done += killed.stderr.count("portion")
        if killed.returncode == 0:
            break
        assert killed.returncode == -9
        assert not (home / "out").exists()
    assert done == portions  # a killed run's last portion is all that it loses, and it had ended it
    assert run(home, 0).returncode == 0  # nothing is left to sample
    assert _bytes(home) == expected
    assert leftovers(home) == []


@pytest.mark.slow
def test_new_rows_of_other_processes_are_the_same(models: dict[str, str], tmp_path: Path) -> None:
    write_parquet(tmp_path / "in.parquet", pairs(12), 4)
    found = {}
    for runner in ("threads", "processes"):
        out = tmp_path / runner / "out"
        tamis.run(recipe(tmp_path / "in.parquet", out, models, runner=runner, workers=2))
        check_balance(workspace_of(out), out)
        found[runner] = {k: row[:2] for k, row in made_by(workspace_of(out), out).items()}
    assert found["threads"] == found["processes"]


def test_what_if_leaves_new_rows_alone(models: dict[str, str], tmp_path: Path) -> None:
    from tamis.flows.differences import difference
    from tamis.flows.what_if import alternative, look_back
    from tamis.storage.tasks import Threads

    write_parquet(tmp_path / "in.parquet", pairs(10))
    tamis.run(recipe(tmp_path / "in.parquet", tmp_path / "out", models))
    past = look_back(tmp_path / "out.tamis", Threads(1), lambda *told: None)
    changes = {"where.keep": "stars % 3 > 1"}
    found = difference(past, alternative(past, changes), changes)
    assert (found.before["rows"], found.after["rows"]) == (6, 3)
