"""Runs of the operators that cut text, as columns by id."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tamis
from tamis.storage.hashing import hash_columns, hex_ids

COLUMNS = ("cuts", "removed", "share", "evidence", "partner")


def run(
    folder: Path,
    texts: list[str],
    operator: str,
    *,
    ids: list[int] | None = None,
    rows_per_file: int = 3,
    workers: int = 1,
    **parameters: Any,
) -> dict[int, dict[str, Any]]:
    """What an operator makes of some texts, by id; its columns without their prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = list(range(len(texts))) if ids is None else ids
    table = pa.table({"id": pa.array(ids, pa.int64()), "text": pa.array(texts, pa.string())})
    for begin in range(0, max(1, len(texts)), rows_per_file):
        pq.write_table(table.slice(begin, rows_per_file), folder / f"{begin:06}.parquet")
    tamis.run(
        {
            "corpus": {"path": f"{folder}/*.parquet", "roles": {"text": "text", "id": "id"}},
            "stages": [{"operator": operator, **parameters}],
            "output": {"path": f"{folder}-out", "add": [f"{operator}_{c}" for c in COLUMNS]},
            "workers": workers,
        }
    )
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(Path(f"{folder}-out").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            rows[row["id"]] = {name.removeprefix(f"{operator}_"): row[name] for name in row}
    return rows


def row_ids(ids: list[int]) -> list[str]:
    """The row_id of every id."""
    return hex_ids(*hash_columns(["id"], [pa.array(ids, pa.int64())], len(ids)))


def canonical_order(count: int) -> list[int]:
    """The ids 0, 1, … in the order of their row_id."""
    order: list[int] = np.argsort(np.array(row_ids(list(range(count))))).tolist()
    return order
