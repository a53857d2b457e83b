"""Corpora at the edge: empty, tiny, all alike, in every script, very long, of one template."""

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from guarantee_tools import (
    STAGES,
    Outcome,
    Stages,
    check_balance,
    decisions_by_row,
    documents,
    jaccard,
    key_of,
    leftovers,
    manifest_of,
    partner_of,
    read_dataset,
    read_ledger,
    recipe,
    table_of,
    vocabulary,
    workspace_of,
    write_parquet,
)

import tamis
from tamis.storage.catalog import query

Command = Callable[..., Outcome]

NEAR: Stages = [{"operator": "near_dedup", "threshold": 0.8}]
BOTH: Stages = [{"operator": "exact_dedup"}, *NEAR]
EVERY: Stages = [
    {"operator": "text_stats"},
    {"operator": "compression_ratio"},
    {"operator": "where", "keep": "words >= 0"},
    {"operator": "exact_dedup"},
    {"operator": "near_dedup"},
    {"operator": "quantile", "by": "words", "high": 1.0},
    {"operator": "top", "by": "words", "fraction": 1.0},
    {"operator": "sample", "fraction": 1.0},
]


def _run(home: Path, texts: Sequence[str | None], stages: Stages, **options: Any) -> list[str]:
    """Texts kept, after the books have been checked."""
    source = write_parquet(home / "in.parquet", table_of(texts))
    tamis.run(recipe(source, home / "out", stages, **options))
    check_balance(workspace_of(home / "out"), home / "out")
    kept: list[str] = read_dataset(home / "out")["text"].to_pylist()
    return kept


@pytest.mark.parametrize("files", [1, 3])
def test_a_corpus_without_rows_gives_a_dataset_without_rows(
    tmp_path: Path, command: Command, files: int
) -> None:
    empty = table_of([])
    for number in range(files):
        write_parquet(tmp_path / f"in/{number}.parquet", empty)
    out = tmp_path / "out"
    result = tamis.run(recipe(tmp_path / "in", out, EVERY))
    check_balance(workspace_of(out), out)
    assert read_dataset(out).num_rows == 0
    assert read_dataset(out).schema.equals(pq.read_table(tmp_path / "in/0.parquet").schema)
    assert result.kept.collect().height == 0
    for view in ("rows", "scores", "decisions", "why", "runs"):
        rows = query(workspace_of(out), f"SELECT * FROM {view}")[1]
        assert len(rows) == (view == "runs")
    assert "no row" in command("why", "abc", "-w", out).line(2)
    tamis.run(recipe(tmp_path / "in", out, EVERY))


def test_a_file_without_rows_among_others_is_no_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in/a.parquet", table_of([]))
    write_parquet(tmp_path / "in/b.parquet", table_of(documents(1, 40)))
    write_parquet(tmp_path / "in/c.parquet", table_of([]))
    tamis.run(recipe(tmp_path / "in", tmp_path / "out"))
    check_balance(workspace_of(tmp_path / "out"), tmp_path / "out")


@pytest.mark.parametrize(
    "text",
    [
        "one row of several words, no more",
        "",
        " ",
        "\n\n",
        "token",
        "...",
        "\x00",
        "日本語の文章には空白がありません",
        "ภาษาไทยไม่มีช่องว่าง",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "e\u0301\u0301\u0301",
        "\u0301",
        "\ufeff",
        "ﷺ" * 50,
        "İıI",
        "a" * 100_000,
    ],
    ids=ascii,
)
def test_one_row_of_any_text_is_kept(tmp_path: Path, text: str) -> None:
    assert _run(tmp_path, [text], EVERY) == [text]


def test_texts_without_words_equal_only_their_copies(tmp_path: Path) -> None:
    texts: list[str | None] = ["", "", " ", " ", "...", "...", "!!!", "\n", "👍👍👍", "👎👎👎"]
    kept = _run(tmp_path, texts, NEAR)
    assert sorted(kept) == sorted({text for text in texts if text is not None})


