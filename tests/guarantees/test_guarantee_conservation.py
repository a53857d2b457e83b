"""Rows in = kept + dropped by reason + quarantined, for every shard and every run."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from guarantee_tools import (
    STAGES,
    check_balance,
    documents,
    leftovers,
    read_dataset,
    read_ledger,
    recipe,
    table_of,
    workspace_of,
    write_jsonl,
    write_parquet,
)

import tamis


def _with_nulls(texts: list[str], every: int) -> list[str | None]:
    return [None if i % every == every - 1 else text for i, text in enumerate(texts)]


def test_conservation_over_parquet_with_duplicates_and_nulls(tmp_path: Path) -> None:
    texts = _with_nulls(documents(1, 400), every=130)
    write_parquet(tmp_path / "in/a.parquet", table_of(texts[:250]), rows_per_group=40)
    write_parquet(tmp_path / "in/b.parquet", table_of(texts[250:], 250), rows_per_group=60)
    out = tmp_path / "out"
    tamis.run(recipe(tmp_path / "in", out, corpus_options={"shard_bytes": 1}))
    manifest = check_balance(workspace_of(out), out)
    assert len(manifest["shards"]) == 10
    assert manifest["rows"]["quarantined"] == 3
    dropped = manifest["rows"]["dropped"]
    assert set(dropped) == {"where:short", "where:long", "exact_dedup", "near_dedup", "top"}
    kept = {row["row"] for row in read_ledger(workspace_of(out)) if row["action"] == "keep"}
    assert kept
    assert None not in read_dataset(out)["text"].to_pylist()


def test_conservation_over_jsonl_with_bad_lines(tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "in/a.jsonl", table_of(_with_nulls(documents(2, 300), 150)))
    lines = good.read_text().splitlines()
    lines[17:17] = ["{not json", '{"id": "x", "text": ["a list"]}']
    lines[99:99] = ["", "   ", '"a string"']
    good.write_text("\n".join(lines))
    write_jsonl(tmp_path / "in/b.jsonl", table_of(documents(3, 100), 1000))
    out = tmp_path / "out"
    tamis.run(recipe(tmp_path / "in", out, max_quarantine=0.05))
    manifest = check_balance(workspace_of(out), out)
    assert manifest["rows"]["in"] == 300 + 3 + 100  # blank lines are no rows
    assert manifest["rows"]["quarantined"] == 2 + 3


@pytest.mark.parametrize(
    ("texts", "stages", "kept"),
    [
        pytest.param([None] * 20, STAGES, 0, id="everything quarantined"),
        pytest.param(documents(4, 60), [{"operator": "top", "by": "number", "rows": 0}], 0),
        pytest.param(documents(5, 60), [], 60, id="no stage"),
        pytest.param(
            documents(6, 60),
            [{"operator": "where", "name": "none", "keep": "number < 0"}, *STAGES],
            0,
            id="nothing left for later stages",
        ),
    ],
)
def test_conservation_at_the_ends(
    tmp_path: Path, texts: list[str | None], stages: list[dict[str, Any]], kept: int
) -> None:
    write_parquet(tmp_path / "in.parquet", table_of(texts), rows_per_group=7)
    out = tmp_path / "out"
    options = {"shard_bytes": 1}
    tamis.run(
        recipe(tmp_path / "in.parquet", out, stages, corpus_options=options, max_quarantine=1.0)
    )
    manifest = check_balance(workspace_of(out), out)
    assert manifest["rows"]["kept"] == kept
    assert read_dataset(out).num_rows == kept


def test_conservation_without_an_output(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in.parquet", table_of(documents(7, 200)), rows_per_group=30)
    tamis.run(recipe(tmp_path / "in.parquet", None, workspace=str(tmp_path / "work")))
    check_balance(tmp_path / "work", None)


def test_conservation_by_domain(tmp_path: Path) -> None:
    table = table_of(_with_nulls(documents(8, 200), 120))
    languages = [["en", "de", None, "fr"][i % 4] for i in range(200)]
    table = table.append_column("lang", pa.array(languages))
    write_parquet(tmp_path / "in.parquet", table, rows_per_group=30)
    out = tmp_path / "out"
    roles = {"text": "text", "id": "id", "domain": "lang"}
    tamis.run(recipe(tmp_path / "in.parquet", out, roles=roles))
    manifest = check_balance(workspace_of(out), out)
    assert sum(count["in"] for count in manifest["domains"].values()) == 200
    for name, count in manifest["domains"].items():
        kept = read_dataset(out)["lang"].to_pylist().count(None if name == "None" else name)
        assert count == {"in": 50, "kept": kept}


def test_a_run_that_does_not_balance_fails_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tamis.flows import account, direct

    write_parquet(tmp_path / "in.parquet", table_of(documents(9, 100)))
    out = tmp_path / "out"
    honest = account.reasons_dropped
    monkeypatch.setattr(
        direct, "reasons_dropped", lambda run: {k: v - 1 for k, v in honest(run).items()}
    )
    with pytest.raises(tamis.RunError, match="does not balance"):
        tamis.run(recipe(tmp_path / "in.parquet", out))
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_every_bad_line_is_found_in_quarantine_with_its_bytes(tmp_path: Path) -> None:
    rows = [json.dumps(row) for row in table_of(documents(10, 50)).to_pylist()]
    bad = {3: "{", 20: '{"id": 1', 47: "[1, 2]"}
    for line, text in bad.items():
        rows[line - 1] = text
    (tmp_path / "in.jsonl").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    tamis.run(recipe(tmp_path / "in.jsonl", out, max_quarantine=0.1))
    manifest = check_balance(workspace_of(out), out)
    aside = pq.read_table(workspace_of(out) / manifest["quarantine"][0]).to_pylist()
    assert {row["line"]: row["raw"].decode() for row in aside} == bad
    assert {row["file"] for row in aside} == {str(tmp_path / "in.jsonl")}
