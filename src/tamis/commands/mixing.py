"""Commands about mixtures: laws fitted to small runs, and the best proportions by them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.commands.mixture_options import (
    Ceiling,
    Epochs,
    Floor,
    Join,
    Mix,
    Natural,
    RunsFile,
    Target,
    TokenSupply,
    Where,
    limits_of,
    runs_from,
    supplies,
)
from tamis.commands.mixture_options import weights as weights_of
from tamis.commands.options import AsJson, parameters
from tamis.console import doc, figure, say, table

if TYPE_CHECKING:
    from tamis.scoring.fits import Fitted
    from tamis.selectors.mixture_optimum import Optimum

Param = Annotated[
    list[str] | None, typer.Option(help="Parameter of the law, as in components=2 (repeatable).")
]


def fit(
    runs: RunsFile,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="JSON file of the fit.")],
    law: Annotated[str, typer.Option(help="See `tamis mix laws`.")] = "mixing_law",
    join: Join = None,
    target: Target = None,
    mix: Mix = "mix_",
    covariate: Annotated[
        list[str] | None,
        typer.Option(help="Further column the law reads; steps, size, tokens if not (repeatable)."),
    ] = None,
    where: Where = None,
    param: Param = None,
    as_json: AsJson = False,
) -> None:
    """Fit a law to runs; tells its error on runs that were held out."""
    from tamis.scoring.fits import law as law_of

    chosen = law_of(law, **parameters(param or []))
    given = runs_from(runs, join, mix, target, where, covariate)
    fitted = chosen.fit(given)
    fitted.save(out)
    if as_json:
        print(json.dumps(_told(fitted, out)))
        return
    for note in [*fitted.evidence["notes"], *fitted.model.notes()]:
        say(note)
    _tell_errors(fitted)
    numbers = fitted.model.coefficients()
    if numbers and len(numbers) <= 40:
        table(
            ("target", "coefficient", "value", "low", "high"),
            [[c.target, c.name, *(figure(v) if v == v else "" for v in c[2:])] for c in numbers],
        )
    say(f"fit      {out}")
    if fitted.domains:
        say(f"try      tamis mix optimise {out} --target {fitted.targets[0]}")


def compare(
    runs: RunsFile,
    join: Join = None,
    target: Target = None,
    law: Annotated[
        list[str] | None,
        typer.Option(help="Law, as in mixing_law:components=3 (repeatable); several if not given."),
    ] = None,
    mix: Mix = "mix_",
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Fit several laws to the same runs and rank them by their error on runs held out."""
    from tamis.scoring.compare_fits import COMPARED
    from tamis.scoring.compare_fits import compare as compare_laws

    given = runs_from(runs, join, mix, target, where)
    found = compare_laws(given, [_law(text) for text in law] if law else COMPARED)
    if as_json:
        print(json.dumps({"laws": found.laws, "rows": found.rows, "refused": found.refused}))
        return
    for note in given.notes:
        say(note)
    table(
        ("target", "rank", "law", "error", "± over folds", "Spearman", "in sample"),
        [
            [
                row["target"],
                str(row["rank"]),
                row["law"],
                *(f"{row[key]:.4f}" for key in ("rmse", "rmse_sd", "spearman", "in_sample_rmse")),
            ]
            for row in found.rows
        ],
    )
    table(
        ("law", "mean rank", "error / spread", "Spearman", "seconds"),
        [
            [
                row["law"],
                f"{row['rank']:.2f}",
                f"{row['rmse_relative']:.3f}",
                f"{row['spearman']:.4f}",
                f"{row['seconds']:.1f}",
            ]
            for row in found.laws
        ],
    )
    say("errors are root mean squares over runs that were held out, unless in sample")
    for title, why in found.refused.items():
        say(f"not fitted: {title}: {why}")


