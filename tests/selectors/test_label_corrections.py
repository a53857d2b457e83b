"""What a person has filled in comes back: labels are changed, confirmed, rows dropped."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.recipe import check_recipe
from tamis.scoring.operator import REGISTRY, Judgement
from tamis.selectors.label_errors import LabelErrors
from tamis.selectors.labels import as_names
from tamis.selectors.relabel import Relabel
from tamis.selectors.review_files import CELL, read_corrections, write_csv
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tests.selectors.label_tools import (
    CLASSES,
    act,
    as_text,
    decided,
    recipe,
    row_ids,
    rows,
    texts,
    written,
)

CORRECT = {"operator": "label_corrections"}


def _ids(folder: Path, table: pa.Table) -> dict[str, str]:
    return row_ids(act(folder / "plain", table))


def _file(path: Path, lines: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for line in lines for name in line))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)
    return str(path)


def _correct(tmp_path: Path, table: pa.Table, lines: list[dict[str, Any]], **options: Any) -> Any:
    path = _file(tmp_path / "corrections.csv", lines)
    return act(tmp_path / "run", table, {**CORRECT, "path": path, **options})


def _fill(queue: Path, answers: dict[str, dict[str, str]]) -> None:
    """Fill in a queue in its place, as a spreadsheet program does: all fields are rewritten."""
    if queue.suffix == ".parquet":
        table = pq.read_table(queue)
        for name in ("label", "verdict"):
            values = [answers.get(i, {}).get(name) for i in table["row_id"].to_pylist()]
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values, pa.string()))
        pq.write_table(table, queue)
        return
    with queue.open(newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        line.update(answers.get(line["row_id"], {}))
    with queue.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(lines)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_queue_comes_back_as_corrections(tmp_path: Path, kind: str, ending: str) -> None:
    table = rows(60, kind)
    stages = [{"operator": "label_review", "rows": 9}, {"operator": "label_errors"}]
    first = act(tmp_path, table, *stages)
    queue = next(path for path in first.queues["label_review"] if path.suffix == ending)
    asked = pq.read_table(first.queues["label_review"][1]).to_pylist()
    names = {row_id: name for name, row_id in row_ids(first).items()}
    classes = as_text(CLASSES[kind])
    answers, expected = {}, dict(zip(table["id"].to_pylist(), texts(table["label"]), strict=True))
    for number, row in enumerate(asked):
        given = row["given_label"]
        other = classes[(classes.index(given) + 1) % len(classes)]
        # The last is not answered.
        answer: dict[str, str] = (
            [{"verdict": "keep"}, {"label": other}, {"verdict": "drop"}][number % 3]
            if number < 8
            else {}
        )
        if answer:
            answers[row["row_id"]] = answer
        if answer.get("verdict") == "drop":
            del expected[names[row["row_id"]]]
        expected |= {names[row["row_id"]]: other} if "label" in answer else {}
    _fill(queue, answers)

    second = act(tmp_path, table, {**CORRECT, "path": str(queue)}, *stages)
    found = written(second)
    labels = dict(zip(found["id"].to_pylist(), texts(found["label"]), strict=True))
    assert labels.items() <= expected.items()
    stored = pq.read_table(tmp_path / "in.parquet").schema.field("label").type
    assert found.schema.field("label").type == found.schema.field("given_label").type == stored
    ledger = decided(second, table)
    for row_id, answer in answers.items():
        told = ledger[names[row_id]]
        if answer.get("verdict") == "drop":
            assert (told["action"], told["reason"]) == ("drop", "label_corrections")
        elif "label" in answer:
            assert (told["action"], told["stage"]) == ("relabel", "label_corrections")
            assert names[row_id] in labels
        else:  # confirmed: not dropped, though the stages after it think that it is wrong
            assert told["action"] == "keep"
            assert names[row_id] in labels
    # What is answered is not asked again.
    again = pq.read_table(second.queues["label_review"][1])["row_id"].to_pylist()
    assert not set(again) & set(answers)
    report = second.manifest["stages"][0]
    assert report["marked"] == {"drop": 2, "relabel": 3}
    assert report["report"] == {
        "records": 9,
        "not_answered": 1,
        "unknown": 0,
        "rows_not_kept": 0,
    }


def test_without_corrections_the_confirmed_rows_would_go(tmp_path: Path) -> None:
    table = rows(40)
    first = act(tmp_path, table, {"operator": "label_errors"})
    lost = first.dropped.collect()
    row = f"{lost['id_hi'][0]:016x}{lost['id_lo'][0]:016x}"
    result = _correct(tmp_path, table, [{"row_id": row, "verdict": "keep"}])
    assert result.manifest["rows"]["kept"] == 40
    path = str(tmp_path / "corrections.csv")
    both = act(tmp_path / "both", table, {**CORRECT, "path": path}, {"operator": "label_errors"})
    assert both.manifest["rows"]["kept"] == first.manifest["rows"]["kept"] + 1


def test_verdicts_and_labels(tmp_path: Path) -> None:
    table = rows(12)
    ids = _ids(tmp_path, table)
    label = dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
    other = {"neg": "neu", "neu": "pos", "pos": "neg"}
    lines = [
        {"row_id": ids["r0000"].upper(), "verdict": " KEEP "},
        {"row_id": ids["r0001"], "verdict": "relabel", "label": f" {other[label['r0001']]} "},
        {"row_id": ids["r0002"], "label": label["r0002"]},  # the label it has: confirmed
        {"row_id": ids["r0003"], "verdict": "Drop"},
        {"row_id": ids["r0003"], "verdict": "drop"},  # said twice
        {"row_id": ids["r0004"]},
        {},
        {"row_id": ids["r0005"], "label": other[label["r0005"]], "copy": "0"},
    ]
    result = _correct(tmp_path, table, lines)
    ledger = decided(result, table)
    actions = [ledger[f"r{i:04d}"]["action"] for i in range(6)]
    assert actions == ["keep", "relabel", "keep", "drop", "keep", "relabel"]
    found = written(result)
    labels = dict(zip(found["id"].to_pylist(), found["label"].to_pylist(), strict=True))
    assert labels["r0001"] == other[label["r0001"]]
    assert labels["r0005"] == other[label["r0005"]]
    assert "r0003" not in labels
    sure = tamis.sql(
        result,
        "SELECT r.id FROM scores s JOIN rows r USING (row_id) WHERE label_corrections_confirmed",
    )
    assert sorted(sure["id"]) == ["r0000", "r0001", "r0002", "r0005"]


def test_a_line_without_copy_is_about_all_copies(tmp_path: Path) -> None:
    table = rows(6).set_column(0, "id", pa.array(["a", "a", "a", "b", "c", "d"]))
    told = recipe(tmp_path / "plain", table, [])
    told["corpus"]["on_duplicate_id"] = "copy"
    ids = tamis.sql(tamis.run(told), "SELECT DISTINCT row_id FROM rows WHERE id = 'a'")
    (row_id,) = ids["row_id"]

    def kept(lines: list[dict[str, Any]], name: str) -> list[str]:
        path = _file(tmp_path / f"{name}.csv", lines)
        told = recipe(tmp_path / name, table, [{**CORRECT, "path": path}])
        told["corpus"]["on_duplicate_id"] = "copy"
        found: list[str] = written(tamis.run(told))["id"].to_pylist()
        return found

    assert kept([{"row_id": row_id, "verdict": "drop"}], "every") == ["b", "c", "d"]
    one = [{"row_id": row_id, "copy": 1, "verdict": "drop"}]
    assert kept(one, "one") == ["a", "a", "b", "c", "d"]
    with pytest.raises(tamis.UserError, match="different things of the same row"):
        kept([{"row_id": row_id, "verdict": "keep"}, *one], "apart")
    with pytest.raises(tamis.UserError, match="1 corrections name no row"):
        kept([{"row_id": row_id, "copy": 3, "verdict": "drop"}], "fourth")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"row_id": "0" * 32, "verdict": "drop"}] * 2, "2 corrections name no row of the corpus"),
        ([{"row_id": "1.2E+31", "verdict": "drop"}], "no row_id of 32 hex digits .*records 1"),
        ([{"row_id": "", "verdict": "drop"}], "no row_id of 32 hex digits"),
        ([{"row_id": "R", "copy": "x", "verdict": "drop"}], "`copy` that is no number"),
        ([{"row_id": "R", "verdict": "yes"}], "verdict that is none of keep, relabel, drop"),
        ([{"row_id": "R", "verdict": "relabel"}], "say relabel and give no label"),
        ([{"row_id": "R", "verdict": "drop", "label": "neg"}], "say drop and give a label"),
        (
            [{"row_id": "R", "verdict": "keep", "label": "neg", "given_label": "pos"}],
            "say keep and give another label",
        ),
        ([{"row_id": "R", "label": "negg"}], "label that no row of the corpus has, such as 'negg'"),
        (
            [{"row_id": "R", "label": "neg"}, {"row_id": "R", "label": "pos"}],
            r"2 corrections say different things of the same row \(records 1, 2\)",
        ),
        (
            [{"row_id": "R", "label": "neg"}, {"row_id": "R", "verdict": "drop"}],
            "different things of the same row",
        ),
        ([{"row": "R", "label": "neg"}], "need the columns `row_id`"),
        ([{"row_id": "R", "remark": "?"}], "and `label` or `verdict`"),
    ],
)
def test_lines_that_cannot_be_done(
    tmp_path: Path, lines: list[dict[str, Any]], message: str
) -> None:
    table = rows(5)
    row_id = _ids(tmp_path, table)["r0000"]
    told = [{k: row_id if v == "R" else v for k, v in line.items()} for line in lines]
    with pytest.raises(tamis.UserError, match=message) as error:
        _correct(tmp_path, table, told)
    assert "corrections.csv" in str(error.value)
    assert not (tmp_path / "run" / "out").exists()


def test_lines_of_rows_that_are_not_there_may_be_skipped(tmp_path: Path) -> None:
    table = rows(10)
    ids = _ids(tmp_path, table)
    lines = [
        {"row_id": "0" * 32, "label": "neg"},
        {"row_id": ids["r0001"], "verdict": "drop"},
        {"row_id": ids["r0002"], "verdict": "drop"},
    ]
    path = _file(tmp_path / "c.csv", lines)
    stages = [
        {"operator": "where", "keep": "id <> 'r0002'"},
        {**CORRECT, "path": path, "unknown": "skip"},
    ]
    result = act(tmp_path / "run", table, *stages)
    assert result.manifest["rows"]["dropped"] == {"where": 1, "label_corrections": 1}
    assert result.manifest["stages"][1]["report"] == {
        "records": 3,
        "not_answered": 0,
        "unknown": 1,
        "rows_not_kept": 1,
    }


def test_new_classes_are_taken_where_they_are_asked_for(tmp_path: Path) -> None:
    table = rows(5)
    line = {"row_id": _ids(tmp_path, table)["r0000"], "label": "mixed"}
    result = _correct(tmp_path, table, [line], new_classes=True)
    assert written(result)["label"].to_pylist()[0] == "mixed"
    numbers = rows(5, "int64")
    line["row_id"] = _ids(tmp_path / "n", numbers)["r0000"]
    with pytest.raises(tamis.UserError, match="type int64 cannot hold the label 'mixed'"):
        _correct(tmp_path / "n", numbers, [line], new_classes=True)


def test_a_class_may_have_no_row_left(tmp_path: Path) -> None:
    table = rows(20)
    row_id = _ids(tmp_path, table)[next(r["id"] for r in table.to_pylist() if r["label"] == "neg")]
    path = _file(tmp_path / "c.csv", [{"row_id": row_id, "label": "pos"}])
    stages = [
        {"operator": "where", "keep": "label <> 'pos'"},
        {**CORRECT, "path": path},
        {**CORRECT, "path": path, "name": "again"},
    ]
    assert written(act(tmp_path / "run", table, *stages))["label"].to_pylist().count("pos") == 1


def test_spreadsheets_write_booleans_in_capitals(tmp_path: Path) -> None:
    table = rows(4, "bool")
    given = table["label"].to_pylist()
    line = {"row_id": _ids(tmp_path, table)["r0001"], "label": str(not given[1]).upper()}
    found = written(_correct(tmp_path, table, [line]))
    assert found["label"].to_pylist()[1] is (not given[1])


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.CSV", ["row_id,label", "R,0"]),
        ("a.Tsv", ["row_id\tlabel", "R\t0"]),
        ("a.csv", ["Row_ID,LABEL", "R,0"]),
        ("a.csv", ["row_id, label ,verdict", "R, 0,"]),
        ("a.csv", ['"row_id", "label"', "R,0"]),
        ("a.csv", ['Row_Id,"a remark\nin two lines",label,,', "R,,0,,"]),
        ("a.csv", ["remark,remark,row_id,label", "x,y,R,0"]),
        ("a.csv", ["row_id,copy,label", "R,0.0,0.0"]),
        ("a.csv", ["row_id,given_label,label,verdict", "R,0.0,,keep"]),
    ],
)
def test_what_programs_make_of_a_file(tmp_path: Path, name: str, lines: list[str]) -> None:
    table = rows(5, "int64")
    row_id = _ids(tmp_path, table)["r0000"]
    assert table["label"].to_pylist()[0] == 7
    for end in ("\n", "\r\n"):
        path = tmp_path / f"{len(end)}{name}"
        path.write_text(end.join(lines).replace("R,", f"{row_id},").replace("R\t", f"{row_id}\t"))
        result = act(tmp_path / "run", table, {**CORRECT, "path": str(path)})
        assert written(result)["label"].to_pylist()[0] == 0
        assert result.manifest["rows"]["relabelled"] == 1


def test_parquet_of_other_programs(tmp_path: Path) -> None:
    table = rows(5, "int64")
    row_id = _ids(tmp_path, table)["r0000"]
    answers = pa.table({"Row_ID": [row_id], " label": [0.0], "copy": [0.0]})
    pq.write_table(answers, tmp_path / "a.PARQUET")
    result = act(tmp_path / "run", table, {**CORRECT, "path": str(tmp_path / "a.PARQUET")})
    assert written(result)["label"].to_pylist()[0] == 0


@pytest.mark.parametrize("second", ["label", "Label", " label"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, second: str) -> None:
    csv_file, parquet = tmp_path / "a.csv", tmp_path / "a.parquet"
    csv_file.write_text(f"row_id,label,{second}\n{'0' * 32},neg,pos\n")
    columns = [pa.array([value]) for value in ("0" * 32, "neg", "pos")]
    pq.write_table(pa.Table.from_arrays(columns, ["row_id", "label", second]), parquet)
    for path in (csv_file, parquet):
        with pytest.raises(tamis.UserError, match=r"a\.(csv|parquet).*two columns `label`"):
            read_corrections(path)


def test_a_file_without_lines_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Row_ID,label\r\n")
    assert read_corrections(tmp_path / "a.csv").height == 0


def test_an_integer_has_no_fraction(tmp_path: Path) -> None:
    table = rows(5, "int64")
    line = {"row_id": _ids(tmp_path, table)["r0000"], "label": "7.5"}
    with pytest.raises(tamis.UserError, match=r"cannot hold the label '7\.5'"):
        _correct(tmp_path, table, [line])


def test_keep_means_the_label_that_was_shown(tmp_path: Path) -> None:
    """Where a stage has changed it since, the person's word stands."""
    table = rows(30)
    suggest = {"operator": "relabel", "threshold": 0.0, "confidence": 0.0}
    first = act(tmp_path, table, {"operator": "label_review", "rows": 4})
    queue = first.queues["label_review"][0]
    asked = pq.read_table(first.queues["label_review"][1])["row_id"].to_pylist()
    _fill(queue, {row_id: {"verdict": "keep"} for row_id in asked})
    after = act(tmp_path, table, suggest, {**CORRECT, "path": str(queue)})
    names = {row_id: name for name, row_id in row_ids(after).items()}
    found = {row["id"]: row for row in written(after).to_pylist()}
    for row_id in asked:
        row = found[names[row_id]]
        assert row["label"] == row["given_label"] != row["probe_suggested"]


