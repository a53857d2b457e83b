"""The probe on tables: planted wrong labels, what does not matter, and tables that say little."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tamis
from tamis.cli import app
from tamis.storage.catalog import query
from tamis.storage.errors import TamisError, UserError

SMALL: dict[str, Any] = {"epochs": 3, "hidden": [0, 4], "embedding": "vector"}


def table(
    n: int = 300, classes: int = 3, size: int = 8, noise: float = 0.0, seed: int = 0
) -> pl.DataFrame:
    """Clusters of vectors, their classes, and labels of which a share is wrong."""
    random = np.random.default_rng(seed)
    true = random.integers(0, classes, n)
    wrong = random.random(n) < noise
    label = np.where(wrong, (true + random.integers(1, classes, n)) % classes, true)
    vectors = random.normal(size=(classes, size))[true] * 1.5 + random.normal(size=(n, size))
    return pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(n)],
            "vector": vectors.astype(np.float32).tolist(),
            "label": [f"c{i}" for i in label],
            "wrong": label != true,
        },
        schema_overrides={"vector": pl.List(pl.Float32), "label": pl.String, "id": pl.String},
    )


def run(folder: Path, rows: pl.DataFrame | pa.Table, workers: int = 2, **params: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    given = rows.to_arrow() if isinstance(rows, pl.DataFrame) else rows
    options = {name: params.pop(name) for name in ("memory", "max_quarantine") if name in params}
    group = params.pop("rows_per_shard", 37)
    pq.write_table(given, folder / "in.parquet", row_group_size=group)
    return tamis.run(
        {
            "corpus": {
                "path": str(folder / "in.parquet"),
                "roles": {"label": "label", "id": "id"},
                "shard_bytes": 1,
            },
            "stages": [{"operator": "probe", **SMALL, **params}],
            "workspace": str(folder / "w"),
            "workers": workers,
            **options,
        }
    )


def scores(folder: Path, rows: pl.DataFrame | pa.Table, **params: Any) -> pl.DataFrame:
    result = run(folder, rows, **params)
    joined = "SELECT r.id, s.* FROM scores s JOIN rows r USING (row_id, copy)"
    return tamis.sql(result, joined).sort("id")


def auroc(wrong: npt.ArrayLike, suspicion: npt.ArrayLike) -> float:
    """How probable it is that a wrong row is more suspicious than a right one."""
    wrong, suspicion = np.asarray(wrong), np.asarray(suspicion)
    ranks = np.argsort(np.argsort(suspicion))[wrong]
    k = wrong.sum()
    return float((ranks.sum() - k * (k - 1) / 2) / (k * (len(wrong) - k)))


def matrix(column: pl.Series) -> npt.NDArray[Any]:
    return np.array(column.to_list())


def test_columns(tmp_path: Path) -> None:
    rows = table(n=200)
    found = scores(tmp_path, rows, logits=True, name="p")
    assert found.columns[-15:] == [
        f"p_{name}"
        for name in (
            *("label", "margin", "label_prob", "loss", "entropy", "el2n", "correct", "other"),
            *("updates", "ordinary", "logits", "probs", "suggested", "suggested_prob", "unseen"),
        )
    ]
    classes = np.array(["c0", "c1", "c2"])
    assert (classes[found["p_label"]] == rows.sort("id")["label"].to_numpy()).all()
    assert matrix(found["p_margin"]).shape == (200, 6)
    assert matrix(found["p_ordinary"]).shape == (200, 2)
    assert (~matrix(found["p_ordinary"])).sum(axis=0).tolist() == [50, 50]
    assert matrix(found["p_logits"]).shape == (200, 6 * 3)
    assert (matrix(found["p_updates"]) == 1).all()
    assert (matrix(found["p_correct"]) == (matrix(found["p_margin"]) > 0)).all()
    assert not found["p_unseen"].any()
    probs = matrix(found["p_probs"])
    assert probs.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (classes[probs.argmax(axis=1)] == found["p_suggested"].to_numpy()).all()
    assert (probs.max(axis=1) == found["p_suggested_prob"].to_numpy()).all()


@pytest.mark.parametrize("loss", ["cross_entropy", "gce", "elr"])
def test_planted_wrong_labels_are_found(tmp_path: Path, loss: str) -> None:
    rows = table(n=600, noise=0.2, seed=1)
    found = scores(tmp_path, rows, loss=loss, epochs=8)
    wrong = rows.sort("id")["wrong"].to_numpy()
    own = matrix(found["probe_probs"])[np.arange(600), found["probe_label"]]
    assert auroc(wrong, -own) > 0.97
    ordinary = np.repeat(matrix(found["probe_ordinary"]), 8, axis=1)
    margins = np.where(ordinary, matrix(found["probe_margin"]), np.nan)
    assert auroc(wrong, -np.nanmean(margins, axis=1)) > 0.97
    # In a run of its own with an extra class, what is below most threshold samples is wrong.
    first = matrix(found["probe_margin"])[:, :8].mean(axis=1)
    sample = ~matrix(found["probe_ordinary"])[:, 0]
    below = ~sample & (first <= np.quantile(first[sample], 0.99))
    assert wrong[below].mean() > 0.6
    assert wrong[below].sum() > 0.7 * wrong[~sample].sum()


def test_nothing_depends_on_order_shards_or_workers(tmp_path: Path) -> None:
    rows = table(n=130, noise=0.1)
    first = scores(tmp_path / "a", rows, workers=1, logits=True, repeats=3)
    shuffled = rows.sample(fraction=1, shuffle=True, seed=3)
    again = scores(tmp_path / "b", shuffled, workers=4, rows_per_shard=11, logits=True, repeats=3)
    places = ["shard", "row"]
    assert first.drop(places).equals(again.drop(places))
    other = scores(tmp_path / "c", rows, seed=1, logits=True, repeats=3)
    assert not first["probe_ordinary"].equals(other["probe_ordinary"])


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pa.array([0, 1] * 20), ["0", "1"]),
        (pa.array([0.0, 1.0] * 20), ["0", "1"]),
        (pa.array([False, True] * 20), ["false", "true"]),
        (pa.array(["漢", ""] * 20).dictionary_encode(), ["", "漢"]),
    ],
)
def test_labels_of_any_kind(tmp_path: Path, labels: pa.Array, names: list[str]) -> None:
    given = table(n=40).to_arrow()
    given = given.set_column(given.schema.get_field_index("label"), "label", labels)
    found = scores(tmp_path, given)
    assert set(found["probe_suggested"]) <= set(names)
    assert sorted(set(found["probe_label"])) == [0, 1]


def test_a_row_without_label_is_quarantined(tmp_path: Path) -> None:
    rows = table(n=50).with_columns(
        label=pl.when(pl.col("id") == "r7").then(None).otherwise("label")
    )
    result = run(tmp_path, rows, max_quarantine=0.5)
    assert result.manifest["rows"]["quarantined"] == 1


def test_the_only_row_of_a_class_is_marked(tmp_path: Path) -> None:
    rows = table(n=60).with_columns(
        label=pl.when(pl.col("id") == "r7").then(pl.lit("alone")).otherwise("label")
    )
    found = scores(tmp_path, rows)
    assert found.filter("probe_unseen")["id"].to_list() == ["r7"]
    (probs,) = found.filter("probe_unseen")["probe_probs"].to_list()
    assert probs[0] < 0.1
    assert sum(probs) == pytest.approx(1, abs=1e-5)


def test_one_class_is_refused(tmp_path: Path) -> None:
    rows = table(n=20).with_columns(label=pl.lit("same"))
    with pytest.raises(UserError, match="all 20 rows have the label 'same': there is nothing"):
        run(tmp_path, rows)
    with pytest.raises(UserError, match="all 1 rows have the label"):
        run(tmp_path / "one", rows[:1])


def test_an_empty_corpus(tmp_path: Path) -> None:
    found = scores(tmp_path, table()[:0])
    assert len(found) == 0
    assert "probe_probs" in found.columns


@pytest.mark.parametrize("n", [2, 3, 4])
def test_fewer_rows_than_folds(tmp_path: Path, n: int) -> None:
    rows = table(n=n).with_columns(label=pl.Series(["a", "b", "a", "b"][:n]))
    found = scores(tmp_path, rows)
    assert found["probe_unseen"].to_list() == [n == 2 or (n == 3 and i == 1) for i in range(n)]
    assert np.isfinite(matrix(found["probe_probs"])).all()
    assert matrix(found["probe_ordinary"]).sum() == 2 * n - 2  # a threshold sample in each run


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_vectors_that_say_nothing(tmp_path: Path, value: float) -> None:
    rows = table(n=90).with_columns(
        vector=pl.lit([value] * 8, pl.List(pl.Float32)),
        label=pl.Series(["a"] * 60 + ["b"] * 30),
    )
    found = scores(tmp_path, rows, hidden=[0])
    probs = matrix(found["probe_probs"])
    assert probs == pytest.approx(np.tile([2 / 3, 1 / 3], (90, 1)), abs=0.06)


def test_vectors_that_are_none(tmp_path: Path) -> None:
    rows = table(n=20)
    bad = rows.with_columns(
        vector=pl.when(pl.col("id") == "r3")
        .then(pl.lit([float("nan")] * 8, pl.List(pl.Float32)))
        .otherwise("vector")
    )
    with pytest.raises(UserError, match="holds a null, NaN or infinity"):
        run(tmp_path, bad)
    with pytest.raises(TamisError, match="expected"):
        run(tmp_path / "text", rows.with_columns(vector=pl.col("id")))


def test_many_classes(tmp_path: Path) -> None:
    n = 3000
    rows = table(n=n).with_columns(label=pl.int_range(n) // 2)
    found = scores(
        tmp_path, rows, epochs=1, folds=2, hidden=[0], threshold_runs=0, rows_per_shard=n
    )
    assert found["probe_probs"].list.len().unique().to_list() == [1500]
    assert matrix(found["probe_ordinary"]).all()
    assert not found["probe_unseen"].any()


def test_more_classes_than_memory(tmp_path: Path) -> None:
    n = 20_000
    rows = table(n=n).with_columns(label=pl.int_range(n))
    with pytest.raises(UserError, match=r"20,000 rows by 20,000 classes are .* than memory is"):
        run(tmp_path, rows, memory="1.5GB", rows_per_shard=n)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"threshold_runs": 1}, "with one run its threshold samples have no score"),
        ({"threshold_runs": 9}, r"9 runs with 10 threshold samples each need 90 rows"),
        ({"learning_rate": 1e38, "weight_decay": 0}, "beyond all bounds"),
        ({"weight_decay": 5000}, "times the learning rate it must be below 1"),
        ({"hidden": []}, "hidden"),
        ({"embedding": "vectors"}, "vectors"),
    ],
)
def test_parameters_that_cannot_be(tmp_path: Path, params: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(tmp_path, table(n=40), **params)


def test_lengths_of_vectors_count(tmp_path: Path) -> None:
    """Vectors of one direction, of which the longer ones are another class."""
    random = np.random.default_rng(0)
    length = np.where(np.arange(200) < 100, 1.0, 2.0) * random.uniform(0.9, 1.1, 200)
    rows = table(n=200).with_columns(
        vector=pl.Series([[float(x)] for x in length]),
        label=pl.Series(["short"] * 100 + ["long"] * 100),
    )
    found = scores(tmp_path, rows, hidden=[0], epochs=30)
    codes = np.asarray(found["probe_label"])
    assert (matrix(found["probe_probs"]).argmax(axis=1) == codes).all()


def test_from_the_command_line(tmp_path: Path) -> None:
    table(n=60).write_parquet(tmp_path / "in.parquet")
    arguments = ["--label", "label", "--id", "id", "-w", str(tmp_path / "w")]
    params = ["--param", "embedding=vector", "--param", "epochs=2"]
    result = CliRunner().invoke(
        app, ["score", "probe", str(tmp_path / "in.parquet"), *arguments, *params]
    )
    assert result.exit_code == 0, result.output
    _, rows = query(tmp_path / "w", "SELECT len(probe_margin), len(probe_probs) FROM scores")
    assert rows == [(4, 3)] * 60
