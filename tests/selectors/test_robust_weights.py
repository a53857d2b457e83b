"""Group DRO and DoReMi: worked numbers, one step at a time in exact-enough decimals, invariants."""

from decimal import Decimal, getcontext
from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tamis.scoring.domain_losses import DomainLosses
from tamis.selectors.robust_weights import WeightPath, doremi, group_dro
from tamis.storage.errors import UserError

getcontext().prec = 60
getcontext().Emax = 10**12
getcontext().Emin = -(10**12)


def losses_of(values: object, reference: object = None) -> DomainLosses:
    losses = np.asarray(values, np.float64)
    names = tuple(f"d{place}" for place in range(losses.shape[1]))
    steps = np.arange(len(losses))
    if reference is None:
        return DomainLosses(names, steps, losses)
    base = np.broadcast_to(np.asarray(reference, np.float64), losses.shape)
    return DomainLosses(names, steps, losses, base, np.maximum(losses - base, 0))


def group_dro_slowly(losses: np.ndarray, rate: float, raised: list[float]) -> list[list[Decimal]]:
    """As the algorithm is printed: multiply, normalise, step after step."""
    q = [Decimal(1) / losses.shape[1]] * losses.shape[1]
    found = []
    for row in losses.tolist():
        q = [
            weight * (Decimal(rate) * (Decimal(loss) + Decimal(more))).exp()
            for weight, loss, more in zip(q, row, raised, strict=True)
        ]
        q = [weight / sum(q) for weight in q]
        found.append(q)
    return found


def doremi_slowly(
    losses: np.ndarray, base: np.ndarray, rate: float, smoothing: float
) -> list[list[Decimal]]:
    count = losses.shape[1]
    w = [Decimal(1) / count] * count
    found = []
    for row, other in zip(losses.tolist(), base.tolist(), strict=True):
        excess = [max(Decimal(a) - Decimal(b), Decimal(0)) for a, b in zip(row, other, strict=True)]
        w = [weight * (Decimal(rate) * by).exp() for weight, by in zip(w, excess, strict=True)]
        w = [(1 - Decimal(smoothing)) * part / sum(w) + Decimal(smoothing) / count for part in w]
        found.append(w)
    return found


def test_group_dro_in_worked_numbers() -> None:
    # One step at the published rate: q ∝ (e^.01, e^.02), so that q_1 = 1 / (1 + e^-.01).
    found = group_dro(losses_of([[1.0, 2.0]]))
    assert found.weights[0] == pytest.approx([0.49750002, 0.50249998], abs=1e-8)
    # Rate ln 2: loss 0 keeps, loss 1 doubles, loss 2 quadruples: 1 : 2 : 4, then 2 : 2 : 16.
    found = group_dro(losses_of([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]]), rate=log(2))
    assert found.weights[0] == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert found.weights[1] == pytest.approx([2 / 20, 2 / 20, 16 / 20])
    assert found.result("last") == pytest.approx({"d0": 0.1, "d1": 0.1, "d2": 0.8})
    assert found.result("mean")["d2"] == pytest.approx((4 / 7 + 0.8) / 2)


def test_group_dro_raises_small_groups_by_the_adjustment() -> None:
    # C = 1 and n = 4, 16 add 1/2 and 1/4: scores 1.5 and 2.25.
    sizes = {"d0": 4.0, "d1": 16.0}
    found = group_dro(losses_of([[1.0, 2.0]]), rate=1.0, adjustment=1.0, sizes=sizes)
    assert found.scores.tolist() == [[1.5, 2.25]]
    assert found.weights[0, 1] == pytest.approx(1 / (1 + exp(-0.75)))
    # Equal losses: the smaller group wins.
    even = group_dro(losses_of([[1.0, 1.0]]), rate=1.0, adjustment=2.0, sizes=sizes)
    assert even.weights[0, 0] == pytest.approx(1 / (1 + exp(-0.5)))
    with pytest.raises(UserError, match="an adjustment takes the number of rows"):
        group_dro(losses_of([[1.0, 1.0]]), adjustment=1.0)
    with pytest.raises(UserError, match="nothing is said of 'd1'"):
        group_dro(losses_of([[1.0, 1.0]]), adjustment=1.0, sizes={"d0": 5})


