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


def test_a_domain_that_no_run_has_is_left_out_and_told() -> None:
    runs = runs_of(frame(mix_law=[0.0, 0.0, 0.0]))
    assert runs.domains == ("web", "code")
    assert runs.notes == ("left out, as no run has any of them: 'law'",)


def test_rows_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    table = frame(loss_web=[3.0, 3.2, None], steps=[1, 2, 2])
    table.write_csv(tmp_path / "runs.csv")
    with pytest.raises(UserError, match="row 3: 'loss_web' is missing"):
        read_runs(tmp_path / "runs.csv", where="steps = 2")


def test_proportions_that_begin_with_whole_numbers(tmp_path: Path) -> None:
    """A CSV file whose first hundreds of rows are 0 and 1."""
    pure = "".join(f"{n % 2},{1 - n % 2},{3 + n / 1000}\n" for n in range(300))
    (tmp_path / "runs.csv").write_text("mix_a,mix_b,loss\n" + pure + "0.25,0.75,2.5\n")
    runs = read_runs(tmp_path / "runs.csv", target="loss")
    assert runs.mixtures[-1].tolist() == [0.25, 0.75]
    with (tmp_path / "runs.csv").open("a") as file:
        file.write("0.5,0.5,n/a\n")
    with pytest.raises(UserError, match="row 302: 'loss' is 'n/a', which is no number"):
        read_runs(tmp_path / "runs.csv", target="loss")


# Several files


MIXTURES = pl.DataFrame(
    {"": [0, 1, 2], "index": [1, 2, 3], "a b": [0.5, 0.2, 0.0], "ü.c": [0.5, 0.8, 1.0]}
)
LOSSES = pl.DataFrame(
    {
        "": [5, 6, 7],
        "index": [3, 1, 2],
        "metric/the_a_val_loss": [3.3, 3.1, 3.2],
        "metric/the_c_val_loss": [2.3, 2.1, 2.2],
    }
)


def two_files(
    folder: Path, mixtures: pl.DataFrame, losses: pl.DataFrame
) -> tuple[Path, list[Path]]:
    mixtures.write_csv(folder / "mixture.csv")
    losses.write_csv(folder / "loss.csv")
    return folder / "mixture.csv", [folder / "loss.csv"]


def test_proportions_and_losses_in_two_files(tmp_path: Path) -> None:
    """As public tables have them: a column of the run, no common prefix, names as they come."""
    path, join = two_files(tmp_path, MIXTURES, LOSSES)
    runs = read_runs(path, join=join, mix="*", target="metric/the_*_val_loss")
    assert runs.domains == ("a b", "ü.c")
    assert runs.targets == ("a", "c")
    assert runs.losses.tolist() == [[3.1, 2.1], [3.2, 2.2], [3.3, 2.3]]
    assert runs.notes == ("3 runs of mixture.csv, joined with loss.csv by index",)
    assert read_runs(path, join=join, mix="*", target="metric/").targets == tuple(
        LOSSES.columns[2:]
    )
    both = LOSSES.rename({"metric/the_a_val_loss": "x_a", "metric/the_c_val_loss": "y_a"})
    path, join = two_files(tmp_path, MIXTURES, both)
    with pytest.raises(UserError, match="'x_a' would be called 'a'"):
        read_runs(path, join=join, mix="*", target=["x_*", "y_*"])


@pytest.mark.parametrize(
    ("losses", "what"),
    [
        (LOSSES.head(2), r"in mixture\.csv only: row 2 \(index 2\)"),
        (pl.concat([LOSSES, LOSSES.head(1)]), r"rows 1, 4 of loss\.csv have the same index 3"),
        (
            LOSSES.with_columns(index=pl.Series([3, 1, 9])),
            r"mixture\.csv only: row 2 \(index 2\); in loss\.csv only: row 3 \(index 9\)",
        ),
        (LOSSES.rename({"index": "run"}).drop(""), "no column in common"),
        (
            LOSSES.with_columns(index=pl.Series(["x", "y", "z"])),
            r"'index'.*holds Int64 in mixture\.csv and String in loss\.csv",
        ),
    ],
)
def test_files_that_do_not_go_together(tmp_path: Path, losses: pl.DataFrame, what: str) -> None:
    path, join = two_files(tmp_path, MIXTURES, losses)
    with pytest.raises(UserError, match=what):
        read_runs(path, join=join, mix="*", target="metric/")
