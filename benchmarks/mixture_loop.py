"""A closed loop of mixtures: small runs, laws, optima, and runs that say whether these hold.

    python benchmarks/mixture_loop.py DATA/domains_text.parquet --work FOLDER [--svg FILE]

Every step leaves its files in the folder, and one that is there is not taken again: run the same
command again after an interruption, or for the tables alone.

1. Rows of six training domains and two that are only validated on; near-duplicates dropped
   (`tamis dedup`); then a sample of all rows, so that one run sees the natural mixture about once
   and supply is short. Tokens and their supply by `tamis mix tokenise`.
2. `tamis mix design`: mixtures within the supply at the most epochs; `tamis mix train` on each,
   and on some of them again with other seeds.
3. Laws fitted to these runs. For each objective the law with the least held-out error gives the
   best mixture within the same limits.
4. `tamis mix train` on these optima, the natural and an even mixture and new random ones from the
   same design, with seeds that no run before had; and on the natural mixture for more steps.
5. Predicted against observed.
6. What two other ways to an optimum are worth where the first one failed, `tech_book`. These were
   thought of after the tables of 5 were seen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from harness import print_table
from scatter_svg import Panel, Point, write_scatter

from tamis.scoring.fits import Fitted, law, spearman
from tamis.scoring.mixture_runs import runs_of
from tamis.selectors.mixture_constraints import MixtureLimits, project
from tamis.selectors.mixture_optimum import optimise
from tamis.storage.domain_supply import load_supply

Floats = npt.NDArray[np.float64]

DOMAINS = ("books", "code_java", "code_python", "law", "math", "medical")
OUTSIDE = ("science_abstracts", "tech_book")
#: Each a weighted mean of validation losses: all training domains alike, the two domains that no
#: mixture holds, and one that there is little of.
OBJECTIVES: dict[str, dict[str, float]] = {
    "mean of six": {f"loss_{domain}": 1 / len(DOMAINS) for domain in DOMAINS},
    "tech_book": {"loss_tech_book": 1.0},
    "science_abstracts": {"loss_science_abstracts": 1.0},
    "math": {"loss_math": 1.0},
}
LAWS = (
    ("mixing_law", {}),
    ("mixing_law, 2 components", {"components": 2}),
    ("autoscale", {}),
    # LightGBM's least leaf of 20 runs and a patience of 3 trees are for hundreds of runs.
    ("regmix, leaves of 3", {"leaf_rows": 3, "early_stopping": 50}),
    ("linear", {}),
)
LEVEL = 0.9
#: Share of the documents that losses are measured on; and of the rows of domains that are there
#: for nothing else.
VALIDATION, OUTSIDE_SAMPLE = 0.25, 0.4
#: Dirichlet strengths of the design: RegMix's own 0.1 to 5, which are for 17 domains, would leave
#: most runs with one or two of six.
STRENGTHS = (2, 20)
COLOURS = {
    "run of the design": "grey",
    "random": "green",
    "even": "violet",
    "natural": "blue",
    "optimum": "red",
}


@dataclass(frozen=True)
class Setting:
    """What the command was told."""

    data: Path
    work: Path
    sample: float
    vocabulary: int
    steps: int
    batch: int
    context: int
    width: int
    layers: int
    rate: float
    runs: int
    random: int
    seeds: int
    repeated: int
    epochs: float
    workers: int

    @property
    def tokens(self) -> int:
        """Training tokens of one run."""
        return self.steps * self.batch * self.context


def tamis(*arguments: object) -> None:
    """Run a command, which ends this script where it fails."""
    command = [sys.executable, "-m", "tamis.cli", *map(str, arguments)]
    print("+ tamis", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stdout[-1000:] + done.stderr[-3000:])


def tokenised(given: Setting) -> Path:
    """Token shards of a sample of rows without near-duplicates."""
    rows, kept, sample, out = (
        given.work / name for name in ("rows.parquet", "deduped", "sample.parquet", "tokens")
    )
    if not rows.exists():
        wanted = pl.col("domain").is_in([*DOMAINS, *OUTSIDE])
        pl.read_parquet(given.data).filter(wanted).write_parquet(rows)
    if not kept.exists():
        tamis("dedup", rows, kept, "--id", "id", "--threshold", 0.6)
    if not sample.exists():
        table = pl.read_parquet(kept / "*.parquet", columns=["id", "domain", "text"]).sort("id")
        inside = pl.col("domain").is_in(DOMAINS)
        parts = [
            table.filter(which).sample(fraction=share, seed=0)
            for which, share in ((inside, given.sample), (~inside, OUTSIDE_SAMPLE))
        ]
        pl.concat(parts).write_parquet(sample)
    if not (out / "supply.json").exists():
        flags = ["--vocabulary", given.vocabulary, "--validation", VALIDATION]
        tamis("mix", "tokenise", sample, out, "--domain", "domain", "--id", "id", *flags)
    return out


def supply_of(tokens: Path) -> dict[str, float]:
    """Training tokens by training domain."""
    there = load_supply(tokens / "supply.json").of("tokens")
    return {domain: there[domain] for domain in DOMAINS}


def designed(given: Setting, tokens: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Mixtures to fit laws to, and further ones of the same design: `run` and `mix_*`."""
    path = given.work / "design.parquet"
    if not path.exists():
        supply = [f"--supply={domain}={value:.0f}" for domain, value in supply_of(tokens).items()]
        limits = ["--tokens", given.tokens, "--epochs", given.epochs]
        strengths = ["--strength-low", STRENGTHS[0], "--strength-high", STRENGTHS[1]]
        counts = ["--runs", given.runs, "--validation", given.random, "--seed", 0]
        tamis("mix", "design", path, *supply, *limits, *strengths, *counts)
    table = pl.read_parquet(path)
    columns = ["run", *(f"mix_{domain}" for domain in DOMAINS)]
    fitted, new = (table.filter(pl.col("split") == s) for s in ("train", "validation"))
    return fitted.select(columns), new.select(columns)


