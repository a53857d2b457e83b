"""Labelled rows with made-up judgements, and runs that act on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import tamis
from tamis.storage.ledger import RULES

ROLES = {"text": "text", "id": "id", "label": "label"}
#: By kind of label its classes, sorted as text: a number of a class is its place here.
CLASSES: dict[str, pa.Array] = {
    "string": pa.array(["neg", "neu", "pos"]),
    "large_string": pa.array(["neg", "neu", "pos"], pa.large_string()),
    "dictionary": pa.array(["neg", "neu", "pos"]).dictionary_encode(),
    "int64": pa.array([-1, 0, 7]),
    "int8 dictionary": pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2], pa.int8()), pa.array([-1, 0, 7])
    ),
    "uint8": pa.array([0, 1, 2], pa.uint8()),
    "bool": pa.array([False, True]),
    "float": pa.array([0.0, 1.0, 12.0]),
}


def as_text(classes: pa.Array) -> list[str]:
    """Names of classes, as a reader of the docs would write them."""
    names = []
    for value in classes.to_pylist():
        if isinstance(value, bool):
            names.append(str(value).lower())
        else:
            names.append(str(int(value)) if isinstance(value, float) else str(value))
    return names


def rows(count: int = 120, kind: str = "string", seed: int = 0) -> pa.Table:
    """Rows with labels, and what a model that has not seen them thinks of each."""
    draw = np.random.default_rng(seed)
    classes = CLASSES[kind]
    codes = draw.integers(0, len(classes), count)
    probs = draw.dirichlet([0.4] * len(classes), count).astype(np.float32)
    best = probs.argmax(axis=1)
    votes = [
        [{"rule": "aum", "value": float(-i), "threshold": 0.0}] if i % 2 else None
        for i in range(count)
    ]
    return pa.table(
        {
            "id": [f"r{i:04d}" for i in range(count)],
            "text": [f"text number {i}" for i in range(count)],
            "label": classes.take(pa.array(codes)),
            "p_wrong": 1.0 - probs[np.arange(count), codes].astype(np.float64),
            "p_wrong_votes": pa.array(votes, RULES),
            "loss": -np.log(probs[np.arange(count), codes]).astype(np.float64),
            "probe_suggested": pa.array([as_text(classes)[i] for i in best], pa.string()),
            "probe_suggested_prob": probs.max(axis=1),
            "probe_probs": pa.array(probs.tolist(), pa.list_(pa.float32())),
            "probe_label": pa.array(codes, pa.int32()),
        }
    )


def recipe(
    folder: Path, table: pa.Table, stages: list[dict[str, Any]], **options: Any
) -> dict[str, Any]:
    """A recipe on a file of these rows; stages judge by `p_wrong`."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "in.parquet", row_group_size=25)
    by = {"label_errors", "relabel", "label_weight", "label_review"}
    told = [{**({"by": "p_wrong"} if s["operator"] in by else {}), **s} for s in stages]
    return {
        "corpus": {"path": str(folder / "in.parquet"), "roles": ROLES, "shard_bytes": 1},
        "stages": told,
        "output": {"path": str(folder / "out")},
        **options,
    }


def act(folder: Path, table: pa.Table, *stages: dict[str, Any], **options: Any) -> Any:
    """The result of a run."""
    return tamis.run(recipe(folder, table, list(stages), **options))


def written(result: Any) -> pa.Table:
    """The dataset of a run, by id."""
    names = [entry["name"] for entry in result.manifest["files"]]
    return pa.concat_tables([pq.read_table(result.output / n) for n in names]).sort_by("id")


def decided(result: Any, table: pa.Table) -> dict[str, dict[str, Any]]:
    """The ledger, by the id that the rows have in the corpus."""
    found = tamis.sql(result, "SELECT r.id, d.* FROM decisions d JOIN rows r USING (row_id, copy)")
    assert len(found) == table.num_rows
    return {row["id"]: row for row in found.to_dicts()}


def row_ids(result: Any) -> dict[str, str]:
    """Id in the corpus to row_id."""
    found = tamis.sql(result, "SELECT id, row_id FROM rows")
    return dict(zip(found["id"], found["row_id"], strict=True))


def texts(column: pa.ChunkedArray) -> list[str]:
    """Labels as the names of their classes."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    found: list[str] = pc.cast(column, pa.string()).to_pylist()
    return found
