"""Clustered importance sampling: a corpus drawn so that its clusters look like a target set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from tamis.selectors.budgets import draws, one_budget, wanted
from tamis.selectors.clusters import clusters_of, nearest_centroids
from tamis.selectors.inner_products import Float64s
from tamis.selectors.selector import Selector
from tamis.selectors.shares import places_within, turns
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import Scores, TableScorer
from tamis.selectors.towards_target import TowardsTarget
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops


@dataclass(frozen=True)
class _Weighed:
    """Clusters of a table's rows, and what they weigh.

    Attributes:
        cluster: int64, of every row of the table.
        weight: float64 ``(k,)``, share in the target over share in the corpus.
        target: float64 ``(k,)``, share in the target, after smoothing; sums to 1.
    """

    cluster: Int64s
    weight: Float64s
    target: Float64s
    report: dict[str, Any]


class _Clustered(TowardsTarget):
    """Clusters the corpus and weighs each cluster by its share in a target set.

    The weight of a cluster is w(c) = p_target(c) / p_corpus(c), where p_target is the histogram of
    the target's rows over the nearest centres of the corpus, mixed with p_corpus by `smoothing`.
    """

    k: int | None = Field(
        default=None, ge=1, description="clusters of the corpus; the square root of its rows"
    )
    smoothing: float = Field(
        default=0.0, ge=0, le=1, description="share of the corpus's own histogram in the target's"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of first centres and draws")

    paper: ClassVar[str] = (
        "Grangier et al. 2024, Specialized language models with cheap inference from limited "
        "domain data; Grangier et al. 2024, Task-adaptive pretrained language models via "
        "clustered-importance sampling (CRISP, arXiv 2410.03735)"
    )

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 200 + 60 * self.target.rows

    def weigh(self, table: Table) -> _Weighed:
        """Clusters of the table's rows (at least one), and their weights."""
        sides = self.sides(table)
        mine, theirs = sides.mine, sides.theirs.matrix
        found = clusters_of(table, mine, self.k, seed=self.seed)
        used, assignment, size = np.unique(
            found.assignment, return_inverse=True, return_counts=True
        )
        place, near = nearest_centroids(theirs, found.centroids[used], 1, table.workers)
        hits = np.bincount(place[:, 0], minlength=len(used))
        corpus = size / size.sum()
        target = (1 - self.smoothing) * hits / hits.sum() + self.smoothing * corpus
        weight = target / corpus
        cluster = np.empty(len(table), np.int64)
        cluster[mine.rows] = assignment
        outermost = np.full(len(used), np.inf)
        np.minimum.at(outermost, assignment, found.similarity)
        report = {
            "clusters": len(used),
            "clusters_of_the_target": int((hits > 0).sum()),
            # Farther from their centre than every row of the corpus there: what it lacks.
            "target_rows_outside": int((near[:, 0] < outermost[place[:, 0]]).sum()),
            **self.told(sides, weight[assignment]),
        }
        return _Weighed(cluster, weight, target, report)


class ImportanceSample(Selector, _Clustered):
    """Keep rows so that their clusters have the shares of a target set.

    Within a cluster rows are drawn by a hash of their row_id, each once at most. Clusters take
    turns in proportion to their shares in the target (`shares.turns`), so each has its share as
    nearly as whole rows allow; one that runs out leaves its part to the others. A larger budget
    contains a smaller one.

    The paper draws with replacement, which gives the same shares on average and may repeat a row.
    Rows of clusters that the target does not touch are never kept: ``outside_target``.
    """

    operator: Literal["importance_sample"] = "importance_sample"
    rows: int | None = Field(default=None, ge=0, description="rows to keep")
    fraction: float | None = Field(default=None, ge=0, le=1, description="share to keep")

    version: ClassVar[int] = 2
    paper: ClassVar[str] = _Clustered.paper

    _one_budget = model_validator(mode="after")(one_budget)

    def select(self, table: Table) -> Drops:
        if not len(table):
            return Drops.of(np.zeros(0, np.int64), "")
        found = self.weigh(table)
        ids = (table.copy, table.id_lo, table.id_hi)
        # Other draws than those that k-means began with.
        draw = draws(table.id_hi, table.id_lo, table.copy, self.seed + 2**32)
        place = places_within(found.cluster, np.lexsort((*ids, draw)))
        turn = turns(place, found.target[found.cluster])
        order = np.lexsort((*ids, draw, turn))
        reachable = np.isfinite(turn)
        budget = min(wanted(len(table), self.rows, self.fraction), int(reachable.sum()))
        kept = np.zeros(len(table), np.bool_)
        kept[order[:budget]] = True
        lost = np.flatnonzero(~kept)
        share = np.bincount(found.cluster[kept], minlength=len(found.target)) / max(budget, 1)
        drops = Drops.of(
            lost,
            "",
            value=found.weight[found.cluster[lost]],
            report={
                **found.report,
                "rows_within_reach": int(reachable.sum()),
                # Half the sum of differences between two histograms; 0 is the target itself.
                "distance_to_target": float(np.abs(share - found.target).sum() / 2),
            },
        )
        drops.reasons = ["", "outside_target"]
        drops.reason = (~reachable[lost]).astype(np.int32)
        return drops


class ImportanceWeight(TableScorer, _Clustered):
    """The importance weight of every row, for trainers that weigh or sample rows themselves.

    Rows drawn in proportion to their weights have the target's shares of clusters; the mean of the
    weights is 1.
    """

    operator: Literal["importance_weight"] = "importance_weight"

    version: ClassVar[int] = 2
    paper: ClassVar[str] = _Clustered.paper

    def fields(self) -> pa.Schema:
        """``importance_weight`` (float64, at least 0) and ``importance_cluster`` (int32)."""
        return pa.schema(
            [
                pa.field("importance_weight", pa.float64(), nullable=False),
                pa.field("importance_cluster", pa.int32(), nullable=False),
            ]
        )

    def evaluate(self, table: Table) -> Scores:
        if not len(table):
            return Scores((), {})
        found = self.weigh(table)

        def batches() -> Iterator[pa.RecordBatch]:
            for begin in range(0, len(table), BATCH_ROWS):
                cluster = found.cluster[begin : begin + BATCH_ROWS]
                columns = [pa.array(found.weight[cluster]), pa.array(cluster.astype(np.int32))]
                yield pa.record_batch(columns, schema=self.fields())

        return Scores(batches(), found.report)
