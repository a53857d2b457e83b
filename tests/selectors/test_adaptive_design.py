"""Runs chosen by what they would tell a law: against brute force, and what every batch keeps to."""

from dataclasses import replace

import numpy as np
import pytest

from tamis.scoring.fits import Fitted, law
from tamis.scoring.mixture_runs import Inputs, Runs
from tamis.selectors.adaptive_design import AdaptiveSettings, adaptive_design
from tamis.selectors.mixture_constraints import MixtureLimits
from tamis.storage.errors import UserError

DOMAINS = ("arxiv", "code", "web")
PARTS = np.array([[0.3, -3.0, 0.5], [-0.6, 0.4, -2.5]])
FEW = AdaptiveSettings(candidates=60, resamples=20)


def runs_at(shares: np.ndarray, seed: int = 0, noise: float = 0.01) -> Runs:
    draws = np.random.default_rng(seed)
    losses = 2 + np.exp(shares @ PARTS.T) + draws.normal(0, noise, (len(shares), 2))
    return Runs(DOMAINS, shares, {}, ("loss_code", "loss_web"), losses)


def fit_to(runs: Runs, name: str = "mixing_law") -> Fitted:
    params = {
        "mixing_law": {"starts": 2, "folds": 3},
        "regmix": {"trees": 8, "learning_rate": 0.3, "leaf_rows": 3},
    }
    return law(name, **params.get(name, {})).fit(runs)


@pytest.fixture(scope="module")
def runs() -> Runs:
    return runs_at(np.random.default_rng(1).dirichlet(np.ones(3), 20))


@pytest.fixture(scope="module")
def fitted(runs: Runs) -> Fitted:
    return fit_to(runs)


def brute_force(fitted: Fitted, runs: Runs, points: np.ndarray, by: str, count: int) -> list[int]:
    """A run after the other, each tried in full: posterior covariances from all that are chosen."""
    weights = np.array([0.75, 0.25])
    spread = runs.losses.std(axis=0)
    inputs = Inputs(DOMAINS, points)
    mean = fitted.model.mean(inputs)
    models = fitted.fit.resampled(runs, fitted.model, FEW.resamples, FEW.seed)
    away = np.array([model.mean(inputs) for model in models]) - mean
    away = np.clip(away, -2 * spread, 2 * spread)
    missed = np.column_stack([fitted.evidence["residuals"][t] for t in fitted.targets])

    def posterior(parts: np.ndarray, noise: float, seen: list[int]) -> np.ndarray:
        prior = np.cov(parts, rowvar=False)
        own = np.linalg.inv(prior[np.ix_(seen, seen)] + noise * np.eye(len(seen)))
        return prior - prior[:, seen] @ own @ prior[seen]

    def left(seen: list[int]) -> float:
        if by == "uncertainty":
            return sum(
                float(np.trace(posterior(away[:, :, k], np.mean(missed[:, k] ** 2), seen)))
                / spread[k] ** 2
                for k in range(2)
            )
        found = posterior(away @ weights, np.mean((missed @ weights) ** 2), seen)
        best = (mean @ weights).argmin()
        likely = ((mean + away) @ weights).argmin(axis=1)
        apart = np.diag(found) + found[best, best] - 2 * found[:, best]
        return float(0.999 * apart[likely].mean() + 0.001 * apart.mean())

    chosen: list[int] = []
    for _ in range(count):
        rest = [place for place in range(len(points)) if place not in chosen]
        chosen.append(min(rest, key=lambda place: left([*chosen, place])))
    return chosen


@pytest.mark.parametrize("by", ["uncertainty", "gain"])
def test_a_batch_is_what_trying_every_run_would_choose(fitted: Fitted, runs: Runs, by: str) -> None:
    points = np.random.default_rng(3).dirichlet(np.ones(3) * 0.6, 14)
    found = adaptive_design(
        fitted,
        runs,
        5,
        by=by,
        weights={"loss_code": 0.75, "loss_web": 0.25},
        candidates=points,
        settings=FEW,
    )
    wanted = points[brute_force(fitted, runs, points, by, 5)]
    assert found.mixtures == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["mixing_law", "linear", "bimix", "regmix"])
