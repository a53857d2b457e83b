"""What a person has said of labels: confirmed, changed, or not worth keeping."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from tamis.selectors.labels import NewLabels, all_classes, fitting_names, label_fields
from tamis.selectors.marker import Marker, places
from tamis.selectors.relabel import GIVEN
from tamis.selectors.review_files import read_corrections
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import Scores
from tamis.storage.columns import Mask
from tamis.storage.errors import RunError, UserError
from tamis.storage.files import digest_file
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import DROPPED, RELABELLED
from tamis.storage.places import Place, kind_of, place_of, shown

VERDICTS = ("keep", "relabel", "drop")
#: Records that a message shows.
SHOWN = 3


@dataclass(frozen=True)
class Answers:
    """What a file of corrections comes to for a table.

    Attributes:
        new: the labels of the rows, with those that are changed.
        sure: rows whose label a person has said.
        lost: rows that are to go, ascending.
        report: figures for the manifest.
    """

    new: NewLabels
    sure: Mask
    lost: Int64s
    report: dict[str, Any]


class LabelCorrections(Marker):
    """Take over what a person has said of labels, in a file such as `label_review` writes.

    A line names a row by `row_id` (and `copy`; without it all copies) and says `keep`, `relabel`
    or `drop` as `verdict`, or only gives the `label` that is right. Lines with neither are not
    answered yet, and say nothing. Where the file has the column `given_label`, `keep` means that
    label. Rows whose label is kept or changed here are left alone by the stages that judge labels,
    so this stage belongs before them.
    """

    operator: Literal["label_corrections"] = "label_corrections"
    path: str = Field(description="CSV (UTF-8) or Parquet file that a person has filled in")
    digest: str | None = Field(
        default=None, description="of the file; if given, another one is refused"
    )
    new_classes: bool = Field(
        default=False, description="whether labels are taken that no row of the corpus has"
    )
    unknown: Literal["error", "skip"] = Field(
        default="error", description="what to do with lines that name no row of the corpus"
    )
    given: str = GIVEN

    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("label",)

    def resolve(self, workspace: Place) -> Self:
        place = place_of(self.path)
        if kind_of(place) != "file":
            raise UserError("no such file of corrections", where=shown(place))
        digest = digest_file(place)
        if self.digest not in (None, digest):
            raise UserError(
                f"the corrections have the digest {digest}, the recipe pins {self.digest}",
                where=shown(place),
                mend="restore the file, or remove `digest` from the recipe",
            )
        return self.model_copy(update={"digest": digest})

    def key_parts(self) -> dict[str, Any]:
        return {name: part for name, part in super().key_parts().items() if name != "path"}

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 200

    def fields(self) -> pa.Schema:
        """``<stage>_label`` (the label as text), ``_given`` (the one before), ``_confirmed`` (bool:
        a person has said what the label is), none of them ever null; and ``_action``. ``_value``,
        ``_threshold`` and ``_rules`` are empty."""
        sure = pa.field(f"{self.stage}_confirmed", pa.bool_(), nullable=False)
        return pa.schema([*label_fields(self.stage), sure, *self.action_fields()])

    def rewrites(self) -> dict[str, str]:
        return {"label": f"{self.stage}_label"}

    def settles(self) -> str | None:
        return f"{self.stage}_confirmed"

    def given_as(self) -> str | None:
        return self.given

    def evaluate(self, table: Table) -> Scores:
        """The answers; lines of the file, those without an answer, those that name no row of the
        corpus, and rows they name which an earlier stage has dropped."""
        found = self._answers(table)
        rows = np.union1d(found.new.changed, found.lost)
        action = pa.array([RELABELLED, DROPPED]).take(pa.array(np.isin(rows, found.lost) + 0))
        columns = {f.name: pa.nulls(len(table), f.type) for f in self.action_fields()}
        columns[f"{self.stage}_action"] = action.take(places(len(table), rows))
        sure = {f"{self.stage}_confirmed": pa.array(found.sure)}
        told = self.batches({**found.new.columns(self.stage), **sure, **columns})
        return Scores(told, found.report)

    def _answers(self, table: Table) -> Answers:
        place = place_of(self.path)
        if self.digest not in (None, digest_file(place)):
            raise RunError(
                "the corrections have changed since the run began",
                where=shown(place),
                mend="run the same command again: finished steps are kept",
            )
        lines = checked(read_corrections(place), self.path)
        answered = lines.filter(pl.col("verdict").is_not_null())
        known = _rows_of(answered, table)
        unknown = answered.filter(~pl.col("record").is_in(known["record"].unique().implode()))
        if len(unknown) and self.unknown == "error":
            raise _wrong(
                unknown,
                self.path,
                f"name no row of the corpus, such as {unknown['row_id'][0]}",
                "take the file that a run on this corpus has written, or set `unknown: skip`",
            )
        stays = table.kept[known["position"].to_numpy()]
        report = {
            "records": len(lines),
            "not_answered": len(lines) - len(answered),
            "unknown": len(unknown),
            "rows_not_kept": int(known.filter(pl.Series(~stays))["position"].n_unique()),
        }
        return self._settled(known.filter(pl.Series(stays)), table, report)

    def _settled(self, known: pl.DataFrame, table: Table, report: dict[str, Any]) -> Answers:
        """The answers for rows that are still kept."""
        new = NewLabels.of(table)
        row = np.searchsorted(table.positions, known["position"].to_numpy())
        drop = (known["verdict"] == "drop").to_numpy()
        names = known["label"].unique(maintain_order=True).drop_nulls().to_list()
        meant = self._meant(names, known, table)
        place = {name: new.code_of(fit) for name, fit in meant.items()}
        given = known["label"].replace_strict(place, default=-1, return_dtype=pl.Int32).to_numpy()
        code = np.where(drop, -1, np.where(given < 0, new.labels.codes[row], given))
        order = np.lexsort((code, row))
        apart = (row[order][1:] == row[order][:-1]) & (code[order][1:] != code[order][:-1])
        if apart.any():
            first = np.flatnonzero(apart)
            pairs = np.unique(np.r_[order[first], order[first + 1]])
            raise _wrong(
                known[pairs],
                self.path,
                "say different things of the same row",
                "leave one of them",
            )
        new.codes[row[~drop]] = code[~drop]
        sure = np.zeros(len(table), np.bool_)
        sure[row[~drop]] = True
        return Answers(new, sure, np.unique(row[drop]), report)

    def _meant(self, names: list[str], known: pl.DataFrame, table: Table) -> dict[str, str]:
        """The class that each label means.

        Raises:
            UserError: if one is no class of the corpus.
        """
        classes = all_classes(table) if names else set()
        found = {
            name: name if name in classes else fitting_names([name.strip()], table)[0]
            for name in names
        }
        new = [name for name, fit in found.items() if fit not in classes]
        if new and not self.new_classes:
            raise _wrong(
                known.filter(pl.col("label").is_in(new)),
                self.path,
                f"give a label that no row of the corpus has, such as {new[0]!r}",
                "mend them, or set `new_classes: true` to take them",
            )
        return found


def checked(lines: pl.DataFrame, path: str) -> pl.DataFrame:
    """The lines with their `verdict` (null where there is no answer), and `label` where they name
    one.

    Raises:
        UserError: naming lines that say nothing that can be done.
    """
    lines = lines.with_columns(
        pl.col("row_id", "verdict").str.strip_chars().str.to_lowercase(),
        pl.col("copy").str.strip_chars().str.replace(r"\.0+$", ""),
    )
    copy, verdict, label = pl.col("copy"), pl.col("verdict"), pl.col("label")
    number = copy.cast(pl.UInt32, strict=False)
    for wrong, problem, mend in (
        (
            ~pl.col("row_id").str.contains("^[0-9a-f]{32}$").fill_null(False),
            "have no row_id of 32 hex digits",
            "spreadsheets change what looks like a number: open that column as text",
        ),
        (
            copy.is_not_null() & number.is_null(),
            "have a `copy` that is no number",
            "leave it as it was",
        ),
        (
            verdict.is_not_null() & ~verdict.is_in(VERDICTS),
            f"have a verdict that is none of {', '.join(VERDICTS)}",
            "use one of these words",
        ),
        (
            (verdict == "relabel") & label.is_null(),
            "say relabel and give no label",
            "fill in `label`",
        ),
        (
            (verdict == "drop") & label.is_not_null(),
            "say drop and give a label",
            "empty one of the two",
        ),
        (
            (verdict == "keep")
            & label.is_not_null()
            & label.str.strip_chars().ne_missing(pl.col("given_label").str.strip_chars()),
            "say keep and give another label",
            "empty one of the two",
        ),
    ):
        found = lines.filter(wrong)
        if len(found):
            raise _wrong(found, path, problem, mend)
    return lines.with_columns(
        number,
        pl.when(verdict == "keep").then(pl.coalesce("label", "given_label")).otherwise(label),
        pl.when(label.is_not_null()).then(verdict.fill_null("relabel")).otherwise(verdict),
    )


def _rows_of(lines: pl.DataFrame, table: Table) -> pl.DataFrame:
    """The lines with the `position` in the corpus of every row they name, in its order."""
    halves = np.frombuffer(bytes.fromhex("".join(lines["row_id"])), ">u8").reshape(-1, 2)
    ids = halves.astype(np.uint64)
    rows = table.rows
    at = np.flatnonzero(np.isin(rows.id_hi, ids[:, 0]))
    there = {"hi": rows.id_hi[at], "lo": rows.id_lo[at], "its_copy": rows.copy[at], "position": at}
    named = lines.with_columns(hi=ids[:, 0], lo=ids[:, 1])
    found = named.join(pl.DataFrame(there), on=["hi", "lo"])
    same = pl.col("copy").is_null() | (pl.col("copy") == pl.col("its_copy"))
    return found.filter(same).sort("position", "record")


def _wrong(lines: pl.DataFrame, path: str, problem: str, mend: str) -> UserError:
    first = ", ".join(map(str, lines["record"].head(SHOWN)))
    more = ", …" if len(lines) > SHOWN else ""
    return UserError(
        f"{len(lines):,} corrections {problem} (records {first}{more})",
        where=shown(path),
        mend=mend,
    )
