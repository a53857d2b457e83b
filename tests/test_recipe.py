"""Recipes: what is wrong is named by its path."""

import json
from pathlib import Path
from typing import Any

import pytest

from tamis.recipe import Recipe, check_recipe, load_recipe, operators, parse_bytes
from tamis.storage.errors import UserError

GOOD: dict[str, Any] = {
    "corpus": {"path": "in/*.parquet", "roles": {"text": "text"}},
    "stages": [{"operator": "near_dedup", "threshold": 0.7}, {"operator": "sample", "rows": 5}],
    "output": {"path": "out"},
}


def changed(**parts: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(GOOD)), **parts}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (changed(stages=[{"operator": "near_dedup", "threshold": 2}]), r"stages\[0\]\.threshold"),
        (
            changed(stages=[{"operator": "near_dedup", "treshold": 1}]),
            r"stages\[0\]\.treshold: no such",
        ),
        (changed(stages=[{"operator": "nothing"}]), r"stages\[0\]: `operator` must be one of"),
        (changed(stages=[{"threshold": 1}]), r"stages\[0\]: `operator` must be one of"),
        (changed(corpus={"path": 5}), r"corpus\.path"),
        (changed(corpus={"roles": {"text": "t"}}), r"corpus\.path: required"),
        (changed(extra=1), "extra: no such key"),
        (changed(corpus={"path": "x"}), r"corpus\.roles\.text"),
        (changed(stages=[{"operator": "sample", "rows": 1}] * 2), "two stages are named 'sample'"),
        (changed(stages=[{"operator": "where", "keep": "a >"}]), r"stages\[0\]\.keep.*not an SQL"),
        (changed(memory="lots"), "memory.*is no size"),
        (changed(output=None), "output path, a workspace"),
        (
            changed(stages=[{"operator": "near_dedup", "bands": 40, "band_rows": 5}]),
            "more than the 128",
        ),
        ([], "a recipe is a mapping"),
    ],
)
def test_the_offending_key_is_named(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_recipe(value)


def test_a_file_is_read_and_broken_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(GOOD))
    assert load_recipe(path).stages[0].stage == "near_dedup"
    for text, message in (
        ("corpus: [", "not YAML"),
        ("corpus: {path: a, path: b}", "given twice"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            load_recipe(path)
        assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="cannot read"):
        load_recipe(tmp_path / "none.yaml")


def test_the_json_schema_knows_every_stage() -> None:
    schema = json.dumps(Recipe.model_json_schema())
    for name in operators():
        assert f'"{name}"' in schema


def test_a_recipe_survives_its_own_dump() -> None:
    recipe = check_recipe(changed(memory="2GB"))
    assert recipe.memory == 2_000_000_000
    assert check_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 10**9), ("500 mb", 5 * 10**8), ("1.5G", 1.5 * 10**9), ("2GiB", 2 << 30), ("7", 7)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


def test_every_operator_is_described() -> None:
    for name, cls in operators().items():
        assert cls.__doc__, name
        assert cls.version >= 1
        for key, field in cls.model_fields.items():
            assert key == "operator" or field.description, f"{name}.{key}"
