"""Commands that run something on a corpus."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.commands.options import (
    AsJson,
    Format,
    Id,
    MaxQuarantine,
    Memory,
    Text,
    Workers,
    Workspace,
    amount_of,
    named,
    parameters,
)
from tamis.commands.recipes import execute, recipe_for, stages_before, with_limits, workspace_beside
from tamis.console import console, hints, progress, say, show, summary, table

if TYPE_CHECKING:
    from tamis.flows.direct import Result
    from tamis.recipe import Recipe


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    prefect: Annotated[
        bool | None,
        typer.Option(
            "--prefect/--no-prefect",
            help="Run as a Prefect flow; so if PREFECT_API_URL is set or a cluster is the runner.",
        ),
    ] = None,
    runner: Annotated[
        str | None, typer.Option(help="threads, processes, dask or ray; the recipe's if not given.")
    ] = None,
    memory: Memory = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe from corpus to dataset."""
    from tamis.flows.start import start
    from tamis.recipe import load_recipe, with_changes

    changes = {"runner": runner, "memory": memory, "workers": workers}
    found = with_changes(load_recipe(recipe), **changes)
    with progress(as_json) as report:
        result = start(found, report, prefect=prefect, path=recipe.resolve())
    _report(result, as_json)


def schedule(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML), read anew at every run.")],
    cron: Annotated[str, typer.Option(help="When, as in '0 3 * * *'.")],
    timezone: Annotated[str, typer.Option(help="Of the cron line, as in Europe/Paris.")] = "UTC",
    name: Annotated[str | None, typer.Option(help="Of the deployment; the recipe's name.")] = None,
) -> None:
    """Run a recipe by the clock, until this command is stopped."""
    from tamis.flows.start import need
    from tamis.recipe import load_recipe

    need("prefect", "schedule")
    load_recipe(recipe)
    from tamis.flows.schedule import serve

    serve(recipe.resolve(), cron, timezone, name or recipe.stem, say)


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a run would take: rows, time, memory and disk, measured on a sample."""
    from tamis.flows.plan import plan as measure
    from tamis.recipe import load_recipe

    found = measure(with_limits(load_recipe(recipe), None, workers))
    if as_json:
        print(json.dumps(found.as_json()))
        return
    from tamis.storage.memory import show_bytes

    about = "" if found.exact_rows else "about "
    table(
        ("", "a run from the start"),
        [
            ["corpus", f"{found.files:,} files, {show_bytes(found.bytes)}"],
            ["rows", f"{about}{found.rows:,} in {found.shards:,} shards"],
            ["kept", f"about {found.kept:,}"],
            *([["written", f"about {found.written:,}"]] if found.written != found.kept else []),
            ["time", f"{found.seconds:.1f} s"],
            *(["  " + name, f"{seconds:.1f} s"] for name, seconds in found.step_seconds.items()),
            ["peak memory", show_bytes(found.peak_memory)],
            ["workspace", show_bytes(found.workspace_bytes)],
            ["dataset", show_bytes(found.output_bytes)],
            *(["already there", f"{room}: {count}"] for room, count in found.found.items()),
        ],
    )
    say(f"measured on {100 * found.sampled:.2g} % of the corpus; nothing was written")


def dedup(
    corpus: Annotated[str, typer.Argument(metavar="IN", help="File, folder, glob or URL.")],
    output: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL of the dataset.")],
    text: Text = "text",
    row_id: Id = None,
    threshold: Annotated[
        float, typer.Option(help="Exact Jaccard similarity from which two rows are duplicates.")
    ] = 0.8,
    ngram: Annotated[int | None, typer.Option(help="Tokens per shingle; 5 words.")] = None,
    unit: Annotated[str, typer.Option(help="word or character.")] = "word",
    rank: Annotated[str, typer.Option(help="What ranks rows: longest, or a column.")] = "longest",
    format: Format = None,
    workspace: Workspace = None,
    max_quarantine: MaxQuarantine = None,
    memory: Memory = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Remove near-duplicates, exact copies included."""
    stage = {
        "operator": "near_dedup",
        "threshold": threshold,
        "ngram": ngram,
        "unit": unit,
        "rank": rank,
    }
    recipe = recipe_for(corpus, format, {"text": text, "id": row_id}, [stage], output, workspace)
    _run(with_limits(recipe, memory, workers, max_quarantine), as_json)


