"""Importance weights of rows towards a target set: kernel means, and propensities."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from tamis.scoring.kernel_mean import (
    Product,
    double_weights,
    exact_product,
    landmark_product,
    median_distance,
    noise,
)
from tamis.scoring.probes import standardise
from tamis.scoring.propensity import PENALTIES, judge
from tamis.selectors.budgets import draws
from tamis.selectors.inner_products import Float32s, Float64s, one_blas_thread
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import Scores, TableScorer
from tamis.selectors.towards_target import Sides, TowardsTarget, told_weights
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.errors import UserError
from tamis.storage.kernels import Int64s

#: Rows whose distances to one another give the bandwidth.
_PAIRED = 2000
#: Share of the target's kernel mean (squared) that a corpus matches which is not wholly unlike it.
_LEAST_MATCHED = 0.01
#: Mean weight before scaling below which there is nothing to scale.
_NOTHING = 1e-6


class _TargetWeight(TableScorer, TowardsTarget):
    """Weights of rows that are scaled to a mean of 1 over the rows of the stage."""

    seed: int = Field(default=0, ge=0, lt=2**32, description="of what is drawn by row_id")

    def held_vectors(self, rows: int) -> int:
        """As read, in order, and both sets in one."""
        return 3 * (rows + self.target.rows)

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "column": self.stage}

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        return self.evaluate(table).batches

    def evaluate(self, table: Table) -> Scores:
        """Weights of the corpus's rows, and how far they can be trusted."""
        if not len(table):
            return Scores((), {})
        sides = self.sides(table)
        both = np.concatenate([sides.mine.matrix, sides.theirs.matrix])
        draw = draws(*sides.ids(table), self.seed)
        with one_blas_thread():
            columns, report = self._weigh(both, draw, sides, table)
        columns[0] /= columns[0].mean()
        report = {**self.told(sides, columns[0]), **report}
        order = sides.mine.rows

        def batches() -> Iterator[pa.RecordBatch]:
            ordered = []
            for column in columns:
                found = np.empty_like(column)
                found[order] = column
                ordered.append(found)
            for begin in range(0, len(table), BATCH_ROWS):
                parts = [pa.array(column[begin : begin + BATCH_ROWS]) for column in ordered]
                yield pa.record_batch(parts, schema=self.fields())

        return Scores(batches(), report)

    def _weigh(
        self, both: Float32s, draw: Float64s, sides: Sides, table: Table
    ) -> tuple[list[Float64s], dict[str, Any]]:
        """The columns of the corpus's rows, weights of any scale first, and a report.

        Args:
            both: vectors of the corpus, and of the target after them; may be changed.
            draw: a random number for each.
        """
        raise NotImplementedError


