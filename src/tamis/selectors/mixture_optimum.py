"""The best mixture that a fit knows of, how sure it is, and what targets cost each other.

How it is looked for lies in `mixture_search`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tamis.scoring.fits import LEVEL, Fitted, Prediction
from tamis.scoring.mixture_runs import Floats
from tamis.selectors.mixture_constraints import MixtureLimits
from tamis.selectors.mixture_search import MixtureProblem
from tamis.storage.errors import UserError

#: Proportions below are none.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Optimum:
    """A mixture and what is known of it.

    Attributes:
        mixture: float64 [d], sums to 1.
        objective: what was minimised there: the weighted losses, plus the divergence if wanted.
        prediction: of every target of the fit, with intervals [1, k]. They are those of a mixture
            like the runs; one that was picked for its low prediction is likely a little worse.
        ranges: by domain, the least and largest proportion among mixtures whose objective is
            within `tolerance` of the optimum: how flat it is.
        tolerance: root mean square error of the objective on held-out runs.
        binding: limits that hold the optimum back, by domain.
        natural: objective and predictions of the natural mixture, if one was given.
        notes: what a reader must know.
    """

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    mixture: Floats
    objective: float
    prediction: Prediction
    ranges: dict[str, tuple[float, float]]
    tolerance: float
    binding: dict[str, str]
    natural: "tuple[float, Prediction] | None"
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        def predicted(found: Prediction) -> dict[str, Any]:
            return {
                target: {
                    "value": float(found.value[0, k]),
                    "low": float(found.low[0, k]),
                    "high": float(found.high[0, k]),
                }
                for k, target in enumerate(self.targets)
            }

        natural = None
        if self.natural is not None:
            natural = {"objective": self.natural[0], "predicted": predicted(self.natural[1])}
        return {
            "mixture": dict(zip(self.domains, map(float, self.mixture), strict=True)),
            "objective": self.objective,
            "predicted": predicted(self.prediction),
            "tolerance": self.tolerance,
            "ranges": {domain: list(span) for domain, span in self.ranges.items()},
            "binding": self.binding,
            "natural": natural,
            "notes": list(self.notes),
        }


def optimise(
    fitted: Fitted,
    weights: "Mapping[str, float] | str | None" = None,
    *,
    limits: MixtureLimits | None = None,
    natural: Mapping[str, float] | None = None,
    kl: float = 0.0,
    method: Literal["search", "regmix"] = "search",
    level: float = LEVEL,
    seed: int = 42,
    ranges: bool = True,
    covariates: Mapping[str, float] | None = None,
) -> Optimum:
    """The mixture with the least weighted loss.

    Args:
        weights: by target; one target's name weighs it alone, none weighs all of the fit's alike.
        limits: floors, ceilings, supply and repetition.
        natural: the mixture to compare with and to stay near, by domain, in any unit; the supply,
            if that is given of all domains.
        kl: nats of divergence from the natural mixture that are worth a unit of loss, times this:
            the objective is loss + kl * KL(mixture || natural).
        method: `regmix` takes the mean of the best 128 of 100,000 draws.
        level: of the intervals.
        ranges: find `Optimum.ranges` too; without they are empty.
        covariates: steps, size or what else the law reads.

    Raises:
        UserError: for targets, domains or weights that do not fit, and limits that no mixture
            keeps to.
    """
    problem = MixtureProblem(
        fitted, weights, limits or MixtureLimits(), natural, kl, covariates or {}
    )
    if method == "regmix":
        mixture = problem.regmix(seed)
    else:
        mixture = problem.search(seed)
    # A search by gradients leaves roundings of 0.
    mixture = np.where((mixture < _NOTHING) & (problem.low < _NOTHING), 0.0, mixture)
    mixture = mixture / mixture.sum()
    objective = float(problem.value(mixture[None])[0])
    reach = problem.ranges(mixture, objective, seed) if ranges else {}
    return _found(problem, mixture, objective, reach, level)


def pareto(
    fitted: Fitted,
    targets: Sequence[str],
    *,
    points: int = 21,
    limits: MixtureLimits | None = None,
    seed: int = 42,
    covariates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Mixtures of which none is better in one target without being worse in another.

    Weighted sums over a grid of weights (for more than two targets: drawn), losses scaled between
    their own optimum and their worst at the others' (the payoff table). As smooth laws here are
    convex this finds any part of the front; of trees it finds the convex part.

    Args:
        points: sums that are tried; dominated and repeated mixtures are left out.

    Returns:
        By the loss of the first target, ascending: ``weights``, ``mixture``, ``losses``.

    Raises:
        UserError: as `optimise`, and for fewer than two targets.
    """
    if len(set(targets)) < 2:
        raise UserError("a front takes at least two targets", mend="name further targets")
    limits = limits or MixtureLimits()

    def best(weights: Mapping[str, float]) -> tuple[Floats, Floats]:
        problem = MixtureProblem(fitted, weights, limits, None, 0.0, covariates or {})
        mixture = problem.search(seed)
        places = [fitted.targets.index(target) for target in targets]
        return mixture, problem.losses(mixture[None])[0, places]

    ends = [best({target: 1.0}) for target in targets]
    payoff = np.array([losses for _, losses in ends])
    span = np.maximum(np.ptp(payoff, axis=0), 1e-12)
    if len(targets) == 2:
        grid = np.linspace(0, 1, max(2, points))[1:-1]
        shares = np.column_stack([1 - grid, grid])
    else:
        shares = np.random.default_rng(seed).dirichlet(np.ones(len(targets)), max(0, points))
    found = [(np.eye(len(targets))[i], *end) for i, end in enumerate(ends)]
    for share in shares:
        found.append((share, *best(dict(zip(targets, share / span, strict=True)))))
    losses = np.array([entry[2] for entry in found])
    front = []
    for place, (share, mixture, own) in enumerate(found):
        no_worse = np.all(losses <= own + 1e-9, axis=1)
        better = no_worse & np.any(losses < own - 1e-9, axis=1)
        same = np.all(np.abs(losses - own) <= 1e-9, axis=1)
        if not better.any() and not same[:place].any():
            front.append(
                {
                    "weights": dict(zip(targets, map(float, share), strict=True)),
                    "mixture": dict(zip(fitted.domains, map(float, mixture), strict=True)),
                    "losses": dict(zip(targets, map(float, own), strict=True)),
                }
            )
    return sorted(front, key=lambda entry: entry["losses"][targets[0]])


