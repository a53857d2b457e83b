"""Thresholds that the scores set themselves: where one component of a mixture gives way to another.

A score such as a loss is taken for a mixture of two components, right labels and wrong ones. Scores
that one component describes as well are not cut: see `scoring.component_count`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tamis.scoring.component_count import LEAST_SCORES, Components, count_components
from tamis.scoring.component_fits import (
    PUBLISHED_SCALE,
    End,
    Kind,
    Mixtures,
    Scale,
    fit_mixtures,
    scaled_sample,
)
from tamis.scoring.component_goodness import chance_bound, distances
from tamis.scoring.operator import Judgement
from tamis.selectors.budgets import NO_SCORE, Float64s, groups_of
from tamis.selectors.selector import Selector, TableOperator
from tamis.selectors.table import Table, as_floats
from tamis.selectors.table_scorer import TableScorer
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.errors import UserError
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops

#: Groups that the report tells of one by one, at most: those with most rows.
TOLD_GROUPS = 100

TWO = "two components"
ONE_VALUE = "fewer than two different scores to fit"
FEW = f"fewer than {LEAST_SCORES} different scores to tell components by"
ONE = "one component would do"
NOT_APART = "the two fitted components are not apart"
OneComponent = Literal["keep", "error", "cut"]


@dataclass(frozen=True)
class Fitted:
    """Mixtures of a table's scores, by group.

    Attributes:
        value: float64, the score of every row; nan where there is none.
        group: int64, the group of every row.
        names: what the group numbers stand for.
        found: why each group is cut or not: `TWO`, or what speaks against it.
        cut: bool, by group, whether the mixture is used.
    """

    value: Float64s
    group: Int64s
    names: list[str | None]
    mixtures: Mixtures
    components: Components
    end: End
    found: list[str]
    cut: npt.NDArray[np.bool_]

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """Rows whose score is finite."""
        found: npt.NDArray[np.bool_] = np.isfinite(self.value)
        return found

    def posterior(self) -> Float64s:
        """Probability of every row to be of the noisy component: 0 in groups that are not cut.

        nan where there is no score.
        """
        found = self.mixtures.posterior(self.value, self.group, end=self.end)
        found[self.scored & ~self.cut[self.group]] = 0.0
        return found

    def report(self, threshold: float) -> dict[str, Any]:
        """What was found of every group, and where a posterior of `threshold` lies."""
        told = np.argsort(-self.mixtures.sample.scored, kind="stable")
        names = [(name is None, name or "") for name in self.names]
        first = sorted(told[:TOLD_GROUPS].tolist(), key=lambda number: names[number])
        distance = distances(self.mixtures)
        rows = self.mixtures.sample.rows.astype(np.float64)
        by_group = {
            "rows_fitted": rows,
            "lower_mean": self.mixtures.means[:, 0],
            "higher_mean": self.mixtures.means[:, 1],
            "lower_weight": self.mixtures.weight[:, 0],
            "higher_weight": self.mixtures.weight[:, 1],
            "cut_at": self.mixtures.crossing(threshold, self.end),
            "ks_distance": distance,
            "ks_chance_at_most": chance_bound(distance, rows),
            "gain": self.components.gain,
        }
        return {
            "groups_cut": int(self.cut.sum()),
            "groups_not_cut": int((~self.cut).sum()),
            "fits": [
                {
                    **({} if self.names == [None] else {"group": self.names[number]}),
                    "found": self.found[number],
                    "cut": bool(self.cut[number]),
                    **{name: _told(column[number]) for name, column in by_group.items()},
                    "single": self.components.single[number],
                }
                for number in first
            ],
        }


def _told(value: float) -> float | int | None:
    """A figure as JSON has it."""
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) and value > 1 else float(value)


class OfMixture(TableOperator):
    """Fits a mixture of two components to a score, in all rows or in every group."""

    by: str = Field(description="score or numeric column")
    per: str | None = Field(
        default=None, description="column whose values are groups, each with a mixture of its own"
    )
    one_component: OneComponent = Field(
        default="keep",
        description="what becomes of scores that one component would do for: all are kept, the "
        "run stops, or the mixture is used all the same",
    )

    def shape(self) -> tuple[Kind, Scale, End]:
        """Kind of the components, the scale that they are fitted on, and the end that is noisy."""
        return "gaussian", "minmax", "high"

    def reads(self) -> set[str]:
        return self.groups_by() | {self.by}

    def numbers(self) -> set[str]:
        return {self.by}

    def groups_by(self) -> set[str]:
        return set() if self.per is None else {self.per}

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 130

    def fitted(self, table: Table) -> Fitted:
        """Mixtures of the table's scores.

        Raises:
            UserError: naming a row outside [0, 1] that is to be taken as it is; naming a group
                that one component would do for, if `one_component` is `error`.
        """
        value = as_floats(table.column(self.by))
        value = np.where(np.isfinite(value), value, np.nan)
        kind, scale, end = self.shape()
        if scale == "none":
            self._check_range(value, table)
        group, names = self._groups(table)
        sample = scaled_sample(value, group, len(names), scale)
        mixtures = fit_mixtures(sample, kind)
        components = count_components(sample)
        fit = ~np.isnan(mixtures.mean[:, 0])
        found = np.select(
            [~fit, np.isnan(components.gain), ~components.two, ~mixtures.apart()],
            [ONE_VALUE, FEW, ONE, NOT_APART],
            TWO,
        ).tolist()
        cut = fit if self.one_component == "cut" else np.array([why == TWO for why in found])
        if self.one_component == "error" and not cut.all():
            number = int(np.flatnonzero(~cut)[0])
            where = "" if self.per is None else f" where {self.per} is {names[number]}"
            raise UserError(
                f"{self.stage}: {self.by} is not cut{where}: {found[number]}",
                mend="`one_component: keep` keeps such rows, `cut` cuts all the same",
            )
        return Fitted(value, group, names, mixtures, components, end, found, cut)

    def _groups(self, table: Table) -> tuple[Int64s, list[str | None]]:
        """A group number for every row, and the name that every number stands for."""
        if self.per is None or not len(table):
            return np.zeros(len(table), np.int64), [None]
        group, values = groups_of(table, self.per)
        return group, [None if name is None else str(name) for name in values.to_pylist()]

    def _check_range(self, value: Float64s, table: Table) -> None:
        outside = np.flatnonzero((value < 0) | (value > 1))
        if len(outside):
            ids = hex_ids(table.id_hi[outside], table.id_lo[outside])
            first = min(range(len(ids)), key=ids.__getitem__)
            raise UserError(
                f"{self.stage}: expected {self.by} from 0 to 1, found {value[outside[first]]:g} "
                f"in row {ids[first]} ({len(outside):,} such rows)",
                mend="`scale: minmax` brings any scores between 0 and 1",
            )


class OfAnyMixture(OfMixture):
    """A mixture whose components and scale can be chosen."""

    distribution: Kind = Field(
        default="gaussian",
        description="of both components: gaussian (DivideMix) or beta (Arazo et al.)",
    )
    noisy: End = Field(
        default="high", description="which end is noisy: high as for losses, low as for margins"
    )
    scale: Scale | None = Field(
        default=None,
        description="none takes scores in [0, 1] as they are; minmax scales them; percentiles "
        "leaves out what lies beyond the 5th and the 95th. As published if not given: minmax for "
        "gaussian, percentiles for beta",
    )

    paper: ClassVar[str] = (
        "Li et al. 2020, DivideMix: learning with noisy labels as semi-supervised learning; Arazo "
        "et al. 2019, Unsupervised label noise modeling and loss correction"
    )

    def shape(self) -> tuple[Kind, Scale, End]:
        scale = self.scale or PUBLISHED_SCALE[self.distribution]
        return self.distribution, scale, self.noisy


class MixturePosterior(TableScorer, OfAnyMixture):
    """Probability that a row's score comes from the component at the noisy end.

    In a group for which one component would do it is 0 throughout, unless `one_component: cut`: so
    a weight of 1 - p takes nothing from its rows. It is null where the score is null, nan or
    infinite. A score nearer to the noisy end never has a lower probability.
    """

    operator: Literal["mixture_posterior"] = "mixture_posterior"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = OfAnyMixture.paper

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "column": self.stage}

    def fields(self) -> pa.Schema:
        """A nullable float64 column by the stage's name, from 0 to 1."""
        return pa.schema([pa.field(self.stage, pa.float64())])

    def judges(self) -> dict[str, Judgement]:
        return {self.stage: "probability"}

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        posterior = self.fitted(table).posterior()
        for begin in range(0, len(posterior), BATCH_ROWS):
            part = posterior[begin : begin + BATCH_ROWS]
            column = pa.array(part, pa.float64(), mask=np.isnan(part))
            yield pa.record_batch([column], schema=self.fields())


