"""How often every text occurs, and what training on that many repeats may cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from tamis.selectors.exact_dedup import ContentKey
from tamis.selectors.inner_products import Float64s
from tamis.selectors.near_dedup import NearDedup
from tamis.selectors.selector import Selector, TableOperator
from tamis.selectors.shares import places_within
from tamis.selectors.table import Table, as_floats
from tamis.selectors.table_scorer import TableScorer
from tamis.storage.grouping import first_with_pair
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops

#: The case that the paper's abstract gives: this share of the training tokens is repeats of a
#: thousandth of the data, each seen so often, and 800M parameters do as well as 400M.
PUBLISHED_SHARE, PUBLISHED_REPEATS = 0.1, 100
#: Repeats within half a decade of it are counted as like it (unconfirmed).
_LIKE_IT = (PUBLISHED_REPEATS / 10**0.5, PUBLISHED_REPEATS * 10**0.5)


@dataclass(frozen=True)
class _Copies:
    """Rows that have the same text.

    Attributes:
        of: int64, for every row the row that stands for its text; itself for that row.
        similarity: to that row, nan for itself.
        repeats: int64, rows with this text.
        size: float64, bytes of the text.
    """

    of: Int64s
    similarity: Float64s
    repeats: Int64s
    size: Float64s


class CountsCopies(TableOperator):
    """Counts the rows that have the same text, byte for byte or nearly."""

    near: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Jaccard similarity of word 5-grams from which texts are the same, as in "
        "`near_dedup`; byte for byte if not given",
    )

    roles: ClassVar[tuple[str, ...]] = ("text",)

    def key_parts(self) -> dict[str, Any]:
        parts = {**super().key_parts(), "signal": ContentKey().key_parts()}
        if self.near is not None:
            parts["near_dedup"] = _near_dedup(self.near).key_parts()
        return parts

    def memory(self, rows: int, text_bytes: int) -> int:
        near = _near_dedup(self.near).memory(rows, text_bytes) if self.near else 0
        return rows * 150 + near

    def copies(self, table: Table) -> _Copies:
        """Which rows of a table have the same text."""
        signal = ContentKey()
        keys = pa.Table.from_batches(list(table.signal(signal)), schema=signal.fields())
        size = keys["bytes"].to_numpy().astype(np.float64)
        if self.near is None:
            of = _lowest_id(
                table, first_with_pair(keys["key_hi"].to_numpy(), keys["key_lo"].to_numpy())
            )
            similarity = np.where(of == np.arange(len(of)), np.nan, 1.0)
        else:
            drops = _near_dedup(self.near).select(table)
            of, similarity = np.arange(len(table)), np.full(len(table), np.nan)
            of[drops.rows], similarity[drops.rows] = drops.partner, drops.similarity
        repeats = np.bincount(of, minlength=len(of))[of]
        return _Copies(of, similarity, repeats, size)


def _near_dedup(threshold: float) -> NearDedup:
    """Finds near-copies; a certificate would be seen by nobody."""
    return NearDedup(threshold=threshold, certificate=0)


def _lowest_id(table: Table, group: np.ndarray[Any, Any]) -> Int64s:
    """For every row the row of its group with the lowest row_id."""
    order = np.lexsort((table.copy, table.id_lo, table.id_hi))
    lowest = np.empty(len(group), np.int64)
    lowest[group[order[::-1]]] = order[::-1]  # the lowest is written last
    found: Int64s = lowest[group]
    return found


class Repeats(TableScorer, CountsCopies):
    """In how many rows the text of a row occurs."""

    operator: Literal["repeats"] = "repeats"

    version: ClassVar[int] = 1

    def fields(self) -> pa.Schema:
        """``repeats`` (int64, 1 for a text that occurs once)."""
        return pa.schema([pa.field("repeats", pa.int64(), nullable=False)])

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        repeats = self.copies(table).repeats
        yield pa.record_batch([pa.array(repeats, pa.int64())], schema=self.fields())


class RepetitionRisk(Selector, CountsCopies):
    """Report how much of the corpus is repeated how often; keep at most so many copies of a text.

    Repeats cost most at a middle number: a text seen often enough to be memorised, but not so
    often that there is little of it, takes the capacity it is memorised with from the rest. The
    manifest's report has the share of the tokens in texts that occur k times, and sets the share
    repeated about 100 times against the published case: 10 % of the training tokens are 0.1 % of
    the data repeated 100 times, and a model of 800M parameters does as well as one of 400M. Which
    number of repeats is worst grows with the model, so one case is no rule for another size.

    Of copies beyond `max_repeats` those with the highest row_ids are dropped; with `near`, the
    text that stands for a group always stays.
    """

    operator: Literal["repetition_risk"] = "repetition_risk"
    max_repeats: int | None = Field(
        default=None, ge=1, description="copies of a text to keep; all if not given: a report only"
    )
    tokens: str | None = Field(
        default=None,
        description="score or column with the size of a row, such as `tokens`; bytes of text if "
        "not given",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Hernandez et al. 2022, Scaling laws and interpretability of learning from repeated data"
    )

    def reads(self) -> set[str]:
        return set() if self.tokens is None else {self.tokens}

    def numbers(self) -> set[str]:
        return self.reads()

    def select(self, table: Table) -> Drops:
        found = self.copies(table)
        rows = np.arange(len(table))
        # The row that stands for a text comes first, then the others by id.
        first = found.of == rows
        order = np.lexsort((table.copy, table.id_lo, table.id_hi, ~first))
        place = places_within(found.of, order)
        lost = np.flatnonzero(place >= (self.max_repeats or len(table)))
        size = found.size if self.tokens is None else as_floats(table.column(self.tokens))
        return Drops.of(
            lost,
            "",
            value=found.repeats[lost].astype(np.float64),
            threshold=self.max_repeats,
            partner=found.of[lost],
            similarity=found.similarity[lost],
            # In an order of rows that does not depend on where they lie, nor do the sums.
            report=repetition_report(found.repeats[order], np.nan_to_num(size)[order]),
        )


def repetition_report(repeats: Int64s, size: Float64s) -> dict[str, Any]:
    """How much of a corpus is repeated how often.

    Args:
        repeats: int64 ``(n,)``, rows that have the text of each row.
        size: float64 ``(n,)``, of each row, in tokens or bytes.

    Returns:
        ``by_repeats``: for ranges of k the rows, the different texts and the share of the tokens;
        ``repeated``: the share of the tokens in texts that occur more than once;
        ``like_published``: the share in those that occur 32 to 316 times, and over the published
        10 %.

    Example:
        >>> found = repetition_report(np.array([1, 1, 2, 2]), np.array([30.0, 50, 10, 10]))
        >>> found["repeated"], [part["repeats"] for part in found["by_repeats"]]
        (0.2, ['1', '2'])
    """
    total = float(size.sum()) or 1.0
    # Ranges 1, 2, 3-4, 5-8, 9-16, …
    power = np.ceil(np.log2(repeats)).astype(np.int64)
    parts = []
    for p in np.unique(power).tolist():
        inside = power == p
        low, high = (2 ** (p - 1) + 1 if p else 1), 2**p
        parts.append(
            {
                "repeats": str(high) if low == high else f"{low}-{high}",
                "rows": int(inside.sum()),
                "texts": round(float((1 / repeats[inside]).sum())),
                "share_of_tokens": float(size[inside].sum()) / total,
            }
        )
    like_it = (repeats >= _LIKE_IT[0]) & (repeats <= _LIKE_IT[1])
    share = float(size[like_it].sum()) / total
    return {
        "by_repeats": parts,
        "repeated": float(size[repeats > 1].sum()) / total,
        "like_published": {"share_of_tokens": share, "over_published": share / PUBLISHED_SHARE},
    }
