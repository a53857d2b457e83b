"""What the commands print: tables, figures, progress, and what to look at next."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polars import DataFrame

    from tamis.flows.differences import Difference
    from tamis.flows.direct import Result
    from tamis.storage.corpus import Progress

#: Characters of a line where the output is no terminal.
_FILE_WIDTH = 160


@contextmanager
def progress(quiet: bool) -> "Iterator[Progress | None]":
    """Bars with rate and time left on a terminal, a line per finished step elsewhere."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        said: set[str] = set()

        def line(name: str, done: int, total: int) -> None:
            if done >= total and name not in said:
                said.add(name)
                print(f"tamis: {name}: done", file=sys.stderr)

        yield line
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bars = Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    tasks: dict[str, Any] = {}
    with bars:

        def move(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield move


def summary(result: "Result") -> dict[str, Any]:
    return {
        "rows": result.manifest["rows"],
        "certificates": {
            stage["stage"]: stage["report"]["certificate"]
            for stage in result.manifest["stages"]
            if "certificate" in stage.get("report", {})
        },
        "output": str(result.output) if result.output else None,
        "workspace": str(result.workspace),
        "review": {stage: list(map(str, paths)) for stage, paths in result.queues.items()},
        "seconds": round(result.seconds, 3),
        "peak_memory": result.peak_memory,
        "memory_bound": result.memory_bound,
    }


def show(result: "Result") -> None:
    from tamis.storage.dataset import certificates, draws_told, has_repeats, marked_rows

    rows = result.manifest["rows"]
    whole = max(1, rows["in"])

    def line(label: str, count: int) -> list[str]:
        return [label, f"{count:,}", f"{100 * count / whole:.1f} %"]

    table(
        ("", "rows", "share"),
        [
            line("in", rows["in"]),
            *(line(f"dropped: {reason}", count) for reason, count in rows["dropped"].items()),
            *([line("quarantined", rows["quarantined"])] if rows["quarantined"] else []),
            line("kept", rows["kept"]),
            *(line(f"of these {name}", count) for name, count in marked_rows(rows).items()),
            *([line("generated", rows["generated"])] if rows["generated"] else []),
            *([line("written", rows["written"])] if has_repeats(rows) else []),
        ],
    )
    for told in draws_told(result.manifest):
        say(told)
    for certified in certificates(result.manifest, texts=True):
        say(certified)


def hints(result: "Result", row_id: str | None) -> None:
    from tamis.storage.memory import show_bytes

    home = result.workspace
    if result.output is not None:
        files = result.manifest["files"]
        size = show_bytes(sum(entry["bytes"] for entry in files))
        say(f"\ndataset  {result.output} ({len(files)} Parquet files, {size})")
    for stage, paths in result.queues.items():
        say(f"review   {paths[0]} ({stage}: fill it in for label_corrections)")
    say(f"ledger   {home / 'ledger'}")
    say(f"catalog  {home / 'catalog.duckdb'}")
    say(
        f"took     {result.seconds:.1f} s, {show_bytes(result.peak_memory)} of memory "
        f"(bound {show_bytes(result.memory_bound)})"
    )
    example = "SELECT reason, count(*) AS rows FROM decisions GROUP BY reason ORDER BY rows DESC"
    say(f'try      tamis sql -w {home} "{example}"')
    if row_id is not None:
        say(f"         tamis why -w {home} {row_id}")


def tell(row: dict[str, Any], head: str) -> None:
    say(f"{head} {row['row_id']} (copy {row['copy']})")
    if row["action"] in ("keep", "relabel", "review"):
        told = {"keep": "", "relabel": ", relabelled", "review": ", in review"}[row["action"]]
        by = f" by {row['stage']}" if row["stage"] else ""
        say(f"  kept{told}{by}")
        if row["repeat"] != 1:
            say(f"  written    {row['repeat']} times")
        if row["weight"] != 1:
            say(f"  weight     {figure(row['weight'])}")
    elif row["action"] == "generate":
        say(f"  made by {row['stage']}")
    else:
        say(f"  {row['action']} by {row['stage'] or 'quarantine'}, reason {row['reason']}")
    for key in (
        "value",
        "threshold",
        "similarity",
        "partner",
        "partner_source",
        "evidence",
        "parent",
    ):
        if row[key] is not None:
            say(f"  {key.removeprefix('partner_'):<11}{figure(row[key])}")
    for rule in row["rules"] or ():
        say(
            f"  rule       {rule['rule'] or row['stage']}: value {figure(rule['value'])}, "
            f"threshold {figure(rule['threshold'])}"
        )
    if row["label"] is not None:
        given = str(row["given_label"])
        say(f"  label      {row['label']}{f' (given: {given})' if row['label'] != given else ''}")
    for name, value in (row["scores"] or {}).items():
        say(f"  score      {name} = {'not evaluated' if value is None else figure(value)}")
    if row["text"] is not None:
        text = " ".join(str(row["text"]).split())
        say(f"  text       {text[:300]}{'…' if len(text) > 300 else ''}")
    say(f"  run        {row['run']}, recipe {row['recipe']}")


def tell_difference(found: "Difference", examples: int) -> None:
    for name, value in found.changes.items():
        say(f"{name} = {value}")
    for line in found.notes:
        say(line)

    def row(label: str, before: int, after: int) -> list[str]:
        return [label, f"{before:,}", f"{after:,}", f"{after - before:+,}"]

    table(
        ("", "run", "what if", "change"),
        [
            row("in", found.rows_in, found.rows_in),
            *(row(f"dropped: {name}", *counts) for name, counts in found.dropped.items()),
            *(row(f"not evaluated: {s}", 0, count) for s, count in found.not_evaluated.items()),
            *(row(f"kept: {name}", n, found.after[name]) for name, n in found.before.items()),
            *(row(f"of these {name}", *counts) for name, counts in found.marked.items()),
        ],
    )
    if found.domains:
        table(
            ("domain", *(f"{name}: {side}" for name in found.before for side in ("run", "change"))),
            [
                [name, *(f for key in before for f in row("", before[key], after[key])[1:4:2])]
                for name, (before, after) in found.domains.items()
            ],
        )
    say(
        f"{found.lost['rows']:,} rows would be lost and {found.gained['rows']:,} gained"
        + (
            ""
            if found.exact
            else f"; {sum(found.not_evaluated.values()):,} would have to be "
            "evaluated first (--evaluate), and are left out of what follows"
        )
    )
    if "characters" in found.before and found.tokens_by is None:
        say("tokens are not counted: the recipe has no stage token_count")
    shown = found.examples(examples)
    if shown:
        keys = ("change", "row_id", "reason", "value", "partner")
        cut = {"row_id": 12, "partner": 12}  # as many digits as `tamis why` needs
        table(keys, [[figure(entry[k])[: cut.get(k)] for k in keys] for entry in shown])


def doc(cls: type[Any]) -> str:
    import inspect

    return inspect.cleandoc(cls.__doc__ or "").split("\n\nExample:")[0]


def figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(value).split()) if value is not None else ""
    return text if len(text) <= 120 else text[:119] + "…"


