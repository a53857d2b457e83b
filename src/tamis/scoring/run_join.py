"""Tables of the same runs put side by side: proportions in one file, losses in another.

Example:
    >>> import polars
    >>> mixtures = polars.DataFrame({"index": [1, 2], "mix_web": [0.5, 1.0]})
    >>> losses = polars.DataFrame({"index": [2, 1], "loss_web": [2.9, 3.1]})
    >>> table, keys = joined([("mixtures.csv", mixtures), ("losses.csv", losses)])
    >>> keys, table["loss_web"].to_list()
    (['index'], [3.1, 2.9])
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tamis.storage.errors import UserError

if TYPE_CHECKING:
    from polars import DataFrame

#: Rows that an error names.
_NAMED = 3


def joined(tables: "Sequence[tuple[str, DataFrame]]") -> "tuple[DataFrame, list[str]]":
    """One table of all, in the order of the first one's rows, and the columns joined by.

    Two tables are joined by all columns that both have. Every row must have exactly one partner.

    Args:
        tables: what each is called in errors, and the table.

    Raises:
        UserError: if two share no column, hold a shared one as different types, or a run is there
            twice or in one of them only. It says which rows, counted from 1.
    """
    (name, table), *others = tables
    keys: list[str] = []
    for other_name, other in others:
        shared = [column for column in table.columns if column in other.columns]
        if "" in shared and len(shared) > 1:  # a number of the row, as pandas writes it
            table, other = table.drop(""), other.drop("")
            shared.remove("")
        if not shared:
            raise UserError(
                f"{name} and {other_name} have no column in common to join by",
                mend="give both a column that names the run, called the same; there: "
                f"{listed(table.columns)}; and {listed(other.columns)}",
            )
        table, other = _alike(name, table, other_name, other, shared)
        _once(name, table, shared)
        _once(other_name, other, shared)
        _paired(name, table, other_name, other, shared)
        table = table.join(other, on=shared, how="left", maintain_order="left")
        keys += [column for column in shared if column not in keys]
    return table, keys


def _alike(
    name: str, table: "DataFrame", other_name: str, other: "DataFrame", shared: Sequence[str]
) -> "tuple[DataFrame, DataFrame]":
    """Both with shared columns of the same types."""
    import polars as pl

    for column in shared:
        here, there = table[column].dtype, other[column].dtype
        if here == there:
            continue
        if not (here.is_numeric() and there.is_numeric()):
            raise UserError(
                f"column {column!r}, which the tables are joined by, holds {here} in {name} and "
                f"{there} in {other_name}",
                mend="write it the same way in both, or rename it in one",
            )
        as_float = pl.col(column).cast(pl.Float64)
        table, other = table.with_columns(as_float), other.with_columns(as_float)
    return table, other


def _once(name: str, table: "DataFrame", keys: Sequence[str]) -> None:
    """Raise if a run is in a table twice."""
    again = table.select(keys).is_duplicated()
    if not again.any():
        return
    import polars as pl

    rows = table.select(keys).with_row_index("\0row", offset=1).filter(again)
    first = rows.row(0)[1:]
    twins = rows.filter(
        pl.all_horizontal(pl.col(k).eq_missing(v) for k, v in zip(keys, first, strict=True))
    )
    numbers = [str(n) for n in twins["\0row"].head(_NAMED)]
    raise UserError(
        f"rows {', '.join(numbers)} of {name} have the same {_named(keys, first)}, and tables are "
        "joined by it",
        mend="keep one of them, or give both tables a further column that tells them apart",
    )


def _paired(
    name: str, table: "DataFrame", other_name: str, other: "DataFrame", keys: Sequence[str]
) -> None:
    """Raise if a row of one has no partner in the other."""
    said = []
    for here, own, rest in ((name, table, other), (other_name, other, table)):
        rows = own.select(keys).with_row_index("\0row", offset=1)
        alone = rows.join(rest.select(keys), on=keys, how="anti", maintain_order="left")
        if len(alone):
            named = [f"row {row[0]} ({_named(keys, row[1:])})" for row in alone.head(_NAMED).rows()]
            more = f" and {len(alone) - _NAMED:,} more" if len(alone) > _NAMED else ""
            said.append(f"in {here} only: {', '.join(named)}{more}")
    if said:
        raise UserError(
            f"joined by {listed(keys)}, some runs have no partner; {'; '.join(said)}",
            mend="remove or add them; rename columns that have one name and mean two things",
        )


def _named(keys: Sequence[str], values: Sequence[object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))


def listed(columns: Sequence[str], most: int = 12) -> str:
    """Names of columns, the first few of many."""
    more = f" and {len(columns) - most} more" if len(columns) > most else ""
    return ", ".join(repr(name) for name in columns[:most]) + more
