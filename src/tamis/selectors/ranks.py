"""Which of two duplicates is the better one."""

from typing import Literal

import numpy as np
from pydantic import Field

from tamis.selectors.duplicates import Ranking
from tamis.selectors.jaccard import Float64s
from tamis.selectors.selector import Selector
from tamis.selectors.table import Table, as_floats

LONGEST = "longest"


class RankedSelector(Selector):
    """A selector that keeps the best-ranked row of a group."""

    rank: str = Field(
        default=LONGEST,
        description="what ranks rows: `longest` text, or the name of a score or numeric column; "
        "ties by row_id",
    )
    rank_order: Literal["highest", "lowest"] = Field(
        default="highest", description="which end of the rank is best"
    )

    def reads(self) -> set[str]:
        return set() if self.rank == LONGEST else {self.rank}

    def numbers(self) -> set[str]:
        return self.reads()

    def ranking(self, table: Table, lengths: Float64s) -> Ranking:
        """Ranks of a table's rows; `lengths` are those of their texts."""
        value = lengths if self.rank == LONGEST else as_floats(table.column(self.rank))
        if self.rank_order == "lowest":
            value = -value
        return Ranking(value.astype(np.float64, copy=False), table.id_hi, table.id_lo, table.copy)