def console() -> Any:
    from rich.console import Console

    # Off a terminal nothing has to fit; the tables that need less take less.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH
    return Console(highlight=False, markup=True, soft_wrap=False, width=width)


def table(header: "list[str] | tuple[str, ...]", rows: list[list[str]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for index, title in enumerate(header):
        numeric = bool(rows) and all(
            row[index].replace(",", "").replace(".", "").replace("-", "").rstrip(" %").isdigit()
            for row in rows
            if row[index]
        )
        table.add_column(escape(title), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console().print(table)


def say(text: str) -> None:
    print(text)


def tell_known(found: "DataFrame", rows: int, threshold: float) -> None:
    """What `tamis check` found: one text at length, several in a table."""
    known = found.filter(~found["new"])
    if len(found) == 1:
        for row in known.iter_rows(named=True):
            say(f"known: {figure(row['similarity'])} similar to row {row['row_id']}")
            say(f"  text       {figure(row['excerpt'])}")
            if row["action"] is not None:
                say(f"  decision   {_fate(row)}")
        if not len(known):
            say(f"new: none of {rows:,} rows is {threshold:g} similar or more")
        return
    if len(known):
        lines = [
            [
                f"{place + 1:,}",
                figure(row["similarity"]),
                row["row_id"],
                _fate(row),
                figure(row["excerpt"]),
            ]
            for place, row in enumerate(found.iter_rows(named=True))
            if not row["new"]
        ]
        table(("record", "similarity", "row_id", "decision", "text"), lines)
    say(
        f"{len(known):,} of {len(found):,} are known: at least {threshold:g} similar to one of "
        f"{rows:,} rows"
    )


def _fate(row: dict[str, Any]) -> str:
    """What a run decided on a row, in words."""
    if row["action"] != "drop":
        return "kept" if row["action"] in ("keep", "relabel", "review") else ""
    if row["partner"] is None:
        return f"dropped by {row['reason']}"
    source = f" of {row['partner_source']}" if row["partner_source"] is not None else ""
    return f"dropped by {row['reason']}; {row['partner']}{source} stays in its place"
