"""Records of training: what a model said of each row at each epoch, or window of steps, of a run.

A folder of Parquet files, a file for every epoch or window of steps (and rank) of a run, written by
a `DynamicsRecorder` or by any trainer:

    FOLDER/run-0/epoch-00003.parquet
    FOLDER/run-0/epoch-00003.window-00002.rank-1.parquet

Runs are trainings of their own, such as those with different threshold samples. A row may occur
several times in a file: every record is an update. Files lie sorted by `row_id` where a recorder
wrote them; others may write them in any order. `storage.epochs` reads them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tamis.storage.errors import UserError
from tamis.storage.files import digest_of, whole_file
from tamis.storage.inputs import find_files, is_empty_folder, known_digest
from tamis.storage.places import Place, kind_of, parquet_file, place_errors, place_of, shown

#: Columns of a record. `row_id` is whatever tells rows apart in the trainer's data: what stands in
#: the corpus's id column, or tamis's own row_id as 32 hex digits; int64 or string.
RECORD = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),  # from 0
        pa.field("step", pa.int64()),  # updates of the model before it
        pa.field("label", pa.int32(), nullable=False),  # class that the row was trained as
        pa.field("label_logit", pa.float32(), nullable=False),
        pa.field("other_logit", pa.float32(), nullable=False),  # largest of another class
        pa.field("other", pa.int32(), nullable=False),  # that class
        pa.field("loss", pa.float32(), nullable=False),  # cross-entropy, nats
        pa.field("label_prob", pa.float32(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),  # of the softmax, nats
        pa.field("el2n", pa.float32(), nullable=False),  # length of softmax minus one-hot label
        pa.field("correct", pa.bool_(), nullable=False),  # no other logit reaches the label's
        pa.field("threshold", pa.bool_(), nullable=False),  # trained as the extra class, for AUM
    ]
)
#: Optional last column of a record: all logits, ``list<float>``.
LOGITS = pa.field("logits", pa.list_(pa.field("item", pa.float32(), nullable=False)))
#: Key of the footer's JSON: ``version``, ``run``, ``epoch``, ``window``, ``rank``, ``classes``,
#: ``sorted``. A file without it says these by its name and its column `epoch`.
FOOTER = b"tamis.dynamics"
#: Version of the format.
VERSION = 1
#: Records in a row group of a file that tamis writes.
GROUP_ROWS = 1 << 18

_RUN = re.compile(r"run-(\d+)")
_PART = re.compile(r"(window|rank)-(\d+)")
_WRITE = "write the file again, as docs/training-dynamics.md says"


@dataclass(frozen=True, order=True)
class RecordFile:
    """A file of records, and what its footer or its name says of it.

    Attributes:
        run: from 0, over all folders read together.
        epoch: from 0.
        window, rank: 0 where there is one only.
        path: as it may be printed.
        place: where it lies.
        rows: records in it.
        sorted: whether its footer says that `row_id` ascends.
        text_ids: whether row_ids are strings, and not int64.
        thresholds: whether a record may be one of a threshold sample.
        classes: the most logits that a record was made of; 0 if its footer does not say.
        logits: whether all logits are kept.
    """

    run: int
    epoch: int
    window: int
    rank: int
    path: str
    place: Place
    rows: int
    sorted: bool
    text_ids: bool
    thresholds: bool
    classes: int
    logits: bool


@dataclass(frozen=True)
class Dynamics:
    """The records of one or several runs.

    Attributes:
        files: ascending by run, epoch, window and rank.
        runs: how many.
        first, last: epochs that are read, both included; one that no file has is missing.
    """

    files: tuple[RecordFile, ...]
    runs: int
    first: int
    last: int

    @property
    def epochs(self) -> int:
        """Epochs of a run, those missing included."""
        return self.last - self.first + 1

    @property
    def text_ids(self) -> bool:
        """Whether row_ids are strings, and not int64."""
        return self.files[0].text_ids

    @property
    def thresholds(self) -> bool:
        """Whether a record may be one of a threshold sample."""
        return any(file.thresholds for file in self.files)

    def classes(self) -> int:
        """Logits of a record, those of the ordinary classes: without the extra one in runs with
        threshold samples.

        Raises:
            UserError: if a file has not kept all logits, or does not say of how many.
        """
        for file in self.files:
            if file.rows and not (file.logits and file.classes):
                lacks = "the number of `classes` in its footer" if file.logits else "logits"
                raise UserError(
                    f"lacks {lacks}", where=file.path, mend="have the recorder keep all logits"
                )
        sampled = {file.run for file in self.files if file.thresholds}
        return max(file.classes - (file.run in sampled) for file in self.files)

    def missing(self) -> list[tuple[int, int]]:
        """Run and epoch of those that no file has."""
        there = {(file.run, file.epoch) for file in self.files}
        epochs = range(self.first, self.last + 1)
        return [(r, e) for r in range(self.runs) for e in epochs if (r, e) not in there]

    def between(self, skip: int, until: int | None) -> "Dynamics":
        """The same without epochs before `skip`, and without `until` and those after it.

        Raises:
            UserError: if none is left.
        """
        end = self.last if until is None else min(until - 1, self.last)
        kept = tuple(file for file in self.files if skip <= file.epoch <= end)
        if not kept:
            raise UserError(
                f"no records are left without the first {skip} epochs"
                + ("" if until is None else f" and those from {until} on"),
                where=self.files[0].path,
                mend=f"there are epochs {self.first} to {self.last}",
            )
        return replace(self, files=kept, first=max(skip, self.first), last=end)

    def digest(self, workspace: Place) -> str:
        """Of the bytes of all files, whatever they are called; see `inputs.known_digest`."""
        parts = [
            [file.run, file.epoch, file.window, file.rank, known_digest(file.place, workspace)]
            for file in self.files
        ]
        return digest_of(["dynamics", VERSION, parts])


def find_dynamics(paths: str | Sequence[str]) -> Dynamics:
    """The records in a folder, or in several whose runs are counted on from one to the next.

    Epochs are read from 0, or from the first there is, to the last. Only ``*.parquet`` is read.

    Raises:
        UserError: for a folder without records, a file that is damaged, of an unknown version, or
            not in the format, two files for one part of an epoch, or row_ids of several types.
    """
    files: list[RecordFile] = []
    for path in [paths] if isinstance(paths, str) else paths:
        found = [_record_file(place) for place in _parquet_files(path)]
        begin = 1 + max((file.run for file in files), default=-1)
        number = {run: begin + n for n, run in enumerate(sorted({file.run for file in found}))}
        files += [replace(file, run=number[file.run]) for file in found]
    if not files:
        raise UserError("no folder of training records given", mend="give at least one")
    files.sort()
    for one, other in pairwise(files):
        part = "run", "epoch", "window", "rank"
        if all(getattr(one, name) == getattr(other, name) for name in part):
            raise UserError(
                f"holds the same run, epoch, window and rank ({one.run}, {one.epoch}, "
                f"{one.window}, {one.rank}) as {one.path}",
                where=other.path,
                mend="remove one of them",
            )
    kinds = {file.text_ids: file for file in reversed(files)}
    if len(kinds) > 1:
        raise UserError(
            f"row_id: expected int64 as in {kinds[False].path}, found strings",
            where=kinds[True].path,
            mend="all files of a run must name rows alike",
        )
    epochs = [file.epoch for file in files]
    return Dynamics(tuple(files), files[-1].run + 1, min(epochs), max(epochs))


def _parquet_files(path: str) -> list[Place]:
    if kind_of(place_of(path)) != "directory":
        raise UserError(
            "no such folder", where=shown(path), mend="give the folder that a recorder wrote to"
        )
    files = [] if is_empty_folder(path) else find_files(path)
    found = [place for place in files if place.name.endswith(".parquet")]
    if not found:
        raise UserError(
            "no Parquet files of training records in this folder",
            where=shown(path),
            mend="give the folder that a recorder wrote to",
        )
    return found


def _record_file(place: Place) -> RecordFile:
    where = shown(place)
    try:
        with place_errors(place), parquet_file(place) as file:
            schema, footer = file.schema_arrow, file.metadata
            told = _footer_of(footer, where)
            _check_columns(schema, where)
            epoch = _epoch_of(file, where)
            thresholds = _values_of(file, "threshold") != {False}
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"not a whole Parquet file ({str(error).splitlines()[0]})",
            where=where,
            mend="remove it, or write it again",
        ) from error
    named = {name: int(number) for name, number in _PART.findall(place.name)}
    run = next((int(n) for n in _RUN.findall(str(place.parent))[::-1]), 0)
    if epoch is None:
        epoch = int(told.get("epoch", -1))
    if epoch < 0 or told.get("epoch", epoch) != epoch:
        said = f"its footer says epoch {told['epoch']}" if "epoch" in told else "epochs are from 0"
        raise UserError(f"column epoch holds {epoch}, but {said}", where=where, mend=_WRITE)
    return RecordFile(
        int(told.get("run", run)),
        epoch,
        int(told.get("window") or named.get("window", 0)),
        int(told.get("rank") or named.get("rank", 0)),
        where,
        place,
        footer.num_rows,
        bool(told.get("sorted", False)),
        not pa.types.is_integer(schema.field("row_id").type),
        footer.num_rows > 0 and thresholds,
        int(told.get("classes") or 0),
        LOGITS.name in schema.names,
    )


def _footer_of(footer: pq.FileMetaData, where: str) -> dict[str, Any]:
    text = (footer.metadata or {}).get(FOOTER)
    if text is None:
        return {}
    try:
        found: dict[str, Any] = json.loads(text)
        version = found["version"]
    except (ValueError, TypeError, KeyError):
        version = text[:40]
    if version != VERSION:
        raise UserError(
            f"training records of version {version!r}, this tamis reads version {VERSION}",
            where=where,
            mend="read them with the tamis that wrote them",
        )
    return found


def _check_columns(schema: pa.Schema, where: str) -> None:
    """The columns of `RECORD`, each of a type that holds the same numbers; `step` may lack."""
    for field in RECORD:
        at = schema.get_field_index(field.name)
        if at < 0:
            if field.nullable:
                continue
            raise UserError(
                f"no column {field.name!r}",
                where=where,
                mend=f"training records have {', '.join(RECORD.names)}",
            )
        kind = schema.field(at).type
        if field.name == "row_id":
            fits = pa.types.is_integer(kind) or is_text(kind)
        elif pa.types.is_floating(field.type):
            fits = pa.types.is_floating(kind)
        else:
            fits = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        if not fits:
            raise UserError(
                f"column {field.name!r}: expected {field.type}, found {kind}",
                where=where,
                mend=_WRITE,
            )


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    return any(test(kind) for test in tests)


def _epoch_of(file: pq.ParquetFile, where: str) -> int | None:
    """The one epoch of a file; None if it has no rows."""
    found = _values_of(file, "epoch")
    if len(found) > 1:
        raise UserError(
            f"column epoch holds {min(found)} to {max(found)}: expected one epoch in a file",
            where=where,
            mend="write a file for every epoch",
        )
    return int(found.pop()) if found else None


def _values_of(file: pq.ParquetFile, name: str) -> set[int]:
    """Least and greatest value of a column in each row group, by the footer if it says; -1 for
    null."""
    leaf = [file.schema.column(i).path for i in range(len(file.schema))].index(name)
    found: set[int] = set()
    for group in range(file.num_row_groups):
        known = file.metadata.row_group(group).column(leaf).statistics
        if known is not None and known.has_min_max and known.null_count == 0:
            found |= {known.min, known.max}
        else:
            values = file.read_row_group(group, columns=[name]).column(0)
            found |= {-1 if v is None else v for v in pc.unique(values).to_pylist()}
    return found


def write_records(place: Place, records: pa.Table, told: dict[str, Any]) -> None:
    """Write records of one part of an epoch, sorted by row_id, as a whole file.

    Args:
        records: columns of `RECORD`, `row_id` int64 or string, and `LOGITS` if there are any.
        told: ``run``, ``epoch``, ``window``, ``rank``, ``classes``.
    """
    ordered = records.take(pc.sort_indices(records, [("row_id", "ascending")]))
    footer = json.dumps({"version": VERSION, **told, "sorted": True})
    ordered = ordered.replace_schema_metadata({FOOTER: footer})
    with whole_file(place) as temporary:
        pq.write_table(
            ordered,
            temporary,
            row_group_size=GROUP_ROWS,
            compression="zstd",
            compression_level=1,
            use_dictionary=["epoch", "step", "label", "other"],
        )
