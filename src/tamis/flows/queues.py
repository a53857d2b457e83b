"""The queues of rows in review: files for a person to fill in, which nobody writes over."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tamis.flows.marks import Marked
from tamis.flows.steps import Run, rewritten_in, table_of
from tamis.scoring.evaluate import Evaluated
from tamis.selectors.label_review import LabelReview
from tamis.selectors.labels import Int32s, as_names
from tamis.selectors.review_files import write_csv
from tamis.selectors.table import Table
from tamis.storage.columns import source_key
from tamis.storage.files import digest_of, whole_file
from tamis.storage.hashing import hex_ids
from tamis.storage.ledger import RULES
from tamis.storage.places import Place, absolute, kind_of

_VERSION = 1


def write_queues(run: Run) -> dict[str, list[Place]]:
    """Write the queue of every stage that put rows into review, as CSV and as Parquet.

    A queue lists the rows that are in review at the end of the run, or that the stage holds out. It
    lies under a name of its own, and a file that is there is left as it is: a person may have
    filled it in.

    Returns:
        The files by stage.
    """
    found = {}
    last = _last_marks(run)
    for number, marked in enumerate(run.marked):
        evaluated = run.evaluated[marked.stage]
        if isinstance(evaluated.operator, LabelReview):
            found[marked.stage] = _write(run, evaluated.operator, evaluated, marked, last, number)
    return found


def _last_marks(run: Run) -> Int32s:
    """For every row the number of the last marker that acted on it, -1 if none did."""
    last = np.full(len(run.kept), -1, np.int32)
    for number, marked in enumerate(run.marked):
        last[marked.rows] = number
    return last


def _write(
    run: Run,
    stage: LabelReview,
    evaluated: Evaluated,
    marked: Marked,
    last: Int32s,
    number: int,
) -> list[Place]:
    inside = np.zeros(len(run.kept), np.bool_)
    asked = marked.rows[last[marked.rows] == number]
    inside[asked if stage.held_out else asked[run.kept[asked]]] = True
    # As they were then: of rows that are held out no later stage knows anything.
    rewritten = rewritten_in(run.recipe, marked.columns)
    table = replace(table_of(run, inside), columns=marked.columns, rewritten=rewritten)
    roles = [role for role in ("text", "label") if role in table.columns]
    key = digest_of(
        [
            _VERSION,
            evaluated.steps,
            np.packbits(inside).tobytes().hex() if inside.any() else "",
            [[source_key(table.columns[r], s) for s in run.corpus.shards] for r in roles],
        ]
    )
    home = absolute(run.workspace) / "review"
    places = [home / f"{stage.stage}-{key[:8]}.{kind}" for kind in ("csv", "parquet")]
    if all(kind_of(place) == "file" for place in places):
        return places
    queue = _queue(stage, table, "text" in roles)
    for place in places:
        if kind_of(place) is None:
            with whole_file(place, stands=lambda: True) as temporary:
                if place.suffix == ".csv":
                    write_csv(_flat(queue), temporary)
                else:
                    pq.write_table(queue, temporary, compression="zstd")
    return places


def _queue(stage: LabelReview, table: Table, with_text: bool) -> pa.Table:
    """The rows of a queue, those first that tell most."""
    names = stage.stage
    count = len(table)
    none = pa.nulls(count, pa.string())

    def column(name: str) -> pa.Array:
        found = table.column(name)
        return pa.concat_arrays([pa.nulls(0, found.type), *found.chunks])

    columns = {
        "row_id": pa.array(hex_ids(table.id_hi, table.id_lo), pa.string()),
        "copy": pa.array(table.copy),
    }
    if with_text:
        columns["text"] = table.texts(np.arange(count))
    columns |= {
        "given_label": as_names(table.role("label")),
        "suggested_label": none if stage.suggested is None else as_names(column(stage.suggested)),
        "p_wrong": pc.cast(column(stage.by), pa.float64(), safe=False),
        "information": column(f"{names}_information"),
        "votes": column(f"{names}_rules"),
        **{name: column(name) for name in stage.show},
        "label": none,
        "verdict": none,
    }
    place = np.asarray(column(f"{names}_place"))
    found = pa.table(columns)
    return found.take(pa.array(np.argsort(place)))


def _flat(queue: pa.Table) -> pa.Table:
    """A queue of texts and numbers only, as a spreadsheet holds them."""
    for place, field in enumerate(queue.schema):
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            tell = _votes if field.type == RULES else str
            told = [None if v is None else tell(v) for v in queue[field.name].to_pylist()]
            queue = queue.set_column(place, field.name, pa.array(told, pa.string()))
    return queue


def _votes(votes: list[dict[str, Any]]) -> str:
    return "; ".join(
        f"{vote['rule']} {_number(vote['value'])} ({_number(vote['threshold'])})" for vote in votes
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
