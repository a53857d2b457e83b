"""The commands. Each builds a recipe or opens a workspace; the work is done below.

Nothing heavy is imported before a command runs, so that ``tamis --help`` answers at once.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tamis import __version__
from tamis.console import (
    console,
    doc,
    figure,
    hints,
    progress,
    say,
    show,
    summary,
    table,
    tell,
    tell_difference,
    tell_known,
)

if TYPE_CHECKING:
    from tamis.flows.direct import Result
    from tamis.recipe import Recipe
    from tamis.scoring.operator import Operator
    from tamis.storage.places import Place

app = typer.Typer(
    name="tamis",
    help="Decide what a model is trained on: deduplicate, score, select; know why a row was "
    "dropped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipe_app = typer.Typer(help="About recipes.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")

Text = Annotated[str, typer.Option("--text", help="Column that holds the text.")]
Label = Annotated[str, typer.Option("--label", help="Column that holds the class.")]
Id = Annotated[str | None, typer.Option("--id", help="Column that identifies a row.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="parquet, jsonl, csv, arrow, datasets, python or python-pairs; "
        "by file endings if not given.",
    ),
]
Workspace = Annotated[
    str | None,
    typer.Option("--workspace", help="Folder of ledger, catalog, scores; OUT.tamis if not given."),
]
Memory = Annotated[
    str | None, typer.Option("--memory", help="Peak memory allowed, such as 8GB; refused early.")
]
MaxQuarantine = Annotated[
    float | None,
    typer.Option(
        "--max-quarantine",
        min=0,
        max=1,
        help="Share of rows that may be unusable before the run stops; 0.01 if not given.",
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Threads; all cores if not.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, no table.")]
Looked = Annotated[
    str, typer.Option("--workspace", "-w", help="Workspace of a run, or its dataset's folder.")
]


_STOPPED = "stopped; run the same command again to go on from here"
#: What typer makes of an interrupt before it comes to us.
_INTERRUPTED = 130


def main() -> None:
    """Run a command; errors become one line and an exit code (1 failed, 2 yours to mend)."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        sys.argv.remove("--debug")
    try:
        code = app(standalone_mode=False) or 0
        said = ""
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        said, code = _STOPPED, 1
    except Exception as error:
        if debug:
            raise
        said, code = _outcome(error)
    # Only here, where nothing holds on to the error any more: what its frames hold would still be
    # there when the interpreter ends, of which DuckDB's binding complains at length.
    _end(said, code)


def _outcome(error: Exception) -> tuple[str, int]:
    """The line that an error is told in, and the exit code."""
    # An interrupt while threads are waited for may come out as the lock's own error.
    if isinstance(error.__context__, KeyboardInterrupt):
        return _STOPPED, 1
    code = getattr(error, "exit_code", None)
    if code is None:
        return f"{type(error).__name__}: {error} (--debug shows where)", 1
    # Says nothing where help has been printed already.
    return str(getattr(error, "format_message", error.__str__)()), int(code)


def _end(text: str, code: int) -> NoReturn:
    if text:
        print(f"tamis: {' '.join(text.split())}", file=sys.stderr)
    raise SystemExit(code)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
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


