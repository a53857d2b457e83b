"""A share of the preference pairs by their margin, in a direction that the literature disputes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from tamis.selectors.budgets import (
    NO_SCORE,
    Float64s,
    ScoreBudget,
    first_of_groups,
    group_quantile,
    groups_of,
    wanted,
)
from tamis.selectors.shares import places_within
from tamis.selectors.table import Table
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops

OUTSIDE_BAND = "outside_band"
Order = Literal["highest", "lowest", "middle", "magnitude"]
ORDERS: tuple[Order, ...] = ("highest", "lowest", "middle", "magnitude")
#: Groups that the report tells of one by one, at most.
TOLD_GROUPS = 100
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _Pairs:
    """Rows that may be kept, in canonical order: by row_id, then copy.

    Attributes:
        rows: of the table.
        budget: rows to keep, by group number.
    """

    rows: Int64s
    value: Float64s
    group: Int64s
    budget: Int64s

    def key(self, order: Order) -> Float64s:
        """What the margin is compared by."""
        return np.abs(self.value) if order == "magnitude" else self.value

    def kept(self, order: Order) -> npt.NDArray[np.bool_]:
        """Which of them a direction keeps; of equal margins those of smaller row_id."""
        merit = self._merit(order)
        best = np.lexsort((merit, self.group))  # stable: ties stay in canonical order
        within, _ = first_of_groups(
            best, self.group, lambda number, size: min(size, int(self.budget[number]))
        )
        found = np.zeros(len(self.rows), np.bool_)
        found[best] = within
        return found

    def _merit(self, order: Order) -> Float64s:
        """Lowest is best."""
        if order != "middle":
            return self.value if order == "lowest" else -self.key(order)
        place = places_within(self.group, np.argsort(self.value, kind="stable"))
        size = np.bincount(self.group)[self.group] if len(place) else place
        merit: Float64s = np.abs(2.0 * place - (size - 1))
        return merit

    def edges(self, order: Order, kept: npt.NDArray[np.bool_]) -> tuple[Float64s, Float64s]:
        """By group number the lowest and the highest key that is kept; nan where none is."""
        key, group = self.key(order)[kept], self.group[kept]
        groups = len(self.budget)
        return group_quantile(key, group, groups, 0.0), group_quantile(key, group, groups, 1.0)

    def told(self, order: Order, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """What a direction keeps, for the report."""
        kept = self.kept(order)
        value = self.value[kept]
        if not len(value):
            return {"rows": 0, "mean": None, "low": None, "high": None, "shared": 0}
        return {
            "rows": len(value),
            "mean": float(value.sum() / len(value)),
            "low": float(value.min()),
            "high": float(value.max()),
            "shared": int((kept & chosen).sum()),
        }


class Sera(ScoreBudget):
    """Keep a share of the preference pairs by their margin (SeRA's selection); ties by row_id.

    Which pairs are best is disputed, so the direction is yours. `highest` margins are SeRA's, and
    those of Deng et al. 2025 (Less is more); `lowest`, the hardest pairs, are Qi et al. 2025's;
    `middle` are those around the median, `magnitude` those furthest from 0 on either side, as for
    `by: reference_margin`, of which 30 to 50 % are kept. The report tells for every direction how
    many rows it would keep, their mean, lowest and highest margin, and how many of them the chosen
    direction keeps too; and what is kept of every group.

    The share is of all rows of a group. Rows outside the band (by values or by quantiles of the
    group's margins, bounds included) are dropped first as ``outside_band``, rows whose margin is
    null, nan or infinite as ``no_score``; so a group may keep less than its share. In the ledger,
    value and threshold are margins, with `magnitude` their absolute values.
    """

    operator: Literal["sera"] = "sera"
    by: str = Field(
        default="implicit_reward_margin", description="the margin: a score or numeric column"
    )
    fraction: Share = Field(
        default=0.7, description="share of the rows to keep (0.7 as SeRA, unconfirmed)"
    )
    quotas: dict[str, Share] = Field(
        default={}, description="share to keep of some groups of `per`, in place of `fraction`"
    )
    order: Order = Field(default="highest", description="which margins are best")
    low: float | None = Field(default=None, description="lowest margin that may be kept")
    high: float | None = Field(default=None, description="highest margin that may be kept")
    low_quantile: Share = Field(default=0.0, description="the same as a quantile")
    high_quantile: Share = Field(default=1.0, description="the same as a quantile")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Ko et al. 2025, SeRA: self-reviewing and alignment of LLMs using implicit reward margins; "
        "Diwan et al. 2025, Clear preferences leave traces; Qi et al. 2025, Difficulty-based "
        "preference data selection by DPO implicit reward gap"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.quotas and self.per is None:
            raise ValueError("quotas are for the groups of `per`: name its column")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low lies above high")
        if self.low_quantile > self.high_quantile:
            raise ValueError("low_quantile lies above high_quantile")
        return self

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 200

    def select(self, table: Table) -> Drops:
        value = self.scores(table)
        group, names = self._groups(table)
        groups = int(group.max(initial=0)) + 1
        scored = np.isfinite(value)
        low, high = self._band(value[scored], group[scored], groups)
        inside = scored & (value >= low[group]) & (value <= high[group])
        canonical = np.lexsort((table.copy, table.id_lo, table.id_hi))
        rows = canonical[inside[canonical]]
        budget = self._budget(np.bincount(group, minlength=groups), names)
        pairs = _Pairs(rows, value[rows], group[rows], budget)
        kept = pairs.kept(self.order)

        threshold = np.where(value < low[group], low[group], high[group])  # of the band
        threshold[~scored] = np.nan
        reason = np.where(scored, 2, 1).astype(np.int32)
        edges = pairs.edges(self.order, kept)
        lowest, highest = (edge[pairs.group] for edge in edges)
        key = pairs.key(self.order)
        threshold[rows] = np.where(key <= lowest, lowest, highest)
        reason[rows] = 0
        compared = value.copy()
        compared[rows] = key
        lost = np.ones(len(value), np.bool_)
        lost[rows[kept]] = False
        report: dict[str, Any] = {
            "directions": {order: pairs.told(order, kept) for order in ORDERS},
            "quotas_without_rows": sorted(self.quotas.keys() - set(names)),
        }
        if self.per is not None and groups <= TOLD_GROUPS:
            counts = np.bincount(group, minlength=groups), np.bincount(pairs.group[kept])
            report["groups"] = _told_groups(names, *counts, *edges)
        drops = Drops.of(
            np.flatnonzero(lost),
            "",
            value=compared[lost],
            threshold=threshold[lost],
            report=report,
        )
        drops.reasons = ["", NO_SCORE, OUTSIDE_BAND]
        drops.reason = reason[lost]
        return drops

    def _groups(self, table: Table) -> tuple[Int64s, list[str | None]]:
        """A group number for every row, and the name that every number stands for."""
        if self.per is None:
            return np.zeros(len(table), np.int64), [None]
        number, names = groups_of(table, self.per)
        return number, [None if name is None else str(name) for name in names.to_pylist()]

    def _band(self, value: Float64s, group: Int64s, groups: int) -> tuple[Float64s, Float64s]:
        """By group number the lowest and highest margin that may be kept."""
        low = group_quantile(value, group, groups, self.low_quantile)
        high = group_quantile(value, group, groups, self.high_quantile)
        return (
            low if self.low is None else np.fmax(low, self.low),
            high if self.high is None else np.fmin(high, self.high),
        )

    def _budget(self, size: Int64s, names: list[str | None]) -> Int64s:
        """Rows to keep, by group number."""
        shares: Mapping[int, float] = {
            number: self.quotas[name] for number, name in enumerate(names) if name in self.quotas
        }
        return np.array(
            [
                wanted(count, None, shares.get(number, self.fraction))
                for number, count in enumerate(size.tolist())
            ],
            np.int64,
        )


def _told_groups(
    names: list[str | None], rows: Int64s, kept: Int64s, low: Float64s, high: Float64s
) -> list[dict[str, Any]]:
    """What is kept of every group, by its name; between which keys."""
    kept = np.pad(kept, (0, len(rows) - len(kept)))
    told = [
        {
            "group": name,
            "rows": int(rows[number]),
            "kept": int(kept[number]),
            "low": float(low[number]) if kept[number] else None,
            "high": float(high[number]) if kept[number] else None,
        }
        for number, name in enumerate(names)
    ]
    return sorted(told, key=lambda group: (group["group"] is None, group["group"] or ""))
