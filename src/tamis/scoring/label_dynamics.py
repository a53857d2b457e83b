"""Scores of a label from what models said of the row while they were trained.

A stage such as `probe` or `training_dynamics` leaves columns ``S_margin``, ``S_label_prob``,
``S_loss``, ``S_correct``, ``S_updates``, … with a number for every epoch of every run, run by run,
and ``S_ordinary`` with a flag for every run: false where the row was trained as the extra class of
AUM's threshold samples, so that its numbers there are not of its label.

What a row's score is in a run says `training_dynamics`; a row's score is its mean over the runs
that saw the row as an ordinary one. Epochs without the row count nowhere; a row with a broken
record (a logit that is no number) in such a run, or without one, has no score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit
from pydantic import Field, model_validator

from tamis.scoring.column_scorer import ColumnScorer, Float64s, vectors
from tamis.scoring.training_dynamics import (
    area_under_margin,
    data_map,
    forgetting,
    last_value,
    mean_over_epochs,
    mean_over_runs,
)
from tamis.storage.errors import UserError
from tamis.storage.kernels import KERNEL

Matrix = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Runs:
    """What some rows' columns say, cut into runs.

    Attributes:
        parts: by name ``(runs, n, epochs)``; nan, or of `correct` -1, where there is no value.
        updates: int32 ``(runs, n, epochs)``, how often a row was seen; 0 is an epoch without it.
        ordinary: ``(n, runs)``, whether a row was trained as its label.
    """

    parts: dict[str, Matrix]
    updates: Matrix
    ordinary: Bools

    def __len__(self) -> int:
        return len(self.updates)

    @property
    def epochs(self) -> int:
        """Epochs of every run."""
        return int(self.updates.shape[2])

    @property
    def counted(self) -> Bools:
        """The runs that saw a row, and as an ordinary one, ``(n, runs)``."""
        seen: Bools = np.asarray(self.updates.any(axis=2), np.bool_).T & self.ordinary
        return seen

    def __getitem__(self, name: str) -> Matrix:
        return self.parts[name]

    def between(self, first: int, last: int | None) -> "Runs":
        """Some epochs of every run."""
        some = slice(first, last)
        parts = {name: part[:, :, some] for name, part in self.parts.items()}
        return Runs(parts, self.updates[:, :, some], self.ordinary)

    def mean(self, by_run: Sequence[Float64s]) -> Float64s:
        """Of a score's values in every run, the mean over the runs that count."""
        return mean_over_runs(np.stack(by_run, axis=1), self.counted)