def trained(
    given: Setting, name: str, mixtures: pl.DataFrame, steps: int, seeds: Sequence[int]
) -> pl.DataFrame:
    """Runs of every mixture with every seed."""
    table, out = given.work / f"{name}-design.parquet", given.work / f"{name}-runs.parquet"
    mixtures.write_parquet(table)
    flags = ["--steps", steps, "--epochs", given.epochs, "--workers", given.workers]
    flags += [f"--{key}={getattr(given, key)}" for key in ("batch", "context", "rate")]
    flags += [f"--param={key}={getattr(given, key)}" for key in ("width", "layers")]
    flags += [f"--seed={seed}" for seed in seeds]
    tamis("mix", "train", given.work / "tokens", table, out, *flags)
    return pl.read_parquet(out)


class Objective:
    """A weighted mean of losses, as a fit predicts it."""

    def __init__(self, name: str, fitted: Fitted) -> None:
        self.name, self.fitted = name, fitted
        weights = OBJECTIVES[name]
        self.shares = np.array([weights.get(target, 0.0) for target in fitted.targets])
        residuals = np.column_stack([fitted.evidence["residuals"][t] for t in fitted.targets])
        self.residuals: Floats = residuals @ self.shares

    @property
    def rmse(self) -> float:
        """Held out."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    @property
    def half(self) -> float:
        """Half the width of an interval, as `Fitted.half_width` has it of a single loss."""
        rank = math.ceil((len(self.residuals) + 1) * LEVEL)
        return float(np.sort(np.abs(self.residuals))[rank - 1])

    def predicted(self, mixtures: Floats) -> Floats:
        return self.fitted.predict(mixtures).value @ self.shares


def observed(table: pl.DataFrame, objective: str) -> Floats:
    """The objective's loss in every run: float64 [n]."""
    weights = OBJECTIVES[objective]
    return np.asarray(
        table.select(pl.sum_horizontal(pl.col(n) * w for n, w in weights.items())).to_series()
    )


def shares_of(table: pl.DataFrame) -> Floats:
    return table.select(f"mix_{domain}" for domain in DOMAINS).to_numpy()


