"""`tamis mix design`, as a user types it."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from tamis.cli import app
from tamis.storage.domain_supply import Amount, Supply
from tamis.storage.errors import UserError


def tamis(*arguments: object) -> str:
    found = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture
def supply_file(tmp_path: Path) -> Path:
    counted = {"web": 600, "code": 300, "law": 100}
    domains = {name: Amount(rows=1, tokens=tokens) for name, tokens in counted.items()}
    Supply(domains=domains).save(tmp_path / "supply.json")
    return tmp_path / "supply.json"


def test_the_same_runs_from_a_file_and_from_numbers(supply_file: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.parquet", tmp_path / "two.csv"
    said = tamis("mix", "design", one, "--supply", supply_file, "--tokens", 1000, "--validation", 3)
    assert "most epochs" in said
    assert "24 runs and 3 for validation" in said
    # fmt: off
    told = json.loads(
        tamis(
            "mix", "design", two, "--natural", "web=600", "--natural", "code=300",
            "--natural", "law=100",
            "--supply", "law=100", "--supply", "code=300", "--supply", "web=600",
            "--tokens", 1000, "--epochs", 4, "--validation", 3, "--runs", 24, "--json",
        )
    )
    # fmt: on
    assert (told["runs"], told["validation"], told["notes"]) == (24, 3, [])
    table = pl.read_parquet(one)
    assert table.columns == ["run", "split", "mix_web", "mix_code", "mix_law"]
    assert table["mix_law"].max() <= 0.4
    other = pl.read_csv(two)
    assert other["mix_code"].to_list() == pytest.approx(table["mix_code"].to_list(), abs=1e-12)


def test_options_reach_the_design(supply_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    # fmt: off
    tamis(
        "mix", "design", out, "--natural", supply_file, "--runs", 5, "--corners", "--seed", 3,
        "--without-natural", "--floor", "law=0.05", "--ceiling", "web=0.7", "--strength-low", 2,
        "--strength-high", 9, "--power", 1, "--times-natural", 3, "--least", 0.01,
    )
    # fmt: on
    shares = pl.read_ndjson(out).select("mix_web", "mix_code", "mix_law").to_numpy()
    assert shares.shape == (5, 3)
    assert shares.min(axis=0)[2] == pytest.approx(0.05)
    assert shares.max(axis=0).tolist() == pytest.approx([0.7, 0.9, 0.3])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "no natural mixture"),
        (("--natural", "web=1", "--tokens", "5"), "--tokens"),
        (("--natural", "web=1", "--least", "2"), "least: expected less than 1"),
        (("--natural", "web=1"), "'web' alone makes 1 mixture"),
        (("--natural", "web=1", "--epochs", "-1"), "epochs: expected greater than 0"),
        (("--natural", "web=1", "--natural", "a=b=1", "--by", "gain"), "give --fit"),
        (("--natural", "web"), "--natural: expected name=value"),
    ],
)
def test_what_a_user_can_mend(arguments: tuple[str, ...], what: str, tmp_path: Path) -> None:
    out = tmp_path / "runs.parquet"
    with pytest.raises(UserError, match=what):
        tamis("mix", "design", out, *arguments)
    assert not out.exists()


@pytest.fixture
def fitted_file(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    shares = draws.dirichlet(np.ones(3), 16)
    parts = np.array([[0.3, -3.0, 0.5], [-0.6, 0.4, -2.5]])
    losses = 2 + np.exp(shares @ parts.T) + draws.normal(0, 0.003, (16, 2))
    names = [*(f"mix_{name}" for name in ("law", "code", "web")), "loss_code", "loss_web"]
    table = pl.DataFrame(np.column_stack([shares, losses]), schema=names)
    table.with_columns(seed=1).write_parquet(tmp_path / "done.parquet")
    # fmt: off
    tamis(
        "mix", "fit", tmp_path / "done.parquet", tmp_path / "fit.json", "--where", "seed = 1",
        "--param", "starts=2",
    )
    # fmt: on
    return tmp_path / "fit.json"


def test_runs_that_a_fit_asks_for(fitted_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "next.csv"
    done = ("--fit", fitted_file, "--table", tmp_path / "done.parquet", "--where", "seed = 1")
    said = tamis("mix", "design", out, *done, "--runs", 5, "--ceiling", "web=0.5")
    assert "5 runs" in said
    assert "expected after these runs" in said
    shares = pl.read_csv(out)
    assert shares.columns == ["run", "split", "mix_law", "mix_code", "mix_web"]
    assert shares["mix_web"].max() <= 0.5 + 1e-9
    natural = [f"--natural={name}=1" for name in ("web", "law", "code")]
    gain = ("--by", "gain", "--target", "loss_web=2", "--target", "loss_code", *natural)
    told = json.loads(tamis("mix", "design", out, *done, *gain, "--runs", 5, "--json"))
    assert told["runs"] == 5
    assert pl.read_csv(out).drop("run", "split").to_numpy().sum(axis=1) == pytest.approx(1)


def test_what_does_not_go_with_a_fit(fitted_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "next.parquet"
    table = ("--table", tmp_path / "done.parquet")
    for arguments, what in (
        (("--fit", fitted_file), "its runs are needed"),
        (("--fit", fitted_file, *table, "--validation", 2), "judge no law"),
        (("--fit", fitted_file, *table, "--by", "magic"), "expected gain or uncertainty"),
        (("--fit", fitted_file, *table, "--where", "loss_web < 2.8"), "made of other runs"),
        (("--fit", fitted_file, *table, "--natural", "web=1"), "differ in domains: code, law"),
        ((*table, "--natural", "web=1", "--natural", "law=1"), "give --fit"),
    ):
        with pytest.raises(UserError, match=what):
            tamis("mix", "design", out, *arguments)
    assert not out.exists()


@pytest.mark.parametrize("name", ["corpus.parquet", "corpus.csv", "corpus.jsonl"])
def test_what_is_no_table_of_runs_is_not_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    corpus = pl.DataFrame({"text": ["a", "b"]})
    {".parquet": corpus.write_parquet, ".csv": corpus.write_csv, ".jsonl": corpus.write_ndjson}[
        path.suffix
    ](path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"{name}: .*no table of runs"):
        tamis("mix", "design", path, "--natural", "web=1", "--natural", "law=1")
    assert path.read_bytes() == before
    path.unlink()
    for seed in (1, 2):
        tamis("mix", "design", path, "--natural", "web=1", "--natural", "law=1", "--seed", seed)


def test_results_of_runs_are_not_replaced_by_a_design(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    pl.DataFrame({"mix_web": [0.5], "mix_law": [0.5], "loss_web": [3.0]}).write_csv(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="holds the results of runs"):
        tamis("mix", "design", path, "--natural", "web=1", "--natural", "law=1")
    assert path.read_bytes() == before


def test_bytes_are_no_tokens(tmp_path: Path) -> None:
    path = tmp_path / "bytes.json"
    Supply(domains={"web": Amount(rows=1, bytes=9), "law": Amount(rows=1, bytes=9)}).save(path)
    with pytest.raises(UserError, match="the tokens of 'web' were not counted; counted: bytes"):
        tamis("mix", "design", tmp_path / "runs.csv", "--supply", path, "--tokens", 5)
    with pytest.raises(UserError, match="were not counted"):
        tamis("mix", "weights", "replay", "--old", path, "--new", "code=5", "--shift", "weak")
