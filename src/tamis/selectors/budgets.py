"""How many rows: the best by a score, a band of quantiles, or a random share."""

from collections.abc import Callable
from typing import ClassVar, Literal, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit, uint64
from pydantic import Field, model_validator

from tamis.selectors.selector import Selector
from tamis.selectors.table import Table, as_floats
from tamis.storage.kernels import KERNEL, Int64s, UInt64s, fmix64
from tamis.storage.ledger import Drops

Float64s = npt.NDArray[np.float64]

NO_SCORE = "no_score"


class _Budgeted(Protocol):
    rows: int | None
    fraction: float | None


B = TypeVar("B", bound=_Budgeted)


def one_budget(operator: B) -> B:
    """An operator's validator: its budget is a number of rows or a share of them."""
    if (operator.rows is None) == (operator.fraction is None):
        raise ValueError("give either rows or fraction")
    return operator


class Budget(Selector):
    """A selector that works within each group of rows, or on all rows as one group."""

    per: str | None = Field(
        default=None, description="column whose values are groups (a null is a group of its own)"
    )

    def reads(self) -> set[str]:
        return self.groups_by()

    def groups_by(self) -> set[str]:
        return set() if self.per is None else {self.per}

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 100

    def groups(self, table: Table) -> npt.NDArray[np.int64]:
        """A group number for every row."""
        return (
            np.zeros(len(table), np.int64) if self.per is None else group_numbers(table, self.per)
        )


def group_numbers(table: Table, name: str) -> npt.NDArray[np.int64]:
    """For every row the number of its value in a column, from 0; a null is a value of its own."""
    return groups_of(table, name)[0]


def groups_of(table: Table, name: str) -> tuple[Int64s, pa.Array]:
    """As `group_numbers`, and the values that the numbers stand for, by number."""
    return numbers_of(table.column(name))