def test_a_word_and_its_variants_are_duplicates_only_where_words_are_equal(tmp_path: Path) -> None:
    texts: list[str | None] = ["token", "Token!", "(TOKEN)", "tokens", "token token", "to ken"]
    kept = _run(tmp_path, texts, NEAR)
    assert len(kept) == 4
    assert {"tokens", "token token", "to ken"} < set(kept)


def test_scripts_without_spaces_are_compared_by_their_characters(tmp_path: Path) -> None:
    draw = random.Random(1)
    characters = [chr(c) for c in range(0x4E00, 0x4E00 + 400)]
    base = "".join(draw.choices(characters, k=300))
    close = base[:150] + "変" + base[151:]  # 5 of 296 windows of five differ
    far = "".join(draw.choices(characters, k=300))
    assert sorted(_run(tmp_path, [base, close + "。", far], NEAR)) == sorted([close + "。", far])


def test_emoji_and_combining_marks_are_compared_in_canonical_form(tmp_path: Path) -> None:
    words = "über die Straße ging Zoë mit naïven Gedanken fort"
    decomposed = "".join({"ü": "u\u0308", "ë": "e\u0308", "ï": "i\u0308"}.get(c, c) for c in words)
    upper = words.upper()
    kept = _run(tmp_path, [words, decomposed, upper], NEAR)
    assert len(kept) == 1
    sun = "👍 " * 10
    assert len(_run(tmp_path, [sun, "👎 " * 10, sun + " "], NEAR)) == 2


def test_of_all_duplicates_one_stays(tmp_path: Path) -> None:
    text = "the same seven words in every row"
    for stages in (NEAR, BOTH):
        assert _run(tmp_path / str(len(stages)), [text] * 500, stages) == [text]


def test_without_duplicates_everything_stays(tmp_path: Path) -> None:
    draw = random.Random(2)
    texts = [" ".join(draw.choices(vocabulary(), k=30)) for _ in range(500)]
    assert sorted(_run(tmp_path, [*texts], BOTH)) == sorted(texts)


@pytest.mark.parametrize("stages", [NEAR, BOTH], ids=["near", "exact and near"])
@pytest.mark.parametrize("with_id", [True, False])
def test_of_ten_thousand_copies_of_one_document_one_stays(
    tmp_path: Path, stages: Stages, with_id: bool
) -> None:
    text = " ".join(vocabulary()[:200])
    others = documents(3, 200)
    table = table_of([*others[:100], *[text] * 10_000, *others[100:]])
    if not with_id:
        table = table.drop_columns(["id", "number"])
    source = write_parquet(tmp_path / "in.parquet", table, 700)
    out = tmp_path / "out"
    roles = {"text": "text", "id": "id"} if with_id else {"text": "text"}
    begun = time.monotonic()
    options = {"shard_bytes": 1}
    tamis.run(recipe(source, out, stages, roles=roles, corpus_options=options))
    assert time.monotonic() - begun < 20
    check_balance(workspace_of(out), out)
    assert read_dataset(out)["text"].to_pylist().count(text) == 1
    if not with_id:
        copies = [r["copy"] for r in read_ledger(workspace_of(out)) if r["copy"] > 0]
        assert max(copies) == 9_999


def test_of_three_thousand_edited_copies_of_one_document_one_stays(tmp_path: Path) -> None:
    draw = random.Random(4)
    base = vocabulary()[:300]
    texts = []
    for _ in range(3000):
        words = list(base)
        words[draw.randrange(300)] = draw.choice(vocabulary())
        texts.append(" ".join(words))
    kept = _run(tmp_path, [*texts], NEAR)
    assert len(kept) == 1  # any two differ in at most ten of about 300 shingles


