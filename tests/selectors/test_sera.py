"""Selection by margin against a slow implementation, and in runs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tamis
from tamis.selectors.sera import ORDERS, Sera
from tests.selectors.test_budgets import by_id, corpus, run  # noqa: F401

MARGINS = st.one_of(
    st.none(),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, math.nan, math.inf, -math.inf]),
    st.floats(-5, 5),
)


@dataclass(frozen=True)
class Columns:
    """A table of nothing but ids and columns in memory."""

    columns: dict[str, Any]
    ids: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def id_hi(self) -> np.ndarray[Any, Any]:
        return self.ids >> np.uint64(1)

    @property
    def id_lo(self) -> np.ndarray[Any, Any]:
        return self.ids

    @property
    def copy(self) -> np.ndarray[Any, Any]:
        return np.zeros(len(self.ids), np.uint32)

    def column(self, name: str) -> pa.ChunkedArray:
        return pa.chunked_array([self.columns[name]])


def select(stage: Any, margins: list[float | None], groups: list[Any], seed: int = 0) -> Any:
    """Which rows stay, and the drops; ids in an order of their own."""
    ids = np.random.default_rng(seed).permutation(len(margins)).astype(np.uint64)
    columns = {"m": pa.array(margins, pa.float64()), "g": pa.array(groups, pa.string())}
    drops = stage.select(Columns(columns, ids))
    return sorted(set(range(len(margins))) - set(drops.rows.tolist())), drops, ids


def lowest_place(values: list[float], q: float) -> int:
    return max(0, math.ceil(q * len(values) - 1e-9) - 1)


def slow(stage: Sera, margins: list[float | None], groups: list[Any], ids: Any) -> list[int]:
    kept: list[int] = []
    for group in {*groups} if stage.per else {None}:
        rows = [i for i in range(len(margins)) if stage.per is None or groups[i] == group]
        finite = [i for i in rows if margins[i] is not None and math.isfinite(margins[i] or 0)]
        value = {i: float(margins[i] or 0) for i in finite}
        ordered = sorted(value.values())
        inside = [
            i
            for i in finite
            if ordered[lowest_place(ordered, stage.low_quantile)] <= value[i]
            and value[i] <= ordered[lowest_place(ordered, stage.high_quantile)]
            and (stage.low is None or value[i] >= stage.low)
            and (stage.high is None or value[i] <= stage.high)
        ]
        share = stage.quotas.get(group, stage.fraction)
        budget = min(len(inside), math.floor(len(rows) * share + 1e-9))
        inside.sort(key=lambda i: (value[i], ids[i]))
        if stage.order == "middle":  # take from both ends in turn, the end further from the middle
            ranked = {i: abs(2 * place - (len(inside) - 1)) for place, i in enumerate(inside)}
            inside.sort(key=lambda i: (ranked[i], ids[i]))
        elif stage.order == "highest":
            inside.sort(key=lambda i: (-value[i], ids[i]))
        elif stage.order == "magnitude":
            inside.sort(key=lambda i: (-abs(value[i]), ids[i]))
        kept += inside[:budget]
    return sorted(kept)


@given(
    rows=st.lists(st.tuples(MARGINS, st.sampled_from(["a", "b", None])), max_size=25),
    order=st.sampled_from(ORDERS),
    fraction=st.floats(0, 1),
    quotas=st.dictionaries(st.sampled_from(["a", "z"]), st.floats(0, 1)),
    per=st.sampled_from([None, "g"]),
    band=st.sampled_from([{}, {"low": -1.0}, {"high": 1.0}, {"low": 0.0, "high": 2.0}]),
    quantiles=st.sampled_from([{}, {"low_quantile": 0.2}, {"high_quantile": 0.7}]),
    seed=st.integers(0, 3),
)
def test_the_rows_kept_are_those_of_plain_python(
    rows: list[Any],
    order: Any,
    fraction: float,
    quotas: dict[str, float],
    per: str | None,
    band: dict[str, float],
    quantiles: dict[str, float],
    seed: int,
) -> None:
    stage = Sera(
        by="m",
        per=per,
        order=order,
        fraction=fraction,
        quotas=quotas if per else {},
        **band,
        **quantiles,
    )
    margins, groups = [m for m, _ in rows], [g for _, g in rows]
    kept, drops, ids = select(stage, margins, groups, seed)
    assert kept == slow(stage, margins, groups, ids)
    # Every drop has a reason that its value and threshold bear out.
    for row, reason, value, threshold in zip(
        drops.rows, drops.reason, drops.value, drops.threshold, strict=True
    ):
        name, margin = drops.reasons[reason], margins[row]
        if name == "no_score":
            assert margin is None or not math.isfinite(margin)
            assert math.isnan(threshold)
        elif name == "outside_band":
            assert value == margin
            assert value != threshold
        else:
            assert value == (abs(margin) if order == "magnitude" else margin)
            if order in ("highest", "magnitude"):
                assert math.isnan(threshold) or value <= threshold
            if order == "lowest":
                assert math.isnan(threshold) or value >= threshold
    told = drops.report["directions"]
    assert set(told) == set(ORDERS)
    assert told[order]["rows"] == told[order]["shared"] == len(kept)
    if kept:
        values = [margins[i] for i in kept]
        assert told[order]["mean"] == pytest.approx(math.fsum(values) / len(values))
        assert (told[order]["low"], told[order]["high"]) == (min(values), max(values))


@given(
    order=st.sampled_from(ORDERS), margins=st.lists(MARGINS, max_size=20), seed=st.integers(0, 9)
)
def test_the_order_of_rows_decides_nothing(order: Any, margins: list[Any], seed: int) -> None:
    stage = Sera(by="m", order=order, fraction=0.4)
    ids = np.arange(len(margins)).astype(np.uint64)
    shuffled = np.random.default_rng(seed).permutation(len(margins))

    def found(at: Any) -> Any:
        columns = {"m": pa.array([margins[i] for i in at], pa.float64())}
        drops = stage.select(Columns(columns, ids[at]))  # type: ignore[arg-type]
        fates = zip(ids[at][drops.rows], drops.value, drops.threshold, drops.reason, strict=True)
        return sorted(map(repr, fates)), drops.report

    assert found(shuffled) == found(np.arange(len(margins)))


@given(order=st.sampled_from(ORDERS), margins=st.lists(MARGINS, max_size=20))
def test_a_larger_share_holds_a_smaller_one(order: Any, margins: list[Any]) -> None:
    groups = ["a"] * len(margins)
    kept = [
        set(select(Sera(by="m", order=order, fraction=share), margins, groups)[0])
        for share in (0.2, 0.5, 0.9)
    ]
    assert kept[0] <= kept[1] <= kept[2]


def test_the_four_directions() -> None:
    margins: list[float | None] = [-3, -1, 0.5, 1, 2]
    kept = {
        order: select(Sera(by="m", order=order, fraction=0.4), margins, [None] * 5)[0]
        for order in ORDERS
    }
    assert kept["highest"] == [3, 4]
    assert kept["lowest"] == [0, 1]
    assert set(kept["middle"]) > {2}
    assert len(kept["middle"]) == 2
    assert kept["magnitude"] == [0, 4]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"quotas": {"a": 0.5}}, "name its column"),
        ({"quotas": {"a": 1.5}, "per": "g"}, "less than or equal to 1"),
        ({"low": 1, "high": 0}, "low lies above high"),
        ({"low_quantile": 0.7, "high_quantile": 0.3}, "low_quantile lies above"),
        ({"fraction": 1.1}, "less than or equal to 1"),
        ({"order": "best"}, "'highest', 'lowest', 'middle' or 'magnitude'"),
    ],
)
def test_what_does_not_fit_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sera(by="m", **params)


def test_in_a_run_with_quotas(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    stage = {
        "operator": "sera",
        "by": "score",
        "per": "group",
        "fraction": 0.5,
        "quotas": {"g1": 0.1, "gone": 0.2},
    }
    kept, result = run(corpus, tmp_path, stage)
    whole = pq.read_table(corpus).to_pandas()
    for name, rows in whole.groupby("group", dropna=False):
        mine = kept[kept["group"].isna()] if pd.isna(name) else kept[kept["group"] == name]
        share = 0.1 if name == "g1" else 0.5
        finite = rows["score"].replace([np.inf, -np.inf], np.nan).dropna()
        expected = finite.sort_values(ascending=False).iloc[: int(len(rows) * share)]
        assert sorted(mine["score"]) == sorted(expected)
    dropped = result.manifest["rows"]["dropped"]
    assert dropped["sera:no_score"] == 8  # five nan, two infinite, one null
    report = result.manifest["stages"][0]["report"]
    assert report["quotas_without_rows"] == ["gone"]
    assert [entry["group"] for entry in report["groups"]] == ["g0", "g1", "g2", None]
    assert sum(entry["kept"] for entry in report["groups"]) == len(kept)
    one = report["groups"][1]
    mine = kept[kept["group"] == "g1"]["score"]
    assert (one["low"], one["high"], one["kept"]) == (mine.min(), mine.max(), len(mine))
    assert report["directions"]["highest"]["mean"] > report["directions"]["middle"]["mean"]
    assert report["directions"]["middle"]["mean"] > report["directions"]["lowest"]["mean"]


def test_a_band_in_a_run(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    stage = {"operator": "sera", "by": "score", "fraction": 1, "low": -0.5, "high_quantile": 0.8}
    kept, result = run(corpus, tmp_path, stage)
    scores = pq.read_table(corpus).to_pandas()["score"].replace([np.inf, -np.inf], np.nan).dropna()
    high = np.quantile(scores, 0.8, method="inverted_cdf")
    assert sorted(kept["score"]) == sorted(scores[(scores >= -0.5) & (scores <= high)])
    outside = by_id(result).filter(pl.col("reason") == "sera:outside_band")
    assert set(outside["threshold"]) == {-0.5, high}


def test_what_if_moves_share_and_direction(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    _, result = run(corpus, tmp_path, {"operator": "sera", "by": "score"})
    assert result.manifest["rows"]["kept"] == 280
    assert tamis.what_if(result, {"sera.fraction": 0.3}).after["rows"] == 120
    turned = tamis.what_if(result, {"sera.order": "lowest"})
    assert turned.after["rows"] == 280
    assert turned.lost["rows"] == turned.gained["rows"] == 112
    assert tamis.what_if(result, move="sera.fraction", target_rows=100).after["rows"] == 100


def test_neither_sharding_nor_order_nor_workers_decide(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    """The same decisions and the same weights, by row_id, to the last bit."""
    stages = [
        {"operator": "dynamic_loss_weight", "by": "score"},
        {"operator": "high_loss", "by": "score", "per": "group", "quantile": 0.1},
        {"operator": "sera", "by": "score", "order": "middle", "fraction": 0.5, "per": "group"},
    ]
    whole = pq.read_table(corpus)
    order = np.random.default_rng(1).permutation(len(whole))
    pq.write_table(whole.take(order), tmp_path / "other.parquet", row_group_size=33)
    found = []
    for source, workers in ((corpus, 1), (tmp_path / "other.parquet", 4)):
        home = tmp_path / f"w{workers}"
        result = tamis.run(
            {
                "corpus": {"path": str(source), "roles": {"id": "id"}, "shard_bytes": 1},
                "stages": stages,
                "workspace": str(home),
                "workers": workers,
            }
        )
        columns = "d.row_id, action, reason, value, threshold, dynamic_loss_weight"
        sql = f"SELECT {columns} FROM decisions d JOIN scores USING (shard, row) ORDER BY 1"
        found.append((tamis.sql(result, sql).rows(), result.manifest["stages"]))
    assert list(map(repr, found[0][0])) == list(map(repr, found[1][0]))
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("rows", [0, 1])
def test_tiny_corpora(rows: int, tmp_path: Path) -> None:
    table = pa.table(
        {"id": pa.array(["a"] * rows, pa.string()), "score": pa.array([0.5] * rows, pa.float32())}
    )
    pq.write_table(table, tmp_path / "in.parquet")
    _, result = run(tmp_path / "in.parquet", tmp_path, {"operator": "sera", "by": "score"})
    assert result.manifest["rows"]["kept"] == 0  # 70 % of one row is no row, as with `top`
