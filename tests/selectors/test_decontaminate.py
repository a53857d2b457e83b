"""Rows that hold benchmark items are dropped, and say which and by what."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.flows.explain import explain
from tamis.storage.errors import UserError
from tests.conftest import make_texts

ITEMS = make_texts(30, seed=3, words=40, copies=0)
SHORT = "one two three four five six seven eight nine ten"


def benchmark(folder: Path, items: list[str], names: list[str] | None = None, **more: Any) -> Any:
    """A reference of some items."""
    path = folder / "bench.parquet"
    table = pa.table({"question": items, "number": [f"item {i}" for i in range(len(items))]})
    if names is not None:
        table = table.append_column("of", pa.array(names))
        more["benchmark"] = "of"
    pq.write_table(table, path)
    return {"path": str(path), "text": "question", "id": "number", "name": "bench", **more}


def run(folder: Path, texts: list[str], stages: list[Any], **options: Any) -> Any:
    ids = [f"row-{i}" for i in range(len(texts))]
    columns = {"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string())}
    pq.write_table(pa.table(columns), folder / "in.parquet", row_group_size=10)
    return tamis.run(
        {
            "corpus": {
                "path": str(folder / "in.parquet"),
                "roles": {"text": "text", "id": "id"},
            },
            "stages": stages,
            "output": {"path": str(folder / "out"), **options.pop("output", {})},
            **options,
        }
    )


def planted(texts: list[str], items: list[str]) -> list[str]:
    """Every third text with an item in it, in capitals and other white space."""
    return [
        f"{text[:40]} … {items[i // 3].upper().replace(' ', '  ')} … {text[40:]}"
        if i % 3 == 0
        else text
        for i, text in enumerate(texts)
    ]


def test_planted_items_are_dropped_and_named(tmp_path: Path) -> None:
    items = [item for item in ITEMS if len(item.split()) >= 13][:15]
    texts = planted(make_texts(45, seed=8), items)
    names = [f"set {i % 2}" for i in range(15)]
    stage = {"operator": "decontaminate", "references": [benchmark(tmp_path, items, names)]}
    for _ in range(2):  # the second time from what is stored
        result = run(tmp_path, texts, [stage])
        lost = result.dropped.collect().to_dicts()
        assert len(lost) == 15
        assert {row["partner_source"] for row in lost} == {"set 0", "set 1"}
        for row in lost:
            assert row["evidence"].lower().split() in [item.split()[:13] for item in items]
            assert row["similarity"] == row["value"] == 1
    (report,) = result.manifest["stages"]
    assert report["report"]["benchmarks"] == {"set 0": 8, "set 1": 7}
    assert report["report"]["items"] == 15
    entry = explain(result.workspace, f"{lost[0]['id_hi']:016x}{lost[0]['id_lo']:016x}")[-1]
    assert entry["partner_source"] == lost[0]["partner_source"]
    assert entry["evidence"] == lost[0]["evidence"]


def test_columns_for_rules_of_ones_own(tmp_path: Path) -> None:
    item = " ".join(f"w{i}" for i in range(22))  # ten 13-grams
    half = " ".join(f"w{i}" for i in range(17))  # five of them
    texts = [item, f"a {half} b", "nothing of it", SHORT.title()]
    reference = benchmark(tmp_path, [item, SHORT])
    names = ["contaminated", "benchmark", "item", "ngram", "row_share", "item_share"]
    columns = ["contaminated", *(f"contamination_{name}" for name in names[1:])]
    stages = [
        {"operator": "contamination", "references": [reference]},
        {"operator": "where", "keep": {"mostly_clean": "contamination_item_share < 0.9"}},
    ]
    result = run(tmp_path, texts, stages, output={"add": columns})
    assert result.manifest["rows"]["dropped"] == {"where:mostly_clean": 2}
    (path,) = (tmp_path / "out").glob("*.parquet")
    first, second = pq.read_table(path).select(columns).to_pylist()
    assert list(first.values()) == [
        *(True, "bench", "item 0", " ".join(f"w{i}" for i in range(13)), 5 / 7, 0.5),
    ]
    assert list(second.values()) == [False, None, None, None, 0, 0]


def test_threshold(tmp_path: Path) -> None:
    item = " ".join(f"w{i}" for i in range(22))
    texts = [item, " ".join(item.split()[:17]), "x"]
    for threshold, expected in ((0, 2), (0.5, 2), (0.51, 1), (1, 1)):
        stage = {
            "operator": "decontaminate",
            "references": [benchmark(tmp_path, [item])],
            "threshold": threshold,
        }
        assert run(tmp_path, texts, [stage]).dropped.collect().height == expected


def test_order_sharding_and_workers_do_not_matter(tmp_path: Path) -> None:
    items = ITEMS + ITEMS[:3]
    texts = planted(make_texts(60, seed=8), [i for i in ITEMS if len(i.split()) >= 13])
    found = []
    for number, workers in enumerate((1, 3)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        order = list(range(len(texts)))
        if number:
            random.Random(1).shuffle(order)
            items = items[::-1]
        table = pa.table({"id": [f"r{i}" for i in order], "text": [texts[i] for i in order]})
        pq.write_table(table, folder / "in.parquet", row_group_size=7 if number else 100)
        (folder / "bench").mkdir()
        reference = benchmark(folder / "bench", items)
        reference.pop("id")
        pq.write_table(pa.table({"question": items}), reference["path"])
        result = tamis.run(
            {
                "corpus": {
                    "path": str(folder / "in.parquet"),
                    "roles": {"text": "text", "id": "id"},
                },
                "stages": [{"operator": "decontaminate", "references": [reference]}],
                "workspace": str(folder / "work"),
                "workers": workers,
            }
        )
        found.append(result.decisions.drop("shard", "row").collect().sort("id_hi"))
    assert found[0].equals(found[1])
    assert (found[0]["action"] == "drop").sum() > 10


def test_nulls_and_empty_texts_of_a_benchmark_are_left_out(tmp_path: Path) -> None:
    others = [" ".join(f"w{i}x{j}" for j in range(20)) for i in range(100)]
    reference = benchmark(tmp_path, [SHORT, "", None, *others], ["a"] * 103)  # type: ignore[list-item]
    stage = {"operator": "decontaminate", "references": [reference]}
    result = run(tmp_path, [SHORT, "", "x"], [stage])
    assert result.manifest["rows"]["kept"] == 2
    assert result.manifest["stages"][0]["report"]["items_too_short"] == 1
    told = result.manifest["stages"][0]["report"]["references"]
    assert told == {"bench": {"unread": 0, "without_text": 1}}


def test_an_empty_corpus(tmp_path: Path) -> None:
    stage = {"operator": "decontaminate", "references": [benchmark(tmp_path, [SHORT])]}
    assert run(tmp_path, [], [stage]).manifest["rows"]["in"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "nowhere"}, "no column 'nowhere'"),
        ({"text": "nowhere"}, "no column 'nowhere'"),
        ({"path": "/nowhere/at.parquet"}, "nowhere"),
    ],
)
def test_what_is_wrong_with_a_benchmark_is_said(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    reference = {**benchmark(tmp_path, [SHORT]), **change}
    with pytest.raises(UserError, match=message):
        run(tmp_path, ["x"], [{"operator": "decontaminate", "references": [reference]}])


def test_two_benchmarks_of_one_name_are_refused(tmp_path: Path) -> None:
    reference = benchmark(tmp_path, [SHORT])
    with pytest.raises(UserError, match="two references are called"):
        run(tmp_path, ["x"], [{"operator": "decontaminate", "references": [reference] * 2}])


def test_min_words_may_not_be_more_than_an_ngram(tmp_path: Path) -> None:
    stage = {"operator": "contamination", "references": [benchmark(tmp_path, [SHORT])], "ngram": 5}
    with pytest.raises(UserError, match="min_words"):
        run(tmp_path, ["x"], [stage])