def test_the_same_file_twice(tmp_path: Path) -> None:
    """Files, shards and rows that are equal to the last byte are still different rows."""
    table = table_of(documents(5, 60))
    for name in ("a", "b", "c"):
        write_parquet(tmp_path / f"in/{name}.parquet", table, 20)
    for number, roles in enumerate(({"text": "text", "id": "id"}, {"text": "text"})):
        out = tmp_path / f"out{number}"
        tamis.run(
            recipe(tmp_path / "in", out, BOTH, roles=roles, corpus_options={"shard_bytes": 1})
        )
        manifest = check_balance(workspace_of(out), out)
        assert manifest["rows"]["in"] == 180
        kept = read_dataset(out)["text"].to_pylist()
        assert len(kept) == len(set(kept))
        decisions = decisions_by_row(workspace_of(out))
        assert sorted({key[2] for key in decisions}) == [0, 1, 2]
        told = query(
            workspace_of(out), "SELECT count(*), count(text), count(partner_text) FROM why"
        )
        dropped = 180 - len(kept)
        assert told[1] == [(180, 180, dropped)]
        assert query(workspace_of(out), "SELECT count(*) FROM scores")[1] == [(180,)]


def test_row_groups_that_are_equal_are_still_different_rows(tmp_path: Path) -> None:
    table = table_of(documents(6, 30))
    source = write_parquet(tmp_path / "in.parquet", pa.concat_tables([table] * 4), 30)
    out = tmp_path / "out"
    tamis.run(recipe(source, out, BOTH, corpus_options={"shard_bytes": 1}))
    manifest = check_balance(workspace_of(out), out)
    assert len(manifest["shards"]) == 4
    assert query(workspace_of(out), "SELECT count(*) FROM why")[1] == [(120,)]


def test_equal_ids_with_equal_content_are_copies(tmp_path: Path) -> None:
    table = table_of(["a text of one", "a text of two"])
    doubled = pa.concat_tables([table, table.slice(0, 1)])
    source = write_parquet(tmp_path / "in.parquet", doubled, 1)
    tamis.run(recipe(source, tmp_path / "out", []))
    keys = [key_of(row) for row in read_ledger(workspace_of(tmp_path / "out"))]
    assert keys[0][:2] == keys[2][:2] != keys[1][:2]
    assert sorted(key[2] for key in keys) == [0, 0, 1]


def _shared_id() -> pa.Table:
    return table_of(["one text", "another text", "a third"]).set_column(
        0, "id", pa.array(["same", "same", "else"])
    )


def test_equal_ids_with_different_content_are_the_users_to_mend(
    tmp_path: Path, command: Command
) -> None:
    source = write_parquet(tmp_path / "in.parquet", _shared_id())
    out = tmp_path / "out"
    line = command("dedup", source, out, "--id", "id").line(2)
    assert str(source) in line
    assert "row 0" in line
    assert "row 1" in line
    assert "on_duplicate_id" in line
    assert not out.exists()


def test_equal_ids_with_different_content_may_be_copies_if_the_recipe_says_so(
    tmp_path: Path,
) -> None:
    numbers = {}
    for turn, table in enumerate((_shared_id(), _shared_id().take([2, 1, 0]))):
        source = write_parquet(tmp_path / f"{turn}.parquet", table)
        out = tmp_path / f"out{turn}"
        tamis.run(recipe(source, out, [], corpus_options={"on_duplicate_id": "copy"}))
        rows = query(workspace_of(out), "SELECT text, copy FROM rows")[1]
        numbers[turn] = dict(rows)
    assert numbers[0] == numbers[1]
    assert sorted(numbers[0].values()) == [0, 0, 1]


