"""Which small runs to do next: those that tell a fitted law most.

A law is surer of some mixtures than of others. It is fitted again to bootstrap resamples of its
runs; how the predictions of these laws vary together over many candidate mixtures is taken as the
covariance of a Gaussian process, whose noise is the error on runs held out. A run is chosen for
what it would do to the variances, and they are conditioned on it before the next one is chosen:
which runs a batch holds does not depend on the losses that they will have.

`by="uncertainty"` takes the run that lowers the mean variance over candidates most, summed over
targets in units of their spread (Cohn, Ghahramani and Jordan 1996, Active Learning with Statistical
Models).

`by="gain"` takes the run that tells most of where the optimum is: it lowers the variance
of the differences in the objective between the mixture that the law holds for best and others, each
weighed by how many of the resampled laws hold it for best. Both criteria are quadratic in the
covariance between a run and what it is to tell of, divided by the variance of its measurement.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from threadpoolctl import threadpool_limits

from tamis.scoring.fits import Fitted
from tamis.scoring.mixture_runs import Floats, Inputs, Runs, inputs_of
from tamis.selectors.mixture_constraints import MixtureLimits, project
from tamis.selectors.mixture_design import (
    Design,
    DesignSpace,
    DirichletSettings,
    design_space,
    different,
)
from tamis.selectors.mixture_optimum import optimise
from tamis.selectors.mixture_search import weights_of
from tamis.storage.errors import UserError

#: Predictions of resampled laws are cut off so many spreads of the losses from the law's own: a law
#: that a resample leaves free in some corner may say anything there (ours).
_FARTHEST = 2.0
#: Dirichlet strength of candidates around the optimum, and their share of the candidates (ours).
_NEAR, _NEAR_SHARE = 50.0, 10
#: Share of the weight of likely optima that all candidates have alike: where the resampled laws
#: agree on the best there is still a run that tells most (ours).
_ANYWHERE = 0.001
_LEAST_NOISE = 1e-12


class AdaptiveSettings(BaseModel):
    """Numbers of the adaptive design; all are ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidates: int = Field(default=600, ge=2, description="mixtures to choose from")
    resamples: int = Field(default=100, ge=10, description="bootstrap resamples of the runs")
    seed: int = Field(default=42, ge=0, description="of candidates and resamples")


