"""Step and size laws: losses fall to a floor as a power of steps, tokens or parameters.

L = E + B / x^b. Curves of one target share the exponent b (as the authors of the mixing law's code
tie it) and have their own E and B, which for a given b are least squares: the search is over b
alone.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tamis.scoring.mixture_runs import Floats, Ints, Runs
from tamis.storage.errors import UserError

#: Exponents that are searched.
_EXPONENTS = np.geomspace(0.01, 3, 80)


@dataclass(frozen=True)
class PowerCurves:
    """Curves E + B / x^b of one exponent.

    Attributes:
        floor: E by curve: float64 [curves].
        factor: B by curve, 0 or more: float64 [curves].
        exponent: b.
    """

    floor: Floats
    factor: Floats
    exponent: float

    def at(self, x: npt.ArrayLike, curve: npt.ArrayLike) -> Floats:
        """Losses at x on the curves numbered."""
        number = np.asarray(curve)
        return np.asarray(
            self.floor[number] + self.factor[number] * np.asarray(x, np.float64) ** -self.exponent
        )


def fit_curves(x: npt.ArrayLike, losses: npt.ArrayLike, curve: npt.ArrayLike) -> PowerCurves:
    """Fit curves that share their exponent.

    Args:
        x: steps or sizes, above 0: float64 [n].
        losses: float64 [n].
        curve: number of the curve that a point lies on: int64 [n], from 0.

    Raises:
        UserError: for x of 0 or less, fewer points than numbers to fit, or a curve of one point.

    Example:
        >>> steps = np.array([100.0, 400.0, 900.0])
        >>> found = fit_curves(steps, 2 + 10 / steps**0.5, [0, 0, 0])
        >>> round(found.exponent, 4), round(float(found.floor[0]), 4)
        (0.5, 2.0)
    """
    point, value = np.asarray(x, np.float64), np.asarray(losses, np.float64)
    number = np.asarray(curve, np.int64)
    counts = np.bincount(number)
    if (point <= 0).any():
        raise UserError("a power law takes numbers above 0", mend="leave out the first step")
    if (counts < 2).any() or len(point) <= 2 * len(counts):
        raise UserError(
            f"{len(point)} points on {len(counts)} curves are too few for a power law",
            mend="at least two a curve are needed, and three on one of them",
        )
    unit = np.exp(np.log(point).mean())
    scaled = point / unit

    def solve(exponent: float) -> tuple[float, Floats, Floats]:
        return _least_squares(scaled**-exponent, value, number, counts)

    errors = np.array([solve(exponent)[0] for exponent in _EXPONENTS])
    best = int(errors.argmin())
    low = _EXPONENTS[max(0, best - 1)]
    high = _EXPONENTS[min(len(_EXPONENTS) - 1, best + 1)]
    shrink = (np.sqrt(5) - 1) / 2  # golden section
    for _ in range(60):
        a, b = high - shrink * (high - low), low + shrink * (high - low)
        low, high = (low, b) if solve(a)[0] < solve(b)[0] else (a, high)
    exponent = float((low + high) / 2)
    _, floor, factor = solve(exponent)
    return PowerCurves(floor, factor * unit**exponent, exponent)


def _least_squares(
    power: Floats, losses: Floats, curve: Ints, counts: Ints
) -> tuple[float, Floats, Floats]:
    """Squared error, floors and factors; neither of these below 0."""
    mean_power, mean_loss = (np.bincount(curve, v) / counts for v in (power, losses))
    across = np.bincount(curve, (power - mean_power[curve]) * (losses - mean_loss[curve]))
    spread = np.bincount(curve, (power - mean_power[curve]) ** 2)
    factor = np.maximum(across / np.maximum(spread, 1e-300), 0)
    floor = mean_loss - factor * mean_power
    sunk = floor < 0
    if sunk.any():
        alone = np.bincount(curve, power * losses) / np.bincount(curve, power**2)
        floor, factor = np.where(sunk, 0, floor), np.where(sunk, alone, factor)
    away = losses - floor[curve] - factor[curve] * power
    return float((away**2).sum()), floor, factor


def extrapolated(runs: Runs, name: str, to: float) -> Runs:
    """One run a curve, with the losses that power laws tell at `to` of a covariate.

    A curve is a mixture with its other covariates. The error of the laws on each curve's last
    point, which they did not see, is among the notes.

    Raises:
        UserError: if the runs lack the covariate, or are too few.
    """
    x = runs.covariate(name)
    others = [values for key, values in runs.covariates.items() if key != name]
    keys = np.column_stack([runs.mixtures, *others])
    _, first, curve = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    curve = curve.ravel()
    if len(np.unique(x)) < 3:
        raise UserError(
            f"the runs have {len(np.unique(x))} different values of {name!r}",
            mend="a power law takes three at least",
        )
    last = np.zeros(len(x), bool)
    for number in range(len(first)):
        own = np.flatnonzero(curve == number)
        last[own[x[own].argmax()]] = True
    losses, notes = np.empty((len(first), len(runs.targets))), list(runs.notes)
    for place, target in enumerate(runs.targets):
        value = runs.losses[:, place]
        found = fit_curves(x, value, curve)
        losses[:, place] = found.at(to, np.arange(len(first)))
        note = f"{target}: exponent of {name} {found.exponent:.3f}"
        try:
            seen = fit_curves(x[~last], value[~last], curve[~last])
        except UserError:
            note += ", too few points to hold any out"
        else:
            away = seen.at(x[last], curve[last]) - value[last]
            note += f", error on the last of each curve {np.sqrt(np.mean(away**2)):.4f}"
        notes.append(note)
    taken = runs.take(first)
    rest = {key: values for key, values in taken.covariates.items() if key != name}
    return replace(taken, losses=losses, covariates=rest, notes=tuple(notes))


@dataclass(frozen=True)
class Plateau:
    """Whether a run still gains.

    Attributes:
        stop: the gain expected is below the one asked for.
        gain: by which the loss is expected to fall.
        floor: the loss that it falls to in the end.
        exponent: of the step law.
    """

    stop: bool
    gain: float
    floor: float
    exponent: float


def plateau(
    steps: npt.ArrayLike, losses: npt.ArrayLike, *, least_gain: float, ahead: float = 2.0
) -> Plateau:
    """Stop rule: does going on to `ahead` times the steps lower the loss by `least_gain`?

    The rule and its default are ours.

    Args:
        steps: of one run, float64 [n], at least three.
        losses: at those steps.

    Raises:
        UserError: for too few steps, or steps of 0 or less.

    Example:
        >>> steps = np.array([100.0, 200.0, 400.0, 800.0])
        >>> plateau(steps, 2 + 1 / steps, least_gain=0.01).stop
        True
    """
    x = np.asarray(steps, np.float64)
    found = fit_curves(x, losses, np.zeros(len(x), np.int64))
    now, later = found.at([x.max(), ahead * x.max()], [0, 0])
    gain = float(now - later)
    return Plateau(gain < least_gain, gain, float(found.floor[0]), found.exponent)
