"""Input that cannot be read is named, with what to do; nothing of it is published."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from guarantee_tools import (
    Outcome,
    check_balance,
    digests,
    documents,
    leftovers,
    manifest_of,
    read_dataset,
    table_of,
    workspace_of,
    write_jsonl,
    write_parquet,
)

Command = Callable[..., Outcome]


def _no_work_was_done(out: Path) -> None:
    assert not out.exists()
    if workspace_of(out).exists():
        assert {path.name for path in workspace_of(out).iterdir()} <= {".lock"}


def _dedup(command: Command, source: Path, out: Path) -> Outcome:
    return command("dedup", source, out, "--id", "id")


def test_a_parquet_file_cut_in_half_is_named_before_any_work(
    tmp_path: Path, command: Command
) -> None:
    write_parquet(tmp_path / "in/a.parquet", table_of(documents(1, 100)))
    cut = write_parquet(tmp_path / "in/b.parquet", table_of(documents(2, 100), 100))
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    assert str(cut) in _dedup(command, tmp_path / "in", out).line(2)
    _no_work_was_done(out)
    cut.write_bytes(whole)
    assert _dedup(command, tmp_path / "in", out).code == 0


def _damage(path: Path, column: str, seed: int) -> bytes:
    """Flip bytes in the middle of a column's pages so that pyarrow cannot read them."""
    whole = path.read_bytes()
    chunks = pq.read_metadata(path)
    draw = random.Random(seed)
    group = chunks.row_group(chunks.num_row_groups // 2)
    index = chunks.schema.to_arrow_schema().get_field_index(column)
    chunk = group.column(index)
    first, size = chunk.data_page_offset, chunk.total_compressed_size
    for _ in range(200):
        broken = bytearray(whole)
        for _ in range(40):
            broken[draw.randrange(first + size // 4, first + size * 3 // 4)] ^= draw.randrange(
                1, 256
            )
        path.write_bytes(broken)
        try:
            pq.read_table(path)
        except (OSError, pa.ArrowException):
            return whole
    raise AssertionError("no damage that shows")


@pytest.mark.parametrize("column", ["text", "id", "number"])
@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip"])
def test_a_damaged_page_is_one_line_and_the_run_resumes_with_the_file_restored(
    tmp_path: Path, command: Command, column: str, compression: str
) -> None:
    write_parquet(tmp_path / "in/a.parquet", table_of(documents(3, 300)), 100)
    bad = tmp_path / "in/b.parquet"
    table = table_of(documents(4, 3000), 300)
    noise = random.Random(5)
    numbers = pa.array([noise.random() for _ in range(3000)])
    table = table.set_column(2, "number", numbers)
    pq.write_table(table, bad, compression=compression, row_group_size=1000)
    out = tmp_path / "out"
    whole = _damage(bad, column, seed=6)
    line = _dedup(command, tmp_path / "in", out).line(1)
    assert str(bad) in line
    assert not out.exists()
    assert leftovers(tmp_path) == []
    bad.write_bytes(whole)
    assert _dedup(command, tmp_path / "in", out).code == 0
    check_balance(workspace_of(out), out)


def test_a_damaged_page_leaves_the_earlier_dataset_alone(tmp_path: Path, command: Command) -> None:
    good = write_parquet(tmp_path / "good.parquet", table_of(documents(5, 100)))
    bad = write_parquet(tmp_path / "bad.parquet", table_of(documents(6, 2000)), 500)
    out = tmp_path / "out"
    assert _dedup(command, good, out).code == 0
    before = digests(out)
    _damage(bad, "text", seed=7)
    assert str(bad) in _dedup(command, bad, out).line(1)
    assert digests(out) == before


def test_a_last_line_that_is_cut_off_is_quarantined_with_file_and_line(
    tmp_path: Path, command: Command
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", table_of(documents(8, 200)))
    source.write_text(source.read_text()[:-20])
    out = tmp_path / "out"
    assert _dedup(command, source, out).code == 0
    manifest = check_balance(workspace_of(out), out)
    assert manifest["rows"]["in"] == 200
    aside = pq.read_table(workspace_of(out) / manifest["quarantine"][0]).to_pylist()
    assert [(row["file"], row["line"]) for row in aside] == [(str(source), 200)]


def _compressed(path: Path, data: bytes) -> bytes:
    if path.suffix == ".gz":
        return gzip.compress(data)
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("share", [0.0, 0.0005, 0.5, 0.999])
def test_a_compressed_file_cut_off_is_named(
    tmp_path: Path, command: Command, ending: str, share: float
) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in table_of(documents(9, 2000)).to_pylist())
    source = tmp_path / "in" / f"b.jsonl.{ending}"
    write_jsonl(tmp_path / "in/a.jsonl", table_of(documents(10, 50), 5000))
    whole = _compressed(source, lines.encode())
    source.write_bytes(whole[: int(len(whole) * share)])
    out = tmp_path / "out"
    line = _dedup(command, tmp_path / "in", out).line(2)
    assert str(source) in line
    assert not out.exists()
    source.write_bytes(whole)
    assert _dedup(command, tmp_path / "in", out).code == 0
    assert check_balance(workspace_of(out), out)["rows"]["in"] == 2050


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_compressed_file_of_several_members_is_read_to_its_end(
    tmp_path: Path, command: Command, ending: str
) -> None:
    source = tmp_path / f"in.jsonl.{ending}"
    rows = [json.dumps(row) + "\n" for row in table_of(documents(11, 300)).to_pylist()]
    members = ("".join(rows[:100]), "".join(rows[100:]))
    source.write_bytes(b"".join(_compressed(source, part.encode()) for part in members))
    out = tmp_path / "out"
    assert _dedup(command, source, out).code == 0
    assert check_balance(workspace_of(out), out)["rows"]["in"] == 300


@pytest.mark.parametrize(
    ("column", "expected", "found"),
    [
        ("text", "string", "large_string"),
        ("number", "double", "int64"),
        ("extra", "no such column", "int64"),
        ("number", "double", "no such column"),
    ],
)
def test_mixed_schemas_are_told_as_expected_against_found_before_any_work(
    tmp_path: Path, command: Command, column: str, expected: str, found: str
) -> None:
    table = table_of(documents(12, 50))
    write_parquet(tmp_path / "in/a.parquet", table)
    if found == "no such column":
        other = table.drop_columns([column])
    elif column == "extra":
        other = table.append_column(column, pa.array(range(50)))
    else:
        kind = {"large_string": pa.large_string(), "int64": pa.int64()}[found]
        place = table.schema.get_field_index(column)
        other = table.set_column(place, column, table[column].cast(kind))
    write_parquet(tmp_path / "in/b.parquet", other)
    line = _dedup(command, tmp_path / "in", tmp_path / "out").line(2)
    for part in (repr(column), f"expected {expected}", f"found {found}", "a.parquet", "b.parquet"):
        assert part in line
    _no_work_was_done(tmp_path / "out")


@pytest.mark.parametrize("kind", ["bad lines", "null texts"])
def test_too_many_bad_rows_stop_the_run_and_the_first_few_are_shown(
    tmp_path: Path, command: Command, kind: str
) -> None:
    bad = [11, 40, 41, 90]
    rows: list[dict[str, Any]] = table_of(documents(13, 300)).to_pylist()
    lines = [json.dumps(row) for row in rows]
    for number in bad:
        lines[number - 1] = "{oops" if kind == "bad lines" else json.dumps({"id": f"n{number}"})
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    line = _dedup(command, source, out).line(1)
    assert "4 of 300 rows" in line
    for number in bad[:3]:
        assert f"{source} line {number}:" in line
    assert "line 90" not in line
    assert not out.exists()
    aside = [pq.read_table(path) for path in (workspace_of(out) / "quarantine").iterdir()]
    assert sorted(pa.concat_tables(aside)["line"].to_pylist()) == bad


def test_just_as_many_bad_rows_as_allowed_do_not_stop_the_run(
    tmp_path: Path, command: Command
) -> None:
    lines = [json.dumps(row) for row in table_of(documents(14, 300)).to_pylist()]
    for line in (7, 8, 200):
        lines[line] = "{oops"
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines) + "\n")
    assert _dedup(command, source, tmp_path / "out").code == 0


