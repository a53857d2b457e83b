"""What operators share that hold a corpus against a target set, by their vectors."""

from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field

from tamis.selectors.reference import Reference, left_out
from tamis.selectors.selector import TableOperator
from tamis.selectors.table import Table
from tamis.selectors.vectors import Vectors, reference_vectors, vectors_of
from tamis.storage.errors import UserError
from tamis.storage.kernels import UInt64s
from tamis.storage.ledger import Float64s
from tamis.storage.places import Place
from tamis.storage.rows import UInt32s


class Sides(NamedTuple):
    """Vectors of a corpus and of a target, each in canonical order and as long as the other's.

    Attributes:
        wanted: the target's rows.
    """

    mine: Vectors
    theirs: Vectors
    wanted: Table

    def ids(self, table: Table) -> tuple[UInt64s, UInt64s, UInt32s]:
        """Ids of the corpus's rows and of the target's after them, in the order of the vectors."""
        found = []
        for name in ("id_hi", "id_lo", "copy"):
            one, other = (
                getattr(side, name)[vectors.rows]
                for side, vectors in ((table, self.mine), (self.wanted, self.theirs))
            )
            found.append(np.concatenate([one, other]))
        return found[0], found[1], found[2]


class TowardsTarget(TableOperator):
    """Compares the corpus with a target set: rows of the kind that is wanted."""

    target: Reference = Field(description="rows of the kind that is wanted")
    embedding: str = Field(
        default="embedding",
        description="vectors: the signal of an earlier stage, which then embeds the target as "
        "well, or a column that the corpus and the target have",
    )

    def resolve(self, workspace: Place) -> Self:
        return self.model_copy(update={"target": self.target.resolve(workspace)})

    def reads(self) -> set[str]:
        return {self.embedding}

    def vectors(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        """As read and in order."""
        return 2 * (rows + self.target.rows)

    def sides(self, table: Table) -> Sides:
        """Vectors of both, of length one.

        Raises:
            UserError: if the target has no rows, or vectors of another length.
        """
        mine = vectors_of(table, self.embedding)
        wanted = self.target.table(table)
        theirs = reference_vectors(table, wanted, self.embedding)
        if not len(theirs.matrix):
            raise UserError("the target has no rows", where=self.target.title)
        if theirs.matrix.shape[1] != mine.matrix.shape[1]:
            raise UserError(
                f"the corpus's vectors have {mine.matrix.shape[1]} numbers, those of the target "
                f"{theirs.matrix.shape[1]}",
                where=self.target.title,
                mend="embed both with the same model",
            )
        return Sides(mine, theirs, wanted)

    def told(self, sides: Sides, weight: Float64s) -> dict[str, Any]:
        """Figures of weights for the manifest."""
        return {
            "target_rows": len(sides.theirs.matrix),
            "references": left_out([self.target], [sides.wanted]),
            **told_weights(weight),
        }


def told_weights(weight: Float64s) -> dict[str, float]:
    """The highest of some weights, and how many rows of equal weight would vary as little.

    The effective sample size is (sum w)^2 / sum w^2 (Kish 1965, Survey sampling); 0 without
    weights.

    Example:
        >>> told_weights(np.array([0.0, 1.0, 1.0]))
        {'highest_weight': 1.0, 'effective_sample_size': 2.0}
    """
    square = float(np.square(weight).sum())
    return {
        "highest_weight": float(weight.max(initial=0.0)),
        "effective_sample_size": float(weight.sum() ** 2 / square) if square else 0.0,
    }
