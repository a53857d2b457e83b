"""Scores straight from records, records of others' logits, and the commands on both."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from aum import AUMCalculator
from typer.testing import CliRunner

import tamis
from tamis.cli import app
from tamis.scoring.logged_logits import import_logits, table_of
from tamis.scoring.record_scores import SCORES, Account, score_records
from tamis.storage.dynamics import find_dynamics, write_records

WORKED = [[1, 2, 3], [6, 5, 4], [7, 8, 9], [12, 11, 10]]


def logged(folder: Path, rows: list[dict[str, Any]], name: str = "logged.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(folder / name)
    return folder / name


def made(folder: Path, rows: int, epochs: int, classes: int = 3, seed: int = 0) -> pl.DataFrame:
    """Logits of made-up rows, some in a few epochs only."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    found = [
        {
            "guid": f"g{row}",
            "epoch": epoch,
            "logits": (3 * random.normal(size=classes)).astype(np.float32).tolist(),
            "gold": int(labels[row]),
        }
        for epoch in range(epochs)
        for row in random.permutation(rows).tolist()
        if random.random() < 0.9
    ]
    logged(folder, found)
    return pl.DataFrame(found)


def slow(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Scores of one row from its logits, epoch by epoch, in plain Python."""
    margins, probs, right, lengths, losses = [], [], [], [], []
    for row in sorted(rows, key=lambda row: row["epoch"]):
        z, y = row["logits"], row["gold"]
        other = max(v for k, v in enumerate(z) if k != y)
        total = sum(math.exp(v - max(z)) for v in z)
        p = [math.exp(v - max(z)) / total for v in z]
        margins.append(z[y] - other)
        probs.append(p[y])
        right.append(z[y] > other)
        lengths.append(math.sqrt(sum((v - (k == y)) ** 2 for k, v in enumerate(p))))
        losses.append(-math.log(p[y]))
    n = len(rows)
    mean = sum(probs) / n
    events = sum(a and not b for a, b in itertools.pairwise(right))
    return {
        "aum": sum(margins) / n,
        "confidence": mean,
        "variability": math.sqrt(sum((p - mean) ** 2 for p in probs) / n),
        "correctness": sum(right),
        "forgetting": events if any(right) else n,
        "el2n": sum(lengths) / n,
        "loss": sum(losses) / n,
        "last_loss": losses[-1],
        "updates": n,
        "epochs": n,
    }


def assert_slow(found: pl.DataFrame, table: pl.DataFrame) -> None:
    by_row = table.partition_by("guid", as_dict=True)
    assert found["row_id"].to_list() == sorted(row_id for (row_id,) in by_row)
    for row in found.iter_rows(named=True):
        for name, value in slow(by_row[(row["row_id"],)].to_dicts()).items():
            assert row[name] == pytest.approx(value, rel=2e-6, abs=1e-6), (row["row_id"], name)


def test_scores_of_logits_against_plain_python_and_the_aum_package(tmp_path: Path) -> None:
    table = made(tmp_path / "in", 60, 6)
    import_logits(str(tmp_path / "in"), str(tmp_path / "records"))
    found = tamis.dynamics(tmp_path / "records")
    assert_slow(found, table)
    theirs = AUMCalculator(str(tmp_path))
    logits, gold = torch.tensor(table["logits"].to_list()), torch.tensor(table["gold"].to_list())
    theirs.update(logits, gold, table["guid"].to_list())
    for row in found.iter_rows(named=True):
        expected = theirs.sums[row["row_id"]] / theirs.counts[row["row_id"]]
        assert row["aum"] == pytest.approx(expected, abs=1e-6)


def test_real_logits(shared_data: Path, tmp_path: Path) -> None:
    """Cartography's own sample; the other published file has statistics only, no logits."""
    source = shared_data / "dynamics_cartography_sample.parquet"
    counts = import_logits(str(source), str(tmp_path / "records"))
    table = pl.read_parquet(source)
    assert counts == {"records": 50, "first": 0, "last": table["epoch"].max()}
    assert_slow(tamis.dynamics(tmp_path / "records"), table)
    theirs = AUMCalculator(str(tmp_path))
    logits = torch.tensor(table["logits"].to_list(), dtype=torch.float32)
    theirs.update(logits, torch.tensor(table["gold"].to_list()), table["guid"].to_list())
    found = tamis.dynamics(tmp_path / "records")
    expected = [theirs.sums[row] / theirs.counts[row] for row in found["row_id"]]
    assert found["aum"].to_list() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(tamis.UserError, match="has the columns guid, index, confidence"):
        import_logits(
            str(shared_data / "dynamics_cartography_winogrande.parquet"), str(tmp_path / "none")
        )


def test_files_of_cartography(tmp_path: Path) -> None:
    """Its JSON has NaN, as Python writes it; ids are integers here."""
    random = np.random.default_rng(2)
    rows = []
    for epoch in range(3):
        lines = []
        for guid in random.permutation(20).tolist():
            logits = random.normal(size=3).tolist()
            if (epoch, guid) == (1, 7):
                logits[0] = math.nan
            rows.append({"guid": guid, "epoch": epoch, "logits": logits, "gold": guid % 3})
            line = {"guid": guid, f"logits_epoch_{epoch}": logits, "gold": guid % 3}
            lines.append(json.dumps(line))
        path = tmp_path / "in" / f"dynamics_epoch_{epoch}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    import_logits(str(tmp_path / "in"), str(tmp_path / "records"))
    found = tamis.dynamics(tmp_path / "records")
    broken = found.filter(pl.col("row_id") == 7)
    assert broken.select(*SCORES).null_count().row(0) == (1,) * len(SCORES)
    assert broken["updates"].item() == 3
    assert_slow(found.filter(pl.col("row_id") != 7), pl.DataFrame(rows).filter(pl.col("guid") != 7))


def test_worked_margins_through_files(tmp_path: Path) -> None:
    """The published test case of the aum package: one row, four updates."""
    rows = [
        {"row_id": 1, "epoch": epoch, "logits": z, "label": y}
        for epoch, (z, y) in enumerate(zip(WORKED, [1, 0, 2, 1], strict=True))
    ]
    import_logits(str(logged(tmp_path / "in", rows)), str(tmp_path / "records"))
    found = tamis.dynamics(tmp_path / "records")
    assert found["aum"].to_list() == [0.0]
    assert tamis.dynamics(tmp_path / "records", skip_epochs=1)["aum"].to_list() == [1 / 3]
    assert tamis.dynamics(tmp_path / "records", until=1)["aum"].to_list() == [-1.0]


def test_updates_weigh_in_margins_only(tmp_path: Path) -> None:
    """Two updates in epoch 0, one in epoch 1: as the aum package counts, each update once."""
    logits = [[3.0, 1.0], [5.0, 1.0], [1.0, 1.5]]
    for epoch, some in ((0, slice(0, 2)), (1, slice(2, 3))):
        rows = np.array(logits[some])
        records = table_of([7] * len(rows), epoch, rows, [0] * len(rows), steps=range(len(rows)))
        write_records(tmp_path / f"run-0/epoch-{epoch:05d}.parquet", records, {"epoch": epoch})
    found = tamis.dynamics(tmp_path).row(0, named=True)
    assert found["aum"] == pytest.approx((2 + 4 - 0.5) / 3)
    p = [1 / (1 + math.exp(-margin)) for margin in (2, 4, -0.5)]
    assert found["confidence"] == pytest.approx(((p[0] + p[1]) / 2 + p[2]) / 2)
    assert (found["correctness"], found["forgetting"]) == (1, 1)
    assert (found["updates"], found["epochs"]) == (3, 2)


def test_runs_with_threshold_samples(tmp_path: Path) -> None:
    """Row 1 is one in run 0, row 2 in run 1, row 3 in both; their scores there do not count."""
    sampled = {0: [1, 3], 1: [2, 3]}
    for run in range(2):
        records = table_of(
            [1, 2, 3, 4], 0, [[run + 1.0, 0], [run + 2.0, 0], [9, 0], [run, 0]], [0] * 4
        )
        place = records.schema.get_field_index("threshold")
        flags = pa.array([row in sampled[run] for row in (1, 2, 3, 4)])
        records = records.set_column(place, records.schema.field(place), flags)
        told = {"run": run, "epoch": 0}
        write_records(tmp_path / f"run-{run}/epoch-00000.parquet", records, told)
    account = Account()
    found = pa.Table.from_batches(score_records(find_dynamics(str(tmp_path)), account, 2))
    assert found["aum"].to_pylist() == [2, 2, None, 0.5]
    assert found["updates"].to_pylist() == [2] * 4
    assert account.thresholds == 1


def test_what_was_missing_is_told(tmp_path: Path) -> None:
    rows = [
        {"row_id": row, "epoch": epoch, "logits": [1.0, math.nan if row == 5 else 0.0], "label": 0}
        for epoch in (0, 1, 3)
        for row in range(8)
        if (row, epoch) not in ((2, 1), (6, 0))
    ]
    source = logged(tmp_path / "in", rows)
    folder = str(tmp_path / "records")
    runner = CliRunner()
    assert runner.invoke(app, ["import-dynamics", str(source), folder]).exit_code == 0
    said = runner.invoke(app, ["dynamics", folder])
    assert said.exit_code == 0, said.output
    text = " ".join(said.output.split())
    assert "22 of 8 rows, 1 run, epochs 0 to 3" in text
    assert "1 epoch without a file: epoch 2 of run 0" in text
    assert "2 rows not in every epoch" in text
    assert "2 (run 0, epoch 1), 6 (run 0, epoch 0)" in text
    assert "3 records with logits that are no finite numbers" in text
    assert "5 (run 0, epoch 0)" in text
    out = tmp_path / "scores.parquet"
    told = json.loads(runner.invoke(app, ["dynamics", folder, "--json", "--out", str(out)]).output)
    assert told["rows"] == 8
    assert told["missing_epochs"] == [{"run": 0, "epoch": 2}]
    assert told["first_unknown"] == [{"row_id": 5, "run": 0, "epoch": 0}]
    assert told["scores"][0]["score"] == "aum"
    assert told["scores"][0]["rows"] == 7
    assert pl.read_parquet(out).equals(tamis.dynamics(folder), null_equal=True)


def test_skipped_epochs_from_the_command(tmp_path: Path) -> None:
    table = made(tmp_path / "in", 10, 5)
    folder = str(tmp_path / "records")
    import_logits(str(tmp_path / "in"), folder)
    arguments = ["dynamics", folder, "--skip-epochs", "1", "--until", "4", "--out"]
    out = tmp_path / "scores.parquet"
    assert CliRunner().invoke(app, [*arguments, str(out)]).exit_code == 0
    assert_slow(pl.read_parquet(out), table.filter(pl.col("epoch").is_between(1, 3)))


@pytest.mark.parametrize("out", [".", "made"])
def test_a_folder_is_no_place_for_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    made(tmp_path / "in", 10, 1)
    import_logits(str(tmp_path / "in"), str(tmp_path / "records"))
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["dynamics", "records", "--out", out])
    assert isinstance(said.exception, tamis.UserError | SystemExit)
    assert "found a folder; name a file in it" in said.output + str(said.exception)