def adaptive_design(
    fitted: Fitted,
    runs: Runs,
    count: int,
    *,
    by: Literal["gain", "uncertainty"] = "uncertainty",
    weights: "Mapping[str, float] | str | None" = None,
    natural: Mapping[str, float] | None = None,
    limits: MixtureLimits | None = None,
    candidates: npt.ArrayLike | None = None,
    settings: AdaptiveSettings | None = None,
    dirichlet: DirichletSettings | None = None,
) -> Design:
    """The runs that would tell a law most, as a batch: no two are the same, nor one there was.

    Candidates are drawn as `dirichlet_design` draws runs, with the natural mixture and corners;
    for `gain` a tenth lie about the law's optimum. Laws that read steps or a size predict for the
    largest that the runs had.

    Args:
        fitted: the law.
        runs: what it was fitted to.
        count: how many runs to do next.
        weights: by target, as `optimise` takes them: the objective of `gain`, and which targets
            count for `uncertainty` (alike).
        natural: what candidates are drawn around, by domain, in any unit; the mean of the runs if
            not given.
        limits: of every run. Those that runs had are none: what no run had may tell most.
        candidates: mixtures to choose from instead: float64 [n, d], domains as in the fit.

    Raises:
        UserError: as `dirichlet_design`; if the fit is of other runs, or of no mixtures; if the law
            cannot be fitted to resamples of the runs.
    """
    settings, limits = settings or AdaptiveSettings(), limits or MixtureLimits()
    dirichlet = dirichlet or DirichletSettings()
    if by not in ("gain", "uncertainty"):
        raise UserError(f"expected gain or uncertainty, found {by!r}")
    if count < 1:
        raise UserError(f"expected at least 1 run, found {count}")
    if not fitted.domains:
        raise UserError(f"a fit of {fitted.fit.law} knows no domains to mix")
    share = weights_of(fitted, weights)
    runs = fitted.fit.prepared(runs)
    if runs.digest() != fitted.evidence["digest"]:
        raise UserError(
            "the fit was made of other runs than these",
            mend="give the table and the condition that it was fitted to, or fit again",
        )
    notes: list[str] = []
    if candidates is None:
        full, notes = _drawn(fitted, runs, by, weights, natural, limits, settings, dirichlet)
    else:
        full = inputs_of(fitted.domains, candidates).mixtures
        low, high = limits.bounds(fitted.domains)
        full = full[((full >= low - 1e-9) & (full <= high + 1e-9)).all(axis=1)]
    full = different(full, runs.mixtures, dirichlet.apart)
    if len(full) < count:
        raise UserError(
            f"only {len(full)} mixtures within the limits differ from those of the runs, and "
            f"{count} runs were asked",
            mend="ask for fewer, or loosen floors and ceilings",
        )
    with threadpool_limits(limits=1, user_api="blas"):
        belief = _Belief.of(fitted, runs, full, share, settings)
        before = belief.doubt()
        if by == "gain":
            chosen = belief.told_of_optimum(count)
        else:
            chosen = belief.told_of_all(count)
    notes.append(
        "standard deviation of what resampled laws predict, in spreads of the losses, mean over "
        f"mixtures: {before:.4f} now, {belief.doubt():.4f} expected after these runs"
    )
    return Design(fitted.domains, full[chosen], 0, tuple(notes))


def _drawn(
    fitted: Fitted,
    runs: Runs,
    by: str,
    weights: "Mapping[str, float] | str | None",
    natural: Mapping[str, float] | None,
    limits: MixtureLimits,
    settings: AdaptiveSettings,
    dirichlet: DirichletSettings,
) -> tuple[Floats, list[str]]:
    """Candidates [n, d], and notes on domains that none has."""
    if natural is None:
        natural = dict(zip(fitted.domains, runs.mixtures.mean(axis=0).tolist(), strict=True))
    if set(natural) != set(fitted.domains):
        other = ", ".join(sorted(set(natural) ^ set(fitted.domains)))
        raise UserError(
            f"the natural mixture and the fit differ in domains: {other}",
            mend="give every domain of the fit an amount, and no other",
        )
    space, notes = design_space(natural, limits, dirichlet.times_natural)
    draws = np.random.default_rng(settings.seed)
    points = space.candidates(settings.candidates, dirichlet, draws)
    if by == "gain":
        near = _near_optimum(fitted, runs, weights, limits, space, settings, draws)
        points = np.vstack([points, near])
    found = np.zeros((len(points), len(fitted.domains)))
    found[:, [fitted.domains.index(name) for name in space.domains]] = points
    return found, notes


