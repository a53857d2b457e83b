"""The recipe that a one-off command stands for, and how it is run."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from tamis.console import progress

if TYPE_CHECKING:
    from tamis.flows.direct import Result
    from tamis.recipe import Recipe


def workspace_beside(corpus: str) -> str:
    """Workspace of a command that only looks at a corpus."""
    return corpus.rstrip("/").split("*")[0].rstrip("/:") + ".tamis"


def recipe_for(
    corpus: str,
    format: str | None,
    roles: dict[str, str | None],
    stages: list[dict[str, Any]],
    output: str | None,
    workspace: str | None,
) -> "Recipe":
    """A checked recipe from what a command was given."""
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


def with_limits(
    recipe: "Recipe", memory: str | None, workers: int | None, max_quarantine: float | None = None
) -> "Recipe":
    """A recipe within the limits that a command was given."""
    from tamis.recipe import with_changes

    return with_changes(recipe, memory=memory, workers=workers, max_quarantine=max_quarantine)


def stages_before(
    recipe: "Recipe", params: dict[str, dict[str, Any]], wanted: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The stages that must run before a recipe's own, for these and all they read to be there."""
    from tamis.flows.checks import givers
    from tamis.flows.direct import columns_of

    return givers(recipe.stages, columns_of(recipe), params, wanted)


def execute(recipe: "Recipe", quiet: bool) -> "Result":
    """Run a recipe, with progress bars if not `quiet`."""
    from tamis.flows.start import start

    with progress(quiet) as report:
        return start(recipe, report)