def test_logits_are_kept_where_asked_for(tmp_path: Path) -> None:
    table = made(tmp_path / "in", 10, 2)
    import_logits(str(tmp_path / "in"), str(tmp_path / "records"), keep_logits=True)
    kept = pl.concat(pl.read_parquet(p) for p in sorted((tmp_path / "records").rglob("*.parquet")))
    want = table.sort("epoch", "guid").select("guid", "logits")
    got = kept.sort("epoch", "row_id").select("row_id", "logits")
    assert got.rows() == want.rows()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"logits": [1.0]}, "1 class"),
        ({"label": 2}, "label 2"),
        ({"label": None}, "no 'label' in line 3"),
        ({"logits": None}, "no 'logits' in line 3"),
        ({"row_id": None}, "no 'row_id' in line 3"),
        ({"logits": [1.0, 2.0, 3.0]}, "3 logits in line 3, 2 in line 1"),
        ({"epoch": -1}, "parquet: epoch -1 in line 3: epochs are from 0"),
        ({"epoch": 2**31}, "epoch 2147483648 in line 3"),
        ({"label": 2**40}, "label 1099511627776"),
    ],
)
def test_logits_that_are_refused(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    plain = {"row_id": 1, "epoch": 0, "logits": [1.0, 2.0], "label": 1}
    rows = [plain, plain, {**plain, **row}]
    if row == {"logits": [1.0]}:
        rows = [{**plain, **row, "label": 0}]
    source = logged(tmp_path / "in", rows)
    with pytest.raises(tamis.UserError, match=says):
        import_logits(str(source), str(tmp_path / "records"))
    assert not list((tmp_path / "records").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("row_id", [[1], [2]], "row_id in line 1: expected integers or strings, found .*list"),
        ("row_id", [b"a", b"b"], "row_id in line 1: expected integers or strings, found .*binary"),
        ("row_id", [1.0, 2.5], "row_id in line 2: expected integers or strings, found 2.5"),
        ("row_id", [1, 2**63], "row_id in line 2: .* found 9223372036854775808"),
        ("epoch", ["0", "last"], "epoch in line 1: expected whole numbers, found .*string"),
        ("epoch", [0.0, 0.5], "epoch in line 2: expected whole numbers, found 0.5"),
        ("epoch", [0.0, math.nan], "epoch in line 2: expected whole numbers, found nan"),
        ("step", [None, "b"], "step in line 1: expected whole numbers, found .*string"),
        ("step", [None, 0.5], "step in line 2: expected whole numbers, found 0.5"),
        ("label", [0.0, 0.5], "label in line 2: expected whole numbers, found 0.5"),
        ("label", [[0], [1]], "label in line 1: expected whole numbers, found .*list"),
        ("label", ["no", "yes"], "label in line 1 is 'no'.*--classes a,b,c"),
    ],
)
def test_columns_of_other_types_are_refused(
    tmp_path: Path, column: str, values: list[Any], says: str
) -> None:
    large = column == "row_id" and 2**63 in values
    given = pl.Series(column, values, dtype=pl.UInt64 if large else None)
    table = pl.DataFrame({"row_id": [1, 2], "epoch": 0, "logits": [[1.0, 2.0]] * 2, "label": 1})
    table.with_columns(given).write_parquet(tmp_path / "logged.parquet")
    with pytest.raises(tamis.UserError, match=f"logged.parquet: {says}"):
        import_logits(str(tmp_path / "logged.parquet"), str(tmp_path / "records"))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([1, 0, 1], None),
        ([1.0, 0.0, 1.0], None),
        ([True, False, True], None),
        (["yes", "no", "yes"], "no,yes"),
        ([20, 3, 20], "3,20"),
        ([20.0, 3.0, 20.0], "3,20"),
        ([True, False, True], "false,true"),
    ],
)
def test_labels_as_numbers_or_as_names(tmp_path: Path, labels: Any, classes: str | None) -> None:
    rows = [
        {"row_id": n, "epoch": 0.0, "logits": [float(n), 2.0], "label": label}
        for n, label in enumerate(labels)
    ]
    source = logged(tmp_path / "in", rows)
    command = ["import-dynamics", str(source), str(tmp_path / "records")]
    said = CliRunner().invoke(app, command + (["--classes", classes] if classes else []))
    assert said.exit_code == 0, said.output
    found = pl.read_parquet(tmp_path / "records/run-0/epoch-00000.parquet")
    assert found["label"].to_list() == [1, 0, 1]
    assert found["label_logit"].to_list() == [2, 1, 2]


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (["no", "maybe"], "label in line 1 is 'yes', which is none of the classes no, maybe"),
        (["no", "yes", "maybe"], "2 logits in line 1, 3 classes are named"),
        (["no", "no"], "one is named twice"),
    ],
)
def test_names_that_are_not_those_of_the_logits(
    tmp_path: Path, classes: list[str], says: str
) -> None:
    source = logged(
        tmp_path / "in", [{"row_id": 1, "epoch": 0, "logits": [1.0, 2.0], "label": "yes"}]
    )
    with pytest.raises(tamis.UserError, match=says):
        import_logits(str(source), str(tmp_path / "records"), classes=classes)


