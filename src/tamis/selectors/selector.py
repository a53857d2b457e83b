"""What operators that see the whole table have in common, and what every selector has."""

from typing import Any, ClassVar

from tamis.scoring.operator import Operator, RowScorer
from tamis.selectors.table import Table
from tamis.storage.ledger import Drops


class TableOperator(Operator):
    """Reads columns of all the rows still kept, through a `Table`."""

    def vectors(self) -> set[str]:
        """Those of `reads` that must be lists of numbers."""
        return set()

    def embeds(self) -> set[str]:
        """Those of `vectors` that a row scorer of the recipe must give: it is asked for more."""
        return set()

    def groups_by(self) -> set[str]:
        """Those of `reads` whose values name groups, and so must be plain."""
        return set()

    def held_vectors(self, rows: int) -> int:
        """Vectors that it holds at once for a table of `rows`, in float32."""
        return 0

    def memory(self, rows: int, text_bytes: int) -> int:
        """Upper bound of the other bytes it holds at once for a table of `rows`."""
        return rows * 64


class Selector(TableOperator):
    """Says which of the rows still kept to drop and why."""

    kind: ClassVar[str] = "selector"

    def signals(self) -> tuple[RowScorer, ...]:
        """What it asks of every row; computed once for all stages that ask for the same."""
        return ()

    def select(self, table: Table) -> Drops:
        """The rows to drop."""
        raise NotImplementedError

    def similarity_parts(self) -> Any:
        """What of its parameters decides how similar two rows are; None if it compares none.

        While it stays the same, similarities that were stored as edges hold.
        """
        return None
