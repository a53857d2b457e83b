"""Scores of training records as a table, or written to a file."""

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.scoring.record_scores import SCORES, Account, score_fields, score_records
from tamis.storage.dynamics import Dynamics, find_dynamics
from tamis.storage.errors import UserError
from tamis.storage.files import whole_file

#: Batches of scores that make a row group of their file.
_GROUP_BATCHES = 32


def chosen(folder: str | Sequence[str], skip_epochs: int, until: int | None) -> Dynamics:
    """The records of a folder, or of several, without the epochs that are not wanted."""
    return find_dynamics(folder).between(skip_epochs, until)


def scores_of(
    dynamics: Dynamics,
    *,
    scores: Sequence[str] = tuple(SCORES),
    out: Path | None = None,
    workers: int | None = None,
) -> tuple[pl.DataFrame, Account]:
    """Scores of every row of the records, and what these lacked.

    Args:
        out: Parquet file for the scores, which then are not held: the table is empty.

    Raises:
        UserError: if `out` is a folder, or the records cannot be read.
    """
    if out is not None and out.is_dir():
        raise UserError(
            "expected a file for the scores, found a folder",
            where=str(out),
            mend="name a file in it, such as scores.parquet",
        )
    account = Account()
    schema = score_fields(dynamics, scores)
    batches = score_records(dynamics, account, workers or len(os.sched_getaffinity(0)), scores)
    kept: list[pa.RecordBatch] = []
    if out is None:
        kept = list(batches)
    else:
        with whole_file(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            while some := list(islice(batches, _GROUP_BATCHES)):
                writer.write_table(pa.Table.from_batches(some))
    found = pl.from_arrow(pa.Table.from_batches(kept, schema=schema))
    assert isinstance(found, pl.DataFrame)
    return found, account
