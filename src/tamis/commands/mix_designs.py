"""The command that says which small runs to do next."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.commands.mixture_options import (
    Ceiling,
    Epochs,
    Floor,
    Mix,
    Natural,
    TokenSupply,
    Where,
    limits_of,
    runs_from,
    supplies,
    weights,
)
from tamis.commands.options import AsJson
from tamis.console import say, table

if TYPE_CHECKING:
    from tamis.selectors.mixture_constraints import MixtureLimits
    from tamis.selectors.mixture_design import Design


def design(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Table of runs to do: Parquet, CSV or JSON lines.")
    ],
    natural: Natural = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs to fit a law to.")] = 24,
    validation: Annotated[int, typer.Option(min=0, help="Further runs, to judge the law by.")] = 0,
    supply: TokenSupply = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens a run is trained on.")] = None,
    epochs: Epochs = 4,
    floor: Floor = None,
    ceiling: Ceiling = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 42,
    strength_low: Annotated[
        float, typer.Option(help="Least Dirichlet strength: runs of nearly one domain.")
    ] = 0.1,
    strength_high: Annotated[
        float, typer.Option(help="Largest Dirichlet strength: runs near the mean.")
    ] = 5.0,
    power: Annotated[float, typer.Option(help="Of the natural mixture that draws are around.")] = (
        0.5
    ),
    times_natural: Annotated[
        float, typer.Option(help="Largest proportion, in natural ones.")
    ] = 15.0,
    least: Annotated[float, typer.Option(help="Proportions below it become 0.")] = 2e-4,
    with_natural: Annotated[
        bool,
        typer.Option(
            "--with-natural/--without-natural", help="The first run is the natural mixture."
        ),
    ] = True,
    corners: Annotated[
        bool, typer.Option("--corners", help="A run a domain with as much of it as may be.")
    ] = False,
    fit: Annotated[
        str | None,
        typer.Option(help="File of `tamis mix fit`: the runs that would tell this law most."),
    ] = None,
    done: Annotated[
        str | None, typer.Option("--table", help="Table of the runs that it was fitted to.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="uncertainty of the law, or gain: of where its optimum is.")
    ] = "uncertainty",
    target: Annotated[
        list[str] | None,
        typer.Option(help="Target, or target=weight (repeatable); all alike if not given."),
    ] = None,
    mix: Mix = "mix_",
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Write which small runs to do: around the natural mixture, or those that tell a fit most."""
    from tamis.selectors.mixture_design import DirichletSettings, dirichlet_design
    from tamis.storage.errors import UserError
    from tamis.storage.json_models import checked

    there = supplies(supply, unit=None if tokens is None else "tokens")
    if tokens is not None and not there:
        raise UserError("--tokens: they bound nothing without a supply", mend="give --supply")
    limits = limits_of(there, tokens, epochs, floor, ceiling)
    around = supplies(natural, "--natural") or there
    if fit is None and not around:
        raise UserError(
            "no natural mixture to draw around",
            mend="--natural web=60 --natural code=40, or a file that `tamis mix count` wrote",
        )
    given = {
        "power": power,
        "strength_low": strength_low,
        "strength_high": strength_high,
        "times_natural": times_natural,
        "least": least,
        "natural": with_natural,
        "corners": corners,
        "seed": seed,
    }
    settings = checked(DirichletSettings, given, "options")
    if fit is None:
        if done is not None or target or where or by != "uncertainty" or mix != "mix_":
            raise UserError(
                "--table, --target, --where, --by and --mix go with a fit", mend="give --fit"
            )
        found = dirichlet_design(
            around, runs, validation=validation, limits=limits, settings=settings
        )
    else:
        from tamis.scoring.fits import load_fit
        from tamis.selectors.adaptive_design import AdaptiveSettings, adaptive_design

        if done is None:
            raise UserError(
                "--fit: its runs are needed as well", mend="give --table, the file it was fitted to"
            )
        if validation:
            raise UserError(
                "--validation: runs that are chosen to tell most judge no law",
                mend="draw validation runs without --fit",
            )
        if by not in ("gain", "uncertainty"):
            raise UserError(f"--by: expected gain or uncertainty, found {by!r}")
        fitted = load_fit(fit)
        found = adaptive_design(
            fitted,
            runs_from(done, None, mix, list(fitted.targets), where),
            runs,
            by="gain" if by == "gain" else "uncertainty",
            weights=weights(target) or None,
            natural=around or None,
            limits=limits,
            settings=AdaptiveSettings(seed=seed),
            dirichlet=settings,
        )
    found.save(out)
    _tell(found, limits, out, as_json)


def _tell(found: "Design", limits: "MixtureLimits", out: Path, as_json: bool) -> None:
    domains = found.summary(limits)
    if as_json:
        about = {
            "design": str(out),
            "runs": len(found.mixtures) - found.validation,
            "validation": found.validation,
            "domains": domains,
            "notes": list(found.notes),
        }
        print(json.dumps(about))
        return
    repeats = any("epochs" in row for row in domains)
    header = ["domain", "least", "mean", "most", "runs with it"]
    table(
        header + (["most epochs", "repeated in runs"] if repeats else []),
        [
            [
                row["domain"],
                *(f"{row[key]:.4f}" for key in ("least", "mean", "most")),
                str(row["runs"]),
                *(
                    [
                        f"{row['epochs']:.2f}" if "epochs" in row else "",
                        str(row.get("repeated", "")),
                    ]
                    if repeats
                    else []
                ),
            ]
            for row in domains
        ],
    )
    for note in found.notes:
        say(note)
    say(
        f"design   {out}: {len(found.mixtures) - found.validation} runs"
        + (f" and {found.validation} for validation" if found.validation else "")
    )