def fitted_laws(runs: pl.DataFrame) -> dict[str, Fitted]:
    known = runs_of(
        runs, mix=[f"mix_{d}" for d in DOMAINS], target=[f"loss_{d}" for d in (*DOMAINS, *OUTSIDE)]
    )
    return {title: law(title.split(",")[0], **parameters).fit(known) for title, parameters in LAWS}


def best_laws(laws: dict[str, Fitted]) -> dict[str, str]:
    """By objective the law with the least error on runs held out."""
    return {
        name: min(laws, key=lambda title: Objective(name, laws[title]).rmse) for name in OBJECTIVES
    }


def limits_of(given: Setting, supply: dict[str, float]) -> MixtureLimits:
    return MixtureLimits(supply=supply, tokens=given.tokens, epochs=given.epochs)


def references(given: Setting, new: pl.DataFrame) -> dict[str, Floats]:
    """Mixtures that no law had a part in: natural, even, and random ones of the design."""
    supply = supply_of(given.work / "tokens")
    natural = np.array([supply[domain] for domain in DOMAINS])
    bounds = limits_of(given, supply).bounds(DOMAINS)
    even = np.full((1, len(DOMAINS)), 1 / len(DOMAINS))
    found = {"natural": natural / natural.sum(), "even": project(even, *bounds)[0]}
    for number, shares in enumerate(shares_of(new)):
        found[f"random {number + 1}"] = shares
    return found


def optima(given: Setting, laws: dict[str, Fitted]) -> dict[str, Floats]:
    """The best mixture of every objective; told with how flat it is."""
    supply = supply_of(given.work / "tokens")
    limits = limits_of(given, supply)
    mixtures, rows = {}, []
    for name, title in best_laws(laws).items():
        found = optimise(laws[title], OBJECTIVES[name], limits=limits, natural=supply)
        mixtures[f"optimum of {name}"] = found.mixture
        spans = (found.ranges[domain] for domain in DOMAINS)
        shares = [
            f"{share:.2f} ({low:.2f} to {high:.2f})"
            for share, (low, high) in zip(found.mixture, spans, strict=True)
        ]
        bound = ", ".join(f"{domain} ({what})" for domain, what in found.binding.items())
        rows.append([f"optimum of {name}", title, *shares, bound or "none"])
    whole = sum(supply.values())
    most = limits.bounds(DOMAINS)[1]
    rows.append(["natural", "", *(f"{supply[domain] / whole:.2f}" for domain in DOMAINS), ""])
    rows.append(["most allowed", "", *(f"{share:.2f}" for share in most), ""])
    print_table(("mixture", "law", *DOMAINS, "held by limits"), rows, 1)
    return mixtures


def afterwards(given: Setting, laws: dict[str, Fitted], seeds: Sequence[int]) -> None:
    """Another law's optimum of `tech_book`, and one drawn towards the natural mixture."""
    name, supply = "tech_book", supply_of(given.work / "tokens")
    ways = {"autoscale": ("autoscale", 0.0), "mixing_law, --kl 0.1": ("mixing_law", 0.1)}
    mixtures, predicted = {}, {}
    for way, (title, kl) in ways.items():
        found = optimise(
            laws[title],
            OBJECTIVES[name],
            limits=limits_of(given, supply),
            natural=supply,
            kl=kl,
            ranges=False,
        )
        mixtures[way] = found.mixture
        objective = Objective(name, laws[title])
        value = objective.predicted(found.mixture[None])[0]
        predicted[way] = f"{value:.3f} ± {objective.half:.3f}"
    runs = trained(given, "after", as_table(mixtures), given.steps, seeds)
    losses, which = observed(runs, name), runs["run"].to_numpy()
    rows = []
    for number, way in enumerate(ways):
        own = losses[which == number]
        shares = [f"{share:.2f}" for share in mixtures[way]]
        rows.append([way, *shares, predicted[way], f"{own.mean():.3f} ± {own.std(ddof=1):.3f}"])
    print(f"\nAfterwards: other optima of {name}\n")
    print_table(("way", *DOMAINS, "predicted", "observed"), rows, 1)


