"""Semantic duplicate removal: of rows with nearly the same embedding one stays."""

from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from tamis.selectors.clusters import clusters_of
from tamis.selectors.duplicates import Ranking
from tamis.selectors.ranks import LONGEST, RankedSelector
from tamis.selectors.semantic_duplicates import (
    EDGE_MARGIN,
    FIRST_STARS,
    SemanticDuplicates,
    greedy,
    published,
    search_effort,
)
from tamis.selectors.survivors import EDGES_PER_ROW
from tamis.selectors.table import Table
from tamis.selectors.vector_certificate import certify_vectors
from tamis.selectors.vectors import Vectors, vectors_of
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops, Float64s


class SemDedup(RankedSelector):
    """Keep one of the rows whose embeddings are nearly the same.

    Rows are clustered by spherical k-means; a row is compared with the rows of the clusters
    nearest to it. With `greedy`, a row is dropped if a better-ranked row that stays is at least
    `threshold` similar: as `near_dedup`, by cosine similarity. Without, as SemDeDup was published:
    rows are ordered from the least like their centroid to the most, and dropped if any row before
    them is that similar, even one that is itself dropped.
    """

    operator: Literal["semdedup"] = "semdedup"
    embedding: str = Field(
        default="embedding",
        description="vectors: a signal of an earlier stage or a column of the corpus",
    )
    # The default is unconfirmed: what is a duplicate depends on the embedder.
    threshold: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="cosine similarity of a duplicate (1 - epsilon in the paper); depends on the "
        "embedder, and .9 is unconfirmed",
    )
    fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share to keep; takes the place of the threshold (R_dedup) and needs "
        "`greedy: false`",
    )
    greedy: bool = Field(
        default=True, description="compare with rows that stay; false: SemDeDup as published"
    )
    k: int | None = Field(
        default=None,
        ge=1,
        description="clusters; the square root of the number of rows, but 1 (all pairs are "
        "compared) for up to 32,768 rows with `greedy`",
    )
    probes: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="nearest clusters that a row is compared with: about 4,096 rows, at least 3 "
        "clusters; with `greedy: false` 1, as in the paper",
    )
    edge_floor: float | None = Field(
        default=None, ge=-1, le=1, description="pairs are stored down to it; threshold - 0.1"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the clustering")
    certificate: int = Field(
        default=500,
        ge=0,
        description="dropped rows whose similarity is computed again, to state precision beside a "
        "sampled recall, with `greedy`; 0: no certificate. Unconfirmed",
    )

    version: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "Abbas et al. 2023, SemDeDup: data-efficient learning at web-scale through semantic "
        "deduplication; Dhillon and Modha 2001 (spherical k-means)"
    )
    roles: ClassVar[tuple[str, ...]] = ("text",)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.fraction is not None and self.greedy:
            raise ValueError("fraction needs `greedy: false`: the greedy rule has no share")
        if not self.greedy and (self.rank != LONGEST or self.rank_order != "highest"):
            raise ValueError("rank needs `greedy: true`: as published, centroids rank the rows")
        if self.edge_floor is not None and self.edge_floor > self.threshold:
            raise ValueError("edge_floor lies above the threshold")
        return self

    @property
    def floor(self) -> float:
        """Similarity down to which edges are kept."""
        return self.threshold - EDGE_MARGIN if self.edge_floor is None else self.edge_floor

    def reads(self) -> set[str]:
        return super().reads() | {self.embedding}

    def numbers(self) -> set[str]:
        return super().reads()

    def vectors(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        return 2 * rows

    def memory(self, rows: int, text_bytes: int) -> int:
        """The pairs found at worst, which are sorted once."""
        _, probes = search_effort(rows, self.k, self.probes)
        pairs = 3 * 16 * EDGES_PER_ROW + 3 * 8 * FIRST_STARS * (probes + 1) + 8 * probes
        return rows * (pairs + 200)

    def select(self, table: Table) -> Drops:
        vectors = vectors_of(table, self.embedding)
        certificate = None
        k, probes = self.k, self.probes or 1
        if self.greedy:
            k, probes = search_effort(len(table), self.k, self.probes)
        clusters = clusters_of(table, vectors, k, seed=self.seed, probes=probes)

        def progress(done: int, of: int) -> None:
            table.progress("rows compared", done, of)

        if self.greedy:
            lengths = text_lengths(table) if self.rank == LONGEST else np.zeros(0)
            ranking = self.ranking(table, lengths)
            found = greedy(
                vectors.matrix,
                clusters,
                canonical(ranking, vectors.rows),
                self.threshold,
                edge_floor=self.floor,
                workers=table.workers,
                progress=progress,
                folder=table.spill_folder,
            )
            if self.certificate:
                certificate = certify_vectors(
                    table,
                    vectors,
                    ranking,
                    found.kept,
                    found.partner,
                    found.similarity,
                    threshold=self.threshold,
                    rows=self.certificate,
                )
        else:
            found = published(
                vectors.matrix,
                clusters,
                threshold=self.threshold if self.fraction is None else None,
                fraction=self.fraction,
                edge_floor=self.floor,
                workers=table.workers,
                progress=progress,
                folder=table.spill_folder,
            )
        drops = duplicate_drops(found, vectors)
        if certificate is not None:
            drops.report["certificate"] = certificate.as_report()
        return drops


def duplicate_drops(found: SemanticDuplicates, vectors: Vectors) -> Drops:
    """Duplicates among vectors as drops among a table's rows."""
    rows = vectors.rows
    lost = np.flatnonzero(~found.kept)
    lost = lost[np.argsort(rows[lost])]
    return Drops.of(
        rows[lost],
        "",
        value=found.value[lost],
        threshold=found.threshold,
        partner=np.where(found.partner[lost] < 0, -1, rows[found.partner[lost]]),
        similarity=found.similarity[lost],
        report={**found.counts, "edges": len(found.edges)},
        edges=found.edges.among(rows),
    )


def canonical(ranking: Ranking, rows: Int64s) -> Int64s:
    """Places of `rows`, a table's rows in canonical order, from the best rank down."""
    place = np.empty(len(rows), np.int64)
    place[rows] = np.arange(len(rows))
    return place[ranking.order(rows)]


def text_lengths(table: Table) -> Float64s:
    """Characters of the text of every row of a table."""
    lengths = np.empty(len(table), np.float64)

    def measure(text: pa.Array, rows: Int64s, places: slice) -> None:
        lengths[places] = np.asarray(pc.utf8_length(text.cast(pa.large_string())))

    table.map_text("text", np.arange(len(table), dtype=np.int64), measure)
    return lengths
