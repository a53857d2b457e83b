"""The recipes in `examples/` and the README's first command, on the corpus they name."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tamis.recipe import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = [p for p in sorted((ROOT / "examples").glob("*.yaml")) if p.stem != "prefect"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_examples_are_valid(path: Path) -> None:
    assert load_recipe(path).stages


#: `preferences.yaml` runs in test_example_models.py.
RUN = [path for path in RECIPES if path.stem != "preferences"]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=lambda p: p.stem)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()  # the history of daily.yaml, before its first day
    command = [sys.executable, "-m", "tamis.cli", "run", str(path), "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)["rows"]
    assert rows["in"] == rows["kept"] + sum(rows["dropped"].values()) + rows["quarantined"]
    assert rows["kept"] > 0


@pytest.mark.slow
def test_the_demo_shows_what_it_promises(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tamis.cli", "demo", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["rows"]["in"] > 1_000
    assert found["rows"]["dropped"]["near_dedup"] > 10
    assert len(found["pairs"]) == 3
    for pair in found["pairs"]:
        assert 0.8 <= pair["similarity"] < 1
        assert pair["dropped"]["text"]
    kept = pl.read_parquet(tmp_path / "demo" / "*.parquet")
    assert set(kept["kind"]) >= {"function", "class", "module", "metadata"}
    functions = kept.filter(pl.col("kind") == "function")
    assert functions["source"].str.contains("def ").mean() > 0.99
