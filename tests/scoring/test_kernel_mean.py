"""Double weighting against an independent solver, and its kernels against whole ones."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.spatial.distance import pdist

from tamis.scoring.kernel_mean import (
    DoubleWeights,
    double_weights,
    exact_product,
    gaussian,
    landmark_product,
    median_distance,
)
from tamis.selectors.inner_products import one_blas_thread

Floats = npt.NDArray[np.float64]


def sets(n: int, t: int, away: float, seed: int = 0, width: int = 3) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n + t, width))
    rows[n:] += away
    return rows.astype(np.float32)


def quadratic_programme(
    kernel: Floats, n: int, t: int, d: float, bound: float
) -> tuple[Floats, Floats, float]:
    """The same by sequential quadratic programming of scipy, constraint by constraint."""
    sign = np.r_[np.full(n, 1 / n), np.full(t, -1 / t)]

    def value(w: Floats) -> float:
        return float(1e3 * (sign * w) @ kernel @ (sign * w))

    def slope(w: Floats) -> Floats:
        found: Floats = 2e3 * sign * (kernel @ (sign * w))
        return found

    def gap(w: Floats) -> float:
        return float(w[:n].mean() - w[n:].mean())

    most, radius, apart = bound / d**0.5, (1 - d**-0.5) * t**0.5, 1 - n**-0.5
    limits: list[dict[str, Any]] = [
        {"type": "ineq", "fun": lambda w: apart - gap(w)},
        {"type": "ineq", "fun": lambda w: apart + gap(w)},
    ]
    fixed = d == 1
    if not fixed:
        limits.append({"type": "ineq", "fun": lambda w: radius**2 - np.square(w[n:] - 1).sum()})
    bounds = [(0, most)] * n + [(1, 1) if fixed else (0, 1)] * t
    begin = np.r_[np.full(n, min(1.0, most)), np.ones(t)]
    found = minimize(
        value,
        begin,
        jac=slope,
        bounds=bounds,
        constraints=limits,
        method="SLSQP",
        options={"maxiter": 2000, "ftol": 1e-12},
    )
    assert found.status in (0, 8), found.message  # 8: no step that rounding allows is lower
    return found.x[:n], found.x[n:], (max(found.fun, 0) / 1e3) ** 0.5


@pytest.mark.parametrize(
    ("n", "t", "away", "d", "bound"),
    [
        (12, 6, 0.7, 1.0, 1000.0),
        (12, 6, 0.7, 4.0, 1000.0),
        (15, 5, 1.5, 9.0, 1000.0),
        (10, 8, 0.5, 1.0, 1.5),  # the box holds
        (10, 8, 0.5, 4.0, 2.4),
        (1, 4, 0.3, 4.0, 1000.0),  # both means are the same
        (4, 4, 3.0, 1.0, 1000.0),  # they may differ by a half, and would by more
        (4, 5, 3.0, 2.0, 1000.0),
        (6, 1, 0.2, 4.0, 1000.0),
    ],
)
def test_weights_are_those_of_a_quadratic_programme(
    n: int, t: int, away: float, d: float, bound: float
) -> None:
    rows = sets(n, t, away)
    wide = rows.astype(np.float64)
    kernel = gaussian(wide, wide, 1.0)
    beta, alpha, distance = quadratic_programme(kernel, n, t, d, bound)
    found = double_weights(
        exact_product(rows, 1.0), n, t, d=d, bound=bound, tolerance=1e-8, iterations=20_000
    )
    assert found.distance == pytest.approx(distance, abs=1e-5)
    np.testing.assert_allclose(found.beta, beta, atol=2e-2)
    np.testing.assert_allclose(found.alpha, alpha, atol=2e-2)
    u = np.r_[found.beta / n, -found.alpha / t]
    assert found.distance == pytest.approx((u @ kernel @ u) ** 0.5, rel=1e-6)


def _allowed(found: DoubleWeights, d: float, bound: float) -> None:
    n, t = len(found.beta), len(found.alpha)
    small = 1e-9
    assert (found.beta >= 0).all()
    assert (found.beta <= bound / d**0.5 + small).all()
    assert (found.alpha >= -small).all()
    assert (found.alpha <= 1 + small).all()
    assert np.linalg.norm(found.alpha - 1) <= (1 - d**-0.5) * t**0.5 + small
    assert abs(found.beta.mean() - found.alpha.mean()) <= 1 - n**-0.5 + small


@settings(max_examples=40)
@given(
    n=st.integers(1, 9),
    t=st.integers(1, 7),
    d=st.sampled_from([1.0, 1.2, 4.0, 1e4]),
    bound=st.sampled_from([2.0, 1000.0]),
    away=st.floats(0, 50),
    seed=st.integers(0, 99),
)
def test_whatever_the_sets_weights_are_allowed(
    n: int, t: int, d: float, bound: float, away: float, seed: int
) -> None:
    bound *= d**0.5  # so that all weights 1 are allowed, and none is worse
    found = double_weights(
        exact_product(sets(n, t, away, seed), 1.0), n, t, d=d, bound=bound, iterations=50
    )
    _allowed(found, d, bound)
    assert found.distance <= found.before + 1e-12


def test_with_d_1_it_is_kernel_mean_matching() -> None:
    found = double_weights(exact_product(sets(20, 7, 1.0), 1.0), 20, 7)
    assert found.alpha.tolist() == [1.0] * 7


def test_a_target_row_that_nothing_resembles_is_given_up() -> None:
    rows = sets(30, 10, 0.0)
    rows[-1] = 40
    product = exact_product(rows, 1.0)
    plain = double_weights(product, 30, 10)
    found = double_weights(product, 30, 10, d=4.0)
    assert plain.distance > 0.1, "its own tenth of the target stays apart"
    assert found.alpha[-1] < 0.5 * found.alpha[:-1].min()
    assert found.distance < 0.4 * plain.distance


def test_a_larger_d_comes_closer() -> None:
    product = exact_product(sets(40, 12, 1.0), 1.0)
    reached = [double_weights(product, 40, 12, d=d, tolerance=1e-6).distance for d in (1, 2, 4, 16)]
    assert reached == sorted(reached, reverse=True)


def test_equal_rows_are_weighed_alike() -> None:
    found = double_weights(exact_product(np.ones((9, 2), np.float32), 1.0), 5, 4)
    np.testing.assert_allclose(found.beta, 1.0)
    assert found.converged


def test_landmarks_that_are_all_rows_leave_nothing_out() -> None:
    rows = sets(60, 20, 0.5)
    whole = exact_product(rows, 1.2)
    product, left = landmark_product(rows, rows, 1.2)
    vector = np.random.default_rng(1).normal(size=80)
    np.testing.assert_allclose(product(vector), whole(vector), atol=2e-5)
    assert left < 1e-5


def test_more_landmarks_come_closer_to_the_exact_weights() -> None:
    rows = sets(300, 60, 0.8, width=4)
    exact = double_weights(exact_product(rows, 3.0), 300, 60, tolerance=1e-4)
    order = np.random.default_rng(2).permutation(360)
    off, left = [], []
    for count in (10, 40, 160):
        product, unexplained = landmark_product(rows, rows[order[:count]], 3.0)
        found = double_weights(product, 300, 60, tolerance=1e-4)
        off.append(np.abs(found.beta - exact.beta).mean())
        left.append(unexplained)
        _allowed(found, 1.0, 1000.0)
    assert off == sorted(off, reverse=True)
    assert left == sorted(left, reverse=True)
    assert off[-1] < 0.1


def test_workers_do_not_change_a_bit() -> None:
    rows = sets(9000, 500, 0.4, width=6)
    found = []
    with one_blas_thread():
        for workers in (1, 2, 3):
            product, _ = landmark_product(rows, rows[::90], 1.5, workers)
            found.append(double_weights(product, 9000, 500, iterations=30).beta.tobytes())
    assert found[0] == found[1] == found[2]


def test_the_bandwidth_is_the_median_distance() -> None:
    rows = sets(50, 0, 0.0)
    assert median_distance(rows) == pytest.approx(np.median(pdist(rows.astype(float))))
    assert median_distance(np.ones((5, 3))) == 1.0
    assert median_distance(np.ones((1, 3))) == 1.0
    assert median_distance(np.r_[np.zeros((50, 2)), [[3.0, 4.0]]]) == pytest.approx(5.0)


@pytest.mark.parametrize(("d", "bound"), [(1.0, 0.05), (4.0, 1.9)])
def test_a_bound_that_does_not_allow_weights_of_one(d: float, bound: float) -> None:
    product = exact_product(sets(100, 10, 0.5), 1.0)
    with pytest.raises(ValueError, match=r"expected at least sqrt\(d\)"):
        double_weights(product, 100, 10, d=d, bound=bound)
    found = double_weights(product, 100, 10, d=d, bound=d**0.5)  # the least there is
    assert found.beta.max() <= 1.0
    assert np.isfinite(found.distance)
