"""Writes what a model says of rows while it is trained: see `storage.dynamics` for the files."""

import contextlib
import logging
import operator
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tamis.scoring.batch_records import NUMBERS, Batch, batch_of, fetched
from tamis.storage.dynamics import LOGITS, RECORD, write_records
from tamis.storage.dynamics_files import (
    RecordName,
    keep_steps_before,
    record_files,
    remove_leftovers,
    require_steps,
)
from tamis.storage.errors import UserError
from tamis.storage.places import Place, place_errors, place_of

log = logging.getLogger("tamis")

#: Batches, and numbers in them, that wait before they are put together and fetched from their
#: device: training seldom waits for that, and small batches take little more memory than large.
_WAITING_BATCHES, _WAITING_NUMBERS = 256, 1 << 20
#: Logits in memory, of which there are 4 bytes each, before a window is written.
_MOST_LOGITS = 1 << 28


def process_rank() -> tuple[int | None, int | None]:
    """Rank of this process and how many there are: PyTorch's, or of ``RANK`` and ``WORLD_SIZE``.

    Returns:
        ``(None, 1)`` for a process alone; None for a number that is not known.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None:
        return None, 1
    return int(rank), None if world is None else int(world)


def _whole_number(name: str, value: Any, *, least: int = 0) -> int:
    """An integer of any kind; a `UserError` for anything else, or one that is too small."""
    try:
        found = operator.index(value)
    except TypeError as error:
        raise UserError(
            f"{name}: expected a whole number, found {value!r}", where="DynamicsRecorder"
        ) from error
    if found < least:
        raise UserError(
            f"{name}: expected at least {least}, found {found}", where="DynamicsRecorder"
        )
    return found


class DynamicsRecorder:
    """Records training: logits of the rows of each batch, as a Parquet file for every epoch.

    Records take 48 bytes in memory (with a string for an id 48 and its length; with `logits` 4 more
    for each) and three times that while their file is written, at the end of an epoch. Files are
    written whole: a process that is killed leaves those of earlier epochs, or windows, as they are.

    An epoch that is trained again, as after a restart, replaces its records, and those of later
    epochs are removed: their training was undone. `start_epoch` with a step goes on within an
    epoch. Nothing is replaced before there is something to put in its place.

    Use it in the process that trains: workers that load data need none. In distributed training
    every process has a recorder of its own, which writes files of its own.

    Args:
        folder: where runs lie, local or on an object store.
        run: number of the training, from 0. Trainings with other threshold samples or other seeds
            are runs of their own.
        logits: keep all logits; a file is then written whenever there is a GiB of them.
        rank: this process among several; if None, PyTorch's or the environment's ``RANK``.
        window: write a file every so many steps (batches, where no step is told), so that a
            process that is killed loses less than an epoch.
        threshold_label: the extra class that threshold samples are trained as, as of
            `threshold_samples`.

    Raises:
        UserError: for a run, rank or window that is no such number.

    Example:
        >>> import tempfile, pyarrow.parquet as pq
        >>> recorder = DynamicsRecorder(tempfile.mkdtemp())
        >>> with recorder.epoch(0):
        ...     recorder.record(["a", "b"], [[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]], [0, 1])
        >>> written = pq.read_table(recorder.files()[0])
        >>> written["row_id"].to_pylist(), written["el2n"].to_numpy().round(6)
        (['a', 'b'], array([0.424336, 1.224093], dtype=float32))
    """

    def __init__(
        self,
        folder: str | Path,
        run: int = 0,
        *,
        logits: bool = False,
        rank: int | None = None,
        window: int | None = None,
        threshold_label: int | None = None,
    ) -> None:
        run = _whole_number("run", run)
        rank = None if rank is None else _whole_number("rank", rank)
        window = None if window is None else _whole_number("window", window, least=1)
        self.folder = place_of(folder) / f"run-{run}"
        self.run = run
        self.logits = logits
        self.window = window
        self.threshold_label = threshold_label
        self._given_rank = rank
        self._id_type: pa.DataType | None = None
        self._told_not_finite = False
        self._epoch: int | None = None
        self._open(None, None)

    def _open(self, epoch: int | None, step: int | None) -> None:
        self._epoch = epoch
        self._resumed = step
        self._settled = False
        self._windows = 0  # files of the epoch so far
        self._batches = 0
        self._window_now = 0
        self._waiting: list[Batch] = []
        self._waiting_numbers = 0
        self._kept: list[Batch] = []

    def files(self) -> list[Place]:
        """Files of this run, of all processes, in the order of training."""
        found = sorted(record_files(self.folder), key=lambda file: (file.order, file.rank or 0))
        return [self.folder / file.name for file in found]

    def start_epoch(self, number: int, step: int | None = None) -> None:
        """Begin an epoch.

        Args:
            number: of the epoch, from 0.
            step: where training goes on within the epoch, updates of the model so far: what was
                recorded of it before that step stays. If None, the epoch begins anew.

        Raises:
            UserError: if the number or step is no whole number from 0, or if training goes on
                within an epoch some of whose records have no step.
        """
        number = _whole_number("epoch", number)
        step = None if step is None else _whole_number("step", step)
        self._abandon()
        self._rank, self._world = process_rank()
        if self._given_rank is not None:
            self._rank, self._world = self._given_rank, None
        if step is not None:
            for file in record_files(self.folder):
                if file.epoch == number and self._owns(file):
                    require_steps(self.folder / file.name, step)
        self._open(number, step)

    def end_epoch(self) -> None:
        """Write what was recorded since the epoch, or window, began.

        Raises:
            UserError: if no epoch has begun.
        """
        self._require_epoch()
        alone = self.window is None and self._resumed is None and self._windows == 0
        self._write(window=not alone)
        self._open(None, None)

    @contextlib.contextmanager
    def epoch(self, number: int, step: int | None = None) -> Iterator["DynamicsRecorder"]:
        """As `start_epoch` and `end_epoch`; an epoch that ends with an error is not written."""
        self.start_epoch(number, step)
        try:
            yield self
        except BaseException:
            self._abandon()
            raise
        self.end_epoch()

    def flush(self) -> None:
        """Write what was recorded so far as a file of its own.

        Called when a checkpoint is saved, so that a restart from it, with `start_epoch` told its
        step, misses nothing.
        """
        if self._epoch is not None:
            self._write(window=True)

    def record(self, row_ids: Any, logits: Any, labels: Any, step: int | None = None) -> None:
        """Record a batch that the model is trained on: before, or as, it is updated by it.

        A logit that is nan or infinite is recorded as it is, and told once. Rows labelled -100,
        which losses leave out, are not recorded. A row may occur several times in an epoch.

        Args:
            row_ids: n integers or n strings: a tensor, an array or a list.
            logits: ``(n, classes)``, a tensor of any device and float type (with its graph, if it
                has one), an array or lists. Raw outputs, not probabilities; their number may
                change from one batch to another.
            labels: ``(n,)`` integers.
            step: updates of the model before this batch; needed to go on within the epoch after a
                restart.

        Raises:
            UserError: where these do not fit together, or no epoch has begun. Labels on a device
                are checked when they are fetched from it, some thousand rows later.
        """
        self._require_epoch()
        step = None if step is None else _whole_number("step", step)
        batch = batch_of(
            row_ids, logits, labels, -1 if step is None else step, keep_logits=self.logits
        )
        if self.window is not None:
            window = (self._batches if step is None else step) // self.window
            if window != self._window_now:
                self._write(window=True)
            self._window_now = window
        self._batches += 1
        self._wait_for(batch)

    def _require_epoch(self) -> None:
        if self._epoch is None:
            raise UserError(
                "no epoch has begun",
                where="DynamicsRecorder",
                mend="record batches of training within `with recorder.epoch(number):`",
            )

    def _abandon(self) -> None:
        """Forget what an epoch that did not end has in memory."""
        records = sum(len(batch) for batch in (*self._kept, *self._waiting))
        if records:
            log.warning(
                "epoch %s of run %s did not end: %s records are not written",
                *(self._epoch, self.run, records),
            )
        self._open(None, None)

    def _wait_for(self, batch: Batch) -> None:
        if not len(batch):
            return
        kind = batch.ids.type if isinstance(batch.ids, pa.Array) else pa.int64()
        if self._id_type not in (None, kind):
            raise UserError(
                f"row ids of type {kind} after others of type {self._id_type}",
                mend="give ids of one type",
            )
        self._id_type = kind
        last = self._waiting[-1] if self._waiting else batch
        if (last.classes, last.on_device) != (batch.classes, batch.on_device):
            self._fetch()
        self._waiting.append(batch)
        width = len(NUMBERS) + (batch.classes if self.logits else 0)
        self._waiting_numbers += len(batch) * width
        if len(self._waiting) >= _WAITING_BATCHES or self._waiting_numbers >= _WAITING_NUMBERS:
            self._fetch()

    def _fetch(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting, self._waiting_numbers = self._waiting, [], 0
        batch = fetched(waiting)
        if not self._told_not_finite:
            bad = np.flatnonzero(~np.isfinite(batch.numbers).all(1))
            if len(bad):
                self._told_not_finite = True
                log.warning(
                    "row %s in epoch %s of run %s: logits that are not finite; recorded as they "
                    "are, and not told again",
                    *(batch.ids[int(bad[0])].as_py(), self._epoch, self.run),
                )
        if len(batch):
            self._kept.append(batch)
        if self.logits and sum(len(one) * one.classes for one in self._kept) > _MOST_LOGITS:
            self._write(window=True)

    def _write(self, *, window: bool) -> None:
        self._fetch()
        if not self._kept:
            return
        assert self._epoch is not None
        self._settle(window)
        file = RecordName(self._epoch, self._windows if window else None, self._rank)
        kept, self._kept = self._kept, []
        self._windows += 1
        told = {"run": self.run, **file._asdict()}
        told["classes"] = max(batch.classes for batch in kept)
        table = pa.concat_tables([self._table(batch) for batch in kept])
        kept.clear()
        write_records(self.folder / file.name, table, told)

    def _table(self, batch: Batch) -> pa.Table:
        kind = pa.int64() if pa.types.is_integer(batch.ids.type) else pa.string()
        numbers = {name: batch.numbers[:, place] for place, name in enumerate(NUMBERS)}
        columns = {
            "row_id": batch.ids.cast(kind),
            "epoch": np.full(len(batch), self._epoch, np.int32),
            "step": pa.array(batch.step, mask=batch.step < 0),
            "label": batch.label,
            "other": batch.other,
            "correct": numbers["label_logit"] > numbers["other_logit"],
            "threshold": batch.label
            == (-1 if self.threshold_label is None else self.threshold_label),
            **numbers,
        }
        fields = [RECORD.field("row_id").with_type(kind), *list(RECORD)[1:]]
        if self.logits:
            ends = np.arange(len(batch) + 1, dtype=np.int32) * batch.classes
            columns["logits"] = pa.ListArray.from_arrays(
                pa.array(ends), pa.array(batch.logits.reshape(-1)), type=LOGITS.type
            )
            fields.append(LOGITS)
        return pa.table([columns[field.name] for field in fields], schema=pa.schema(fields))

    def _settle(self, window: bool) -> None:
        """Remove what training that goes on here has undone; the latest first, so that at any
        moment the files are those of a training as far as it came."""
        if self._settled:
            return
        assert self._epoch is not None
        self._settled = True
        remove_leftovers(self.folder, self._owns)
        files = sorted(record_files(self.folder), key=lambda file: file.order, reverse=True)
        undone = set()
        for file in files:
            path = self.folder / file.name
            if file.epoch < self._epoch or not self._owns(file):
                continue
            if file.epoch == self._epoch:
                if self._resumed is not None and keep_steps_before(path, self._resumed):
                    self._windows = max(self._windows, file.order[1] + 1)
                    continue
                if file == (self._epoch, 0 if window else None, self._rank):
                    continue  # replaced
            else:
                undone.add(file.epoch)
            with place_errors(path):
                path.unlink(missing_ok=True)
        if undone:
            log.warning(
                "run %s: records of the later epochs %s to %s are removed, as training is at "
                "epoch %s again",
                *(self.run, min(undone), max(undone), self._epoch),
            )

    def _owns(self, file: RecordName) -> bool:
        """Whether a file is this process's: its own, and for the first of several also those of
        processes that there are no more."""
        if file.rank == self._rank:
            return True
        if self._rank or self._world is None:
            return False
        return file.rank is None or self._rank is None or file.rank >= self._world
