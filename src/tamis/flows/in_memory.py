"""Row scorers on what is there already: a frame in memory, or columns that a run has stored."""

from typing import Any

import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from tamis.recipe import row_scorer
from tamis.scoring.operator import RowScorer
from tamis.storage.catalog import open_catalog, stored_batches, views_of
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.errors import UserError
from tamis.storage.places import Place, shown

_KEYS = ["shard", "row", "row_id", "copy"]


def score_frame(
    operator: str, frame: Any, params: dict[str, Any], roles: dict[str, str]
) -> pl.DataFrame:
    """See `tamis.score`."""
    scorer = _scorer(operator, params)
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


def score_stored(operator: str, workspace: Place, params: dict[str, Any]) -> pl.DataFrame:
    """Compute a scorer that reads columns only, on those that a run has stored.

    Returns:
        ``row_id``, ``copy`` and the scores, of all rows of the corpus, those that were dropped
        included, and of rows that stages made; null where what it reads was not evaluated.

    Raises:
        UserError: for a scorer that reads texts, and for columns that are not there.
    """
    scorer = _scorer(operator, params)
    if scorer.used_roles():
        raise UserError(
            f"{operator} reads the role {scorer.used_roles()[0]!r}, not only what a run has stored",
            mend="put it into the recipe: the other stages are not computed again",
        )
    with open_catalog(workspace) as connection:
        known = views_of(connection)
        for name in sorted(scorer.reads() - known.keys()):
            raise UserError(
                f"{operator} reads {name!r}, and the run has no such column",
                where=shown(workspace),
                mend=f"it has {', '.join(sorted(known.keys() - set(_KEYS)))}",
            )
        wanted = {name: known[name] for name in sorted(scorer.reads())}
        parts = []
        for batch in stored_batches(connection, wanted, BATCH_ROWS):
            made = scorer.compute(batch.select(list(wanted)))
            parts.append(
                pa.table([*batch.select(_KEYS), *made], names=[*_KEYS, *made.schema.names])
            )
    keys = zip(_KEYS, (pa.int32(), pa.int64(), pa.string(), pa.uint32()), strict=True)
    schema = pa.schema([*(pa.field(*key) for key in keys), *scorer.fields()])
    table = pa.concat_tables([part.cast(schema) for part in parts] or [schema.empty_table()])
    found = pl.from_arrow(table.sort_by([("shard", "ascending"), ("row", "ascending")]))
    assert isinstance(found, pl.DataFrame)
    return found.drop("shard", "row")


def _scorer(operator: str, params: dict[str, Any]) -> RowScorer:
    try:
        return row_scorer(operator)(**params)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"{operator}: {f'{where}: ' if where else ''}{message}") from error


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
