"""Whether texts are in a history already: the rows of a run, or another corpus."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from fsspec import available_protocols

from tamis.flows.history import history_of
from tamis.flows.in_memory import as_arrow
from tamis.selectors.matching import TableSide, TextSide, matches
from tamis.selectors.reference import EXCERPT
from tamis.storage.corpus import Progress
from tamis.storage.errors import UserError
from tamis.storage.hashing import hex_ids
from tamis.storage.ingest import format_of, open_corpus
from tamis.storage.places import kind_of, place_of, shown
from tamis.storage.tasks import Threads

#: Columns of the answer, in order.
ANSWER = {
    "new": pl.Boolean,
    "row_id": pl.String,
    "copy": pl.UInt32,
    "similarity": pl.Float64,
    "excerpt": pl.String,
    "action": pl.String,
    "stage": pl.String,
    "reason": pl.String,
    "partner": pl.String,
    "partner_copy": pl.UInt32,
    "partner_source": pl.String,
    "partner_similarity": pl.Float64,
}


def check_texts(
    texts: pa.Array,
    against: str,
    *,
    threshold: float | None = None,
    text: str = "text",
    format: str | None = None,
    workspace: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[pl.DataFrame, int, float]:
    """For every text the row of a history that it resembles most; see `tamis.check`.

    Returns:
        A row for every text (columns `ANSWER`), rows of the history, and the threshold.

    Raises:
        UserError: if there is no such history, or a text is null.
    """
    if texts.null_count:
        first = int(np.flatnonzero(np.asarray(texts.is_null()))[0])
        raise UserError(f"text {first + 1} of {len(texts)} is null", mend="leave it out")
    runner = Threads(workers or len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="tamis-") as scratch:
        history = history_of(
            against,
            Path(scratch),
            runner,
            progress or (lambda name, done, total: None),
            text=text,
            format=format,
            workspace=workspace,
        )
        stage = history.resemblance
        if threshold is not None:
            if not 0 < threshold <= 1:
                raise UserError(f"expected a threshold above 0 and up to 1, found {threshold:g}")
            stage = stage.model_copy(update={"threshold": threshold})
        side = TableSide(history.table, history.signed)
        found = matches(
            TextSide(history.rewrite(texts)),
            side,
            stage.signal,
            stage.banding,
            stage.threshold,
            runner.workers,
        )
        high, low, copy = side.ids(found.partner)
        known = {
            "row_id": hex_ids(high, low),
            "copy": copy.tolist(),
            "similarity": found.similarity.tolist(),
            "excerpt": history.table.texts(found.partner, EXCERPT).to_pylist(),
        }
        decided = [history.decision(row) for row in found.partner.tolist()]
    rows: list[dict[str, Any]] = [{"new": True} for _ in range(len(texts))]
    for place, row in enumerate(found.rows.tolist()):
        rows[row] = {
            "new": False,
            **{name: values[place] for name, values in known.items()},
            **decided[place],
        }
    answers = pl.from_dicts(rows, ANSWER) if rows else pl.DataFrame(schema=ANSWER)
    return answers, len(side), stage.threshold


def as_texts(texts: Any, column: str) -> pa.Array:
    """Texts given as a string, a list of them, or a table with a column of them.

    Raises:
        UserError: if there is no such column, or nothing that can be a text.
    """
    if isinstance(texts, str):
        return one_text(texts)
    if isinstance(texts, list | tuple):
        try:
            return pa.array(texts, pa.large_string())
        except (pa.ArrowException, TypeError) as error:
            raise UserError(f"expected texts ({error})") from error
    table = as_arrow(texts)
    if column not in table.column_names:
        raise UserError(
            f"no column {column!r}", mend=f"name it with text=: {', '.join(table.column_names)}"
        )
    try:
        return table[column].cast(pa.large_string()).combine_chunks()
    except pa.ArrowException as error:
        raise UserError(f"column {column!r} holds no texts ({error})") from error


def one_text(text: str) -> pa.Array:
    """One text.

    Raises:
        UserError: if it is nothing but white space.
    """
    if not text.strip():
        raise UserError("the text is empty")
    return pa.array([text], pa.large_string())


def read_texts(record: str, text: str = "text", format: str | None = None) -> pa.Array:
    """The texts that a command line names: a file of rows, a file that is one text, or itself.

    Raises:
        UserError: for a file without the column, and a text of nothing but white space.
    """
    scheme, separator, _ = record.partition("://")
    if separator:  # a text may hold a URL
        named = len(record.split()) == 1 and scheme in available_protocols()
    else:
        named = "\n" not in record and len(record) < 4096
    place = place_of(record) if named else None
    try:
        kind = kind_of(place) if place is not None else None
    except (OSError, ValueError):  # no name of a file
        kind = None
    if kind is None:
        return one_text(record)
    if format is None and kind == "file" and not _has_rows(record):
        assert place is not None
        try:
            return one_text(place.read_text("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError("not UTF-8 text", where=shown(record)) from error
    with tempfile.TemporaryDirectory(prefix="tamis-") as scratch:
        corpus = open_corpus(record, Path(scratch), format=format)
        if text not in corpus.schema.names:
            raise UserError(
                f"no column {text!r}",
                where=shown(record),
                mend=f"name one with --text: {', '.join(corpus.schema.names)}",
            )
        parts = [shard.table([text]) for shard in corpus.shards]
        empty = pa.schema([corpus.schema.field(text)]).empty_table()
        return as_texts(pa.concat_tables([empty, *parts], promote_options="permissive"), text)


def _has_rows(record: str) -> bool:
    try:
        format_of(record)
    except UserError:
        return False
    return True
