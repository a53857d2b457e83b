"""AUM's threshold and late stopping's pruning against plain Python, and in runs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.scoring.column_scorer import vectors
from tamis.selectors.dynamics_rules import AumThreshold, LateStoppingPrune
from tamis.storage.errors import UserError
from tests.selectors.sample_tools import Ran, run, shuffled
from tests.selectors.test_sera import Columns

AUM = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-5, 5))
#: AUM in a run, and whether the row was an ordinary one.
RUN = st.tuples(st.one_of(st.none(), AUM), st.one_of(st.none(), st.booleans()))


class Listed(Columns):
    """With columns of lists."""

    def batches(self, names: list[str]) -> Any:
        half = len(self) // 2
        batch = pa.record_batch({name: self.columns[name] for name in names})
        return [batch.slice(0, half), batch.slice(half)]


def listed(rows: list[list[tuple[Any, Any]]], ids: Any) -> Listed:
    columns = {
        "aum_by_run": pa.array([[a for a, _ in row] for row in rows], pa.list_(pa.float64())),
        "probe_ordinary": pa.array([[o for _, o in row] for row in rows], pa.list_(pa.bool_())),
    }
    return Listed(columns, ids)


def exceeded(value: float, others: list[float], share: float) -> bool:
    """The authors' rule: more than a share of the threshold samples have a higher AUM."""
    return sum(other > value for other in others) > share * len(others) + 1e-9


@given(
    rows=st.lists(st.lists(RUN, min_size=2, max_size=2), min_size=1, max_size=30),
    quantile=st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
)
def test_rows_below_every_runs_cut_off_are_dropped(
    rows: list[list[tuple[Any, Any]]], quantile: float
) -> None:
    thresholds = [
        [row[r][0] for row in rows if row[r][1] is False and row[r][0] is not None]
        for r in range(2)
    ]
    table: Any = listed(rows, np.arange(len(rows), dtype=np.uint64))
    stage = AumThreshold(quantile=quantile)
    if not all(thresholds):
        with pytest.raises(UserError, match="no threshold samples"):
            stage.select(table)
        return
    drops = stage.select(table)
    lost = []
    for i, row in enumerate(rows):
        mine = [(a, t) for (a, o), t in zip(row, thresholds, strict=True) if o]
        if mine and all(a is not None and exceeded(a, t, 1 - quantile) for a, t in mine):
            lost.append(i)
    assert drops.rows.tolist() == lost
    assert (drops.value < drops.threshold).all()
    assert drops.report["threshold_rows"] == [len(t) for t in thresholds]
    cuts = [sorted(t)[max(0, math.ceil(quantile * len(t) - 1e-9) - 1)] for t in thresholds]
    assert drops.report["cut_offs"] == cuts
    unscored = [
        row for row in rows if not any(o for _, o in row) or any(o and a is None for a, o in row)
    ]
    assert drops.report["no_score"] == len(unscored)


def trained(rows: int = 600, threshold: int = 50) -> pa.Table:
    """Two runs of three epochs with disjoint threshold samples; every fifth row is mislabelled."""
    random = np.random.default_rng(1)
    wrong = np.arange(rows) % 5 == 0
    order = random.permutation(rows)
    ordinary = np.ones((rows, 2), bool)
    ordinary[order[:threshold], 0] = False
    ordinary[order[threshold : 2 * threshold], 1] = False
    level = np.where(wrong, -4.0, 3.0)[:, None].repeat(2, axis=1)
    level[~ordinary] = -3.0
    margin = level.repeat(3, axis=1) + random.normal(0, 0.3, (rows, 6))
    correct = np.where(wrong[:, None], 0, random.random((rows, 6)) < 0.9)

    def fixed(values: Any, kind: pa.DataType) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), values.shape[1])

    return pa.table(
        {
            "id": [f"r{i:03d}" for i in range(rows)],
            "text": ["text"] * rows,
            "d_margin": fixed(margin, pa.float32()),
            "d_updates": fixed(np.ones((rows, 6)), pa.int32()),
            "d_correct": fixed(correct, pa.int8()),
            "d_loss": fixed(np.abs(margin), pa.float32()),
            "d_ordinary": fixed(ordinary, pa.bool_()),
        }
    )


def aum_run(folder: Path, table: pa.Table, **more: Any) -> Ran:
    stages = [{"operator": name, "dynamics": "d"} for name in ("aum", "aum_threshold")]
    return run(folder, table, *stages, add=["aum"], **more)


