"""Scores of preference pairs: the published worked numbers, TRL's formulas, plain Python."""

import math
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.recipe import row_scorer
from tamis.storage.errors import UserError
from tests.scoring.signal_tools import Tokens, pair, signal

LOG_PROBS = st.floats(-60, 0, allow_subnormal=False)
#: Policy and reference have read the same tokens.
COMPLETION = st.one_of(
    st.none(), st.lists(st.tuples(LOG_PROBS, LOG_PROBS), min_size=1, max_size=20)
)
PAIRS = st.lists(st.tuples(COMPLETION, COMPLETION), max_size=6)

#: The worked example of TRL's convention: policy and reference, chosen and rejected.
WORKED = {
    **pair("policy", [[-1, -2, -0.5]], [[-3, -1]]),
    **pair("reference", [[-1.5, -2.25, -1]], [[-2, -1.5]]),
}


def score(name: str, columns: dict[str, Any], **params: Any) -> dict[str, list[float | None]]:
    found = row_scorer(name)(**params).compute(pa.record_batch(columns))
    return found.to_pydict()  # type: ignore[no-any-return]


def made(pairs: list[tuple[Any, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """Columns of pairs of completions, and their tokens by policy and side."""

    def side(of: int, model: int) -> list[Tokens]:
        return [None if row[of] is None else [t[model] for t in row[of]] for row in pairs]

    tokens = [side(of, model) for model in (0, 1) for of in (0, 1)]
    return {**pair("policy", *tokens[:2]), **pair("reference", *tokens[2:])}, tokens


def test_the_worked_example() -> None:
    found = score("implicit_reward_margin", WORKED)
    assert {name: round(column[0] or 0, 6) for name, column in found.items()} == {
        "implicit_reward_margin": 0.175,
        "implicit_reward_margin_chosen": 0.125,
        "implicit_reward_margin_rejected": -0.05,
        "implicit_reward_margin_dpo_loss": 0.609470,
    }
    means = score("implicit_reward_margin", WORKED, beta=1, normalise="per_token")
    assert means["implicit_reward_margin"] == pytest.approx([0.666667], abs=1e-6)
    sides = {"policy": "policy_rejected", "reference": "reference_rejected"}
    assert score("implicit_reward", WORKED, **sides)["implicit_reward"] == pytest.approx([-0.05])


@given(pairs=PAIRS, beta=st.floats(0.01, 2))
def test_margins_are_trl_s(pairs: list[tuple[Any, Any]], beta: float) -> None:
    """TRL: the difference of the two log-ratios; rewards are beta times each; loss -logsigmoid."""
    columns, tokens = made(pairs)
    found = score("implicit_reward_margin", columns, beta=beta)
    means = score("implicit_reward_margin", columns, beta=beta, normalise="per_token")
    for i in range(len(pairs)):
        if None in pairs[i]:
            lost = [found[f"implicit_reward_margin{part}"][i] for part in ("", "_dpo_loss")]
            assert [*lost, means["implicit_reward_margin"][i]] == [None] * 3
            for side, row in zip(("chosen", "rejected"), pairs[i], strict=True):
                assert (found[f"implicit_reward_margin_{side}"][i] is None) == (row is None)
            continue
        pi_chosen, pi_rejected, ref_chosen, ref_rejected = (math.fsum(t[i]) for t in tokens)
        logits = (pi_chosen - pi_rejected) - (ref_chosen - ref_rejected)
        margin = found["implicit_reward_margin"][i]
        assert margin == pytest.approx(beta * logits, abs=1e-9)
        chosen, rejected = beta * (pi_chosen - ref_chosen), beta * (pi_rejected - ref_rejected)
        assert found["implicit_reward_margin_chosen"][i] == pytest.approx(chosen, abs=1e-9)
        assert found["implicit_reward_margin_rejected"][i] == pytest.approx(rejected, abs=1e-9)
        loss = math.log1p(math.exp(-beta * logits)) if beta * logits > -700 else -beta * logits
        assert found["implicit_reward_margin_dpo_loss"][i] == pytest.approx(loss, abs=1e-9)
        a, b, c, d = (math.fsum(t[i]) / len(t[i]) for t in tokens)
        per_token = beta * ((a - c) - (b - d))
        assert means["implicit_reward_margin"][i] == pytest.approx(per_token, abs=1e-9)


@given(pairs=PAIRS, share=st.floats(0, 1))
def test_the_margin_of_mixed_policies_is_the_mix_of_their_margins(
    pairs: list[tuple[Any, Any]], share: float
) -> None:
    columns, _ = made(pairs)
    older = {name.replace("policy", "older"): c for name, c in made(pairs[::-1])[0].items()}
    columns |= {name: c for name, c in older.items() if name.startswith("older")}
    first, second = (
        score("implicit_reward_margin", columns, policy=policy)["implicit_reward_margin"]
        for policy in ("policy", "older")
    )
    mixed = score("implicit_reward_margin", columns, policy={"policy": share, "older": 1 - share})
    for a, b, found in zip(first, second, mixed["implicit_reward_margin"], strict=True):
        if a is None or b is None:
            assert found is None
        else:
            assert found == pytest.approx(share * a + (1 - share) * b, abs=1e-9)


@pytest.mark.parametrize("weights", [{}, {"a": 0.7}, {"a": 0.7, "b": 0.7}, {"a": 1.5, "b": -0.5}])
def test_weights_that_are_no_mixture_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be 0 or more and sum to 1"):
        row_scorer("implicit_reward_margin")(policy=weights)


@given(pairs=PAIRS, beta=st.floats(0.01, 2))
def test_scores_of_the_reference(pairs: list[tuple[Any, Any]], beta: float) -> None:
    columns, tokens = made(pairs)
    margin = score("reference_margin", columns)
    difficulty = score("preference_difficulty", columns, beta=beta)
    for i in range(len(pairs)):
        chosen, rejected = tokens[2][i], tokens[3][i]
        if chosen is None or rejected is None:
            both = (*margin.values(), *difficulty.values())
            assert {column[i] for column in both} == {None}
            continue
        s = math.fsum(chosen) - math.fsum(rejected)
        mean = math.fsum(chosen) / len(chosen) - math.fsum(rejected) / len(rejected)
        assert margin["reference_margin"][i] == pytest.approx(s, abs=1e-9)
        assert margin["reference_margin_per_token"][i] == pytest.approx(mean, abs=1e-9)
        assert difficulty["preference_difficulty"][i] == pytest.approx(-s, abs=1e-9)
        assert difficulty["preference_difficulty_per_token"][i] == pytest.approx(-mean, abs=1e-9)
        flip = -math.log(1 / (1 + math.exp(beta * s))) if beta * s < 30 else beta * s
        assert difficulty["preference_difficulty_flip_loss"][i] == pytest.approx(flip, rel=1e-6)


@given(pairs=PAIRS)
def test_a_pair_is_ranked_right_once_its_loss_is_at_most_that_of_the_flip(
    pairs: list[tuple[Any, Any]],
) -> None:
    """The theorem itself, with losses and rankings that are computed apart."""
    columns, _ = made(pairs)
    loss = score("implicit_reward_margin", columns)["implicit_reward_margin_dpo_loss"]
    flip = score("preference_difficulty", columns)["preference_difficulty_flip_loss"]
    right = score("ranking_accuracy", columns)["ranking_accuracy"]
    for one, other, ranked in zip(loss, flip, right, strict=True):
        if one is not None and other is not None and abs(one - other) > 1e-6:
            assert ranked == float(one < other)


def test_ranking_accuracy_counts_a_tie_as_right() -> None:
    columns = {**pair("policy", [[-2.0], [-1.0, -3.0], None], [[-2.0], [-2.5], [-1.0]])}
    found = score("ranking_accuracy", columns)
    assert found["ranking_accuracy"] == [1.0, 0.0, None]
    assert found["ranking_accuracy_per_token"] == [1.0, 1.0, None]


@pytest.mark.parametrize(
    ("alpha", "right"),
    [(0.0, 0.0), (0.5, 0.0), (0.7, 0.0), (0.74, 1.0), (1.0, 1.0)],
)
def test_idealised_ranking_turns_where_the_odds_outweigh_the_reference(
    alpha: float, right: float
) -> None:
    """Odds of the reference e**-10; (alpha / (1 - alpha))**10 exceeds e**10 from alpha = .7311."""
    columns = pair("reference", [[-12.0]], [[-2.0]])
    name = "idealised_ranking_accuracy"
    assert score(name, columns, alpha=alpha)[name] == [right]
    of_column = score(name, {**columns, "agreement": [alpha]}, alpha="agreement")
    assert of_column[name] == [right]


def test_a_share_of_raters_that_is_none_gives_no_score() -> None:
    columns = {**pair("reference", [[-1.0]] * 3, [[-2.0]] * 3), "agreement": [1.5, None, 0.5]}
    found = score("idealised_ranking_accuracy", columns, alpha="agreement")
    assert found["idealised_ranking_accuracy"] == [None, None, 1.0]


def hidden(chosen: Any, rejected: Any, n: Any, m: Any, kind: Any = None) -> dict[str, Any]:
    kind = kind or pa.list_(pa.float32(), 2)
    return {
        "policy_chosen_hidden_sum": pa.array(chosen, kind),
        "policy_rejected_hidden_sum": pa.array(rejected, kind),
        "policy_chosen_hidden_tokens": pa.array(n, pa.int32()),
        "policy_rejected_hidden_tokens": pa.array(m, pa.int32()),
    }


def test_ches_of_the_worked_example() -> None:
    """h+ = (1, 0), (0, 1), (2, 1); h- = (1, 0), (1, 1)."""
    for kind in (pa.list_(pa.float32(), 2), pa.list_(pa.float64()), pa.large_list(pa.float16())):
        found = score("ches", hidden([[3, 2]], [[2, 1]], [3], [2], kind))
        assert found["ches"] == [-5.0]
        assert found["ches_per_token"] == pytest.approx([-0.111111], abs=1e-6)


@given(
    sums=st.lists(
        st.tuples(*[st.lists(st.floats(-100, 100, width=32), min_size=5, max_size=5)] * 2),
        max_size=4,
    ),
    n=st.integers(1, 50),
    m=st.integers(1, 50),
)
def test_ches_is_that_of_plain_python(sums: list[Any], n: int, m: int) -> None:
    rows = len(sums)
    columns = hidden(
        [c for c, _ in sums],
        [r for _, r in sums],
        [n] * rows,
        [m] * rows,
        pa.list_(pa.float32(), 5),
    )
    found = score("ches", columns)
    for i, (chosen, rejected) in enumerate(sums):
        cross = math.fsum(a * b for a, b in zip(chosen, rejected, strict=True))
        own = math.fsum(a * a for a in chosen)
        assert found["ches"][i] == pytest.approx(cross - own, rel=1e-9, abs=1e-6)
        expected = cross / (n * m) - own / n**2
        assert found["ches_per_token"][i] == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_ches_does_not_depend_on_the_batch() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(2, 50, 300)).astype(np.float32)
    kind = pa.list_(pa.float32(), 300)
    columns = hidden(rows[0].tolist(), rows[1].tolist(), [3] * 50, [4] * 50, kind)
    whole = score("ches", columns)["ches"]
    batch = pa.record_batch(columns)
    alone = [row_scorer("ches")().compute(batch.slice(i, 1))["ches"][0].as_py() for i in range(50)]
    assert alone == whole


def test_ches_of_refused_rows() -> None:
    columns = hidden(
        [[3, 2], None, [1, 1], [1, 1]], [[2, 1], [1, 1], None, [1, 1]], [3] * 4, [2] * 4
    )
    columns["policy_rejected_hidden_tokens"] = pa.array([2, 2, 2, 0])
    assert score("ches", columns) == {
        "ches": [-5.0, None, None, 0.0],
        "ches_per_token": [pytest.approx(-1 / 9), None, None, None],
    }
    none = hidden([None, None], [[2, 1], [1, 1]], [3, 3], [2, 2])
    assert score("ches", none) == {"ches": [None, None], "ches_per_token": [None, None]}
    wide = hidden([[3, 2]], [[2, 1]], [3], [2])
    wide["policy_rejected_hidden_sum"] = pa.array([[1.0, 2.0, 3.0]])
    with pytest.raises(UserError, match="has 2 numbers a row, policy_rejected_hidden_sum 3"):
        score("ches", wide)


@pytest.mark.parametrize(
    ("h", "weight"),
    [(0, 1.0), (0.88, 1.206), (-1, 0.45), (-2, 0.16), (-4, 0.034), (9, 0.995), (-7, 1.0)],
)
def test_margin_adaptive_weights_as_published(h: float, weight: float) -> None:
    found = score("margin_adaptive_weight", {"score_chosen": [h], "score_rejected": [0.0]})
    [value] = found["margin_adaptive_weight"]
    digits = len(str(weight).partition(".")[2])
    assert round(value or 0, digits) == weight


def test_margin_adaptive_weight_is_highest_at_088_and_comes_back_to_1_at_tau() -> None:
    h = np.linspace(-10, 10, 20_001)
    columns = {"score_chosen": h, "score_rejected": np.zeros(len(h))}
    weight = np.array(score("margin_adaptive_weight", columns)["margin_adaptive_weight"])
    assert h[weight.argmax()] == pytest.approx(0.88, abs=0.01)
    assert weight.max() == pytest.approx(1.206, abs=5e-4)
    tau = math.log(0.999 / 0.001)
    assert (weight[h <= -tau] == 1).all()
    assert weight[h > -tau][0] == pytest.approx(1, abs=0.01)
    assert h[weight.argmin()] == pytest.approx(-4.3, abs=0.3)
    assert weight[h > 7] == pytest.approx(0.995, abs=0.005)


@given(
    h=st.floats(-1000, 1000),
    c_max=st.floats(1.01, 10),
    lam=st.floats(0.1, 5),
    tau=st.floats(0.1, 20),
)
def test_margin_adaptive_weight_is_the_formula(
    h: float, c_max: float, lam: float, tau: float
) -> None:
    params = {"c_max": c_max, "lam": lam, "tau": tau}
    found = score("margin_adaptive_weight", {"score_chosen": [h], "score_rejected": [0]}, **params)
    [value] = found["margin_adaptive_weight"]
    if h <= -tau:
        assert value == 1.0
        return
    c_min = 1 / c_max
    exponent = lam * (abs(h) - tau)
    rise = math.inf if exponent > 700 else (c_max - 1) / (1 - c_min) * math.exp(exponent)
    c = c_min + (c_max - c_min) / (1 + rise)
    slow = (1 + math.exp(-h)) / (1 + math.exp(-min(700, c * h) if h > 0 else -c * h))
    assert value == pytest.approx(slow, rel=1e-9)


def test_rewards_that_are_not_there_or_infinite() -> None:
    columns = {
        "score_chosen": [1.0, None, math.nan, math.inf, -math.inf, math.inf],
        "score_rejected": [None, 1.0, 0.0, 0.0, 0.0, math.inf],
    }
    weight = score("margin_adaptive_weight", columns)["margin_adaptive_weight"]
    assert weight == [None, None, None, 1.0, 1.0, None]
    beta = score("dynamic_reward_scaling", columns)["dynamic_reward_scaling"]
    assert beta == [None, None, None, pytest.approx(0.15), 0.1, None]


def test_dynamic_reward_scaling_lies_between_its_bounds_and_rises() -> None:
    delta = np.linspace(-5, 50, 500)
    columns = {"score_chosen": delta.astype(np.float32), "score_rejected": np.zeros(500)}
    beta = np.array(score("dynamic_reward_scaling", columns)["dynamic_reward_scaling"])
    assert (beta[delta <= 0] == 0.1).all()
    assert (np.diff(beta) >= 0).all()
    assert beta[-1] == pytest.approx(0.15)
    expected = 0.1 * (1 + 0.5 * (1 - math.exp(-0.5 * 2)))
    at_two = score("dynamic_reward_scaling", {"score_chosen": [2], "score_rejected": [0]})
    assert at_two["dynamic_reward_scaling"] == pytest.approx([expected])


def test_log_probs_without_end() -> None:
    """A policy that rules out a rejected answer: the margin is infinite. Both: there is none."""
    columns = {
        "policy_chosen_logp": [-1.0, -math.inf],
        "reference_chosen_logp": [-2.0, -2.0],
        "policy_rejected_logp": [-math.inf, -math.inf],
        "reference_rejected_logp": [-1.0, -1.0],
    }
    found = score("implicit_reward_margin", columns)
    assert found["implicit_reward_margin"] == [math.inf, None]
    assert found["implicit_reward_margin_dpo_loss"] == [0.0, None]


def test_one_row_no_row_and_a_sliced_batch() -> None:
    batch = pa.record_batch({**pair("policy", [[-1.0], None, [-3.0]], [[-2.0]] * 3)})
    scorer = row_scorer("ranking_accuracy")()
    assert scorer.compute(batch.slice(0, 0)).num_rows == 0
    assert scorer.compute(batch.slice(1, 2))["ranking_accuracy"].to_pylist() == [None, 0.0]


def test_float32_and_frames() -> None:
    """A polars frame, float32 columns."""
    frame = pl.DataFrame({"policy_logp": [-3.5, None], "reference_logp": [-4.75, -1.0]})
    narrow = frame.cast(pl.Float32).to_arrow().to_batches()[0]
    assert row_scorer("implicit_reward")().compute(narrow).to_pydict() == {
        "implicit_reward": [0.125, None]
    }
    assert signal("s", [None])["s_logp"].null_count == 1
