"""Scores of columns: in recipes, by command, and over what a run has stored."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tamis
from tamis.cli import app
from tests.scoring.signal_tools import pair

ROWS = 60


def command(*arguments: object) -> str:
    """What a command prints; in this process, which has the libraries loaded."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with the columns of two signals, as a corpus; the last row was refused."""

    def tokens(seed: int) -> list[Any]:
        made = [
            [-0.1 * ((i * 7 + seed + t * 3) % 31) for t in range(1 + i % 5)] for i in range(ROWS)
        ]
        return [*made[:-1], None]

    columns = {
        "id": [f"r{i}" for i in range(ROWS)],
        "source": [f"s{i % 3}" for i in range(ROWS)],
        "text": [f"text {i}" for i in range(ROWS)],
        **pair("policy", tokens(1), tokens(2)),
        **pair("reference", tokens(3), tokens(4)),
    }
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=16)
    return path


def recipe(pairs: Path, home: Path, *stages: dict[str, Any], **output: Any) -> dict[str, Any]:
    return {
        "corpus": {"path": str(pairs), "roles": {"id": "id"}, "shard_bytes": 1},
        "stages": list(stages),
        "output": {"path": str(home / "out"), **output},
    }


MARGIN = {"operator": "implicit_reward_margin", "name": "margin"}
SERA = {"operator": "sera", "by": "margin", "fraction": 0.5, "per": "source"}


def test_margins_selection_and_weights_in_a_recipe(pairs: Path, tmp_path: Path) -> None:
    stages = [
        MARGIN,
        SERA,
        {"operator": "loss", "signal": "policy_chosen"},
        {"operator": "dynamic_loss_weight"},
    ]
    result = tamis.run(
        recipe(pairs, tmp_path, *stages, add={"m": "margin", "weight": "dynamic_loss_weight"})
    )
    table = pq.read_table(pairs)
    logp = {
        (name, side): table[f"{name}_{side}_logp"].to_pylist()
        for name in ("policy", "reference")
        for side in ("chosen", "rejected")
    }
    expected = [
        0.1 * ((pc - rc) - (pr - rr))
        for pc, rc, pr, rr in zip(
            *(column[:-1] for column in (
                logp["policy", "chosen"], logp["reference", "chosen"],
                logp["policy", "rejected"], logp["reference", "rejected"],
            )),
            strict=True,
        )
    ]  # fmt: skip
    kept = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert len(kept) == 30
    found = dict(zip(kept["id"], kept["m"], strict=True))
    for name, margin in found.items():
        assert margin == pytest.approx(expected[int(name[1:])], abs=1e-12)
    for source in range(3):
        mine = sorted((e for i, e in enumerate(expected) if i % 3 == source), reverse=True)[:10]
        got = [m for n, m in found.items() if int(n[1:]) % 3 == source]
        assert sorted(got, reverse=True) == pytest.approx(mine, abs=1e-12)
    assert kept["weight"].mean() == pytest.approx(1)
    assert result.manifest["rows"]["dropped"] == {"sera": 29, "sera:no_score": 1}
    assert tamis.what_if(result, {"sera.fraction": 0.2}).after["rows"] == 12


def test_a_score_over_what_a_run_has_stored(pairs: Path, tmp_path: Path) -> None:
    """Of all rows, also those that were dropped; of scores, and of the user's own columns."""
    result = tamis.run(recipe(pairs, tmp_path, MARGIN, SERA))
    whole = tamis.score("implicit_reward_margin", pq.read_table(pairs))
    by_id = tamis.sql(result, "SELECT row_id, id FROM rows")
    for place in (result, str(result.workspace), str(tmp_path / "out")):
        found = tamis.score("implicit_reward_margin", place).join(by_id, on="row_id")
        assert len(found) == ROWS
        order = found["id"].str.slice(1).cast(pl.Int64).arg_sort()
        mine = found[order]["implicit_reward_margin"].to_list()
        assert mine == whole["implicit_reward_margin"].to_list()
    mixed = tamis.score(
        "margin_adaptive_weight", result, params={"chosen": "margin", "rejected": "margin_rejected"}
    )
    assert mixed.columns == ["row_id", "copy", "margin_adaptive_weight"]
    assert mixed["margin_adaptive_weight"].null_count() == 1


def test_a_score_over_a_workspace_by_command(pairs: Path, tmp_path: Path) -> None:
    tamis.run(recipe(pairs, tmp_path, MARGIN, SERA))
    out = tmp_path / "ranking.parquet"
    text = command("score", "ranking_accuracy", "-w", tmp_path / "out", "--out", out, "--json")
    told = json.loads(text)
    assert told["rows"] == ROWS
    figures = {entry["score"]: entry for entry in told["scores"]}
    written = pl.read_parquet(out)
    assert figures["ranking_accuracy"]["rows"] == ROWS - 1
    assert figures["ranking_accuracy"]["mean"] == pytest.approx(written["ranking_accuracy"].mean())
    text = command("score", "loss", "-w", tmp_path / "out", "--param", "signal=policy_chosen")
    assert "put `- operator: loss` into the recipe" in text