def optimise(
    fit: Annotated[
        str, typer.Argument(metavar="FIT", help="JSON file that `tamis mix fit` wrote.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(help="Target, or target=weight (repeatable); all alike if not given."),
    ] = None,
    supply: TokenSupply = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens wanted in all.")] = None,
    epochs: Epochs = 4,
    floor: Floor = None,
    ceiling: Ceiling = None,
    natural: Natural = None,
    kl: Annotated[
        float, typer.Option(help="Loss that a nat away from the natural mixture is worth.")
    ] = 0.0,
    method: Annotated[
        str, typer.Option(help="search, or regmix: the mean of its draws.")
    ] = "search",
    beyond_runs: Annotated[
        bool, typer.Option("--beyond-runs", help="Allow proportions that no run had.")
    ] = False,
    front: Annotated[
        bool, typer.Option("--front", help="The Pareto front of the targets instead.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File for the mixture, as `tamis mix apply` takes it.")
    ] = None,
    steps: Annotated[float | None, typer.Option(help="Steps to predict for.")] = None,
    size: Annotated[float | None, typer.Option(help="Size to predict for.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the best mixture by a fit, under limits, and how flat the optimum is."""
    from tamis.scoring.fits import load_fit
    from tamis.selectors.mixture_optimum import optimise as best
    from tamis.selectors.mixture_optimum import pareto
    from tamis.storage.errors import UserError
    from tamis.storage.mixture_plan import MixturePlan

    if method not in ("search", "regmix"):
        raise UserError(f"--method: expected search or regmix, found {method!r}")
    fitted = load_fit(fit)
    there = supplies(supply, unit="tokens")
    limits = limits_of(there, tokens, epochs, floor, ceiling, beyond_runs)
    given = {"steps": steps, "size": size}
    covariates = {name: value for name, value in given.items() if value is not None}
    weights = weights_of(target)
    if front:
        if out is not None:
            raise UserError("--out: a front is many mixtures", mend="leave --front out")
        points = pareto(
            fitted, list(weights) or fitted.targets, limits=limits, covariates=covariates
        )
        _tell_front(points, as_json)
        return
    found = best(
        fitted,
        weights or None,
        limits=limits,
        natural=supplies(natural, "--natural") or None,
        kl=kl,
        method="regmix" if method == "regmix" else "search",
        covariates=covariates,
    )
    if out is not None:
        MixturePlan.of(
            dict(zip(found.domains, found.mixture.tolist(), strict=True)),
            origin={"method": method, "law": fitted.fit.law, "fit": fit, "targets": weights},
        ).save(out)
    if as_json:
        print(json.dumps(found.as_json()))
        return
    _tell_optimum(found)
    if out is not None:
        say(f"mixture  {out}")


def laws(
    name: Annotated[str | None, typer.Argument(help="One law, in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the laws that can be fitted, or tell all about one."""
    from tamis.scoring.fits import load_laws
    from tamis.storage.errors import UserError

    known = load_laws()
    if name is None:
        rows = [[key, (cls.__doc__ or "").splitlines()[0], cls.paper] for key, cls in known.items()]
        if as_json:
            print(
                json.dumps([dict(zip(("law", "summary", "paper"), r, strict=True)) for r in rows])
            )
        else:
            table(("law", "what it is", "source"), rows)
        return
    if name not in known:
        raise UserError(f"no law named {name!r}", mend=f"known: {', '.join(known)}")
    cls = known[name]
    schema = cls.model_json_schema()
    if as_json:
        about = {"law": name, "version": cls.version, "paper": cls.paper}
        print(json.dumps({**about, "parameters": schema}))
        return
    say(f"{name}  (fit, version {cls.version})\n\n{doc(cls)}\n\nsource   {cls.paper}")
    table(
        ("parameter", "default", "meaning"),
        [
            [key, str(part.get("default", "required")), part["description"]]
            for key, part in schema["properties"].items()
            if key != "law"
        ],
    )


def _law(text: str) -> dict[str, Any]:
    """A law with parameters, given as ``name:parameter=value,parameter=value``."""
    name, _, rest = text.partition(":")
    return {"law": name, **parameters(rest.split(",") if rest else [])}


def _told(fitted: "Fitted", out: Path) -> dict[str, Any]:
    evidence = {key: fitted.evidence[key] for key in ("runs", "mixtures", "held_out", "in_sample")}
    return {
        "law": fitted.fit.law,
        "fit": str(out),
        **evidence,
        "coefficients": [
            {key: value for key, value in c._asdict().items() if value == value}
            for c in fitted.model.coefficients()
        ],
        "notes": [*fitted.evidence["notes"], *fitted.model.notes()],
    }


def _tell_errors(fitted: "Fitted") -> None:
    half = fitted.half_width()
    rows = []
    for place, target in enumerate(fitted.targets):
        held, seen = (fitted.evidence[key][target] for key in ("held_out", "in_sample"))
        numbers = [held["rmse"], held["mae"], held["spearman"], half[place], seen["rmse"]]
        rows.append([target, *(f"{number:.4f}" for number in numbers)])
    header = ("target", "error held out", "mean absolute", "Spearman", "± 90 %", "error in sample")
    table(header, rows)


def _tell_optimum(found: "Optimum") -> None:
    rows = []
    for place, domain in enumerate(found.domains):
        low, high = found.ranges[domain]
        share = f"{found.mixture[place]:.4f}"
        rows.append([domain, share, f"{low:.3f} to {high:.3f}", found.binding.get(domain, "")])
    table(("domain", "proportion", "as good within the error", "held by"), rows)
    rows = []
    for place, target in enumerate(found.targets):
        value, low, high = (float(part[0, place]) for part in found.prediction)
        row = [target, f"{value:.4f}", f"{low:.4f} to {high:.4f}"]
        if found.natural is not None:
            row.append(f"{found.natural[1].value[0, place]:.4f}")
        rows.append(row)
    header = ["target", "predicted", "90 %"] + (["natural mixture"] if found.natural else [])
    table(header, rows)
    say(f"objective {found.objective:.5f}, error of the fit on it {found.tolerance:.5f}")
    for note in found.notes:
        say(note)


def _tell_front(points: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(points))
        return
    targets = list(points[0]["losses"])
    rows = []
    for point in points:
        parts = sorted(point["mixture"].items(), key=lambda entry: -entry[1])
        mixture = ", ".join(f"{name} {share:.3f}" for name, share in parts if share >= 0.01)
        rows.append([*(f"{point['losses'][target]:.4f}" for target in targets), mixture])
    table((*targets, "mixture"), rows)