@pytest.mark.parametrize("by", ["uncertainty", "gain"])
def test_what_every_batch_keeps_to(name: str, by: str) -> None:
    runs = runs_at(np.random.default_rng(1).dirichlet(np.ones(3), 24))
    limits = MixtureLimits(
        floor={"arxiv": 0.05}, ceiling={"code": 0.6}, supply={"web": 10}, tokens=50, epochs=4
    )
    fitted = fit_to(runs, name)
    made = [adaptive_design(fitted, runs, 7, by=by, limits=limits, settings=FEW) for _ in range(2)]
    shares = made[0].mixtures
    assert shares.tolist() == made[1].mixtures.tolist()
    assert shares.shape == (7, 3)
    assert shares.sum(axis=1) == pytest.approx(1, abs=1e-9)
    assert (shares >= np.array([0.05, 0, 0]) - 1e-9).all()
    assert (shares <= np.array([1, 0.6, 0.8]) + 1e-9).all()
    everything = np.vstack([shares, runs.mixtures])
    apart = np.abs(everything[:, None] - everything).sum(axis=2) + np.eye(len(everything))
    assert apart.min() > 1e-5


def test_runs_go_where_the_law_knows_least() -> None:
    shares = np.random.default_rng(2).dirichlet([8, 8, 0.4], 24)
    runs = runs_at(shares)
    found = adaptive_design(
        fit_to(runs), runs, 4, natural=dict.fromkeys(DOMAINS, 1.0), settings=FEW
    )
    assert shares[:, 2].mean() < 0.05
    assert found.mixtures[:, 2].max() > 0.9
    before, after = (float(part.split()[0]) for part in found.notes[-1].split(": ")[1].split(", "))
    assert after < before / 2


def test_chosen_runs_tell_more_than_random_ones() -> None:
    ratios = []
    for seed in range(3):
        draws = np.random.default_rng([seed, 9])
        shares = draws.dirichlet(np.full(3, 0.7), 20)
        test = draws.dirichlet(np.full(3, 0.7), 400)
        noise = draws.normal(0, 0.02, (20, 2))
        truth = 2 + np.exp(test @ PARTS.T)
        first = replace(
            runs_at(shares[:10], noise=0), losses=2 + np.exp(shares[:10] @ PARTS.T) + noise[:10]
        )
        chosen = adaptive_design(
            fit_to(first), first, 10, settings=AdaptiveSettings(candidates=100, resamples=40)
        )
        errors = []
        for mixtures in (shares, np.vstack([shares[:10], chosen.mixtures])):
            runs = replace(first, mixtures=mixtures, losses=2 + np.exp(mixtures @ PARTS.T) + noise)
            away = fit_to(runs).model.mean(Inputs(DOMAINS, test)) - truth
            errors.append(np.sqrt(np.mean(away**2)))
        ratios.append(errors[1] / errors[0])
    assert np.exp(np.log(ratios).mean()) < 0.9


def test_domains_that_limits_keep_out_stay_at_0(fitted: Fitted, runs: Runs) -> None:
    found = adaptive_design(
        fitted, runs, 3, by="gain", limits=MixtureLimits(ceiling={"web": 0}), settings=FEW
    )
    assert found.domains == DOMAINS
    assert found.mixtures[:, 2].tolist() == [0, 0, 0]
    assert found.notes[0] == "web is left out: the limits keep it at 0"


def test_what_does_not_go_together(fitted: Fitted, runs: Runs) -> None:
    other = runs_at(runs.mixtures, seed=5)
    two = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    for given, what in (
        ({"runs": other}, "made of other runs"),
        ({"count": 0}, "at least 1 run"),
        ({"by": "magic"}, "gain or uncertainty"),
        ({"natural": {"arxiv": 1, "code": 1, "law": 1}}, "differ in domains: law, web"),
        ({"candidates": two}, "only 2 mixtures within the limits"),
        ({"weights": "loss_law"}, "no target 'loss_law'"),
        ({"limits": MixtureLimits(floor={"web": 2})}, "floor of 'web'"),
    ):
        with pytest.raises(UserError, match=what):
            adaptive_design(**{"fitted": fitted, "runs": runs, "count": 3, **given})


def test_a_law_without_noise_still_gets_different_runs(runs: Runs) -> None:
    exact = replace(runs, losses=runs.mixtures @ np.array([[3.0, 1.0], [2.0, 4.0], [1.0, 2.0]]))
    found = adaptive_design(fit_to(exact, "linear"), exact, 5, settings=FEW)
    assert len(np.unique(found.mixtures.round(6), axis=0)) == 5
