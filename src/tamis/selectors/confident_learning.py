"""Confident learning by the cleanlab library: which labels are wrong, how many of each class."""

import warnings
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tamis.scoring.column_scorer import numbers, vectors
from tamis.scoring.label_probs import check_codes
from tamis.scoring.model_files import need_package
from tamis.selectors.inner_products import Float64s
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.errors import UserError
from tamis.storage.kernels import Int64s
from tamis.storage.memory import show_bytes
from tamis.storage.places import Place

#: Classes that memory is set aside for before they are known.
_CLASSES = 100
#: How far a probability may lie outside 0 to 1 for rounding.
_ROUNDING = 1e-6


class Confident(NamedTuple):
    """What cleanlab says of some rows.

    Attributes:
        quality: float64 ``(n,)``, how good a label is, 0 to 1.
        error: bool ``(n,)``, whether it is held to be wrong.
        noise: float64 ``(classes,)``, estimated share of the rows labelled so that are of another
            class; nan for a class that no row is labelled with.
    """

    quality: Float64s
    error: npt.NDArray[np.bool_]
    noise: Float64s


def confident(
    label: Int64s,
    probs: Float64s,
    filter_by: str = "prune_by_noise_rate",
    quality: str = "self_confidence",
    adjust: bool = False,
) -> Confident:
    """cleanlab's label issues, label quality and noise of every class.

    Args:
        label: class numbers ``(n,)``, at least one.
        probs: float64 ``(n, classes)``, out of sample.
        filter_by, quality, adjust: as of `ConfidentLearning`.
    """
    from cleanlab import count, filter, rank

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with few rows, which are never flagged
        joint = count.compute_confident_joint(label, probs)
        # More processes would be forked, which threads that hold locks do not survive.
        error = filter.find_label_issues(
            label,
            probs,
            filter_by=filter_by,
            n_jobs=1,
            confident_joint=None if filter_by == "confident_learning" else joint,
        )
        vars(filter).pop("pred_probs_by_class", None)  # a copy of them all, kept for workers
        good = rank.get_label_quality_scores(label, probs, method=quality, adjust_pred_probs=adjust)
        _, _, inverse = count.estimate_latent(joint, label)
    noise = 1.0 - np.diagonal(inverse)
    seen = np.bincount(label, minlength=probs.shape[1]) > 0
    # Where there is one class, entropy over its logarithm is 0 / 0: the label cannot be another.
    good = np.nan_to_num(np.asarray(good, np.float64), nan=1.0)
    return Confident(good, error, np.where(seen, noise, np.nan))


