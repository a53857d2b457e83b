"""Commands that count the domains of a corpus, and draw a dataset by a mixture."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.commands.mixture_options import numbers
from tamis.commands.options import (
    AsJson,
    Format,
    Id,
    MaxQuarantine,
    Memory,
    Text,
    Workers,
    Workspace,
    parameters_of,
)
from tamis.commands.recipes import execute, recipe_for, stages_before, with_limits, workspace_beside
from tamis.console import hints, progress, say, show, summary, table

if TYPE_CHECKING:
    from tamis.recipe import Recipe

_DRAW = "mixture_draw"

Corpus = Annotated[str, typer.Argument(metavar="IN", help="File, folder, glob or URL.")]
Domain = Annotated[str, typer.Option("--domain", help="Column that says where a row is from.")]
GiverParam = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        help="Parameter of the operator that gives --by, as in "
        "token_count.tokenizer=tokenizer.json (repeatable).",
    ),
]


def apply(
    corpus: Corpus,
    output: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL of the dataset.")],
    domain: Domain,
    mixture: Annotated[
        str | None, typer.Option(help="Mixture file, as `tamis mix optimise --out` writes it.")
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(help="Proportion of a domain, as in web=0.6 (repeatable), and no file."),
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="To draw in all, as --by counts them, such as 1e9.")
    ] = None,
    rows: Annotated[float | None, typer.Option(help="Rows to draw in all, such as 1e6.")] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Score or column that says how much a row counts; `tokens` with --tokens."
        ),
    ] = None,
    epochs: Annotated[
        float,
        typer.Option(help="How often what there is may come; a row so often at most, rounded up."),
    ] = 4,
    write_as: Annotated[
        str, typer.Option("--as", help="repeat rows, or weight: all rows once, with a weight.")
    ] = "repeat",
    shortfall: Annotated[
        str, typer.Option(help="Where epochs allow less than is asked: error, or draw fewer.")
    ] = "error",
    seed: Annotated[int, typer.Option(help="Seed of the order in which rows are taken.")] = 0,
    param: GiverParam = None,
    text: Text = "text",
    row_id: Id = None,
    format: Format = None,
    workspace: Workspace = None,
    max_quarantine: MaxQuarantine = None,
    memory: Memory = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Draw a dataset of so many tokens or rows in which domains have the proportions of a mixture.

    With neither --tokens nor --rows it is as large as --epochs allow.
    """
    from tamis.storage.errors import UserError

    if (mixture is None) == (not share):
        raise UserError("expected one mixture", mend="give either --mixture or --share")
    own, others = parameters_of(_DRAW, param or [])
    stage = {
        "operator": _DRAW,
        "mixture": mixture or numbers(share, "--share"),
        "by": by or (_counted(others) if tokens is not None else None),
        "tokens": tokens,
        "rows": rows,
        "epochs": epochs,
        "write_as": write_as,
        "shortfall": shortfall,
        "seed": seed,
        **own,
    }
    roles = {"domain": domain, "id": row_id}
    recipe = _with_givers(
        corpus, format, roles, [stage], stage["by"], others, output, workspace, text
    )
    result = execute(with_limits(recipe, memory, workers, max_quarantine), as_json)
    report = result.manifest["stages"][-1]["report"]
    if as_json:
        print(json.dumps({**summary(result), "mixture": report}))
        return
    show(result)
    tell_draw(report)
    hints(result, None)


def _counted(params: dict[str, dict[str, Any]]) -> str:
    """What `token_count` gives with the parameters that a command was given for it."""
    estimated = "bytes_per_token" in params.get("token_count", {})
    return "tokens_estimated" if estimated else "tokens"


def tell_draw(report: dict[str, Any]) -> None:
    """What was drawn of every domain, as a table."""
    weighed = "drawn" not in report
    last = ("weight",) if weighed else ("drawn", "share", "times seen")
    lines = []
    for name, of in report["domains"].items():
        whole = max(1e-300, report.get("drawn", 0.0))
        drawn = [f"{of['weight']:.4g}"] if weighed else _drawn(of, whole)
        lines.append([name, f"{of['there']:,.0f}", f"{of['asked']:,.0f}", *drawn])
    table(("domain", f"{report['unit']} there", "asked", *last), lines)


