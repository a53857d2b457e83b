"""`tamis mix weights`, as a user types it."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from tamis.cli import app
from tamis.storage.domain_supply import Amount, Supply
from tamis.storage.errors import UserError
from tamis.storage.mixture_plan import load_plan

THERE = ("--supply", "web=9e9", "--supply", "code=1e9")


def tamis(*arguments: object) -> str:
    found = CliRunner().invoke(
        app, ["mix", "weights", *map(str, arguments)], catch_exceptions=False
    )
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture
def losses(tmp_path: Path) -> Path:
    table = pl.DataFrame(
        {
            "step": [0, 100, 200],
            "loss_web": [3.5, 3.2, 3.0],
            "loss_code": [2.0, 1.6, 1.5],
            "reference_web": [3.1, 3.1, 3.1],
            "reference_code": [1.0, 1.0, 1.0],
        }
    )
    table.write_csv(tmp_path / "losses.csv")
    return tmp_path / "losses.csv"


def test_temperature_from_a_count_to_a_file(tmp_path: Path) -> None:
    supply = tmp_path / "supply.json"
    Supply(domains={"web": Amount(rows=1, tokens=900), "code": Amount(rows=9, tokens=100)}).save(
        supply
    )
    out = tmp_path / "mixture.json"
    said = tamis("temperature", "--supply", supply, "--tau", 2, "--tokens", 2000, "--out", out)
    assert "'code' is seen 5 times, more than 4" in said
    plan = load_plan(out)
    assert plan.over_all() == pytest.approx({"web": 0.75, "code": 0.25})
    assert plan.origin == {"method": "temperature", "temperatures": [2.0]}
    said = tamis(
        *("temperature", "--supply", supply, "--tau", 2, "--tokens", 2000, "--out", out, "--cap")
    )
    assert "'code' is held at 4 times" in said
    assert load_plan(out).over_all() == pytest.approx({"web": 0.8, "code": 0.2})


def test_a_cool_down_is_a_plan_of_phases(tmp_path: Path) -> None:
    out = tmp_path / "mixture.json"
    arguments = ("temperature", *THERE, "--tau", "inf", "--cool-to", 1)
    said = tamis(*arguments, "--phase-share", 3, "--phase-share", 1, "--out", out)
    assert "τ inf, 75.0%" in said
    phases = load_plan(out).phases
    assert [phase.share for phase in phases] == [0.75, 0.25]
    assert [phase.mixture["code"] for phase in phases] == pytest.approx([0.5, 0.1])
    told = json.loads(tamis(*arguments, "--phases", 5, "--json"))
    assert len(told["phases"]) == 5
    assert told["seen"] is None
    assert told["phases"][0]["loss_weights"]["code"] == pytest.approx(5)
    with pytest.raises(UserError, match="5 mixtures, and shares of 1 phases"):
        tamis(*arguments, "--phases", 5, "--phase-share", 1)


def test_replay(tmp_path: Path) -> None:
    out = tmp_path / "mixture.json"
    arguments = ("replay", "--old", "web=8e9", "--new", "german=4e9", "--out", out)
    said = tamis(*arguments, "--shift", "strong")
    assert "1,000,000,000 tokens (0.25 of the training) are old ones" in said
    assert load_plan(out).over_all() == pytest.approx({"web": 0.25, "german": 0.75})
    told = json.loads(tamis(*arguments, "--fraction", 0.01, "--tokens", 1000, "--json"))
    assert told["tokens"] == {"web": 10, "german": 990}
    for extra in ((), ("--shift", "weak", "--fraction", 0.1)):
        with pytest.raises(UserError, match="expected --shift or --fraction"):
            tamis(*arguments, *extra)


def test_group_dro(losses: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "mixture.json", tmp_path / "trace.parquet"
    said = tamis("group-dro", losses, "--rate", 1, "--out", out, "--trace", trace)
    assert "worst    web: loss 3.0000 (3.5000 at the first of 3 steps)" in said
    # Differences 1.5, 1.6 and 1.5 add up.
    web = 1 / (1 + np.exp(-4.6))
    assert load_plan(out).over_all()["web"] == pytest.approx(web)
    assert load_plan(out).origin["method"] == "group_dro"
    rows = pl.read_parquet(trace)
    assert len(rows) == 6
    assert rows.filter(step=200, domain="web")["weight"][0] == pytest.approx(web)
    told = json.loads(tamis("group-dro", losses, "--rate", 1, "--result", "mean", "--json"))
    assert told["mixture"] == pytest.approx(told["mean"])
    assert told["last"]["web"] == pytest.approx(web)
    assert told["worst"]["domain"] == "web"


def test_sizes_of_groups_are_rows_of_the_count(losses: Path, tmp_path: Path) -> None:
    supply = tmp_path / "supply.json"
    Supply(domains={"web": Amount(rows=16, tokens=1), "code": Amount(rows=4, tokens=10**6)}).save(
        supply
    )
    told = json.loads(
        tamis("group-dro", losses, "--supply", supply, "--adjustment", 4, "--rate", 1, "--json")
    )
    # 4 / √16 and 4 / √4 take 1 from every difference.
    assert told["last"]["web"] == pytest.approx(1 / (1 + np.exp(-1.6)))
    assert told["natural"] == pytest.approx({"code": 0.2, "web": 0.8})
    weights = told["loss_weights"]
    # A row's weight q / n, times the number of all rows.
    assert weights["web"] == pytest.approx(told["last"]["web"] / 16 * 20)


def test_doremi_with_the_reference_beside_and_apart(losses: Path, tmp_path: Path) -> None:
    told = json.loads(tamis("doremi", losses, "--json"))
    assert told["mixture"] == pytest.approx(told["mean"])
    frame = pl.read_csv(losses)
    frame.select("step", "^loss_.*$").write_parquet(tmp_path / "proxy.parquet")
    base = frame.select("step", loss_web="reference_web", loss_code="reference_code")
    base[:1].write_ndjson(tmp_path / "base.jsonl")
    apart = tamis(
        "doremi", tmp_path / "proxy.parquet", "--reference", tmp_path / "base.jsonl", "--json"
    )
    assert json.loads(apart) == told
    said = tamis("doremi", losses, *THERE, "--tokens", 1e10, "--cap")
    assert "mean excess" in said
    assert "'code' is held at 4 times" in said
    with pytest.raises(UserError, match="has the reference's losses already"):
        tamis("doremi", losses, "--reference", losses)
    with pytest.raises(UserError, match="takes the losses of a reference model"):
        tamis("doremi", tmp_path / "proxy.parquet")


def test_documents_are_folded(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "source": ["web", "web", "code", "code"],
            "nll": [3.0, 1.0, 2.0, None],
            "base": [2.0, 2.0, 2.0, 2.0],
            "n": [30, 10, 7, 5],
        }
    )
    table.write_parquet(tmp_path / "a.parquet")
    columns = ("--documents", "--domain", "source", "--loss", "nll", "--token-column", "n")
    told = json.loads(tamis("doremi", tmp_path, *columns, "--reference-column", "base", "--json"))
    # Excess of web: 30 of 40 tokens exceed by 1.
    even = 1 / (1 + np.exp(-0.75))
    assert told["mixture"]["web"] == pytest.approx(0.9999 * even + 0.00005)
    assert "1 documents without loss are left out (25.0%)" in told["notes"]
    told = json.loads(tamis("group-dro", tmp_path, *columns, "--rate", 1, "--json"))
    assert told["worst"]["loss"] == pytest.approx(2.5)
    assert told["natural"] == pytest.approx({"code": 1 / 3, "web": 2 / 3})
    with pytest.raises(UserError, match="join it to LOSSES as 'reference'"):
        tamis("doremi", tmp_path, *columns, "--reference", tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("temperature",), "--supply: nothing to weigh"),
        (("temperature", *THERE, "--phases", 7), "--phases go with a cool-down"),
        (("temperature", *THERE, "--supply", "web=5"), "'web' stands there twice"),
        (("temperature", *THERE, "--tau", 0), "temperature: expected more than 0"),
        (("temperature", *THERE, "--cool-to", 7), "temperatures above 0 that fall"),
        (("temperature", *THERE, "--cap"), "give tokens as well"),
        (("temperature", "--supply", "web=0"), "supply of 'web': expected more than 0"),
        (("temperature", "--supply", "web=many"), "expected name=number"),
        (("temperature", "--supply", "none.json"), "no such file"),
        (("group-dro", "LOSSES", "--missing", "skip"), "expected refuse or carry, found 'skip'"),
        (("group-dro", "LOSSES", "--result", "best"), "expected mean or last, found 'best'"),
        (("group-dro", "LOSSES", "--rows", 5), "say nothing without a supply"),
        (("group-dro", "LOSSES", "--supply", "web=5"), "nothing is said of 'code'"),
        (("group-dro", "LOSSES", *THERE, "--supply", "math=5"), "no domain 'math'"),
        (("group-dro", "LOSSES", "--adjustment", 1), "number of rows of every domain"),
        (("doremi", "LOSSES", "--rate", -1), "rate: expected more than 0"),
        (("doremi", "LOSSES", "--smoothing", 1), "below 1"),
        (("doremi", "LOSSES", "--step", "update"), "no column 'update'"),
    ],
)
def test_what_a_user_can_mend(
    losses: Path, tmp_path: Path, arguments: tuple[object, ...], what: str
) -> None:
    out = tmp_path / "mixture.json"
    given = [losses if part == "LOSSES" else part for part in arguments]
    with pytest.raises(UserError, match=what):
        tamis(*given, "--out", out)
    assert not out.exists()
