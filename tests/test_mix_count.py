"""`tamis mix count`: sums over any sharding, and sizes that are none."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from tamis.cli import app
from tamis.storage.errors import UserError


def counted(source: Path, *options: str) -> Any:
    arguments = ["mix", "count", str(source), "--domain", "domain", *options, "--json"]
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def corpus(folder: Path, tokens: list[Any], files: int = 1) -> Path:
    table = pl.DataFrame(
        {
            "id": [str(i) for i in range(len(tokens))],
            "domain": ["web"] * len(tokens),
            "text": ["secret words"] * len(tokens),
            "tok": pl.Series(tokens, dtype=pl.Float64),
        }
    )
    folder.mkdir()
    step = len(tokens) // files
    for number in range(files):
        table[number * step : (number + 1) * step].write_parquet(folder / f"{number}.parquet")
    return folder


def test_fractions_of_tokens_are_rounded_once(tmp_path: Path) -> None:
    sizes = [0.4] * 9 + [1e9 + 0.3]
    for files in (1, 10):
        found = counted(corpus(tmp_path / str(files), sizes, files), "--by", "tok")
        assert found["domains"]["web"]["tokens"] == 1_000_000_004


def test_rows_without_tokens_are_told(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", [3.0, None, float("nan"), 4.0])
    found = counted(source, "--by", "tok")
    assert found["domains"]["web"]["tokens"] == 7
    assert found["rows_without_tokens"] == 2
    said = CliRunner().invoke(
        app, ["mix", "count", str(source), "--domain", "domain", "--by", "tok"]
    )
    assert "2 rows have no tok and add no tokens" in said.stdout
    assert counted(source)["rows_without_tokens"] == 0


@pytest.mark.parametrize("size", [float("inf"), -50.0, 1e300])
def test_a_size_that_is_none_is_told_with_its_row(tmp_path: Path, size: float) -> None:
    with pytest.raises(UserError, match=r"'tok' of row [0-9a-f]{32} is .*, expected 0 to 1e\+11"):
        counted(corpus(tmp_path / "in", [1.0, size]), "--by", "tok")


def test_texts_count_no_tokens_and_are_not_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--by: expected numbers, found 'text' of") as told:
        counted(corpus(tmp_path / "in", [1.0]), "--by", "text")
    assert "secret" not in str(told.value)