def test_identity_by_columns_that_are_not_unique_is_the_users_to_mend(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", _shared_id())
    roles = {"text": "text"}
    with pytest.raises(tamis.UserError, match="stands for different rows"):
        tamis.run(
            recipe(source, tmp_path / "out", roles=roles, corpus_options={"identity": ["id"]})
        )
    options = {"identity": ["id", "number"]}
    tamis.run(recipe(source, tmp_path / "out", [], roles=roles, corpus_options=options))
    assert len(decisions_by_row(workspace_of(tmp_path / "out"))) == 3


ODD = [float("nan"), float("inf"), float("-inf"), None, 0.0, -0.0, 1.0, 2.0, 3.0, float("nan")]


def _odd_scores(home: Path, stage: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    table = table_of([f"text number {i}" for i in range(10)])
    table = table.set_column(2, "number", pa.array(ODD, pa.float64()))
    source = write_parquet(home / "in.parquet", table, 3)
    tamis.run(recipe(source, home / "out", [stage], corpus_options={"shard_bytes": 1}))
    manifest = check_balance(workspace_of(home / "out"), home / "out")
    return read_dataset(home / "out")["id"].to_pylist(), manifest["rows"]["dropped"]


@pytest.mark.parametrize(
    ("order", "rows", "expected"),
    [
        ("highest", 1, {1}),
        ("highest", 3, {1, 8, 7}),
        ("highest", 100, {1, 2, 4, 5, 6, 7, 8}),
        ("lowest", 1, {2}),
        ("lowest", 3, {2, 4, 5}),
    ],
)
def test_top_orders_infinities_and_drops_what_has_no_score(
    tmp_path: Path, order: str, rows: int, expected: set[int]
) -> None:
    stage = {"operator": "top", "by": "number", "rows": rows, "order": order}
    kept, dropped = _odd_scores(tmp_path, stage)
    assert kept == [f"row-{i}" for i in sorted(expected)]
    assert dropped["top:no_score"] == 3
    assert dropped.get("top", 0) == 7 - len(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        # Of the scores -inf, -0, 0, 1, 2, 3, inf: the smallest that a share q does not exceed.
        (0.0, 1.0, {1, 2, 4, 5, 6, 7, 8}),
        (0.2, 0.8, {4, 5, 6, 7, 8}),
        (0.5, 0.5, {6}),
        (1.0, 1.0, {1}),
    ],
)
def test_quantiles_count_infinities_and_drop_what_has_no_score(
    tmp_path: Path, low: float, high: float, expected: set[int]
) -> None:
    stage = {"operator": "quantile", "by": "number", "low": low, "high": high}
    kept, dropped = _odd_scores(tmp_path, stage)
    assert kept == [f"row-{i}" for i in sorted(expected)]
    assert dropped["quantile:no_score"] == 3


def test_a_column_of_nothing_but_nan_keeps_nothing(tmp_path: Path) -> None:
    table = table_of(["one", "two"]).set_column(2, "number", pa.array([float("nan")] * 2))
    source = write_parquet(tmp_path / "in.parquet", table)
    for operator in ("top", "quantile"):
        out = tmp_path / operator
        amount = {"rows": 2} if operator == "top" else {}
        tamis.run(recipe(source, out, [{"operator": operator, "by": "number", **amount}]))
        check_balance(workspace_of(out), out)
        assert read_dataset(out).num_rows == 0


def test_ranks_of_nan_and_infinity_decide_who_stays(tmp_path: Path) -> None:
    text = "seven words that are all the same"
    for order, stays in (("highest", 1), ("lowest", 2)):
        table = table_of([text] * 4)
        values = pa.array([float("nan"), float("inf"), float("-inf"), None])
        table = table.set_column(2, "number", values)
        source = write_parquet(tmp_path / "in.parquet", table)
        for operator in ("exact_dedup", "near_dedup"):
            out = tmp_path / f"{order} {operator}"
            stage = {"operator": operator, "rank": "number", "rank_order": order}
            tamis.run(recipe(source, out, [stage]))
            assert read_dataset(out)["id"].to_pylist() == [f"row-{stays}"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**53 + 1, 2**53, 2**60, -(2**60)], pa.int64()),
        pa.array([2**64 - 1, 0, 5, 7], pa.uint64()),
        pa.array([1, 2, 3, 4], pa.decimal128(20, 2)),
        pa.array([0.5, 1.5, -1, 3], pa.float32()),
        pa.array(np.array([0.5, 1.5, -1, 3], np.float16)),
        pa.array([True, False, None, True]),
        pa.array([1, 2, None, 4], pa.timestamp("us")),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("operator", ["top", "quantile", "exact_dedup"])
