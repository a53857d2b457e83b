"""Rows whose label is probably wrong are dropped."""

from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tamis.selectors.budgets import wanted
from tamis.selectors.selector import Selector
from tamis.selectors.suspicion import BySuspicion
from tamis.selectors.table import Table, as_floats
from tamis.selectors.votes import Votes, rules_of
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops, Float64s


class Side(BaseModel):
    """Which end of a detector's score calls a label wrong, and from where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    high: float | None = Field(default=None, description="wrong at or above it")
    low: float | None = Field(default=None, description="wrong at or below it")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.high is None) == (self.low is None):
            raise ValueError("give either high or low")
        return self

    @property
    def threshold(self) -> float:
        """Where the score begins to call a label wrong."""
        threshold = self.high if self.low is None else self.low
        assert threshold is not None
        return threshold

    def votes(self, value: Float64s) -> Int64s:
        """Places of the values that call a label wrong."""
        limit = self.threshold
        return np.flatnonzero(value >= limit if self.low is None else value <= limit)


class LabelErrors(BySuspicion, Selector):
    """Drop rows whose label is probably wrong; the ledger keeps who voted against each.

    Dropped are rows whose P(wrong) reaches the threshold, or as many of the most suspicious as
    asked for (ties by row_id). Rows without a P(wrong) stay, and the report counts them; so do
    rows whose label a person has confirmed, or that have been relabelled since it was judged.
    """

    operator: Literal["label_errors"] = "label_errors"
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="P(wrong) from which a row goes; 0.5 if neither rows nor fraction is given",
    )
    rows: int | None = Field(default=None, ge=0, description="or: the most suspicious rows go")
    fraction: float | None = Field(
        default=None, ge=0, le=1, description="or: the most suspicious share of the rows goes"
    )
    votes: dict[str, Side] = Field(
        default={},
        description="scores whose own votes the ledger keeps, with the end that calls a label "
        "wrong, as in `{aum: {low: 0}, training_loss: {high: 2.5}}`",
    )

    version: ClassVar[int] = 1

    @model_validator(mode="before")
    @classmethod
    def _has_threshold(cls, given: Any) -> Any:
        names = ("threshold", "rows", "fraction")
        if isinstance(given, dict) and all(given.get(name) is None for name in names):
            return {**given, "threshold": 0.5}
        return given

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if [self.threshold, self.rows, self.fraction].count(None) != 2:
            raise ValueError("give one of threshold, rows and fraction")
        return self

    def reads(self) -> set[str]:
        return super().reads() | set(self.votes)

    def numbers(self) -> set[str]:
        return self.reads()

    @property
    def needs_probability(self) -> bool:
        return self.threshold is not None

    def select(self, table: Table) -> Drops:
        p = self.suspicion(table)
        lost = self._lost(table, p)
        limit = self.threshold
        if limit is None:
            limit = float(p[lost].min(initial=1.0))
        drops = Drops.of(lost, "", value=p[lost], threshold=limit)
        drops.rules = rules_of([*self.votes_in(table, lost), *self._own_votes(table, lost)], lost)
        drops.report = {"left_alone": int(np.isnan(p).sum())}
        return drops

    def _lost(self, table: Table, p: Float64s) -> Int64s:
        if self.threshold is not None:
            return np.flatnonzero(p >= self.threshold)
        order = np.lexsort((table.copy, table.id_lo, table.id_hi, -p))
        order = order[~np.isnan(p[order])]
        return np.sort(order[: wanted(len(table), self.rows, self.fraction)])

    def _own_votes(self, table: Table, lost: Int64s) -> list[Votes]:
        found = []
        for name, side in self.votes.items():
            value = as_floats(table.column(name))[lost]
            against = side.votes(value)
            found.append(Votes.of(lost[against], name, value[against], side.threshold))
        return found
