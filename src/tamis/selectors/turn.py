"""TURN's data step: clean rows by a mixture on a probe's losses, as many of every class."""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tamis.selectors.budgets import NO_SCORE, draws, first_of_groups
from tamis.selectors.component_rules import OfMixture
from tamis.selectors.labels import labels_of
from tamis.selectors.selector import Selector
from tamis.selectors.table import Table
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops

NOISY = "noisy"
UNBALANCED = "unbalanced"
Balance = Literal["none", "smallest", "median"]


class Turn(Selector, OfMixture):
    """Keep the rows that are probably clean, as many of every class.

    Two Gaussians are fitted to the losses of a probe on frozen embeddings (the paper trains it with
    generalised cross-entropy: `probe` with ``loss: gce``). Rows whose probability of the
    lower component is not above `threshold` are dropped as ``noisy``. Of the others every class
    keeps as many as the class with the fewest of them (`smallest`), or at most as many as the
    median class; the rest is dropped as ``unbalanced``. Which stay is drawn by a hash of row_id.
    A class without a clean row does not count. Where one component would do for the losses no row
    is noisy. Rows whose loss is null, nan or infinite are dropped as ``no_score``.

    Threshold and balancing rule of the paper are unconfirmed: no public code was found.
    """

    operator: Literal["turn"] = "turn"
    by: str = Field(default="training_loss", description="the loss: a score or numeric column")
    threshold: float = Field(
        default=0.5, ge=0, le=1, description="probability of being clean to exceed (unconfirmed)"
    )
    balance: Balance = Field(
        default="smallest",
        description="rows that a class keeps at most: as many as the smallest class, as the median "
        "class, or all (unconfirmed)",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the draws")

    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("label",)
    paper: ClassVar[str] = (
        "Ahn et al. 2024, Fine-tuning pre-trained models for robustness under noisy labels "
        "(arXiv 2310.17668)"
    )

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 220

    def select(self, table: Table) -> Drops:
        fitted = self.fitted(table)
        labels = labels_of(table)
        clean = 1.0 - fitted.posterior()
        rows = np.flatnonzero(clean > self.threshold)  # not where it is nan
        code = labels.codes[rows].astype(np.int64)
        size = np.bincount(code, minlength=len(labels.classes))
        most = self._most(size)
        draw = draws(table.id_hi, table.id_lo, table.copy, self.seed)
        ids = table.copy[rows], table.id_lo[rows], table.id_hi[rows]
        order = np.lexsort((*ids, draw[rows], code))
        within, last = first_of_groups(order, code, lambda _, count: min(count, most))

        value, threshold = clean, np.full(len(clean), self.threshold)
        reason = np.ones(len(clean), np.int32)
        reason[~fitted.scored] = 2
        threshold[~fitted.scored] = np.nan
        over = rows[order[~within]]
        value[over] = draw[over]
        threshold[over] = draw[rows[order[last[~within]]]]
        reason[over] = 3
        reason[rows[order[within]]] = 0
        lost = np.flatnonzero(reason)
        report: dict[str, Any] = {
            "clean": len(rows),
            "most_of_a_class": most,
            "classes_without_a_clean_row": int((size == 0).sum()),
            **fitted.report(1.0 - self.threshold),
        }
        drops = Drops.of(lost, "", value=value[lost], threshold=threshold[lost], report=report)
        drops.reasons = ["", NOISY, NO_SCORE, UNBALANCED]
        drops.reason = reason[lost]
        return drops

    def _most(self, size: Int64s) -> int:
        """Rows that a class may keep, by how many clean ones every class has."""
        there = np.sort(size[size > 0])
        if not len(there):
            return 0
        return int(
            {"none": there[-1], "smallest": there[0]}.get(self.balance, there[len(there) // 2])
        )