def _drawn(of: dict[str, Any], whole: float) -> list[str]:
    return [f"{of['drawn']:,.0f}", f"{100 * of['drawn'] / whole:.2f} %", f"{of['times']:.3f}"]


def count(
    corpus: Corpus,
    domain: Domain,
    by: Annotated[
        str | None, typer.Option(help="Score or column that counts tokens; none if not given.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="JSON file of the amounts, a supply.")] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Column whose bytes are counted; text.")
    ] = None,
    param: GiverParam = None,
    row_id: Id = None,
    format: Format = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", help="Folder of scores; IN.tamis.")
    ] = None,
    max_quarantine: MaxQuarantine = None,
    memory: Memory = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Count rows, bytes of text and tokens by domain; other commands take the file as a supply."""
    from tamis.flows.direct import columns_of
    from tamis.flows.domain_amounts import count_domains
    from tamis.storage.errors import UserError
    from tamis.storage.places import place_of

    home = place_of(workspace or workspace_beside(corpus))
    _, others = parameters_of(_DRAW, param or [])
    roles = {"domain": domain, "id": row_id}
    recipe = _with_givers(corpus, format, roles, [], by, others, None, str(home), text or "text")
    columns = columns_of(recipe)
    if text is not None and text not in columns:
        raise UserError(f"--text: no column {text!r}", mend=f"the corpus has {', '.join(columns)}")
    named = text or ("text" if "text" in columns else None)
    recipe = with_limits(recipe, memory, workers, max_quarantine)
    with progress(as_json) as report:
        counted = count_domains(recipe, named, by, report)
    supply, without = counted.supply, counted.without_domain
    if out is not None:
        supply.save(out)
    if as_json:
        left = {"rows_without_domain": without, "rows_without_tokens": counted.without_tokens}
        print(json.dumps({**supply.model_dump(mode="json"), **left}))
        return
    amounts = {name: of.model_dump(exclude_none=True) for name, of in supply.domains.items()}
    kinds = list(next(iter(amounts.values())))
    lines = [[name, *(f"{of[kind]:,}" for kind in kinds)] for name, of in amounts.items()]
    sums = [f"{sum(of[kind] for of in amounts.values()):,}" for kind in kinds]
    table(("domain", *kinds), [*lines, ["in all", *sums]])
    if without:
        say(f"{without:,} rows have no domain and are not counted")
    if counted.without_tokens:
        say(f"{counted.without_tokens:,} rows have no {by} and add no tokens")


def _with_givers(
    corpus: str,
    format: str | None,
    roles: dict[str, str | None],
    own: list[dict[str, Any]],
    by: str | None,
    params: dict[str, dict[str, Any]],
    output: str | None,
    workspace: str | None,
    text: str,
) -> "Recipe":
    """A recipe with the stages before its own that give a score and what they read.

    Args:
        by: the score or column, None for none.
        text: column that those stages read, if there are any.
    """
    from tamis.flows.direct import columns_of
    from tamis.storage.errors import UserError

    def recipe_of(stages: list[dict[str, Any]]) -> "Recipe":
        return recipe_for(corpus, format, roles, stages, output, workspace)

    before = stages_before(recipe_of(own), params, [] if by is None else [by])
    if before:
        roles = {**roles, "text": text}
    if by is not None and not before and by not in columns_of(recipe_of(own)):
        raise UserError(
            f"--by: {by!r} is neither a column nor a score that can be computed",
            mend="for tokens give --param token_count.tokenizer=tokenizer.json, or "
            "token_count.bytes_per_token=4",
        )
    for unused in params.keys() - {stage["operator"] for stage in before}:
        raise UserError(f"--param: {unused!r} gives nothing that is read here")
    return recipe_of([*before, *own])
