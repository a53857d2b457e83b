"""What operators that make new rows have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from tamis.scoring.evaluate import Evaluated
from tamis.scoring.operator import Operator, RowScorer
from tamis.selectors.table import Table
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Float64s


@dataclass
class NewRows:
    """The rows that a generator makes: one of each of some rows, its parents.

    Attributes:
        parents: rows of the table, ascending, each once.
        value, threshold: what decided that the row is made, one of each a parent.
        notes: what is told of every new row (columns of `Generator.notes`).
        report: figures for the manifest.
    """

    parents: Int64s
    value: Float64s
    threshold: Float64s
    notes: pa.Table
    report: dict[str, Any] = field(default_factory=dict)


class Generator(Operator):
    """Makes rows of the corpus's own schema from rows that are there; drops none.

    A costly signal makes what new rows are made of, for every parent; it is committed in portions
    and found again like any signal. Which of them become rows is decided on the whole table. Later
    stages do not see new rows: they go to the dataset as they are, each with its parent in the
    ledger.
    """

    kind: ClassVar[str] = "generator"
    #: Columns that tell of a new row, such as the rewards of its answers.
    notes: ClassVar[pa.Schema]

    of: Literal["kept", "all"] = Field(
        default="kept",
        description="which rows may be parents: those still kept at this stage, or all that are "
        "not quarantined",
    )

    def memory(self, rows: int, earlier: Mapping[str, Operator]) -> int:
        """Upper bound of the bytes it holds at once for a table of `rows`, beside the models of
        the stages before it.
        """
        raise NotImplementedError

    def source(self, earlier: Mapping[str, Operator]) -> RowScorer:
        """The signal that makes what new rows are made of.

        Args:
            earlier: the stages before it, by name.

        Raises:
            UserError: if a stage that it names is not of the kind that it needs.
        """
        raise NotImplementedError

    def choose(self, table: Table, made: Evaluated) -> NewRows:
        """The new rows.

        Args:
            table: the rows that may be parents.
            made: what `source` made of them.
        """
        raise NotImplementedError

    def texts(self, made: pa.RecordBatch) -> dict[str, pa.Array]:
        """By role, the text of every new row (type string).

        Args:
            made: columns of `source` for the parents, in their order.
        """
        raise NotImplementedError