def _found(
    problem: MixtureProblem,
    mixture: Floats,
    objective: float,
    ranges: dict[str, tuple[float, float]],
    level: float,
) -> Optimum:
    """What is known of a mixture."""
    fitted = problem.fitted
    natural = None
    notes = []
    if problem.natural is not None:
        at = problem.natural[None]
        natural = (
            float(problem.value(at)[0]),
            fitted.predict(problem.inputs(at), level=level),
        )
        notes += problem.untold(mixture, problem.natural, level)
    for place, domain in enumerate(fitted.domains):
        if not problem.seen[0][place] - 1e-6 <= mixture[place] <= problem.seen[1][place] + 1e-6:
            least, most = fitted.evidence["domains"][domain]
            notes.append(
                f"{domain}: no run had {mixture[place]:.3f} (they had {least:.3f} to "
                f"{most:.3f}): a guess"
            )
    return Optimum(
        domains=fitted.domains,
        targets=fitted.targets,
        mixture=mixture,
        objective=objective,
        prediction=fitted.predict(problem.inputs(mixture[None]), level=level),
        ranges=ranges,
        tolerance=problem.tolerance(),
        binding=problem.limits.binding(fitted.domains, mixture, problem.seen),
        natural=natural,
        notes=tuple(notes),
    )
