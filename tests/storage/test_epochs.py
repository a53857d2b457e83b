"""Training records of many files, merged by row_id: against a slow version, and bad files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.storage import epochs, record_streams
from tamis.storage.dynamics import FOOTER, RECORD, find_dynamics, write_records
from tamis.storage.epochs import COLUMNS, read_blocks
from tamis.storage.errors import UserError

FLOATS = ("label_prob", "loss", "entropy", "el2n")


def records(
    random: np.random.Generator, ids: list[Any], epoch: int, *, steps: bool = True
) -> pa.Table:
    """Made-up records, one for each of the ids in their order."""
    n = len(ids)
    columns: dict[str, Any] = {
        "row_id": pa.array(ids, pa.string() if ids and isinstance(ids[0], str) else pa.int64()),
        "epoch": np.full(n, epoch, np.int32),
        "step": random.permutation(n) if steps else pa.nulls(n, pa.int64()),
        "label": random.integers(0, 5, n).astype(np.int32),
        "other": random.integers(0, 5, n).astype(np.int32),
        "correct": random.random(n) < 0.5,
        "threshold": random.random(n) < 0.1,
    }
    for name in ("label_logit", "other_logit", *FLOATS):
        columns[name] = random.normal(size=n).astype(np.float32)
    schema = RECORD.set(0, pa.field("row_id", columns["row_id"].type, nullable=False))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def write(folder: Path, name: str, table: pa.Table, **told: Any) -> Path:
    """A file as some other trainer writes it; with a footer if anything is told."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if told:
        table = table.replace_schema_metadata({FOOTER: json.dumps({"version": 1, **told})})
    pq.write_table(table, path)
    return path


def read(folder: Path | list[str], workers: int = 2) -> tuple[list[Any], dict[str, Any]]:
    """All blocks, one after the other."""
    where = folder if isinstance(folder, list) else str(folder)
    blocks = list(read_blocks(find_dynamics(where), COLUMNS, workers=workers))
    ids = [v for block in blocks for v in block.row_id.to_pylist()]
    columns = {
        name: np.concatenate([block.columns[name] for block in blocks])
        for name in blocks[0].columns
    }
    return ids, {**columns, "updates": np.concatenate([block.updates for block in blocks])}


def slow(files: list[tuple[int, int, int, int, pa.Table]], wide: int) -> dict[Any, dict[str, Any]]:
    """By row_id and name a list of T values: what the reader should give."""
    found: dict[tuple[Any, int], list[Any]] = {}
    for run, epoch, window, rank, table in files:
        for place, row in enumerate(table.to_pylist()):
            step = -1 if row["step"] is None else row["step"]
            key = row["row_id"], run * wide + epoch
            found.setdefault(key, []).append(((step, rank, window, place), row))
    epochs_in_all = wide * (1 + max(run for run, *_ in files))
    result: dict[Any, dict[str, Any]] = {}
    for (row_id, t), several in found.items():
        several.sort(key=lambda pair: pair[0])
        rows = [row for _, row in several]
        mine = result.setdefault(
            row_id,
            {
                **{name: [math.nan] * epochs_in_all for name in ("margin", *FLOATS)},
                **{n: [-1] * epochs_in_all for n in ("label", "other", "correct", "threshold")},
                "updates": [0] * epochs_in_all,
            },
        )
        margins = [np.float32(r["label_logit"]) - np.float32(r["other_logit"]) for r in rows]
        known = all(math.isfinite(m) for m in margins)
        mine["updates"][t] = len(rows)
        for name in ("label", "threshold"):
            mine[name][t] = int(rows[-1][name])
        if known:
            mine["margin"][t] = np.float32(sum(map(float, margins)) / len(rows))
            for name in FLOATS:
                mine[name][t] = np.float32(sum(row[name] for row in rows) / len(rows))
            for name in ("other", "correct"):
                mine[name][t] = int(rows[-1][name])
    return result