@app.command()
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


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a run would take: rows, time, memory and disk, measured on a sample."""
    from tamis.flows.plan import plan as measure
    from tamis.recipe import load_recipe

    found = measure(_with_limits(load_recipe(recipe), None, workers))
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
            ["time", f"{found.seconds:.1f} s"],
            *(["  " + name, f"{seconds:.1f} s"] for name, seconds in found.step_seconds.items()),
            ["peak memory", show_bytes(found.peak_memory)],
            ["workspace", show_bytes(found.workspace_bytes)],
            ["dataset", show_bytes(found.output_bytes)],
            *(["already there", f"{room}: {count}"] for room, count in found.found.items()),
        ],
    )
    say(f"measured on {100 * found.sampled:.2g} % of the corpus; nothing was written")


@app.command()
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
    recipe = _recipe(corpus, format, {"text": text, "id": row_id}, [stage], output, workspace)
    _run(_with_limits(recipe, memory, workers, max_quarantine), as_json)


@app.command()
def score(
    name: Annotated[str, typer.Argument(help="Scorer; see `tamis operators`.")],
    corpus: Annotated[
        str | None,
        typer.Argument(
            metavar="[IN]", help="File, folder, glob or URL; the columns of a workspace if not."
        ),
    ] = None,
    text: Text = "text",
    label: Label = "label",
    role: Annotated[
        list[str] | None,
        typer.Option(help="Column of another role, as in prompt=question (repeatable)."),
    ] = None,
    row_id: Id = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            help="Parameter of the scorer, as in languages=[de,fr]; or of one that runs before it, "
            "as in probe.kind=mlp (repeatable)."
        ),
    ] = None,
    format: Format = None,
    workspace: Annotated[
        str | None,
        typer.Option(
            "--workspace", "-w", help="Folder of the scores, IN.tamis; without IN that of a run."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Without IN: Parquet file for the scores, by row_id.")
    ] = None,
    max_quarantine: MaxQuarantine = None,
    memory: Memory = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Score every row of IN, or of a run by the columns that it has stored; no data is touched.

    What the scorer reads and IN has not, such as vectors or a probe's outputs, is computed first.
    """
    from tamis.recipe import scorer
    from tamis.selectors.table import is_number
    from tamis.storage.errors import UserError
    from tamis.storage.places import place_of

    scorer(name)
    if corpus is None:
        if workspace is None:
            raise UserError("nothing to score", mend="give a file, or the workspace of a run (-w)")
        _score_stored(name, workspace, param or [], out, as_json)
        return
    if out is not None:
        raise UserError(
            "--out is for the columns of a run",
            mend="scores of a corpus lie in its workspace; leave out IN to score a run",
        )
    home = place_of(workspace or _beside(corpus))
    own, others = _parameters_of(name, param or [])
    stages = [{**own, "operator": name}]
    named = dict(_pair(part, "--role") for part in role or ())

    def recipe_of(stages: list[dict[str, Any]]) -> "Recipe":
        columns = {"text": text, "label": label}
        roles = {**_roles_of(stages, columns), **named, "id": row_id}
        return _recipe(corpus, format, roles, stages, None, str(home))

    before = _givers(recipe_of(stages), others)
    for unused in others.keys() - {stage["operator"] for stage in before}:
        raise UserError(f"--param: {unused!r} is not run before {name}")
    recipe = recipe_of([*before, *stages])
    fields = recipe.stages[-1].fields()
    scores = [f.name for f in fields if is_number(f.type) and str(f.type) != "bool"]
    result = _execute(_with_limits(recipe, memory, workers, max_quarantine), as_json)
    from tamis.storage.catalog import figures_of, open_catalog

    view = "signals" if recipe.stages[-1].kind == "signal" else "scores"
    with open_catalog(home) as connection:
        figures = figures_of(connection, view, scores)
    if as_json:
        print(json.dumps({**summary(result), "scores": _told(figures)}))
        return
    _tell_figures(figures)
    say(f"{view:<8} {home / view}")
    if scores:
        order = f"ORDER BY {scores[0]} DESC LIMIT 5"
        say(f'try      tamis sql -w {home} "SELECT * FROM {view} {order}"')


