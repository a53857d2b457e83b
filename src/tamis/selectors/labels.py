"""The classes that rows are labelled with, as numbers."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tamis.selectors.table import Table
from tamis.storage.errors import UserError
from tamis.storage.hashing import hex_ids

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Labels:
    """Labels of a table's rows.

    Attributes:
        codes: int32 ``(n,)``, the number of every row's class.
        classes: their names as text, ascending by code point, so that a class has one number
            whatever the order of the rows.
    """

    codes: Int32s
    classes: list[str]


def is_label(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold one class a row."""
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_floating,
    )
    return any(test(kind) for test in tests)


def labels_of(table: Table) -> Labels:
    """The classes in the role `label`.

    Raises:
        UserError: naming the row, if a label is nan or a fraction.
    """
    column = table.role("label")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = _whole(column, table)
    if not len(column):
        return Labels(np.zeros(0, np.int32), [])
    encoded = pc.dictionary_encode(column.cast(pa.large_string())).unify_dictionaries()
    named = encoded.combine_chunks()
    if isinstance(named, pa.ChunkedArray):
        named = pa.concat_arrays(named.chunks)
    names: list[str] = named.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    number = np.empty(len(names), np.int32)
    number[order] = np.arange(len(names), dtype=np.int32)
    return Labels(number[np.asarray(named.indices)], [names[place] for place in order])


def _whole(column: pa.ChunkedArray, table: Table) -> pa.ChunkedArray:
    """Labels that were stored as floats, as integers."""
    value = np.asarray(column.cast(pa.float64()))
    bad = np.flatnonzero(~np.isfinite(value) | (value != np.round(value)))
    if len(bad):
        at = slice(bad[0], bad[0] + 1)
        raise UserError(
            f"label: expected classes, found {value[bad[0]]:g} in row "
            f"{hex_ids(table.id_hi[at], table.id_lo[at])[0]}",
            where="corpus.roles.label",
            mend="cut numbers into classes, and drop rows without one before",
        )
    return pa.chunked_array([value.astype(np.int64)])
