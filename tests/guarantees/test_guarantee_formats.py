"""The format of the input changes nothing but the types of columns that text cannot hold."""

import bz2
import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from guarantee_tools import (
    STAGES,
    Outcome,
    check_balance,
    decisions_by_row,
    documents,
    read_dataset,
    recipe,
    table_of,
    workspace_of,
    write_parquet,
)
from test_guarantee_schema import COLUMNS, ROWS, _table

import tamis
from tamis.recipe import CorpusPart
from tamis.storage.ingest import FORMATS, READERS, format_of, open_corpus

os.environ["HF_HUB_OFFLINE"] = "1"

Command = Callable[..., Outcome]


def _json(table: pa.Table) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()


def _csv(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    return bytes(sink.getvalue())


def _arrow(path: Path, table: pa.Table, make: Any) -> None:
    with make(str(path), table.schema) as writer:
        writer.write_table(table, 60)


def _datasets(path: Path, table: pa.Table) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset(table).save_to_disk(path, num_shards=2)


WRITERS: dict[str, Callable[[Path, pa.Table], object]] = {
    "in.parquet": write_parquet,
    "in.jsonl": lambda p, t: p.write_bytes(_json(t)),
    "in.jsonl.zst": lambda p, t: p.write_bytes(pa.Codec("zstd").compress(_json(t), asbytes=True)),
    "in.jsonl.bz2": lambda p, t: p.write_bytes(bz2.compress(_json(t))),
    "in.csv": lambda p, t: p.write_bytes(_csv(t)),
    "in.csv.gz": lambda p, t: p.write_bytes(gzip.compress(_csv(t))),
    "in.tsv": lambda p, t: pyarrow.csv.write_csv(
        t, p, pyarrow.csv.WriteOptions(delimiter="\t", quoting_style="needed")
    ),
    "in.arrow": lambda p, t: _arrow(p, t, pa.ipc.new_stream),
    "in.feather": lambda p, t: _arrow(p, t, pa.ipc.new_file),
    "folder": _datasets,
}


@pytest.fixture(scope="module")
def corpus() -> pa.Table:
    odd = ['he said "no",\nand\tleft', "", None, "né au 漢字 😀", " a,b ", "007", "\r\n"]
    texts = documents(51, 400)
    return table_of([*texts[:200], *odd, *texts[200:], *odd])


@pytest.fixture(scope="module")
def expected(corpus: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return _outcome("in.parquet", corpus, tmp_path_factory.mktemp("expected"))


def _outcome(name: str, table: pa.Table, home: Path) -> tuple[Any, Any]:
    WRITERS[name](home / name, table)
    out = home / "out"
    tamis.run(recipe(home / name, out, STAGES, max_quarantine=0.1))
    manifest = check_balance(workspace_of(out), out)
    assert manifest["rows"]["in"] == table.num_rows
    return decisions_by_row(workspace_of(out)), read_dataset(out).to_pylist()


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_rows_in_any_format_get_the_same_decisions(
    tmp_path: Path, corpus: pa.Table, expected: tuple[Any, Any], name: str
) -> None:
    assert {row["action"] for row in expected[0].values()} == {"keep", "drop", "quarantine"}
    decisions, rows = _outcome(name, corpus, tmp_path)
    assert decisions == expected[0]
    assert rows == expected[1]


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "TEXT"], ids=repr)
@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file], ids=["stream", "file"])
def test_arrow_columns_are_those_of_pyarrows_parquet_round_trip(
    tmp_path: Path, name: str, make: Any
) -> None:
    table = _table({name: COLUMNS[name]}).replace_schema_metadata({"made by": "a test"})
    _arrow(tmp_path / "in.arrow", table, make)
    found = open_corpus(str(tmp_path / "in.arrow"), tmp_path / "work")
    pq.write_table(table, tmp_path / "expected.parquet")
    theirs = pq.read_table(tmp_path / "expected.parquet")
    assert found.schema.equals(theirs.schema, check_metadata=True)
    (shard,) = found.shards
    ours = shard.table(found.schema.names)
    assert repr(ours[name].to_pylist()) == repr(theirs[name].to_pylist())