def numbers_of(column: pa.ChunkedArray) -> tuple[Int64s, pa.Array]:
    """For every value of a column a number from 0, nulls among them, and the values by number."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not len(column):
        return np.zeros(0, np.int64), pa.nulls(0, column.type)
    codes = pc.dictionary_encode(column, null_encoding="encode").combine_chunks()
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.chunk(0)
    return np.asarray(codes.indices, np.int64), codes.dictionary


class ScoreBudget(Budget):
    """A budget over a score; rows without one (null or nan) are dropped as ``no_score``."""

    by: str = Field(description="score or numeric column")

    def reads(self) -> set[str]:
        return super().reads() | {self.by}

    def numbers(self) -> set[str]:
        return {self.by}

    def scores(self, table: Table) -> Float64s:
        return as_floats(table.column(self.by))

    def drops(self, value: Float64s, kept: npt.NDArray[np.bool_], threshold: Float64s) -> Drops:
        """Drops with value and threshold; nan scores under their own reason."""
        rows = np.flatnonzero(~kept)
        missing = np.isnan(value[rows])
        drops = Drops.of(rows, "", value=value[rows], threshold=threshold[rows])
        drops.reasons = ["", NO_SCORE]
        drops.reason = missing.astype(np.int32)
        return drops

    def best(
        self,
        table: Table,
        order: Literal["highest", "lowest"],
        rows: int | None,
        share: float | None,
    ) -> Drops:
        """What keeping so many of the best rows (of each group) drops; ties by row_id."""
        value = self.scores(table)
        group = self.groups(table)
        missing = np.isnan(value)
        merit = np.where(missing, 0.0, value if order == "lowest" else -value)
        sorted_rows = np.lexsort((table.copy, table.id_lo, table.id_hi, merit, missing, group))
        within, last = first_of_groups(
            sorted_rows, group, lambda _, size: wanted(size, rows, share)
        )
        kept = np.zeros(len(value), np.bool_)
        kept[sorted_rows] = within
        kept &= ~missing
        threshold = np.full(len(value), np.nan)
        threshold[sorted_rows] = np.where(last >= 0, value[sorted_rows[last]], np.nan)
        return self.drops(value, kept, threshold)


def wanted(size: int, rows: int | None, fraction: float | None) -> int:
    """Rows that a group of some size keeps."""
    return min(size, rows) if rows is not None else int(np.floor(size * (fraction or 0.0) + 1e-9))


def first_of_groups(
    order: Int64s, group: Int64s, budget: Callable[[int, int], int]
) -> tuple[npt.NDArray[np.bool_], Int64s]:
    """Of rows sorted by group and then merit: which are within budget, and the last of each group.

    Args:
        budget: rows to keep of a group, by its number and its size.

    Returns a mask over `order`, and for each place of `order` the place of the last row kept in
    its group (-1 where the group keeps none).
    """
    ordered = group[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
    sizes = np.diff(np.r_[begins, len(order)])
    groups = zip(ordered[begins].tolist(), sizes.tolist(), strict=True)
    keep = np.array([budget(number, size) for number, size in groups], np.int64)
    place = np.arange(len(order)) - np.repeat(begins, sizes)
    last = np.where(keep > 0, begins + keep - 1, -1)
    return place < np.repeat(keep, sizes), np.repeat(last, sizes)


class Top(ScoreBudget):
    """Keep the rows with the best scores; ties by row_id."""

    operator: Literal["top"] = "top"
    rows: int | None = Field(default=None, ge=0, description="rows to keep (in each group)")
    fraction: float | None = Field(default=None, ge=0, le=1, description="share to keep")
    order: Literal["highest", "lowest"] = Field(default="highest", description="which are best")

    version: ClassVar[int] = 1

    _one_budget = model_validator(mode="after")(one_budget)

    def select(self, table: Table) -> Drops:
        return self.best(table, self.order, self.rows, self.fraction)


class Quantile(ScoreBudget):
    """Keep the rows whose score lies between two quantiles of the scores (both included).

    A quantile q is the smallest score that at least a share q of the scores do not exceed
    (Hyndman and Fan 1996, definition 1), so it is always a score that occurs.
    """

    operator: Literal["quantile"] = "quantile"
    low: float = Field(default=0.0, ge=0, le=1, description="lower quantile")
    high: float = Field(default=1.0, ge=0, le=1, description="upper quantile")

    version: ClassVar[int] = 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("low lies above high")
        return self

    def select(self, table: Table) -> Drops:
        value = self.scores(table)
        group = self.groups(table)
        scored = ~np.isnan(value)
        low, high = (
            group_quantile(value[scored], group[scored], int(group.max(initial=0)) + 1, q)[group]
            for q in (self.low, self.high)
        )
        kept = (value >= low) & (value <= high)
        return self.drops(value, kept, np.where(value < low, low, high))


def group_quantile(value: Float64s, group: Int64s, groups: int, q: float) -> Float64s:
    """By group number a quantile of the group's values, as `Quantile` defines it.

    Args:
        value: numbers, none of them nan.
        groups: how many group numbers there are; those without a value get nan.

    Example:
        >>> group_quantile(np.array([4.0, 1.0, 2.0]), np.array([0, 0, 2]), 3, 0.5).tolist()
        [1.0, nan, 2.0]
    """
    order = np.lexsort((value, group))
    size = np.bincount(group, minlength=groups)
    place = np.maximum(np.ceil(q * size - 1e-9).astype(np.int64) - 1, 0)
    first = np.cumsum(size) - size
    found: Float64s = np.full(groups, np.nan)
    found[size > 0] = value[order[(first + place)[size > 0]]]
    return found


@njit(**KERNEL)
def _draws(id_hi, id_lo, copy, seed, result):  # type: ignore[no-untyped-def]
    for i in range(result.shape[0]):
        h = fmix64(id_hi[i] ^ seed)
        h = fmix64(h ^ id_lo[i])
        result[i] = fmix64(h ^ uint64(copy[i]))


def draws(id_hi: UInt64s, id_lo: UInt64s, copy: npt.NDArray[np.uint32], seed: int) -> Float64s:
    """A number in [0, 1) for every row that depends on its id, its copy and the seed only."""
    result = np.empty(len(id_hi), np.uint64)
    _draws(id_hi, id_lo, copy, np.uint64(seed * 2 + 1), result)
    return (result >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Sample(Budget):
    """Keep a random share of the rows: each row's draw is a hash of its row_id and the seed.

    The same rows are drawn whatever their order, and a larger share contains a smaller one.
    With `fraction` the rows with a draw below it stay; with `rows` those with the lowest draws.
    """

    operator: Literal["sample"] = "sample"
    rows: int | None = Field(default=None, ge=0, description="rows to keep (in each group)")
    fraction: float | None = Field(default=None, ge=0, le=1, description="share to keep")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the draws")

    version: ClassVar[int] = 1

    _one_budget = model_validator(mode="after")(one_budget)

    def select(self, table: Table) -> Drops:
        value = draws(table.id_hi, table.id_lo, table.copy, self.seed)
        if self.fraction is not None:
            lost = np.flatnonzero(value >= self.fraction)
            return Drops.of(lost, "", value=value[lost], threshold=self.fraction)
        group = self.groups(table)
        order = np.lexsort((table.copy, table.id_lo, table.id_hi, value, group))
        within, last = first_of_groups(order, group, lambda _, size: wanted(size, self.rows, None))
        threshold = np.full(len(value), np.nan)
        threshold[order] = np.where(last >= 0, value[order[last]], np.nan)
        lost = np.sort(order[~within])
        return Drops.of(lost, "", value=value[lost], threshold=threshold[lost])