class ConfidentLearning(TableScorer):
    """Which labels confident learning holds to be wrong, from out-of-sample probabilities.

    Class k's threshold is the mean probability of k over the rows labelled k; a row whose
    probability of another class reaches that class's threshold counts as of that class, and from
    these counts come the shares of wrong labels of every class, and which rows have them. All of
    it by the cleanlab library with its defaults, on rows in order of row_id.

    `confident_learning` is the label's quality (0 to 1; low: probably a wrong label), ``_error``
    whether it is held to be wrong, ``_class_noise`` the estimated share of wrong labels among all
    rows with this label. A row without probabilities has none of them (null).

    Time and memory grow with rows x classes, and with classes x classes.
    """

    operator: Literal["confident_learning"] = "confident_learning"
    probs: str = Field(
        default="probe", description="stage that gives out-of-sample probabilities and labels"
    )
    filter_by: Literal[
        "prune_by_noise_rate",
        "prune_by_class",
        "both",
        "confident_learning",
        "predicted_neq_given",
        "low_normalized_margin",
        "low_self_confidence",
    ] = Field(default="prune_by_noise_rate", description="which rows are flagged; as cleanlab")
    quality: Literal["self_confidence", "normalized_margin", "confidence_weighted_entropy"] = Field(
        default="self_confidence", description="what the quality is; as cleanlab"
    )
    adjust: bool = Field(
        default=False,
        description="take class thresholds off the probabilities for the quality, as cleanlab's "
        "`adjust_pred_probs`, for classes of unequal sizes",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Northcutt et al. 2021, Confident learning: estimating uncertainty in dataset labels"
    )

    def resolve(self, workspace: Place) -> Self:
        need_package("cleanlab", f"the stage {self.stage!r}", "labels")
        return self

    def key_parts(self) -> dict[str, Any]:
        """With the version of what decides."""
        return {**super().key_parts(), "column": self.stage, "cleanlab": version("cleanlab")}

    def reads(self) -> set[str]:
        return {f"{self.probs}_probs", f"{self.probs}_label"}

    def numbers(self) -> set[str]:
        return {f"{self.probs}_label"}

    def vectors(self) -> set[str]:
        return {f"{self.probs}_probs"}

    def memory(self, rows: int, text_bytes: int) -> int:
        return _held(rows, _CLASSES)

    def fields(self) -> pa.Schema:
        """Quality (float64), ``_error`` (bool) and ``_class_noise`` (float64), all nullable."""
        kinds = {"": pa.float64(), "_error": pa.bool_(), "_class_noise": pa.float64()}
        return pa.schema([pa.field(self.stage + name, kind) for name, kind in kinds.items()])

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        if not len(table):
            return
        label, probs, rows = self._given(table)
        quality = np.full(len(table), np.nan)
        noise = np.full(len(table), np.nan)
        error = np.zeros(len(table), np.bool_)
        if len(rows):
            found = confident(label, probs, self.filter_by, self.quality, self.adjust)
            quality[rows], error[rows], noise[rows] = found.quality, found.error, found.noise[label]
        for begin in range(0, len(table), BATCH_ROWS):
            part = slice(begin, begin + BATCH_ROWS)
            none = np.isnan(quality[part])
            columns = [pa.array(column[part], mask=none) for column in (quality, error, noise)]
            yield pa.record_batch(columns, schema=self.fields())

    def _given(self, table: Table) -> tuple[Int64s, Float64s, Int64s]:
        """Labels and probabilities of the rows that have them, by row_id, and which rows."""
        matrix = np.full((len(table), 0), np.nan)
        label = np.full(len(table), np.nan)
        name, done = f"{self.probs}_probs", 0
        for batch in table.batches([name, f"{self.probs}_label"]):
            some = slice(done, done + batch.num_rows)
            done += batch.num_rows
            label[some] = numbers(batch, f"{self.probs}_label")
            part = vectors(batch, name)
            if np.isnan(part).all():
                continue
            if not matrix.shape[1]:
                self._check_memory(table, part.shape[1])
                matrix = np.full((len(table), part.shape[1]), np.nan)
            if part.shape[1] != matrix.shape[1]:
                raise UserError(
                    f"{name}: expected lists of one length, found {matrix.shape[1]} and "
                    f"{part.shape[1]} numbers"
                )
            matrix[some] = part
        order = np.lexsort((table.copy, table.id_lo, table.id_hi))
        known = ~(np.isnan(label) | np.isnan(matrix).any(axis=1)) & bool(matrix.shape[1])
        rows = order[known[order]]
        codes, probs = label[rows].astype(np.int64), matrix[rows]
        check_codes(codes, matrix.shape[1], f"{self.probs}_label")
        if len(rows) and not -_ROUNDING <= probs.min() <= probs.max() <= 1 + _ROUNDING:
            raise UserError(
                f"{name}: expected probabilities from 0 to 1, found {probs.min():g} to "
                f"{probs.max():g}"
            )
        return codes, np.clip(probs, 0.0, 1.0, out=probs), rows

    def _check_memory(self, table: Table, classes: int) -> None:
        """Whether what was set aside for fewer classes, and what is left, is enough for these."""
        more = _held(len(table), classes) - _held(len(table), _CLASSES)
        if table.spare is not None and more > table.spare:
            raise UserError(
                f"{self.stage}: {len(table):,} rows by {classes:,} classes need "
                f"{show_bytes(more - table.spare)} more than memory is left for",
                where="memory",
                mend=f"raise --memory by {show_bytes(more - table.spare)}, or join rare classes",
            )


def _held(rows: int, classes: int) -> int:
    """Bytes of probabilities and cleanlab's copies of them, and of its matrices of classes.

    Measured: 3.6 times the probabilities (20,000 x 1,000), 5.9 numbers a pair of 10,000 classes.
    """
    return 8 * (4 * rows * classes + 6 * classes**2 + 12 * rows)