class Judge(TableScorer):
    """P(wrong) of the labels as they are when it runs."""

    operator: Literal["test_judge"] = "test_judge"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("label",)

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "column": self.stage}

    def fields(self) -> pa.Schema:
        return pa.schema([pa.field(self.stage, pa.float64())])

    def judges(self) -> dict[str, Judgement]:
        return {self.stage: "probability"}

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        wrong = pc.equal(as_names(table.role("label")), "neg").combine_chunks()
        yield pa.record_batch([wrong.cast(pa.float64())], schema=self.fields())


class Mean(TableScorer):
    """Of two judgements."""

    operator: Literal["test_mean"] = "test_mean"
    version: ClassVar[int] = 1

    def reads(self) -> set[str]:
        return {"before", "after"}

    def fields(self) -> pa.Schema:
        return pa.schema([pa.field("mean", pa.float64())])

    def judges(self) -> dict[str, Judgement]:
        return {"mean": "probability"}

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        yield pa.record_batch([pa.array([0.5] * len(table))], schema=self.fields())


# They are for this test alone.
for cls in (Judge, Mean):
    del REGISTRY[cls.model_fields["operator"].default]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_judgement_of_before_says_nothing_of_a_new_label(tmp_path: Path) -> None:
    """One of the new label does: then the row may go after all."""
    table = rows(90)
    suggested = pa.array(["neg"] * 45 + ["pos"] * 45)
    place = table.column_names.index("probe_suggested")
    table = table.set_column(place, "probe_suggested", suggested)
    relabel = Relabel(by="before", confidence=0.0, threshold=1.0)  # those that are neg
    before, after = Judge(name="before"), Judge(name="after")
    given = table["label"].to_pylist()
    moved = [label == "neg" and number >= 45 for number, label in enumerate(given)]
    stays = [label == "neg" and number < 45 for number, label in enumerate(given)]
    assert 5 < sum(moved) < 40
    assert 5 < sum(stays) < 40
    plain = check_recipe(recipe(tmp_path, table, []))

    def lost(by: str, *stages: Any) -> set[str]:
        errors = LabelErrors(by=by)
        result = tamis.run(plain.model_copy(update={"stages": [*stages, errors]}))
        return set(table["id"].to_pylist()) - set(written(result)["id"].to_pylist())

    names = table["id"].to_pylist()
    left = {name for name, here in zip(names, stays, strict=True) if here}
    were = left | {name for name, here in zip(names, moved, strict=True) if here}
    assert lost("before", before) == were
    assert lost("before", before, relabel) == left
    assert lost("after", before, relabel, after) == left
    assert lost("mean", before, after, Mean(), relabel) == set(names) - (were - left)
    assert lost("mean", before, relabel, after, Mean()) == set(names) - (were - left)
    flipped = Relabel(by="before", confidence=0.0, threshold=0.0)  # all: 45 of them to neg
    now = {name for number, name in enumerate(names) if number < 45}
    assert lost("after", before, flipped, after) == now
    changed = {n for n, g, s in zip(names, given, suggested.to_pylist(), strict=True) if g != s}
    assert lost("mean", before, flipped, after, Mean()) == set(names) - changed


