"""Weights by size: temperature, cool-down, replay, and what a supply makes of them."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.selectors.domain_weights import Weighed, cap_phases
from tamis.selectors.replay import apportion, replay
from tamis.selectors.temperature import cooling, tempered
from tamis.storage.errors import UserError
from tamis.storage.mixture_plan import MixturePlan

supplies = st.lists(st.floats(1, 1e13), min_size=1, max_size=6).map(
    lambda amounts: {f"d{place}": amount for place, amount in enumerate(amounts)}
)


def test_temperature_in_worked_numbers() -> None:
    # Roots of 900 and 100 are 30 and 10; fourth roots of 81 and 16 are 3 and 2.
    assert tempered({"a": 900, "b": 100}, [2]).over_all() == pytest.approx({"a": 0.75, "b": 0.25})
    assert tempered({"a": 81, "b": 16}, [4]).over_all() == pytest.approx({"a": 0.6, "b": 0.4})
    # Squares, for a temperature below 1.
    assert tempered({"a": 3, "b": 1}, [0.5]).over_all() == pytest.approx({"a": 0.9, "b": 0.1})


def test_a_cool_down_has_a_phase_for_every_temperature() -> None:
    plan = tempered({"a": 900.0, "b": 100.0}, [inf, 2, 1], (1, 1, 2))
    assert [phase.share for phase in plan.phases] == [0.25, 0.25, 0.5]
    shares = [phase.mixture["b"] for phase in plan.phases]
    assert shares == pytest.approx([0.5, 0.25, 0.1])
    assert plan.over_all()["b"] == pytest.approx(0.25 * 0.5 + 0.25 * 0.25 + 0.5 * 0.1)
    assert plan.origin["temperatures"] == ["inf", 2.0, 1.0]


def test_the_exponent_moves_in_equal_steps() -> None:
    assert cooling(5, 1, 2) == [5.0, 1.0]
    assert cooling(5, 1, 5) == pytest.approx([1 / 0.2, 1 / 0.4, 1 / 0.6, 1 / 0.8, 1])
    assert cooling(inf, 1, 3) == [inf, 2.0, 1.0]
    for hot, cold, what in ((1, 5, "that fall"), (5, 0, "above 0"), (2, 2, "that fall")):
        with pytest.raises(UserError, match=what):
            cooling(hot, cold, 2)
    with pytest.raises(UserError, match="2 or more"):
        cooling(5, 1, 1)


@pytest.mark.parametrize("tau", [0, -1, float("nan")])
def test_temperatures_that_are_none(tau: float) -> None:
    with pytest.raises(UserError, match="temperature: expected more than 0"):
        tempered({"a": 1.0}, [tau])


@pytest.mark.parametrize("amount", [0, -5, float("nan"), inf])
def test_a_domain_that_there_is_nothing_of(amount: float) -> None:
    with pytest.raises(UserError, match="supply of 'b': expected more than 0"):
        tempered({"a": 1.0, "b": amount}, [2])


def test_extreme_temperatures_and_supplies_stay_finite() -> None:
    supply = {"a": 1e300, "b": 1.0, "c": 1e-300}
    assert tempered(supply, [1e-3]).over_all() == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert tempered(supply, [1e9]).over_all() == pytest.approx(dict.fromkeys("abc", 1 / 3))


@given(supplies, st.floats(0.05, 100), st.floats(1e-6, 1e6))
def test_invariants_of_temperature(supply: dict[str, float], tau: float, scale: float) -> None:
    found = tempered(supply, [tau]).over_all()
    assert sum(found.values()) == pytest.approx(1)
    turned = tempered(dict(reversed(supply.items())), [tau]).over_all()
    assert turned == pytest.approx(found, rel=1e-9)
    scaled = tempered({name: n * scale for name, n in supply.items()}, [tau]).over_all()
    assert scaled == pytest.approx(found, rel=1e-6, abs=1e-12)
    total = sum(supply.values())
    natural = {name: n / total for name, n in supply.items()}
    assert tempered(supply, [1]).over_all() == pytest.approx(natural, rel=1e-9)
    assert tempered(supply, [inf]).over_all() == pytest.approx(
        dict.fromkeys(supply, 1 / len(supply))
    )
    # Hotter is never further from even.
    largest = max(found.values())
    assert max(tempered(supply, [2 * tau]).over_all().values()) <= largest + 1e-12


def test_loss_weights_weigh_a_natural_sample_like_the_plan() -> None:
    supply = {"a": 900.0, "b": 100.0}
    found = Weighed(tempered(supply, [2]), supply, tokens=2000)
    assert found.natural == pytest.approx({"a": 0.9, "b": 0.1})
    assert found.loss_weights == pytest.approx({"a": 0.75 / 0.9, "b": 2.5})
    assert found.seen == pytest.approx({"a": 0.75 * 2000 / 900, "b": 5.0})
    assert found.notes() == ("'b' is seen 5 times, more than 4",)
    told = found.as_json()
    assert told["mixture"] == pytest.approx({"a": 0.75, "b": 0.25})
    assert told["phases"][0]["loss_weights"] == pytest.approx(found.loss_weights)


@given(supplies, st.floats(0.1, 50))
def test_loss_weights_have_mean_one_and_are_times_seen_in_one_pass(
    supply: dict[str, float], tau: float
) -> None:
    found = Weighed(tempered(supply, [tau]), supply)
    mean = sum(found.natural[name] * weight for name, weight in found.loss_weights.items())
    assert mean == pytest.approx(1)
    assert found.seen == pytest.approx(found.loss_weights)
    assert found.as_json()["seen"] is None


def test_what_is_too_much_goes_to_the_others_in_their_ratios() -> None:
    supply = {"a": 800.0, "b": 150.0, "c": 50.0}
    plan = MixturePlan.of({"a": 0.5, "b": 0.2, "c": 0.3})
    found = Weighed(plan, supply, tokens=1000, epochs=2).capped()
    # c is held at 2 * 50 / 1000; the other .9 are split 5 : 2, of which b may have .3.
    assert found.plan.over_all() == pytest.approx({"a": 0.9 * 5 / 7, "b": 0.9 * 2 / 7, "c": 0.1})
    assert found.seen["c"] == pytest.approx(2)
    assert found.notes() == ("'c' is held at 2 times",)
    assert found.plan.origin == {"epochs": 2, "tokens": 1000}
    # Three domains, the second only over its cap by what the first one gave.
    found = Weighed(plan, supply, tokens=1000, epochs=1.5).capped()
    assert found.plan.over_all() == pytest.approx({"a": 0.7, "b": 0.225, "c": 0.075}, abs=1e-9)


def test_the_hottest_phase_gives_first() -> None:
    supply = {"a": 900.0, "b": 100.0}
    plan = tempered(supply, [inf, 1])
    found = Weighed(plan, supply, tokens=1000, epochs=2).capped()
    # b has .5 and .1, mean .3 of which .2 are allowed: .3 and .1.
    assert [phase.mixture["b"] for phase in found.plan.phases] == pytest.approx([0.3, 0.1])
    # Where the cap is below the last phase's proportion too, both have the cap.
    found = Weighed(plan, {"a": 2000.0, "b": 50.0}, tokens=1000, epochs=1).capped()
    assert [phase.mixture["b"] for phase in found.plan.phases] == pytest.approx([0.05, 0.05])


def test_caps_that_cannot_hold() -> None:
    supply = {"a": 900.0, "b": 100.0}
    plan = tempered(supply, [2])
    with pytest.raises(UserError, match=r"all domains together reach 0\.4 .*allow 2\.5 epochs"):
        Weighed(plan, supply, tokens=2500, epochs=1).capped()
    with pytest.raises(UserError, match="length of the training"):
        Weighed(plan, supply).capped()
    with pytest.raises(UserError, match="no plan near this one"):
        Weighed(MixturePlan.of({"a": 0.0, "b": 1.0}), supply, tokens=1000, epochs=2).capped()
    # Just enough, by one pass over everything: the natural mixture is left.
    found = Weighed(tempered(supply, [5, 1]), supply, tokens=1000, epochs=1).capped()
    assert found.plan.over_all() == pytest.approx({"a": 0.9, "b": 0.1})


@pytest.mark.parametrize(
    ("supply", "what"),
    [
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "no domain 'c'"),
        ({"a": 1.0}, "nothing is said of 'b'"),
        ({"a": 1.0, "b": 0.0}, "supply of 'b': expected more than 0, found 0"),
    ],
)
def test_a_supply_of_other_domains(supply: dict[str, float], what: str) -> None:
    with pytest.raises(UserError, match=what):
        Weighed(MixturePlan.of({"a": 0.5, "b": 0.5}), supply)


def test_a_length_or_epochs_that_are_none() -> None:
    plan, supply = MixturePlan.of({"a": 1.0}), {"a": 5.0}
    for given_ in ({"tokens": 0.0}, {"tokens": float("nan")}, {"epochs": -1.0}):
        with pytest.raises(UserError, match="expected more than 0"):
            Weighed(plan, supply, **given_)  # type: ignore[arg-type]


def filled_slowly(parts: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """The water level of one phase by bisection."""
    low, high = 0.0, 1e15
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * parts, caps).sum() < 1 else (low, middle)
    return np.asarray(np.minimum(high * parts, caps))


@given(st.integers(0, 10**6))
def test_one_phase_is_filled_up_like_vessels(seed: int) -> None:
    draws = np.random.default_rng(seed)
    count = int(draws.integers(1, 12))
    parts = draws.dirichlet(np.full(count, draws.choice([0.3, 1.0, 10.0]))) + 1e-9
    parts /= parts.sum()
    caps = draws.dirichlet(np.full(count, draws.choice([0.3, 1.0, 10.0])))
    caps = caps * draws.choice([1.0001, 1.5, 20.0])
    found = cap_phases(parts[None], np.ones(1), caps)[0]
    assert found == pytest.approx(filled_slowly(parts, caps), abs=1e-8)


@given(st.integers(0, 10**6))
def test_phases_keep_to_their_caps_and_else_to_their_ratios(seed: int) -> None:
    draws = np.random.default_rng(seed)
    count, phases = int(draws.integers(2, 8)), int(draws.integers(1, 5))
    mixtures = draws.dirichlet(np.ones(count), phases) + 1e-6
    mixtures /= mixtures.sum(axis=1, keepdims=True)
    shares = draws.dirichlet(np.ones(phases))
    caps = draws.dirichlet(np.ones(count)) * draws.choice([1.05, 2.0, 20.0])
    found = cap_phases(mixtures, shares, caps)
    assert found.sum(axis=1) == pytest.approx(np.ones(phases))
    over = shares @ found
    assert (over <= caps * (1 + 1e-8)).all()
    levels = found.max(axis=0)
    factor = (found / mixtures).max(axis=1, keepdims=True)
    at_level = found >= levels - 1e-7
    # A domain is at its level, which only a full cap sets, or rises with all others of its phase.
    rises = np.isclose(found, factor * mixtures, rtol=1e-6, atol=1e-9)
    assert (rises | (at_level & (over >= caps * (1 - 1e-6)))).all()


def test_replay_in_worked_numbers() -> None:
    old, new = {"web": 6e9, "books": 2e9}, {"german": 3e9, "code": 1e9}
    found = replay(old, new, "weak")
    # 5 % of one pass over the new 4e9, in place of as many new tokens.
    assert found.tokens == {
        "web": 150_000_000,
        "books": 50_000_000,
        "german": 2_850_000_000,
        "code": 950_000_000,
    }
    assert found.seen == pytest.approx({"web": 0.025, "books": 0.025, "german": 0.95, "code": 0.95})
    assert found.plan.over_all()["german"] == pytest.approx(0.95 * 0.75)
    assert found.as_json()["replayed"] == 200_000_000
    assert found.plan.origin["old"] == ["web", "books"]
    assert replay(old, new, "strong").fraction == 0.25
    assert replay(old, new, 0.0).tokens["web"] == 0
    assert sum(replay(old, new, 0.1, tokens=1001).tokens.values()) == 1001


def test_replay_keeps_to_the_supply() -> None:
    old, new = {"web": 100.0}, {"german": 1000.0}
    with pytest.raises(
        UserError, match=r"500 tokens of the old corpus, which has 100: .*replay 0\.4 .*allow 5 epo"
    ):
        replay(old, new, 0.5)
    assert replay(old, new, 0.4).seen["web"] == pytest.approx(4)
    assert replay(old, new, 0.5, epochs=5).seen["web"] == pytest.approx(5)
    with pytest.raises(UserError, match=r"tokens of the new corpus.*want 4444 tokens"):
        replay({"web": 1e9}, new, 0.1, tokens=5000)


@pytest.mark.parametrize(
    ("old", "new", "shift", "what"),
    [
        ({"web": 1.0}, {"web": 1.0}, "weak", "'web' is a domain of both corpora"),
        ({}, {"web": 1.0}, "weak", "no old domains"),
        ({"web": 1.0}, {}, "weak", "no new domains"),
        ({"web": 1.0}, {"code": 0.0}, "weak", "supply of 'code': expected more than 0"),
        ({"web": 1.0}, {"code": 1.0}, "sideways", "expected weak or strong, found 'sideways'"),
        ({"web": 1.0}, {"code": 1.0}, 25, "below 1, found 25; divide percentages by 100"),
        ({"web": 1.0}, {"code": 1.0}, 1.0, "below 1, found 1"),
        ({"web": 1.0}, {"code": 1.0}, -0.1, "at least 0"),
        ({"web": 1.0}, {"code": 1.0}, float("nan"), "found nan"),
    ],
)
def test_replay_that_cannot_be(
    old: dict[str, float], new: dict[str, float], shift: str | float, what: str
) -> None:
    with pytest.raises(UserError, match=what):
        replay(old, new, shift)


@given(
    st.integers(0, 10**12),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=20).filter(lambda parts: sum(parts) > 1e-9),
)
def test_whole_numbers_sum_to_the_total_and_are_within_one(total: int, parts: list[float]) -> None:
    found = apportion(total, parts)
    assert sum(found) == total
    exact = total * np.array(parts) / sum(parts)
    assert (np.abs(np.array(found) - exact) < 1 + 1e-3).all()
