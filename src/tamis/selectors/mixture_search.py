"""Looking for the mixture with the least weighted loss, and for others that are about as good.

Laws that are smooth are convex in the proportions here, so that sequential quadratic programming
(SLSQP) finds the one optimum. For trees, which are flat between their thresholds, the best of many
draws are improved by moving shares between pairs of domains. RegMix's own rule, the mean of the
best 128 of 100,000 draws, is there for comparison.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tamis.scoring.fits import Fitted
from tamis.scoring.mixture_runs import Floats, Inputs
from tamis.scoring.model_files import need_package
from tamis.scoring.run_join import listed
from tamis.selectors.mixture_constraints import MixtureLimits, project
from tamis.storage.errors import UserError

#: RegMix's rule (published): draws from a Dirichlet of the natural mixture, and how many it keeps.
REGMIX_DRAWS, REGMIX_BEST = 100_000, 128
#: Dirichlet strengths of the draws that a search over trees begins with: as RegMix's design.
_STRENGTHS = np.geomspace(0.1, 5, 15)
_DRAWS = 2048
#: Draws that ranges of trees are looked for among.
_RANGE_DRAWS = 4096
#: A proportion this far outside those that runs had counts as theirs (ours: runs drawn from a
#: Dirichlet distribution come near 0 and never reach it).
_NEAR = 0.01
#: How many of the best draws are improved, and the shares moved, coarse to fine. On RegMix's runs
#: twice the draws gain nothing, and four times as many improved 0.0005 of the loss.
_IMPROVED = 6
_MOVES = (0.2, 0.08, 0.03, 0.01, 0.004)
#: Held-out runs that are compared pair by pair.
_PAIRED = 2_000


class MixtureProblem:
    """What is minimised, over which mixtures, and the searches for it."""

    def __init__(
        self,
        fitted: Fitted,
        weights: "Mapping[str, float] | str | None",
        limits: MixtureLimits,
        natural: Mapping[str, float] | None,
        kl: float,
        covariates: Mapping[str, float],
    ) -> None:
        if not fitted.domains:
            raise UserError(f"a fit of {fitted.fit.law} knows no domains to mix")
        self.fitted, self.limits, self.covariates, self.kl = fitted, limits, covariates, kl
        self.weights = weights_of(fitted, weights)
        weighed = np.flatnonzero(self.weights)
        self.model, self.shares = fitted.model.only(weighed.tolist()), self.weights[weighed]
        spans = np.array([fitted.evidence["domains"][domain] for domain in fitted.domains])
        self.seen = np.maximum(spans[:, 0] - _NEAR, 0), np.minimum(spans[:, 1] + _NEAR, 1)
        self.low, self.high = limits.bounds(fitted.domains, self.seen)
        if natural is None and set(limits.supply) == set(fitted.domains):
            natural = limits.supply
        self.natural = _natural(fitted.domains, natural)
        if kl < 0:
            raise UserError(f"kl: expected 0 or more, found {kl:g}")
        if kl and self.natural is None:
            raise UserError("kl: no mixture to stay near", mend="give the natural mixture")

    @property
    def size(self) -> int:
        return len(self.fitted.domains)

    def inputs(self, points: Floats) -> Inputs:
        columns = {name: np.full(len(points), float(v)) for name, v in self.covariates.items()}
        return Inputs(self.fitted.domains, points, columns)

    def losses(self, points: Floats) -> Floats:
        """Predictions of all targets: float64 [n, k]."""
        return self.fitted.model.mean(self.inputs(points))

    def value(self, points: Floats) -> Floats:
        """The objective: float64 [n]."""
        found = self.model.mean(self.inputs(points)) @ self.shares
        if self.kl and self.natural is not None:
            found = found + self.kl * _divergence(points, self.natural)
        return np.asarray(found)

    def slope(self, point: Floats) -> Floats | None:
        """The objective's gradient: float64 [d]; None for laws that have none."""
        by_target = self.model.gradient(self.inputs(point[None]))
        if by_target is None:
            return None
        found = self.shares @ by_target[0]
        if self.kl and self.natural is not None:
            ratio = np.maximum(point, 1e-12) / np.maximum(self.natural, 1e-12)
            found = found + self.kl * (np.log(ratio) + 1)
        return np.asarray(found)

    def centre(self) -> Floats:
        """The natural mixture, or an even one, within the limits."""
        start = np.full(self.size, 1 / self.size) if self.natural is None else self.natural
        return np.asarray(project(start[None], self.low, self.high)[0])

    def search(self, seed: int) -> Floats:
        if self.slope(self.centre()) is None:
            return self._improved(seed)
        return self._descend()

    def _descend(self) -> Floats:
        """SLSQP from the centre and from the best of the corners."""
        corners = project(np.eye(self.size), self.low, self.high)
        starts = [self.centre(), corners[self.value(corners).argmin()]]
        found = [self._programme(start) for start in starts]
        return min(found, key=lambda point: float(self.value(point[None])[0]))

    def _programme(self, start: Floats, seek: Floats | None = None, most: float = 0.0) -> Floats:
        """SLSQP from a start: the least objective; or, with `seek` [d], the least of its product
        with the mixture among those whose objective is at most `most`.
        """
        need_package("scipy", "the search for the best mixture", "mixtures")
        from scipy.optimize import Bounds, minimize

        constraints: list[dict[str, Any]] = [
            {"type": "eq", "fun": lambda r: r.sum() - 1, "jac": lambda r: np.ones_like(r)}
        ]

        def value(r: Floats) -> float:
            return float(self.value(r[None])[0])

        def slope(r: Floats) -> Floats:
            found = self.slope(r)
            assert found is not None
            return found

        if seek is not None:
            constraints.append(
                {"type": "ineq", "fun": lambda r: most - value(r), "jac": lambda r: -slope(r)}
            )
        found = minimize(
            value if seek is None else lambda r: float(seek @ r),
            start,
            jac=slope if seek is None else lambda r: seek,
            bounds=Bounds(self.low, self.high),
            constraints=constraints,
            method="SLSQP",
            options={"maxiter": 300, "ftol": 1e-11},
        )
        return np.asarray(project(found.x[None], self.low, self.high)[0])

    def draws(self, count: int, strengths: npt.ArrayLike, seed: int) -> Floats:
        """Mixtures from Dirichlet distributions around the centre, within the limits."""
        draws = np.random.default_rng(seed)
        strength = np.resize(np.asarray(strengths, np.float64), count)
        centre = np.maximum(self.centre(), 1e-3) if self.natural is None else self.natural
        # Gammas of small shapes underflow to 0 in all domains now and then.
        parts = draws.gamma(np.maximum(strength[:, None] * centre, 1e-6)) + 1e-300
        points = parts / parts.sum(axis=1, keepdims=True)
        if (self.low > 0).any() or (self.high < 1).any():
            points = project(points, self.low, self.high)
        return np.asarray(points)

    def regmix(self, seed: int) -> Floats:
        points = self.draws(REGMIX_DRAWS, 1.0, seed)
        best = np.argsort(self.value(points), kind="stable")[:REGMIX_BEST]
        return np.asarray(points[best].mean(axis=0))

    def _improved(self, seed: int) -> Floats:
        """The best of the draws after moves of shares between pairs of domains."""
        points = np.concatenate(
            [
                self.draws(_DRAWS, _STRENGTHS * self.size, seed),
                project(np.eye(self.size), self.low, self.high),
                self.centre()[None],
            ]
        )
        best = np.argsort(self.value(points), kind="stable")[:_IMPROVED]
        found = [self._moved(points[place]) for place in best]
        return min(found, key=lambda entry: entry[0])[1]

    def _moved(self, point: Floats) -> tuple[float, Floats]:
        give, take = np.nonzero(~np.eye(self.size, dtype=bool))
        value = float(self.value(point[None])[0])
        for size in _MOVES:
            while True:
                share = np.minimum(size, np.minimum(point - self.low, np.inf)[give])
                share = np.minimum(share, (self.high - point)[take])
                able = np.flatnonzero(share > 1e-12)
                if not len(able):
                    break
                tried = np.repeat(point[None], len(able), axis=0)
                row = np.arange(len(able))
                tried[row, give[able]] -= share[able]
                tried[row, take[able]] += share[able]
                values = self.value(tried)
                best = values.argmin()
                if values[best] >= value - 1e-9:
                    break
                point, value = tried[best], float(values[best])
        return value, point

    def tolerance(self) -> float:
        """Root mean square error of the weighted loss on held-out runs."""
        return float(np.sqrt(np.mean(np.square(self._residuals()))))

    def _residuals(self) -> Floats:
        """Observed less predicted weighted loss of every held-out run: float64 [n]."""
        residuals = self.fitted.evidence["residuals"]
        away = sum(
            weight * np.asarray(residuals[target])
            for weight, target in zip(self.weights, self.fitted.targets, strict=True)
        )
        return np.asarray(away)

    def untold(self, mixture: Floats, natural: Floats, level: float) -> list[str]:
        """That a gain over the natural mixture may be nothing but the error of the fit."""
        better, worse = self.model.mean(self.inputs(np.stack([mixture, natural]))) @ self.shares
        away = self._residuals()
        away = away[:: 1 + len(away) // _PAIRED]
        # Of a difference of two runs; each has the error of its own, and the noise of its seed.
        apart = np.abs(away[:, None] - away)[np.triu_indices(len(away), 1)]
        error = float(np.quantile(apart, level)) if len(apart) else np.inf
        if worse - better >= error:
            return []
        return [
            f"the gain over the natural mixture, {worse - better:.4g}, is not told apart from the "
            f"error of the fit: held-out runs differ by up to {error:.4g} more or less than "
            f"predicted ({level:.0%} of pairs); more runs, or more seeds of each, may tell"
        ]

    def ranges(self, best: Floats, value: float, seed: int) -> dict[str, tuple[float, float]]:
        """Proportions of each domain among mixtures about as good as the best."""
        most = value + self.tolerance()
        low, high = best.copy(), best.copy()
        if self.slope(best) is not None:
            for place in range(self.size):
                for sign, end in ((1.0, low), (-1.0, high)):
                    seek = np.zeros(self.size)
                    seek[place] = sign
                    found = self._programme(best, seek, most)
                    # A programme that failed may end outside: what it found then counts nothing.
                    if self.value(found[None])[0] <= most + 1e-6 * max(1.0, abs(most)):
                        end[place] = (min if sign > 0 else max)(end[place], found[place])
        else:
            draws = self.draws(_RANGE_DRAWS, _STRENGTHS, seed)
            points = np.concatenate([self._lines(best), draws])
            good = points[self.value(points) <= most]
            if len(good):
                low = np.minimum(low, good.min(axis=0))
                high = np.maximum(high, good.max(axis=0))
        return {
            domain: (float(low[place]), float(high[place]))
            for place, domain in enumerate(self.fitted.domains)
        }

    def _lines(self, best: Floats, steps: int = 101) -> Floats:
        """Mixtures with every proportion of one domain, the others in step with it."""
        found = []
        for place in range(self.size):
            to = np.linspace(self.low[place], self.high[place], steps)
            rest = np.delete(best, place)
            shares = np.full((steps, self.size), 0.0)
            others = rest / rest.sum() if rest.sum() > 0 else np.full(len(rest), 1 / len(rest))
            shares[:, np.arange(self.size) != place] = (1 - to)[:, None] * others
            shares[:, place] = to
            found.append(project(shares, self.low, self.high))
        return np.concatenate(found)


def weights_of(fitted: Fitted, given: "Mapping[str, float] | str | None") -> Floats:
    """Weight of every target of a fit in the objective: float64 [k].

    Raises:
        UserError: for targets that the fit has not, and weights below 0 or all 0.
    """
    if given is None:
        return np.full(len(fitted.targets), 1 / len(fitted.targets))
    if isinstance(given, str):
        given = {given: 1.0}
    for target, weight in given.items():
        if target not in fitted.targets:
            raise UserError(
                f"the fit has no target {target!r}", mend=f"there: {listed(fitted.targets)}"
            )
        if not 0 <= weight < np.inf:
            raise UserError(f"weight of {target!r}: expected 0 or more, found {weight:g}")
    if not any(given.values()):
        raise UserError("all targets weigh 0", mend="give one of them a weight")
    return np.array([given.get(target, 0.0) for target in fitted.targets])


def _natural(domains: tuple[str, ...], given: Mapping[str, float] | None) -> Floats | None:
    if given is None:
        return None
    for domain in given:
        if domain not in domains:
            raise UserError(
                f"natural mixture: no domain {domain!r} in the runs",
                mend=f"there: {', '.join(domains)}",
            )
    for domain in domains:
        if not 0 <= given.get(domain, -1.0) < np.inf:
            raise UserError(
                f"natural mixture: no share of {domain!r}",
                mend="give every domain of the runs a number, 0 or more",
            )
    shares = np.array([given[domain] for domain in domains])
    if not shares.sum():
        raise UserError("natural mixture: all shares are 0")
    return np.asarray(shares / shares.sum())


def _divergence(points: Floats, natural: Floats) -> Floats:
    """KL(point || natural) in nats: float64 [n]."""
    ratio = np.maximum(points, 1e-12) / np.maximum(natural, 1e-12)
    return np.asarray((points * np.log(ratio)).sum(axis=1))