def assert_equals_slow(got: tuple[list[Any], dict[str, Any]], files: list[Any], wide: int) -> None:
    ids, columns = got
    expected = slow(files, wide)
    assert ids == sorted(expected)
    for name, matrix in columns.items():
        want = np.array([expected[row_id][name] for row_id in ids], matrix.dtype)
        np.testing.assert_array_equal(matrix, want, err_msg=name)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks and many sorted runs from little data."""
    monkeypatch.setattr(epochs, "_MOST_ROWS", 40)
    monkeypatch.setattr(epochs, "LEAST_ROWS", 16)
    monkeypatch.setattr(epochs, "_AHEAD_BYTES", 1)
    monkeypatch.setattr(epochs, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(epochs, "_FEWEST_ROWS", 1)
    monkeypatch.setattr(record_streams, "SORT_ROWS", 50)


def made(
    folder: Path, seed: int, *, kind: Any, order: str, repeats: bool, parts: str
) -> list[tuple[int, int, int, int, pa.Table]]:
    """Files of two runs of three epochs, over 200 rows of which some are missing."""
    random = np.random.default_rng(seed)
    files = []
    for run in range(2):
        for epoch in range(3):
            count = 1 if parts == "whole" else 2
            for part in range(count):
                present = random.permutation(200)[: 200 if order == "same" else 120]
                if order == "same" and count == 2:
                    present = present[present % 2 == part]
                ids = [kind(v) for v in present]
                if repeats:
                    ids += [kind(v) for v in random.choice(present, 30)]
                table = records(random, ids, epoch, steps=random.random() < 0.8)
                broken = random.random(len(ids)) < 0.02
                logit = np.where(broken, random.choice([np.nan, np.inf, -np.inf]), 0.5)
                place = table.schema.get_field_index("label_logit")
                table = table.set_column(
                    place, table.schema.field(place), [pa.array(logit, pa.float32())]
                )
                window, rank = (part, 0) if parts == "windows" else (0, part)
                files.append((run, epoch, window, rank, table))
                name = f"run-{run}/epoch-{epoch:05d}.window-{window:05d}.rank-{rank}.parquet"
                if order == "shuffled":
                    write(folder, name, table)
                else:
                    told = {"run": run, "epoch": epoch, "window": window, "rank": rank}
                    write_records(folder / name, table, told)
    return files


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", [int, lambda v: f"row-{v:x}é"], ids=["int", "text"])
@pytest.mark.parametrize("order", ["same", "differing", "shuffled"])
@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("parts", ["whole", "ranks", "windows"])
def test_blocks_equal_a_slow_version(
    tmp_path: Path, kind: Any, order: str, repeats: bool, parts: str
) -> None:
    files = made(tmp_path, 3, kind=kind, order=order, repeats=repeats, parts=parts)
    found = read(tmp_path)
    assert_equals_slow(found, files, 3)
    ids, columns = read(tmp_path, workers=1)
    assert ids == found[0]
    for name, matrix in columns.items():
        assert matrix.tobytes() == found[1][name].tobytes(), name


def test_neither_the_order_of_files_nor_of_records_matters(tmp_path: Path) -> None:
    """Repeats of a row are told apart by step and rank, which stay with them."""
    random = np.random.default_rng(7)
    tables = [
        records(random, [*range(50), *range(0, 50, 3), *range(0, 50, 7)], epoch)
        for epoch in (0, 0, 1)
    ]
    for rank, table in enumerate(tables[:2]):
        write(tmp_path / "a", f"run-0/epoch-00000.rank-{rank}.parquet", table)
    write(tmp_path / "a", "run-0/epoch-00001.parquet", tables[2])
    shuffled = [table.take(random.permutation(len(table))) for table in tables]
    for rank in (1, 0):  # names that sort the other way round
        write(tmp_path / "b", f"x/{9 - rank}.parquet", shuffled[rank], epoch=0, rank=rank, run=0)
    write(tmp_path / "b", "x/0.parquet", shuffled[2], epoch=1, run=0)
    one, other = read(tmp_path / "a"), read(tmp_path / "b", workers=1)
    assert one[0] == other[0]
    for name, matrix in one[1].items():
        assert matrix.tobytes() == other[1][name].tobytes(), name


def test_a_class_that_comes_late_and_an_epoch_that_is_missing(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for epoch, ids in ((0, [1, 2]), (3, [1, 2, 3])):
        table = records(random, ids, epoch)
        table = table.set_column(
            3, table.schema.field(3), [pa.array([n + epoch for n in range(len(ids))], pa.int32())]
        )
        write(tmp_path, f"epoch-{epoch:05d}.parquet", table)
    found = find_dynamics(str(tmp_path))
    assert (found.runs, found.first, found.last) == (1, 0, 3)
    assert found.missing() == [(0, 1), (0, 2)]
    ids, columns = read(tmp_path)
    assert ids == [1, 2, 3]
    assert columns["label"].tolist() == [[0, -1, -1, 3], [1, -1, -1, 4], [-1, -1, -1, 5]]
    assert np.isnan(columns["margin"][:, 1:3]).all()


def test_one_row(tmp_path: Path) -> None:
    write(tmp_path, "epoch-00000.parquet", records(np.random.default_rng(1), ["only"], 0))
    ids, columns = read(tmp_path)
    assert ids == ["only"]
    assert columns["updates"].tolist() == [[1]]


def test_a_file_without_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    write(tmp_path, "epoch-00000.parquet", records(random, [4, 5], 0))
    write(tmp_path, "epoch-00001.parquet", records(random, [], 1), epoch=1)
    assert read(tmp_path)[1]["updates"].tolist() == [[1, 0], [1, 0]]


def test_other_types_that_hold_the_same_numbers(tmp_path: Path) -> None:
    """As pandas or polars write them: float64, int64, large strings, dictionaries, no step."""
    table = records(np.random.default_rng(1), ["b", "a", "ä"], 0)
    write(tmp_path / "a", "epoch-00000.parquet", table)
    wide = table.drop_columns(["step"])
    for n, field in enumerate(wide.schema):
        kind = {pa.float32(): pa.float64(), pa.int32(): pa.int64()}.get(field.type, field.type)
        if field.name == "row_id":
            kind = pa.dictionary(pa.int32(), pa.large_string())
        wide = wide.set_column(n, pa.field(field.name, kind), wide[field.name].cast(kind))
    write(tmp_path / "b", "epoch-00000.parquet", wide)
    one, other = read(tmp_path / "a"), read(tmp_path / "b")
    assert one[0] == other[0] == ["a", "b", "ä"]
    for name, matrix in one[1].items():
        np.testing.assert_array_equal(matrix, other[1][name])


def test_the_longest_integers(tmp_path: Path) -> None:
    ids = [2**63 - 1, -(2**63), 0, -1]
    write(tmp_path, "epoch-00000.parquet", records(np.random.default_rng(1), ids, 0))
    assert read(tmp_path)[0] == sorted(ids)


def test_epochs_that_do_not_count(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for epoch in range(5):
        write(tmp_path, f"epoch-{epoch:05d}.parquet", records(random, [1], epoch))
    found = find_dynamics(str(tmp_path))
    some = found.between(1, 4)
    assert [file.epoch for file in some.files] == [1, 2, 3]
    assert (some.first, some.epochs) == (1, 3)
    with pytest.raises(UserError, match="epochs 0 to 4"):
        found.between(5, None)


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    place = table.schema.get_field_index(name)
    array = pa.array(values)
    return table.set_column(place, pa.field(name, array.type), array)


@pytest.mark.parametrize(
    ("change", "told", "says"),
    [
        (lambda t: t.drop_columns(["loss"]), {}, "no column 'loss'"),
        (lambda t: replaced(t, "loss", ["a", "b"]), {}, "'loss': expected float, found string"),
        (lambda t: replaced(t, "row_id", [0.5, 1.5]), {}, "'row_id': expected int64, found double"),
        (lambda t: replaced(t, "epoch", [0, 1]), {}, "column epoch holds 0 to 1"),
        (lambda t: replaced(t, "epoch", [-1, -1]), {}, "epochs are from 0"),
        (lambda t: t, {"epoch": 4}, "column epoch holds 0, but its footer says epoch 4"),
        (lambda t: t, {"version": 2}, "version 2, this tamis reads version 1"),
        (lambda t: replaced(t, "loss", [None, 1.0]), {}, "null in record 0"),
        (lambda t: replaced(t, "row_id", [3, None]), {}, "null in record 1"),
        (lambda t: t[::-1], {"sorted": True}, "says that row_id ascends, but record 1 does not"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, change: Any, told: Any, says: str) -> None:
    table = records(np.random.default_rng(1), [1, 2], 0)
    path = write(tmp_path, "epoch-00000.parquet", change(table), **told)
    with pytest.raises(UserError, match=says) as error:
        read(tmp_path)
    assert str(path) in str(error.value)


def test_a_footer_that_is_no_json(tmp_path: Path) -> None:
    table = records(np.random.default_rng(1), [1, 2], 0)
    pq.write_table(table.replace_schema_metadata({FOOTER: "?"}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="this tamis reads version 1"):
        read(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_truncated_file(tmp_path: Path, keep: float) -> None:
    path = write(tmp_path, "a.parquet", records(np.random.default_rng(1), list(range(5000)), 0))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if 0 < keep < 1 else keep])
    with pytest.raises(UserError, match="not a whole Parquet file"):
        read(tmp_path)


def test_damage_in_the_middle(tmp_path: Path) -> None:
    """Whose footer is whole: found when it is read, and told with the file's name."""
    path = write(tmp_path, "a.parquet", records(np.random.default_rng(1), list(range(50_000)), 0))
    whole = bytearray(path.read_bytes())
    whole[2_000:200_000] = b"\xff" * 198_000
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"a\.parquet: .*cannot be read"):
        read(tmp_path)


