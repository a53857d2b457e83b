"""Whether the rows nearest to a row have its label."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numba import njit
from pydantic import Field

from tamis.selectors.labels import labels_of
from tamis.selectors.nearest import nearest_others
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.selectors.vectors import vectors_of
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.kernels import KERNEL


class LabelAgreement(TableScorer):
    """Share of the k nearest rows that have a row's label (0 to 1); low: probably a wrong label.

    Nearest by the cosine of embeddings, exactly, among all other rows; ties by row_id. A neighbour
    counts by its cosine (not below 0), or, with `weights: uniform`, as every other. The class that
    most neighbours have, or weigh for, is left as text, ties by the class that comes first. A row
    without neighbours has neither: the only row, or one whose vector is zeros.

    Every pair of rows is compared, so the time grows with the square of the rows.
    """

    operator: Literal["label_agreement"] = "label_agreement"
    embedding: str = Field(
        default="embedding", description="vectors: a signal of an earlier stage, or a column"
    )
    k: int = Field(
        default=25, ge=1, description="neighbours (25: our measurement, see docs/label-scores.md)"
    )
    weights: Literal["uniform", "similarity"] = Field(
        default="similarity", description="what a neighbour counts"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Zhu et al. 2022, Detecting corrupted labels without training a model to predict (SimiFeat)"
    )
    roles: ClassVar[tuple[str, ...]] = ("label",)

    def reads(self) -> set[str]:
        return {self.embedding}

    def vectors(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        return 2 * rows

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * (200 + 100 * (self.k + 1))

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "column": self.stage}

    def fields(self) -> pa.Schema:
        """The share by the stage's name (float64) and ``_class`` (string), both nullable."""
        return pa.schema(
            [pa.field(self.stage, pa.float64()), pa.field(f"{self.stage}_class", pa.string())]
        )

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        if not len(table):
            return
        labels = labels_of(table)
        found = vectors_of(table, self.embedding)
        near = nearest_others(found.matrix, self.k, table.workers)
        code = labels.codes[found.rows]
        uniform = self.weights == "uniform"
        share, most = np.empty(len(table)), np.empty(len(table), np.int32)
        mine, theirs = np.empty(len(table)), np.empty(len(table), np.int32)
        _votes(near.row, near.similarity, code, uniform, mine, theirs)
        share[found.rows], most[found.rows] = mine, theirs
        names = pa.array(labels.classes, pa.string())
        for begin in range(0, len(table), BATCH_ROWS):
            part = slice(begin, begin + BATCH_ROWS)
            none = most[part] < 0
            columns = [
                pa.array(share[part], pa.float64(), mask=none),
                names.take(pa.array(most[part], mask=none)),
            ]
            yield pa.record_batch(columns, schema=self.fields())


@njit(**KERNEL)
def _votes(near, similarity, code, uniform, share, most):  # type: ignore[no-untyped-def]
    """The share of every row's neighbours that have its class, and the class with most (or -1)."""
    k = near.shape[1]
    weight = np.empty(k)
    for row in range(near.shape[0]):
        count = 0
        total = 0.0
        for i in range(k):
            if near[row, i] >= 0:
                weight[i] = 1.0 if uniform else max(similarity[row, i], 0.0)
                total += weight[i]
                count += 1
        share[row] = np.nan
        most[row] = -1
        best = -1.0
        mine = 0.0
        for i in range(count):
            # Of every class that occurs among the neighbours; there are few.
            cls = code[near[row, i]]
            votes = 0.0
            for j in range(count):
                if code[near[row, j]] == cls:
                    votes += weight[j]
            if votes > best or (votes == best and cls < most[row]):
                best = votes
                most[row] = cls
            if cls == code[row]:
                mine = votes
        if total > 0.0:
            share[row] = mine / total
        else:
            most[row] = -1
