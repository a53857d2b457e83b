"""What a corpus's own losses decide: rows of high or of low loss are kept, or all are weighed.

Two opposite uses of loss go by names of their own: `high_loss` keeps what a model finds hard,
because what it knows teaches nothing; `small_loss` keeps what it finds easy, because the rest is
likely to be labelled wrong.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from tamis.selectors.budgets import NO_SCORE, Float64s, ScoreBudget, group_quantile, one_budget
from tamis.selectors.table import Table, as_floats
from tamis.selectors.table_scorer import TableScorer
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops


class HighLoss(ScoreBudget):
    """Keep the rows whose loss is at least the mean loss of the corpus, or a quantile of it.

    The first filter of multistage data filtering, which skips the backward pass of samples below a
    threshold that the losses themselves set. There it is the moving average of the last 128 losses
    of a stream. Here it must not depend on the order of rows, so it is the mean over all rows of
    the group, which such an average estimates. The second filter, a predictor that also skips the
    forward pass, is not built: here the pass is done once and kept.

    Rows whose loss is null, nan or infinite are dropped as ``no_score`` and do not count.
    """

    operator: Literal["high_loss"] = "high_loss"
    by: str = Field(default="loss", description="the loss: a score or numeric column")
    quantile: float | None = Field(
        default=None, ge=0, le=1, description="threshold as a quantile; the mean if not given"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Ouyang et al. 2022, Efficient NLP model finetuning via multistage data filtering"
    )

    def select(self, table: Table) -> Drops:
        value = self.scores(table)
        group = self.groups(table)
        groups = int(group.max(initial=0)) + 1
        canonical = np.lexsort((table.copy, table.id_lo, table.id_hi))
        rows = canonical[np.isfinite(value[canonical])]
        if self.quantile is None:
            size = np.bincount(group[rows], minlength=groups)
            # In canonical order, so that the sum does not depend on that of the rows.
            total = np.bincount(group[rows], weights=value[rows], minlength=groups)
            limits: Float64s = np.full(groups, np.nan)
            np.divide(total, size, out=limits, where=size > 0)
            # Rounding may lift the mean of equal losses above all of them.
            limits = np.minimum(limits, group_quantile(value[rows], group[rows], groups, 1.0))
        else:
            limits = group_quantile(value[rows], group[rows], groups, self.quantile)
        threshold = limits[group]
        scored = np.isfinite(value)
        lost = np.flatnonzero(~scored | (value < threshold))
        drops = Drops.of(lost, "", value=value[lost], threshold=threshold[lost])
        if self.per is None:
            drops.report = {"threshold": None if np.isnan(limits[0]) else float(limits[0])}
        drops.reasons = ["", NO_SCORE]
        drops.reason = (~scored[lost]).astype(np.int32)
        return drops


class SmallLoss(ScoreBudget):
    """Keep the rows with the lowest loss: those whose label a model finds easy; ties by row_id.

    Models fit right labels before wrong ones, so that a high loss early in training is a sign of a
    wrong label (and of a hard row, which goes as well). The opposite of `high_loss`. It may be the
    loss of training or `label_loss`, that of models which did not see the row. With `per` the
    label's column, every class keeps its share: classes hard to learn are not emptied.
    """

    operator: Literal["small_loss"] = "small_loss"
    by: str = Field(default="training_loss", description="the loss: a score or numeric column")
    rows: int | None = Field(default=None, ge=0, description="rows to keep (in each group)")
    fraction: float | None = Field(
        default=None, ge=0, le=1, description="share to keep: 1 less the share of wrong labels"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Han et al. 2018, Co-teaching: robust training of deep neural networks with extremely "
        "noisy labels (small-loss selection)"
    )

    _one_budget = model_validator(mode="after")(one_budget)

    def select(self, table: Table) -> Drops:
        return self.best(table, "lowest", self.rows, self.fraction)


Strategy = Literal["linupper", "mid", "upper", "extremes"]


def loss_weights(loss: Float64s, strategy: Strategy, lam: float) -> Float64s:
    """Weights of losses that are finite, in a fixed order; their mean is 1.

    Example:
        >>> weights = loss_weights(np.arange(5.0), "linupper", 0.4)
        >>> [round(weight, 2) for weight in weights.tolist()]
        [0.12, 0.43, 1.48, 1.48, 1.48]
    """
    if not len(loss):
        return loss
    low, high = loss.min(), loss.max()
    # Halves, because the difference of two finite numbers may be infinite.
    span = high / 2 - low / 2
    h = 2.0 * ((loss / 2 - low / 2) / span) - 1.0 if span > 0 else np.zeros(len(loss))
    merit = {
        "linupper": np.minimum(h + 1.0, 1.0),
        "mid": 1.0 - h**2,
        "upper": 0.5 * h + 0.5,
        "extremes": np.abs(h),
    }[strategy]
    weight = np.exp((merit - merit.max()) / lam)
    found: Float64s = weight * (len(loss) / weight.sum())
    return found


class DynamicLossWeight(TableScorer):
    """A weight of every row from its loss; the mean weight is 1.

    The losses are scaled to h from -1 (the lowest of the corpus) to 1 (the highest), and rows are
    weighed by exp(f(h) / lam), normalised. `linupper`: f = min(h + 1, 1), which lowers only what is
    easy, and so redundant (the paper's best, by recollection). `mid`: 1 - h^2, which lowers both
    ends. `upper`: (h + 1) / 2. `extremes`: |h|, which raises both ends.

    The paper does so within a global batch while it trains; here lowest, highest and sum are those
    of all rows. A row whose loss is null, nan or infinite has no weight (null).
    """

    operator: Literal["dynamic_loss_weight"] = "dynamic_loss_weight"
    by: str = Field(default="loss", description="the loss: a score or numeric column")
    strategy: Strategy = Field(default="linupper", description="which losses count more")
    lam: float = Field(
        default=0.4,
        gt=0,
        description="temperature, `kl_reg` in the published configurations (0.4 to 1.0); lower "
        "is sharper",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Sow et al. 2025, Dynamic loss-based sample reweighting for improved large language model "
        "pretraining"
    )

    def reads(self) -> set[str]:
        return {self.by}

    def numbers(self) -> set[str]:
        return {self.by}

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 120

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "column": self.stage}

    def fields(self) -> pa.Schema:
        """A nullable float64 column by the stage's name, above or equal to 0."""
        return pa.schema([pa.field(self.stage, pa.float64())])

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        loss = as_floats(table.column(self.by))
        canonical: Int64s = np.lexsort((table.copy, table.id_lo, table.id_hi))
        rows = canonical[np.isfinite(loss[canonical])]
        weight = np.full(len(loss), np.nan)
        weight[rows] = loss_weights(loss[rows], self.strategy, self.lam)
        for begin in range(0, len(weight), BATCH_ROWS):
            part = weight[begin : begin + BATCH_ROWS]
            column = pa.array(part, pa.float64(), mask=np.isnan(part))
            yield pa.record_batch([column], schema=self.fields())
