"""Commands that weigh domains without small runs: by size, by replay, by losses."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.commands.mixture_options import Epochs, supplies
from tamis.commands.options import AsJson
from tamis.console import figure, say, table

if TYPE_CHECKING:
    from tamis.scoring.domain_losses import Columns, DomainLosses
    from tamis.selectors.domain_weights import Weighed
    from tamis.selectors.robust_weights import WeightPath
    from tamis.storage.mixture_plan import MixturePlan

weights_app = typer.Typer(
    help="Weights of domains without small runs: by their sizes, or by their losses.",
    no_args_is_help=True,
)

Supply = Annotated[
    list[str] | None,
    typer.Option(
        help="What there is: code=5e9 (repeatable), or a file of `tamis mix count`.",
    ),
]
Tokens = Annotated[
    float | None, typer.Option(help="Length of the training, in the unit of the supply.")
]
Cap = Annotated[
    bool, typer.Option("--cap", help="Hold domains at that, and give the others the rest.")
]
Out = Annotated[
    Path | None, typer.Option(help="File for the mixture, as `tamis mix apply` takes it.")
]
Losses = Annotated[
    str,
    typer.Argument(
        metavar="LOSSES",
        help="Losses by step and domain: Parquet, CSV or JSON lines; documents also as a glob.",
    ),
]
Trace = Annotated[
    Path | None, typer.Option(help="Parquet file for losses and weights of every step.")
]
Missing = Annotated[
    str, typer.Option(help="refuse, or carry: the last loss of a domain that a step has none of.")
]
Documents = Annotated[
    bool, typer.Option("--documents", help="Rows are documents, to be folded to domains.")
]
Result = Annotated[str, typer.Option(help="mean of the weights over the steps, or the last ones.")]
Step = Annotated[str, typer.Option(help="Column of the step.")]
Domain = Annotated[str, typer.Option(help="Column of the domain.")]
Loss = Annotated[str, typer.Option(help="Column of the loss, in nats a token.")]
TokenColumn = Annotated[
    str | None, typer.Option(help="With --documents: column of a document's tokens.")
]


@weights_app.command()
def temperature(
    supply: Supply = None,
    tau: Annotated[
        float, typer.Option(help="Temperature: 1 the natural mixture, inf an even one.")
    ] = 5.0,
    cool_to: Annotated[
        float | None, typer.Option(help="Temperature at the end, below the first.")
    ] = None,
    phases: Annotated[int | None, typer.Option(help="Phases of a cool-down; 2.")] = None,
    phase_share: Annotated[
        list[float] | None,
        typer.Option(help="Share of the training, a phase (repeatable); alike if not given."),
    ] = None,
    tokens: Tokens = None,
    epochs: Epochs = 4,
    cap: Cap = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Proportions by size to the power 1/temperature; also cooled down over the training."""
    from tamis.selectors.temperature import cooling, tempered
    from tamis.storage.errors import UserError

    there = supplies(supply)
    if not there:
        raise UserError("--supply: nothing to weigh", mend="give what there is of every domain")
    if cool_to is None and phases is not None:
        raise UserError("--phases go with a cool-down", mend="give --cool-to")
    temperatures = (
        [tau] if cool_to is None else cooling(tau, cool_to, 2 if phases is None else phases)
    )
    plan, weighed = _limited(tempered(there, temperatures, phase_share), there, tokens, epochs, cap)
    assert weighed is not None
    if out is not None:
        plan.save(out)
    if as_json:
        print(json.dumps(weighed.as_json()))
        return
    if len(temperatures) > 1:
        phased = list(zip(temperatures, plan.phases, strict=True))
        table(
            ("domain", *(f"τ {tau:.4g}, {phase.share:.1%}" for tau, phase in phased)),
            [[name, *(f"{p.mixture[name]:.4f}" for _, p in phased)] for name in plan.domains],
        )
        say("over the whole training:")
    _tell(plan, weighed, {})
    _tell_out(out)


