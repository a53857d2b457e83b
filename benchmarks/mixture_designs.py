"""Whether runs chosen by a fit tell more than as many drawn at random.

    python benchmarks/mixture_designs.py --made-up 20            # laws with known truth
    python benchmarks/mixture_designs.py --replay RUNS.parquet   # RegMix's public runs

Every design begins with the same random runs. *Random* goes on as it began (`dirichlet_design`);
the others take batches of `adaptive_design`, the law being fitted anew after each. Told are, as
ratios to the random design of the same seed with as many runs:

- error: root mean square error of the law over mixtures drawn as the random design draws them (made
  up: against the truth; replayed: against the losses of the 256 test runs), geometric mean over
  losses and seeds, with the interval of two standard errors over seeds;
- regret: how far the mean loss of the law's optimum is above the least there is (made up: of all
  mixtures, by the truth; replayed: of the runs to choose from, as measured), ratio of the means
  over seeds, which a few bad seeds may govern, and both medians.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

from tamis.scoring.fits import Fitted, law
from tamis.scoring.mixture_runs import Floats, Inputs, Runs, read_runs
from tamis.selectors.adaptive_design import AdaptiveSettings, adaptive_design
from tamis.selectors.mixture_design import DirichletSettings, dirichlet_design
from tamis.selectors.mixture_optimum import optimise

WAYS = ("random", "uncertainty", "gain")
#: RegMix's least strength of 0.1, for 17 domains, gives few runs that a law can be fitted to.
DRAWN = DirichletSettings(natural=False, oversampling=20, strength_low=1, strength_high=10)
#: Losses of the replay: four of the 13, to be done in minutes.
REPLAYED = ("loss_pile_cc", "loss_github", "loss_wikipedia_en", "loss_arxiv")
TREES = {"leaf_rows": 5, "trees": 200, "learning_rate": 0.05}
SMOOTH = {"starts": 4}


class Case(NamedTuple):
    """Runs to begin with, in the end and a batch; terms of the true law, and the law fitted."""

    title: str
    domains: int
    terms: int
    first: int
    last: int
    batch: int
    noise: float
    law: str
    params: dict[str, Any]


CASES = (
    Case("4 domains, exact law, noise 0.02", 4, 1, 12, 24, 6, 0.02, "mixing_law", SMOOTH),
    Case("4 domains, wrong law, noise 0.02", 4, 3, 12, 24, 6, 0.02, "mixing_law", SMOOTH),
    Case("8 domains, exact law, noise 0.02", 8, 1, 24, 48, 12, 0.02, "mixing_law", SMOOTH),
)


class Truth:
    """Made-up losses of four targets: c + sum of exponentials, each lowered by a domain of its own.

    With more than one term a target no single exponential is right.
    """

    def __init__(self, case: Case, seed: int) -> None:
        draws = np.random.default_rng([seed, 77])
        self.domains = tuple(f"d{place}" for place in range(case.domains))
        self.targets = tuple(f"loss_{place}" for place in range(4))
        self.natural = dict(
            zip(self.domains, draws.dirichlet(np.full(case.domains, 2.0)), strict=True)
        )
        self.constant = draws.uniform(1.5, 3, 4)
        shape = (4, case.terms, case.domains)
        self.exponents = draws.normal(0, 0.5, shape) - 0.3 - np.log(case.terms)
        own = np.arange(4)
        self.exponents[own, :, own] -= draws.uniform(1, 3, (4, case.terms))

    def losses(self, mixtures: Floats) -> Floats:
        powers = np.einsum("nd,kmd->nkm", mixtures, self.exponents)
        return np.asarray(self.constant + np.exp(powers).sum(axis=2))

    def least(self) -> float:
        """The least mean loss: the objective is convex."""
        size = len(self.domains)
        found = minimize(
            lambda r: self.losses(r[None]).mean(),
            np.full(size, 1 / size),
            bounds=[(0, 1)] * size,
            constraints=[{"type": "eq", "fun": lambda r: r.sum() - 1}],
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-12},
        )
        return float(found.fun)

    def design(self, runs: int, seed: int) -> Floats:
        chosen = DRAWN.model_copy(update={"seed": seed})
        return dirichlet_design(self.natural, runs, settings=chosen).mixtures


def made_up(case: Case, seed: int) -> dict[str, tuple[float, float]]:
    """Error and regret of each way to choose runs."""
    truth = Truth(case, seed)
    test = truth.design(1500, 10_000 + seed)
    least = truth.least()
    random = truth.design(case.last, seed)
    noise = np.random.default_rng([seed, 5]).normal(0, case.noise, (case.last, 4))
    chosen = law(case.law, **case.params)

    def fitted(mixtures: Floats) -> tuple[Runs, Fitted]:
        losses = truth.losses(mixtures) + noise[: len(mixtures)]
        runs = Runs(truth.domains, mixtures, {}, truth.targets, losses)
        return runs, chosen.fit(runs)

    found = {}
    for way in WAYS:
        mixtures = random if way == "random" else random[: case.first]
        runs, fit = fitted(mixtures)
        while len(mixtures) < case.last:
            further = adaptive_design(
                fit,
                runs,
                min(case.batch, case.last - len(mixtures)),
                by=way,
                natural=truth.natural,
                settings=_settings(case.law, seed),
                dirichlet=DRAWN,
            )
            mixtures = np.vstack([mixtures, further.mixtures])
            runs, fit = fitted(mixtures)
        away = fit.model.mean(Inputs(truth.domains, test)) - truth.losses(test)
        best = optimise(fit, ranges=False).mixture
        regret = truth.losses(best[None]).mean() - least
        found[way] = (_error(away), float(regret))
    return found


def replayed(
    train: Runs,
    test: Runs,
    name: str,
    params: dict[str, Any],
    sizes: tuple[int, int, int],
    seed: int,
) -> dict[str, tuple[float, float]]:
    """The same where the runs to choose from are done, and losses are looked up."""
    first, last, batch = sizes
    order = np.random.default_rng(seed).permutation(len(train))
    chosen = law(name, **params)
    mean = train.losses.mean(axis=1)
    found = {}
    for way in WAYS:
        rows = order[: last if way == "random" else first]
        fit = chosen.fit(train.take(rows))
        while len(rows) < last:
            rest = np.setdiff1d(np.arange(len(train)), rows)
            further = adaptive_design(
                fit,
                train.take(rows),
                min(batch, last - len(rows)),
                by=way,
                candidates=train.mixtures[rest],
                settings=_settings(name, seed),
            )
            apart = np.abs(train.mixtures[rest][:, None] - further.mixtures).sum(axis=2)
            rows = np.concatenate([rows, rest[apart.argmin(axis=0)]])
            fit = chosen.fit(train.take(rows))
        best = fit.model.mean(train).mean(axis=1).argmin()
        found[way] = (_error(fit.model.mean(test) - test.losses), float(mean[best] - mean.min()))
    return found


def _settings(name: str, seed: int) -> AdaptiveSettings:
    """Trees take a second for a few dozen resamples; the mixing law for many more."""
    return AdaptiveSettings(seed=seed, resamples=40 if name == "regmix" else 100)


def _each(
    seeds: int, run: Callable[[int], dict[str, tuple[float, float]]]
) -> list[dict[str, tuple[float, float]]]:
    """Seed by seed, each told on standard error as it is done."""
    found = []
    for seed in range(seeds):
        found.append(run(seed))
        print(seed, found[-1], file=sys.stderr, flush=True)
    return found


def _error(away: Floats) -> float:
    return float(np.exp(np.log(np.sqrt(np.mean(away**2, axis=0))).mean()))


def tell(title: str, found: list[dict[str, tuple[float, float]]], seconds: float) -> None:
    print(f"\n{title}: {len(found)} seeds, {seconds:.0f} s")
    header = ("error", 8), ("ratio", 22), ("better in", 10), ("regret", 9), ("ratio", 7)
    print(" " * 12, *(name.rjust(wide) for name, wide in (*header, ("median", 9))))
    base = np.array([each["random"] for each in found])
    for way in WAYS:
        own = np.array([each[way] for each in found])
        ratio = np.log(own[:, 0] / base[:, 0])
        wide = 2 * ratio.std(ddof=1) / np.sqrt(len(ratio)) if len(ratio) > 1 else np.nan
        low, middle, high = np.exp(ratio.mean() + np.array([-wide, 0, wide]))
        error = np.exp(np.log(own[:, 0]).mean())
        print(
            f"{way:12} {error:8.4f} {middle:7.3f} ({low:.3f}-{high:.3f}) {(ratio < 0).mean():9.0%} "
            f"{own[:, 1].mean():10.5f} {own[:, 1].mean() / base[:, 1].mean():7.2f} "
            f"{np.median(own[:, 1]):9.5f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--made-up", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--case", type=int, action="append", choices=range(len(CASES)))
    parser.add_argument("--replay", type=Path, metavar="RUNS")
    parser.add_argument("--law", choices=("mixing_law", "regmix"), action="append")
    parser.add_argument("--seeds", type=int, default=10, help="of the replay")
    given = parser.parse_args()
    for number in given.case or range(len(CASES)) if given.made_up else ():
        start = time.monotonic()
        case = CASES[number]
        found = _each(given.made_up, partial(made_up, case))
        title = f"{case.title}, {case.first} + {case.last - case.first} runs"
        tell(title, found, time.monotonic() - start)
    if given.replay:
        train, test = (
            read_runs(given.replay, where=f"split = '{split}' AND model = '1M'", target=REPLAYED)
            for split in ("train", "test")
        )
        for name in given.law or ("mixing_law", "regmix"):
            start = time.monotonic()
            params = TREES if name == "regmix" else SMOOTH
            sizes = (64, 128, 32)
            found = _each(given.seeds, partial(replayed, train, test, name, params, sizes))
            tell(f"RegMix's runs, {name}, 64 + 64 of 512", found, time.monotonic() - start)


if __name__ == "__main__":
    main()
