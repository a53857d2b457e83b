"""Table scorers whose columns also say what becomes of the rows that stay."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from tamis.selectors.table_scorer import TableScorer
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import RULES, Float64s

#: Columns of the ledger that a marker may give.
MARKS = ("action", "reason", "passes", "weight", "value", "threshold", "rules")


class Marker(TableScorer):
    """Gives columns that the run takes for decisions on the rows still kept.

    Of several markers' actions on a row the last stands, their weights are multiplied, and a row
    that any stage drops is dropped.
    """

    kind: ClassVar[str] = "marker"

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "column": self.stage}

    def marks(self) -> dict[str, str]:
        """Column of the ledger to the field that holds what it says of a row.

        ``action``: string, ``relabel``, ``review`` or ``drop``, null for none; ``weight``: float64
        at or above 0, null for 1; ``passes``: list of int32, how often the row is written in each
        phase of the dataset; of rows with an action ``value``, ``threshold`` and ``rules``; of
        those dropped ``reason``, a name that is counted by, null or empty for the stage's own.
        """
        fields = {name: f"{self.stage}_{name}" for name in MARKS}
        return {name: field for name, field in fields.items() if field in self.fields().names}

    def settles(self) -> str | None:
        """The field, of booleans, that is true where a person has said what the label is."""
        return None

    def given_as(self) -> str | None:
        """Column of the dataset for the labels that the corpus has, if it has others now."""
        return None

    def weight_as(self) -> str | None:
        """Column of the dataset for the weights of rows, if it weighs them."""
        return None

    def phase_as(self) -> str | None:
        """Column of the dataset for the number of the phase, if it has several."""
        return None

    def action_fields(self) -> list[pa.Field]:
        """``<stage>_action``, and where that is not null ``_value``, ``_threshold``, ``_rules``."""
        kinds = {"action": pa.string(), "value": pa.float64(), "threshold": pa.float64()}
        return [
            pa.field(f"{self.stage}_{name}", kind)
            for name, kind in {**kinds, "rules": RULES}.items()
        ]

    def batches(self, columns: Mapping[str, pa.Array]) -> Iterator[pa.RecordBatch]:
        """Columns of the whole table by field, in parts."""
        table = pa.record_batch(
            [columns[name] for name in self.fields().names], schema=self.fields()
        )
        for begin in range(0, table.num_rows, BATCH_ROWS):
            yield table.slice(begin, BATCH_ROWS)

    def action_columns(
        self,
        count: int,
        rows: Int64s,
        action: str,
        value: Float64s,
        threshold: Float64s | float,
        rules: pa.Array,
    ) -> dict[str, pa.Array]:
        """The columns of `action_fields` for a table of `count` rows.

        Args:
            rows: those that the action is for, ascending.
            value, threshold, rules: of each of these rows.
        """
        place = places(count, rows)
        limit = np.broadcast_to(np.asarray(threshold, np.float64), len(rows))
        found = [pa.repeat(action, len(rows)).cast(pa.string()), pa.array(value), pa.array(limit)]
        names = [field.name for field in self.action_fields()]
        return {n: c.take(place) for n, c in zip(names, [*found, rules], strict=True)}


def places(count: int, rows: Int64s) -> pa.Array:
    """For each of `count` rows its place in `rows`; null where it is not among them."""
    place = np.zeros(count, np.int64)
    absent = np.ones(count, np.bool_)
    place[rows] = np.arange(len(rows))
    absent[rows] = False
    return pa.array(place, mask=absent)