def test_doremi_in_worked_numbers() -> None:
    # Excess ln 3 and 0 (better than the reference counts nothing): 3 : 1, then smoothed.
    # Then 0 and ln 2: .749975 : 2 * .250025, of 1.250025.
    losses = losses_of([[1 + log(3), 2.0], [0.9, 2.5 + log(2)]], [1.0, 2.5])
    found = doremi(losses)
    assert found.scores == pytest.approx(np.array([[log(3), 0.0], [0.0, log(2)]]))
    first = [0.75 * 0.9999 + 0.00005, 0.25 * 0.9999 + 0.00005]
    assert first == pytest.approx([0.749975, 0.250025])
    assert found.weights[0] == pytest.approx(first)
    second = 0.9999 * 0.749975 / 1.250025 + 0.00005
    assert second == pytest.approx(0.5999580038, abs=1e-10)
    assert found.weights[1] == pytest.approx([second, 1 - second])
    assert found.result("mean")["d0"] == pytest.approx((first[0] + second) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_both_equal_the_algorithms_as_printed(seed: int) -> None:
    draws = np.random.default_rng(seed)
    losses, base = draws.gamma(4, 0.7, (2, 40, 5))
    by_name = {f"d{i}": float(n) for i, n in enumerate(draws.integers(10, 5000, 5))}
    raised = [2.5 / np.sqrt(n) for n in by_name.values()]
    slow = np.array(group_dro_slowly(losses, 0.3, raised), np.float64)
    quick = group_dro(losses_of(losses), rate=0.3, adjustment=2.5, sizes=by_name)
    assert quick.weights == pytest.approx(slow, rel=1e-11)
    slow = np.array(doremi_slowly(losses, base, 1.0, 1e-4), np.float64)
    assert doremi(losses_of(losses, base)).weights == pytest.approx(slow, rel=1e-11)


@pytest.mark.parametrize("rate", [1.0, 1e6])
def test_no_loss_overflows(rate: float) -> None:
    losses = np.array([[1e6, 1e6 + 1, 0.0], [5.0, 3.0, 8e5]])
    slow = np.array(group_dro_slowly(losses, rate, [0.0] * 3), np.float64)
    with np.errstate(over="raise", invalid="raise"):
        assert group_dro(losses_of(losses), rate=rate).weights == pytest.approx(slow, abs=1e-12)
        slow = np.array(doremi_slowly(losses, np.zeros_like(losses), rate, 1e-4), np.float64)
        weights = doremi(losses_of(losses, 0.0), rate=rate).weights
        assert weights == pytest.approx(slow, abs=1e-9)
        bare = doremi(losses_of(losses, 0.0), rate=rate, smoothing=0.0).weights
        assert np.isfinite(bare).all()


def test_equal_losses_and_one_domain_say_nothing() -> None:
    same = losses_of(np.full((20, 4), 3.0), 2.0)
    for found in (group_dro(same), doremi(same)):
        assert found.weights == pytest.approx(np.full((20, 4), 0.25))
    # Nothing exceeds the reference: nothing is raised.
    assert doremi(losses_of([[1.0, 5.0]], [2.0, 6.0])).weights.tolist() == [[0.5, 0.5]]
    alone = group_dro(losses_of([[3.0], [2.0]]))
    assert alone.weights.tolist() == [[1.0], [1.0]]
    assert "one domain" in alone.notes()[0]


def test_the_worst_domain_is_told_and_weights_that_ran_away() -> None:
    losses = losses_of(np.tile([[4.0, 2.0, 3.0]], (500, 1)))
    found = group_dro(losses)
    assert found.worst() == {
        "domain": "d0",
        "loss": 4.0,
        "first": 4.0,
        "mean": 3.0,
        "weighted": pytest.approx(float(found.weights[-1] @ [4.0, 2.0, 3.0])),
    }
    assert "'d0' has 0.99" in found.notes()[0]
    assert group_dro(losses_of([[4.0, 2.0, 3.0]])).notes() == ()


def test_the_trace_has_every_step() -> None:
    found = doremi(losses_of([[1.0, 2.0], [3.0, 1.0]], [0.5, 1.5]))
    table = found.table()
    assert table.columns == ["step", "domain", "loss", "reference", "score", "weight"]
    assert table["step"].to_list() == [0, 0, 1, 1]
    assert table["domain"].to_list() == ["d0", "d1", "d0", "d1"]
    assert table["score"].to_list() == [0.5, 0.5, 2.5, 0.0]
    assert table["weight"].to_list() == found.weights.ravel().tolist()


@pytest.mark.parametrize(
    ("parameters", "what"),
    [
        ({"rate": 0.0}, "rate: expected more than 0"),
        ({"rate": float("nan")}, "rate: expected more than 0, found nan"),
        ({"rate": float("inf")}, "rate"),
        ({"adjustment": -1.0}, "adjustment: expected 0 or more"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, float], what: str) -> None:
    with pytest.raises(UserError, match=what):
        group_dro(losses_of([[1.0, 2.0]]), **parameters)  # type: ignore[arg-type]


def test_doremi_refuses_what_it_cannot_use() -> None:
    with pytest.raises(UserError, match="losses of a reference model"):
        doremi(losses_of([[1.0, 2.0]]))
    for smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="smoothing: expected at least 0 and below 1"):
            doremi(losses_of([[1.0, 2.0]], 0.0), smoothing=smoothing)


tables = st.tuples(st.integers(1, 12), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(0, 100))
)


def _checked(found: WeightPath) -> None:
    assert found.weights.sum(axis=1) == pytest.approx(np.ones(len(found.weights)))
    assert (found.weights >= 0).all()
    for which in ("mean", "last"):
        assert sum(found.result(which).values()) == pytest.approx(1, abs=1e-14)


@given(tables, st.floats(1e-3, 10), st.integers(0, 99))
def test_weights_sum_to_one_and_the_order_of_domains_is_nothing(
    values: np.ndarray, rate: float, seed: int
) -> None:
    count = values.shape[1]
    order = np.random.default_rng(seed).permutation(count)
    for method in (group_dro, doremi):
        found = method(losses_of(values, 1.0), rate=rate)
        _checked(found)
        turned = method(losses_of(values[:, order], 1.0), rate=rate)
        assert turned.weights == pytest.approx(found.weights[:, order], rel=1e-6, abs=1e-300)


@given(tables, st.floats(1e-6, 0.9))
def test_doremi_leaves_every_domain_its_share_of_the_smoothing(
    values: np.ndarray, smoothing: float
) -> None:
    found = doremi(losses_of(values, 0.0), smoothing=smoothing)
    _checked(found)
    least = smoothing / values.shape[1]
    assert (found.weights >= least * (1 - 1e-12)).all()
    assert min(found.result("mean").values()) >= least * (1 - 1e-12)


@given(tables, st.floats(0, 50))
def test_only_differences_between_domains_count(values: np.ndarray, more: float) -> None:
    found, raised = (group_dro(losses_of(v)) for v in (values, values + more))
    assert raised.weights == pytest.approx(found.weights, abs=1e-9)
