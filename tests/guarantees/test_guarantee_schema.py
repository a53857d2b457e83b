"""The output's columns are those of pyarrow's own Parquet round trip, types and values."""

import datetime
import decimal
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from guarantee_tools import (
    Stages,
    check_balance,
    decisions_by_row,
    documents,
    read_dataset,
    read_ledger,
    recipe,
    table_of,
    workspace_of,
    write_parquet,
)

import tamis
from tamis.storage.catalog import query

ROWS = 60


def _cycle(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array([values[i % len(values)] for i in range(ROWS)], kind)


def _columns() -> dict[str, pa.Array]:
    """One column of every type that Parquet holds, nulls and odd values among them."""
    day = datetime.date(2024, 2, 29)
    noon = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456)
    cent = decimal.Decimal("-12345678901234567890.12345")
    inner = pa.struct([("b", pa.list_(pa.int8())), ("a", pa.string())])
    nested = pa.struct([("z", pa.int32()), ("list", pa.list_(inner)), ("a", pa.float32())])
    record = {"z": 1, "list": [{"b": [1, None], "a": "x"}, None, {"b": None, "a": None}], "a": 0.5}
    return {
        "bool": _cycle([True, None, False], pa.bool_()),
        "int8": _cycle([-128, None, 127], pa.int8()),
        "uint16": _cycle([0, 65535, None], pa.uint16()),
        "uint32": _cycle([0, 2**32 - 1, None], pa.uint32()),
        "int64": _cycle([-(2**63), 2**63 - 1, None, 2**53 + 1], pa.int64()),
        "uint64": _cycle([0, 2**64 - 1, None], pa.uint64()),
        "float16": pa.array(np.arange(ROWS, dtype=np.float16) / 3),
        "float32": _cycle([0.1, None, float("inf"), -0.0], pa.float32()),
        "float64": _cycle([0.1, None, float("nan"), -0.0, 5e-324], pa.float64()),
        "decimal32": _cycle([decimal.Decimal("1.23"), None], pa.decimal128(5, 2)),
        "decimal128": _cycle([cent, None], pa.decimal128(38, 5)),
        "decimal256": _cycle([decimal.Decimal(10) ** 60, None], pa.decimal256(76, 0)),
        "date32": _cycle([day, None], pa.date32()),
        "date64": _cycle([day, None], pa.date64()),
        "time32": _cycle([datetime.time(1, 2, 3), None], pa.time32("ms")),
        "time64": _cycle([datetime.time(1, 2, 3, 4), None], pa.time64("ns")),
        "seconds": _cycle([noon.replace(microsecond=0), None], pa.timestamp("s")),
        "local": _cycle([noon, None], pa.timestamp("us")),
        "zoned": _cycle([noon, None], pa.timestamp("us", "Europe/Vienna")),
        "fixed zone": _cycle([noon.replace(microsecond=0), None], pa.timestamp("ms", "+05:30")),
        "nanoseconds": _cycle([1_700_000_000_123_456_789, None], pa.timestamp("ns", "UTC")),
        "duration": _cycle([datetime.timedelta(days=1, microseconds=5), None], pa.duration("us")),
        "string": _cycle(["", "e\u0301", None, "😀"], pa.string()),
        "large_string": _cycle(["", "ß", None], pa.large_string()),
        "string_view": _cycle(["", "longer than twelve bytes", None], pa.string_view()),
        "binary": _cycle([b"", b"\xff\x00", None], pa.binary()),
        "large_binary": _cycle([b"\x00", None], pa.large_binary()),
        "fixed_binary": _cycle([b"0123456", None], pa.binary(7)),
        "dictionary8": _cycle(["red", None, "blue"], pa.string())
        .dictionary_encode()
        .cast(pa.dictionary(pa.int8(), pa.string())),
        "dictionary_ordered": pa.DictionaryArray.from_arrays(
            pa.array([i % 3 for i in range(ROWS)], pa.int16()), ["low", "mid", "high"], ordered=True
        ),
        "dictionary_numbers": _cycle([5, None, 7], pa.int64()).dictionary_encode(),
        "null": pa.nulls(ROWS),
        "list": _cycle([[1, None], [], None, [3]], pa.list_(pa.int32())),
        "large_list": _cycle([["a"], [], None], pa.large_list(pa.string())),
        "fixed_list": _cycle([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
        "list_of_lists": _cycle([[[1], []], None, [None]], pa.list_(pa.list_(pa.int16()))),
        "map": _cycle([[("k", 1), ("j", None)], [], None], pa.map_(pa.string(), pa.int32())),
        "struct": _cycle([record, None], nested),
        "structs": _cycle([[record, None], [], None], pa.list_(nested)),
        "map_of_structs": _cycle([[(1, record)], None], pa.map_(pa.int8(), nested)),
        "with.dot": _cycle([1, 2], pa.int8()),
        'with "quotes"': _cycle(["'", '"'], pa.string()),
        "": _cycle([1, None], pa.int8()),
        "filename": _cycle(["a.txt"], pa.string()),
        "file_row_number": _cycle([7], pa.int64()),
        "row_id": _cycle(["mine"], pa.string()),
        "copy": _cycle([3], pa.int64()),
        "shard": _cycle([4], pa.int64()),
        "row": _cycle([5], pa.int64()),
        "reason": _cycle(["because"], pa.string()),
        "TEXT": _cycle(["in capitals"], pa.string()),
    }


COLUMNS = _columns()


def _table(extra: dict[str, pa.Array]) -> pa.Table:
    table = table_of(documents(31, ROWS))
    for name, column in extra.items():
        table = table.append_column(name, column)
    return table


def _expected(source: Path, out: Path, place: Path) -> pa.Table:
    """Rows that the ledger says are kept, through pyarrow's own writer and reader."""
    kept = [row["action"] == "keep" for row in read_ledger(workspace_of(out))]
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    # Read file by file: pyarrow's own dataset reader would unify schemas.
    table = pa.concat_tables([pq.read_table(path) for path in files])
    # Slices, because not every type has a kernel to filter by.
    rows = [table.slice(row, 1) for row, stays in enumerate(kept) if stays]
    pq.write_table(pa.concat_tables(rows), place)
    return pq.read_table(place)


def _check(source: Path, out: Path, place: Path) -> pa.Table:
    expected, found = _expected(source, out, place), read_dataset(out)
    assert found.num_rows > 0
    for ours, theirs in zip(found.schema, expected.schema, strict=True):
        assert ours.equals(theirs, check_metadata=True), f"{ours!r} is not {theirs!r}"
    assert found.schema.equals(expected.schema, check_metadata=True)
    for name in found.schema.names:
        # repr, because nan is not equal to itself and pyarrow compares dictionaries by index
        assert repr(found[name].to_pylist()) == repr(expected[name].to_pylist()), name
    return found


STAGES: Stages = [
    {"operator": "near_dedup"},
    {"operator": "sample", "rows": 30},
]


@pytest.mark.parametrize("name", COLUMNS, ids=repr)
def test_a_column_of_this_type_comes_out_as_pyarrow_gives_it_back(
    tmp_path: Path, name: str
) -> None:
    source = write_parquet(tmp_path / "in.parquet", _table({name: COLUMNS[name]}), 13)
    out = tmp_path / "out"
    roles = {"text": "text"}  # all columns identify a row: this one is hashed too
    options = {"shard_bytes": 2000}
    result = tamis.run(recipe(source, out, STAGES, roles=roles, corpus_options=options))
    _check(source, out, tmp_path / "expected.parquet")
    check_balance(workspace_of(out), out)
    told = query(workspace_of(out), "SELECT count(*), count(text) FROM why")[1]
    assert told == [(ROWS, ROWS)]
    assert result.kept.collect().height == 30


def test_all_types_together_come_out_as_pyarrow_gives_them_back(tmp_path: Path) -> None:
    odd = {"TEXT", "row_id", "copy", "shard", "row", "filename", "file_row_number"}
    table = _table({name: column for name, column in COLUMNS.items() if name not in odd})
    source = write_parquet(tmp_path / "in.parquet", table, 13)
    for number, options in enumerate(({"shard_bytes": 1}, {})):
        out = tmp_path / f"out{number}"
        tamis.run(recipe(source, out, STAGES, corpus_options=options))
        _check(source, out, tmp_path / "expected.parquet")


def test_fields_that_may_not_be_null_and_metadata_are_kept(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata={"unit": "none"}),
            pa.field("text", pa.large_string(), nullable=False, metadata={"lang": "en"}),
            pa.field(
                "deep",
                pa.struct([pa.field("x", pa.int8(), nullable=False), pa.field("y", pa.int8())]),
                nullable=False,
            ),
            pa.field("items", pa.list_(pa.field("element", pa.int8(), nullable=False))),
        ],
        metadata={"made by": "a test", "huggingface": '{"info": {}}', "long": "x" * 5000},
    )
    texts = documents(32, ROWS)
    columns = [
        [f"row-{i}" for i in range(ROWS)],
        texts,
        [{"x": 1, "y": None}] * ROWS,
        [[1, 2], None] * (ROWS // 2),
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    source = write_parquet(tmp_path / "in.parquet", pa.table(arrays, schema=schema), 20)
    out = tmp_path / "out"
    tamis.run(recipe(source, out, STAGES, corpus_options={"shard_bytes": 1}))
    found = _check(source, out, tmp_path / "expected.parquet")
    assert found.schema.metadata[b"made by"] == b"a test"
    assert not found.schema.field("text").nullable
    assert found.schema.field("text").metadata[b"lang"] == b"en"


def test_metadata_of_pandas_is_kept(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": range(ROWS), "text": documents(33, ROWS)})
    frame["group"] = pandas.Categorical(["a", "b", None] * (ROWS // 3))
    frame["when"] = pandas.date_range("2024-01-01", periods=ROWS, tz="Asia/Tokyo")
    frame.to_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out"
    tamis.run(recipe(tmp_path / "in.parquet", out, STAGES))
    _check(tmp_path / "in.parquet", out, tmp_path / "expected.parquet")


def test_extension_types_come_back(tmp_path: Path) -> None:
    ids = pa.array([uuid.UUID(int=i).bytes for i in range(ROWS)], pa.binary(16))
    table = _table(
        {
            "uuid": pa.ExtensionArray.from_storage(pa.uuid(), ids),
            "json": pa.ExtensionArray.from_storage(pa.json_(), _cycle(['{"a": 1}'], pa.string())),
        }
    )
    source = write_parquet(tmp_path / "in.parquet", table, 25)
    out = tmp_path / "out"
    tamis.run(recipe(source, out, STAGES, roles={"text": "text"}))
    _check(source, out, tmp_path / "expected.parquet")


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_a_text_of_any_string_type_gives_the_same_decisions(tmp_path: Path, kind: str) -> None:
    texts = pa.array([*documents(34, ROWS - 4), "né au", "né au", None, ""], pa.string())
    column = {
        "string": texts,
        "large_string": texts.cast(pa.large_string()),
        "string_view": texts.cast(pa.string_view()),
        "dictionary": texts.dictionary_encode(),
    }[kind]
    plain = table_of(texts.to_pylist())
    found = []
    for name, table in (("plain", plain), ("other", plain.set_column(1, "text", column))):
        source = write_parquet(tmp_path / f"{name}.parquet", table, 17)
        out = tmp_path / name
        options = {"shard_bytes": 1}
        tamis.run(recipe(source, out, corpus_options=options, max_quarantine=0.1))
        _check(source, out, tmp_path / "expected.parquet")
        found.append(decisions_by_row(workspace_of(out)))
    assert found[0] == found[1]


def test_row_groups_with_dictionaries_of_their_own_are_joined(tmp_path: Path) -> None:
    """Two row groups of 100 categories each: together more than int8 indices can name."""
    texts = documents(35, 200)
    kind = pa.dictionary(pa.int8(), pa.string())
    halves = []
    for half in range(2):
        names = [f"category {half} {i}" for i in range(100)]
        table = table_of(texts[half * 100 : half * 100 + 100], half * 100)
        halves.append(table.append_column("group", pa.array(names).dictionary_encode().cast(kind)))
    source = tmp_path / "in.parquet"
    with pq.ParquetWriter(source, halves[0].schema) as writer:
        for half in halves:
            writer.write_table(half)
    out = tmp_path / "out"
    tamis.run(recipe(source, out, [{"operator": "near_dedup"}]))
    found = read_dataset(out)
    expected = {row["id"]: row["group"] for half in halves for row in half.to_pylist()}
    assert found.num_rows > 100
    assert {row["id"]: row["group"] for row in found.to_pylist()}.items() <= expected.items()
    assert found.schema.field("group").type == pq.read_table(source).schema.field("group").type


def test_files_whose_columns_stand_in_another_order_are_one_corpus(tmp_path: Path) -> None:
    struct = _cycle([{"x": 1, "y": "a"}, None], pa.struct([("x", pa.int8()), ("y", pa.string())]))
    table = _table({"s": struct, "map": COLUMNS["map"]})
    write_parquet(tmp_path / "in/a.parquet", table.slice(0, 30), 10)
    other = table.slice(30).select(["map", "number", "s", "text", "id"])
    write_parquet(tmp_path / "in/b.parquet", other, 10)
    out, plain = tmp_path / "out", tmp_path / "plain"
    for roles in ({"text": "text", "id": "id"}, {"text": "text"}):
        tamis.run(recipe(tmp_path / "in", out, STAGES, roles=roles))
        tamis.run(recipe(write_parquet(tmp_path / "p.parquet", table), plain, STAGES, roles=roles))
        assert read_dataset(out).schema.names == table.schema.names
        assert read_dataset(out).to_pylist() == read_dataset(plain).to_pylist()
        assert decisions_by_row(workspace_of(out)) == decisions_by_row(workspace_of(plain))


def test_a_struct_whose_fields_stand_in_another_order_is_told_or_put_in_order(
    tmp_path: Path,
) -> None:
    values = [{"x": 1, "y": 2}] * ROWS
    kinds = [pa.struct([("x", pa.int8()), ("y", pa.int8())])]
    kinds.append(pa.struct([("y", pa.int8()), ("x", pa.int8())]))
    for name, kind in zip("ab", kinds, strict=True):
        table = _table({"s": pa.array(values, kind)}).set_column(
            0, "id", pa.array([f"{name}{i}" for i in range(ROWS)])
        )
        write_parquet(tmp_path / f"in/{name}.parquet", table)
    out = tmp_path / "out"
    try:
        tamis.run(recipe(tmp_path / "in", out, []))
    except tamis.UserError as error:
        told = str(error)
    else:
        told = ""
        assert read_dataset(out)["s"].to_pylist() == values + values
    assert not told or "'s'" in told


@pytest.mark.parametrize("first", ["required", "nullable"])
def test_files_that_differ_in_nullability_are_one_corpus_or_told(
    tmp_path: Path, first: str
) -> None:
    names = {"required": "a", "nullable": "b"} if first == "required" else {}
    names = names or {"required": "b", "nullable": "a"}
    table = table_of(documents(36, ROWS))
    numbers: list[float | None] = [1.5, None] * (ROWS // 2)
    for kind, name in names.items():
        ids = pa.array([f"{kind}{i}" for i in range(ROWS)])
        field = pa.field("number", pa.float64(), nullable=kind == "nullable")
        values = pa.array(numbers if kind == "nullable" else [2.5] * ROWS)
        made = table.set_column(0, "id", ids).set_column(2, field, values)
        write_parquet(tmp_path / f"in/{name}.parquet", made)
    out = tmp_path / "out"
    try:
        tamis.run(recipe(tmp_path / "in", out, []))
    except tamis.UserError as error:
        told = str(error)
        assert "null" in told
        assert not out.exists()
        return
    found = read_dataset(out)
    assert found.schema.field("number").nullable
    assert found["number"].null_count == ROWS // 2
    assert found.num_rows == 2 * ROWS


def test_the_first_file_without_metadata_does_not_change_values_of_the_second(
    tmp_path: Path,
) -> None:
    table = _table({"zoned": COLUMNS["zoned"]})
    write_parquet(tmp_path / "in/a.parquet", table.slice(0, 30))
    marked = table.slice(30).replace_schema_metadata({"pandas": "{}", "more": "x"})
    write_parquet(tmp_path / "in/b.parquet", marked)
    out = tmp_path / "out"
    tamis.run(recipe(tmp_path / "in", out, []))
    assert read_dataset(out).to_pylist() == table.to_pylist()


def test_jsonl_of_every_shape_keeps_its_values(tmp_path: Path) -> None:
    rows = [
        {
            "id": i,
            "text": text,
            "meta": {"source": f"s{i % 3}", "tags": ["a", None] if i % 2 else []},
            "turns": [{"role": "user", "content": text[:9]}] if i % 5 else None,
            "when": "2024-02-29T12:00:00Z",
            "half": i / 2 if i % 7 == 0 else i,
            "late": i if i > 40 else None,
            "😀": True,
        }
        for i, text in enumerate(documents(37, ROWS))
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    tamis.run(recipe(path, out, []))
    assert read_dataset(out).to_pylist() == rows
    assert read_dataset(out).schema.field("when").type == pa.string()


def test_parts_of_one_dataset_share_one_schema_also_where_they_are_reused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = table_of(documents(38, ROWS))
    long = "x" * 5000  # str(schema) does not show all of it
    for version in ("1", "2"):
        marked = table.slice(0, 30).replace_schema_metadata({"note": long + version})
        write_parquet(tmp_path / "in/a.parquet", marked)
        if version == "1":
            write_parquet(tmp_path / "in/b.parquet", table.slice(30))
        tamis.run(recipe(tmp_path / "in", out, []))
        parts = [pq.read_schema(path) for path in sorted(out.glob("*.parquet"))]
        assert len(parts) == 2
        assert parts[0].metadata == parts[1].metadata == {b"note": (long + version).encode()}
