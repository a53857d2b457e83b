"""Rules: what they keep, what they say, and what they refuse."""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.selectors.sandbox import Sandbox, parse_expression
from tamis.storage.errors import RunError, UserError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.parquet"
    table = pa.table(
        {
            "text": ["one two three", "one", "x y", "1 2 3 4"],
            "lang": ["en", "en", None, "de"],
            "odd name": [1.0, 2.0, 3.0, None],
        }
    )
    pq.write_table(table, path)
    return path


def run(corpus: Path, keep: Any) -> Any:
    return tamis.run(
        {
            "corpus": {"path": str(corpus), "roles": {"text": "text"}},
            "stages": [{"operator": "text_stats"}, {"operator": "where", "keep": keep}],
            "output": {"path": str(corpus.parent / "out")},
        }
    )


def test_columns_and_scores(corpus: Path) -> None:
    result = run(corpus, "words >= 2 AND lang IS NOT NULL")
    assert result.manifest["rows"]["dropped"] == {"where": 2}
    rows = result.decisions.sort("row").collect()
    assert rows["action"].to_list() == ["keep", "drop", "drop", "keep"]
    assert rows["value"].to_list() == [None, 1.0, None, None]
    assert rows["threshold"].to_list() == [None, 2.0, None, None]


def test_every_broken_rule_is_in_the_ledger(corpus: Path) -> None:
    result = run(corpus, {"long": "words > 1", "english": "lang = 'en'", "low": '"odd name" < 2.5'})
    assert result.manifest["rows"]["dropped"] == {
        "where:long": 1,
        "where:english": 2,
    }
    rules = result.decisions.sort("row").collect()["rules"].to_list()
    assert rules[1] == [{"rule": "long", "value": 1.0, "threshold": 1.0}]
    assert rules[2] == [
        {"rule": "english", "value": None, "threshold": None},
        {"rule": "low", "value": 3.0, "threshold": 2.5},
    ]
    assert rules[3] == [
        {"rule": "english", "value": None, "threshold": None},
        {"rule": "low", "value": None, "threshold": 2.5},
    ]


def test_null_is_not_true(corpus: Path) -> None:
    assert run(corpus, "lang <> 'xx'").manifest["rows"]["kept"] == 3
    assert run(corpus, "NULL").manifest["rows"]["kept"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "words > (SELECT 1)",
        "EXISTS (FROM read_text('/etc/passwd'))",
        "random() < 0.5",
        "now() > '2020-01-01'",
        "current_setting('memory_limit') = ''",
        "getvariable('x') = 1",
        "row_number() OVER () > 1",
        "1) FROM read_csv('/etc/passwd') --",
        "1); DROP TABLE batch; --",
        "words > 1 ORDER BY 1",
        "count(*) > 1",
        "COLUMNS('.*') > 1",
        "* > 1",
        "duckdb_version() = ''",
        "nextval('s') > 1",
        "words >",
        "",
        "a, b",
        "$1 > 1",
        "SELECT 1",
        "len(range(1000000000)) > 1",
        "length(repeat('x', 1000000000)) > 1",
    ],
)
def test_only_plain_expressions_pass(text: str) -> None:
    with pytest.raises(UserError):
        parse_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "words BETWEEN 2 AND 3",
        "lower(text) LIKE '%a%' OR regexp_matches(text, '^x')",
        "CASE WHEN words > 1 THEN true ELSE false END",
        "list_contains(['a', 'b'], lang)",
        "meta.score > 1 -- a comment",
        "words::DOUBLE / 2 > 1 AND NOT (lang = 'en')",
        "coalesce(words, 0) > -1.5",
    ],
)
def test_ordinary_expressions_do(text: str) -> None:
    assert parse_expression(text).columns


def test_the_sandbox_is_shut() -> None:
    sandbox = Sandbox()
    batch = pa.record_batch({"a": [1]})
    for text in (
        "(SELECT count(*) FROM read_text('/etc/passwd')) > 0",
        "(SELECT count(*) FROM glob('/*')) > 0",
    ):
        with pytest.raises((UserError, RunError)):
            sandbox.evaluate([text], batch)
    sandbox.close()


def test_a_slow_expression_is_stopped() -> None:
    sandbox = Sandbox(time_limit=0.2)
    batch = pa.record_batch({"a": [f"{i}" for i in range(200_000)]})
    slow = "a"
    for _ in range(40):
        slow = f"sha256({slow})"
    with pytest.raises(RunError, match="longer than"):
        sandbox.evaluate([f"{slow} = ''"], batch)
    sandbox.close()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("wrods > 1", "wrods"),
        ("words + 1", "true or false"),
        ("lang + 1 > 0", "check|TRY"),
        ({}, "no rule"),
    ],
)
def test_what_does_not_fit_is_said(corpus: Path, keep: Any, message: str) -> None:
    with pytest.raises((UserError, RunError), match=message):
        run(corpus, keep)


def test_dictionary_and_nested_columns(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    table = pa.table(
        {
            "text": ["a", "b"],
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "meta": [{"score": 1}, {"score": 5}],
        }
    )
    pq.write_table(table, path)
    result = run(path, {"kind": "kind = 'y'", "score": "meta.score > 2"})
    kept = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert kept["text"].to_list() == ["b"]
    assert result.manifest["rows"]["kept"] == 1