def test_lines_with_nan_among_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "dynamics_epoch_0.jsonl"
    line = '{"guid": %s, "logits_epoch_0": [1, %s], "gold": 0}\n'
    path.write_text(line % (1, 2) + line % (2, "NaN"))
    import_logits(str(path), str(tmp_path / "records"))
    assert tamis.dynamics(tmp_path / "records")["aum"].to_list() == [-1, None]
    path.write_text(line % (1, 2) + line % ('"b"', "NaN"))
    with pytest.raises(tamis.UserError, match="line 2"):
        import_logits(str(path), str(tmp_path / "mixed"))


def test_lines_that_are_no_json(tmp_path: Path) -> None:
    path = tmp_path / "dynamics_epoch_0.jsonl"
    path.write_text('{"guid": 1, "logits_epoch_0": [1, 2], "gold": 0}\n{"guid": 2, "logi\n')
    with pytest.raises(tamis.UserError, match="line 2"):
        import_logits(str(path), str(tmp_path / "records"))


def test_a_truncated_table_of_logits(tmp_path: Path) -> None:
    made(tmp_path / "in", 50, 3)
    path = tmp_path / "in" / "logged.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(tamis.UserError, match="not a whole Parquet file"):
        import_logits(str(path), str(tmp_path / "records"))