def _nothing(path: Path) -> Path:
    return path


def _empty_file(path: Path) -> Path:
    path.touch()
    return path


def _empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def _both_formats(path: Path) -> Path:
    write_parquet(path / "a.parquet", table_of(["one"]))
    write_jsonl(path / "b.jsonl", table_of(["two"]))
    return path


def _unknown_ending(path: Path) -> Path:
    path.mkdir()
    (path / "a.docx").write_text("hello")
    return path


def _only_hidden(path: Path) -> Path:
    write_parquet(path / ".a.parquet", table_of(["one"]))
    write_parquet(path / "_temporary/b.parquet", table_of(["one"]))
    return path


def _text_called_parquet(path: Path) -> Path:
    path.write_text("no Parquet at all, only a name " * 20)
    return path


def _empty_among_good(path: Path) -> Path:
    write_parquet(path / "a.parquet", table_of(["one"]))
    (path / "b.parquet").touch()
    return path


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (_nothing, "missing.parquet"),
        (_nothing, "missing/*.parquet"),
        (_empty_file, "empty.parquet"),
        (_empty_file, "empty.jsonl"),
        (_empty_folder, "folder"),
        (_both_formats, "folder"),
        (_unknown_ending, "folder"),
        (_only_hidden, "folder"),
        (_text_called_parquet, "text.parquet"),
        (_empty_among_good, "folder"),
    ],
)
def test_an_input_that_is_no_corpus_is_the_users_to_mend(
    tmp_path: Path, command: Command, make: Callable[[Path], Path], name: str
) -> None:
    source = make(tmp_path / name)
    out = tmp_path / "out"
    assert str(source) in _dedup(command, source, out).line(2)
    _no_work_was_done(out)


