"""Runs of a design beside each other: the table, what is not trained again, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tamis.flows import proxy_runs
from tamis.flows.proxy_runs import proxy_settings, read_design, train_design
from tamis.scoring.mixture_runs import read_runs
from tamis.scoring.proxy_training import train_proxy
from tamis.storage.errors import UserError
from tamis.storage.mixture_plan import MixturePlan
from tamis.storage.token_shards import TokenShards

from ..scoring.proxy_tools import write_tokens

SMALL = {"context": 8, "batch": 4, "width": 16, "layers": 1, "heads": 2, "hidden": 24, "steps": 6}


@pytest.fixture
def tokens(tmp_path: Path) -> TokenShards:
    up = np.tile(np.arange(1, 8), 100)
    return write_tokens(tmp_path / "tokens", {"up": up, "down": up[::-1]})


def design(path: Path, **columns: list[float]) -> Path:
    pl.DataFrame(columns).write_parquet(path)
    return path


def test_runs_are_trained_once_and_their_table_is_one_that_laws_read(
    tokens: TokenShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = {"mix_down": [0.25, 1.0], "mix_up": [0.75, 0.0]}
    path = design(tmp_path / "design.parquet", run=[4, 7], loss_up=[1.0, 2.0], **mixed)
    out = tmp_path / "runs.parquet"
    settings = [proxy_settings("tiny", **SMALL, curve=3, seed=seed) for seed in (0, 5)]
    said: list[tuple[int, int]] = []
    found = train_design(
        tokens.folder,
        read_design(path),
        out,
        settings,
        workers=1,
        told=lambda done, runs, rate, left: said.append((done, runs)),
    )
    assert said == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found["run"].to_list() == [4, 4, 7, 7]
    assert found["seed"].to_list() == [0, 5, 0, 5]
    assert found["mix_up"].to_list() == [0.75, 0.75, 0.0, 0.0]
    assert found["tokens"].to_list() == [192] * 4
    assert found["steps"].to_list() == [6] * 4
    here = train_proxy(tokens, {"up": 0.75, "down": 0.25}, settings[1])
    assert found["size"][1] == here.parameters
    assert found["loss_up"][1] == here.losses["up"]
    assert found["epochs_up"][1] == here.epochs["up"]
    assert read_runs(out).targets == ("loss_down", "loss_up")
    curve = pl.read_parquet(tmp_path / "runs.curve.parquet")
    assert curve["steps"].to_list() == [3, 6] * 4
    assert curve["loss_up"].to_list()[1::2] == found["loss_up"].to_list()

    trained: list[int] = []

    def count(task: proxy_runs.TrainProxy, todo: list[object], *rest: object) -> None:
        trained.append(len(todo))
        for item in range(len(todo)):
            task.run(item)

    monkeypatch.setattr(proxy_runs, "_train_all", count)
    before = out.read_bytes()
    again = read_design(path)
    train_design(tokens.folder, again, out, settings)
    first, *_ = (tmp_path / "runs.runs").glob("*.json")
    first.write_text(first.read_text()[:-20])
    train_design(tokens.folder, again, out, settings)
    longer = [one.model_copy(update={"epochs": 9.0}) for one in settings]
    train_design(tokens.folder, again, out, longer)
    assert trained == [0, 1, 0]
    assert out.read_bytes() == before


def test_a_mixture_file_is_a_design_of_one_run(tmp_path: Path) -> None:
    plan = MixturePlan.of({"up": 1.0, "down": 0.0}, {"up": 0.5, "down": 0.5}, shares=(1, 3))
    plan.save(tmp_path / "m.json")
    found = read_design(tmp_path / "m.json")
    assert found.plans[0].phases == plan.phases
    assert found.table.to_dicts() == [{"run": 0, "mix_up": 0.625, "mix_down": 0.375}]


def test_what_is_no_design_is_refused(tokens: TokenShards, tmp_path: Path) -> None:
    one = [proxy_settings("tiny", **SMALL)]
    web = design(tmp_path / "web.parquet", run=[3], mix_web=[0.5], mix_up=[0.5])
    with pytest.raises(UserError, match=r"run 3 of the design: .*'web', which the tokens lack"):
        train_design(tokens.folder, read_design(web), tmp_path / "r.parquet", one)
    often = design(tmp_path / "often.parquet", mix_up=[1.0])
    many = [one[0].model_copy(update={"steps": 200})]
    with pytest.raises(UserError, match=r"run 0 of the design: domain 'up' would be seen 9\.14"):
        train_design(tokens.folder, read_design(often), tmp_path / "r.parquet", many)
    with pytest.raises(UserError, match="is Parquet"):
        train_design(tokens.folder, read_design(often), tmp_path / "r.csv", one)
    corpus = design(tmp_path / "corpus.parquet", text=[1.0])
    (tmp_path / "r.curve.parquet").write_text("no table")
    curved = [one[0].model_copy(update={"curve": 2})]
    for path, given in ((corpus, one), (tmp_path / "r.parquet", curved)):
        with pytest.raises(UserError, match="there already and no table of runs"):
            train_design(tokens.folder, read_design(often), path, given)
    assert pl.read_parquet(corpus).columns == ["text"]
    for columns, message in (
        ({"run": [0.0]}, "no column starts with 'mix_'"),
        ({"mix_up": [0.5], "mix_down": [0.4]}, "row 1: the proportions sum to 0.9"),
        ({"mix_up": [float("nan")]}, "row 1: the proportion of 'up' is nan"),
    ):
        with pytest.raises(UserError, match=message):
            read_design(design(tmp_path / "bad.parquet", **columns))
    with pytest.raises(UserError, match="no size 'huge'; one of tiny"):
        proxy_settings("huge")
    with pytest.raises(UserError, match=r"steps: .*greater than or equal to 1"):
        proxy_settings("tiny", steps=0)
    with pytest.raises(UserError, match=r"depth: .*; settings: steps"):
        proxy_settings("tiny", depth=3)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_table(tokens: TokenShards, tmp_path: Path) -> None:
    shares = np.linspace(0, 1, 4)
    path = design(tmp_path / "d.parquet", mix_up=[*shares], mix_down=[*(1 - shares)])
    small = [f"--param={name}={SMALL[name]}" for name in ("width", "layers", "heads", "hidden")]
    command = [
        *(sys.executable, "-m", "tamis.cli", "mix", "train", str(tokens.folder), str(path)),
        *("OUT", "--steps", "150", "--epochs", "99", "--context", "8", "--batch", "4", *small),
        *("--workers", "1"),
    ]

    def to(name: str) -> list[str]:
        return [str(tmp_path / name) if part == "OUT" else part for part in command]

    subprocess.run(to("whole.parquet"), check=True)
    process = subprocess.Popen(to("killed.parquet"), process_group=0)
    stored = tmp_path / "killed.runs"
    while len(list(stored.glob("*.json"))) < 1:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {found: found.stat().st_mtime_ns for found in stored.glob("*.json")}
    assert not (tmp_path / "killed.parquet").exists()
    subprocess.run(to("killed.parquet"), check=True)
    assert all(found.stat().st_mtime_ns == then for found, then in kept.items())
    whole = (tmp_path / "whole.parquet").read_bytes()
    assert (tmp_path / "killed.parquet").read_bytes() == whole
    assert len(json.loads(next(iter(kept)).read_text())["run"]["losses"]) == 2
