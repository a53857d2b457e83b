"""Corpora of made-up vectors, and what a stage makes of them.

k-means begins with random rows and may stay with two centres in one group. Tests whose clusters are
the planted groups name a seed with which they are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

import tamis
from tamis.storage.catalog import query
from tests.selectors.test_nearest import unit_rows


def blobs(sizes: list[int], width: int = 16, spread: float = 0.1, seed: int = 0) -> pa.Table:
    """Rows ``r0``, ``r1``, … around as many directions as there are sizes, in mixed order.

    Columns: id, text, blob (which direction), vector.
    """
    blob = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = unit_rows(len(sizes), width, 99)[blob]
    return table_of(vectors + spread * unit_rows(len(blob), width, seed + 1), blob=blob)


def table_of(vectors: npt.NDArray[Any], **columns: Any) -> pa.Table:
    """A corpus of these vectors with further columns."""
    kind = pa.list_(pa.float32(), vectors.shape[1])
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    names = [f"r{i}" for i in range(len(vectors))]
    return pa.table(
        {
            "id": pa.array(names, pa.string()),
            "text": pa.array([f"text {name}" for name in names], pa.string()),
            **columns,
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]).cast(kind),
        }
    )


@dataclass(frozen=True)
class Ran:
    """What a run left.

    Attributes:
        rows: the dataset, with scores, by id.
        decisions: of every row, with its id, by id.
        report: what the manifest says of the stage.
    """

    rows: pl.DataFrame
    decisions: pl.DataFrame
    report: dict[str, Any]

    @property
    def kept(self) -> set[str]:
        return set(self.rows["id"])


def run(folder: Path, table: pa.Table, *stages: dict[str, Any], add: Any = (), **more: Any) -> Ran:
    """Run stages on a table; later ones see what the first leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    rows_per_group = more.pop("rows_per_group", 50)
    roles = {"text": "text", "id": "id", **more.pop("roles", {})}
    pq.write_table(table, folder / "in.parquet", row_group_size=rows_per_group)
    result = tamis.run(
        {
            "corpus": {
                "path": str(folder / "in.parquet"),
                "roles": roles,
                "shard_bytes": 1,
            },
            "stages": list(stages),
            "output": {"path": str(folder / "out"), "add": list(add)},
            **more,
        }
    )
    files = sorted((folder / "out").glob("*.parquet"))
    rows = pl.concat([pl.read_parquet(f) for f in files]) if files else pl.DataFrame({"id": []})
    _, ids = query(result.workspace, "SELECT row_id, id FROM rows")
    names = {(int(i[:16], 16), int(i[16:], 16)): name for i, name in ids}
    decisions = result.decisions.drop("shard", "row").collect()
    name = [names[pair] for pair in decisions.select("id_hi", "id_lo").iter_rows()]
    decisions = decisions.with_columns(id=pl.Series(name, dtype=pl.String)).sort("id")
    return Ran(rows.sort("id"), decisions, result.manifest["stages"][0])


def shuffled(table: pa.Table, seed: int = 0) -> pa.Table:
    """The same rows in another order."""
    return table.take(np.random.default_rng(seed).permutation(len(table)))
