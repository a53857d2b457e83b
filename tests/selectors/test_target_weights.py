"""Importance weights towards a target, and scores that become weights of rows."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.selectors.target_weights import KernelMeanWeight, PropensityWeight
from tests.selectors.sample_tools import Ran, blobs, run, shuffled, table_of
from tests.selectors.test_nearest import unit_rows

BOTH = ["kernel_mean_weight", "propensity_weight"]
ALL = [*BOTH, "importance_weight"]


def stages(folder: Path, target: pa.Table, name: str, **more: Any) -> list[dict[str, Any]]:
    """The operator towards this target, and `row_weight` by it."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(target, folder / "target.parquet")
    reference = {"path": str(folder / "target.parquet"), "name": "wanted"}
    if name == "importance_weight":
        more = {"k": 3, **more}
    stage = {"operator": name, "embedding": "vector", "target": reference, **more}
    return [stage, {"operator": "row_weight", "by": name}]


def weigh(folder: Path, corpus: pa.Table, target: pa.Table, name: str, **more: Any) -> Ran:
    given = {key: more.pop(key) for key in ("workers", "rows_per_group") if key in more}
    return run(folder, corpus, *stages(folder, target, name, **more), **given)


@pytest.mark.parametrize("name", ALL)
def test_weights_are_the_known_density_ratio(tmp_path: Path, name: str) -> None:
    """Three kinds of rows, in other shares in the target: shares over shares."""
    corpus, target = blobs([300, 200, 100]), blobs([20, 60, 120], seed=7)
    more = {"noise": 0} if name == "kernel_mean_weight" else {}
    ran = weigh(tmp_path, corpus, target, name, **more)
    mean = ran.rows.group_by("blob").agg(pl.col("weight").mean()).sort("blob")["weight"]
    expected = [(20 / 200) / (300 / 600), (60 / 200) / (200 / 600), (120 / 200) / (100 / 600)]
    tolerance = {"kernel_mean_weight": 0.05, "propensity_weight": 0.1}.get(name, 1e-9)
    assert mean.to_list() == pytest.approx(expected, rel=tolerance)
    weight = ran.rows["weight"].to_numpy()
    assert weight.mean() == pytest.approx(1)
    assert (weight >= 0).all()
    assert ran.decisions["weight"].to_list() == ran.rows["weight"].to_list()
    size = weight.sum() ** 2 / (weight**2).sum()
    assert ran.report["report"]["effective_sample_size"] == pytest.approx(size)
    assert ran.report["report"]["highest_weight"] == weight.max()
    assert ran.report["report"]["target_rows"] == 200


def test_plain_kernel_mean_matching_gives_nothing_up(tmp_path: Path) -> None:
    corpus, target = blobs([300, 100]), blobs([20, 60], seed=7)
    told = weigh(tmp_path, corpus, target, "kernel_mean_weight", noise=0).report["report"]
    assert told["target_mean_weight"] == 1
    assert told["distance"] < 0.1 * told["distance_before"]
    assert told["landmarks"] is None
    assert not told["told_apart"]
    assert told["converged"]


def test_the_noise_of_a_small_target_is_not_fitted(tmp_path: Path) -> None:
    corpus, target = blobs([300, 100], spread=1.0), blobs([3, 9], spread=1.0, seed=7)
    told = {
        noise: weigh(tmp_path / str(noise), corpus, target, "kernel_mean_weight", noise=noise)
        for noise in (0, 0.7)
    }
    fitted, kept = (told[noise].report["report"] for noise in (0, 0.7))
    assert fitted["distance"] < kept["distance"] <= 0.7 * kept["noise"]
    assert kept["effective_sample_size"] > 2 * fitted["effective_sample_size"]


def test_the_part_of_a_target_that_nothing_resembles_is_given_up(tmp_path: Path) -> None:
    """A third of the target is of a kind that the corpus lacks; without it both are alike."""
    corpus = blobs([120, 120, 0])
    target = blobs([30, 30, 30], seed=7)
    told = {
        d: weigh(tmp_path / str(d), corpus, target, "kernel_mean_weight", d=d).report["report"]
        for d in (1, 9)
    }
    assert told[9]["target_mean_weight"] < 0.75
    assert told[9]["distance"] < 0.5 * told[1]["distance"]


