"""Diversity by prototypes: what lies closest to the centre of its cluster says least."""

from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from tamis.selectors.budgets import one_budget
from tamis.selectors.clusters import Clusters, clusters_of, draws_of, kmeans
from tamis.selectors.inner_products import Float64s
from tamis.selectors.selector import Selector
from tamis.selectors.semantic_duplicates import kept_rows, published, with_kept_partners
from tamis.selectors.semdedup import duplicate_drops
from tamis.selectors.table import Table
from tamis.selectors.vectors import vectors_of
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops

SEMANTIC_DUPLICATE, PROTOTYPICAL = "semantic_duplicate", "prototypical"


def most_prototypical(clusters: Clusters, count: int) -> tuple[Int64s, float]:
    """The rows most similar to their centroids, and the similarity of the first one left.

    Of rows that are equally similar those of smaller row_id stay.

    Returns:
        Rows in canonical order, ascending, and the highest similarity of a row that stays (nan
        where none does).
    """
    rows = len(clusters.similarity)
    order = np.lexsort((-np.arange(rows), -clusters.similarity))
    left = order[count:]
    return np.sort(order[:count]), float(clusters.similarity[left[0]]) if len(left) else np.nan


class PrototypePruning(Selector):
    """Keep the rows least like the centroid of their cluster.

    Rows are clustered by spherical k-means. Those most similar to their centroid, the prototypes,
    are dropped until the share or the number of rows is reached; ties by row_id. Vectors of zeros
    have a similarity of 0 and stay longest.
    """

    operator: Literal["prototype_pruning"] = "prototype_pruning"
    embedding: str = Field(
        default="embedding",
        description="vectors: a signal of an earlier stage or a column of the corpus",
    )
    fraction: float | None = Field(default=None, ge=0, le=1, description="share to keep")
    rows: int | None = Field(default=None, ge=0, description="rows to keep")
    k: int | None = Field(
        default=None, ge=1, description="clusters; the square root of the number of rows"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the clustering")

    version: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "Sorscher et al. 2022, Beyond neural scaling laws: beating power law scaling via data "
        "pruning (self-supervised prototypes); Tirumala et al. 2023, D4"
    )

    _one_budget = model_validator(mode="after")(one_budget)

    def reads(self) -> set[str]:
        return {self.embedding}

    def vectors(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        return 2 * rows

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 100

    def select(self, table: Table) -> Drops:
        vectors = vectors_of(table, self.embedding)
        clusters = clusters_of(table, vectors, self.k, seed=self.seed)
        keep = kept_rows(len(table), self.fraction or 0.0) if self.rows is None else self.rows
        lost, threshold = most_prototypical(clusters, max(0, len(table) - keep))
        lost = lost[np.argsort(vectors.rows[lost])]
        return Drops.of(
            vectors.rows[lost],
            "",
            value=clusters.similarity[lost],
            threshold=threshold,
            report=_cluster_report(clusters),
        )


class D4(Selector):
    """Keep a share of the rows that is free of semantic duplicates and diverse.

    SemDeDup as published first keeps `dedup_fraction` of the rows. What is left is clustered
    again, because clusters made by duplicates distort the centroids, and the most prototypical
    rows are dropped until `fraction` of all rows is left. A duplicate whose partner is dropped
    then names the nearest row of its first cluster that stays, if there is one.
    """

    operator: Literal["d4"] = "d4"
    embedding: str = Field(
        default="embedding",
        description="vectors: a signal of an earlier stage or a column of the corpus",
    )
    fraction: float = Field(gt=0, le=1, description="share of all rows to keep (R)")
    dedup_fraction: float = Field(
        default=0.75, gt=0, le=1, description="share that SemDeDup keeps first (R_dedup)"
    )
    k: int | None = Field(
        default=None,
        ge=1,
        description="clusters, both times; the square root of the rows that are clustered",
    )
    probes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="nearest clusters that a row is compared with; 1 as in the paper",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the clusterings")

    version: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "Tirumala et al. 2023, D4: improving LLM pretraining via document de-duplication and "
        "diversification (R_dedup .75)"
    )

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.fraction > self.dedup_fraction:
            raise ValueError("fraction lies above dedup_fraction: there is nothing left to prune")
        return self

    def reads(self) -> set[str]:
        return {self.embedding}

    def vectors(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        return 3 * rows

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 300

    def select(self, table: Table) -> Drops:
        vectors = vectors_of(table, self.embedding)
        draw = draws_of(table, vectors, self.seed)
        clusters = kmeans(
            vectors.matrix, self.k, draw=draw, probes=self.probes, workers=table.workers
        )
        found = published(
            vectors.matrix,
            clusters,
            fraction=self.dedup_fraction,
            workers=table.workers,
            progress=lambda done, of: table.progress("rows compared", done, of),
            folder=table.spill_folder,
        )
        left = np.flatnonzero(found.kept)
        again = kmeans(vectors.matrix[left], self.k, draw=draw[left], workers=table.workers)
        keep = kept_rows(len(table), self.fraction)
        pruned, threshold = most_prototypical(again, max(0, len(left) - keep))
        kept = found.kept.copy()
        kept[left[pruned]] = False
        found = with_kept_partners(found, vectors.matrix, clusters, kept, table.workers)
        return _joined(
            duplicate_drops(found, vectors),
            Drops.of(
                vectors.rows[left[pruned]],
                "",
                value=again.similarity[pruned],
                threshold=threshold,
                report=_cluster_report(again),
            ),
        )


def _joined(duplicates: Drops, prototypes: Drops) -> Drops:
    """Both parts of D4 under their own reasons, rows ascending."""
    rows = np.concatenate([duplicates.rows, prototypes.rows])
    order = np.argsort(rows)

    def both(a: Float64s, b: Float64s) -> Float64s:
        return np.concatenate([a, b])[order]

    return Drops(
        rows=rows[order],
        reasons=[SEMANTIC_DUPLICATE, PROTOTYPICAL],
        reason=(order >= len(duplicates.rows)).astype(np.int32),
        value=both(duplicates.value, prototypes.value),
        threshold=both(duplicates.threshold, prototypes.threshold),
        partner=np.concatenate([duplicates.partner, prototypes.partner])[order],
        similarity=both(duplicates.similarity, prototypes.similarity),
        report={SEMANTIC_DUPLICATE: duplicates.report, PROTOTYPICAL: prototypes.report},
        edges=duplicates.edges,
    )


def _cluster_report(clusters: Clusters) -> dict[str, int]:
    sizes = np.bincount(clusters.assignment, minlength=1)
    return {
        "clusters": len(clusters),
        "largest_cluster": int(sizes.max()),
        "iterations": clusters.iterations,
    }
