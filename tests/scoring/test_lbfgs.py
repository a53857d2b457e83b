"""The search of many small problems at once, beside scipy's."""

import numpy as np
from scipy.optimize import minimize

from tamis.scoring.lbfgs import minimise


def test_the_search_agrees_with_scipy_problem_by_problem() -> None:
    draws = np.random.default_rng(0)
    start = draws.normal(size=(12, 4))
    scale = draws.uniform(0.5, 30, size=(12, 3))

    def value(x: np.ndarray, s: np.ndarray) -> float:
        return float((s * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())

    def slope(x: np.ndarray, s: np.ndarray) -> np.ndarray:
        found = np.zeros(4)
        found[1:] += 2 * s * (x[1:] - x[:-1] ** 2)
        found[:-1] += -4 * s * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
        return found

    def all_of(x: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = [value(row, scale[i]) for row, i in zip(x, which, strict=True)]
        slopes = [slope(row, scale[i]) for row, i in zip(x, which, strict=True)]
        return np.array(values), np.array(slopes)

    found = minimise(all_of, start)
    assert found.converged.all()
    for place in range(12):
        other = minimize(
            value, start[place], args=(scale[place],), jac=slope, method="BFGS", tol=1e-9
        )
        # A chained Rosenbrock function has a second minimum: ours is as good or better.
        assert found.value[place] <= other.fun + 1e-8
