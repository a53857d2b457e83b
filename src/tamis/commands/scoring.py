"""The command that scores a corpus, or the columns that a run has stored."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.commands.figures import tell_figures, told_figures
from tamis.commands.options import (
    AsJson,
    Format,
    Id,
    Label,
    MaxQuarantine,
    Memory,
    Text,
    Workers,
    pair,
    parameters,
    parameters_of,
    workspace_at,
)
from tamis.commands.recipes import execute, recipe_for, stages_before, with_limits, workspace_beside
from tamis.console import say, summary

if TYPE_CHECKING:
    from tamis.recipe import Recipe


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
    home = place_of(workspace or workspace_beside(corpus))
    own, others = parameters_of(name, param or [])
    stages = [{**own, "operator": name}]
    named = dict(pair(part, "--role") for part in role or ())

    def recipe_of(stages: list[dict[str, Any]]) -> "Recipe":
        columns = {"text": text, "label": label}
        roles = {**_roles_of(stages, columns), **named, "id": row_id}
        return recipe_for(corpus, format, roles, stages, None, str(home))

    before = stages_before(recipe_of(stages), others)
    for unused in others.keys() - {stage["operator"] for stage in before}:
        raise UserError(f"--param: {unused!r} is not run before {name}")
    recipe = recipe_of([*before, *stages])
    fields = recipe.stages[-1].fields()
    scores = [f.name for f in fields if is_number(f.type) and str(f.type) != "bool"]
    result = execute(with_limits(recipe, memory, workers, max_quarantine), as_json)
    from tamis.storage.catalog import figures_of, open_catalog

    view = "signals" if recipe.stages[-1].kind == "signal" else "scores"
    with open_catalog(home) as connection:
        figures = figures_of(connection, view, scores)
    if as_json:
        print(json.dumps({**summary(result), "scores": told_figures(figures)}))
        return
    tell_figures(figures)
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

    found = score_stored(name, workspace_at(workspace), parameters(param))
    kinds = found.drop("row_id", "copy").schema
    scores = [name for name, kind in kinds.items() if kind.is_numeric()]
    with duckdb.connect() as connection:
        connection.register("found", found.to_arrow())
        figures = figures_of(connection, "found", scores)
    if out is not None:
        with whole_file(out) as temporary:
            found.write_parquet(temporary)
    if as_json:
        print(json.dumps({"rows": len(found), "scores": told_figures(figures)}))
        return
    tell_figures(figures)
    if out is not None:
        say(f"scores   {out}")
    say(f"to select by them, put `- operator: {name}` into the recipe: only it is computed anew")


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