def test_landmarks_come_close_to_the_exact_kernel(tmp_path: Path) -> None:
    corpus, target = blobs([300, 200, 100]), blobs([20, 60, 120], seed=7)
    exact = weigh(tmp_path / "0", corpus, target, "kernel_mean_weight")
    some = {"exact_rows": 0, "landmarks": 100}
    near = weigh(tmp_path / "1", corpus, target, "kernel_mean_weight", **some)
    told = near.report["report"]
    assert told["landmarks"] == 100
    assert 0 < told["kernel_unexplained"] < 0.05
    assert told["bandwidth"] == exact.report["report"]["bandwidth"]
    off = np.abs(near.rows["weight"].to_numpy() - exact.rows["weight"].to_numpy())
    assert off.mean() < 0.2


def test_kinds_that_vectors_do_not_show_weigh_alike(tmp_path: Path) -> None:
    corpus, target = blobs([200]), blobs([100], seed=7)
    ran = weigh(tmp_path, corpus, target, "propensity_weight")
    told = ran.report["report"]
    assert told["effective_sample_size"] > 190
    assert told["auc"] == pytest.approx(0.5, abs=0.1)
    assert told["log_loss"] == pytest.approx(told["log_loss_of_shares"], abs=0.01)
    assert told["mean_before_scaling"] == pytest.approx(1, abs=0.05)
    assert not told["told_apart"]


def test_probabilities_are_a_score_beside_the_weights(tmp_path: Path) -> None:
    corpus, target = blobs([300, 100]), blobs([20, 60], seed=7)
    two = stages(tmp_path, target, "propensity_weight", clip_quantile=1)
    ran = run(tmp_path, corpus, *two, add=["propensity_weight_probability"])
    p = ran.rows["propensity_weight_probability"].to_numpy()
    odds = p / (1 - p)
    np.testing.assert_allclose(ran.rows["weight"].to_numpy(), odds / odds.mean(), rtol=0.1)
    assert ran.report["report"]["clipped"] == 0


def test_high_weights_are_clipped_and_counted(tmp_path: Path) -> None:
    corpus, target = blobs([300, 20]), blobs([0, 40], seed=7)
    free = weigh(tmp_path / "0", corpus, target, "propensity_weight", clip_quantile=1)
    high = free.rows["weight"].max()
    clip = {"clip_quantile": 0.975}
    ran = weigh(tmp_path / "1", corpus, target, "propensity_weight", **clip)
    assert ran.report["report"]["clipped"] == 8
    assert (ran.rows["weight"] == ran.rows["weight"].max()).sum() == 9
    clip = {"clip_quantile": 1, "clip": 2.0}
    ran = weigh(tmp_path / "2", corpus, target, "propensity_weight", **clip)
    assert ran.report["report"]["clipped"] == 20
    assert isinstance(high, float)
    assert ran.rows["weight"].mean() == pytest.approx(1)
    assert ran.report["report"]["effective_sample_size"] > 20 - 1e-9


@pytest.mark.parametrize("name", BOTH)
def test_order_sharding_and_workers_do_not_matter(tmp_path: Path, name: str) -> None:
    corpus, target = blobs([150, 90, 60]), blobs([5, 5, 20], seed=7)
    for number, more in enumerate([{}, {"exact_rows": 0}][: 2 if name == BOTH[0] else 1]):
        first = weigh(tmp_path / f"{number}", corpus, target, name, workers=1, **more)
        again = weigh(
            tmp_path / f"{number}-again",
            shuffled(corpus),
            shuffled(target),
            name,
            workers=2,
            rows_per_group=11,
            **more,
        )
        assert again.rows["weight"].to_list() == first.rows["weight"].to_list()
        assert again.report["report"] == first.report["report"]


@pytest.mark.parametrize("name", ALL)
def test_the_figures_of_finished_weights_are_told_again(tmp_path: Path, name: str) -> None:
    corpus, target = blobs([60, 30]), blobs([5, 20], seed=7)
    first = weigh(tmp_path, corpus, target, name)
    with pytest.MonkeyPatch.context() as patch:
        for where in ("target_weights._TargetWeight", "importance.ImportanceWeight"):
            patch.setattr(f"tamis.selectors.{where}.evaluate", None)
        again = weigh(tmp_path, corpus, target, name)
    assert again.report == first.report
    assert again.report["report"]["target_rows"] == 25


