"""The Python API."""

from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tamis
from tests.conftest import make_texts, write_corpus

TEXTS = ["one two", "three"]


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"body": TEXTS}),
        pl.LazyFrame({"body": TEXTS}),
        pd.DataFrame({"body": TEXTS}),
        pa.table({"body": TEXTS}),
        pa.record_batch({"body": TEXTS}),
    ],
    ids=["polars", "lazy", "pandas", "arrow", "batch"],
)
def test_score_takes_any_frame(frame: object) -> None:
    assert tamis.score("text_stats", frame, text="body")["words"].to_list() == [2, 1]


def test_score_of_an_empty_frame() -> None:
    frame = pl.DataFrame({"text": []}, schema={"text": pl.String})
    assert tamis.score("compression_ratio", frame).shape == (0, 1)


@pytest.mark.parametrize(
    ("operator", "frame", "roles", "message"),
    [
        ("nothing", {"text": ["a"]}, {}, "no operator"),
        ("near_dedup", {"text": ["a"]}, {}, "gives no score"),
        ("cluster", {"text": ["a"]}, {}, "needs the whole corpus"),
        ("text_stats", {"body": ["a"]}, {}, "no column 'text'"),
        ("text_stats", {"text": ["a", None]}, {}, "1 nulls"),
        ("text_stats", {"text": ["a"]}, {"label": "text"}, "no role 'label'"),
    ],
)
def test_score_says_what_is_wrong(
    operator: str, frame: dict[str, list[str]], roles: dict[str, str], message: str
) -> None:
    with pytest.raises(tamis.UserError, match=message):
        tamis.score(operator, pa.table(frame), **roles)


def test_run_gives_lazy_frames(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in.parquet", make_texts(100, copies=0.5))
    result = tamis.run(
        {
            "corpus": {"path": str(tmp_path / "in.parquet"), "roles": {"text": "text", "id": "id"}},
            "stages": [{"operator": "exact_dedup"}, {"operator": "near_dedup"}],
            "output": {"path": str(tmp_path / "out")},
        }
    )
    kept, dropped = result.kept.collect(), result.dropped.collect()
    assert len(kept) + len(dropped) == 100
    assert set(dropped["reason"]) == {"exact_dedup", "near_dedup"}
    assert dropped["similarity"].is_between(0.8, 1).all()


def test_a_recipe_without_output_scores_only(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in.parquet", make_texts(10))
    result = tamis.run(
        {
            "corpus": {"path": str(tmp_path / "in.parquet"), "roles": {"text": "text"}},
            "stages": [{"operator": "compression_ratio"}],
            "workspace": str(tmp_path / "work"),
        }
    )
    assert result.output is None
    assert result.manifest["rows"] == {
        "in": 10,
        "kept": 10,
        "relabelled": 0,
        "in_review": 0,
        "dropped": {},
        "quarantined": 0,
        "generated": 0,
        "written": 0,
    }
