"""What the stated bound of a run's memory counts: dimensions of vectors, rows of references."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.flows.checks import LIST_NUMBERS, table_memory, vector_lengths
from tamis.recipe import Recipe

ROWS = 1000


def bound(folder: Path, stage: dict[str, Any], numbers: int | None = 384) -> int:
    recipe = Recipe.model_validate(
        {
            "corpus": {"path": "in.parquet", "roles": {"text": "text"}},
            "stages": [stage],
            "workspace": str(folder),
        }
    )
    (found,) = recipe.stages
    vectors = pa.list_(pa.float32(), -1 if numbers is None else numbers)
    lengths = vector_lengths(recipe, pa.schema([("text", pa.string()), ("vector", vectors)]))
    return table_memory(found.resolve(folder), ROWS, 0, lengths)  # type: ignore[arg-type]


@pytest.mark.parametrize("numbers", [384, 1024, None])
def test_vectors_count_by_their_length(tmp_path: Path, numbers: int | None) -> None:
    stage = {"operator": "semdedup", "embedding": "vector"}
    more = bound(tmp_path, stage, numbers) - bound(tmp_path, stage, 1)
    assert more == 2 * ROWS * 4 * ((numbers or LIST_NUMBERS) - 1)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("semantic_leak", {"embedding": "vector"}),
        ("reference_similarity", {"embedding": "vector"}),
        ("importance_sample", {"embedding": "vector", "rows": 5}),
        ("kernel_mean_weight", {"embedding": "vector"}),
        ("propensity_weight", {"embedding": "vector"}),
        ("decontaminate", {}),
        ("contamination", {}),
    ],
)
def test_rows_of_references_count(tmp_path: Path, name: str, params: dict[str, Any]) -> None:
    bounds = []
    for rows in (10, 5010):
        path = tmp_path / f"{rows}.parquet"
        pq.write_table(pa.table({"text": [f"text {i}" for i in range(rows)]}), path)
        reference = {"path": str(path)}
        key = "target" if name.startswith(("importance", "kernel", "propensity")) else "references"
        given = reference if key == "target" else [reference]
        bounds.append(bound(tmp_path / "work", {"operator": name, key: given, **params}))
    each = (bounds[1] - bounds[0]) / 5000
    assert each > (2 * 4 * 384 if "embedding" in params else 100)
