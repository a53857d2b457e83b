"""Records of a trainer as columns of a corpus."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import tamis
from tamis.cli import app
from tamis.scoring.logged_logits import import_logits
from tamis.selectors import training_dynamics
from tamis.storage.dynamics import write_records
from tests.storage.test_epochs import read, records

FLOATS = ("margin", "label_prob", "loss", "entropy", "el2n")
INTEGERS = ("correct", "other", "updates")


def corpus(folder: Path, ids: Any, texts: list[str] | None = None) -> Path:
    path = folder / "corpus.parquet"
    texts = texts or [f"text {n}" for n in range(len(ids))]
    pl.DataFrame({"name": ids, "text": texts}).write_parquet(path)
    return path


def run(folder: Path, path: Path, where: Any, unmatched: float = 0.5, **roles: str) -> pl.DataFrame:
    result = tamis.run(
        {
            "corpus": {"path": str(path), "roles": {"text": "text", **roles}},
            "stages": [
                {
                    "operator": "training_dynamics",
                    "name": "t",
                    "path": where,
                    "unmatched": unmatched,
                }
            ],
            "workspace": str(folder / "work"),
        }
    )
    return tamis.sql(result, "SELECT * FROM scores ORDER BY shard, row")


def recorded(folder: Path, ids: Any, run: int = 0, epochs: int = 3, seed: int = 2) -> None:
    random = np.random.default_rng(seed)
    for epoch in range(epochs):
        some = [row_id for row_id in ids if random.random() < 0.8]
        table = records(random, some, epoch)
        threshold = np.asarray([sum(map(ord, str(v))) % 5 == run for v in some])
        place = table.schema.get_field_index("threshold")
        table = table.set_column(place, table.schema.field(place), [threshold.tolist()])
        told = {"run": run, "epoch": epoch, "window": 0, "rank": 0}
        write_records(folder / f"run-{run}/epoch-{epoch:05d}.parquet", table, told)


@pytest.mark.parametrize("kind", [int, lambda v: f"r{v}"], ids=["int", "text"])
@pytest.mark.parametrize("passes", [1, 9])
def test_columns_are_the_records_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, passes: int
) -> None:
    """In the order of the corpus, copies alike, over several passes; nothing where none are."""
    monkeypatch.setattr(training_dynamics, "_PASS_BYTES", 6 * 33 * (300 // passes))
    random = np.random.default_rng(3)
    ids = [kind(v) for v in random.integers(0, 400, 300)]
    for number in range(2):
        recorded(tmp_path / "dynamics", [kind(v) for v in range(0, 400, 2)], number, seed=number)
    path = corpus(tmp_path, ids, [f"text {row_id}" for row_id in ids])
    found = run(tmp_path, path, str(tmp_path / "dynamics"), unmatched=1, id="name")
    known, columns = read(tmp_path / "dynamics")
    at = {row_id: n for n, row_id in enumerate(known)}
    place = np.array([at.get(row_id, -1) for row_id in ids])
    assert 50 < (place < 0).sum() < 250
    for name in (*FLOATS, *INTEGERS):
        got = np.array(found[f"t_{name}"].to_list())
        missing = np.nan if name in FLOATS else 0 if name == "updates" else -1
        want = np.where((place < 0)[:, None], missing, columns[name][place])
        np.testing.assert_array_equal(got, want, err_msg=name)
    sampled = (columns["threshold"].reshape(-1, 2, 3) > 0).any(axis=2)
    ordinary = np.array(found["t_ordinary"].to_list())
    np.testing.assert_array_equal(ordinary, ~sampled[place] | (place < 0)[:, None])
    assert 0 < (~ordinary).sum() < 200
    for row, (label, at_row) in enumerate(zip(found["t_label"], place, strict=True)):
        said = columns["label"][at_row].reshape(2, 3)[ordinary[row]].ravel()
        said = [] if at_row < 0 else [v for v in said if v >= 0]
        assert label == (said[-1] if said else None)


def test_several_folders_are_runs(tmp_path: Path) -> None:
    for number in range(2):
        recorded(tmp_path / f"d{number}", range(20), seed=number)
    path = corpus(tmp_path, list(range(20)))
    where = [str(tmp_path / f"d{number}") for number in range(2)]
    found = run(tmp_path, path, where, id="name")
    assert found["t_updates"].list.len().unique().to_list() == [6]
    alone = [run(tmp_path / str(n), path, where[n], id="name") for n in range(2)]
    both = [a + b for a, b in zip(*(one["t_updates"].to_list() for one in alone), strict=True)]
    assert found["t_updates"].to_list() == both


def test_rows_go_by_their_row_id_where_no_column_names_them(tmp_path: Path) -> None:
    path = corpus(tmp_path, [f"n{v}" for v in range(12)])
    plain = tamis.run(
        {
            "corpus": {"path": str(path), "roles": {"text": "text"}},
            "stages": [{"operator": "text_stats"}],
            "workspace": str(tmp_path / "ids"),
        }
    )
    ids = tamis.sql(plain, "SELECT row_id FROM rows ORDER BY shard, row")["row_id"].to_list()
    recorded(tmp_path / "dynamics", ids)
    found = run(tmp_path, path, str(tmp_path / "dynamics"))
    updates = np.array(found["t_updates"].to_list())
    known, columns = read(tmp_path / "dynamics")
    np.testing.assert_array_equal(updates[np.argsort(ids)], columns["updates"])
    assert known == sorted(ids)


def test_scores_follow_the_records(tmp_path: Path) -> None:
    """The same corpus and recipe, other records: nothing stored is taken for theirs."""
    path = corpus(tmp_path, list(range(20)))
    recorded(tmp_path / "dynamics", range(20), seed=1)
    before = run(tmp_path, path, str(tmp_path / "dynamics"), id="name")
    again = run(tmp_path, path, str(tmp_path / "dynamics"), id="name")
    assert before.equals(again, null_equal=True)
    recorded(tmp_path / "dynamics", range(20), seed=2)
    after = run(tmp_path, path, str(tmp_path / "dynamics"), id="name")
    assert before["t_margin"].to_list() != after["t_margin"].to_list()


def test_scorers_read_the_columns(tmp_path: Path) -> None:
    path = corpus(tmp_path, list(range(40)))
    recorded(tmp_path / "dynamics", range(30), epochs=4)
    result = tamis.run(
        {
            "corpus": {"path": str(path), "roles": {"text": "text", "id": "name"}},
            "stages": [
                {"operator": "training_dynamics", "path": str(tmp_path / "dynamics")},
                {"operator": "aum", "dynamics": "training_dynamics", "skip_epochs": 0},
                {"operator": "data_map", "dynamics": "training_dynamics"},
            ],
            "workspace": str(tmp_path / "work"),
        }
    )
    names = "aum, confidence, variability, correctness"
    found = tamis.sql(result, f"SELECT {names} FROM scores ORDER BY shard, row")
    alone = tamis.dynamics(tmp_path / "dynamics")
    assert found["aum"][30:].null_count() == 10
    for name in found.columns:
        np.testing.assert_array_equal(found[name][:30].to_numpy(), alone[name].to_numpy())


def test_commands_tell_what_did_not_match_and_score_what_is_stored(tmp_path: Path) -> None:
    recorded(tmp_path / "dynamics", range(30), epochs=4)
    path, home = corpus(tmp_path, list(range(5, 40))), str(tmp_path / "work")
    given = ["--id", "name", "--param", f"path={tmp_path / 'dynamics'}", "-w", home]
    said = CliRunner().invoke(app, ["score", "training_dynamics", str(path), *given])
    assert said.exit_code == 0, said.output
    told = " ".join(said.stderr.split())
    assert "10 of 35 rows have no records, 5 recorded rows are not among them" in told
    given = ["--param", "dynamics=training_dynamics", "-w", home, "--json"]
    said = CliRunner().invoke(app, ["score", "aum", *given])
    assert said.exit_code == 0, said.output
    scores = json.loads(said.stdout)["scores"]
    assert [one["score"] for one in scores] == ["aum"]  # a list of a number for every run is none
    alone = tamis.dynamics(tmp_path / "dynamics", skip_epochs=1).filter(pl.col("row_id") >= 5)
    assert scores[0]["rows"] == alone["aum"].count() > 10


@pytest.mark.parametrize(
    ("ids", "roles", "says"),
    [
        (["a", "b"], {"id": "name"}, "integers such as 0, the corpus by 'a'"),
        ([100, 101], {"id": "name"}, "integers such as 0, the corpus by 100"),
        ([0, 1], {}, "set corpus.roles.id"),
    ],
)
def test_no_row_with_records(tmp_path: Path, ids: Any, roles: dict[str, str], says: str) -> None:
    recorded(tmp_path / "dynamics", range(20))
    with pytest.raises(tamis.UserError, match=says):
        run(tmp_path, corpus(tmp_path, ids), str(tmp_path / "dynamics"), **roles)


@pytest.mark.parametrize("kind", [int, lambda v: f"r{v:05d}"], ids=["int", "text"])
def test_a_few_ids_that_match_by_accident_are_no_join(tmp_path: Path, kind: Any) -> None:
    recorded(tmp_path / "dynamics", [kind(v) for v in range(200)], epochs=6)
    path = corpus(tmp_path, [kind(v) for v in range(195, 1195)])
    where = str(tmp_path / "dynamics")
    with pytest.raises(tamis.UserError, match=r"only 5 of 1,000 rows have records.*allows 50%"):
        run(tmp_path, path, where, id="name")
    found = run(tmp_path, path, where, unmatched=0.995, id="name")
    assert sum(sum(row) > 0 for row in found["t_updates"].to_list()) == 5


def test_row_ids_are_made_where_the_id_column_is_not_what_records_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    hex_ids = training_dynamics.hex_ids

    def counted(*halves: Any) -> Any:
        made.append(halves)
        return hex_ids(*halves)

    monkeypatch.setattr(training_dynamics, "hex_ids", counted)
    recorded(tmp_path / "dynamics", [f"n{v}" for v in range(12)])
    path = corpus(tmp_path, [f"n{v}" for v in range(12)])
    run(tmp_path, path, str(tmp_path / "dynamics"), id="name")
    assert not made
    with pytest.raises(tamis.UserError, match="none of the 12 rows"):
        run(
            tmp_path,
            corpus(tmp_path, [f"m{v}" for v in range(12)]),
            str(tmp_path / "dynamics"),
            id="name",
        )
    assert made


def test_memory_is_bounded_however_many_the_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held of a pass and of what is written, with a thousand logits a row."""
    rows = [
        {"row_id": n, "epoch": e, "logits": [float(n), *[0.0] * 999], "label": 0}
        for e in range(2)
        for n in range(50)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "logged.parquet")
    import_logits(str(tmp_path / "logged.parquet"), str(tmp_path / "d"), keep_logits=True)
    width = 2 * (33 + 4000)
    monkeypatch.setattr(training_dynamics, "_PASS_BYTES", 7 * width)
    passes = []
    of_rows = training_dynamics.TrainingDynamics._of_rows

    def counted(self: Any, rows: int, *others: Any) -> Any:
        passes.append(rows)
        return of_rows(self, rows, *others)

    monkeypatch.setattr(training_dynamics.TrainingDynamics, "_of_rows", counted)
    stage = {"operator": "training_dynamics", "path": str(tmp_path / "d"), "logits": True}
    result = tamis.run(
        {
            "corpus": {
                "path": str(corpus(tmp_path, list(range(50))[::-1])),
                "roles": {"text": "text", "id": "name"},
            },
            "stages": [stage],
            "workspace": str(tmp_path / "work"),
        }
    )
    assert passes == [7] * 7 + [1]
    found = tamis.sql(result, "SELECT training_dynamics_logits AS z FROM scores ORDER BY row")
    assert [z[0] for z in found["z"].to_list()] == list(range(50))[::-1]
    several = training_dynamics.TrainingDynamics(path=str(tmp_path / "d"), logits=True)
    plain = training_dynamics.TrainingDynamics(path=str(tmp_path / "d"))
    # At least 256 rows of each file are read ahead, and then as many more.
    assert several.memory(0, 0) >= 512 * width > plain.memory(0, 0)


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_records_that_change_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Nothing of them is stored under the digest of what was there before."""
    folder = tmp_path / "dynamics"
    recorded(folder, range(20), seed=1)
    path = corpus(tmp_path, list(range(20)))
    read_blocks = training_dynamics.read_blocks

    def changed(records: Any, columns: Any, **options: Any) -> Any:
        yield from read_blocks(records, columns, **options)
        if columns and change == "replaced":
            recorded(folder, range(20), seed=2)
        elif columns:
            (folder / "run-0/epoch-00002.parquet").unlink()

    with monkeypatch.context() as patched:
        patched.setattr(training_dynamics, "read_blocks", changed)
        with pytest.raises(tamis.RunError, match="changed while they were read"):
            run(tmp_path, path, str(folder), id="name")
    assert not list(tmp_path.glob("work/scores/training_dynamics/**/*.parquet"))


@pytest.mark.parametrize("theirs", [True, False])
def test_ids_that_are_too_large(tmp_path: Path, theirs: bool) -> None:
    large = pl.Series([1, 2**63], dtype=pl.UInt64)
    recorded(tmp_path / "dynamics", range(20))
    path = corpus(tmp_path, [0, 1] if theirs else large)
    if theirs:
        file = tmp_path / "dynamics/run-0/epoch-00000.parquet"
        row = pl.read_parquet(file).head(2).with_columns(row_id=large)
        row.write_parquet(file)
    where = "epoch-00000" if theirs else "the corpus"
    with pytest.raises(tamis.UserError, match=f"{where}.*below 2.*63, found 9223372036854775808"):
        run(tmp_path, path, str(tmp_path / "dynamics"), id="name")


def test_a_pinned_digest(tmp_path: Path) -> None:
    recorded(tmp_path / "dynamics", range(20))
    path = corpus(tmp_path, list(range(20)))
    stage = {"operator": "training_dynamics", "path": str(tmp_path / "dynamics"), "digest": "0"}
    with pytest.raises(tamis.UserError, match="pins 0"):
        tamis.run(
            {
                "corpus": {"path": str(path), "roles": {"text": "text", "id": "name"}},
                "stages": [stage],
                "workspace": str(tmp_path / "work"),
            }
        )


def test_ids_that_are_null_have_no_records(tmp_path: Path) -> None:
    recorded(tmp_path / "dynamics", range(20))
    found = run(tmp_path, corpus(tmp_path, [0, None, 3]), str(tmp_path / "dynamics"), id="name")
    assert [sum(row) > 0 for row in found["t_updates"].to_list()] == [True, False, True]


def test_logits_on_request_for_early_learning_targets(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    rows = [
        {"row_id": n, "epoch": e, "logits": random.normal(size=3).tolist(), "label": n % 3}
        for e in range(3)
        for n in range(12)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "logged.parquet")
    import_logits(str(tmp_path / "logged.parquet"), str(tmp_path / "d"), keep_logits=True)
    result = tamis.run(
        {
            "corpus": {
                "path": str(corpus(tmp_path, list(range(20))[::-1])),
                "roles": {"text": "text", "id": "name"},
            },
            "stages": [
                {"operator": "training_dynamics", "path": str(tmp_path / "d"), "logits": True},
                {"operator": "early_learning_target", "dynamics": "training_dynamics"},
            ],
            "workspace": str(tmp_path / "work"),
        }
    )
    found = tamis.sql(result, "SELECT * FROM scores ORDER BY shard, row")
    assert found["early_learning_target"].is_null().to_list() == [True] * 8 + [False] * 12
    assert (
        found["training_dynamics_label"].to_list() == [None] * 8 + [n % 3 for n in range(12)][::-1]
    )
    logits = np.array(found["training_dynamics_logits"].to_list()[8:])
    want = np.array([row["logits"] for row in rows], np.float32).reshape(3, 12, 3)
    np.testing.assert_array_equal(logits, want.transpose(1, 0, 2).reshape(12, 9)[::-1])
