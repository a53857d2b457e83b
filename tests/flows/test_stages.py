"""What stages do beside giving scores: read columns, refuse rows, name the dataset's columns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.flows.direct import Result
from tamis.scoring.text_stats import TextStats
from tamis.storage.errors import RunError, UserError

TEXTS = ["one two three", "bad", "four five", "bad again", "", "six"]


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    table = pa.table({"id": list("abcdef"), "text": TEXTS, "limit": [1, 1, 1, 1, 1, 1]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=4)

    def recipe(*stages: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return {
            "corpus": {
                "path": str(tmp_path / "in.parquet"),
                "roles": {"text": "text", "id": "id"},
                "shard_bytes": 1,
            },
            "stages": list(stages),
            "output": {"path": str(tmp_path / "out")},
            "max_quarantine": 1.0,
            "workers": 1,  # the patches below are not made for several
            **changes,
        }

    return recipe


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """text_stats refuses texts that begin with `bad`."""
    fields, compute = TextStats.fields, TextStats.compute
    field = pa.field("text_refused", pa.string())

    def refuse(self: TextStats, batch: pa.RecordBatch) -> pa.RecordBatch:
        with monkeypatch.context() as plain:
            plain.setattr(TextStats, "fields", fields)
            found = compute(self, batch)
        bad = [text.startswith("bad") for text in batch["text"].to_pylist()]
        said = ["begins with bad" if one else None for one in bad]
        return found.append_column(field, pa.array(said, pa.string()))

    monkeypatch.setattr(TextStats, "fields", lambda self: fields(self).append(field))
    monkeypatch.setattr(TextStats, "refused", lambda self: "text_refused")
    monkeypatch.setattr(TextStats, "compute", refuse)


@pytest.mark.usefixtures("refusing")
def test_rows_that_a_stage_refuses_are_quarantined(
    tmp_path: Path, corpus: Callable[..., dict[str, Any]]
) -> None:
    rules = {"operator": "where", "keep": {"long": "words >= 2"}}
    run = tamis.run(corpus({"operator": "text_stats"}, rules))
    assert run.manifest["rows"] == {
        "in": 6,
        "kept": 2,
        "relabelled": 0,
        "in_review": 0,
        "dropped": {"where:long": 2},
        "quarantined": 2,
        "generated": 0,
        "written": 2,
    }
    assert _dataset(tmp_path)["id"].to_pylist() == ["a", "c"]
    (name,) = _quarantine(run)
    aside = pq.read_table(run.workspace / name).to_pylist()
    assert [(row["line"], row["reason"]) for row in aside] == [
        (1, "begins with bad"),
        (3, "begins with bad"),
    ]
    decisions = run.decisions.collect().filter(action="quarantine")
    assert decisions["stage"].to_list() == ["text_stats"] * 2
    assert decisions["reason"].to_list() == ["text_stats:begins with bad"] * 2
    moved = tamis.what_if(run, {"where.keep.long": "words >= 1"})
    assert moved.after["rows"] == 3


@pytest.mark.usefixtures("refusing")
def test_too_many_refused_rows_stop_the_run(corpus: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(RunError, match=r"2 of 6 rows are bad.*line 1: begins with bad"):
        tamis.run(corpus({"operator": "text_stats"}, max_quarantine=0.2))


def test_a_row_scorer_may_read_columns_and_earlier_scores(
    tmp_path: Path, corpus: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    compute = TextStats.compute

    def look(self: TextStats, batch: pa.RecordBatch) -> pa.RecordBatch:
        seen.extend(batch.select(["limit", "tokens_estimated"]).to_pylist())
        return compute(self, batch)

    monkeypatch.setattr(TextStats, "reads", lambda self: {"limit", "tokens_estimated"})
    with pytest.raises(UserError, match="reads 'tokens_estimated', which is neither"):
        tamis.run(corpus({"operator": "text_stats"}))
    counted = {"operator": "token_count", "bytes_per_token": 4}
    monkeypatch.setattr(TextStats, "compute", look)
    tamis.run(corpus(counted, {"operator": "text_stats"}))
    assert [row["limit"] for row in seen] == [1] * 6
    assert all(row["tokens_estimated"] is not None for row in seen)


def test_scores_become_columns_of_the_dataset_under_any_name(
    tmp_path: Path, corpus: Callable[..., dict[str, Any]]
) -> None:
    out = {"path": str(tmp_path / "out"), "add": {"length": "words"}}
    tamis.run(corpus({"operator": "text_stats"}, output=out))
    table = _dataset(tmp_path)
    assert table.column_names == ["id", "text", "limit", "length"]
    assert table["length"].to_pylist() == [3, 1, 2, 2, 0, 1]
    out["add"] = {"text": "words"}
    with pytest.raises(UserError, match="the corpus has a column 'text' already"):
        tamis.run(corpus({"operator": "text_stats"}, output=out))


def test_answers_must_be_texts_or_messages(
    tmp_path: Path, corpus: Callable[..., dict[str, Any]]
) -> None:
    recipe = corpus({"operator": "text_stats"})
    recipe["corpus"]["roles"]["chosen"] = "limit"
    with pytest.raises(UserError, match=r"roles\.chosen: expected strings or lists of messages"):
        tamis.run(recipe)


def test_a_null_in_any_role_of_content_is_quarantined(
    tmp_path: Path, corpus: Callable[..., dict[str, Any]]
) -> None:
    messages = [[{"role": "user", "content": "hello"}], None, []]
    table = pa.table({"text": ["a", "b", None], "prompt": messages})
    pq.write_table(table, tmp_path / "in.parquet")
    recipe = corpus({"operator": "text_stats"})
    recipe["corpus"]["roles"] = {"text": "text", "prompt": "prompt"}
    run = tamis.run(recipe)
    (name,) = _quarantine(run)
    reasons = pq.read_table(run.workspace / name)["reason"].to_pylist()
    assert [reason.split(":")[0] for reason in reasons] == ["column 'prompt'", "column 'text'"]


def _dataset(folder: Path) -> pa.Table:
    return pa.concat_tables(map(pq.read_table, sorted((folder / "out").glob("*.parquet"))))


def _quarantine(run: Result) -> list[str]:
    found: list[str] = json.loads((run.workspace / "manifest.json").read_text())["quarantine"]
    return found


def test_what_if_computes_scores_of_changed_scores_anew(
    tmp_path: Path, corpus: Callable[..., dict[str, Any]]
) -> None:
    table = pa.table({"id": list("abcdef"), "text": TEXTS, "n": range(6), "zero": [0.0] * 6})
    pq.write_table(table, tmp_path / "in.parquet")
    stages = [
        {"operator": "where", "name": "first", "keep": "n < 6"},
        {"operator": "dynamic_loss_weight", "name": "w", "by": "n"},
        {"operator": "dynamic_reward_scaling", "name": "s", "chosen": "w", "rejected": "zero"},
        {"operator": "where", "name": "last", "keep": "s > 0.125"},
    ]
    run = tamis.run(corpus(*stages))
    asked = tamis.what_if(run, {"first.keep": "n < 4"})
    stages[0]["keep"] = "n < 4"
    expected = tamis.run(corpus(*stages, workspace=str(tmp_path / "other")))
    assert asked.after["rows"] == expected.manifest["rows"]["kept"]
    assert 0 < asked.after["rows"] < run.manifest["rows"]["kept"]


def test_why_shows_the_pair_where_there_is_no_text(
    tmp_path: Path, corpus: Callable[..., dict[str, Any]]
) -> None:
    said = [[{"role": "assistant", "content": word}] for word in ("yes", "no")]
    table = pa.table({"prompt": ["Is it?", "Is it not?"], "chosen": said, "n": [1, 2]})
    pq.write_table(table, tmp_path / "in.parquet")
    recipe = corpus({"operator": "where", "keep": "n < 2"})
    recipe["corpus"]["roles"] = {"prompt": "prompt", "chosen": "chosen"}
    run = tamis.run(recipe)
    shown = tamis.sql(run, "SELECT text, partner_text FROM why WHERE action = 'drop'").to_dicts()
    assert json.loads(shown[0]["text"]) == {"prompt": "Is it not?", "chosen": said[1]}
    assert shown[0]["partner_text"] is None