def _score_stored(
    name: str, workspace: str, param: list[str], out: Path | None, as_json: bool
) -> None:
    """Score the columns that a run has stored."""
    import duckdb

    from tamis.flows.in_memory import score_stored
    from tamis.storage.catalog import figures_of
    from tamis.storage.files import whole_file

    found = score_stored(name, _workspace(workspace), _parameters(param))
    scores = found.columns[2:]
    with duckdb.connect() as connection:
        connection.register("found", found.to_arrow())
        figures = figures_of(connection, "found", scores)
    if out is not None:
        with whole_file(out) as temporary:
            found.write_parquet(temporary)
    if as_json:
        print(json.dumps({"rows": len(found), "scores": _told(figures)}))
        return
    _tell_figures(figures)
    if out is not None:
        say(f"scores   {out}")
    say(f"to select by them, put `- operator: {name}` into the recipe: only it is computed anew")


_FIGURES = ("score", "rows", "min", "mean", "p5", "median", "p95", "max")


def _told(figures: list[list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(_FIGURES, f, strict=True)) for f in figures]


def _tell_figures(figures: list[list[Any]]) -> None:
    table(
        ("score", "rows", "min", "mean", "5 %", "median", "95 %", "max"),
        [[str(f[0]), f"{f[1]:,}", *(figure(v) for v in f[2:])] for f in figures],
    )


def _roles_of(stages: list[dict[str, Any]], columns: dict[str, str]) -> dict[str, str | None]:
    """Columns of the roles that some stages read; those not given go by the role's name."""
    from pydantic import ValidationError

    from tamis.scoring.operator import operator_class

    found: dict[str, str | None] = {}
    for stage in stages:
        try:
            used = operator_class(stage["operator"]).model_validate(stage).used_roles()
        except ValidationError:
            return {}  # the recipe's own check tells what does not fit
        found |= {role: columns.get(role, role) for role in used}
    return found


@app.command()
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

    home = place_of(workspace or _beside(corpus))
    stage = {**_parameters(param or []), "operator": "embedding", "model": model}
    roles = {"text": text, "id": row_id}
    recipe = _recipe(corpus, format, roles, [stage], None, str(home))
    result = _execute(_with_limits(recipe, memory, workers, max_quarantine), as_json)
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


@app.command()
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
        by, amount = _named(top, "--top", 2)
        stages.append({"operator": "top", "by": by, "per": per, **_amount(amount, "--top")})
    if quantile is not None:
        by, low, high = _named(quantile, "--quantile", 3)
        stages.append({"operator": "quantile", "by": by, "low": low, "high": high, "per": per})
    if sample is not None:
        stages.append(
            {"operator": "sample", "seed": seed, "per": per, **_amount(sample, "--sample")}
        )
    if not stages:
        raise UserError("nothing to select by", mend="give --where, --top, --quantile or --sample")
    roles = {"text": text, "label": label, "id": row_id}
    recipe = _recipe(corpus, format, roles, stages, output, workspace)
    recipe = _recipe(corpus, format, roles, [*_givers(recipe, {}), *stages], output, workspace)
    _run(_with_limits(recipe, memory, workers, max_quarantine), as_json)


@app.command()
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


@app.command()
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

    found = explain(_workspace(workspace), row_id, copy)
    if as_json:
        print(json.dumps(found, default=str, ensure_ascii=False))
        return
    head = "row"
    for row in found:
        tell(row, head)
        head = "its partner" if row["parent"] is None else "its parent"


@app.command()
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


@app.command("what-if")
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
            _workspace(workspace),
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


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(metavar="QUERY", help="One SELECT over the views.")],
    workspace: Looked = ".",
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(help="Rows to print.")] = 50,
) -> None:
    """Query what a run left: views rows, scores, decisions, why, generated, certificates, runs."""
    from tamis.storage.catalog import query

    names, rows = query(_workspace(workspace), statement, limit + 1)
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


@app.command()
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


@recipe_app.command("schema")
def recipe_schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from tamis.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