def as_table(mixtures: dict[str, Floats], first: int = 0) -> pl.DataFrame:
    """A design; `run` counts mixtures from `first` on."""
    shares = np.array(list(mixtures.values()))
    columns = {f"mix_{domain}": shares[:, j] for j, domain in enumerate(DOMAINS)}
    return pl.DataFrame({"run": np.arange(first, first + len(shares)), **columns})


def tell_laws(laws: dict[str, Fitted], random: Floats, seen: dict[str, Floats]) -> None:
    """Errors of all laws: on runs of the design held out, and on the new random mixtures."""
    rows = []
    for title, fitted in laws.items():
        row = [title]
        for name in OBJECTIVES:
            objective = Objective(name, fitted)
            away = objective.predicted(random) - seen[name]
            row += [f"{objective.rmse:.4f}", f"{np.sqrt(np.mean(away**2)):.4f}"]
        rows.append(row)
    header = [f"{name}, {what}" for name in OBJECTIVES for what in ("held out", "new")]
    print_table(("law", *header), rows, 1)


def steps_needed(level: float, longer: dict[int, float]) -> str:
    """Steps in which losses by steps come down to a level, between them by log of the steps."""
    steps = np.array(sorted(longer))
    losses = np.array([longer[step] for step in steps])
    if level >= losses[0]:
        return f"under {steps[0]}"
    if level <= losses[-1]:
        return f"over {steps[-1]}"
    place = int(np.flatnonzero(losses > level)[-1])
    part = (losses[place] - level) / (losses[place] - losses[place + 1])
    return f"{steps[place] * (steps[place + 1] / steps[place]) ** part:.0f}"


def report(
    given: Setting,
    laws: dict[str, Fitted],
    design: pl.DataFrame,
    mixtures: dict[str, Floats],
    runs: pl.DataFrame,
    longer: pl.DataFrame,
    svg: Path | None,
) -> None:
    names = list(mixtures)
    points = np.array([mixtures[name] for name in names])
    which = runs["run"].to_numpy()
    chosen = best_laws(laws)
    losses = {name: observed(runs, name) for name in OBJECTIVES}
    means = {
        name: np.array([values[which == number].mean() for number in range(len(names))])
        for name, values in losses.items()
    }
    deviations = {
        name: np.array([values[which == number].std(ddof=1) for number in range(len(names))])
        for name, values in losses.items()
    }
    random = np.array([name.startswith("random") for name in names])
    print("\nErrors (root mean square), held out in the design and on new random mixtures\n")
    tell_laws(laws, points[random], {name: means[name][random] for name in OBJECTIVES})

    details, summary, panels = [], [], []
    for name in OBJECTIVES:
        objective = Objective(name, laws[chosen[name]])
        value, mean, sd = objective.predicted(points), means[name], deviations[name]
        order = np.argsort(value)
        for number in order:
            details.append(
                [
                    name,
                    names[number],
                    f"{value[number]:.3f} ± {objective.half:.3f}",
                    f"{mean[number]:.3f} ± {sd[number]:.3f}",
                    f"{mean[number] - value[number]:+.3f}",
                ]
            )
        best, natural = names.index(f"optimum of {name}"), names.index("natural")
        inside = np.abs(losses[name] - value[which]) <= objective.half
        noise = math.sqrt(float(np.mean(sd**2)))
        by_steps = {given.steps: float(mean[natural])}
        for steps in longer["steps"].unique().to_list():
            part = longer.filter(pl.col("steps") == steps)
            by_steps[int(steps)] = float(observed(part, name).mean())
        summary.append(
            {
                "law, the best of those held out": chosen[name],
                "optimum, predicted": f"{value[best]:.3f} ± {objective.half:.3f}",
                "optimum, observed": f"{mean[best]:.3f} ± {sd[best]:.3f}",
                "natural, predicted": f"{value[natural]:.3f} ± {objective.half:.3f}",
                "natural, observed": f"{mean[natural]:.3f} ± {sd[natural]:.3f}",
                "gain over natural": f"{mean[natural] - mean[best]:+.3f}",
                f"natural gets there in steps ({given.steps} were had)": steps_needed(
                    float(mean[best]), by_steps
                ),
                "best observed": names[int(mean.argmin())],
                "regret against it": f"{mean[best] - mean.min():.3f}",
                f"Spearman x 100, {len(names)} mixtures": f"{100 * spearman(mean, value):.1f}",
                "random runs in the interval": f"{inside[random[which]].sum()} of "
                f"{random[which].sum()}",
                "all runs in the interval": f"{inside.sum()} of {len(inside)}",
                "standard deviation over seeds": f"{noise:.4f}",
            }
        )
        panels.append(panel(objective, design, names, value, mean, sd))
    print("\nAll mixtures, best predicted first: mean over seeds ± standard deviation\n")
    print_table(("objective", "mixture", "predicted", "observed", "difference"), details, 2)
    print("\nSummary\n")
    rows = [[key, *(column[key] for column in summary)] for key in summary[0]]
    print_table(("", *OBJECTIVES), rows, 1)
    if svg is not None:
        write_scatter(svg, panels, COLOURS, ("predicted loss", "observed loss"))


