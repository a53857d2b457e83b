"""Commands on training records: scores without a corpus, and what other tools logged."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.commands.figures import tell_figures, told_figures
from tamis.commands.options import AsJson, Workers
from tamis.console import say

if TYPE_CHECKING:
    from tamis.scoring.record_scores import Account
    from tamis.storage.dynamics import Dynamics


def dynamics(
    folder: Annotated[
        list[str], typer.Argument(metavar="FOLDER…", help="Folders of training records: runs.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Parquet file for the scores, by row_id.")
    ] = None,
    skip_epochs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Epochs at the beginning that do not count; the stage `aum` leaves out one.",
        ),
    ] = 0,
    until: Annotated[
        int | None, typer.Option(min=1, help="Epochs after which none counts; all if not given.")
    ] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Score rows by the records of their training: margins, data map, forgetting, EL2N, loss."""
    import duckdb

    from tamis.flows.dynamics import chosen, scores_of
    from tamis.scoring.record_scores import SCORES
    from tamis.storage.catalog import figures_of

    read = chosen(folder, skip_epochs, until)
    found, account = scores_of(read, out=out, workers=workers)
    names = [*SCORES, "updates", "epochs"]
    with duckdb.connect() as connection:
        if out is None:
            connection.register("found", found.to_arrow())
        else:
            connection.from_parquet(str(out)).create_view("found")
        figures = figures_of(connection, "found", names)
    if as_json:
        print(json.dumps({**_told(read, account), "scores": told_figures(figures)}))
        return
    tell_figures(figures)
    for line in _lines(read, account):
        say(line)
    if out is not None:
        say(f"scores   {out}")


def _told(read: "Dynamics", account: "Account") -> dict[str, Any]:
    def named(rows: list[tuple[Any, int, int]]) -> list[dict[str, Any]]:
        return [dict(zip(("row_id", "run", "epoch"), row, strict=True)) for row in rows]

    return {
        "rows": account.rows,
        "updates": account.updates,
        "runs": read.runs,
        "epochs": [read.first, read.last],
        "missing_epochs": [{"run": run, "epoch": epoch} for run, epoch in read.missing()],
        "incomplete_rows": account.incomplete,
        "first_incomplete": named(account.first_incomplete),
        "unknown_records": account.unknown,
        "first_unknown": named(account.first_unknown),
        "threshold_rows": account.thresholds,
    }


def _lines(read: "Dynamics", account: "Account") -> list[str]:
    """What was read, and what was missing in it."""
    lines = [
        f"records  {account.updates:,} of {account.rows:,} rows, {_many(read.runs, 'run')}, "
        f"epochs {read.first} to {read.last}"
    ]
    missing = read.missing()
    if missing:
        several = ", ".join(f"{epoch} of run {run}" for run, epoch in missing[:5])
        lines.append(
            f"missing  {_many(len(missing), 'epoch')} without a file: epoch {several}"
            + (", …" if len(missing) > 5 else "")
        )
    if account.incomplete:
        lines.append(
            f"missing  {_many(account.incomplete, 'row')} not in every epoch; means are over those "
            f"that have them: {_places(account.first_incomplete, account.incomplete)}"
        )
    if account.unknown:
        lines.append(
            f"unknown  {_many(account.unknown, 'record')} with logits that are no finite numbers; "
            f"their rows have no scores: {_places(account.first_unknown, account.unknown)}"
        )
    if account.thresholds:
        lines.append(
            f"unknown  {_many(account.thresholds, 'row')} only ever seen as threshold samples; "
            "they have no scores"
        )
    return lines


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _places(rows: list[tuple[Any, int, int]], count: int) -> str:
    named = ", ".join(f"{row_id} (run {run}, epoch {epoch})" for row_id, run, epoch in rows)
    return named + (", …" if count > len(rows) else "")


def import_dynamics(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Table or folder of logits by row and epoch.")
    ],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="For the training records.")],
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C", help="Names of the logits in their order, where labels are names."
        ),
    ] = None,
    keep_logits: Annotated[bool, typer.Option("--logits", help="Keep all logits.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make training records of the logits that another tool has logged."""
    from tamis.scoring.logged_logits import import_logits

    names = None if classes is None else classes.split(",")
    counts = import_logits(source, folder, classes=names, keep_logits=keep_logits)
    if as_json:
        print(json.dumps(counts))
        return
    say(f"records  {counts['records']:,} of epochs {counts['first']} to {counts['last']}: {folder}")
    say(f"try      tamis dynamics {folder}")
