"""Rows that stand for others: those nearest to the centres of clusters, as many from each."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from tamis.selectors.budgets import Budget, one_budget, wanted
from tamis.selectors.clusters import draws_of, kmeans
from tamis.selectors.inner_products import Float32s, Float64s, similarities
from tamis.selectors.shares import members_of, places_within
from tamis.selectors.table import Table
from tamis.selectors.vectors import vectors_of
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops


class RepresentativeSample(Budget):
    """Keep the rows nearest to the centres of clusters, the same number from every cluster.

    Each group is cut into clusters by k-means on the vectors; then every cluster gives its row
    nearest to the centre, then its second, and so on until the budget is full. Equally deep rows
    are taken by cosine to their centre, then by row_id. A cluster with too few rows gives all, and
    the others make up for it. The partner of a dropped row is the row of its cluster nearest to
    the centre, where that row stays.

    The paper matches gradients on such samples and clusters anew as training goes on; here they
    are drawn once. Its number of clusters is not confirmed.
    """

    operator: Literal["representative_sample"] = "representative_sample"
    rows: int | None = Field(default=None, ge=0, description="rows to keep (in each group)")
    fraction: float | None = Field(default=None, ge=0, le=1, description="share to keep")
    k: int | None = Field(
        default=None, ge=1, description="clusters of each group; the square root of its rows"
    )
    embedding: str = Field(
        default="embedding", description="vectors: a signal of an earlier stage, or a column"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the first centres")

    version: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "Liu et al. 2023, DREAM: efficient dataset distillation by representative matching "
        "(sub-clusters of every class, samples at their centres, evenly)"
    )

    _one_budget = model_validator(mode="after")(one_budget)

    def reads(self) -> set[str]:
        return super().reads() | {self.embedding}

    def vectors(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        return 3 * rows

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 200

    def select(self, table: Table) -> Drops:
        found = vectors_of(table, self.embedding)
        rows = found.rows
        draw = draws_of(table, found, self.seed)
        value, threshold = np.empty(len(rows)), np.empty(len(rows))
        kept = np.zeros(len(rows), np.bool_)
        partner = np.full(len(rows), -1, np.int64)
        clusters = empty = 0
        for mine in members_of(self.groups(table)[rows]):
            cluster, near = self._clusters(found.matrix[mine], draw[mine], table.workers)
            budget = wanted(len(mine), self.rows, self.fraction)
            taken, centre, last = _evenly(cluster, near, budget)
            value[mine], threshold[mine], kept[mine] = near, last, taken
            partner[mine] = np.where(taken[centre], mine[centre], -1)
            clusters += int(cluster.max()) + 1
            empty += len(np.setdiff1d(cluster, cluster[taken]))
        lost = np.flatnonzero(~kept)
        lost = lost[np.argsort(rows[lost])]
        shown = partner[lost] >= 0
        similarity = np.full(len(lost), np.nan)
        similarity[shown] = similarities(
            found.matrix, lost[shown], partner[lost][shown], table.workers
        )
        return Drops.of(
            rows[lost],
            "",
            value=value[lost],
            threshold=threshold[lost],
            partner=np.where(shown, rows[partner[lost]], -1),
            similarity=similarity,
            report={"clusters": clusters, "clusters_without_a_row_kept": empty},
        )

    def _clusters(self, matrix: Float32s, draw: Float64s, workers: int) -> tuple[Int64s, Float64s]:
        """Each row's cluster, and its cosine to the centre."""
        found = kmeans(matrix, self.k, draw=draw, workers=workers)
        return found.assignment.astype(np.int64), found.similarity


def _evenly(
    cluster: Int64s, near: Float64s, budget: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], Int64s, Float64s]:
    """Take rows from the clusters in turn, the nearest to the centre first.

    Returns:
        Which rows are taken; for every row the nearest of its cluster; and how near the last one
        taken of its cluster is (nan where none is).
    """
    place = places_within(cluster, np.argsort(-near, kind="stable"))
    order = np.lexsort((np.arange(len(near)), -near, place))
    taken = np.zeros(len(near), np.bool_)
    taken[order[:budget]] = True
    first = np.empty(int(cluster.max()) + 1, np.int64)
    first[cluster[place == 0]] = np.flatnonzero(place == 0)
    last = np.full(len(first), np.nan)
    deepest = order[:budget]  # later entries of a cluster overwrite earlier ones
    last[cluster[deepest]] = near[deepest]
    return taken, first[cluster], last[cluster]