def test_a_folder_that_is_in_use(tmp_path: Path) -> None:
    made(tmp_path / "in", 5, 1)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "notes.txt").write_text("mine")
    with pytest.raises(tamis.UserError, match="files already"):
        import_logits(str(tmp_path / "in"), str(tmp_path / "records"))


def test_an_unknown_score(tmp_path: Path) -> None:
    made(tmp_path / "in", 5, 1)
    import_logits(str(tmp_path / "in"), str(tmp_path / "records"))
    found = find_dynamics(str(tmp_path / "records"))
    with pytest.raises(tamis.UserError, match="there are aum"):
        list(score_records(found, Account(), 1, ["margin"]))


def test_records_of_sorted_logits_say_that_they_are(tmp_path: Path) -> None:
    rows = [{"row_id": n, "epoch": 0, "logits": [1.0, 0.0], "label": 0} for n in range(9)]
    import_logits(str(logged(tmp_path / "in", rows)), str(tmp_path / "a"))
    import_logits(str(logged(tmp_path / "in2", rows[::-1])), str(tmp_path / "b"))
    assert [find_dynamics(str(tmp_path / n)).files[0].sorted for n in "ab"] == [True, False]
    one, other = (tamis.dynamics(tmp_path / n) for n in "ab")
    assert one.equals(other)
    footer = pq.read_metadata(tmp_path / "a/run-0/epoch-00000.parquet").metadata
    assert json.loads(footer[b"tamis.dynamics"])["classes"] == 2
