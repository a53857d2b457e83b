"""Texts held against a history: a run's rows, a dataset, a corpus."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tamis
from tamis.cli import app
from tamis.flows.check import read_texts
from tamis.scoring.minhash import MinHashSignature
from tamis.storage.errors import UserError
from tamis.storage.files import digest_file
from tests.conftest import make_texts, write_corpus
from tests.selectors.test_known_dedup import nearest

TEXTS = make_texts(300, seed=8, words=40, copies=0.4)
NEW = "a sentence that nobody has said before in any corpus of ours"


def run(folder: Path, stages: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    write_corpus(folder / "in.parquet", [*TEXTS[:200], "", "!"], rows_per_group=30)
    return tamis.run(
        {
            "corpus": {
                "path": str(folder / "in.parquet"),
                "roles": {"text": "text", "id": "id"},
                "shard_bytes": 1,
            },
            "stages": [{"operator": "near_dedup"}] if stages is None else stages,
            "output": {"path": str(folder / "out")},
            **more,
        }
    )


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("history"))


def command(*arguments: str, given: str | None = None) -> Any:
    done = CliRunner().invoke(app, ["check", *arguments], input=given)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_answers_equal_brute_force(history: Any) -> None:
    asked = [*TEXTS[150:], NEW, ""]
    found = tamis.check(asked, history)
    expected = nearest(asked, [*TEXTS[:200], "", "!"], 0.8)
    assert found["new"].to_list() == [not who for _, who in expected]
    assert found["new"].sum() > 50
    assert (~found["new"]).sum() > 60
    for row, (value, _) in zip(found.iter_rows(named=True), expected, strict=True):
        assert row["new"] or row["similarity"] == value
    looser = tamis.check(asked, history, threshold=0.5)
    assert looser["new"].to_list() == [
        not who for _, who in nearest(asked, [*TEXTS[:200], ""], 0.5)
    ]


def test_the_decision_on_the_row_is_told(history: Any) -> None:
    decisions = {
        f"{row['id_hi']:016x}{row['id_lo']:016x}": row
        for row in history.decisions.collect().iter_rows(named=True)
    }
    found = tamis.check(TEXTS[:200], history)
    assert set(found["similarity"]) == {1.0}
    assert set(found["action"]) == {"keep", "drop"}
    for row in found.iter_rows(named=True):
        decision = decisions[row["row_id"]]
        assert row["action"] == decision["action"]
        assert row["reason"] == decision["reason"]
        if row["action"] == "drop":
            assert row["partner"] == f"{decision['partner_hi']:016x}{decision['partner_lo']:016x}"
            assert row["partner_similarity"] == decision["similarity"]


def test_a_workspace_is_only_read(history: Any) -> None:
    before = {p: digest_file(p) for p in history.workspace.rglob("*") if p.is_file()}
    for place in (history.workspace, history.output):
        assert tamis.check(NEW, str(place))["new"].to_list() == [True]
    assert {p: digest_file(p) for p in history.workspace.rglob("*") if p.is_file()} == before


def test_stages_before_and_rewritten_texts(tmp_path: Path) -> None:
    texts = [f"{text} and mail to someone@example.org for it" for text in TEXTS[:50]]
    write_corpus(tmp_path / "in.parquet", [*texts, "short"], rows_per_group=10)
    value = {
        "corpus": {"path": str(tmp_path / "in.parquet"), "roles": {"text": "text"}},
        "stages": [
            {"operator": "where", "keep": {"long": "length(text) > 10"}},
            {"operator": "exact_dedup"},
            {"operator": "pii", "mask": True},
            {"operator": "near_dedup"},
        ],
        "workspace": str(tmp_path / "work"),
    }
    tamis.run(value)
    # Another address: masked it is the same text, as the run made it of both.
    asked = [texts[0].replace("someone", "other.person"), "short"]
    found = tamis.check(asked, tmp_path / "work")
    assert found["new"].to_list() == [False, True]
    assert found["similarity"][0] == 1.0
    assert "someone" not in found["excerpt"][0]


def test_a_corpus_that_no_run_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "old.parquet", TEXTS[:100], rows_per_group=10)
    found = tamis.check([TEXTS[5], NEW], corpus)
    assert found["new"].to_list() == [False, True]
    assert found["action"].to_list() == [None, None]
    assert (tmp_path / "old.parquet.tamis" / "signals").is_dir()
    count = 0
    honest = MinHashSignature.compute

    def spy(self: MinHashSignature, batch: pa.RecordBatch) -> pa.RecordBatch:
        nonlocal count
        count += batch.num_rows
        return honest(self, batch)

    monkeypatch.setattr(MinHashSignature, "compute", spy)
    tamis.check([TEXTS[5], NEW], corpus)
    assert count == 2  # the texts asked about
    tamis.check(NEW, corpus, workspace=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "signals").is_dir()


def test_the_command_takes_texts_files_and_the_input(history: Any, tmp_path: Path) -> None:
    place = ["--against", str(history.workspace)]
    known = TEXTS[3]
    assert command(known, *place).startswith("known: 1 similar to row ")
    assert command("-", *place, given=known).startswith("known: 1 similar")
    assert "new: none of 202 rows is 0.8 similar" in command(NEW, *place)
    (tmp_path / "one.txt").write_text(known)
    assert command(str(tmp_path / "one.txt"), *place).startswith("known: 1")
    table = pa.table({"body": [known, NEW], "n": [1, 2]})
    pq.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in table.to_pylist()))
    pl.DataFrame({"body": [known, NEW]}).write_csv(tmp_path / "rows.csv")
    for ending in ("parquet", "jsonl", "csv"):
        out = command(str(tmp_path / f"rows.{ending}"), *place, "--text", "body")
        assert "1 of 2 are known" in out
    told = json.loads(command(str(tmp_path / "rows.csv"), *place, "--text", "body", "--json"))
    assert told["rows"] == 202
    assert [row["new"] for row in told["records"]] == [False, True]


def test_what_is_wrong_is_told(history: Any, tmp_path: Path) -> None:
    place = ["--against", str(history.workspace)]
    pq.write_table(pa.table({"body": ["a", None]}), tmp_path / "rows.parquet")
    for arguments, message in (
        (["  ", *place], "the text is empty"),
        ([str(tmp_path / "rows.parquet"), *place], "no column 'text'"),
        ([str(tmp_path / "rows.parquet"), "--text", "body", *place], "text 2 of 2 is null"),
        ([NEW, *place, "--threshold", "2"], "threshold"),
        ([NEW, "--against", str(tmp_path / "nothing")], "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            command(*arguments)
    with pytest.raises(UserError, match="no column 'nn'"):
        tamis.check(pl.DataFrame({"text": ["a"]}), history, text="nn")


def test_a_run_that_compared_nothing_and_a_corpus_that_changed(tmp_path: Path) -> None:
    result = run(tmp_path, [{"operator": "exact_dedup"}])
    with pytest.raises(UserError, match="compared no texts"):
        tamis.check(NEW, result)
    result = run(tmp_path, [{"operator": "near_dedup"}])
    write_corpus(tmp_path / "in.parquet", TEXTS[:199])
    with pytest.raises(UserError, match="the corpus has changed"):
        tamis.check(NEW, result)


def test_a_run_over_nothing_knows_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in.parquet")
    result = tamis.run(
        {
            "corpus": {"path": str(tmp_path / "in.parquet"), "roles": {"text": "text"}},
            "stages": [{"operator": "near_dedup"}],
            "workspace": str(tmp_path / "work"),
        }
    )
    assert tamis.check([NEW, ""], result)["new"].to_list() == [True, True]
    assert len(tamis.check([], result)) == 0


def test_a_run_against_references_only_is_a_history_too(tmp_path: Path) -> None:
    old = write_corpus(tmp_path / "old.parquet", TEXTS[200:])
    stage = {
        "operator": "known_dedup",
        "references": [{"path": str(old), "id": "id", "name": "old"}],
    }
    result = run(tmp_path, [stage])
    found = tamis.check(TEXTS[:200], result)
    assert not found["new"].any()
    assert set(found["action"]) == {"keep", "drop"}
    assert set(found.filter(pl.col("action") == "drop")["partner_source"]) == {"old"}


def test_texts_that_were_cut_by_other_rows_are_not_asked_about(tmp_path: Path) -> None:
    result = run(tmp_path, [{"operator": "line_dedup"}, {"operator": "near_dedup"}])
    with pytest.raises(UserError, match="line_dedup had rewritten"):
        tamis.check(TEXTS[0], result)


def test_a_text_with_a_url_is_a_text(tmp_path: Path) -> None:
    for text in ("see https://example.org/a b for it", "http://a.b\nand more", "mind://the.gap"):
        assert read_texts(text).to_pylist() == [text]
    with pytest.raises(UserError, match="credential"):
        read_texts("s3://key:secret@bucket/a.jsonl")


def test_a_corpus_that_other_commands_worked_on(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "old.parquet", TEXTS[:20])
    scores = {"corpus": {"path": str(corpus), "roles": {"text": "text"}}}
    tamis.run({**scores, "stages": [{"operator": "text_stats"}], "workspace": f"{corpus}.tamis"})
    assert tamis.check([TEXTS[5], NEW], corpus)["new"].to_list() == [False, True]
