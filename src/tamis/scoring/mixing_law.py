"""The data mixing law: losses fall exponentially with a weighted sum of the proportions.

Ye et al., Data Mixing Laws: Optimizing Data Mixtures by Predicting Language Modeling Performance
(2024, arXiv 2403.16952): L_i(r) = c_i + k_i exp(sum_j t_ij r_j), found by L-BFGS on Huber's loss
from many starts. Where the validation set is a mixture of unknown composition, its loss is a sum of
such terms (implicit domain aggregation): sum_m s_m (c_m + k_m exp(t_m r)), of which the constants
are one constant and the shares s_m part of the k_m.

Proportions sum to 1, so that adding a number to all t_ij and dividing k_i by its exponential
changes nothing. We pin it by sum_j t_ij = 0: k_i is then how far an even mixture stays above c_i.
While fitting, k_i is part of the exponent (it is positive) and there is nothing to pin.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tamis.scoring.cluster_intervals import spread
from tamis.scoring.fits import LEVEL, Coefficient, Fit, Model, floats
from tamis.scoring.lbfgs import Minima, huber, minimise
from tamis.scoring.mixture_runs import Floats, Inputs, Ints, Runs
from tamis.scoring.power_law import extrapolated
from tamis.storage.errors import UserError

#: Exponents are cut off here: such a start is far from any loss, and its gradient is zero.
_STEEPEST = 50.0
#: How far below the least loss starts put the constant, in spans of the losses.
_BELOW = np.array([0.02, 0.1, 0.3, 1.0, 3.0])


class ExponentialLaw(Fit):
    """What the mixing law and its nested form share."""

    components: int = Field(
        default=1,
        ge=1,
        description="hidden domains of the validation set (the paper takes 30 small networks; "
        "the number for sums of exponentials is unconfirmed)",
    )
    delta: float = Field(
        default=0.02,
        gt=0,
        description="residual, in units of the loss, from which Huber's loss is linear; "
        "public fits take 0.01 to 0.08",
    )
    starts: int = Field(default=8, ge=1, description="starts of the search, per target")
    ridge: float = Field(
        default=1e-6,
        ge=0,
        description="penalty on exponents that keeps those finite which the runs say nothing of; "
        "ours",
    )

    def least_runs(self, runs: Runs) -> int:
        return 1 + self.components * len(runs.domains)

    def prepared(self, runs: Runs) -> Runs:
        if not runs.domains:
            raise UserError(f"{self.law} reads proportions, and the runs have none")
        return runs

    def train(self, runs: Runs, *, evidence: bool = True) -> "MixingModel":
        problem = _Problem(runs, self.components, self.delta, self.ridge, partial=not evidence)
        # All starts reach least squares first: Huber's loss is flat-sided far from the runs.
        starts = problem.starts(self.starts, self.seed)
        target = np.repeat(np.arange(len(runs.targets)), self.starts)
        rough = problem.minimise(starts, target, delta=np.inf, iterations=300)
        found = problem.minimise(rough.x, target)
        best = found.value.reshape(len(runs.targets), self.starts).argmin(axis=1)
        place = np.arange(len(runs.targets)) * self.starts + best
        constant, exponents = problem.unscaled(found.x[place], np.arange(len(runs.targets)))
        values = pinned(constant, exponents)
        low = high = np.full(values.shape, np.nan)
        if evidence:
            half = problem.half_widths(found.x[place], exponents, runs.groups())
            low, high = _bounds(values, half, self.components)
        return MixingModel(
            runs.domains,
            runs.targets,
            constant,
            exponents,
            low,
            high,
            tuple(t for t, ok in zip(runs.targets, found.converged[place], strict=True) if not ok),
        )

    def resampled(self, runs: Runs, model: Model, count: int, seed: int) -> list[Model]:
        """All resamples at once, from the fitted law on."""
        assert isinstance(model, MixingModel)
        problem = _Problem(runs, self.components, self.delta, self.ridge)
        group = runs.groups()
        groups = group.max() + 1
        draws = np.random.default_rng([seed, 1])
        chosen = draws.multinomial(groups, np.full(groups, 1 / groups), size=count)
        targets = len(runs.targets)
        target = np.tile(np.arange(targets), count)
        found = problem.minimise(
            np.tile(problem.scaled(model.constant, model.exponents), (count, 1)),
            target,
            weights=chosen[:, group].astype(np.float64),
            resample=np.repeat(np.arange(count), targets),
            iterations=200,
        )
        constant, exponents = problem.unscaled(found.x, target)
        none = np.full_like(model.low, np.nan)
        return [
            MixingModel(runs.domains, runs.targets, c, e, none, none)
            for c, e in zip(
                constant.reshape(count, targets),
                exponents.reshape(count, *model.exponents.shape),
                strict=True,
            )
        ]

    def restore(self, state: Mapping[str, Any]) -> "MixingModel":
        return MixingModel(
            tuple(state["domains"]),
            tuple(state["targets"]),
            floats(state["constant"]),
            floats(state["exponents"]),
            floats(state["low"]),
            floats(state["high"]),
            tuple(state["unfinished"]),
        )


class MixingLaw(ExponentialLaw):
    """Data mixing law: a constant plus an exponential of the proportions, per target.

    With `components` above 1 it is the sum of so many exponentials: the law of a validation set
    whose own mixture is not known. Predictions are convex in the proportions, so that the best
    mixture is found for certain.

    Intervals of coefficients hold for noise that depends on the mixture, and for several runs of
    one (`cluster_intervals`).
    """

    law: Literal["mixing_law"] = "mixing_law"

    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Ye et al. 2024, Data Mixing Laws, arXiv 2403.16952"


class NestedMixingLaw(ExponentialLaw):
    """Mixing law at steps and a size that no run had: step, size and mixing laws, nested.

    Per mixture and size a step law E + B / S^b tells the loss at `to_steps`, per mixture a size law
    E + A / N^a that at `to_size`; the mixing law is fitted to what they tell. The error stated is
    the mixing law's, on mixtures held out, against losses that the other laws told; theirs, on the
    last step and the largest size held out, is among the notes.
    """

    law: Literal["nested_mixing_law"] = "nested_mixing_law"
    to_steps: float | None = Field(
        default=None, gt=0, description="steps to predict for; the runs' own if not given"
    )
    to_size: float | None = Field(
        default=None, gt=0, description="size to predict for; the runs' own if not given"
    )

    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Ye et al. 2024, Data Mixing Laws, arXiv 2403.16952, section 4"

    def prepared(self, runs: Runs) -> Runs:
        runs = super().prepared(runs)
        wanted = {"steps": self.to_steps, "size": self.to_size}
        if not any(wanted.values()):
            raise UserError(
                "nested_mixing_law: neither to_steps nor to_size is given",
                mend="name what to predict for; mixing_law takes runs as they are",
            )
        for name, value in wanted.items():
            if value is not None:
                runs = extrapolated(runs, name, value)
            elif name in runs.covariates and np.ptp(runs.covariates[name]) > 0:
                raise UserError(
                    f"nested_mixing_law: the runs have several values of {name!r}",
                    mend=f"name to_{name}, or keep the runs of one",
                )
        return runs


@dataclass(frozen=True)
class MixingModel(Model):
    """Fitted mixing laws.

    Attributes:
        constant: c, float64 [k].
        exponents: t + log k before it is pinned, float64 [k, components, d].
        low, high: bounds of c, then of every component's k and pinned t:
            float64 [k, 1 + components * (1 + d)].
        unfinished: targets whose search ran out of iterations.
    """

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    constant: Floats
    exponents: Floats
    low: Floats
    high: Floats
    unfinished: tuple[str, ...] = ()

    def mean(self, inputs: Inputs) -> Floats:
        return np.asarray(self.constant + self._terms(inputs).sum(axis=2))

    def gradient(self, inputs: Inputs) -> Floats:
        return np.asarray(np.einsum("nkm,kmd->nkd", self._terms(inputs), self.exponents))

    def _terms(self, inputs: Inputs) -> Floats:
        power = np.einsum("nd,kmd->nkm", inputs.mixtures, self.exponents)
        return np.asarray(np.exp(np.minimum(power, _STEEPEST)))

    def coefficients(self) -> list[Coefficient]:
        values = pinned(self.constant, self.exponents)
        names = ["c"]
        for component in range(self.exponents.shape[1]):
            sign = "" if self.exponents.shape[1] == 1 else f"_{component + 1}"
            names += [f"k{sign}", *(f"t{sign}[{domain}]" for domain in self.domains)]
        return [
            Coefficient(
                target, name, *(float(part[k, i]) for part in (values, self.low, self.high))
            )
            for k, target in enumerate(self.targets)
            for i, name in enumerate(names)
        ]

    def notes(self) -> list[str]:
        return [f"{target}: the search had not come to rest" for target in self.unfinished]

    def state(self) -> dict[str, Any]:
        return {
            "domains": list(self.domains),
            "targets": list(self.targets),
            **{
                name: getattr(self, name).tolist()
                for name in ("constant", "exponents", "low", "high")
            },
            "unfinished": list(self.unfinished),
        }


def pinned(constant: Floats, exponents: Floats) -> Floats:
    """c, then k and t of every component, the t summing to 0: [..., 1 + components * (1 + d)]."""
    level = exponents.mean(axis=-1, keepdims=True)
    parts = np.concatenate([np.exp(level), exponents - level], axis=-1)
    parts = np.take_along_axis(parts, _order(exponents)[..., None], axis=-2)
    flat = parts.reshape(*constant.shape, -1)
    return np.concatenate([constant[..., None], flat], axis=-1)


def _order(exponents: Floats) -> Ints:
    """Components have no order of their own: the largest k comes first."""
    return np.argsort(-exponents.mean(axis=-1), axis=-1, kind="stable")


def _bounds(values: Floats, half: Floats, components: int) -> tuple[Floats, Floats]:
    """Bounds of what `pinned` gives, from half-widths of c, log k and t."""
    low, high = values - half, values + half
    width = (values.shape[1] - 1) // components
    with np.errstate(over="ignore"):
        for place in range(1, values.shape[1], width):  # k is positive, and so are its bounds
            factor = np.exp(half[:, place])
            low[:, place], high[:, place] = values[:, place] / factor, values[:, place] * factor
    return low, high


class _Problem:
    """The runs, scaled so that searches from any start are well conditioned.

    Losses are centred and divided by their spread, and `delta` with them. Exponents are searched in
    an orthonormal basis of the proportions.
    """

    def __init__(
        self, runs: Runs, components: int, delta: float, ridge: float, *, partial: bool = False
    ) -> None:
        self.components, self.ridge = components, ridge
        self.centre = runs.losses.mean(axis=0)
        self.spread = np.maximum(runs.losses.std(axis=0), 1e-300)
        self.losses = ((runs.losses - self.centre) / self.spread).T.copy()
        self.delta = delta / self.spread
        # Where a part of the runs is held out, the rest may lack a rare domain. It then counts as
        # one like the mean of the others.
        self.there = np.flatnonzero(runs.mixtures.any(axis=0) | (not partial))
        self.domains = len(runs.domains)
        basis, self.triangle = np.linalg.qr(runs.mixtures[:, self.there])
        self.basis = basis * np.sqrt(len(runs))
        self.triangle = self.triangle / np.sqrt(len(runs))
        pivots = np.abs(np.diag(self.triangle))
        for place in np.flatnonzero(pivots < 1e-9 * max(1e-300, pivots.max())):
            raise UserError(
                f"the proportion of {runs.domains[self.there[place]]!r} follows from the others "
                f"{'where a part of the runs is held out' if partial else 'in these runs'}: its "
                "effect cannot be told from theirs",
                mend="leave the domain out and add its share to one of them, or add runs",
            )

    def starts(self, count: int, seed: int) -> Floats:
        """Starts [k * count, 1 + components * d]: log-linear fits above several constants."""
        draws = np.random.default_rng(seed)
        runs, width = self.basis.shape
        found = np.empty((len(self.losses), count, 1 + self.components * width))
        for target, losses in enumerate(self.losses):
            least, span = losses.min(), np.ptp(losses)
            for start in range(count):
                below = _BELOW[start % len(_BELOW)]
                constant = least - below * span
                flat = self.basis.T @ np.log(losses - constant) / runs
                exponents = np.tile(flat, (self.components, 1))
                # The basis holds the constant 1: an equal share for every component.
                exponents -= np.log(self.components) * self.basis.mean(axis=0)
                if start >= len(_BELOW) or self.components > 1:
                    exponents += draws.normal(size=exponents.shape) * 0.5
                found[target, start] = [constant, *exponents.ravel()]
        return found.reshape(-1, found.shape[-1])

    def minimise(
        self,
        start: Floats,
        target: Ints,
        *,
        delta: float | None = None,
        weights: Floats | None = None,
        resample: Ints | None = None,
        iterations: int = 500,
    ) -> Minima:
        """Search from starts [b, p] of the targets numbered [b].

        Args:
            delta: if not the law's own.
            weights: of every run in a resample, float64 [resamples, n].
            resample: number [b] of the resample that a problem weighs runs by.
        """
        own = self.delta if delta is None else np.full(len(self.losses), delta)
        basis = self.basis

        def objective(x: Floats, which: Ints) -> tuple[Floats, Floats]:
            losses = self.losses[target[which]]
            powers = x[:, 1:].reshape(len(x), self.components, -1)
            terms = np.exp(np.minimum(powers @ basis.T, _STEEPEST))
            loss, slope = huber(x[:, :1] + terms.sum(axis=1) - losses, own[target[which]][:, None])
            if weights is not None and resample is not None:
                weight = weights[resample[which]]
                loss, slope = loss * weight, slope * weight
            gradient = np.empty_like(x)
            gradient[:, 0] = slope.mean(axis=1)
            gradient[:, 1:] = ((terms * slope[:, None]) @ basis).reshape(len(x), -1) / len(basis)
            # In proportion to how steep Huber's loss is at most.
            ridge = self.ridge * np.minimum(own[target[which]], 1.0)
            gradient[:, 1:] += ridge[:, None] * x[:, 1:]
            return loss.mean(axis=1) + ridge * (x[:, 1:] ** 2).sum(axis=1) / 2, gradient

        return minimise(objective, start, iterations=iterations)

    def half_widths(self, x: Floats, exponents: Floats, group: Ints) -> Floats:
        """Half-widths of c, log k and t in the order of `pinned`, at `LEVEL`, where searches ended:
        float64 [k, 1 + components * (1 + d)].
        """
        width = self.triangle.shape[1]
        found = np.empty((len(x), 1 + self.components * (1 + width)))
        # Exponents by what is searched, then their mean and what they are beside it.
        unscaled = np.linalg.inv(self.triangle)
        mean = unscaled.mean(axis=0)
        parts = np.concatenate([mean[None], unscaled - mean])
        for target, at in enumerate(x):
            powers = at[1:].reshape(self.components, width)
            terms = np.exp(np.minimum(self.basis @ powers.T, _STEEPEST))
            away = at[0] + terms.sum(axis=1) - self.losses[target]
            score = huber(away, self.delta[target])[1]
            inside = np.mean(np.abs(away) <= self.delta[target])
            slopes = [terms[:, [place]] * self.basis for place in _order(exponents[target])]
            contrast = np.zeros((found.shape[1], len(at)))
            contrast[0, 0] = self.spread[target]
            for place in range(self.components):
                rows, columns = 1 + place * (1 + width), 1 + place * width
                contrast[rows : rows + 1 + width, columns : columns + width] = parts
            jacobian = np.concatenate([np.ones((len(away), 1)), *slopes], axis=1)
            found[target] = spread(
                jacobian, score / max(inside, 1 / len(away)), group, contrast
            ).half_width(LEVEL)
        return found

    def scaled(self, constant: Floats, exponents: Floats) -> Floats:
        """What `unscaled` was given to make these of all targets: [k, 1 + components * d]."""
        powers = (exponents - np.log(self.spread)[:, None, None]) @ self.triangle.T
        return np.column_stack(
            [(constant - self.centre) / self.spread, powers.reshape(len(constant), -1)]
        )

    def unscaled(self, x: Floats, target: Ints) -> tuple[Floats, Floats]:
        """Constants [b] and exponents [b, components, d] in units of the losses."""
        spread = self.spread[target]
        rotated = x[:, 1:].reshape(len(x), self.components, -1)
        exponents = np.linalg.solve(self.triangle, rotated.reshape(-1, rotated.shape[-1]).T).T
        # In the order of memory that a saved fit comes back in: sums depend on it.
        exponents = np.ascontiguousarray(exponents).reshape(rotated.shape)
        exponents = exponents + np.log(spread)[:, None, None]
        if len(self.there) < self.domains:
            known = exponents
            exponents = np.empty((*known.shape[:2], self.domains))
            exponents[:] = known.mean(axis=2, keepdims=True)
            exponents[:, :, self.there] = known
        return self.centre[target] + spread * x[:, 0], exponents