@pytest.mark.parametrize("name", BOTH)
def test_small_and_odd_tables(tmp_path: Path, name: str) -> None:
    corpus, target = blobs([20, 10]), blobs([5, 5], seed=7)
    assert weigh(tmp_path / "0", corpus.slice(0, 0), target, name).kept == set()
    assert weigh(tmp_path / "1", corpus.slice(0, 1), target, name).rows["weight"].to_list() == [1]
    one = weigh(tmp_path / "2", corpus, target.slice(0, 1), name)
    weight = one.rows["weight"].to_numpy()
    assert weight.mean() == pytest.approx(1)
    kind = target["blob"][0].as_py()
    own = one.rows.filter(pl.col("blob") == kind)["weight"].mean()
    assert isinstance(own, float)
    assert own > 1, "rows of the target's kind weigh more"
    same = table_of(np.ones((8, 4)))
    found = weigh(tmp_path / "3", same, same.slice(0, 3), name).rows["weight"]
    assert found.to_list() == pytest.approx([1.0] * 8)
    zeros = table_of(np.zeros((6, 4)))
    found = weigh(tmp_path / "4", zeros, zeros.slice(0, 2), name).rows["weight"]
    assert found.to_list() == pytest.approx([1.0] * 6)
    some = table_of(np.r_[np.zeros((3, 4)), unit_rows(9, 4, 1)])
    found = weigh(tmp_path / "5", some, some.slice(0, 3), name).rows.sort("id")["weight"]
    assert found.mean() == pytest.approx(1)
    with pytest.raises(tamis.UserError, match="the target has no rows"):
        weigh(tmp_path / "6", corpus, target.slice(0, 0), name)
    with pytest.raises(tamis.UserError, match="16 numbers, those of the target 8"):
        weigh(tmp_path / "7", corpus, blobs([5], width=8), name)
    holes = corpus.set_column(3, "vector", pa.array([None, *corpus["vector"].to_pylist()[1:]]))
    with pytest.raises(tamis.UserError, match=r"the vector of row [0-9a-f]{32} is null"):
        weigh(tmp_path / "8", holes, target, name)


def test_a_target_far_from_everything(tmp_path: Path) -> None:
    corpus = table_of(np.array([[1.0, 0.0, 0.0]]) + 0.01 * unit_rows(80, 3, 1))
    target = table_of(np.array([[-1.0, 0.0, 0.0]]) + 0.01 * unit_rows(20, 3, 2))
    narrow = {"bandwidth": 0.05}
    ran = weigh(tmp_path, corpus, target, "kernel_mean_weight", **narrow)
    assert ran.report["report"]["told_apart"]
    with pytest.raises(tamis.UserError, match=r"no row of the corpus is near.*bandwidth"):
        weigh(tmp_path, corpus, target, "kernel_mean_weight", d=16, **narrow)
    told = weigh(tmp_path, corpus, target, "propensity_weight").report["report"]
    assert told["auc"] == 1
    assert told["told_apart"]


def test_any_score_or_column_may_be_a_weight(tmp_path: Path) -> None:
    column = pa.array([0.5, None, 2.0, 0.0])
    corpus = blobs([4]).append_column("mine", column).append_column("wrong", pa.array([0.5] * 4))
    by = {"operator": "row_weight", "by": "mine", "column": "w"}
    ran = run(tmp_path, corpus, by, {"operator": "label_weight", "by": "wrong", "column": "w"})
    assert ran.rows["w"].to_list() == [0.25, 0.5, 1.0, 0.0]
    assert ran.report["report"] == {
        "left_alone": 1,
        "highest_weight": 2.0,
        "effective_sample_size": pytest.approx(2.5**2 / 4.25),
    }


@pytest.mark.parametrize("value", [-0.5, float("inf")])
def test_a_score_that_is_no_weight_is_refused(tmp_path: Path, value: float) -> None:
    corpus = blobs([3]).append_column("mine", pa.array([1.0, value, 1.0]))
    with pytest.raises(tamis.UserError, match=r"expected weights from 0 up in 'mine'.* in row"):
        run(tmp_path, corpus, {"operator": "row_weight", "by": "mine"})


def test_two_targets_have_columns_of_their_own(tmp_path: Path) -> None:
    corpus = blobs([40, 20])
    one, _ = stages(tmp_path / "a", blobs([5, 0], seed=7), "propensity_weight")
    two, _ = stages(tmp_path / "b", blobs([0, 5], seed=8), "propensity_weight")
    one["name"], two["name"] = "one", "two"
    ran = run(tmp_path, corpus, one, two, add=["one", "two"])
    found = ran.rows.group_by("blob").agg(pl.col("one", "two").mean()).sort("blob")
    assert found["one"][0] > found["one"][1]
    assert found["two"][0] < found["two"][1]


def test_parameters_out_of_range_are_refused() -> None:
    for cls, wrong in (
        (KernelMeanWeight, {"d": 0.5}),
        (KernelMeanWeight, {"bandwidth": 0}),
        (KernelMeanWeight, {"bound": 1.9, "d": 4.0}),
        (PropensityWeight, {"folds": 1}),
        (PropensityWeight, {"clip": 0}),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cls.model_validate({"target": {"path": "x"}, **wrong})
