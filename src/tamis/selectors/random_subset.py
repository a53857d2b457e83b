"""Repeated random subsets: the baseline that every selector must beat."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tamis.selectors.budgets import Budget, draws
from tamis.selectors.table import Table
from tamis.storage.ledger import Drops


class RandomSubset(Budget):
    """Keep a new random subset of the same size for every epoch (RS2).

    Without replacement the rows are shuffled and cut into floor(1 / fraction) subsets, one an
    epoch; when they are used up the rows are shuffled anew. No row comes twice before that. With
    replacement every epoch draws from all rows again. The shuffle is a hash of row_id, seed and
    its number, so that a subset does not depend on the order of the rows.

    Each group keeps exactly floor(fraction * rows) of its rows.
    """

    operator: Literal["random_subset"] = "random_subset"
    fraction: float = Field(gt=0, le=1, description="share of the rows that an epoch sees")
    epoch: int = Field(default=0, ge=0, lt=2**30, description="which epoch's subset to keep")
    replacement: bool = Field(
        default=False, description="draw every epoch from all rows, also those already seen"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the shuffles")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Okanovic et al. 2023, Repeated random sampling for minimizing the time-to-accuracy of "
        "learning (RS2, with and without replacement)"
    )

    def select(self, table: Table) -> Drops:
        chunks = 1 if self.replacement else int(1 / self.fraction + 1e-9)
        shuffle, chunk = divmod(self.epoch, chunks)
        value = draws(table.id_hi, table.id_lo, table.copy, self.seed + (shuffle << 32))
        group = self.groups(table)
        order = np.lexsort((table.copy, table.id_lo, table.id_hi, value, group))
        size = np.bincount(group)
        taken = np.floor(size * self.fraction + 1e-9).astype(np.int64)
        begin = np.cumsum(size) - size
        mine = group[order]
        place = np.arange(len(order)) - begin[mine]
        first = chunk * taken
        kept = (place >= first[mine]) & (place < first[mine] + taken[mine])
        drawn = np.append(value[order], np.nan)  # a group may keep none
        low = drawn[np.where(taken > 0, begin + first, -1)]
        high = drawn[np.where(taken > 0, begin + first + taken - 1, -1)]
        lost = np.sort(order[~kept])
        of = group[lost]
        return Drops.of(
            lost,
            "",
            value=value[lost],
            threshold=np.where(value[lost] < low[of], low[of], high[of]),
            report={"shuffle": shuffle, "chunk": chunk, "chunks": chunks},
        )