def embed(
    corpus: Annotated[str, typer.Argument(metavar="IN", help="File, folder, glob or URL.")],
    model: Annotated[
        str,
        typer.Option(help="minilm, static, a sentence-transformers folder, or a name on the hub."),
    ] = "minilm",
    text: Text = "text",
    row_id: Id = None,
    param: Annotated[
        list[str] | None,
        typer.Option(help="Parameter of the operator, as in store=float16 (repeatable)."),
    ] = None,
    format: Format = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", help="Folder of the vectors; IN.tamis.")
    ] = None,
    max_quarantine: MaxQuarantine = None,
    memory: Memory = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Embed every text; vectors of texts seen before are not computed again."""
    from tamis.storage.places import place_of

    home = place_of(workspace or workspace_beside(corpus))
    stage = {**parameters(param or []), "operator": "embedding", "model": model}
    roles = {"text": text, "id": row_id}
    recipe = recipe_for(corpus, format, roles, [stage], None, str(home))
    result = execute(with_limits(recipe, memory, workers, max_quarantine), as_json)
    from tamis.storage.catalog import query

    column = recipe.stages[0].stage
    size = recipe.stages[0].fields().field(column).type.list_size
    rows, tokens, truncated = query(
        home,
        f'SELECT count(*), sum("{column}_tokens")::BIGINT, count_if("{column}_truncated") '
        f'FROM signals WHERE "{column}" IS NOT NULL',
    )[1][0]
    counts = {"vectors": rows, "dimensions": size, "tokens": tokens or 0, "truncated": truncated}
    if as_json:
        print(json.dumps({**summary(result), **counts}))
        return
    table(("", column), [[name, f"{count:,}"] for name, count in counts.items()])
    say(f"took     {result.seconds:.1f} s")
    say(f"vectors  {home / 'signals'}")
    say(f'try      tamis sql -w {home} "SELECT row_id, {column} FROM signals LIMIT 5"')


def select(
    corpus: Annotated[str, typer.Argument(metavar="IN", help="File, folder, glob or URL.")],
    output: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL of the dataset.")],
    where: Annotated[
        list[str] | None, typer.Option(help="SQL condition that rows must meet (repeatable).")
    ] = None,
    top: Annotated[
        str | None, typer.Option(help="Best by a score: words:1000 or words:10%.")
    ] = None,
    quantile: Annotated[
        str | None, typer.Option(help="Between quantiles of a score: words:0.05:0.95.")
    ] = None,
    sample: Annotated[str | None, typer.Option(help="Random rows: 1000 or 10%.")] = None,
    per: Annotated[
        str | None, typer.Option(help="Apply top, quantile, sample N per group.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    text: Annotated[str | None, typer.Option("--text", help="Column that holds the text.")] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Column that holds the class.")
    ] = None,
    row_id: Id = None,
    format: Format = None,
    workspace: Workspace = None,
    max_quarantine: MaxQuarantine = None,
    memory: Memory = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Keep the rows that meet conditions or budgets; scores they name are computed first."""
    from tamis.storage.errors import UserError

    stages: list[dict[str, Any]] = [
        {"operator": "where", "keep": condition, "name": "where" if i == 0 else f"where_{i + 1}"}
        for i, condition in enumerate(where or ())
    ]
    if top is not None:
        by, amount = named(top, "--top", 2)
        stages.append({"operator": "top", "by": by, "per": per, **amount_of(amount, "--top")})
    if quantile is not None:
        by, low, high = named(quantile, "--quantile", 3)
        stages.append({"operator": "quantile", "by": by, "low": low, "high": high, "per": per})
    if sample is not None:
        stages.append(
            {"operator": "sample", "seed": seed, "per": per, **amount_of(sample, "--sample")}
        )
    if not stages:
        raise UserError("nothing to select by", mend="give --where, --top, --quantile or --sample")
    roles = {"text": text, "label": label, "id": row_id}
    recipe = recipe_for(corpus, format, roles, stages, output, workspace)
    recipe = recipe_for(
        corpus, format, roles, [*stages_before(recipe, {}), *stages], output, workspace
    )
    _run(with_limits(recipe, memory, workers, max_quarantine), as_json)


def demo(
    output: Annotated[Path, typer.Argument(help="Folder of the dataset.")] = Path("demo"),
    memory: Memory = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Clean a real corpus that every machine has: the documentation of this Python."""
    from tamis.flows.demo import demo_recipe
    from tamis.flows.look_alikes import look_alikes

    recipe = with_limits(demo_recipe(output), memory, workers)
    result = execute(recipe, as_json)
    pairs = look_alikes(result.workspace, 3, "path")
    if as_json:
        print(json.dumps({**summary(result), "pairs": pairs}, ensure_ascii=False))
        return
    show(result)
    from rich.columns import Columns
    from rich.panel import Panel

    screen = console()
    for pair in pairs:
        title = f"{pair['similarity']:.2f} similar: dropped, and kept in its place"
        screen.print(f"\n[bold]{title}[/bold]")
        width = max(30, screen.width // 2 - 1)
        sides = [
            Panel(pair[side]["text"], title=pair[side]["name"], width=width, height=14)
            for side in ("dropped", "kept")
        ]
        screen.print(Columns(sides))
    hints(result, pairs[0]["dropped"]["row_id"] if pairs else None)


def _run(recipe: "Recipe", as_json: bool) -> None:
    _report(execute(recipe, as_json), as_json)


def _report(result: "Result", as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary(result)))
        return
    show(result)
    hints(result, None)
