"""What losses decide: rows that are kept for a high one, and weights."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tamis
from tamis.selectors.loss_rules import DynamicLossWeight, HighLoss, SmallLoss, loss_weights
from tamis.storage.catalog import query
from tests.selectors.test_budgets import corpus, run  # noqa: F401
from tests.selectors.test_sera import MARGINS, Columns, select

STRATEGIES = ("linupper", "mid", "upper", "extremes")
LOSSES = st.lists(st.floats(0, 50), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("linupper", [0.12, 0.43, 1.48, 1.48, 1.48]), ("mid", [0.18, 1.20, 2.24, 1.20, 0.18])],
)
def test_weights_of_five_equally_spaced_losses(strategy: Any, expected: list[float]) -> None:
    found = loss_weights(np.linspace(2.0, 4.0, 5), strategy, 0.4)
    assert [round(w, 2) for w in found.tolist()] == expected


@given(loss=LOSSES, strategy=st.sampled_from(STRATEGIES), lam=st.floats(0.05, 3))
def test_weights_are_those_of_plain_python(loss: list[float], strategy: Any, lam: float) -> None:
    low, high = min(loss), max(loss)
    if 0 < high - low < 1e-300:
        return  # the difference itself is not exact there
    h = [2 * (x - low) / (high - low) - 1 if high > low else 0.0 for x in loss]
    merit = {
        "linupper": lambda x: min(x + 1, 1),
        "mid": lambda x: 1 - x * x,
        "upper": lambda x: (x + 1) / 2,
        "extremes": abs,
    }[strategy]
    raw = [math.exp(merit(x) / lam) for x in h]
    expected = [r / math.fsum(raw) * len(loss) for r in raw]
    found = loss_weights(np.array(loss), strategy, lam)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found.mean() == pytest.approx(1)


def test_losses_as_far_apart_as_numbers_go() -> None:
    found = loss_weights(np.array([-1.7e308, 0.0, 1.7e308]), "upper", 1.0)
    assert found[0] < found[1] < found[2]
    assert np.isfinite(found).all()


def weights(losses: list[Any], seed: int = 0, **params: Any) -> dict[int, float | None]:
    ids = np.random.default_rng(seed).permutation(len(losses))
    columns = {"m": pa.array([losses[i] for i in ids], pa.float64())}
    stage = DynamicLossWeight(by="m", **params)
    parts = list(stage.compute(Columns(columns, ids.astype(np.uint64))))  # type: ignore[arg-type]
    found = [w for part in parts for w in part[0].to_pylist()]
    return dict(zip(ids.tolist(), found, strict=True))


@given(losses=st.lists(MARGINS, max_size=20), seed=st.integers(1, 5))
def test_weights_do_not_depend_on_the_order_of_rows(losses: list[Any], seed: int) -> None:
    found = weights(losses)
    assert weights(losses, seed) == found
    for i, loss in enumerate(losses):
        assert (found[i] is None) == (loss is None or not math.isfinite(loss))


def test_dynamic_weights_in_a_run_and_in_the_dataset(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    stages = [
        {"operator": "dynamic_loss_weight", "by": "score", "strategy": name, "name": name}
        for name in ("mid", "extremes")
    ]
    result = tamis.run(
        {
            "corpus": {"path": str(corpus), "roles": {"id": "id"}, "shard_bytes": 1},
            "stages": stages,
            "output": {"path": str(tmp_path / "out"), "add": ["mid", "extremes"]},
        }
    )
    _, rows = query(result.workspace, "SELECT mid, extremes FROM scores")
    mid = [m for m, _ in rows if m is not None]
    assert len(rows) == 400
    assert len(mid) == 400 - 8  # nan, infinite, null
    assert math.fsum(mid) / len(mid) == pytest.approx(1)
    written = pq.read_table(sorted((tmp_path / "out").glob("*.parquet")))
    assert written["mid"].null_count == 8


def test_high_loss_keeps_what_lies_above_the_mean(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    kept, result = run(corpus, tmp_path, {"operator": "high_loss", "by": "score"})
    scores = pq.read_table(corpus).to_pandas()["score"].replace([np.inf, -np.inf], np.nan).dropna()
    mean = math.fsum(scores) / len(scores)
    assert sorted(kept["score"]) == sorted(scores[scores >= mean])
    assert result.manifest["rows"]["dropped"]["high_loss:no_score"] == 8
    report = result.manifest["stages"][0]["report"]
    assert report["threshold"] == pytest.approx(mean)
    moved = tamis.what_if(result, {"high_loss.quantile": 0.9})
    assert moved.after["rows"] == (scores >= np.quantile(scores, 0.9, method="inverted_cdf")).sum()


@given(
    rows=st.lists(st.tuples(MARGINS, st.sampled_from(["a", "b", None])), max_size=20),
    quantile=st.one_of(st.none(), st.floats(0, 1)),
    per=st.sampled_from([None, "g"]),
)
def test_high_loss_is_plain_python(rows: list[Any], quantile: float | None, per: Any) -> None:
    losses, groups = [m for m, _ in rows], [g for _, g in rows]
    kept, drops, _ = select(HighLoss(by="m", per=per, quantile=quantile), losses, groups)
    for group in {*groups} if per else {None}:
        mine = [i for i in range(len(rows)) if per is None or groups[i] == group]
        finite = [i for i in mine if losses[i] is not None and math.isfinite(losses[i])]
        values = sorted(losses[i] for i in finite)
        if quantile is None:
            limit = math.fsum(values) / max(1, len(values))
        else:
            place = max(0, math.ceil(quantile * len(values) - 1e-9) - 1)
            limit = values[place] if values else 0.0
        near = 0.0 if quantile is not None else 1e-9
        for i in finite:
            if abs(losses[i] - limit) > near:
                assert (i in kept) == (losses[i] > limit)
        if finite:  # whatever rounding does, the highest stays
            assert max(finite, key=lambda i: losses[i]) in kept
        assert not set(mine) - set(finite) & set(kept)
    reasons = {drops.reasons[r] for r in drops.reason}
    assert reasons <= {"", "no_score"}


def test_equal_losses_all_stay() -> None:
    """Their mean, rounded, may lie above them: 0.1 + 0.1 + 0.1 is more than 0.3."""
    kept, _, _ = select(HighLoss(by="m"), [0.1] * 3, [None] * 3)
    assert kept == [0, 1, 2]


@given(
    rows=st.lists(st.tuples(MARGINS, st.sampled_from(["a", "b", None])), max_size=20),
    budget=st.one_of(st.integers(0, 9), st.floats(0, 1)),
    per=st.sampled_from([None, "g"]),
)
def test_small_loss_is_plain_python(rows: list[Any], budget: Any, per: Any) -> None:
    losses, groups = [m for m, _ in rows], [g for _, g in rows]
    stage = SmallLoss(
        by="m", per=per, **{"rows" if isinstance(budget, int) else "fraction": budget}
    )
    kept, drops, ids = select(stage, losses, groups)
    expected: set[int] = set()
    for group in {*groups} if per else {None}:
        mine = [i for i in range(len(rows)) if per is None or groups[i] == group]
        scored = [i for i in mine if losses[i] is not None and not math.isnan(losses[i])]
        many = budget if isinstance(budget, int) else math.floor(budget * len(mine) + 1e-9)
        expected |= set(sorted(scored, key=lambda i: (losses[i], ids[i]))[:many])
    assert set(kept) == expected
    missing = [i for i, m in enumerate(losses) if m is None or math.isnan(m)]
    no_score = [r for r, why in zip(drops.rows, drops.reason, strict=True) if why == 1]
    assert no_score == missing


def test_small_loss_is_the_opposite_of_high_loss(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    kept, result = run(corpus, tmp_path, {"operator": "small_loss", "by": "score", "fraction": 0.5})
    scores = pq.read_table(corpus).to_pandas()["score"].dropna().sort_values()
    assert sorted(kept["score"]) == sorted(scores[:200])
    assert result.manifest["rows"]["dropped"]["small_loss:no_score"] == 6
    with pytest.raises(tamis.UserError, match="either rows or fraction"):
        run(corpus, tmp_path, {"operator": "small_loss", "by": "score"})