def test_aum_threshold_in_a_run(tmp_path: Path) -> None:
    table = trained()
    found = aum_run(tmp_path / "a", table)
    assert found.kept == {f"r{i:03d}" for i in range(600) if i % 5}
    lost = found.decisions.filter(pl.col("action") == "drop")
    assert lost["reason"].unique().to_list() == ["aum_threshold"]
    assert (lost["value"] < lost["threshold"]).all()
    again = aum_run(tmp_path / "b", shuffled(table), workers=2, rows_per_group=70)
    assert again.rows.equals(found.rows)


def test_wide_lists_of_earlier_stages_come_in_bounded_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = trained()
    whole = aum_run(tmp_path / "a", table, rows_per_group=600)
    sizes = []

    def seen(batch: pa.RecordBatch, name: str) -> Any:
        sizes.append(batch.num_rows)
        return vectors(batch, name)

    monkeypatch.setattr("tamis.storage.columns.BATCH_BYTES", 500)
    monkeypatch.setattr("tamis.selectors.dynamics_rules.vectors", seen)
    cut = aum_run(tmp_path / "b", table, rows_per_group=600)
    assert cut.kept == whole.kept
    assert max(sizes) < 40  # two numbers and an offset a row, of 20 bytes
    assert sum(sizes) == 2 * 600


def test_no_threshold_samples_and_other_runs(tmp_path: Path) -> None:
    table = trained(threshold=0)
    with pytest.raises(UserError, match="run 0 of d has no threshold samples") as caught:
        aum_run(tmp_path / "a", table)
    assert "docs/label-scores.md" in str(caught.value.mend)
    both = {"aum_by_run": pa.array([[1.0]]), "probe_ordinary": pa.array([[True, False]])}
    other: Any = Listed(both, np.zeros(1, np.uint64))
    with pytest.raises(UserError, match="aum_by_run and probe_ordinary are of 1 and 2 runs"):
        AumThreshold().select(other)
    assert len(aum_run(tmp_path / "b", trained().slice(0, 0)).rows) == 0


def pruned(stage: LateStoppingPrune, values: list[Any], ties: list[Any], groups: list[Any]) -> Any:
    ids = np.random.default_rng(len(values)).permutation(len(values)).astype(np.uint64)
    columns = {
        "late_stopping": pa.array(values, pa.float64()),
        "t": pa.array(ties, pa.float64()),
        "g": pa.array(groups, pa.string()),
    }
    table: Any = Columns(columns, ids)
    return stage.select(table), ids


@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.none(), st.sampled_from([3.0, 4.0, 11.0])),
            st.one_of(st.none(), st.floats(0, 2)),
            st.sampled_from(["a", "b", None]),
        ),
        max_size=20,
    ),
    fraction=st.floats(0, 1),
    per=st.sampled_from([None, "g"]),
    ties=st.sampled_from([None, "t"]),
)
def test_the_slowest_share_of_every_group_goes(
    rows: list[Any], fraction: float, per: Any, ties: Any
) -> None:
    values, tied, groups = ([row[i] for row in rows] for i in range(3))
    stage = LateStoppingPrune(fraction=fraction, per=per, ties=ties)
    drops, ids = pruned(stage, values, tied, groups)
    lost: set[int] = set()
    for group in {*groups} if per else {None}:
        mine = [
            i for i, v in enumerate(values) if v is not None and (per is None or groups[i] == group)
        ]
        mine.sort(key=lambda i: (-values[i], tie_of(tied[i], ties), ids[i]))
        lost |= set(mine[: math.floor(fraction * len(mine) + 1e-9)])
    assert set(drops.rows.tolist()) == lost
    assert drops.report == {"no_score": values.count(None)}
    assert (drops.value >= drops.threshold).all()


def tie_of(value: float | None, ties: str | None) -> float:
    """Highest first, rows without the score last; all equal if there is no such score."""
    if ties is None:
        return 0.0
    return math.inf if value is None else -value


def test_a_round_of_late_stopping(tmp_path: Path) -> None:
    table = trained()
    stages = [
        {"operator": "late_stopping", "dynamics": "d", "k": 2},
        {"operator": "training_loss", "dynamics": "d"},
        {"operator": "late_stopping_prune", "fraction": 0.2, "ties": "training_loss"},
    ]
    found = run(tmp_path / "a", table, *stages)
    wrong = {f"r{i:03d}" for i in range(0, 600, 5)}
    assert len(found.kept) == 480
    # Some rows that are right were never right twice running, among them with higher losses.
    assert len(wrong & found.kept) < 10
    again = run(tmp_path / "b", shuffled(table), *stages, rows_per_group=70)
    assert again.kept == found.kept