def test_the_file_must_stay_as_it_is(tmp_path: Path) -> None:
    table = rows(5)
    row_id = _ids(tmp_path, table)["r0000"]
    first = _correct(tmp_path, table, [{"row_id": row_id, "verdict": "keep"}])
    digest = first.manifest["recipe"]["stages"][0]["digest"]
    assert digest
    again = _correct(tmp_path, table, [{"row_id": row_id, "verdict": "drop"}])
    assert again.manifest["rows"]["kept"] == 4
    with pytest.raises(tamis.UserError, match="the recipe pins"):
        _correct(tmp_path, table, [{"row_id": row_id, "verdict": "drop"}], digest=digest)
    with pytest.raises(tamis.UserError, match="no such file of corrections"):
        act(tmp_path, table, {**CORRECT, "path": str(tmp_path / "nothing.csv")})


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "need the columns"),
        ("a.csv", "row_id;label\n".encode("utf-16"), "not UTF-8"),
        ("a.csv", b"row_id,label\na,b,c\n", "not the CSV that it was"),
        ("a.csv", b'row_id,"label\n' + b"a,b\n" * 50_000, "not the CSV that it was"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
        ("a.xlsx", b"PK", "ends in .csv or .parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(tamis.UserError, match=message):
        act(tmp_path, rows(3), {**CORRECT, "path": str(tmp_path / name)})


TRICKY = [
    '=HYPERLINK("http://x.example","y")',
    "+1 is not a number",
    "-cmd|' /C calc'!A0",
    "@SUM(A1)",
    "\ttab",
    "\r\nline",
    "＝1+1",
    "'=quoted",
    "''+twice",
    'say "no", he said;\nand went',
    "-12.5",
    "+3",
    "plain",
    "'plain",
    "漢字 ünïcode 🙂",
    "",
]


def test_a_spreadsheet_finds_no_formula_and_texts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    count = len(TRICKY)
    table = pa.table(
        {
            "row_id": [f"{i:032x}" for i in range(count)],
            "text": TRICKY,
            "label": TRICKY,
            "verdict": pa.nulls(count, pa.string()),
        }
    )
    write_csv(table, path)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with path.open(newline="", encoding="utf-8-sig") as file:
        cells = [line["text"] for line in csv.DictReader(file)]
    for cell in cells:
        assert cell[:1] not in tuple("=@\t\r\n＝＋－＠")
        assert cell[:1] not in ("+", "-") or pl.Series([cell]).cast(pl.Float64).is_finite().all()
    found = read_corrections(path)
    assert found["label"].to_list() == [text if text.strip() else None for text in TRICKY]


def test_long_texts_are_cut_for_spreadsheets_only(tmp_path: Path) -> None:
    table = rows(3).set_column(1, "text", pa.array(["x" * 100_000, "y", "=" + "z" * 40_000]))
    stage = {"operator": "label_review", "rows": 3, "order": "p_wrong"}
    queues = act(tmp_path, table, stage).queues["label_review"]
    with queues[0].open(newline="", encoding="utf-8-sig") as file:
        csv.field_size_limit(1 << 20)
        assert max(len(line["text"]) for line in csv.DictReader(file)) <= CELL + 2 <= 32_767
    assert sorted(map(len, pq.read_table(queues[1])["text"].to_pylist())) == [1, 40_001, 100_000]


@pytest.mark.slow
def test_plan_samples_a_recipe_with_corrections(tmp_path: Path) -> None:
    from tamis.flows.plan import plan

    table = rows(200)
    ids = _ids(tmp_path, table)
    path = _file(tmp_path / "c.csv", [{"row_id": i, "verdict": "keep"} for i in ids.values()])
    found = plan(check_recipe(recipe(tmp_path / "x", table, [{**CORRECT, "path": path}])))
    assert found.rows == 200
