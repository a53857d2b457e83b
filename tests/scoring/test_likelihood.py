"""Scores of one model against plain Python on the tokens themselves."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.recipe import row_scorer
from tamis.storage.errors import UserError
from tests.scoring.signal_tools import MIN_K, QUANTILES, Tokens, least, quantile, signal

#: What a model gives: down to where float32 would be rounded to, and certainty.
LOG_PROBS = st.one_of(st.floats(-60, 0, allow_subnormal=False), st.just(0.0))
ROWS = st.lists(st.one_of(st.none(), st.lists(LOG_PROBS, min_size=1, max_size=40)), max_size=6)
LEVELS: dict[str, Any] = {"levels": MIN_K}


def scores(name: str, columns: dict[str, Any], **params: Any) -> list[float | None]:
    """The first score of every row."""
    found = row_scorer(name)(**params).compute(pa.record_batch(columns))
    return found.column(0).to_pylist()  # type: ignore[no-any-return]


def loss(tokens: list[float]) -> float:
    return -math.fsum(tokens) / len(tokens)


SLOW: list[tuple[str, dict[str, Any], Callable[[list[float]], float]]] = [
    ("loss", {}, loss),
    ("perplexity", {}, lambda t: math.exp(loss(t))),
    ("bits_per_byte", {}, lambda t: -math.fsum(t) / math.log(2) / (3 * len(t))),
    ("chow_sum", {}, lambda t: -math.fsum(t)),
    ("chow_quantile", {"quantile": 0.5, "levels": QUANTILES}, lambda t: quantile(t, 0.5)),
    ("chow_quantile", {"quantile": 1.0, "levels": QUANTILES}, lambda t: -min(t)),
    ("top1_accuracy", {}, lambda t: sum(x > math.log(0.5) for x in t) / len(t)),
    ("mean_entropy", {}, lambda t: math.fsum(-2 * x for x in t) / len(t)),
    *(
        ("min_k_prob", {"k": k, **LEVELS}, lambda t, k=k: math.fsum(x := least(t, k)) / len(x))
        for k in MIN_K
    ),
]


@pytest.mark.parametrize(("name", "params", "slow"), SLOW)
@given(rows=ROWS)
def test_scores_are_those_of_plain_python(
    name: str, params: dict[str, Any], slow: Callable[[list[float]], float], rows: list[Tokens]
) -> None:
    found = scores(name, signal("s", rows), signal="s", **params)
    assert len(found) == len(rows)
    for value, tokens in zip(found, rows, strict=True):
        if tokens is None:
            assert value is None
        else:
            assert value == pytest.approx(slow(tokens), rel=1e-12, abs=1e-12)


@given(rows=ROWS, other=st.randoms(use_true_random=False))
def test_scores_of_two_signals(rows: list[Tokens], other: Any) -> None:
    second = [None if r is None else [x - 0.01 - other.random() for x in r] for r in rows]
    columns = {**signal("conditioned", rows), **signal("alone", second)}
    columns |= {**signal("logprobs", rows), **signal("reference", second)}
    found = {name: scores(name, columns) for name in ("excess_loss", "ifd_loss", "ifd_perplexity")}
    for i, (mine, theirs) in enumerate(zip(rows, second, strict=True)):
        if mine is None or theirs is None:
            assert [column[i] for column in found.values()] == [None] * 3
            continue
        a, b = loss(mine), loss(theirs)
        assert found["excess_loss"][i] == pytest.approx(a - b, abs=1e-9)
        assert found["ifd_loss"][i] == pytest.approx(a / b, rel=1e-9)
        assert found["ifd_perplexity"][i] == pytest.approx(math.exp(a) / math.exp(b), rel=1e-9)


def test_the_two_definitions_of_ifd_order_rows_differently() -> None:
    """By the ratio of losses the first row is lower, by that of perplexities the second."""
    rows = {**signal("conditioned", [[-0.9], [-4.0]]), **signal("alone", [[-1.0], [-4.4]])}
    by_loss, by_perplexity = scores("ifd_loss", rows), scores("ifd_perplexity", rows)
    assert by_loss == pytest.approx([0.9, 4 / 4.4])
    assert by_perplexity == pytest.approx([math.exp(-0.1), math.exp(-0.4)])


def test_excess_loss_of_bytes_compares_two_tokenizers() -> None:
    columns = {
        "logprobs_logp": [-6.0],
        "logprobs_tokens": [2],
        "logprobs_bytes": [12],
        "reference_logp": [-3.0],
        "reference_tokens": [1],
        "reference_bytes": [12],
    }
    with pytest.raises(UserError, match="'logprobs' and 'reference' count different tokens"):
        scores("excess_loss", columns)
    assert scores("excess_loss", columns, unit="byte") == [0.25]


@pytest.mark.parametrize("text", ["", "x", "漢字とかな" * 9, "e\u0301👩‍👩‍👧 \x00\n", "ab" * 50_000])
def test_zlib_ratio_is_the_loss_over_the_bytes_that_zlib_makes(text: str) -> None:
    rows: list[Tokens] = [[-1.0, -3.0], None]
    columns = {"text": pa.array(["before", text, text])[1:], **signal("logprobs", rows)}
    size = len(zlib.compress(text.encode()))
    assert scores("zlib_ratio", columns) == [2.0 / size, None]


def test_a_row_without_tokens_has_no_score() -> None:
    """A sum of nothing is 0, and would be the best of all losses."""
    columns: dict[str, Any] = {
        "s_logp": [0.0],
        "s_tokens": pa.array([0], pa.int32()),
        "s_bytes": [0],
        "s_top1": [0],
        "s_entropy": [0.0],
        "s_min_k": [[0.0]],
        "t_logp": [-1.0],
        "t_tokens": [1],
        "text": ["a"],
    }
    for name in ("loss", "perplexity", "bits_per_byte", "top1_accuracy", "mean_entropy"):
        assert scores(name, columns, signal="s") == [None], name
    assert scores("min_k_prob", columns, signal="s") == [None]
    assert scores("zlib_ratio", columns, signal="s") == [None]
    assert scores("excess_loss", columns, signal="s", reference="s") == [None]
    for name in ("ifd_loss", "ifd_perplexity"):
        assert scores(name, columns, conditioned="s", alone="t") == [None], name
        assert scores(name, columns, conditioned="t", alone="s") == [None], name


def test_an_answer_that_is_certain_alone_has_no_ratio() -> None:
    columns = {**signal("conditioned", [[-1.0]]), **signal("alone", [[0.0]])}
    assert scores("ifd_loss", columns) == [None]
    assert scores("ifd_perplexity", columns) == pytest.approx([math.e])


def test_nan_is_null_and_infinity_stays() -> None:
    columns = {"s_logp": [math.nan, -math.inf, -1500.0], "s_tokens": [2, 2, 2]}
    assert scores("loss", columns, signal="s") == [None, math.inf, 750.0]
    assert scores("perplexity", columns, signal="s") == [None, math.inf, math.inf]
    infinite = {**columns, "t_logp": [-2.0, -math.inf, -2.0], "t_tokens": [2, 2, 2]}
    found = scores("excess_loss", infinite, signal="s", reference="t")
    assert found == [None, None, 749.0]


def test_a_certain_text_has_a_loss_of_zero_without_a_sign() -> None:
    assert str(scores("loss", signal("s", [[0.0]]), signal="s")) == "[0.0]"
    assert str(scores("chow_sum", signal("s", [[0.0]]), signal="s")) == "[0.0]"


def test_float32_columns_are_read_as_they_are() -> None:
    wide, narrow = (signal("s", [[-0.1, -2.7]], kind) for kind in (pa.float64(), pa.float32()))
    for name, params, _ in SLOW:
        a, b = (scores(name, columns, signal="s", **params) for columns in (wide, narrow))
        assert a == pytest.approx(b, rel=1e-6)
        assert a != b or name == "top1_accuracy"


@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
def test_lists_may_be_of_any_kind_and_sliced(kind: str) -> None:
    made = {
        "fixed": pa.list_(pa.float64(), 2),
        "list": pa.list_(pa.float64()),
        "large": pa.large_list(pa.float32()),
    }[kind]
    lists = pa.array([[-9.0, -9.0], [-1.0, -4.0], None, [-2.0, -6.0]], made)
    columns = {"s_min_k": lists[1:], "s_tokens": [2, 2, 2]}
    found = scores("min_k_prob", columns, signal="s", k=1.0, levels=(0.5, 1.0))
    assert found == [-2.0, None, -3.0]


def test_nothing_but_nulls_of_no_type() -> None:
    columns = {name: pa.nulls(2) for name in signal("s", [])}
    for name, params, _ in SLOW:
        assert scores(name, columns, signal="s", **params) == [None, None]


def test_levels_that_are_not_the_signals_are_told() -> None:
    columns = signal("s", [[-1.0]])
    with pytest.raises(UserError, match=r"s_min_k: expected 1 numbers a row \(0.2\), found 3"):
        scores("min_k_prob", columns, signal="s")
    with pytest.raises(UserError, match="set `levels` to the `quantiles` of the stage"):
        scores("chow_quantile", columns, signal="s")


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("min_k_prob", {"k": 0.3}),
        ("chow_quantile", {"quantile": 0.55}),
        ("min_k_prob", {"k": 0.0, "levels": (0.0,)}),
    ],
)
def test_a_level_that_the_signal_does_not_leave_is_refused(
    name: str, params: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"none of the levels|greater than 0"):
        row_scorer(name)(**params)


def test_columns_of_other_types_are_told() -> None:
    with pytest.raises(UserError, match="s_logp: expected numbers, found string"):
        scores("loss", {"s_logp": ["-1"], "s_tokens": [1]}, signal="s")
    with pytest.raises(UserError, match="s_min_k: expected lists of numbers, found double"):
        scores("min_k_prob", {"s_min_k": [1.0], "s_tokens": [1]}, signal="s")
    ragged = {"s_min_k": [[1.0], [1.0, 2.0]], "s_tokens": [1, 1]}
    with pytest.raises(UserError, match="lists of one length, found 1 and 2"):
        scores("min_k_prob", ragged, signal="s")


def test_scores_go_by_the_name_of_their_stage() -> None:
    """A recipe may ask for the same score under two models."""
    first = row_scorer("loss")(name="small", signal="small_model")
    assert first.fields().names == ["small"]
    assert first.reads() == {"small_model_logp", "small_model_tokens"}  # type: ignore[attr-defined]
    second = row_scorer("loss")(name="large", signal="small_model")
    assert first.key_parts() != second.key_parts()
    frame = pl.DataFrame({"small_model_logp": [-2.0], "small_model_tokens": [4]}).to_arrow()
    assert first.compute(frame.to_batches()[0]).to_pylist() == [{"small": 0.5}]
