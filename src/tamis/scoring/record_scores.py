"""Scores of rows straight from a folder of training records, without a corpus."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.scoring.training_dynamics import (
    Float64s,
    Matrix,
    area_under_margin,
    data_map,
    forgetting,
    last_value,
    mean_over_epochs,
    mean_over_runs,
)
from tamis.storage.dynamics import Dynamics
from tamis.storage.epochs import Block, read_blocks
from tamis.storage.errors import UserError
from tamis.storage.kernels import in_threads

#: Scores, and the columns of records that each reads beside the margin.
SCORES: dict[str, tuple[str, ...]] = {
    "aum": (),
    "confidence": ("label_prob", "correct"),
    "variability": ("label_prob", "correct"),
    "correctness": ("label_prob", "correct"),
    "forgetting": ("correct",),
    "el2n": ("el2n",),
    "loss": ("loss",),
    "last_loss": ("loss",),
}
#: How many rows an account names.
NAMED = 5
#: Rows whose scores are computed at a time by one thread.
_ROWS = 1 << 14

Bools = npt.NDArray[np.bool_]


@dataclass
class Account:
    """What records lacked, counted while they are read.

    Attributes:
        rows: distinct row_ids.
        updates: records.
        incomplete: rows that an epoch with records does not have.
        unknown: records whose margin is not finite; their rows have no scores.
        thresholds: rows that were threshold samples in every run that has them; no scores.
        first_incomplete, first_unknown: row_id, run and epoch of the first few.
    """

    rows: int = 0
    updates: int = 0
    incomplete: int = 0
    unknown: int = 0
    thresholds: int = 0
    first_incomplete: list[tuple[Any, int, int]] = field(default_factory=list)
    first_unknown: list[tuple[Any, int, int]] = field(default_factory=list)

    def add(self, block: Block, dynamics: Dynamics) -> None:
        """Count what a block lacks."""
        self.rows += len(block.updates)
        self.updates += int(block.updates.sum())
        seen = block.updates > 0
        unknown = seen & np.isnan(block.columns["margin"])
        if unknown.any():
            self.unknown += int(unknown.sum())
            _name(self.first_unknown, unknown, block, dynamics)
        absent = ~seen
        epochs = dynamics.epochs
        absent[:, [run * epochs + e - dynamics.first for run, e in dynamics.missing()]] = False
        if absent.any():
            self.incomplete += int(absent.any(axis=1).sum())
            _name(self.first_incomplete, absent, block, dynamics)


def _name(
    named: list[tuple[Any, int, int]], which: Bools, block: Block, dynamics: Dynamics
) -> None:
    rows = np.flatnonzero(which.any(axis=1))[: NAMED - len(named)]
    for row in rows.tolist():
        run, epoch = divmod(int(which[row].argmax()), dynamics.epochs)
        named.append((block.row_id[row].as_py(), run, dynamics.first + epoch))


def score_fields(dynamics: Dynamics, scores: Sequence[str] = tuple(SCORES)) -> pa.Schema:
    """``row_id``, the scores (float64, null where there is none), ``updates`` and ``epochs``."""
    return pa.schema(
        [
            pa.field("row_id", pa.string() if dynamics.text_ids else pa.int64(), nullable=False),
            *(pa.field(name, pa.float64()) for name in scores),
            pa.field("updates", pa.int64(), nullable=False),
            pa.field("epochs", pa.int32(), nullable=False),
        ]
    )


def score_records(
    dynamics: Dynamics, account: Account, workers: int, scores: Sequence[str] = tuple(SCORES)
) -> Iterator[pa.RecordBatch]:
    """Scores of every row by ascending row_id, as `score_fields` says; each row once.

    A score is computed within a run, and is the mean over the runs that have the row as an ordinary
    one. ``updates`` and ``epochs`` are those of all runs. A row with a record whose margin is not
    finite has no scores.

    Args:
        account: counts what the records lack.

    Raises:
        UserError: for an unknown score, and as `read_blocks`.
    """
    unknown = [name for name in scores if name not in SCORES]
    if unknown:
        raise UserError(
            f"no score {unknown[0]!r} of training records", mend=f"there are {', '.join(SCORES)}"
        )
    columns = list(dict.fromkeys(column for name in scores for column in SCORES[name]))
    if dynamics.thresholds:
        columns.append("threshold")
    schema = score_fields(dynamics, scores)
    for block in read_blocks(dynamics, columns, workers=workers):
        account.add(block, dynamics)
        begins = range(0, len(block.updates), _ROWS)
        parts = in_threads(partial(_scored, block, dynamics, scores), begins, workers)
        ids = block.row_id.cast(schema.field("row_id").type)
        account.thresholds += sum(part.pop("thresholds") for part in parts)
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        seen = block.updates.sum(axis=1, dtype=np.int64), (block.updates > 0).sum(axis=1)
        arrays = [pa.array(found[name], from_pandas=True) for name in scores]
        counts = [pa.array(seen[0]), pa.array(seen[1].astype(np.int32))]
        yield pa.record_batch([ids, *arrays, *counts], schema=schema)


def _scored(block: Block, dynamics: Dynamics, scores: Sequence[str], begin: int) -> dict[str, Any]:
    """Scores of some rows of a block, nan where there are none."""
    here = slice(begin, begin + _ROWS)
    epochs = dynamics.epochs
    by_run: dict[str, list[Float64s]] = {name: [] for name in scores}
    counted = []
    present = np.zeros(len(block.updates[here]), np.bool_)
    for run in range(dynamics.runs):
        of_run = here, slice(run * epochs, (run + 1) * epochs)
        updates = block.updates[of_run]
        matrices = {name: matrix[of_run] for name, matrix in block.columns.items()}
        seen = (updates > 0).any(axis=1)
        present |= seen
        if "threshold" in matrices:
            seen = seen & ~(matrices["threshold"] > 0).any(axis=1)
        counted.append(seen)
        for name, values in _of_run(matrices, updates, scores).items():
            by_run[name].append(values)
    ordinary = np.stack(counted, axis=1)
    found: dict[str, Any] = {
        name: mean_over_runs(np.stack(values, axis=1), ordinary) for name, values in by_run.items()
    }
    return {**found, "thresholds": int((present & ~ordinary.any(axis=1)).sum())}


def _of_run(
    matrices: dict[str, Matrix], updates: Matrix, scores: Sequence[str]
) -> dict[str, Float64s]:
    found: dict[str, Float64s] = {}
    if "aum" in scores:
        found["aum"] = area_under_margin(matrices["margin"], updates)
    if {"confidence", "variability", "correctness"} & set(scores):
        found |= data_map(matrices["label_prob"], matrices["correct"], updates)._asdict()
    if "forgetting" in scores:
        found["forgetting"] = forgetting(matrices["correct"], updates)
    if "el2n" in scores:
        found["el2n"] = mean_over_epochs(matrices["el2n"], updates)
    if "loss" in scores:
        found["loss"] = mean_over_epochs(matrices["loss"], updates)
    if "last_loss" in scores:
        found["last_loss"] = last_value(matrices["loss"], updates)
    return {name: found[name] for name in scores}
