"""What operators share that act on rows by how probable it is that their label is wrong."""

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from tamis.scoring.evaluate import Evaluated
from tamis.selectors.marker import Marker
from tamis.selectors.selector import TableOperator
from tamis.selectors.table import Table, as_floats
from tamis.selectors.votes import Votes, stored_votes
from tamis.storage.columns import Mask
from tamis.storage.errors import UserError
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import IN_REVIEW, RELABELLED, Float64s


class BySuspicion(TableOperator):
    """Acts on rows by P(label is wrong).

    It leaves alone rows that have none (null or nan), rows whose label a person has confirmed or
    set (`label_corrections`) or is to look at (`label_review`), and rows that have been relabelled
    since: the probability is that of the label before.
    """

    #: Whether it acts on rows that are in review, too.
    in_review: ClassVar[bool] = False

    by: str = Field(
        default="label_consensus",
        description="the probability that the label is wrong, 0 to 1: a score that is one "
        "(`label_consensus`, `mixture_posterior`), or a numeric column of the corpus; "
        "its votes are taken from the column of this name and `_votes`, if there is one",
    )

    def reads(self) -> set[str]:
        return {self.by}

    def numbers(self) -> set[str]:
        return {self.by}

    @property
    def needs_probability(self) -> bool:
        """Whether an order of the rows will not do."""
        return True

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 120

    def suspicion(self, table: Table) -> Float64s:
        """P(label is wrong) of every row; nan for those that are left alone.

        Raises:
            UserError: naming the row, for a number outside [0, 1].
        """
        found: Float64s = as_floats(table.column(self.by)).copy()
        wrong = np.flatnonzero((found < 0) | (found > 1))
        if len(wrong):
            at = slice(wrong[0], wrong[0] + 1)
            raise UserError(
                f"{self.stage}: expected probabilities from 0 to 1 in {self.by!r}, found "
                f"{found[wrong[0]]:g} in row {hex_ids(table.id_hi[at], table.id_lo[at])[0]}",
                mend="name a score that is the probability of a wrong label, such as "
                "`label_consensus`",
            )
        found[settled(table, self.by)] = np.nan
        if not self.in_review:
            found[_in_review(table)] = np.nan
        return found

    def votes_in(self, table: Table, rows: Int64s) -> list[Votes]:
        """What those who made the score voted on some ascending rows."""
        name = f"{self.by}_votes"
        given = table.scores.get(self.by)
        known = table.corpus.schema.names if given is None else given.operator.fields().names
        return [stored_votes(table, name, rows)] if name in known else []


def settled(table: Table, by: str) -> Mask:
    """The rows whose label a person has confirmed or set, or that is not the one `by` is about."""
    found = np.zeros(len(table), np.bool_)
    judged = _judged_at(table, by)
    for place, marker in _markers(table):
        sure = marker.settles()
        if sure is not None:
            found |= _true(table.column(sure))
        if place > judged and "label" in marker.rewrites():
            found |= _acted(table, marker, RELABELLED)
    return found


def _in_review(table: Table) -> Mask:
    """The rows that a stage has put into review."""
    found = np.zeros(len(table), np.bool_)
    for _, marker in _markers(table):
        if "action" in marker.marks():
            found |= _acted(table, marker, IN_REVIEW)
    return found


def _markers(table: Table) -> list[tuple[int, Marker]]:
    """The markers before, with their places among the stages that gave scores."""
    operators = [evaluated.operator for evaluated in _stages(table).values()]
    return [(at, one) for at, one in enumerate(operators) if isinstance(one, Marker)]


def _acted(table: Table, marker: Marker, action: str) -> Mask:
    return _true(pc.equal(table.column(marker.marks()["action"]), action))


def _true(column: pa.ChunkedArray) -> Mask:
    return np.asarray(pc.fill_null(column, False), np.bool_)


def _stages(table: Table) -> dict[str, Evaluated]:
    """The stages that gave scores, in the order they ran."""
    return {one.operator.stage: one for one in table.scores.values()}


def _judged_at(table: Table, name: str) -> int:
    """Place of the first stage that read the labels a score rests on; -1 for a corpus's own."""
    order = list(_stages(table))
    found: list[int] = []
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        evaluated = table.scores.get(waiting.pop())
        if evaluated is None or evaluated.operator.stage in seen:
            continue
        operator = evaluated.operator
        seen.add(operator.stage)
        if "label" in operator.used_roles():
            found.append(order.index(operator.stage))
        waiting += operator.reads()
    return min(found, default=-1)
