"""The consensus of detectors against scipy and plain Python, its votes, and rows that lack them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pytest
from scipy.stats import rankdata

from tamis.scoring.label_noise import fit_noise
from tamis.selectors.label_consensus import mean_suspicion, scaled, suspicion, vote
from tamis.storage.errors import UserError
from tests.scoring.test_label_noise import planted, symmetric
from tests.selectors.sample_tools import Ran, run, shuffled

ADD = ["label_consensus", "label_consensus_votes"]
DETECTORS = {"a": "low", "b": "high"}
Matrix = npt.NDArray[Any]


def corpus(rows: int = 300, seed: int = 0) -> tuple[pa.Table, Matrix]:
    """Two detectors and probabilities of rows, in order of id, and which labels are wrong."""
    probs, label, wrong = planted(rows, symmetric(3, 0.25), seed)
    random = np.random.default_rng(seed)
    table = pa.table(
        {
            "id": [f"r{i:05d}" for i in range(rows)],
            "text": ["text"] * rows,
            "a": np.round(random.normal(size=rows) - 2 * wrong, 1),  # with ties
            "b": random.normal(size=rows) + 2 * wrong,
            "probe_probs": pa.array(probs.tolist(), pa.list_(pa.float32())),
            "probe_label": pa.array(label, pa.int32()),
        }
    )
    return table, wrong


def scored(folder: Path, table: pa.Table, /, **params: Any) -> Ran:
    more = {name: params.pop(name) for name in ("workers", "rows_per_group") if name in params}
    stage = {"operator": "label_consensus", "detectors": DETECTORS, **params}
    return run(folder, table, stage, add=ADD, **more)


def changed(table: pa.Table, **columns: Any) -> pa.Table:
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, [column])
    return table


def midranks(value: Matrix, end: str) -> Matrix:
    """(rank - 1/2) / n by scipy."""
    found = np.full(len(value), np.nan)
    known = ~np.isnan(value)
    signed = value[known] if end == "high" else -value[known]
    found[known] = (rankdata(signed) - 0.5) / known.sum()
    return found


def test_ranks_are_scipys() -> None:
    random = np.random.default_rng(0)
    value = np.round(random.normal(size=500), 1)
    value[::7] = np.nan
    value[3:6] = np.inf, -np.inf, -np.inf
    for end in ("high", "low"):
        assert suspicion(value, end) == pytest.approx(midranks(value, end), nan_ok=True)


def test_mean_ranks_of_a_run(tmp_path: Path) -> None:
    table, _ = corpus()
    a, b = (table[name].to_numpy().copy() for name in "ab")
    a[:20], b[10:30] = np.nan, np.nan
    table = changed(table, a=pa.array(a, mask=np.isnan(a)), b=pa.array(b))  # null, and nan
    rows = scored(tmp_path, table, combine="rank", rate=0.2).rows
    parts = np.array([midranks(a, "low"), midranks(b, "high")])
    known = ~np.isnan(parts)
    expected = np.full(300, np.nan)
    some = known.any(axis=0)
    expected[some] = np.nansum(parts, axis=0)[some] / known.sum(axis=0)[some]
    found = rows["label_consensus"].fill_null(float("nan")).to_numpy()
    assert found == pytest.approx(expected, nan_ok=True)
    assert rows["label_consensus"].null_count() == 10
    assert rows["label_consensus_votes"].null_count() == 10


def test_the_model_gives_the_numbers_and_the_ranks_the_order(tmp_path: Path) -> None:
    table, wrong = corpus(600)
    rows = scored(tmp_path, table).rows
    probs = np.array(table["probe_probs"].to_pylist(), np.float32)
    p = fit_noise(probs, table["probe_label"].to_numpy().astype(np.int64)).wrong
    ranks = np.mean(
        [
            midranks(table["a"].to_numpy(), "low"),
            midranks(table["b"].to_numpy(), "high"),
            midranks(p, "high"),
        ],
        axis=0,
    )
    found = rows["label_consensus"].to_numpy()
    order = np.argsort(ranks, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert np.sort(found) == pytest.approx(np.sort(p), abs=0.02)  # but for ties
    assert found.mean() == pytest.approx(p.mean())
    assert found.mean() == pytest.approx(wrong.mean(), abs=0.08)
    assert found[wrong].mean() > found[~wrong].mean() + 0.3


def test_votes(tmp_path: Path) -> None:
    table, wrong = corpus(600)
    rows = scored(tmp_path, table, rate=0.1).rows
    votes = (
        rows.select("id", "label_consensus_votes")
        .explode("label_consensus_votes")
        .unnest("label_consensus_votes")
        .drop_nulls("rule")
    )
    counts = dict(votes.group_by("rule").len().iter_rows())
    assert counts["b"] == counts["noise_model"] == 60
    assert 60 <= counts["a"] < 75  # and what ties with the last
    a = table["a"].to_numpy()
    mine = votes.filter(rule="a")
    limit = np.sort(a)[59]
    assert set(mine["threshold"]) == {limit}
    assert set(mine["id"]) == {f"r{i:05d}" for i in np.flatnonzero(a <= limit)}
    assert (mine["value"] <= mine["threshold"]).all()
    other = votes.filter(rule="b")
    assert (other["value"] >= other["threshold"]).all()
    by_id = dict(zip(rows["id"], wrong, strict=True))
    assert np.mean([by_id[name] for name in other["id"]]) > 0.7


def test_as_many_votes_as_the_model_expects(tmp_path: Path) -> None:
    table, _ = corpus(600)
    rows = scored(tmp_path, table).rows
    lists = rows["label_consensus_votes"]
    voted = sum(any(v["rule"] == "b" for v in votes) for votes in lists.to_list())
    assert voted == int(np.ceil(rows["label_consensus"].mean() * 600))


@pytest.mark.parametrize("combine", ["rank", "model"])
def test_order_shards_and_workers_do_not_matter(tmp_path: Path, combine: str) -> None:
    table, _ = corpus(200)
    first = scored(tmp_path / "a", table, combine=combine).rows
    second = scored(tmp_path / "b", shuffled(table), combine=combine, rows_per_group=17, workers=1)
    columns = ["id", *ADD]
    assert first.select(columns).equals(second.rows.select(columns))


def test_a_detector_alone(tmp_path: Path) -> None:
    table, _ = corpus(50)
    rows = scored(tmp_path, table, detectors={"b": "high"}, combine="rank", rate=0.1).rows
    assert rows["label_consensus"].to_numpy() == pytest.approx(
        midranks(table["b"].to_numpy(), "high")
    )


@pytest.mark.parametrize("combine", ["rank", "model"])
def test_detectors_that_say_nothing(tmp_path: Path, combine: str) -> None:
    table, _ = corpus(60)
    constant = changed(table, a=pa.array([1.0] * 60), b=pa.nulls(60, pa.float64()))
    rows = scored(tmp_path, constant, combine=combine).rows
    rules = {v["rule"] for votes in rows["label_consensus_votes"].to_list() for v in votes}
    assert rules <= {"noise_model"}
    if combine == "rank":
        assert (rows["label_consensus"] == 0.5).all()
    nothing = changed(constant, a=pa.nulls(60, pa.float64()))
    empty = scored(tmp_path / "n", nothing, combine="rank", rate=0.5).rows
    assert empty["label_consensus"].null_count() == 60


def test_rows_without_probabilities(tmp_path: Path) -> None:
    table, _ = corpus(100)
    probs = [None if i < 30 else p for i, p in enumerate(table["probe_probs"].to_pylist())]
    table = changed(table, probe_probs=pa.array(probs, pa.list_(pa.float32())))
    rows = scored(tmp_path, table).rows
    assert rows["label_consensus"].null_count() == 0
    assert rows["label_consensus"].is_between(0, 1).all()


def test_one_row_and_none(tmp_path: Path) -> None:
    table, _ = corpus(1)
    found = scored(tmp_path / "one", table).rows
    assert found["label_consensus"].is_between(0, 1).all()
    assert found["label_consensus_votes"].to_list() == [[]]
    assert scored(tmp_path / "none", table[:0]).rows.is_empty()


def test_what_is_refused(tmp_path: Path) -> None:
    table, _ = corpus(20)
    nothing = changed(table, probe_probs=pa.nulls(20, pa.list_(pa.float32())))
    with pytest.raises(UserError, match="no row has probabilities in 'probe_probs'"):
        scored(tmp_path / "a", nothing)
    scored(tmp_path / "b", nothing, combine="rank", rate=0.1)
    wide = pa.array([[0.0, 7.0, 0.0]] * 20, pa.list_(pa.float32()))
    with pytest.raises(UserError, match="from 0 to 1, found 0 to 7"):
        scored(tmp_path / "c", changed(table, probe_probs=wide))
    with pytest.raises(UserError, match="class numbers from 0 to 2"):
        scored(tmp_path / "d", changed(table, probe_label=pa.array([5] * 20, pa.int32())))
    mixed = pa.array([[1.0]] * 10 + [[0.5, 0.5]] * 10, pa.list_(pa.float32()))
    label = pa.array([0] * 20, pa.int32())
    with pytest.raises(UserError, match="expected lists of one length"):
        scored(tmp_path / "e", changed(table, probe_probs=mixed, probe_label=label))


def test_scaled_keeps_the_distribution_and_shares_ties() -> None:
    order = np.array([0.2, 0.2, 0.9, np.nan])
    found = scaled(order, np.array([0.0, 0.5, 1.0, np.nan]))
    assert found == pytest.approx([0.25, 0.25, 1.0, np.nan], nan_ok=True)
    some = scaled(np.arange(5.0), np.array([0.1, np.nan, 0.9, np.nan, np.nan]))
    assert (np.diff(some) >= 0).all()
    assert some[[0, -1]].tolist() == [0.1, 0.9]


def test_means_skip_what_is_missing() -> None:
    parts = [np.array([0.1, np.nan, np.nan]), np.array([0.3, 0.5, np.nan])]
    assert mean_suspicion(parts) == pytest.approx([0.2, 0.5, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("value", "end", "share", "rows", "limit"),
    [
        ([1.0, 2.0, 3.0, 4.0], "high", 0.25, [3], 4.0),
        ([1.0, 2.0, 3.0, 4.0], "low", 0.5, [0, 1], 2.0),
        ([1.0, 2.0, 4.0, 4.0], "high", 0.25, [2, 3], 4.0),  # who ties votes too
        ([1.0, 4.0, 4.0], "high", 0.25, [], np.nan),  # the median ties with the top
        ([1.0, 1.0, 1.0, 4.0], "high", 0.9, [3], 4.0),  # nobody else is beyond the median
        ([1.0, 1.0, 1.0], "high", 0.5, [], np.nan),
        ([1.0, 2.0], "high", 0.0, [], np.nan),
        ([np.nan, np.nan], "low", 0.5, [], np.nan),
        ([], "low", 0.5, [], np.nan),
        ([-np.inf, 0.0, 1.0, np.inf], "low", 0.25, [0], -np.inf),
    ],
)
def test_who_votes(
    value: list[float], end: Any, share: float, rows: list[int], limit: float
) -> None:
    found, last = vote(np.array(value, np.float64), end, share)
    assert found.tolist() == rows
    assert last == pytest.approx(limit, nan_ok=True)


def test_the_ledger_keeps_the_votes(tmp_path: Path) -> None:
    table, wrong = corpus(600)
    stages = [{"operator": "label_consensus", "detectors": DETECTORS}, {"operator": "label_errors"}]
    ran = run(tmp_path, table, *stages)
    lost = ran.decisions.filter(action="drop")
    assert lost["reason"].unique().to_list() == ["label_errors"]
    gone = [int(name[1:]) for name in lost["id"]]
    assert len(gone) > 60
    assert wrong[gone].mean() > 0.75
    rules = lost.select(pl.col("rules").list.eval(pl.element().struct.field("rule")))["rules"]
    assert {"a", "b", "noise_model"} <= {rule for row in rules.to_list() for rule in row}


def test_a_detector_may_not_go_by_the_name_of_the_noise_model(tmp_path: Path) -> None:
    table, _ = corpus(20)
    with pytest.raises(UserError, match="'noise_model' is the name of the fitted noise model"):
        scored(tmp_path, table, detectors={"noise_model": "high"})