def test_arrow_columns_of_all_types_go_through_a_run(tmp_path: Path) -> None:
    odd = {"TEXT", "row_id", "copy", "shard", "row", "filename", "file_row_number"}
    table = _table({name: column for name, column in COLUMNS.items() if name not in odd})
    inner = pa.array(["x", None] * (ROWS // 2)).dictionary_encode()
    table = table.append_column("inner", pa.StructArray.from_arrays([inner], ["d"]))
    _arrow(tmp_path / "in.arrow", table.slice(0, 20), pa.ipc.new_stream)
    source = tmp_path / "in"
    source.mkdir()
    for begin in (0, 20, 40):
        _arrow(source / f"{begin}.arrow", table.slice(begin, 20), pa.ipc.new_file)
    out = tmp_path / "out"
    tamis.run(recipe(source, out, [{"operator": "near_dedup"}], roles={"text": "text"}))
    pq.write_table(table, tmp_path / "expected.parquet")
    theirs = pq.read_table(tmp_path / "expected.parquet")
    found = read_dataset(out)
    assert found.schema.equals(theirs.schema, check_metadata=True)
    rows = {row["id"]: repr(row) for row in theirs.to_pylist()}
    assert found.num_rows > 20
    assert all(rows[row["id"]] == repr(row) for row in found.to_pylist())


def test_bad_rows_of_csv_are_shown_with_file_and_line(tmp_path: Path, command: Command) -> None:
    rows = table_of(documents(52, 200)).to_pylist()
    source = tmp_path / "in.csv"
    with source.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(rows[0])
        for number, row in enumerate(rows):
            writer.writerow([*row.values(), *(["more"] if number in (3, 70) else [])])
    args = ("dedup", source, tmp_path / "out", "--id", "id")
    assert command(*args).code == 0
    manifest = check_balance(workspace_of(tmp_path / "out"), tmp_path / "out")
    aside = pq.read_table(workspace_of(tmp_path / "out") / manifest["quarantine"][0]).to_pylist()
    assert [(row["file"], row["line"]) for row in aside] == [(str(source), 5), (str(source), 72)]
    lines = source.read_bytes().split(b"\r\n")
    assert [row["raw"] for row in aside] == [lines[4], lines[71]]
    with source.open("a") as out:
        out.write('broken "quotes"\r\n"a"b\r\n')
    told = command(*args).line(1)
    assert "4 of 202 rows are bad" in told
    assert f"{source} line 5: expected 3 fields, found 4" in told


def test_every_format_can_be_named_and_is_told_from_its_files(
    tmp_path: Path, command: Command
) -> None:
    named = CorpusPart.model_fields["format"].annotation
    assert set(get_args(get_args(named)[0])) == set(FORMATS)
    helped = command("dedup", "--help").out
    assert all(name in helped for name in FORMATS)
    told = {name: "parquet" for name in WRITERS if "parquet" in name}
    told |= {name: "jsonl" for name in WRITERS if "jsonl" in name}
    told |= {name: "csv" for name in WRITERS if "csv" in name or "tsv" in name}
    told |= {"in.arrow": "arrow", "in.feather": "arrow", "folder": "datasets"}
    for name, write in WRITERS.items():
        write(tmp_path / name, table_of(["a"] * 2))
        assert format_of(str(tmp_path / name)) == told[name]
    assert {*told.values(), "python", "python-pairs"} == {"parquet", *READERS}


def test_several_formats_in_a_folder_are_told(tmp_path: Path, command: Command) -> None:
    for name in ("in.csv", "in.arrow"):
        (tmp_path / "in").mkdir(exist_ok=True)
        WRITERS[name](tmp_path / "in" / name, table_of(["a"]))
    told = command("dedup", tmp_path / "in", tmp_path / "out").line(2)
    assert "several formats" in told
    assert "in.csv" in told
    assert "in.arrow" in told
    assert command("dedup", tmp_path / "in/*.csv", tmp_path / "out", "--id", "id").code == 0
