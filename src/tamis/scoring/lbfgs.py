"""Limited-memory BFGS for many small problems of one form at once.

The starts of a multi-start search, the targets of a table and the resamples of a bootstrap differ
in numbers and not in form, so that one call evaluates all of them: a step of thousands of problems
is a few matrix products. Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4; steps by
bisection to the weak Wolfe conditions (Lewis and Overton 2013, algorithm 2.6).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: Values [b] and gradients [b, p] at points [b, p] of the problems numbered [b].
Objective = Callable[[Floats, Ints], tuple[Floats, Floats]]

_DECREASE, _CURVATURE = 1e-4, 0.9
_STEPS = 25


class Minima(NamedTuple):
    """Where the search ended.

    Attributes:
        x: float64 [b, p].
        value: float64 [b].
        converged: bool [b]; false where `iterations` ran out first.
    """

    x: Floats
    value: Floats
    converged: npt.NDArray[np.bool_]


def minimise(
    objective: Objective,
    start: npt.ArrayLike,
    *,
    iterations: int = 500,
    history: int = 10,
    gradient_tolerance: float = 1e-7,
    value_tolerance: float = 1e-11,
) -> Minima:
    """Minimise smooth functions, each from its own start.

    Args:
        objective: of the points still moving, with the numbers of their problems. Values that are
            not finite are stepped back from.
        start: float64 [b, p].
        gradient_tolerance: largest entry of the gradient at which a problem is done.
        value_tolerance: relative decrease at which it is done too.

    Example:
        >>> shift = np.array([[1.0, 2.0], [3.0, -4.0]])
        >>> def bowls(x, which):
        ...     away = x - shift[which]
        ...     return (away**2).sum(axis=1), 2 * away
        >>> minimise(bowls, np.zeros((2, 2))).x.round(6).tolist()
        [[1.0, 2.0], [3.0, -4.0]]
    """
    x = np.array(start, np.float64)
    problems, width = x.shape
    which = np.arange(problems)
    value, gradient = objective(x, which)
    done = ~np.isfinite(value) | (np.abs(gradient).max(axis=1, initial=0.0) <= gradient_tolerance)
    # Changes of point and gradient, newest last; a curvature of zero marks an empty place.
    moved = np.zeros((history, problems, width))
    turned = np.zeros((history, problems, width))
    curvature = np.zeros((history, problems))
    for iteration in range(iterations):
        live = np.flatnonzero(~done)
        if not len(live):
            break
        direction = _direction(gradient[live], moved[:, live], turned[:, live], curvature[:, live])
        slope = (direction * gradient[live]).sum(axis=1)
        uphill = slope >= 0
        if uphill.any():  # rounding has spoilt the history: start over from the gradient
            direction[uphill] = -gradient[live[uphill]]
            slope[uphill] = -(gradient[live[uphill]] ** 2).sum(axis=1)
            curvature[:, live[uphill]] = 0
        first = 1.0
        if iteration == 0:
            first = 1 / np.maximum(1.0, np.abs(direction).max(axis=1))
        to, to_value, to_gradient = _step(
            objective, live, x[live], value[live], direction, slope, first
        )
        step, turn = to - x[live], to_gradient - gradient[live]
        bent = (step * turn).sum(axis=1)
        keep = bent > 1e-12 * (turn**2).sum(axis=1)
        for past, newest in ((moved, step), (turned, turn), (curvature, bent)):
            kept = live[keep]
            past[:-1, kept] = past[1:, kept]
            past[-1, kept] = newest[keep]
        gained = value[live] - to_value
        x[live], value[live], gradient[live] = to, to_value, to_gradient
        done[live] = (np.abs(to_gradient).max(axis=1) <= gradient_tolerance) | (
            gained <= value_tolerance * np.maximum(1e-12, np.abs(to_value))
        )
    return Minima(x, value, done)


def _direction(gradient: Floats, moved: Floats, turned: Floats, curvature: Floats) -> Floats:
    """The two loops: minus the inverse Hessian's approximation times the gradient."""
    found = gradient.copy()
    there = curvature > 0
    inverse = np.where(there, 1 / np.where(there, curvature, 1.0), 0.0)
    weights = np.zeros_like(curvature)
    for age in reversed(range(len(moved))):
        weights[age] = inverse[age] * np.einsum("bp,bp->b", moved[age], found)
        found -= weights[age][:, None] * turned[age]
    length = np.einsum("bp,bp->b", turned[-1], turned[-1])
    found *= np.where(there[-1], curvature[-1] / np.where(length > 0, length, 1.0), 1.0)[:, None]
    for age in range(len(moved)):
        back = inverse[age] * np.einsum("bp,bp->b", turned[age], found)
        found += (weights[age] - back)[:, None] * moved[age]
    return -found


def _step(
    objective: Objective,
    which: Ints,
    x: Floats,
    value: Floats,
    direction: Floats,
    slope: Floats,
    first: float | Floats,
) -> tuple[Floats, Floats, Floats]:
    """Points along the directions that meet the weak Wolfe conditions, or the best seen."""
    size = np.full(len(x), 1.0) * first
    low, high = np.zeros(len(x)), np.full(len(x), np.inf)
    best, best_value = x.copy(), value.copy()
    best_gradient = np.zeros_like(x)
    moved = np.zeros(len(x), bool)
    open_ = np.arange(len(x))
    for _ in range(_STEPS):
        to = x[open_] + size[open_, None] * direction[open_]
        to_value, to_gradient = objective(to, which[open_])
        sound = np.isfinite(to_value) & np.isfinite(to_gradient).all(axis=1)
        short = sound & (to_value <= value[open_] + _DECREASE * size[open_] * slope[open_])
        better = short & (~moved[open_] | (to_value <= best_value[open_]))
        at = open_[better]
        best[at], best_value[at], best_gradient[at] = (
            to[better],
            to_value[better],
            to_gradient[better],
        )
        moved[at] = True
        flat = (to_gradient * direction[open_]).sum(axis=1) >= _CURVATURE * slope[open_]
        high[open_[~short]] = size[open_[~short]]
        low[open_[short]] = size[open_[short]]
        open_ = open_[~(short & flat)]
        if not len(open_):
            break
        inside = np.isfinite(high[open_])
        size[open_] = np.where(inside, (low[open_] + high[open_]) / 2, 2 * low[open_])
    stuck = np.flatnonzero(~moved)
    if len(stuck):
        _, best_gradient[stuck] = objective(x[stuck], which[stuck])
    return best, best_value, best_gradient


def huber(residual: Floats, delta: float | Floats) -> tuple[Floats, Floats]:
    """Huber's loss of residuals and its derivative; `delta` broadcasts against them.

    Half the square up to `delta`, delta * (|r| - delta / 2) beyond (Huber 1964).
    """
    bounded = np.clip(residual, -delta, delta)
    return bounded * (residual - bounded / 2), bounded
