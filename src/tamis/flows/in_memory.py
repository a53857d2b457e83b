"""Operators on frames that are in memory already."""

from typing import Any

import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from tamis.recipe import row_scorer
from tamis.storage.errors import UserError


def score_frame(
    operator: str, frame: Any, params: dict[str, Any], roles: dict[str, str]
) -> pl.DataFrame:
    """See `tamis.score`."""
    try:
        scorer = row_scorer(operator)(**params)
    except ValidationError as error:
        raise UserError(f"{operator}: {error.errors()[0]['msg']}") from error
    table = as_arrow(frame)
    columns = []
    for role in scorer.used_roles():
        name = roles.get(role, role)
        if name not in table.column_names:
            raise UserError(
                f"{operator} reads the role {role!r}, and there is no column {name!r}",
                mend=f"name it, as in {role}='{table.column_names[0]}'",
            )
        if table[name].null_count:
            raise UserError(f"column {name!r} has {table[name].null_count} nulls")
        columns.append(table[name])
    unknown = set(roles) - set(scorer.used_roles())
    if unknown:
        raise UserError(f"{operator} has no role {sorted(unknown)[0]!r}")
    others = sorted(scorer.reads())
    for name in others:
        if name not in table.column_names:
            raise UserError(
                f"{operator} reads {name!r}, and there is no such column",
                mend=f"the table has {', '.join(table.column_names)}",
            )
        columns.append(table[name])
    read = pa.table(columns, names=[*scorer.used_roles(), *others])
    parts = [scorer.compute(batch) for batch in read.to_batches()]
    found = pl.from_arrow(pa.Table.from_batches(parts, schema=scorer.fields()))
    assert isinstance(found, pl.DataFrame)
    return found


def as_arrow(frame: Any) -> pa.Table:
    """A polars, pandas or Arrow table as an Arrow table.

    Raises:
        UserError: for anything else.
    """
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if isinstance(frame, pl.DataFrame):
        return frame.to_arrow()
    if hasattr(frame, "__arrow_c_stream__"):
        return pa.table(frame)
    if hasattr(frame, "iloc"):
        return pa.Table.from_pandas(frame, preserve_index=False)
    raise UserError(f"expected a polars, pandas or Arrow table, found {type(frame).__name__}")
