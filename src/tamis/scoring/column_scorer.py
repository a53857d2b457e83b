"""Scores that are arithmetic on columns which earlier stages left, such as sums of log-probs."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tamis.scoring.operator import RowScorer
from tamis.storage.errors import UserError

Float64s = npt.NDArray[np.float64]

#: Numbers of lists turned into float64 at a time: 32 MB.
_BLOCK = 1 << 22


class ColumnScorer(RowScorer):
    """A row scorer that reads numbers and no text; its scores are float64 columns.

    A score is null, never zero, where a column that it reads is null or nan, where a count that it
    divides by is zero, and where the result is not defined (such as inf - inf). Other infinities
    stay as they are. Columns go by the stage's name, so that a recipe may ask for a score twice.
    """

    roles: ClassVar[tuple[str, ...]] = ()

    def reads(self) -> set[str]:
        """Names of the columns that it reads."""
        raise NotImplementedError

    def numbers(self) -> set[str]:
        """Those of them that are not lists."""
        return self.reads()

    def columns(self) -> tuple[str, ...]:
        """Names of the scores; one by the stage's name if not said otherwise."""
        return (self.stage,)

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        """The scores of a batch, one array for each of `columns`; nan where there is none."""
        raise NotImplementedError

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "column": self.stage}

    def fields(self) -> pa.Schema:
        """Nullable float64 columns, named after the stage."""
        return pa.schema([pa.field(name, pa.float64()) for name in self.columns()])

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        with np.errstate(all="ignore"):  # what is not defined becomes nan, and so null
            found = self.values(batch)
        arrays = [pa.array(value, pa.float64(), mask=np.isnan(value)) for value in found]
        return pa.record_batch(arrays, schema=self.fields())


def numbers(batch: pa.RecordBatch, name: str) -> Float64s:
    """A column as float64, nan where it is null.

    Raises:
        UserError: if it does not hold numbers.
    """
    column = batch[name]
    kind = column.type
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    ):
        raise UserError(f"{name}: expected numbers, found {kind}")
    wide = column.cast(pa.float64(), safe=False)
    return np.asarray(pc.fill_null(wide, float("nan")), np.float64)


def vectors(batch: pa.RecordBatch, name: str) -> Float64s:
    """A column of lists of one length as a float64 matrix, a row of nan where a list is null.

    Raises:
        UserError: if it does not hold lists of numbers, or lists of several lengths.
    """
    column = batch[name]
    kind = column.type
    if pa.types.is_null(kind):
        return np.full((len(column), 1), np.nan)
    listed = (
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    )
    if not listed or not (
        pa.types.is_floating(kind.value_type)
        or pa.types.is_integer(kind.value_type)
        or pa.types.is_boolean(kind.value_type)
    ):
        raise UserError(f"{name}: expected lists of numbers, found {kind}")
    there = np.asarray(column.is_valid())
    lists = column if there.all() else column.filter(pa.array(there))
    lengths = np.unique(np.asarray(pc.list_value_length(lists)))
    if len(lengths) > 1:
        raise UserError(
            f"{name}: expected lists of one length, found {lengths[0]} and {lengths[-1]} numbers"
        )
    size = int(lengths[0]) if len(lengths) else 1
    matrix = np.full((len(column), size), np.nan)
    flat = lists.flatten().cast(pa.float64(), safe=False)
    matrix[there] = np.asarray(pc.fill_null(flat, float("nan"))).reshape(len(lists), size)
    return matrix


def vector_blocks(batch: pa.RecordBatch, name: str) -> Iterator[tuple[slice, Float64s]]:
    """As `vectors`, a few rows at a time where there are many numbers in each.

    Yields:
        The rows, and their matrix; all matrices of one width, but for rows that are all null.
    """
    column = batch[name]
    width = 1
    if not pa.types.is_null(column.type):
        vectors(batch.slice(0, 1), name)  # says what is wrong with the type
        width = pc.max(pc.list_value_length(column)).as_py() or 1
    height = max(1, _BLOCK // width)
    for begin in range(0, batch.num_rows, height):
        yield slice(begin, begin + height), vectors(batch.slice(begin, height), name)


def at_level(
    batch: pa.RecordBatch, name: str, levels: Sequence[float], level: float, parameter: str
) -> Float64s:
    """One of several numbers that a signal leaves for each of its levels.

    Args:
        levels: those of the signal, in its order.
        parameter: what the signal calls them.

    Raises:
        UserError: if the lists have another length than `levels`.
    """
    matrix = vectors(batch, name)
    if matrix.shape[1] != len(levels) and not np.isnan(matrix).all():
        raise UserError(
            f"{name}: expected {len(levels)} numbers a row ({', '.join(map(str, levels))}), "
            f"found {matrix.shape[1]}",
            mend=f"set `levels` to the `{parameter}` of the stage that gives it",
        )
    if matrix.shape[1] != len(levels):
        return np.full(batch.num_rows, np.nan)
    return matrix[:, list(levels).index(level)]


def ratio(total: Float64s, count: Float64s) -> Float64s:
    """Total over count; nan where there is nothing to count.

    Example:
        >>> ratio(np.array([3.0, 0.0, -2.0]), np.array([2.0, 0.0, 0.0])).tolist()
        [1.5, nan, nan]
    """
    found: Float64s = np.full(len(total), np.nan)
    np.divide(total, count, out=found, where=count > 0)
    return found


def log_sigmoid(x: Float64s) -> Float64s:
    """log(1 / (1 + exp(-x))), exact for large values of either sign.

    Example:
        >>> [round(v, 6) for v in log_sigmoid(np.array([0.175, -800.0])).tolist()]
        [-0.60947, -800.0]
    """
    found: Float64s = -np.logaddexp(0.0, -x)
    return found
