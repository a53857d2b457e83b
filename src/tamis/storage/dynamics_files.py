"""Names of the files of training records within a run's folder, and what a restart removes."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from tamis.storage.dynamics import FOOTER, write_records
from tamis.storage.errors import UserError
from tamis.storage.files import TEMPORARY
from tamis.storage.places import Place, kind_of, parquet_file, place_errors, shown

_NAME = re.compile(r"epoch-(\d+)(?:\.window-(\d+))?(?:\.rank-(\d+))?\.parquet")


class RecordName(NamedTuple):
    """What the name of a file of records says.

    Attributes:
        epoch: from 0.
        window: place among the files of an epoch, from 0; None if the epoch is one file.
        rank: process that wrote it, among several; None for a single one.

    Example:
        >>> RecordName(3, 2, 1).name
        'epoch-00003.window-00002.rank-1.parquet'
        >>> RecordName.named("epoch-00003.parquet")
        RecordName(epoch=3, window=None, rank=None)
    """

    epoch: int
    window: int | None = None
    rank: int | None = None

    @property
    def name(self) -> str:
        window = "" if self.window is None else f".window-{self.window:05d}"
        rank = "" if self.rank is None else f".rank-{self.rank}"
        return f"epoch-{self.epoch:05d}{window}{rank}.parquet"

    @classmethod
    def named(cls, name: str) -> "RecordName | None":
        """The file of this name; None if it is no file of records."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        epoch, window, rank = (None if part is None else int(part) for part in found.groups())
        return cls(epoch or 0, window, rank)

    @property
    def order(self) -> tuple[int, int]:
        """Sorts the files of a process in the order of training."""
        return self.epoch, self.window or 0


def record_files(folder: Place) -> Iterator[RecordName]:
    """The files of records in a run's folder, in no order."""
    with place_errors(folder):
        if kind_of(folder) == "directory":
            for path in folder.iterdir():
                found = RecordName.named(path.name)
                if found is not None:
                    yield found


def remove_leftovers(folder: Place, whose: Callable[[RecordName], bool]) -> None:
    """Remove what killed processes left half-written, of the files that `whose` names."""
    if isinstance(folder, Path):  # a store has no half-written files
        with place_errors(folder):
            for path in folder.glob(f".epoch-*{TEMPORARY}"):
                found = RecordName.named(path.name[1:].removesuffix(TEMPORARY).rpartition(".")[0])
                if found is not None and whose(found):
                    path.unlink(missing_ok=True)


def require_steps(path: Place, step: int) -> None:
    """Raise a `UserError` if a file has records of which nobody knows whether they were made before
    a step."""
    with place_errors(path), parquet_file(path) as file:
        there = "step" in file.schema_arrow.names
        unknown = file.read(["step"])["step"].null_count if there else file.metadata.num_rows
    if unknown:
        raise UserError(
            f"cannot tell what came before step {step}: {unknown:,} records have no step",
            where=shown(path),
            mend="begin the epoch anew, with start_epoch(number) alone; to go on within an epoch, "
            "all its batches need record(..., step=...)",
        )


def keep_steps_before(path: Place, step: int) -> bool:
    """Drop the records of a file, all of known steps, that were made at a step or later.

    Returns:
        Whether records remain; where none do, the file is gone.
    """
    with place_errors(path), parquet_file(path) as file:
        steps = file.read(["step"])["step"]
        earlier = pc.less(steps, step)
        kept = pc.sum(earlier).as_py() or 0
        if kept == len(steps):
            return kept > 0
        table = file.read().filter(earlier) if kept else None
    if table is None:
        path.unlink()
        return False
    write_records(path, table, json.loads((table.schema.metadata or {}).get(FOOTER, "{}")))
    return True
