"""Rows count the less the more probably their label is wrong."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from tamis.selectors.marker import Marker
from tamis.selectors.suspicion import BySuspicion
from tamis.selectors.table import Table


class LabelWeight(BySuspicion, Marker):
    """Weigh rows by 1 - P(label is wrong), but not below a floor.

    The weight is in the ledger, where those of several stages are multiplied, and that product is
    a column of the dataset. Rows that are left alone weigh 1; those in review are weighed.
    """

    operator: Literal["label_weight"] = "label_weight"
    floor: float = Field(default=0.0, ge=0, le=1, description="least weight of a row")
    column: str = Field(default="weight", description="column of the dataset for the weights")

    version: ClassVar[int] = 1
    in_review: ClassVar[bool] = True

    def fields(self) -> pa.Schema:
        """A float64 column by the stage's name, 0 to 1; null for rows that are left alone."""
        return pa.schema([pa.field(self.stage, pa.float64())])

    def marks(self) -> dict[str, str]:
        return {"weight": self.stage}

    def weight_as(self) -> str | None:
        return self.column

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        p = self.suspicion(table)
        weight = np.maximum(1.0 - p, self.floor)
        yield from self.batches({self.stage: pa.array(weight, mask=np.isnan(p))})
