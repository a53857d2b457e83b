"""Subclasses: large classes cut into parts of the size of the small ones."""

from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from tamis.selectors.balanced import balanced_clusters
from tamis.selectors.budgets import group_numbers
from tamis.selectors.shares import members_of
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.selectors.vectors import vectors_of


class SubclassBalanced(TableScorer):
    """Cut every class into subclasses of similar size by balanced k-means on the vectors.

    A class of n rows becomes ceil(n / size) subclasses whose sizes differ by one at most, so the
    many rows of a large class do not drown its rare kinds nor the small classes. To keep equally
    many rows of each, follow with ``- {operator: sample, rows: 10, per: subclass}``; to weigh
    rows instead, use ``subclass_weight``.

    The time grows with rows x subclasses of the largest class.
    """

    operator: Literal["subclass_balanced"] = "subclass_balanced"
    label: str = Field(description="column with the classes; a null is a class of its own")
    size: int | None = Field(
        default=None,
        ge=1,
        description="rows a subclass holds at most; those of the smallest class if not given",
    )
    least: int = Field(
        default=10,
        ge=1,
        description="smallest size taken from the smallest class (unconfirmed)",
    )
    embedding: str = Field(
        default="embedding", description="vectors: a signal of an earlier stage, or a column"
    )
    iterations: int = Field(default=100, ge=1, description="rounds of k-means at most")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the first centres")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Hou et al. 2023, Subclass-balancing contrastive learning for long-tailed recognition"
    )

    def reads(self) -> set[str]:
        return {self.label, self.embedding}

    def groups_by(self) -> set[str]:
        return {self.label}

    def vectors(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        return 4 * rows

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 200

    def fields(self) -> pa.Schema:
        """``subclass`` (int32, counted through all classes) and ``subclass_weight`` (float64):
        rows over subclasses over rows of this one, so that every subclass weighs the same and
        the mean is 1.
        """
        return pa.schema(
            [
                pa.field("subclass", pa.int32(), nullable=False),
                pa.field("subclass_weight", pa.float64(), nullable=False),
            ]
        )

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        if not len(table):
            return
        found = vectors_of(table, self.embedding)
        # Classes are counted in the order of their first rows, which is that of the row_ids.
        classes = members_of(group_numbers(table, self.label)[found.rows])
        size = self.size or max(min(map(len, classes)), self.least)
        subclass = np.empty(len(table), np.int64)
        count = 0
        for mine in classes:
            parts = -(-len(mine) // size)
            cut = balanced_clusters(
                found.matrix[mine],
                parts,
                seed=self.seed,
                iterations=self.iterations,
                workers=table.workers,
            )
            subclass[found.rows[mine]] = count + cut.cluster
            count += parts
        weight = len(table) / count / np.bincount(subclass)
        columns = [pa.array(subclass.astype(np.int32)), pa.array(weight[subclass])]
        yield pa.record_batch(columns, schema=self.fields())
