"""What each of several detectors says of a row, as the ledger keeps it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.selectors.table import Table
from tamis.storage.errors import UserError
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import RULES, Float64s

_ENTRY = RULES.value_type


class Votes(NamedTuple):
    """Entries of the ledger's `rules`, in any order.

    Attributes:
        row: the row that each is about.
        rule: its name, string.
        value, threshold: nan where there is none.
    """

    row: Int64s
    rule: pa.Array
    value: Float64s
    threshold: Float64s

    @classmethod
    def of(cls, rows: Int64s, rule: str, value: Float64s, threshold: float) -> "Votes":
        """One detector's, for some rows."""
        names = pa.repeat(rule, len(rows)).cast(pa.string())
        return cls(rows, names, value, np.full(len(rows), threshold))


def rules_of(votes: Sequence[Votes], rows: Int64s) -> pa.Array:
    """For each of some ascending rows what was said of it, in the order given (type `RULES`)."""
    row = np.concatenate([np.zeros(0, np.int64), *(one.row for one in votes)])
    order = np.argsort(row, kind="stable")
    order = order[np.isin(row[order], rows)]
    names = pa.concat_arrays([pa.nulls(0, pa.string()), *(one.rule for one in votes)])
    value, threshold = (
        np.concatenate([np.zeros(0), *(one[at] for one in votes)])[order] for at in (2, 3)
    )
    entries = pa.StructArray.from_arrays(
        [
            names.take(pa.array(order)),
            pa.array(value, from_pandas=True),
            pa.array(threshold, from_pandas=True),
        ],
        fields=list(_ENTRY.fields),
    )
    cuts = np.searchsorted(row[order], rows)
    offsets = pa.array(np.r_[cuts, len(order)].astype(np.int32))
    return pa.ListArray.from_arrays(offsets, entries, type=RULES)


def stored_votes(table: Table, name: str, rows: Int64s) -> Votes:
    """The votes that a column of lists holds for some ascending rows.

    Raises:
        UserError: if the column is no list of `rule`, `value` and `threshold`.
    """
    found = [Votes(np.zeros(0, np.int64), pa.nulls(0, pa.string()), np.zeros(0), np.zeros(0))]
    begin = 0
    for batch in table.batches([name]):
        column = batch[name]
        _check(column.type, name)
        first, last = np.searchsorted(rows, [begin, begin + len(column)])
        here = rows[first:last]
        lists = column.take(pa.array(here - begin))
        entries = pc.list_flatten(lists)
        value, threshold = (
            np.asarray(pc.fill_null(entries.field(part).cast(pa.float64()), np.nan))
            for part in ("value", "threshold")
        )
        row = here[np.asarray(pc.list_parent_indices(lists))]
        found.append(Votes(row, entries.field("rule").cast(pa.string()), value, threshold))
        begin += len(column)
    return Votes(
        np.concatenate([one.row for one in found]),
        pa.concat_arrays([one.rule for one in found]),
        np.concatenate([one.value for one in found]),
        np.concatenate([one.threshold for one in found]),
    )


def _check(kind: pa.DataType, name: str) -> None:
    fits = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    fits = fits and pa.types.is_struct(kind.value_type)
    if not fits or not set(_ENTRY.names) <= set(kind.value_type.names):
        raise UserError(
            f"{name}: expected lists of rule, value and threshold, found {kind}",
            mend="rename the column of the corpus",
        )
