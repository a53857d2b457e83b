"""Files that go to a person and come back: safe to open in a spreadsheet, and read strictly."""

import csv
import io
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv as pv

from tamis.selectors.labels import as_names
from tamis.storage.errors import UserError
from tamis.storage.places import Place, parquet_file, place_errors, shown

#: A spreadsheet takes what begins with one of these for a formula; numbers are harmless.
_FORMULA = "=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20"
_NUMBER = r"^[+-]?\d+(\.\d+)?$"
#: Characters of a cell; spreadsheets hold 32,767.
CELL = 30_000
#: What a file of corrections may have; other columns are for the reader's eyes.
COLUMNS = ("row_id", "copy", "given_label", "label", "verdict")


def write_csv(table: pa.Table, path: Path) -> None:
    """Write texts and numbers so that a spreadsheet shows them and runs nothing.

    Texts are cut at `CELL` characters. One that a spreadsheet would take for a formula is given an
    apostrophe before it, which `read_corrections` takes away. The file begins with the mark by
    which spreadsheets know UTF-8.
    """
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    texts = [pl.col(name) for name, kind in frame.schema.items() if kind == pl.String]
    frame.with_columns(map(_safe, texts)).write_csv(
        path, include_bom=True, quote_style="non_numeric", line_terminator="\r\n"
    )


def _safe(text: pl.Expr) -> pl.Expr:
    """A text that a spreadsheet holds, and takes for a text."""
    cut = pl.when(text.str.len_chars() > CELL).then(text.str.slice(0, CELL) + "…").otherwise(text)
    formula = cut.str.contains(f"^'*[{_FORMULA}]") & ~cut.str.contains(_NUMBER)
    return pl.when(formula).then("'" + cut).otherwise(cut).alias(text.meta.output_name())


def read_corrections(place: Place) -> pl.DataFrame:
    """The lines of a CSV or Parquet file that a person has filled in.

    Names of columns and the ending of the file are taken in any case, and names with blanks around
    them: so spreadsheets write them.

    Returns:
        The columns `COLUMNS`, all of text, null where empty or not there, after `record`, their
        number from 1; lines of blanks are left out.

    Raises:
        UserError: if it cannot be read, has no `row_id` or neither `label` nor `verdict`, or has
            two columns of one of these names.
    """
    with place_errors(place):
        ending = place.suffix.lower()
        if ending == ".parquet":
            found = _parquet(place)
        elif ending in (".csv", ".tsv", ".txt"):
            found = _csv(place)
        else:
            raise UserError(
                "expected a file that ends in .csv or .parquet",
                where=shown(place),
                mend="save it as CSV (UTF-8)",
            )
    names = found.column_names
    if "row_id" not in names or not {"label", "verdict"} & set(names):
        raise UserError(
            f"corrections need the columns `row_id` and `label` or `verdict`, found "
            f"{', '.join(names) or 'none'}",
            where=shown(place),
            mend="fill in the file that `label_review` has written",
        )
    frame = pl.from_arrow(found)
    assert isinstance(frame, pl.DataFrame)
    missing = [pl.lit(None, pl.String).alias(name) for name in COLUMNS if name not in names]
    frame = frame.with_columns(missing).select(COLUMNS)
    blank = pl.all().str.strip_chars() == ""
    frame = frame.with_columns(pl.when(blank).then(None).otherwise(pl.all()).name.keep())
    empty = pl.all_horizontal(pl.exclude("record").is_null())
    return frame.with_row_index("record", 1).filter(~empty)


def _wanted(names: list[str], place: Place) -> dict[str, str]:
    """By name of a column of `COLUMNS` how the file writes it, for those it has.

    Raises:
        UserError: if the file has two columns of one of these names.
    """
    found: dict[str, str] = {}
    for name in names:
        plain = name.strip().lower()
        if plain in found:
            raise UserError(
                f"the corrections have two columns `{plain}`",
                where=shown(place),
                mend="leave the one that is filled in",
            )
        if plain in COLUMNS:
            found[plain] = name
    return found


def _parquet(place: Place) -> pa.Table:
    try:
        with parquet_file(place) as file:
            wanted = _wanted(file.schema_arrow.names, place)
            table = file.read(columns=list(wanted.values()))
    except pa.ArrowException as error:
        raise UserError(f"not a Parquet file ({error})", where=shown(place)) from error
    try:
        return pa.table({name: as_names(table[written]) for name, written in wanted.items()})
    except pa.ArrowException as error:
        raise UserError(
            f"expected plain values in {', '.join(wanted)} ({error})", where=shown(place)
        ) from error


def _csv(place: Place) -> pa.Table:
    data = place.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            "the corrections are not UTF-8 text", where=shown(place), mend="save it as CSV (UTF-8)"
        ) from error
    lines = io.StringIO(text, newline="")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    try:
        names = next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error as error:
        raise UserError(f"not the CSV that it was ({error})", where=shown(place)) from error
    body = lines.read()
    wanted = _wanted(names, place)
    if not wanted or not body.strip():
        return pa.table({name: pa.nulls(0, pa.string()) for name in wanted or names if name})
    try:
        table = pv.read_csv(
            io.BytesIO(body.encode()),
            read_options=pv.ReadOptions(
                use_threads=False, block_size=max(1 << 20, len(data) + 16), column_names=names
            ),
            parse_options=pv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pv.ConvertOptions(
                column_types=dict.fromkeys(wanted.values(), pa.string()),
                include_columns=list(wanted.values()),
            ),
        )
    except pa.ArrowException as error:
        raise UserError(f"not the CSV that it was ({error})", where=shown(place)) from error
    frame = pl.from_arrow(table.rename_columns(list(wanted)))
    assert isinstance(frame, pl.DataFrame)
    guarded = pl.all().str.replace(f"^'('*[{_FORMULA}])", "${1}")
    return frame.with_columns(guarded).to_arrow()
