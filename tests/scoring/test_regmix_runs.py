"""Laws fitted to the public runs of RegMix: the published figures."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tamis.scoring.fits import spearman
from tamis.scoring.mixing_law import MixingLaw
from tamis.scoring.mixture_runs import Runs, inputs_of, read_runs
from tamis.scoring.regmix import Linear, RegMix, TreesModel


@pytest.fixture(scope="module")
def regmix_runs(shared_data: Path) -> dict[str, Runs]:
    path = shared_data / "mixture_regmix.parquet"
    return {
        name: read_runs(path, where=where)
        for name, where in {
            "train": "split = 'train'",
            "1M": "split = 'test' AND model = '1M'",
            "60M": "split = 'test' AND model = '60M'",
        }.items()
    }


def as_published(path: Path, where: str) -> Runs:
    """The runs with proportions as they are in the file, which the published figures are of."""
    table = pl.read_parquet(path).filter(pl.sql_expr(where))
    domains = [c for c in table.columns if c.startswith("mix_")]
    return Runs(
        tuple(domains),
        table[domains].to_numpy(),
        {},
        ("loss_pile_cc",),
        table[["loss_pile_cc"]].to_numpy(),
    )


def rank_correlation(model: TreesModel, runs: Runs) -> float:
    return round(100 * spearman(model.mean(runs)[:, 0], runs.losses[:, 0]), 2)


def test_published_rank_correlation_of_pile_cc(shared_data: Path) -> None:
    path = shared_data / "mixture_regmix.parquet"
    train = as_published(path, "split = 'train'")
    test = as_published(path, "split = 'test' AND model = '1M'")
    assert rank_correlation(RegMix().train(train, stopping=test), test) == 98.92
    larger = as_published(path, "split = 'test' AND model = '60M'")
    assert rank_correlation(RegMix().train(train, stopping=test), larger) == 98.49


def test_rank_correlation_where_the_test_set_stops_nothing(regmix_runs: dict[str, Runs]) -> None:
    runs = {name: table.only(["loss_pile_cc"]) for name, table in regmix_runs.items()}
    assert 98.4 < rank_correlation(RegMix().train(runs["train"]), runs["1M"]) < 99.1
    linear = Linear().train(runs["train"]).mean(runs["1M"])[:, 0]
    assert 100 * spearman(linear, runs["1M"].losses[:, 0]) == pytest.approx(90.2, abs=0.1)


def test_held_out_errors_are_those_on_the_published_test_runs(
    regmix_runs: dict[str, Runs],
) -> None:
    """The error stated from training runs alone, against 256 others of the same size of model."""
    train, test = (regmix_runs[name].only(["loss_pile_cc"]) for name in ("train", "1M"))
    fitted = MixingLaw(components=2).fit(train)
    stated = fitted.evidence["held_out"]["loss_pile_cc"]["rmse"]
    found = fitted.predict(inputs_of(test.domains, test.mixtures))
    error = np.sqrt(np.mean((found.value - test.losses) ** 2))
    assert error == pytest.approx(stated, rel=0.25)
    covered = (found.low <= test.losses) & (test.losses <= found.high)
    assert 0.85 <= covered.mean() <= 0.97
