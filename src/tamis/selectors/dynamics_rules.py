"""What training dynamics decide: rows that no run could learn, and rows that were learnt last."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tamis.scoring.column_scorer import vectors
from tamis.selectors.budgets import Budget, Float64s, first_of_groups, group_quantile, wanted
from tamis.selectors.selector import Selector
from tamis.selectors.table import Table, as_floats
from tamis.storage.errors import UserError
from tamis.storage.ledger import Drops


class AumThreshold(Selector):
    """Drop the rows whose area under the margin is that of rows known to be mislabelled.

    In every run some rows, its threshold samples, were trained as a class that does not exist. The
    run's cut-off is a quantile of their AUM. A row is dropped if its AUM lies below the cut-off in
    every run in which it was an ordinary row; it takes two runs with different threshold samples
    for all rows to be judged. A row without AUM in such a run stays, and the report counts it. In
    the ledger, value and threshold are those of the run in which the row came closest to staying.

    A quantile is a value that occurs (see `quantile`): a row lies below it if more than 1 % of the
    threshold samples have a higher AUM, which is the rule of the authors' code.
    """

    operator: Literal["aum_threshold"] = "aum_threshold"
    by: str = Field(default="aum", description="stage of `aum`, whose ``_by_run`` is read")
    dynamics: str = Field(default="probe", description="stage that gave the records of training")
    quantile: float = Field(
        default=0.99, gt=0, le=1, description="of the threshold samples' AUM; the paper's"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Pleiss et al. 2020, Identifying mislabeled data using the area under the margin ranking "
        "(section 3.2)"
    )

    def reads(self) -> set[str]:
        return {f"{self.by}_by_run", f"{self.dynamics}_ordinary"}

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 400

    def select(self, table: Table) -> Drops:
        aum, ordinary = self._by_run(table)
        threshold = (ordinary == 0) & np.isfinite(aum)
        counts = threshold.sum(axis=0)
        if len(table) and not counts.all():
            raise UserError(
                f"{self.stage}: run {int(np.flatnonzero(counts == 0)[0])} of {self.dynamics} has "
                "no threshold samples, so there is no cut-off",
                mend="train with them (`threshold_runs: 2` of `probe`; records of another training "
                "tell them: docs/label-scores.md), or cut `aum` with `quantile` or a mixture",
            )
        run = np.nonzero(threshold.T)[0]
        cut = group_quantile(aum.T[threshold.T], run, aum.shape[1], self.quantile)
        counted = ordinary == 1
        # How far above its cut-off; a run that does not count says nothing.
        above = np.where(counted, aum - cut, -np.inf)
        lost = np.flatnonzero((above < 0).all(axis=1) & counted.any(axis=1))
        closest = above[lost].argmax(axis=1)
        drops = Drops.of(lost, "", value=aum[lost, closest], threshold=cut[closest])
        unscored = (np.isnan(aum) & counted).any(axis=1) | ~counted.any(axis=1)
        drops.report = {
            "cut_offs": cut.tolist() if len(table) else [],
            "threshold_rows": counts.tolist() if len(table) else [],
            "no_score": int(unscored.sum()),
        }
        return drops

    def _by_run(self, table: Table) -> tuple[Float64s, Float64s]:
        """AUM and the flag of an ordinary row, ``(n, runs)``; nan where there is none."""
        names = [f"{self.by}_by_run", f"{self.dynamics}_ordinary"]
        parts = [[vectors(batch, name) for name in names] for batch in table.batches(names)]
        widths = {part.shape[1] for pair in parts for part in pair if not np.isnan(part).all()}
        if len(widths) > 1:
            raise UserError(
                f"{names[0]} and {names[1]} are of {' and '.join(map(str, sorted(widths)))} runs",
                mend=f"set `dynamics` to that of the stage {self.by!r}",
            )
        width = widths.pop() if widths else 1

        def whole(index: int) -> Float64s:
            fitting = [
                part[index]
                if part[index].shape[1] == width
                else np.full((len(part[index]), width), np.nan)
                for part in parts
            ]
            return np.concatenate([np.empty((0, width)), *fitting])

        return whole(0), whole(1)


class LateStoppingPrune(Budget):
    """Drop the rows that were learnt last: one round of the paper's pruning.

    Of rows learnt at the same epoch, as are all those never learnt, those with the highest `ties`
    score go first, then by row_id. Rows without a score stay, and the report counts them.

    The paper trains anew on what is left and prunes again, until the share of noise that it
    estimated is gone: run the recipe again on the dataset for the next round.
    """

    operator: Literal["late_stopping_prune"] = "late_stopping_prune"
    by: str = Field(default="late_stopping", description="the epoch by which a row was learnt")
    fraction: float = Field(ge=0, le=1, description="share of the scored rows to drop")
    ties: str | None = Field(
        default=None, description="score that decides among equals, such as training_loss"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Yuan et al. 2023, Late stopping: avoiding confidently learning from mislabeled examples"
    )

    def reads(self) -> set[str]:
        return super().reads() | self.numbers()

    def numbers(self) -> set[str]:
        return {self.by} | ({self.ties} if self.ties is not None else set())

    def select(self, table: Table) -> Drops:
        value = as_floats(table.column(self.by))
        group = self.groups(table)
        scored = ~np.isnan(value)
        sizes = np.bincount(group[scored], minlength=int(group.max(initial=0)) + 1)
        tied = np.zeros(len(value)) if self.ties is None else -as_floats(table.column(self.ties))
        keys = (table.copy, table.id_lo, table.id_hi, tied, np.where(scored, -value, np.inf), group)
        order = np.lexsort(keys)
        within, last = first_of_groups(
            order, group, lambda number, _: wanted(int(sizes[number]), None, self.fraction)
        )
        threshold = np.full(len(value), np.nan)
        threshold[order] = np.where(last >= 0, value[order[last]], np.nan)
        lost = np.sort(order[within])
        drops = Drops.of(lost, "", value=value[lost], threshold=threshold[lost])
        drops.report = {"no_score": int((~scored).sum())}
        return drops
