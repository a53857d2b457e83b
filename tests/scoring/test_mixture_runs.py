"""Tables of runs: what is read of them, and what is refused."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tamis.scoring.mixture_runs import read_runs, runs_of
from tamis.storage.errors import UserError


def frame(**changes: list[float]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "mix_web": [0.5, 0.2, 0.8],
            "mix_code": [0.5, 0.8, 0.2],
            "loss_web": [3.0, 3.2, 2.8],
            **changes,
        }
    )


def test_rounded_proportions_are_normalised_and_told() -> None:
    runs = runs_of(frame(mix_web=[0.499, 0.2, 0.803]))
    assert runs.notes == ("proportions of 2 runs sum to 0.999 to 1.003: normalised",)
    assert np.allclose(runs.mixtures.sum(axis=1), 1, atol=1e-15)
    assert runs.mixtures[0, 0] == 0.499 / 0.999


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"mix_web": [0.5, 0.4, 0.8]}, "row 2: the proportions sum to 1.2"),
        ({"mix_web": [50.0, 20, 80], "mix_code": [50.0, 80, 20]}, "divide percentages by 100"),
        ({"mix_code": [0.5, 0.5, 0.2]}, "is a domain's column missing"),
        ({"mix_web": [0.5, 1.1, 0.8], "mix_code": [0.5, -0.1, 0.2]}, "row 2.*'code' is -0.1"),
        ({"loss_web": [3.0, float("nan"), 2.8]}, "row 2: 'loss_web' is nan"),
        ({"loss_web": [3.0, 3.2, None]}, "row 3: 'loss_web' is missing"),
        ({"loss_web": [3.0, float("inf"), 2.8]}, "row 2: 'loss_web' is inf"),
        ({"loss_web": [3.0, 3.0, 3.0]}, "is 3 in all 3 runs"),
        (
            {"mix_web": [0.5, 0.5, 0.8], "mix_code": [0.5, 0.5, 0.2], "loss_web": [3.0, 3.0, 2.8]},
            "rows 1 and 2 are the same run",
        ),
        ({"loss_web": ["a", "b", "c"]}, "row 1: 'loss_web' is 'a', which is no number"),
    ],
)
def test_bad_runs_are_refused_by_row(changes: dict[str, list[float]], what: str) -> None:
    with pytest.raises(UserError, match=what):
        runs_of(frame(**changes))


def test_a_repeat_with_another_seed_is_no_twin() -> None:
    table = frame(mix_web=[0.5, 0.5, 0.8], mix_code=[0.5, 0.5, 0.2])
    assert runs_of(table).groups().tolist() == [0, 0, 1]


def test_missing_columns_and_rows() -> None:
    with pytest.raises(UserError, match=r"no column of proportions is or starts with 'share_'"):
        runs_of(frame(), mix="share_")
    with pytest.raises(UserError, match=r"no column 'loss_code'; there: 'loss_web'"):
        runs_of(frame(), target=["loss_code"])
    with pytest.raises(UserError, match=r"no runs"):
        runs_of(frame().head(0))


def test_runs_from_files(tmp_path: Path) -> None:
    table = frame(steps=[100, 200, 300])
    table.write_parquet(tmp_path / "runs.parquet")
    table.write_csv(tmp_path / "runs.csv")
    table.write_ndjson(tmp_path / "runs.jsonl")
    digests = set()
    for name in ("runs.parquet", "runs.csv", "runs.jsonl"):
        runs = read_runs(tmp_path / name, where="steps < 300")
        assert len(runs) == 2
        assert runs.covariates["steps"].tolist() == [100, 200]
        digests.add(runs.digest())
    assert len(digests) == 1
    with pytest.raises(UserError, match=r"no such file"):
        read_runs(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"no run meets 'steps > 900'"):
        read_runs(tmp_path / "runs.csv", where="steps > 900")
    with pytest.raises(UserError, match=r"runs\.csv: no column"):
        read_runs(tmp_path / "runs.csv", target=["loss_code"])