class OfDynamics(ColumnScorer):
    """A score of what models said of each row, epoch by epoch."""

    dynamics: str = Field(default="probe", description="stage that gives the records of training")

    #: Columns that it reads, but for ``updates`` and ``ordinary``.
    parts: ClassVar[tuple[str, ...]]

    def reads(self) -> set[str]:
        return {f"{self.dynamics}_{part}" for part in (*self.parts, "updates", "ordinary")}

    def numbers(self) -> set[str]:
        return set()

    def runs(self, batch: pa.RecordBatch) -> Runs:
        """The columns of a batch.

        Raises:
            UserError: if their lists are of lengths that do not fit one another.
        """
        ordinary = vectors(batch, f"{self.dynamics}_ordinary") == 1
        updates = _whole(vectors(batch, f"{self.dynamics}_updates"), 0, np.int32)
        runs, width = ordinary.shape[1], updates.shape[1]
        if width % runs:
            raise UserError(
                f"{self.dynamics}_updates: expected as many epochs in each of {runs} runs, found "
                f"{width} numbers a row"
            )

        def by_run(matrix: Matrix) -> Matrix:
            cut = matrix.reshape(len(matrix), runs, width // runs)
            return np.ascontiguousarray(cut.transpose(1, 0, 2))

        parts = {}
        for part in self.parts:
            name = f"{self.dynamics}_{part}"
            matrix = vectors(batch, name)
            if matrix.shape[1] != width and not np.isnan(matrix).all():
                raise UserError(
                    f"{name}: expected {width} numbers a row, as in {self.dynamics}_updates; found "
                    f"{matrix.shape[1]}"
                )
            if matrix.shape[1] != width:
                matrix = np.full(updates.shape, np.nan)
            parts[part] = by_run(_whole(matrix, -1, np.int8) if part == "correct" else matrix)
        return Runs(parts, by_run(updates), ordinary)


def _whole(matrix: Matrix, missing: int, kind: type[np.integer[Any]]) -> Matrix:
    """Numbers as integers, `missing` in place of nan."""
    return np.where(np.isnan(matrix), missing, matrix).astype(kind)


class Aum(OfDynamics):
    """Area under the margin: mean margin of the label over all updates; low: probably wrong.

    A margin is the label's logit less the largest other logit, in raw logits, either sign. `aum` is
    the mean over the runs in which the row was an ordinary one, ``aum_by_run`` has every run's,
    those with the row as a threshold sample included: `aum_threshold` cuts by them.

    Example:
        >>> batch = pa.record_batch(
        ...     {
        ...         "probe_margin": [[0.0, -1.0, 2.0, -1.0]],
        ...         "probe_updates": [[1, 1, 1, 2]],
        ...         "probe_ordinary": [[True]],
        ...     }
        ... )
        >>> Aum().compute(batch).to_pylist()
        [{'aum': -0.25, 'aum_by_run': [-0.25]}]
    """

    operator: Literal["aum"] = "aum"
    skip_epochs: int = Field(default=1, ge=0, description="epochs of a run that do not count")
    until: int | None = Field(
        default=None,
        ge=1,
        description="epochs after which none counts, of the run's own, such as those before the "
        "learning rate first drops; all if not given",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Pleiss et al. 2020, Identifying mislabeled data using the area under the margin ranking"
    )
    parts: ClassVar[tuple[str, ...]] = ("margin",)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.until is not None and self.until <= self.skip_epochs:
            raise ValueError(
                f"until {self.until} leaves no epoch after the first {self.skip_epochs}"
            )
        return self

    def fields(self) -> pa.Schema:
        """The score, nullable float64, and ``_by_run``, a list of one for every run."""
        listed = pa.list_(pa.field("item", pa.float64()))
        return pa.schema(
            [pa.field(self.stage, pa.float64()), pa.field(f"{self.stage}_by_run", listed)]
        )

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        runs = self.runs(batch)
        epochs = runs.epochs
        if batch.num_rows and epochs <= self.skip_epochs and runs.updates.any():
            raise UserError(
                f"{self.stage}: {self.dynamics} has {epochs} epoch{'s' * (epochs != 1)} a run, and "
                f"`skip_epochs` leaves out {self.skip_epochs}",
                mend=f"set `skip_epochs: {epochs - 1}` or less, or train for more epochs",
            )
        some = runs.between(self.skip_epochs, self.until)
        by_run = [area_under_margin(some["margin"][r], some.updates[r]) for r in range(len(some))]
        mean = some.mean(by_run)
        flat = np.stack(by_run, axis=1).ravel()
        offsets = np.arange(batch.num_rows + 1, dtype=np.int32) * len(some)
        lists = pa.ListArray.from_arrays(offsets, pa.array(flat, mask=np.isnan(flat)))
        columns = [pa.array(mean, mask=np.isnan(mean)), lists.cast(self.fields().types[1])]
        return pa.record_batch(columns, schema=self.fields())


class DataMap(OfDynamics):
    """A row's place on the data map: how surely, how steadily, how often it was learnt right.

    ``confidence``: mean probability of the label over epochs (0 to 1); ``variability``: its
    population standard deviation (0 to 0.5); ``correctness``: epochs in which the label had the
    highest logit. Low confidence and low variability: hard to learn, probably a wrong label; high
    variability: ambiguous. Under a ``name`` of its own the stage puts that before the columns.

    Example:
        >>> batch = pa.record_batch(
        ...     {
        ...         "probe_label_prob": [[0.25, 0.75]],
        ...         "probe_correct": [[0, 1]],
        ...         "probe_updates": [[1, 1]],
        ...         "probe_ordinary": [[True]],
        ...     }
        ... )
        >>> DataMap().compute(batch).to_pylist()
        [{'confidence': 0.5, 'variability': 0.25, 'correctness': 1.0}]
    """

    operator: Literal["data_map"] = "data_map"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Swayamdipta et al. 2020, Dataset cartography: mapping and diagnosing datasets with "
        "training dynamics"
    )
    parts: ClassVar[tuple[str, ...]] = ("label_prob", "correct")

    def columns(self) -> tuple[str, ...]:
        before = "" if self.name is None else f"{self.name}_"
        return tuple(before + name for name in ("confidence", "variability", "correctness"))

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        runs = self.runs(batch)
        maps = [
            data_map(runs["label_prob"][r], runs["correct"][r], runs.updates[r])
            for r in range(len(runs))
        ]
        return [runs.mean(by_run) for by_run in zip(*maps, strict=True)]


class Forgetting(OfDynamics):
    """How often a row went from right to wrong between epochs (0 and more); high: suspicious.

    A row that was never right has the number of its epochs, more than any that was.

    Example:
        >>> batch = pa.record_batch(
        ...     {
        ...         "probe_correct": [[1, 0, 1, 0], [0, 0, 0, 0]],
        ...         "probe_updates": [[1, 1, 1, 1]] * 2,
        ...         "probe_ordinary": [[True]] * 2,
        ...     }
        ... )
        >>> Forgetting().compute(batch)["forgetting"].to_pylist()
        [2.0, 4.0]
    """

    operator: Literal["forgetting"] = "forgetting"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Toneva et al. 2019, An empirical study of example forgetting during deep neural network "
        "learning"
    )
    parts: ClassVar[tuple[str, ...]] = ("correct",)

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        runs = self.runs(batch)
        by_run = [forgetting(runs["correct"][r], runs.updates[r]) for r in range(len(runs))]
        return [runs.mean(by_run)]


