"""A score becomes the weight of a row, in the ledger and in the dataset."""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from tamis.selectors.marker import Marker
from tamis.selectors.table import Table, as_floats
from tamis.selectors.table_scorer import Scores
from tamis.selectors.towards_target import told_weights
from tamis.storage.errors import UserError
from tamis.storage.hashing import hex_ids


class RowWeight(Marker):
    """Weigh rows by a score, such as `propensity_weight` or `dynamic_loss_weight`.

    The weight is in the ledger, where those of several stages are multiplied, and that product is
    a column of the dataset. A row without the score (null or nan) is left alone and weighs 1.
    """

    operator: Literal["row_weight"] = "row_weight"
    by: str = Field(description="the weight: a score or numeric column, at least 0")
    column: str = Field(default="weight", description="column of the dataset for the weights")

    version: ClassVar[int] = 1

    def reads(self) -> set[str]:
        return {self.by}

    def numbers(self) -> set[str]:
        return {self.by}

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 120

    def fields(self) -> pa.Schema:
        """A float64 column by the stage's name, at least 0; null for rows that are left alone."""
        return pa.schema([pa.field(self.stage, pa.float64())])

    def marks(self) -> dict[str, str]:
        return {"weight": self.stage}

    def weight_as(self) -> str | None:
        return self.column

    def evaluate(self, table: Table) -> Scores:
        """The weights; rows left alone, the highest weight and the effective sample size of the
        others."""
        weight = as_floats(table.column(self.by))
        wrong = np.flatnonzero((weight < 0) | np.isinf(weight))
        if len(wrong):
            at = slice(wrong[0], wrong[0] + 1)
            raise UserError(
                f"{self.stage}: expected weights from 0 up in {self.by!r}, found "
                f"{weight[wrong[0]]:g} in row {hex_ids(table.id_hi[at], table.id_lo[at])[0]}",
                mend="name a score that is a weight, such as `propensity_weight`",
            )
        canonical = np.lexsort((table.copy, table.id_lo, table.id_hi))
        some = weight[canonical][~np.isnan(weight[canonical])]
        columns = {self.stage: pa.array(weight, mask=np.isnan(weight))}
        report = {"left_alone": len(weight) - len(some), **told_weights(some)}
        return Scores(self.batches(columns), report)
