"""The cluster that every row lies in, as scores."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from tamis.selectors.clusters import clusters_of
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.selectors.vectors import vectors_of


class Cluster(TableScorer):
    """Cluster rows by their embeddings (spherical k-means).

    Numbers of clusters mean nothing by themselves: use them with ``per`` in `top` and `sample`,
    or look at them with `tamis sql`.
    """

    operator: Literal["cluster"] = "cluster"
    embedding: str = Field(
        default="embedding",
        description="vectors: a signal of an earlier stage or a column of the corpus",
    )
    k: int | None = Field(
        default=None, ge=1, description="clusters; the square root of the number of rows"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the clustering")

    version: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "Dhillon and Modha 2001, Concept decompositions for large sparse text data using "
        "clustering (spherical k-means)"
    )

    def fields(self) -> pa.Schema:
        """``cluster`` (from 0) and ``cluster_similarity``, cosine to the centroid, -1 to 1."""
        return pa.schema(
            [
                pa.field("cluster", pa.int32(), nullable=False),
                pa.field("cluster_similarity", pa.float64(), nullable=False),
            ]
        )

    def reads(self) -> set[str]:
        return {self.embedding}

    def vectors(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        return 2 * rows

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 100

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        vectors = vectors_of(table, self.embedding)
        clusters = clusters_of(table, vectors, self.k, seed=self.seed)
        assignment = np.empty(len(table), np.int32)
        similarity = np.empty(len(table), np.float64)
        assignment[vectors.rows] = clusters.assignment
        similarity[vectors.rows] = clusters.similarity
        yield pa.record_batch([pa.array(assignment), pa.array(similarity)], schema=self.fields())
