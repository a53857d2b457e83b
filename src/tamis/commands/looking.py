"""Commands that look at a run, at texts, or at what there is."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.commands.options import (
    AsJson,
    Format,
    Looked,
    Text,
    Workers,
    workspace_at,
)
from tamis.console import (
    doc,
    figure,
    progress,
    say,
    table,
    tell,
    tell_difference,
    tell_known,
)

if TYPE_CHECKING:
    from tamis.scoring.operator import Operator


def calibrate(
    pairs: Annotated[str, typer.Argument(metavar="PAIRS", help="File with a pair of texts a row.")],
    left: Annotated[str, typer.Option(help="Column with the one text of a pair.")],
    right: Annotated[str, typer.Option(help="Column with a text that means the same.")],
    model: Annotated[
        list[str], typer.Option(help="Embedder, as `model` of `embedding` (repeatable).")
    ] = ["minilm"],  # noqa: B006 (typer wants a list)
    false_positives: Annotated[
        float,
        typer.Option(min=1e-9, max=1, help="Share of random pairs that may reach the threshold."),
    ] = 0.001,
    most: Annotated[int, typer.Option(min=1, help="Pairs to use; of more a random part.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 0,
    format: Format = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Find an embedder's similarity thresholds from pairs that mean the same."""
    from tamis.flows.calibrate import calibrate_file

    found = calibrate_file(
        pairs,
        left,
        right,
        model,
        format=format,
        most=most,
        false_positives=false_positives,
        seed=seed,
        workers=workers or 1,
    )
    if as_json:
        print(json.dumps(found))
        return
    rows = []
    for name, result in found.items():
        for rule, at in result["thresholds"].items():
            interval = f"{at['low']:.3f} to {at['high']:.3f}"
            numbers = [f"{at[key]:.3f}" for key in ("threshold", "recall", "f1")]
            share = f"{at['false_positives']:.2g}"
            rows.append([name, rule.replace("_", " "), numbers[0], interval, *numbers[1:], share])
    table(("model", "rule", "threshold", "95 %", "recall", "F1", "of random pairs"), rows)
    rows = [
        [
            name,
            f"{result['pairs']:,}",
            f"{result['top1']['accuracy']:.3f}",
            f"{result['overlap']['pairs_random']:.3f}",
            f"{result['overlap']['pairs_nearest_other']:.3f}",
            f"{result['isotropy']['partition']:.3f}",
            f"{result['isotropy']['isoscore']:.3f}",
        ]
        for name, result in found.items()
    ]
    table(
        ("model", "pairs", "top 1", "overlap: random", "nearest other", "partition", "IsoScore"),
        rows,
    )


