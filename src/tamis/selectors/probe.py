"""Training dynamics and out-of-sample probabilities of labelled rows, from probes on vectors."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from tamis.scoring.probe_study import RECORDED, Rows, study
from tamis.scoring.probes import Loss, Training, standardise
from tamis.selectors.budgets import draws
from tamis.selectors.inner_products import one_blas_thread
from tamis.selectors.labels import labels_of
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.selectors.vectors import vectors_of
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.errors import UserError
from tamis.storage.memory import show_bytes

#: Classes that `memory` allows for; with more, what is left of --memory is asked.
_CLASSES = 256
#: Bytes of a class in a training: weights of 700 numbers a row, their gradient and two means of it,
#: and a batch's logits.
_TRAINING_BYTES = 16 << 10
#: Numbers of probabilities and logits that are handed on at a time.
_NUMBERS_AT_ONCE = 1 << 22


class Probe(TableScorer):
    """Train small classifiers on vectors, and record what they say of every label.

    Two things come of it, for a table that has vectors and labels but no model of its own.

    Training dynamics: for every row and epoch, what the probe said of the row's label as the row
    came up in its batch, before it was learnt from. With `threshold_runs` the probe is trained so
    many times; every time another N / (classes + 1) of the rows, drawn by a hash of their row_id,
    are trained as an extra class that does not exist (threshold samples).

    Out-of-sample probabilities: the rows are cut into `folds`, every class evenly and by a hash,
    and every row is judged by a probe that has not seen it; mean over `repeats` of the cut. The
    only row of a class is never judged by a probe that knows the class, and is marked as unseen.
    """

    operator: Literal["probe"] = "probe"
    embedding: str = Field(
        default="embedding",
        description="vectors: a signal of an earlier stage or a column of the corpus",
    )
    hidden: list[Annotated[int, Field(ge=0)]] = Field(
        default=[0],
        min_length=1,
        description="hidden layers of the probes that judge rows, 0: none, a linear probe; the "
        "first is that of the recorded ones too",
    )
    loss: Loss = Field(
        default="gce",
        description="what training makes small; generalised cross-entropy hardly learns from "
        "labels that everything else speaks against",
    )
    q: float = Field(default=0.7, gt=0, le=1, description="of generalised cross-entropy")
    beta: float = Field(
        default=0.7, ge=0, lt=1, description="memory of early-learning targets (unconfirmed)"
    )
    lam: float = Field(
        default=3.0, ge=0, description="weight of early-learning regularisation (unconfirmed)"
    )
    folds: int = Field(default=5, ge=2, le=100, description="parts that rows are judged in")
    repeats: int = Field(default=1, ge=1, le=100, description="cuts into folds, each with its seed")
    epochs: int = Field(default=20, ge=1, le=1000, description="of every training (unconfirmed)")
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam, constant")
    weight_decay: float = Field(
        default=10.0, ge=0, description="decoupled, times the learning rate (unconfirmed)"
    )
    batch_rows: int = Field(default=256, ge=1, description="rows of a step (unconfirmed)")
    threshold_runs: int = Field(
        default=2,
        ge=0,
        le=100,
        description="trainings with threshold samples of their own; 0: one without",
    )
    logits: bool = Field(default=False, description="whether to store all logits of all epochs")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of draws, orders and first weights")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Pleiss et al. 2020, Identifying mislabeled data using the area under the margin ranking "
        "(threshold samples); Northcutt et al. 2021, Confident learning (out-of-sample "
        "probabilities); Zhang and Sabuncu 2018 (generalised cross-entropy); Liu et al. 2020, "
        "Early-learning regularization prevents memorization of noisy labels"
    )
    roles: ClassVar[tuple[str, ...]] = ("label",)

    @model_validator(mode="after")
    def _runs(self) -> Self:
        if self.threshold_runs == 1:
            raise ValueError(
                "threshold_runs: with one run its threshold samples have no score; set 2, or 0 for "
                "a run without"
            )
        return self

    @model_validator(mode="after")
    def _decays(self) -> Self:
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                "weight_decay: times the learning rate it must be below 1, as every step takes "
                "that share of the weights"
            )
        return self

    @property
    def runs(self) -> int:
        """Trainings that are recorded."""
        return self.threshold_runs or 1

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "column": self.stage}

    def reads(self) -> set[str]:
        return {self.embedding}

    def vectors(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        return 2 * rows

    def memory(self, rows: int, text_bytes: int) -> int:
        return (
            (64 << 20)
            + rows * (200 + self.runs * (30 * self.epochs + 5))
            + self._wide(rows, _CLASSES, workers=2)
        )

    def _wide(self, rows: int, classes: int, workers: int) -> int:
        """Bytes of what there is for every class: numbers of rows, and of a training."""
        each = 1 + self.logits * self.runs * self.epochs + (self.loss == "elr") * workers
        return classes * (4 * rows * each + _TRAINING_BYTES * workers)

    def fields(self) -> pa.Schema:
        """Columns by the stage's name S, here `probe`. T = runs * epochs, a run after the other.

        Of training: ``S_margin`` (logit of the label less the largest other), ``S_label_prob``,
        ``S_loss`` (cross-entropy, nats), ``S_entropy`` (nats), ``S_el2n``: float32 [T];
        ``S_correct`` (0 or 1): int8 [T]; ``S_other`` (the class of that other logit; the number of
        classes stands for the extra class): int32 [T]; ``S_updates`` (1): int32 [T];
        ``S_ordinary`` (false in a run where the row was a threshold sample, whose label there is
        the extra class): bool [runs]. ``S_logits``, if asked for: of the ordinary classes, T of
        them one after the other.

        Out of sample: ``S_probs`` (float32, of every class), ``S_suggested`` (the class with the
        highest), ``S_suggested_prob``, ``S_unseen`` (the only row of its class, which no probe that
        judged it knew).

        ``S_label``: int32, number of the row's class; classes are numbered in order of their text.
        """
        steps, stage = self.runs * self.epochs, self.stage

        def many(name: str, kind: pa.DataType, size: int = steps) -> pa.Field:
            item = pa.field("item", kind, nullable=False)
            return pa.field(f"{stage}_{name}", pa.list_(item, size), nullable=False)

        def one(name: str, kind: pa.DataType) -> pa.Field:
            return pa.field(f"{stage}_{name}", kind, nullable=False)

        return pa.schema(
            [
                one("label", pa.int32()),
                *(many(name, pa.from_numpy_dtype(kind)) for name, kind in RECORDED.items()),
                many("ordinary", pa.bool_(), self.runs),
                *([many("logits", pa.float32(), -1)] if self.logits else []),
                many("probs", pa.float32(), -1),
                one("suggested", pa.string()),
                one("suggested_prob", pa.float32()),
                one("unseen", pa.bool_()),
            ]
        )

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        """Batches of the columns above.

        Raises:
            UserError: if all labels are the same, if there are fewer rows than threshold samples
                of all runs, or if rows by classes are more numbers than memory is left for.
        """
        if not len(table):
            return
        labels = labels_of(table)
        classes = len(labels.classes)
        if classes < 2:
            raise UserError(
                f"all {len(table):,} rows have the label {labels.classes[0]!r}: there is nothing "
                "to tell apart",
                where="corpus.roles.label",
            )
        self._check_memory(table, classes)
        found = vectors_of(table, self.embedding, unit=False)
        standardise(found.matrix)
        order = found.rows
        keys = draws(table.id_hi[order], table.id_lo[order], table.copy[order], self.seed)
        codes = labels.codes[order].astype(np.int64)
        with one_blas_thread():
            dynamics, probs = study(
                Rows(found.matrix, codes, classes, keys.view(np.uint64)),
                self._trainings(),
                threshold_runs=self.threshold_runs,
                folds=self.folds,
                repeats=self.repeats,
                logits=self.logits,
                workers=table.workers,
                progress=table.progress,
            )
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        single = np.bincount(codes, minlength=classes)[codes] == 1
        names = pa.array(labels.classes, pa.string())
        width = classes * (1 + self.logits * self.runs * self.epochs)
        step = max(1, min(BATCH_ROWS, _NUMBERS_AT_ONCE // width))
        for begin in range(0, len(place), step):
            at = place[begin : begin + step]
            best = probs[at].argmax(axis=1)  # the first of equals
            columns = [
                codes[at].astype(np.int32),
                *(dynamics.recorded[name][at] for name in RECORDED),
                dynamics.ordinary[at],
                *([] if dynamics.logits is None else [dynamics.logits[at]]),
                probs[at],
                names.take(pa.array(best)),
                probs[at, best],
                single[at],
            ]
            schema = self.fields()
            arrays = map(_array, columns, schema.types)
            yield pa.record_batch(list(arrays), schema=schema)

    def _trainings(self) -> list[Training]:
        names = {field.name for field in dataclasses.fields(Training)} - {"hidden"}
        given = {name: getattr(self, name) for name in names}
        return [Training(hidden=hidden, **given) for hidden in self.hidden]

    def _check_memory(self, table: Table, classes: int) -> None:
        allowed = self._wide(len(table), _CLASSES, workers=2)
        more = self._wide(len(table), classes, table.workers) - allowed
        if table.spare is not None and more > table.spare:
            raise UserError(
                f"{len(table):,} rows by {classes:,} classes are {show_bytes(more - table.spare)} "
                "more than memory is left for",
                where="memory",
                mend=f"raise --memory by {show_bytes(more - table.spare)}, or join rare classes",
            )


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    """Rows of numbers as lists of them; columns as they are."""
    if isinstance(values, pa.Array):
        return values
    flat = pa.array(values.ravel(), kind.value_type if values.ndim > 1 else kind)
    if values.ndim == 1:
        return flat
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    ends = np.arange(len(values) + 1, dtype=np.int32) * values[0].size
    return pa.ListArray.from_arrays(pa.array(ends), flat, type=kind)