def _near_optimum(
    fitted: Fitted,
    runs: Runs,
    weights: "Mapping[str, float] | str | None",
    limits: MixtureLimits,
    space: DesignSpace,
    settings: AdaptiveSettings,
    draws: np.random.Generator,
) -> Floats:
    """The law's optimum and draws about it, of the domains of the space: float64 [n, d]."""
    free = limits.model_copy(update={"beyond_runs": True})
    best = optimise(
        fitted,
        weights,
        limits=free,
        ranges=False,
        seed=settings.seed,
        covariates=_covariates(runs),
    )
    point = best.mixture[[fitted.domains.index(name) for name in space.domains]]
    around = draws.dirichlet(np.maximum(point, 1e-3) * _NEAR, settings.candidates // _NEAR_SHARE)
    return project(np.vstack([point, around]), space.low, space.high)


def _covariates(runs: Runs) -> dict[str, float]:
    """The largest steps, size or what else the runs had."""
    return {name: float(values.max()) for name, values in runs.covariates.items()}


@dataclass
class _Belief:
    """What is held of the losses of candidates, as Gaussian processes that share the candidates.

    Attributes:
        covariance: of every target weighed, in its spreads, then of the objective: [k + 1, n, n].
        noise: variance of a measurement of each: [k + 1].
        mean: the objective by the law: [n].
        ensemble: the objective by the resampled laws: [resamples, n].
    """

    covariance: Floats
    noise: Floats
    mean: Floats
    ensemble: Floats

    @classmethod
    def of(
        cls, fitted: Fitted, runs: Runs, points: Floats, share: Floats, settings: AdaptiveSettings
    ) -> "_Belief":
        columns = {name: np.full(len(points), v) for name, v in _covariates(runs).items()}
        inputs = Inputs(fitted.domains, points, columns)
        models = fitted.fit.resampled(runs, fitted.model, settings.resamples, settings.seed)
        weighed = np.flatnonzero(share)
        spread = runs.losses[:, weighed].std(axis=0)
        mean = fitted.model.mean(inputs)[:, weighed]
        drawn = np.array([model.mean(inputs)[:, weighed] for model in models])
        away = np.clip(drawn - mean, -_FARTHEST * spread, _FARTHEST * spread)
        residuals = np.column_stack(
            [fitted.evidence["residuals"][fitted.targets[place]] for place in weighed]
        )
        weight = share[weighed]
        views = [*np.moveaxis(away / spread, 2, 0), away @ weight]
        missed = [*(residuals / spread).T, residuals @ weight]
        centred = [view - view.mean(axis=0) for view in views]
        return cls(
            np.array([view.T @ view / (len(view) - 1) for view in centred]),
            # Of runs that a law meets exactly some noise is left, so that nothing is divided by 0.
            np.array([np.mean(np.square(part)) for part in missed]) + _LEAST_NOISE,
            mean @ weight,
            (mean + away) @ weight,
        )

    def doubt(self) -> float:
        """Root of the mean variance of targets, in spreads."""
        variance = np.diagonal(self.covariance[:-1], axis1=1, axis2=2)
        return float(np.sqrt(np.maximum(variance, 0).mean()))

    def measure(self, place: int) -> None:
        """Condition on a measurement of a candidate, whatever it will be."""
        column = self.covariance[:, place]
        variance = column[:, place] + self.noise
        self.covariance = self.covariance - (
            column[:, :, None] * (column / variance[:, None])[:, None]
        )

    def told_of_all(self, count: int) -> list[int]:
        """Candidates that lower the mean variance of targets most, one after the other."""

        def told() -> Floats:
            lowered = np.square(self.covariance[:-1]).sum(axis=1)
            return np.asarray((lowered / self._measured()[:-1]).sum(axis=0))

        return self._greedy(count, told)

    def told_of_optimum(self, count: int) -> list[int]:
        """Candidates that lower the variance of the objective between its likely optima most."""
        size = len(self.mean)
        held = np.bincount(self.ensemble.argmin(axis=1), minlength=size) / len(self.ensemble)
        likely = (1 - _ANYWHERE) * held + _ANYWHERE / size
        best = int(self.mean.argmin())

        def told() -> Floats:
            objective = self.covariance[-1]
            return np.asarray(
                likely @ np.square(objective - objective[best]) / self._measured()[-1]
            )

        return self._greedy(count, told)

    def _measured(self) -> Floats:
        """Variance of a measurement of every candidate: [k + 1, n]."""
        variance = np.diagonal(self.covariance, axis1=1, axis2=2)
        return np.asarray(np.maximum(variance, 0) + self.noise[:, None])

    def _greedy(self, count: int, told: Callable[[], Floats]) -> list[int]:
        chosen: list[int] = []
        for _ in range(count):
            gain = told()
            gain[chosen] = -np.inf
            chosen.append(int(gain.argmax()))
            self.measure(chosen[-1])
        return chosen