class MixtureThreshold(Selector, OfAnyMixture):
    """Drop the rows that are more probably of the noisy component than `threshold`.

    Where one component would do no row is dropped for its score, and the report says why. The
    report has, for every group, means and weights of the components, the score at which the cut
    lies, the Kolmogorov-Smirnov distance of the fit, and the gain of two components over one. Rows
    whose score is null, nan or infinite are dropped as ``no_score``.
    """

    operator: Literal["mixture_threshold"] = "mixture_threshold"
    threshold: float = Field(
        default=0.5, ge=0, le=1, description="highest probability of being noisy that is kept"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = OfAnyMixture.paper

    def select(self, table: Table) -> Drops:
        fitted = self.fitted(table)
        return drops_of(fitted, fitted.posterior(), self.threshold, self.threshold)


def drops_of(
    fitted: Fitted, value: Float64s, threshold: Float64s | float, probability: float
) -> Drops:
    """Drops of the rows whose value lies above a threshold, and of those without a score."""
    scored = fitted.scored
    limit = np.broadcast_to(threshold, len(value))
    lost = np.flatnonzero(~scored | (value > limit))
    told = np.where(scored, limit, np.nan)
    report = fitted.report(probability)
    drops = Drops.of(lost, "", value=value[lost], threshold=told[lost], report=report)
    drops.reasons = ["", NO_SCORE]
    drops.reason = (~scored[lost]).astype(np.int32)
    return drops


class LossGate(Selector, OfMixture):
    """Drop the rows whose loss lies above the dynamic loss gate (DLG-LC).

    Two Gaussians are fitted to the losses; the gate is the loss at which both, by their weights,
    are equally dense, which is where `mixture_posterior` reaches 0.5. Rows above it have unreliable
    labels. This is the gate alone; the paper's label correction, which gives such rows the label
    that the model is confident of, is `relabel` by `mixture_posterior`. In the ledger, value and
    threshold are losses.
    """

    operator: Literal["loss_gate"] = "loss_gate"
    by: str = Field(default="training_loss", description="the loss: a score or numeric column")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Han et al. 2023, Self-supervised learning with cluster-aware-DINO for high-performance "
        "robust speaker verification (DLG-LC)"
    )

    def select(self, table: Table) -> Drops:
        fitted = self.fitted(table)
        gates = np.where(fitted.cut, fitted.mixtures.crossing(), np.inf)
        return drops_of(fitted, fitted.value, gates[fitted.group], 0.5)
