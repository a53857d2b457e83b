"""The vectors of a table's rows, in an order that does not depend on where the rows lie."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tamis.scoring.operator import RowScorer
from tamis.selectors.reference import scored
from tamis.selectors.table import Table
from tamis.storage.errors import UserError
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vectors:
    """Vectors in canonical order, which is by row_id and copy.

    Attributes:
        matrix: float32 ``(n, d)``, rows of length one unless they were asked for as they are; a
            vector of zeros stays as it is.
        rows: int64 ``(n,)``, the row of the table that each belongs to.
    """

    matrix: Float32s
    rows: Int64s


def vectors_of(table: Table, name: str, unit: bool = True) -> Vectors:
    """The vectors in a column of a table.

    Args:
        name: a signal of an earlier stage or a column of the corpus: lists of numbers, all of one
            length.
        unit: whether to bring each to length one.

    Raises:
        UserError: naming the row, if a vector is null, of another length, or not finite.
    """
    matrix: Float32s | None = None
    done = 0
    for batch in table.batches([name]):
        values = _values(batch[name], name, table, done)
        if matrix is None:
            matrix = np.empty((len(table), values.shape[1]), np.float32)
        if values.shape[1] != matrix.shape[1]:
            raise UserError(
                f"{name}: expected {matrix.shape[1]} numbers, found {values.shape[1]} in row "
                f"{_row_id(table, done)}"
            )
        matrix[done : done + len(values)] = values
        done += len(values)
    if matrix is None:
        matrix = np.empty((0, 1), np.float32)
    rows = np.lexsort((table.copy, table.id_lo, table.id_hi)).astype(np.int64)
    matrix = matrix[rows]
    if unit:
        normalise(matrix)
    return Vectors(matrix, rows)


def reference_vectors(table: Table, reference: Table, name: str) -> Vectors:
    """The vectors of a reference: embedded as the corpus was, or a column where it has one too.

    Where a stage gave the corpus's vectors, a column of that name in the reference is not looked
    at: only vectors of one model can be compared.

    Raises:
        UserError: if no row scorer made the corpus's own, and the reference has no such column.
    """
    found = table.scores.get(name)
    if found is not None or name not in reference.names():
        if found is None or not isinstance(found.operator, RowScorer):
            raise UserError(
                f"the reference has no column {name!r}, and no stage of the recipe made the "
                "corpus's own",
                mend="add the column to the reference, or put `- operator: embedding` before",
            )
        reference = scored(reference, found.operator)
    return vectors_of(reference, name)


def is_vector(kind: pa.DataType) -> bool:
    """Whether `vectors_of` takes a column of this type."""
    listed = (
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    )
    return bool(
        listed and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
    )


def _values(column: pa.Array, name: str, table: Table, begin: int) -> Float32s:
    """A batch's vectors as a matrix."""
    if not is_vector(column.type):
        raise UserError(
            f"{name}: expected a list of numbers in every row, found {column.type}",
            mend="name a column of embeddings, or put `- operator: embedding` before",
        )
    if column.null_count:
        first = int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise UserError(f"{name}: the vector of row {_row_id(table, begin + first)} is null")
    lengths = np.asarray(pc.list_value_length(column))
    if len(lengths) and (lengths != lengths[0]).any():
        first = int(np.flatnonzero(lengths != lengths[0])[0])
        raise UserError(
            f"{name}: expected {lengths[0]} numbers, found {lengths[first]} in row "
            f"{_row_id(table, begin + first)}"
        )
    flat = column.flatten().cast(pa.float32(), safe=False)
    size = int(lengths[0]) if len(lengths) else 1
    values: Float32s = np.asarray(flat.fill_null(float("nan"))).reshape(len(column), size)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{name}: the vector of row {_row_id(table, begin + first)} holds a null, NaN or "
            "infinity"
        )
    return values


def _row_id(table: Table, row: int) -> str:
    at = slice(row, row + 1)
    return str(hex_ids(table.id_hi[at], table.id_lo[at])[0])


def normalise(matrix: Float32s, block: int = 1 << 14) -> None:
    """Bring every row to length one, in place; the sums are float64 and of fixed order."""
    for begin in range(0, len(matrix), block):
        part = matrix[begin : begin + block]
        wide = part.astype(np.float64)
        length = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
        part[:] = wide / np.where(length == 0, 1, length)