def test_ids_of_several_types(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    write(tmp_path, "epoch-00000.parquet", records(random, [1, 2], 0))
    write(tmp_path, "epoch-00001.parquet", records(random, ["1", "2"], 1))
    with pytest.raises(UserError, match=r"epoch-00001\.parquet: row_id: expected int64 .* strings"):
        find_dynamics(str(tmp_path))


def test_the_same_part_twice(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for name in "ab":
        write(tmp_path, f"{name}.parquet", records(random, [1, 2], 0))
    with pytest.raises(UserError, match=r"b\.parquet: holds the same .*a\.parquet"):
        find_dynamics(str(tmp_path))


@pytest.mark.parametrize("make", [False, True])
def test_no_records(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "records"
    if make:
        folder.mkdir()
        (folder / "readme.txt").write_text("nothing")
    with pytest.raises(UserError, match="no Parquet files" if make else "no such folder"):
        find_dynamics(str(folder))


def test_records_in_memory_of_fsspec(tmp_path: Path) -> None:
    from upath import UPath

    home = UPath("memory://tamis-records/run-0")
    home.mkdir(parents=True, exist_ok=True)
    path = write(tmp_path, "a.parquet", records(np.random.default_rng(1), [3, 1], 0))
    (home / "epoch-00000.parquet").write_bytes(path.read_bytes())
    found = find_dynamics("memory://tamis-records")
    (block,) = read_blocks(found, ["loss"], workers=1)
    assert block.row_id.to_pylist() == [1, 3]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("ascending", [True, False])
def test_all_logits(tmp_path: Path, ascending: bool) -> None:
    """Means of repeats; no extra class; a class that comes late; nothing of broken records."""
    random = np.random.default_rng(4)
    expected = np.full((60, 2, 2, 3), np.nan, np.float32)
    for run, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        ids = [*range(run, 60 - epoch), 5, 9]
        classes = 2 if epoch == 0 and run == 0 else 3
        table = records(random, ids, epoch)
        table = replaced(table, "threshold", [run == 1 and n == 3 for n in ids])
        logits = random.normal(size=(len(ids), classes + run)).astype(np.float32)
        table = table.append_column("logits", pa.array(logits.tolist(), pa.list_(pa.float32())))
        table = replaced(table, "other_logit", [np.nan if n == 8 else 0.0 for n in ids])
        told = {"run": run, "epoch": epoch, "classes": classes + run}
        if ascending:
            write_records(tmp_path / f"run-{run}/epoch-{epoch:05d}.parquet", table, told)
        else:
            table = table.take(random.permutation(len(table)))
            write(tmp_path, f"run-{run}/epoch-{epoch:05d}.parquet", table, **told)
        for n in set(ids) - {8}:
            mine = logits[[i for i, other in enumerate(ids) if other == n]].astype(float)
            expected[n, run, epoch] = -np.inf
            expected[n, run, epoch, :classes] = mine.mean(axis=0)[:classes]
    blocks = list(read_blocks(find_dynamics(str(tmp_path)), ["logits"], workers=2))
    found = np.concatenate([block.columns["logits"] for block in blocks])
    np.testing.assert_array_equal(found, expected.reshape(60, 12))


def test_logits_that_are_not_there(tmp_path: Path) -> None:
    table = records(np.random.default_rng(1), [1, 2], 0)
    path = write(tmp_path, "a.parquet", table, classes=2)
    with pytest.raises(UserError, match=r"a\.parquet: lacks logits"):
        list(read_blocks(find_dynamics(str(tmp_path)), ["logits"], workers=1))
    with_logits = table.append_column("logits", pa.array([[1.0, 2.0], [1.0, 2.0]]))
    pq.write_table(with_logits, path)
    with pytest.raises(UserError, match="lacks the number of `classes`"):
        list(read_blocks(find_dynamics(str(tmp_path)), ["logits"], workers=1))
    write(tmp_path, "a.parquet", with_logits, classes=1)
    with pytest.raises(UserError, match="2 logits in record 0, its footer says at most 1"):
        list(read_blocks(find_dynamics(str(tmp_path)), ["logits"], workers=1))