class KernelMeanWeight(_TargetWeight):
    """Weights under which the corpus has the target's kernel mean (double weighting).

    Finds weights beta of the n rows and alpha of the t rows of the target that minimise the
    distance of their means in the feature space of a Gaussian kernel (MMD),
    ``|sum beta phi(x) / n - sum alpha phi(x') / t|``, where 0 <= beta <= bound / sqrt(d),
    0 <= alpha <= 1, ``|alpha - 1| <= (1 - 1 / sqrt(d)) sqrt(t)`` and
    ``|mean(beta) - mean(alpha)| <= 1 - 1 / sqrt(n)``. With d = 1 alpha is 1: plain kernel mean
    matching. With a larger d target rows that nothing in the corpus resembles are given up, and
    others to a lesser extent: the weights are then towards the rest of the target.

    The optimum comes closer to the target's rows than another sample of their kind would, and
    gives the weight to few rows for it; so the search ends before that, see `noise`.

    Up to `exact_rows` vectors of both sets the kernel is the exact one. Beyond, it is that between
    projections on `landmarks` rows, half of them the target's, with an exact diagonal; the report
    says which share of the kernel landmarks do not explain.
    """

    operator: Literal["kernel_mean_weight"] = "kernel_mean_weight"
    d: float = Field(
        default=1.0,
        ge=1,
        description="how far the target may be given up; 1: not at all, so that weights are "
        "densities of the target over those of the corpus (the authors' library MRCpy has 4)",
    )
    bound: float = Field(
        default=1000.0, gt=0, description="of a weight, times sqrt(d); at least sqrt(d)"
    )
    bandwidth: float | None = Field(
        default=None,
        gt=0,
        description="of the kernel exp(-|x - y|^2 / (2 bandwidth^2)) between vectors of length "
        "one; the median distance of 2,000 rows of both sets if not given (Gretton et al. 2012)",
    )
    landmarks: int = Field(default=1024, ge=1, description="rows that explain a large kernel")
    exact_rows: int = Field(
        default=2048, ge=0, description="vectors of both sets up to which the kernel is exact"
    )
    noise: float = Field(
        default=0.7,
        ge=0,
        description="done once the distance is down to so many times what a sample's mean is off "
        "that of its kind on average; 0 for the optimum itself, which fits that noise too (ours, "
        "see docs/row-weights.md)",
    )
    tolerance: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="or once 50 steps lower the distance by less than this share (unconfirmed)",
    )
    iterations: int = Field(default=2000, ge=1, description="steps at most (unconfirmed)")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Segovia-Martin, Mazuelas and Liu 2023, Double-weighting for covariate shift adaptation "
        "(arXiv 2305.08637); Huang et al. 2007, Correcting sample selection bias by unlabeled data"
    )

    @model_validator(mode="after")
    def _ones_are_allowed(self) -> Self:
        if self.bound < self.d**0.5:
            raise ValueError(
                f"`bound` is {self.bound:g}, expected at least {self.d**0.5:g}, the square root of "
                "`d`: less would not allow a weight of 1"
            )
        return self

    def memory(self, rows: int, text_bytes: int) -> int:
        both = rows + self.target.rows
        widest = max(min(self.exact_rows, both), min(self.landmarks, both), _PAIRED)
        features = 4 * min(self.landmarks, both) if both > self.exact_rows else 0
        return (64 << 20) + both * (300 + features) + 40 * widest**2

    def fields(self) -> pa.Schema:
        """A float64 column by the stage's name, at least 0, with a mean of 1."""
        return pa.schema([pa.field(self.stage, pa.float64(), nullable=False)])

    def _weigh(
        self, both: Float32s, draw: Float64s, sides: Sides, table: Table
    ) -> tuple[list[Float64s], dict[str, Any]]:
        t = len(sides.theirs.matrix)
        n = len(both) - t
        by_draw = np.argsort(draw, kind="stable")
        bandwidth = self.bandwidth or median_distance(both[np.sort(by_draw[:_PAIRED])])
        theirs = both[np.sort(by_draw[by_draw >= n][:_PAIRED])]
        known = noise(theirs, t, bandwidth)
        product, about = self._kernel(both, n, by_draw, bandwidth, table.workers)
        found = double_weights(
            product,
            n,
            t,
            d=self.d,
            bound=self.bound,
            enough=self.noise * known,
            tolerance=self.tolerance,
            iterations=self.iterations,
        )
        mean = float(found.beta.mean())
        if mean < _NOTHING:
            raise UserError(
                f"{self.stage}: no row of the corpus is near the target at a bandwidth of "
                f"{bandwidth:g}: all weights are 0",
                where=self.target.title,
                mend="set a larger `bandwidth`; the distance between unlike unit vectors is "
                "about 1.4",
            )
        report = {
            "bandwidth": bandwidth,
            **about,
            "distance_before": found.before,
            "distance": found.distance,
            "noise": known,
            "told_apart": bool(found.distance**2 > (1 - _LEAST_MATCHED) * found.length**2),
            "mean_before_scaling": mean,
            "target_mean_weight": float(found.alpha.mean()),
            "target_effective_sample_size": told_weights(found.alpha)["effective_sample_size"],
            "iterations": found.iterations,
            "converged": found.converged,
        }
        return [found.beta], report

    def _kernel(
        self, both: Float32s, n: int, by_draw: Int64s, bandwidth: float, workers: int
    ) -> tuple[Product, dict[str, Any]]:
        """The kernel, and what the report says of it."""
        if len(both) <= self.exact_rows:
            return exact_product(both, bandwidth), {"landmarks": None, "kernel_unexplained": 0.0}
        # Half of the landmarks from the target, more from the set that is left where one is small.
        t = len(both) - n
        count = min(self.landmarks, len(both))
        theirs = min(t, max(count // 2, count - n))
        order = by_draw >= n
        some = np.r_[by_draw[~order][: count - theirs], by_draw[order][:theirs]]
        product, left = landmark_product(both, both[np.sort(some)], bandwidth, workers)
        return product, {"landmarks": count, "kernel_unexplained": left}


class PropensityWeight(_TargetWeight):
    """Weights by a classifier that tells the target from the corpus: its odds, times n / t.

    Logistic regression with an L2 penalty on standardised vectors, fitted with each of `folds`
    (by a hash of row_id) left out in turn; a row's odds come from the classifier that has not seen
    it. Without `l2`, six penalties are tried, and that with the lowest log loss on the rows left
    out is taken. Where a set has fewer rows than folds there are as many folds as it has rows; a
    set of one row leaves none out, and the strongest penalty is taken.

    (Si 2023 trains on both sets together, and so weighs by P(target) over the target's share; the
    corpus alone needs the odds.)

    Weights above `clip` (before scaling) or above the quantile `clip_quantile` are lowered to it.
    """

    operator: Literal["propensity_weight"] = "propensity_weight"
    folds: int = Field(default=5, ge=2, le=100, description="parts that rows are judged in")
    l2: float | None = Field(
        default=None,
        gt=0,
        description="penalty l2 |w|^2 / 2 beside the summed log losses (1 / C of scikit-learn); "
        "by the log loss on rows left out if not given",
    )
    clip: float | None = Field(default=None, gt=0, description="highest weight before scaling")
    clip_quantile: float = Field(
        default=0.999, gt=0, le=1, description="quantile of the highest weight (unconfirmed)"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Si 2023, Tackling interference induced by data training loops in A/B tests: a weighted "
        "training approach (arXiv 2310.17496); Bickel et al. 2007, Discriminative learning for "
        "differing training and test distributions"
    )

    def memory(self, rows: int, text_bytes: int) -> int:
        return (256 << 20) + (rows + self.target.rows) * 300

    def fields(self) -> pa.Schema:
        """Float64 columns by the stage's name S: ``S``, the weight, at least 0, with a mean of 1;
        ``S_probability``, P(target | row) in the two sets taken together, 0 to 1."""
        names = (self.stage, f"{self.stage}_probability")
        return pa.schema([pa.field(name, pa.float64(), nullable=False) for name in names])

    def _weigh(
        self, both: Float32s, draw: Float64s, sides: Sides, table: Table
    ) -> tuple[list[Float64s], dict[str, Any]]:
        t = len(sides.theirs.matrix)
        n = len(both) - t
        wanted = np.arange(len(both)) >= n
        folds = min(self.folds, n, t)
        fold = np.empty(len(both), np.int64)
        fold[np.lexsort((draw, wanted))] = np.r_[np.arange(n) % folds, np.arange(t) % folds]
        standardise(both)
        penalties = PENALTIES if self.l2 is None else [self.l2]
        found = judge(both, wanted, fold, penalties, table.workers)
        ratio = found.log_ratio[:n]
        limit = np.quantile(ratio, self.clip_quantile, method="inverted_cdf")
        if self.clip is not None:
            limit = min(limit, np.log(self.clip))
        lowered = np.minimum(ratio, limit)
        log_mean = float(np.logaddexp.reduce(ratio) - np.log(n))
        loss = found.losses[found.l2]
        shares = np.array([n, t]) / len(both)
        report = {
            "folds": found.folds if found.folds > 1 else None,
            "l2": found.l2,
            "log_loss": loss,
            # Of the shares of the two sets alone: a classifier that is worse knows nothing.
            "log_loss_of_shares": float(-(shares * np.log(shares)).sum()),
            "auc": found.auc,
            "told_apart": bool(found.auc > 1 - 0.5 / n),
            # Of true density ratios it is 1.
            "mean_before_scaling": float(np.exp(min(log_mean, 700.0))),
            "clipped": int((ratio > limit).sum()),
        }
        # Scaled by the highest first, so that no odds are too large to add up.
        return [np.exp(lowered - lowered.max()), found.probability[:n]], report