def why(
    row_id: Annotated[str, typer.Argument(help="32 hex digits, or as many as tell it apart.")],
    workspace: Looked = ".",
    copy: Annotated[
        int | None, typer.Option(help="Which of several rows that share the id.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell one row's way: its scores, what decided, its partner, and where the partner went."""
    from tamis.flows.explain import explain

    found = explain(workspace_at(workspace), row_id, copy)
    if as_json:
        print(json.dumps(found, default=str, ensure_ascii=False))
        return
    head = "row"
    for row in found:
        tell(row, head)
        head = "its partner" if row["parent"] is None else "its parent"


def check(
    record: Annotated[
        str,
        typer.Argument(metavar="TEXT|FILE", help="A text, a file of rows or one text; - is stdin."),
    ],
    against: Annotated[
        str, typer.Option(help="Workspace or dataset of a run, or a corpus.", show_default=False)
    ],
    threshold: Annotated[
        float | None, typer.Option(help="Exact Jaccard similarity; the run's own if not given.")
    ] = None,
    text: Text = "text",
    format: Format = None,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", help="Where a corpus's signatures are kept; CORPUS.tamis."),
    ] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a history holds a text already, in nearly the same words."""
    from tamis.flows.check import check_texts, one_text, read_texts

    texts = one_text(sys.stdin.read()) if record == "-" else read_texts(record, text, format)
    with progress(as_json) as report:
        found, rows, limit = check_texts(
            texts,
            against,
            threshold=threshold,
            text=text,
            workspace=workspace,
            workers=workers,
            progress=report,
        )
    if as_json:
        answers = {"rows": rows, "threshold": limit, "records": found.to_dicts()}
        print(json.dumps(answers, ensure_ascii=False))
        return
    tell_known(found, rows, limit)


def what_if(
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="STAGE.PARAM=VALUE…", help="As in near_dedup.threshold=0.7."),
    ] = None,
    workspace: Looked = ".",
    move: Annotated[
        str | None, typer.Option(help="STAGE.PARAM that is moved until a target is met.")
    ] = None,
    target_rows: Annotated[int | None, typer.Option(help="Rows to keep.")] = None,
    target_tokens: Annotated[int | None, typer.Option(help="Tokens to keep.")] = None,
    target_characters: Annotated[int | None, typer.Option(help="Characters to keep.")] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Compute the scores and signals that are missing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write all changed rows: .parquet, .csv or .jsonl.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Changed rows of a kind to print.")] = 3,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a run would have kept under other rules; nothing is run or written anew."""
    from tamis.flows.differences import check_ending
    from tamis.flows.targets import Target, answer
    from tamis.flows.what_if import parsed_changes

    if out is not None:
        check_ending(out)
    wanted = {"rows": target_rows, "tokens": target_tokens, "characters": target_characters}
    target = Target.given(move, wanted)
    with progress(as_json) as report:
        found = answer(
            workspace_at(workspace),
            parsed_changes(changes or []),
            target=target,
            evaluate_more=evaluate,
            workers=workers,
            progress=report,
        )
    if out is not None:
        found.write(out)
    if as_json:
        print(json.dumps(found.as_json(examples), ensure_ascii=False))
        return
    tell_difference(found, examples)
    if out is not None:
        say(f"rows     {out}")


def sql(
    statement: Annotated[str, typer.Argument(metavar="QUERY", help="One SELECT over the views.")],
    workspace: Looked = ".",
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(help="Rows to print.")] = 50,
) -> None:
    """Query what a run left: views rows, scores, decisions, why, generated, certificates, runs."""
    from tamis.storage.catalog import query

    names, rows = query(workspace_at(workspace), statement, limit + 1)
    if as_json:
        print(
            json.dumps(
                [dict(zip(names, row, strict=True)) for row in rows[:limit]],
                default=str,
                ensure_ascii=False,
            )
        )
        return
    table(names, [[figure(value) for value in row] for row in rows[:limit]])
    if len(rows) > limit:
        say(f"the first {limit} rows; --limit shows more")


def operators(
    name: Annotated[str | None, typer.Argument(help="One operator, in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the operators, or tell all about one."""
    from tamis.recipe import operators as registered
    from tamis.scoring.operator import operator_class

    known = registered()
    if name is None:
        rows = [[key, cls.kind, (cls.__doc__ or "").splitlines()[0]] for key, cls in known.items()]
        if as_json:
            print(
                json.dumps([dict(zip(("name", "kind", "summary"), r, strict=True)) for r in rows])
            )
        else:
            table(("operator", "kind", "what it does"), rows)
        return
    cls = operator_class(name)
    schema = cls.model_json_schema()
    if as_json:
        about = {"name": name, "kind": cls.kind, "version": cls.version, "paper": cls.paper}
        print(json.dumps({**about, "roles": cls.roles, "parameters": schema}))
        return
    say(f"{name}  ({cls.kind}, version {cls.version})\n\n{doc(cls)}\n")
    say(f"reads    {', '.join([*cls.roles, *_read_by_itself(cls)]) or 'columns and scores'}")
    say(f"source   {cls.paper or '-'}")
    required = schema.get("required", [])
    table(
        ("parameter", "default", "meaning"),
        [
            [key, "required" if key in required else str(part.get("default")), part["description"]]
            for key, part in schema["properties"].items()
            if key != "operator"
        ],
    )


def _read_by_itself(cls: "type[Operator]") -> list[str]:
    """Columns that an operator reads with the parameters it has by itself."""
    from pydantic import ValidationError

    try:
        return sorted(cls().reads())
    except ValidationError:
        return []


def recipe_schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from tamis.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


def recipe_check(recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")]) -> None:
    """Check a recipe without reading its corpus."""
    from tamis.recipe import load_recipe

    found = load_recipe(recipe)
    say(f"{recipe}: {len(found.stages)} stages, no error")