@weights_app.command()
def replay(
    old: Annotated[
        list[str] | None,
        typer.Option(help="Tokens of the old corpus: web=5e9 (repeatable), or a count's file."),
    ] = None,
    new: Annotated[
        list[str] | None, typer.Option(help="Tokens of the new corpus, in the same way.")
    ] = None,
    shift: Annotated[str | None, typer.Option(help="weak (replay 5 %) or strong (25 %).")] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Replay fraction itself, as in 0.1.")
    ] = None,
    tokens: Annotated[
        float | None,
        typer.Option(help="Length of the training; one pass over the new corpus if not given."),
    ] = None,
    epochs: Epochs = 4,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Mix an old corpus into the training on a new one, in place of as many new tokens."""
    from tamis.selectors.replay import replay as replayed
    from tamis.storage.errors import UserError

    wanted = [given for given in (shift, fraction) if given is not None]
    if len(wanted) != 1:
        raise UserError(
            "expected --shift or --fraction, one of the two",
            mend="--shift weak (5 %) for text like the old, strong (25 %) for another language",
        )
    found = replayed(
        supplies(old, "--old", "tokens"),
        supplies(new, "--new", "tokens"),
        wanted[0],
        tokens=tokens,
        epochs=epochs,
    )
    if out is not None:
        found.plan.save(out)
    if as_json:
        print(json.dumps(found.as_json()))
        return
    shares = found.plan.over_all()
    table(
        ("corpus", "domain", "there", "proportion", "tokens", "times seen"),
        [
            [
                what,
                name,
                figure(corpus[name]),
                f"{shares[name]:.4f}",
                f"{found.tokens[name]:,}",
                f"{found.seen[name]:.4g}",
            ]
            for what, corpus in (("old", found.old), ("new", found.new))
            for name in corpus
        ],
    )
    replaced = sum(found.tokens[name] for name in found.old)
    say(f"{replaced:,} tokens ({found.fraction:.3g} of the training) are old ones, in place of new")
    _tell_out(out)


@weights_app.command("group-dro")
def group_dro(
    losses: Losses,
    rate: Annotated[float, typer.Option(help="Step size of the weights.")] = 0.01,
    adjustment: Annotated[
        float,
        typer.Option(help="C of the term C/√n that loss is raised by; n are rows of the supply."),
    ] = 0.0,
    supply: Annotated[
        list[str] | None,
        typer.Option(help="Rows there are: code=5e6 (repeatable), or a file of `tamis mix count`."),
    ] = None,
    result: Result = "last",
    missing: Missing = "refuse",
    documents: Documents = False,
    step: Step = "step",
    domain: Domain = "domain",
    loss: Loss = "loss",
    token_column: TokenColumn = None,
    rows: Annotated[
        float | None, typer.Option(help="Length of the training, in rows as the supply.")
    ] = None,
    epochs: Epochs = 4,
    cap: Cap = False,
    trace: Trace = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Weights that raise the domains with the largest losses (group DRO)."""
    from tamis.scoring.domain_losses import Columns
    from tamis.selectors.robust_weights import group_dro as raised

    columns = Columns(step, domain, loss, tokens=token_column)
    given = _losses(losses, columns, missing, documents)
    there = supplies(supply, unit="rows")
    if not there and len(given.steps) == 1:
        there = dict(given.rows)  # of documents, each of which is there once
    path = raised(given, rate=rate, adjustment=adjustment, sizes=there or None)
    found = _plan(losses, path, result)
    _tell_robust(path, *_limited(found, there, rows, epochs, cap), trace, out, as_json)


