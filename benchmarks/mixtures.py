"""Mixtures: fit and optimise the public runs of RegMix, beside the way of the public notebook.

Takes the table of runs (512 of training, 256 of testing, 17 domains, 13 losses). For every loss
both ways fit LightGBM with the published parameters and stopping, so that both have the same
model, and look for the mixture with the least predicted loss:

- the notebook's way, written down from its description: scikit-learn's wrapper, 100,000 draws from
  a Dirichlet of the runs' mean mixture, all predicted by LightGBM, the mean of the best 128;
- ours: LightGBM on one thread, its trees as bit masks, the best of few draws improved by moving
  shares between pairs of domains.

A third way has no trees: the mixing law, fitted and minimised. Rounds go over all in turn; shown
are medians of seconds of the wall and of the processor, ratios, and the predicted losses of the
first two ways' optima by their model. Judges that saw only the test runs (a mixing law of three
components, and trees) say what the optima may be worth beyond the models they were picked by.
`--spearman` prints rank correlations on the test runs instead; `--coverage` how often
intervals hold the truth of made-up laws.
"""

from __future__ import annotations

import argparse
import time
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
from harness import print_table

from tamis.scoring.fits import Fitted, evidence_of, folds_of, spearman
from tamis.scoring.mixing_law import MixingLaw, pinned
from tamis.scoring.mixture_runs import Runs, read_runs
from tamis.scoring.regmix import Linear, RegMix
from tamis.selectors.mixture_optimum import optimise

DRAWS, BEST = 100_000, 128


def published(path: Path, where: str) -> Runs:
    """Runs with proportions as they are in the file: published figures are of these."""
    table = pl.read_parquet(path).filter(pl.sql_expr(where))
    domains = [c for c in table.columns if c.startswith("mix_")]
    targets = [c for c in table.columns if c.startswith("loss_")]
    return Runs(
        tuple(c.removeprefix("mix_") for c in domains),
        table[domains].to_numpy(),
        {},
        tuple(targets),
        table[targets].to_numpy(),
    )


class Clock:
    """Seconds of the wall and of the processor, by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.last = (time.perf_counter(), time.process_time())

    def lap(self, name: str) -> None:
        now = (time.perf_counter(), time.process_time())
        spent = self.seconds.setdefault(name, [0.0, 0.0])
        for place in range(2):
            spent[place] += now[place] - self.last[place]
        self.last = now


def notebook(
    train: Runs, test: Runs, prior: np.ndarray, threads: int | None
) -> tuple[list[np.ndarray], Clock]:
    """Optima of all targets."""
    from lightgbm import LGBMRegressor, early_stopping

    found, clock = [], Clock()
    for k in range(len(train.targets)):
        model = LGBMRegressor(
            boosting_type="gbdt",
            objective="regression",
            metric=["l1", "l2"],
            n_estimators=1000,
            learning_rate=0.01,
            random_state=42,
            verbosity=-1,
            n_jobs=threads,
        )
        model.fit(
            train.mixtures,
            train.losses[:, k],
            eval_set=[(test.mixtures, test.losses[:, k])],
            eval_metric="l2",
            callbacks=[early_stopping(3, verbose=False)],
        )
        clock.lap("fit")
        draws = np.random.default_rng(42).dirichlet(prior, DRAWS)
        best = np.argsort(model.predict(draws))[:BEST]
        found.append(draws[best].mean(axis=0))
        clock.lap("optimise")
    return found, clock


def ours(
    train: Runs, test: Runs, prior: dict[str, float]
) -> tuple[list[np.ndarray], Clock, Fitted]:
    """Optima of all targets, and the fit; reading its trees is part of optimising."""
    clock = Clock()
    model = RegMix().train(train, stopping=test)
    clock.lap("fit")
    at = model.mean(train)
    evidence = evidence_of(train, folds_of(train, 5, 42), at, at, 42)
    fitted = Fitted(RegMix(), train.domains, train.targets, model, evidence)
    found = [
        optimise(fitted, target, natural=prior, ranges=False).mixture for target in train.targets
    ]
    clock.lap("optimise")
    return found, clock, fitted


def smooth(train: Runs, prior: dict[str, float]) -> tuple[list[np.ndarray], Clock]:
    """Optima of all targets by the mixing law."""
    clock = Clock()
    model = MixingLaw().train(train)
    clock.lap("fit")
    at = model.mean(train)
    evidence = evidence_of(train, folds_of(train, 5, 42), at, at, 42)
    fitted = Fitted(MixingLaw(), train.domains, train.targets, model, evidence)
    found = [
        optimise(fitted, target, natural=prior, ranges=False).mixture for target in train.targets
    ]
    clock.lap("optimise")
    return found, clock


def speed(path: Path, rounds: int, threads: int | None) -> None:
    train = published(path, "split = 'train'")
    test = published(path, "split = 'test' AND model = '1M'")
    prior = train.mixtures.mean(axis=0)
    prior /= prior.sum()
    named = dict(zip(train.domains, map(float, prior), strict=True))
    few = train.only(train.targets[:1])
    ours(few, test.only(train.targets[:1]), named)  # compiles
    smooth(few, named)
    clocks = []
    for _ in range(rounds):
        theirs, their_clock = notebook(train, test, prior, threads)
        mixtures, our_clock, fitted = ours(train, test, named)
        by_law, law_clock = smooth(train, named)
        clocks.append([clock.seconds for clock in (their_clock, our_clock, law_clock)])
    judges = {
        "law": MixingLaw(components=3).train(test),
        "trees": RegMix().train(test),
    }
    rows = []
    for k, target in enumerate(train.targets):
        points = np.stack([theirs[k], mixtures[k], by_law[k]])
        values = [fitted.predict(points[:2]).value[:, k]]
        values += [judge.mean(fitted.inputs(points))[:, k] for judge in judges.values()]
        rows.append([target, *(f"{v:.4f}" for v in np.concatenate(values))])
    ways = ("notebook", "trees", "law")
    header = ("loss", "notebook", "trees", *(f"{j}: {w}" for j in judges for w in ways))
    means = np.array([[float(v) for v in row[1:]] for row in rows])
    print_table(header, [*rows, ["mean", *(f"{v:.4f}" for v in means.mean(axis=0))]], 1)
    better = (means[:, 1] <= means[:, 0]).sum()
    print(f"\ntrees at least as good by their model: {better} of {len(rows)}\n")
    rows = []
    for part in ("fit", "optimise", "both"):
        for place, what in enumerate(("wall", "processor")):
            spent = np.array(
                [
                    [sum(s[p][place] for p in ([part] if part != "both" else s)) for s in clocked]
                    for clocked in clocks
                ]
            )
            ratios = np.median(spent[:, :1] / spent[:, 1:], axis=0)
            seconds = [f"{v:.2f}" for v in np.median(spent, axis=0)]
            rows.append([f"{part}, {what}", *seconds, *(f"{ratio:.1f}" for ratio in ratios)])
    print_table(("seconds", *ways, "notebook / trees", "notebook / law"), rows, 1)


def correlations(path: Path) -> None:
    """Spearman's rank correlation x 100 on the test runs."""
    raw = [
        published(path, where)
        for where in (
            "split = 'train'",
            "split = 'test' AND model = '1M'",
            "split = 'test' AND model = '60M'",
        )
    ]
    clean = [
        read_runs(path, where=where)
        for where in (
            "split = 'train'",
            "split = 'test' AND model = '1M'",
            "split = 'test' AND model = '60M'",
        )
    ]
    models = {
        "as published": (RegMix().train(raw[0], stopping=raw[1]), raw),
        "held out": (RegMix().train(clean[0]), clean),
        "linear": (Linear().train(clean[0]), clean),
        "mixing law": (MixingLaw().train(clean[0]), clean),
        "2 components": (MixingLaw(components=2).train(clean[0]), clean),
    }
    for place, size in ((1, "1M"), (2, "60M")):
        rows = []
        columns = {
            name: [
                100 * spearman(model.mean(runs[place])[:, k], runs[place].losses[:, k])
                for k in range(len(runs[place].targets))
            ]
            for name, (model, runs) in models.items()
        }
        for k, target in enumerate(raw[0].targets):
            rows.append(
                [target.removeprefix("loss_"), *(f"{values[k]:.2f}" for values in columns.values())]
            )
        rows.append(["mean", *(f"{np.mean(values):.2f}" for values in columns.values())])
        print(f"\n{size}")
        print_table(("loss", *columns), rows, 1)