def test_a_score_of_any_number_type_works_or_is_refused_by_name(
    tmp_path: Path, column: pa.Array, operator: str
) -> None:
    table = table_of(["text of one", "text of two", "text of three", "text of three"])
    source = write_parquet(tmp_path / "in.parquet", table.append_column("score", column))
    parameters: dict[str, dict[str, Any]] = {
        "top": {"by": "score", "rows": 2},
        "quantile": {"by": "score", "low": 0.5},
        "exact_dedup": {"rank": "score"},
    }
    stage = {"operator": operator, **parameters[operator]}
    try:
        tamis.run(recipe(source, tmp_path / "out", [stage]))
    except tamis.UserError as error:
        told = str(error)
    else:
        told = "'score'"
        check_balance(workspace_of(tmp_path / "out"), tmp_path / "out")
    assert "'score'" in told


def test_a_score_that_is_text_is_refused_before_any_work(tmp_path: Path, command: Command) -> None:
    source = write_parquet(tmp_path / "in.parquet", table_of(documents(7, 20)))
    line = command("select", source, tmp_path / "out", "--top", "id:5").line(2)
    assert "'id'" in line
    line = command("dedup", source, tmp_path / "out", "--rank", "id").line(2)
    assert "'id'" in line


def test_conditions_on_odd_values_drop_false_and_null_alike(tmp_path: Path) -> None:
    kept, dropped = _odd_scores(tmp_path, {"operator": "where", "keep": "number >= 1"})
    # DuckDB orders nan above everything.
    assert kept == ["row-0", "row-1", "row-6", "row-7", "row-8", "row-9"]
    assert dropped == {"where": 4}


def _template(draw: random.Random, head: list[str], own: int) -> str:
    return " ".join([*head, *draw.choices(vocabulary(), k=own)])


@pytest.mark.slow
def test_a_hundred_thousand_documents_of_one_template_end_in_a_minute(tmp_path: Path) -> None:
    """All share a header; J is about .5 everywhere: nothing is a duplicate."""
    draw = random.Random(8)
    head = vocabulary()[:44]  # 40 shingles of the head, 20 of each row's own: J = 40 / 80
    texts = [_template(draw, head, 20) for _ in range(100_000)]
    near = [texts[i] + " " + draw.choice(vocabulary()) for i in range(0, 100_000, 1000)]
    assert 0.45 < jaccard(texts[0], texts[1]) < 0.55
    source = write_parquet(tmp_path / "in.parquet", table_of([*texts, *near]), 10_000)
    out = tmp_path / "out"
    begun = time.monotonic()
    tamis.run(recipe(source, out, NEAR, workers=2))
    seconds = time.monotonic() - begun
    manifest = check_balance(workspace_of(out), out)
    decisions = decisions_by_row(workspace_of(out))
    found = {
        (int(r[:16], 16), int(r[16:], 16), copy): text
        for r, copy, text in query(workspace_of(out), "SELECT row_id, copy, text FROM rows")[1]
    }
    dropped = {key: row for key, row in decisions.items() if row["action"] == "drop"}
    for key, row in dropped.items():
        partner = partner_of(row)
        assert partner is not None
        assert row["similarity"] == jaccard(found[key], found[partner]) >= 0.8
    assert manifest["rows"]["dropped"] == {"near_dedup": len(near)}
    assert seconds < 60, f"{seconds:.0f} s"


