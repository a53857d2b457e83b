"""Counts of copies, the report on them, and the cap."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tamis.selectors import near_dedup
from tamis.selectors.repetition import repetition_report
from tests.conftest import make_texts
from tests.selectors.sample_tools import run, shuffled


def corpus(texts: list[str], **columns: Any) -> pa.Table:
    names = pa.array([f"r{i}" for i in range(len(texts))], pa.string())
    return pa.table({"id": names, "text": pa.array(texts, pa.string()), **columns})


def repeated() -> pa.Table:
    """Texts that occur 1, 2, 3 and 100 times, and empty ones."""
    texts = ["one"] + ["two!"] * 2 + ["three"] * 3 + ["hundred"] * 100 + [""] * 4
    return shuffled(corpus(texts), 5)


def test_copies_are_counted(tmp_path: Path) -> None:
    table = repeated()
    rows = run(tmp_path, table, {"operator": "repeats"}, add=["repeats"]).rows
    expected = Counter(table["text"].to_pylist())
    assert all(n == expected[text] for text, n in rows.select("text", "repeats").iter_rows())


def test_the_report_says_what_share_is_repeated_how_often(tmp_path: Path) -> None:
    found = run(tmp_path, repeated(), {"operator": "repetition_risk"})
    assert len(found.rows) == 110
    total = 3 + 8 + 15 + 700
    report = found.report["report"]
    assert [(p["repeats"], p["rows"], p["texts"]) for p in report["by_repeats"]] == [
        ("1", 1, 1),
        ("2", 2, 1),
        ("3-4", 7, 2),
        ("65-128", 100, 1),
    ]
    shares = [p["share_of_tokens"] for p in report["by_repeats"]]
    assert shares == pytest.approx([3 / total, 8 / total, 15 / total, 700 / total])
    assert report["repeated"] == pytest.approx(723 / total)
    share = 700 / total
    assert report["like_published"] == pytest.approx(
        {"share_of_tokens": share, "over_published": share / 0.1}
    )


def test_the_published_case_is_what_it_is_compared_with() -> None:
    """90,000 rows once and 100 rows 100 times each: a tenth of the tokens."""
    repeats = np.r_[np.ones(90_000, np.int64), np.full(10_000, 100)]
    report = repetition_report(repeats, np.ones(100_000))
    assert report["like_published"] == pytest.approx(
        {"share_of_tokens": 0.1, "over_published": 1.0}
    )
    assert sum(part["share_of_tokens"] for part in report["by_repeats"]) == pytest.approx(1)


def test_sizes_may_be_a_column(tmp_path: Path) -> None:
    table = corpus(["a", "a", "b"], tokens=pa.array([10, 10, None]))
    found = run(tmp_path, table, {"operator": "repetition_risk", "tokens": "tokens"})
    assert found.report["report"]["repeated"] == 1.0


def test_copies_beyond_the_cap_are_dropped_with_a_partner(tmp_path: Path) -> None:
    table = repeated()
    stage = {"operator": "repetition_risk", "max_repeats": 3}
    found = run(tmp_path / "a", table, stage)
    kept = Counter(found.rows["text"])
    assert kept == {"one": 1, "two!": 2, "three": 3, "hundred": 3, "": 3}
    lost = found.decisions.filter(pl.col("action") == "drop")
    assert set(lost["similarity"]) == {1.0}
    assert set(lost["threshold"]) == {3.0}
    ids = {(r["id_hi"], r["id_lo"]): r["id"] for r in found.decisions.to_dicts()}
    text = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    for row in lost.to_dicts():
        partner = ids[row["partner_hi"], row["partner_lo"]]
        assert partner in found.kept
        assert text[partner] == text[row["id"]]
    again = run(tmp_path / "b", shuffled(table), stage, workers=1, rows_per_group=9)
    assert again.kept == found.kept


def test_near_copies_are_counted_from_the_text_that_stands_for_them(tmp_path: Path) -> None:
    texts = make_texts(120, copies=0.6)
    table = corpus(texts)
    dedup = run(tmp_path / "a", table, {"operator": "near_dedup", "threshold": 0.7})
    stage = {"operator": "repetition_risk", "near": 0.7, "max_repeats": 1}
    capped = run(tmp_path / "b", table, stage)
    columns = ["id", "action", "partner_hi", "partner_lo", "similarity"]
    assert capped.decisions.select(columns).equals(dedup.decisions.select(columns))
    rows = run(tmp_path / "c", table, {"operator": "repeats", "near": 0.7}, add=["repeats"]).rows
    partners = dedup.decisions.filter(pl.col("action") == "drop")["partner_hi"].to_list()
    ids = dict(dedup.decisions.select("id", "id_hi").iter_rows())
    sizes = dict(rows.select("id", "repeats").iter_rows())
    for name in dedup.kept:
        assert sizes[name] == 1 + partners.count(ids[name])


@pytest.mark.parametrize("texts", [[], ["a"], [""]])
def test_few_rows(tmp_path: Path, texts: list[str]) -> None:
    table = corpus(texts)
    found = run(tmp_path / "a", table, {"operator": "repetition_risk", "max_repeats": 1})
    assert len(found.rows) == len(texts)
    assert found.report["report"]["repeated"] == 0
    rows = run(tmp_path / "b", table, {"operator": "repeats"}, add=["repeats"]).rows
    assert rows["repeats"].to_list() == [1] * len(texts) if texts else not len(rows)


def test_sums_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    texts = [f"text {i % 70}" for i in range(3000)]
    sizes = [0.1 * 3.7 ** (i % 23) for i in range(3000)]
    table = corpus(texts, tokens=pa.array(sizes))
    stage = {"operator": "repetition_risk", "tokens": "tokens"}
    reports = []
    for seed in (1, 2, 3):
        found = run(tmp_path / str(seed), shuffled(table, seed), stage)
        reports.append(found.report)
    assert reports[0] == reports[1] == reports[2]


def test_no_certificate_is_drawn_that_nobody_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_dedup, "certify", lambda *given, **named: pytest.fail("certified"))
    stage = {"operator": "repetition_risk", "near": 0.8}
    run(tmp_path, corpus(make_texts(20, copies=0.5)), stage)
