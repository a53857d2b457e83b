"""Options that commands about mixtures share, and how their values are read."""

from typing import TYPE_CHECKING, Annotated

import typer

from tamis.commands.options import pair

if TYPE_CHECKING:
    from tamis.scoring.mixture_runs import Runs
    from tamis.selectors.mixture_constraints import MixtureLimits
    from tamis.storage.domain_supply import Unit

RunsFile = Annotated[
    str, typer.Argument(metavar="RUNS", help="Table of runs: Parquet, CSV or JSON lines.")
]
Join = Annotated[
    list[str] | None,
    typer.Option(help="Further table of the same runs, joined by shared columns (repeatable)."),
]
Mix = Annotated[
    str,
    typer.Option(
        help="Columns of proportions: a prefix, a pattern as in 'train_*', or names with commas."
    ),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of a loss (repeatable), a prefix or a pattern as in 'metric/*_loss'; all "
        "`loss_*` if not given."
    ),
]
Where = Annotated[str | None, typer.Option(help="SQL condition that runs must meet.")]
TokenSupply = Annotated[
    list[str] | None,
    typer.Option(
        "--supply", help="Tokens there: code=5e9 (repeatable), or a file of `tamis mix count`."
    ),
]
Natural = Annotated[
    list[str] | None,
    typer.Option(
        help="The natural mixture: web=60 (one a domain), or a file of `tamis mix count`; the "
        "supply if not given."
    ),
]
Epochs = Annotated[float, typer.Option(help="How often a token may be seen.")]
Floor = Annotated[
    list[str] | None, typer.Option(help="Least proportion, as in code=0.1 (repeatable).")
]
Ceiling = Annotated[
    list[str] | None, typer.Option(help="Largest proportion, as in web=0.5 (repeatable).")
]


def runs_from(
    path: str,
    join: list[str] | None,
    mix: str,
    target: list[str] | None,
    where: str | None,
    covariates: list[str] | None = None,
) -> "Runs":
    """Runs of a file or several, as the options of a command name its columns."""
    from tamis.scoring.mixture_runs import LOSS, read_runs

    # A prefix or pattern is one; several names are told by their commas.
    columns = [name for name in mix.split(",") if name] if "," in mix or not mix else mix
    return read_runs(
        path,
        join=join or (),
        where=where,
        mix=columns,
        target=LOSS if not target else target[0] if len(target) == 1 else target,
        covariates=covariates,
    )


def numbers(given: list[str] | None, option: str) -> dict[str, float]:
    """Numbers by name, given as ``name=number``; a name may hold an equals sign itself."""
    from tamis.storage.errors import UserError

    found = {}
    for text in given or ():
        pair(text, option)  # refuses one without an equals sign
        name, _, value = text.rpartition("=")
        if name in found:
            raise UserError(f"{option}: the name {name!r} stands there twice")
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"{option}: expected name=number, found {text!r}") from None
    return found


def weights(given: list[str] | None, option: str = "--target") -> dict[str, float]:
    """Weights by target, given as ``target`` or ``target=weight``."""
    return {
        name: value
        for text in given or ()
        for name, value in numbers([text if "=" in text else f"{text}=1"], option).items()
    }


def supplies(
    given: list[str] | None, option: str = "--supply", unit: "Unit | None" = None
) -> dict[str, float]:
    """Amounts by domain, given as ``name=number``, or as a file of `tamis mix count`.

    Of a file the finest unit that was counted is taken, if none is given.
    """
    from tamis.storage.domain_supply import load_supply

    if given and len(given) == 1 and given[0].endswith(".json"):
        return load_supply(given[0]).of(unit)
    return numbers(given, option)


def limits_of(
    supply: dict[str, float],
    tokens: float | None,
    epochs: float,
    floor: list[str] | None,
    ceiling: list[str] | None,
    beyond_runs: bool = False,
) -> "MixtureLimits":
    """Limits on proportions, as a command was given them."""
    from tamis.selectors.mixture_constraints import MixtureLimits
    from tamis.storage.json_models import checked

    given = {
        "supply": supply,
        "tokens": tokens,
        "epochs": epochs,
        "floor": numbers(floor, "--floor"),
        "ceiling": numbers(ceiling, "--ceiling"),
        "beyond_runs": beyond_runs,
    }
    return checked(MixtureLimits, given, "options")