def made_up(kind: str, runs: int, domains: int, noise: float, seed: int) -> tuple[Runs, np.ndarray]:
    """Runs of a made-up mixing law and as many new ones behind them; and its coefficients."""
    draws = np.random.default_rng([seed, runs])
    exponents = draws.normal(0, 1.5, (1, 1, domains)) - 0.2
    constant = 2 + draws.random(1)
    repeats = 3 if kind == "3 seeds a mixture" else 1
    shares = draws.dirichlet(np.ones(domains), 2 * (runs // repeats)).repeat(repeats, axis=0)
    scale = np.full((len(shares), 1), noise)
    if kind == "noise by mixture":
        scale = noise * (0.3 + 2 * shares[:, :1])
    away = draws.normal(size=scale.shape)
    if kind == "heavy tails":
        away = draws.standard_t(3, scale.shape) / np.sqrt(3)
    values = constant + np.exp(shares @ exponents[:, 0].T) + scale * away
    names = tuple(f"d{i}" for i in range(domains))
    return Runs(names, shares, {}, ("loss",), values), pinned(constant, exponents)


def coverage(tables: int) -> None:
    """How often 90 % intervals hold the truth of made-up mixing laws."""
    rows = []
    kinds = ("even noise", "3 seeds a mixture", "noise by mixture", "heavy tails")
    sizes = ((24, 3, 0.01), (48, 3, 0.02), (64, 4, 0.02), (128, 5, 0.02))
    for kind, (runs, domains, noise) in product(kinds, sizes):
        coefficients, losses, widths = [], [], []
        for seed in range(tables):
            table, truth = made_up(kind, runs, domains, noise, seed)
            half = len(table) // 2
            fitted = MixingLaw(starts=5).fit(table.take(np.arange(half)))
            low, high = fitted.model.low, fitted.model.high
            coefficients.append((low <= truth) & (truth <= high))
            widths.append((high - low)[0, 2:])
            new = table.take(np.arange(half, 2 * half))
            found = fitted.predict(new)
            losses.append((found.low <= new.losses) & (new.losses <= found.high))
        rows.append(
            [
                f"{kind}: {half} runs, {domains} domains, noise {noise}",
                f"{100 * np.mean(coefficients):.1f} %",
                f"{np.median(widths):.3f}",
                f"{100 * np.mean(losses):.1f} %",
            ]
        )
    header = (f"{tables} tables each", "coefficients held", "width of t", "new losses held")
    print_table(header, rows, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="mixture_regmix.parquet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the notebook's way; all if not given")
    parser.add_argument("--spearman", action="store_true")
    parser.add_argument("--coverage", type=int, metavar="TABLES")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.coverage:
        coverage(given.coverage)
    elif given.runs is None:
        parser.error("the table of runs is needed")
    elif given.spearman:
        correlations(given.runs)
    else:
        speed(given.runs, given.rounds, given.threads)


if __name__ == "__main__":
    main()