@weights_app.command()
def doremi(
    losses: Losses,
    reference: Annotated[
        str | None,
        typer.Option(help="Table of the reference model's losses, if they are not in LOSSES."),
    ] = None,
    rate: Annotated[float, typer.Option(help="Step size of the weights.")] = 1.0,
    smoothing: Annotated[
        float, typer.Option(help="Share of an even mixture that is mixed in at every step.")
    ] = 1e-4,
    supply: Supply = None,
    result: Result = "mean",
    missing: Missing = "refuse",
    documents: Documents = False,
    step: Step = "step",
    domain: Domain = "domain",
    loss: Loss = "loss",
    reference_column: Annotated[
        str, typer.Option(help="Column of the reference model's loss.")
    ] = "reference",
    token_column: TokenColumn = None,
    tokens: Tokens = None,
    epochs: Epochs = 4,
    cap: Cap = False,
    trace: Trace = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Weights that raise the domains that a proxy does worse on than a reference model (DoReMi)."""
    from dataclasses import replace

    from tamis.scoring.domain_losses import Columns
    from tamis.selectors.robust_weights import doremi as raised
    from tamis.storage.errors import UserError

    columns = Columns(step, domain, loss, reference_column, token_column)
    there = supplies(supply)
    given = _losses(losses, columns, missing, documents)
    if reference is not None:
        if documents:
            raise UserError(
                "--reference: documents have their reference's loss in a column of their own",
                mend=f"join it to LOSSES as {reference_column!r}",
            )
        if given.references is not None:
            raise UserError(f"--reference: {losses} has the reference's losses already")
        given = given.against(_losses(reference, replace(columns, tokens=None), missing, False))
    path = raised(given, rate=rate, smoothing=smoothing)
    found = _plan(losses, path, result)
    _tell_robust(path, *_limited(found, there, tokens, epochs, cap), trace, out, as_json)


def _losses(path: str, columns: "Columns", missing: str, documents: bool) -> "DomainLosses":
    from tamis.scoring.domain_losses import read_losses
    from tamis.storage.errors import UserError

    if missing not in ("refuse", "carry"):
        raise UserError(f"--missing: expected refuse or carry, found {missing!r}")
    carry = missing == "carry"
    return read_losses(
        path, columns=columns, missing="carry" if carry else "refuse", documents=documents
    )


def _plan(losses: str, path: "WeightPath", result: str) -> "MixturePlan":
    from tamis.storage.errors import UserError
    from tamis.storage.mixture_plan import MixturePlan

    if result not in ("mean", "last"):
        raise UserError(f"--result: expected mean or last, found {result!r}")
    origin = {
        "method": path.method,
        **path.parameters,
        "losses": losses,
        "steps": len(path.losses.steps),
        "result": result,
    }
    return MixturePlan.of(path.result("mean" if result == "mean" else "last"), origin=origin)


def _limited(
    plan: "MixturePlan", supply: dict[str, float], tokens: float | None, epochs: float, cap: bool
) -> "tuple[MixturePlan, Weighed | None]":
    """A plan under its supply; as it is where no supply is given."""
    from tamis.selectors.domain_weights import Weighed
    from tamis.storage.errors import UserError

    if not supply:
        if cap or tokens is not None:
            raise UserError(
                "a length and --cap say nothing without a supply", mend="give --supply as well"
            )
        return plan, None
    found = Weighed(plan, supply, tokens, epochs)
    if cap:
        found = found.capped()
    return found.plan, found


def _tell_robust(
    path: "WeightPath",
    plan: "MixturePlan",
    weighed: "Weighed | None",
    trace: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    from tamis.storage.files import whole_file

    if trace is not None:
        with whole_file(trace) as temporary:
            path.table().write_parquet(temporary)
    if out is not None:
        plan.save(out)
    worst = path.worst()
    if as_json:
        under = {"mixture": plan.over_all()} if weighed is None else weighed.as_json()
        told = {
            **under,
            "mean": path.result("mean"),
            "last": path.result("last"),
            "steps": len(path.losses.steps),
            "worst": worst,
            "notes": [*path.notes(), *under.get("notes", [])],
        }
        print(json.dumps(told))
        return
    _tell(plan, weighed, _loss_columns(path, plan.origin["result"]))
    steps = len(path.losses.steps)
    over = f" ({worst['first']:.4f} at the first of {steps:,} steps)" if steps > 1 else ""
    say(
        f"worst    {worst['domain']}: loss {worst['loss']:.4f}{over}; mean of domains "
        f"{worst['mean']:.4f}, by the last weights {worst['weighted']:.4f}"
    )
    for note in path.notes():
        say(note)
    if trace is not None:
        say(f"trace    {trace}")
    _tell_out(out)


def _loss_columns(path: "WeightPath", result: str) -> dict[str, list[str]]:
    """What is known of every domain's losses and weights, by title."""
    losses = path.losses
    found = {"loss": losses.losses[-1]}
    if path.method == "doremi" and losses.references is not None:
        found |= {"reference": losses.references[-1], "mean excess": path.scores.mean(axis=0)}
    if result == "mean":
        found["last weight"] = path.weights[-1]
    else:
        found["mean weight"] = path.weights.mean(axis=0)
    return {title: [f"{value:.4f}" for value in values] for title, values in found.items()}


def _tell(plan: "MixturePlan", weighed: "Weighed | None", beside: dict[str, list[str]]) -> None:
    shares = plan.over_all()
    columns = {"domain": list(plan.domains), **beside}
    if weighed is not None:
        columns["natural"] = [f"{weighed.natural[name]:.4f}" for name in plan.domains]
    columns["proportion"] = [f"{shares[name]:.4f}" for name in plan.domains]
    if weighed is not None:
        columns["loss weight"] = [f"{weighed.loss_weights[name]:.4g}" for name in plan.domains]
        if weighed.tokens is not None:
            columns["times seen"] = [f"{weighed.seen[name]:.4g}" for name in plan.domains]
    table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)])
    for note in weighed.notes() if weighed is not None else ():
        say(note)


def _tell_out(out: Path | None) -> None:
    if out is not None:
        say(f"mixture  {out}")