@pytest.mark.slow
def test_a_document_of_a_hundred_megabytes(tmp_path: Path) -> None:
    draw = random.Random(9)
    words = vocabulary()
    piece = " ".join(draw.choices(words, k=1_000_000))
    long = " ".join([piece] * (100_000_000 // len(piece) + 1))
    random_long = " ".join(draw.choices(words, k=20_000_000))
    edited = random_long[:-500] + " changed at its very end"
    assert min(len(long), len(random_long)) >= 99_000_000
    texts: list[str | None] = ["short one", long, random_long, edited, "short two", "short one"]
    kept = _run(tmp_path, texts, [{"operator": "text_stats"}, *BOTH])
    assert {len(text) for text in kept} == {9, len(long), len(random_long)}
    assert len(kept) == 4

    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    out = tmp_path / "from jsonl"
    tamis.run(recipe(tmp_path / "in.jsonl", out, BOTH))
    assert sorted(map(len, read_dataset(out)["text"].to_pylist())) == sorted(map(len, kept))


def test_names_that_the_ledger_uses_itself_do_not_confuse_rules(tmp_path: Path) -> None:
    table = table_of(documents(10, 50))
    table = table.append_column("Words", pa.array([i % 10 for i in range(50)]))
    source = write_parquet(tmp_path / "in.parquet", table)
    out = tmp_path / "out"
    stages = [{"operator": "where", "keep": '"Words" >= 5 AND "number" >= 0'}]
    tamis.run(recipe(source, out, stages))
    assert read_dataset(out).num_rows == 25


def test_columns_that_differ_only_in_case_are_told_apart_or_refused(tmp_path: Path) -> None:
    table = table_of(documents(11, 50))
    table = table.append_column("Number", pa.array([i % 2 for i in range(50)]))
    source = write_parquet(tmp_path / "in.parquet", table)
    out = tmp_path / "out"
    try:
        tamis.run(recipe(source, out, [{"operator": "where", "keep": '"Number" = 1'}]))
    except tamis.UserError:
        assert not out.exists()
        return
    assert read_dataset(out)["Number"].to_pylist() == [1] * 25


def test_every_stage_may_be_given_twice_under_names(tmp_path: Path) -> None:
    stages: Stages = [
        {"operator": "near_dedup", "name": "loose", "threshold": 0.9},
        {"operator": "near_dedup", "name": "tight", "threshold": 0.5},
        {"operator": "exact_dedup", "name": "last"},
    ]
    _run(tmp_path, [*documents(12, 300)], stages)
    reports = manifest_of(tmp_path / "out")["stages"]
    assert [report["stage"] for report in reports] == ["loose", "tight", "last"]
    assert reports[1]["dropped"]["tight"] > 0
    assert leftovers(tmp_path) == []


def test_the_five_stages_run_on_a_corpus_of_one_word(tmp_path: Path) -> None:
    kept = _run(tmp_path, ["word " * 20] * 3 + ["word"], STAGES)
    assert kept == []  # of the one that is left, nine tenths are none


def test_bytes_that_are_no_text_are_kept_as_they_are_or_set_aside(tmp_path: Path) -> None:
    texts = [
        b"good text of six whole words",
        b"bad \xff\xfe text \xc3",
        b"\xf0\x9f",
        b"fine \xe2\x82",
    ]
    text = pa.array(texts, pa.binary()).view(pa.string())  # as some writers leave it in Parquet
    table = table_of([""] * 4).set_column(1, "text", text)
    source = write_parquet(tmp_path / "in.parquet", table)
    out = tmp_path / "out"
    tamis.run(recipe(source, out, EVERY, max_quarantine=1.0))
    rows = check_balance(workspace_of(out), out)["rows"]
    kept = read_dataset(out)["text"].cast(pa.binary()).to_pylist()
    assert set(kept) <= set(texts)
    assert texts[0] in kept
    assert len(kept) + rows["quarantined"] == 4