@recipe_app.command("check")
def recipe_check(recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")]) -> None:
    """Check a recipe without reading its corpus."""
    from tamis.recipe import load_recipe

    found = load_recipe(recipe)
    say(f"{recipe}: {len(found.stages)} stages, no error")


@app.command()
def demo(
    output: Annotated[Path, typer.Argument(help="Folder of the dataset.")] = Path("demo"),
    memory: Memory = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Clean a real corpus that every machine has: the documentation of this Python."""
    from tamis.flows.demo import demo_recipe
    from tamis.flows.look_alikes import look_alikes

    recipe = _with_limits(demo_recipe(output), memory, workers)
    result = _execute(recipe, as_json)
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


def _beside(corpus: str) -> str:
    """Workspace of a command that only looks at a corpus."""
    return corpus.rstrip("/").split("*")[0].rstrip("/:") + ".tamis"


def _recipe(
    corpus: str,
    format: str | None,
    roles: dict[str, str | None],
    stages: list[dict[str, Any]],
    output: str | None,
    workspace: str | None,
) -> "Recipe":
    from tamis.recipe import check_recipe

    value: dict[str, Any] = {
        "corpus": {
            "path": corpus,
            "format": format,
            "roles": {role: column for role, column in roles.items() if column is not None},
        },
        "stages": stages,
        "workspace": workspace,
    }
    if output is not None:
        value["output"] = {"path": output}
    return check_recipe(value, "command line")


def _with_limits(
    recipe: "Recipe", memory: str | None, workers: int | None, max_quarantine: float | None = None
) -> "Recipe":
    from tamis.recipe import with_changes

    return with_changes(recipe, memory=memory, workers=workers, max_quarantine=max_quarantine)


def _givers(recipe: "Recipe", params: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages that must run before a recipe's own, for all they read to be there."""
    from tamis.flows.checks import givers
    from tamis.flows.direct import columns_of

    return givers(recipe.stages, columns_of(recipe), params)


def _named(value: str, option: str, parts: int) -> list[str]:
    from tamis.storage.errors import UserError

    found = value.rsplit(":", parts - 1)
    if len(found) != parts:
        raise UserError(f"{option}: expected {parts} parts joined by colons, found {value!r}")
    return found


def _amount(value: str, option: str) -> dict[str, float | int]:
    from tamis.storage.errors import UserError

    try:
        if value.endswith("%"):
            return {"fraction": float(value[:-1]) / 100}
        return {"rows": int(value)}
    except ValueError as error:
        raise UserError(
            f"{option}: expected rows or a share such as 10%, found {value!r}"
        ) from error


def _pair(given: str, option: str) -> tuple[str, str]:
    """What stands before and after an equals sign."""
    from tamis.storage.errors import UserError

    name, equals, value = given.partition("=")
    if not equals:
        raise UserError(f"{option}: expected name=value, found {given!r}")
    return name, value


def _parameters(given: list[str]) -> dict[str, Any]:
    """Parameters given as ``name=value``, the value as in YAML."""
    import yaml

    from tamis.storage.errors import UserError

    found = {}
    for part in given:
        name, value = _pair(part, "--param")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--param: expected name=value, found {part!r}") from error
    return found


def _parameters_of(name: str, given: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Parameters of an operator, and by operator those given as ``operator.name=value``."""
    own: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {}
    for key, value in _parameters(given).items():
        operator, dot, parameter = key.partition(".")
        if dot and operator != name:
            others.setdefault(operator, {})[parameter] = value
        else:
            own[parameter or key] = value
    return own, others


def _workspace(path: str) -> "Place":
    """The workspace itself, or the one beside a dataset's folder."""
    from tamis.storage.catalog import workspace_of
    from tamis.storage.places import place_of

    return workspace_of(place_of(path))


def _run(recipe: "Recipe", as_json: bool) -> None:
    _report(_execute(recipe, as_json), as_json)


def _report(result: "Result", as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary(result)))
        return
    show(result)
    hints(result, None)


def _execute(recipe: "Recipe", quiet: bool) -> "Result":
    from tamis.flows.start import start

    with progress(quiet) as report:
        return start(recipe, report)


if __name__ == "__main__":
    main()
