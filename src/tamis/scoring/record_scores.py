"""Scores of rows straight from a folder of training records, without a corpus."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

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
from tamis.storage.epochs import Block, map_blocks
from tamis.storage.errors import UserError
from tamis.storage.kernels import KERNEL

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

    def add(self, other: "Account") -> None:
        """Count what another account of later rows has counted."""
        for name in ("rows", "updates", "incomplete", "unknown", "thresholds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_incomplete += other.first_incomplete[: NAMED - len(self.first_incomplete)]
        self.first_unknown += other.first_unknown[: NAMED - len(self.first_unknown)]

    def name(self, block: Block, dynamics: Dynamics, expected: Bools) -> None:
        """Name the first rows of a block with something missing."""
        seen = block.updates > 0
        unknown = seen & np.isnan(block.columns["margin"])
        named = (self.first_incomplete, ~seen & expected), (self.first_unknown, unknown)
        for first, which in named:
            for row in np.flatnonzero(which.any(axis=1))[:NAMED].tolist():
                run, epoch = divmod(int(which[row].argmax()), dynamics.epochs)
                first.append((block.row_id[row].as_py(), run, dynamics.first + epoch))


@njit(**KERNEL)
def _survey(updates, margin, expected, total, epochs):  # type: ignore[no-untyped-def]
    """Updates and epochs of rows; how many lack an expected epoch, and the unknown records."""
    incomplete, unknown = 0, 0
    for row in range(updates.shape[0]):
        lacks = False
        total[row] = epochs[row] = 0
        for t in range(updates.shape[1]):
            seen = updates[row, t] > 0
            total[row] += updates[row, t]
            epochs[row] += seen
            lacks |= expected[t] and not seen
            unknown += seen and np.isnan(margin[row, t])
        incomplete += lacks
    return incomplete, unknown


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
        UserError: for an unknown score, and as `map_blocks`.
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
    expected = np.ones(dynamics.runs * dynamics.epochs, np.bool_)
    for run, epoch in dynamics.missing():
        expected[run * dynamics.epochs + epoch - dynamics.first] = False
    work = partial(_scored, dynamics, scores, schema, expected)
    for batch, counted in map_blocks(dynamics, columns, work, workers=workers):
        account.add(counted)
        yield batch


def _scored(
    dynamics: Dynamics, scores: Sequence[str], schema: pa.Schema, expected: Bools, block: Block
) -> tuple[pa.RecordBatch, Account]:
    """Scores of a block, and what its records lack."""
    width = dynamics.epochs
    rows = len(block.updates)
    total, epochs = np.empty(rows, np.int64), np.empty(rows, np.int32)
    lacking = _survey(block.updates, block.columns["margin"], expected, total, epochs)
    account = Account(rows, int(total.sum()), *lacking)
    if any(lacking):
        account.name(block, dynamics, expected)
    by_run: dict[str, list[Float64s]] = {name: [] for name in scores}
    counted = []
    for run in range(dynamics.runs):
        of_run = slice(run * width, (run + 1) * width)
        updates = block.updates[:, of_run]
        matrices = {name: matrix[:, of_run] for name, matrix in block.columns.items()}
        # A row of a single run is there: none is without records.
        seen = np.ones(rows, np.bool_) if dynamics.runs == 1 else (updates > 0).any(axis=1)
        if "threshold" in matrices:
            seen = seen & ~(matrices["threshold"] > 0).any(axis=1)
        counted.append(seen)
        for name, values in _of_run(matrices, updates, scores).items():
            by_run[name].append(values)
    ordinary = np.stack(counted, axis=1)
    account.thresholds = int((~ordinary.any(axis=1)).sum())
    means = [
        values[0] if len(values) == 1 and not account.thresholds else _mean(values, ordinary)
        for values in by_run.values()
    ]
    found = [pa.array(values, from_pandas=True) for values in means]
    ids = block.row_id.cast(schema.field("row_id").type)
    arrays = [ids, *found, pa.array(total), pa.array(epochs)]
    return pa.record_batch(arrays, schema=schema), account


def _mean(by_run: list[Float64s], ordinary: Bools) -> Float64s:
    return mean_over_runs(np.stack(by_run, axis=1), ordinary)


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