def test_a_score_of_a_table_by_command(pairs: Path, tmp_path: Path) -> None:
    """No role: the table needs no text, and rows without one stay."""
    text = command("score", "reference_margin", pairs, "-w", tmp_path / "w", "--json")
    figures = {entry["score"]: entry for entry in json.loads(text)["scores"]}
    assert figures["reference_margin_per_token"]["rows"] == ROWS - 1
    table = pq.read_table(pairs)
    renamed = tmp_path / "renamed.parquet"
    names = ["body" if n == "text" else n for n in table.column_names]
    pq.write_table(table.rename_columns(names), renamed)
    arguments = ("score", "zlib_ratio", renamed, "-w", tmp_path / "z")
    arguments += ("--param", "signal=policy_chosen")  # type: ignore[assignment]
    with pytest.raises(tamis.UserError, match="no column 'text'"):
        command(*arguments)
    for given in (("--text", "body"), ("--role", "text=body")):
        assert "zlib_ratio" in command(*arguments, *given)


def test_select_by_a_score_that_the_table_s_columns_give(pairs: Path, tmp_path: Path) -> None:
    margin = tamis.score("implicit_reward_margin", pq.read_table(pairs))["implicit_reward_margin"]
    where = ("--where", "implicit_reward_margin > 0", "--id", "id")
    command("select", pairs, tmp_path / "out", *where)
    kept = pl.read_parquet(tmp_path / "out" / "*.parquet")["id"]
    assert set(kept) == {f"r{i}" for i, m in enumerate(margin) if m is not None and m > 0}


def test_what_is_wrong_is_told(pairs: Path, tmp_path: Path) -> None:
    result = tamis.run(recipe(pairs, tmp_path, MARGIN))
    with pytest.raises(tamis.UserError, match="ches reads 'policy_chosen_hidden_sum', and the run"):
        tamis.score("ches", result)
    with pytest.raises(tamis.UserError, match="zlib_ratio reads the role 'text', not only"):
        tamis.score("zlib_ratio", result)
    with pytest.raises(tamis.UserError, match=r"min_k_prob: k 0\.5 is none of the levels"):
        tamis.score("min_k_prob", result, params={"k": 0.5})
    with pytest.raises(tamis.UserError, match="no finished run here"):
        tamis.score("ches", str(tmp_path / "nowhere"))
    with pytest.raises(tamis.UserError, match="give one SELECT"):
        tamis.sql(result, "DROP VIEW rows")
    frame = pl.DataFrame({"policy_logp": [-1.0]})
    with pytest.raises(tamis.UserError, match="reads 'reference_logp', and there is no such"):
        tamis.score("implicit_reward", frame)
    for given, message in (
        ((), "nothing to score"),
        ((pairs, "--out", tmp_path / "x.parquet"), "--out is for the columns of a run"),
        ((pairs, "--role", "a"), "--role: expected name=value"),
    ):
        with pytest.raises(tamis.UserError, match=message):
            command("score", "loss", *given)


def test_columns_of_other_types_are_told_before_any_work(pairs: Path, tmp_path: Path) -> None:
    stage = {"operator": "margin_adaptive_weight", "chosen": "text", "rejected": "id"}
    with pytest.raises(tamis.UserError, match="expected a number or a time, found 'id' of type"):
        tamis.run(recipe(pairs, tmp_path, stage))
    with pytest.raises(tamis.UserError, match="reads 'logprobs_logp', which is neither"):
        tamis.run(recipe(pairs, tmp_path, {"operator": "loss"}))


def test_a_run_without_rows(tmp_path: Path) -> None:
    empty = pa.table({"id": pa.array([], pa.string()), "p_logp": pa.array([], pa.float64())})
    pq.write_table(empty, tmp_path / "in.parquet")
    stage = {"operator": "chow_sum", "signal": "p"}
    result = tamis.run(recipe(tmp_path / "in.parquet", tmp_path, stage))
    assert tamis.score("chow_sum", result, params={"signal": "p"}).shape == (0, 3)
    assert tamis.sql(result, "SELECT chow_sum FROM scores").shape == (0, 1)


def test_a_frame_may_have_a_column_named_workspace() -> None:
    frame = pd.DataFrame({"workspace": ["a"], "policy_logp": [-1.0], "reference_logp": [-2.0]})
    assert tamis.score("implicit_reward", frame)["implicit_reward"].to_list() == [0.1]


def test_the_columns_that_a_score_reads_are_told() -> None:
    assert "policy_logp, reference_logp" in command("operators", "implicit_reward")


def test_scores_of_a_frame_keep_nulls_apart_from_zeros() -> None:
    frame = pl.DataFrame({"s_logp": [0.0, None, math.nan], "s_tokens": [2, 2, 2]})
    found = tamis.score("loss", frame, params={"signal": "s"})["loss"].to_list()
    assert found == [0.0, None, None]