class El2n(OfDynamics):
    """Mean length of softmax minus one-hot label over the first epochs; high: hard or wrong.

    From 0 to the square root of 2. Early in training it finds rows that matter most, of which the
    very highest are often wrong.

    Example:
        >>> batch = pa.record_batch(
        ...     {
        ...         "probe_el2n": [[0.5, 0.25, 0.0]],
        ...         "probe_updates": [[1, 1, 1]],
        ...         "probe_ordinary": [[True]],
        ...     }
        ... )
        >>> El2n(epochs=2).compute(batch)["el2n"].to_pylist()
        [0.375]
    """

    operator: Literal["el2n"] = "el2n"
    epochs: int | None = Field(
        default=10,
        ge=1,
        description="epochs from the first that count; all if null (10 is unconfirmed: the paper "
        "scores at one epoch, 10 or 20 of 200, and means over ten runs)",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Paul et al. 2021, Deep learning on a data diet: finding important examples early in "
        "training"
    )
    parts: ClassVar[tuple[str, ...]] = ("el2n",)

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        runs = self.runs(batch).between(0, self.epochs)
        by_run = [mean_over_epochs(runs["el2n"][r], runs.updates[r]) for r in range(len(runs))]
        return [runs.mean(by_run)]


class TrainingLoss(OfDynamics):
    """Cross-entropy of the label in training, in nats (0 and more); high: probably wrong.

    `mean` over epochs, which is the area under the loss curve by the number of epochs, or the
    `last` one, which a model that has memorised the wrong labels brings down too.

    Example:
        >>> batch = pa.record_batch(
        ...     {
        ...         "probe_loss": [[3.0, 2.0, 1.0]],
        ...         "probe_updates": [[1, 1, 1]],
        ...         "probe_ordinary": [[True]],
        ...     }
        ... )
        >>> TrainingLoss().compute(batch)["training_loss"].to_pylist()
        [2.0]
    """

    operator: Literal["training_loss"] = "training_loss"
    of: Literal["mean", "last"] = Field(default="mean", description="which epochs' loss")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Jiang et al. 2018, MentorNet; Han et al. 2018, Co-teaching (small loss: clean label)"
    )
    parts: ClassVar[tuple[str, ...]] = ("loss",)

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        runs = self.runs(batch)
        of_run = mean_over_epochs if self.of == "mean" else last_value
        return [runs.mean([of_run(runs["loss"][r], runs.updates[r]) for r in range(len(runs))])]


@njit(**KERNEL)
def _first_learnt(correct, updates, k, out):  # type: ignore[no-untyped-def]
    for row in range(correct.shape[0]):
        streak, reached, epochs, broken = 0, 0, 0, False
        for t in range(correct.shape[1]):
            if updates[row, t] > 0:
                now = correct[row, t]
                broken |= now < 0
                epochs += 1
                streak = streak + 1 if now == 1 else 0
                if streak == k and reached == 0:
                    reached = t + 1
        if broken or epochs == 0:
            out[row] = np.nan
        else:
            out[row] = reached if reached else correct.shape[1] + 1


def first_learnt(correct: Matrix, updates: Matrix, k: int) -> Float64s:
    """The epoch, from 1, by which a row was right `k` times running; epochs + 1 if it never was.

    Args:
        correct: int8 ``(n, epochs)``, 1 or 0; epochs without the row are passed over.
        updates: integers ``(n, epochs)``.

    Returns:
        float64 ``(n,)``; nan for a row without epochs or with a broken record.

    Example:
        >>> correct = np.array([[0, 1, 1, 0], [1, 0, 1, 0]])
        >>> first_learnt(correct, np.ones((2, 4)), 2).tolist()
        [3.0, 5.0]
    """
    out = np.empty(len(correct))
    _first_learnt(correct, updates, k, out)
    return out


class LateStopping(OfDynamics):
    """The epoch by which a row was predicted as its label `k` epochs running; high: suspicious.

    From `k` to the number of epochs, counted from 1; one more for a row that never was, so that
    those come last. Wrong labels are learnt late, hard but right ones before them. To drop the
    slowest: `late_stopping_prune`.

    Example:
        >>> batch = pa.record_batch(
        ...     {
        ...         "probe_correct": [[0, 1, 1, 0], [1, 0, 1, 0]],
        ...         "probe_updates": [[1, 1, 1, 1]] * 2,
        ...         "probe_ordinary": [[True]] * 2,
        ...     }
        ... )
        >>> LateStopping(k=2).compute(batch)["late_stopping"].to_pylist()
        [3.0, 5.0]
    """

    operator: Literal["late_stopping"] = "late_stopping"
    k: int = Field(default=3, ge=1, description="epochs running (1 to 3; 3 is unconfirmed)")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Yuan et al. 2023, Late stopping: avoiding confidently learning from mislabeled examples"
    )
    parts: ClassVar[tuple[str, ...]] = ("correct",)

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        runs = self.runs(batch)
        if self.k > runs.epochs and runs.updates.any():
            raise UserError(
                f"{self.stage}: no row can be right {self.k} epochs running in {runs.epochs}",
                mend="set `k` lower, or record more epochs",
            )
        by_run = [
            first_learnt(runs["correct"][r], runs.updates[r], self.k) for r in range(len(runs))
        ]
        return [runs.mean(by_run)]