def panel(
    objective: Objective,
    design: pl.DataFrame,
    names: Sequence[str],
    value: Floats,
    mean: Floats,
    sd: Floats,
) -> Panel:
    """Runs of the design as predicted while they were held out, and validation runs."""
    seen = observed(design, objective.name)
    points = [
        Point("run of the design", float(loss - away), float(loss))
        for loss, away in zip(seen, objective.residuals, strict=True)
    ]
    for number, name in enumerate(names):
        kind = name.split()[0]
        if kind == "optimum" and name != f"optimum of {objective.name}":
            continue
        numbers = (value[number], mean[number], objective.half, sd[number])
        points.append(Point(kind, *map(float, numbers)))
    return Panel(objective.name, points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="domains_text.parquet")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--svg", type=Path, help="where to draw predicted against observed")
    parser.add_argument("--sample", type=float, default=0.06, help="share of the rows")
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--runs", type=int, default=32, help="mixtures of the design")
    parser.add_argument("--random", type=int, default=6, help="new mixtures to validate")
    parser.add_argument("--seeds", type=int, default=3, help="of each mixture to validate")
    parser.add_argument("--repeated", type=int, default=3, help="runs with two seeds more")
    parser.add_argument("--epochs", type=float, default=4, help="how often a token may be seen")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, a core each")
    options = vars(parser.parse_args())
    svg = options.pop("svg")
    given = Setting(**options)
    given.work.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in options.items() if k not in ("data", "work", "workers")}
    saved = given.work / "settings.json"
    if saved.exists() and json.loads(saved.read_text()) != settings:
        raise SystemExit(f"{saved} has other settings: take another folder")
    saved.write_text(json.dumps(settings))

    tokens = tokenised(given)
    supply = supply_of(tokens)
    print(f"{given.tokens:,} tokens a run; supply {supply}\n")
    table, new = designed(given, tokens)
    seeds = range(10, 10 + given.seeds)
    mixtures = references(given, new)
    design = trained(given, "first", table, given.steps, [0])
    if given.repeated:
        again = trained(given, "repeated", table[: given.repeated], given.steps, [1, 2])
        design = pl.concat([design, again])
    laws = fitted_laws(design)
    best = optima(given, laws)
    ours = trained(given, "optima", as_table(best, len(mixtures)), given.steps, seeds)
    others = trained(given, "references", as_table(mixtures), given.steps, seeds)
    runs = pl.concat([others, ours])
    natural = as_table({"natural": mixtures["natural"]})
    longer = pl.concat(
        trained(given, f"natural-{steps}", natural, steps, seeds[:2])
        for steps in (given.steps * 3 // 2, given.steps * 2)
    )
    mixtures |= best
    report(given, laws, design, mixtures, runs, longer, svg)
    afterwards(given, laws, seeds)


if __name__ == "__main__":
    main()
