"""Scores that take the whole table to compute, such as the cluster that a row lies in."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from tamis.scoring.evaluate import Evaluated
from tamis.scoring.operator import Scorer
from tamis.selectors.selector import TableOperator
from tamis.selectors.table import Table
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.errors import RunError
from tamis.storage.files import digest_of, read_json, whole_file
from tamis.storage.kernels import Int64s
from tamis.storage.places import absolute, kind_of
from tamis.storage.sidecar import Part, is_done, sidecar_once


class Scores(NamedTuple):
    """What a table scorer gives.

    Attributes:
        batches: of any size; together they hold a row for every row of the table, in order.
        report: figures for the manifest, of JSON's types.
    """

    batches: Iterable[pa.RecordBatch]
    report: dict[str, Any]


class TableScorer(TableOperator, Scorer):
    """Sees whole columns of the rows still kept, and gives score columns for them.

    One gives `compute`, or `evaluate` where there is more to say than the columns.
    """

    kind: ClassVar[str] = "table scorer"

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        """Batches of any size that together hold a row for every row of the table, in order."""
        raise NotImplementedError

    def evaluate(self, table: Table) -> Scores:
        """What `compute` gives, and figures of it that cannot be had from the columns."""
        return Scores(self.compute(table), {})


def evaluate_table(operator: TableScorer, table: Table, step: str) -> Evaluated:
    """Compute a table scorer where its report or one of its sidecars is missing, and say where
    they lie.

    Args:
        step: key of all that decides its output.

    Raises:
        RunError: if it gives more or fewer rows than the table has.
    """
    workspace = absolute(table.workspace)
    folder = workspace / "scores" / operator.operator
    steps = [digest_of([step, shard.digest]) for shard in table.corpus.shards]
    found = Evaluated.lying_in(folder, operator, table.corpus, steps, workspace / "orders")
    places = list(zip(found.shards, found.paths, found.steps, strict=True))
    told = folder / f"report-{step[:16]}.json"
    done = all(is_done(path, shard, step) for shard, path, step in places)
    if not done or kind_of(told) is None:
        scores = operator.evaluate(table)
        with whole_file(told) as temporary:
            temporary.write_text(json.dumps(scores.report, ensure_ascii=False), "utf-8")
        rows = _Rows(scores.batches)
        for shard, path, step in places:
            inside = np.flatnonzero(table.kept[table.rows.of(shard)])
            parts = rows.take(inside)
            sidecar_once(path, shard, step, operator.fields(), partial(iter, parts))
            deque(parts, maxlen=0)  # of a sidecar that is there
        rows.end(operator.stage)
    return replace(found, report=read_json(told))


class _Rows:
    """Hands out batches that come in any size, so many rows at a time."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._left: pa.RecordBatch | None = None

    def take(self, rows: Int64s) -> Iterator[Part]:
        """The next batches, for these rows of a shard."""
        done = 0
        while done < len(rows):
            batch = self._next()
            if batch is None:
                raise RunError(f"{len(rows) - done} rows have no score: a defect of tamis")
            here = min(len(rows) - done, batch.num_rows, BATCH_ROWS)
            if here:
                yield rows[done : done + here], batch.slice(0, here)
            self._left = batch.slice(here)
            done += here

    def _next(self) -> pa.RecordBatch | None:
        if self._left is not None and self._left.num_rows:
            return self._left
        return next(self._batches, None)

    def end(self, name: str) -> None:
        """Raise if there is more."""
        batch = self._next()
        while batch is not None:
            if batch.num_rows:
                raise RunError(f"{name} gives more scores than rows: a defect of tamis")
            self._left, batch = None, next(self._batches, None)