def test_an_empty_file_among_jsonl_files_is_no_error(tmp_path: Path, command: Command) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", table_of(documents(15, 50)))
    (tmp_path / "in/b.jsonl").touch()
    out = tmp_path / "out"
    assert _dedup(command, tmp_path / "in", out).code == 0
    assert check_balance(workspace_of(out), out)["rows"]["in"] == 50


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--text", "body"], "body"),
        (["--id", "nothing"], "nothing"),
        (["--text", "number"], "number"),
        (["--rank", "quality"], "quality"),
        (["--threshold", "1.5"], "threshold"),
        (["--threshold", "nan"], "threshold"),
        (["--memory", "lots"], "lots"),
        (["--unit", "syllable"], "unit"),
        (["--format", "docx"], "docx"),
    ],
)
def test_an_option_that_does_not_fit_is_named_before_any_work(
    tmp_path: Path, command: Command, options: list[str], part: str
) -> None:
    source = write_parquet(tmp_path / "in.parquet", table_of(documents(16, 20)))
    out = tmp_path / "out"
    assert part in command("dedup", source, out, *options).line(2)
    _no_work_was_done(out)


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_are_not_data(
    tmp_path: Path, command: Command, ending: str, mark: str
) -> None:
    rows = [json.dumps(row) for row in table_of(documents(17, 30)).to_pylist()]
    text = mark + (ending or "\n").join(rows) + ending
    (tmp_path / "in.jsonl").write_bytes(text.encode())
    out = tmp_path / "out"
    assert command("select", tmp_path / "in.jsonl", out, "--where", "true").code == 0
    assert manifest_of(out)["rows"] == {
        "in": 30,
        "kept": 30,
        "relabelled": 0,
        "in_review": 0,
        "dropped": {},
        "quarantined": 0,
        "generated": 0,
        "written": 30,
    }
    assert read_dataset(out).to_pylist() == table_of(documents(17, 30)).to_pylist()
