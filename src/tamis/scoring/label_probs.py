"""Scores of a label from class probabilities by models that did not see the row.

A stage such as `probe` leaves them as ``S_probs`` (a list for every row, a number for every class)
beside the label's class number, ``S_label``.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numba import njit
from pydantic import Field

from tamis.scoring.column_scorer import ColumnScorer, Float64s, numbers, vector_blocks
from tamis.storage.errors import UserError
from tamis.storage.kernels import KERNEL, Int64s

_CLEANLAB = (
    "Kuan and Mueller 2022, Model-agnostic label quality scoring to detect real-world label errors"
)
#: Where cleanlab clips the probability that it divides by.
_LEAST_CONFIDENCE = 1e-6


def check_codes(label: Int64s, classes: int, name: str) -> None:
    """Whether class numbers are of so many classes.

    Raises:
        UserError: naming the column, if not.
    """
    if len(label) and not 0 <= label.min() <= label.max() < classes:
        raise UserError(
            f"{name}: expected class numbers from 0 to {classes - 1}, for {classes} classes; found "
            f"{label.min()} to {label.max()}"
        )


class _OfProbs(ColumnScorer):
    """A score of each row's class probabilities and its label."""

    probs: str = Field(
        default="probe", description="stage that gives out-of-sample probabilities and labels"
    )

    def reads(self) -> set[str]:
        return {f"{self.probs}_probs", f"{self.probs}_label"}

    def numbers(self) -> set[str]:
        return {f"{self.probs}_label"}

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        given = numbers(batch, f"{self.probs}_label")
        found = np.full(batch.num_rows, np.nan)
        for some, probs in vector_blocks(batch, f"{self.probs}_probs"):
            label = given[some]
            rows = np.flatnonzero(~(np.isnan(label) | np.isnan(probs).any(axis=1)))
            number = label[rows].astype(np.int64)
            check_codes(number, probs.shape[1], f"{self.probs}_label")
            found[some][rows] = self.score(probs[rows], number)
        return [found]

    def score(self, probs: Float64s, label: Int64s) -> Float64s:
        """The scores of some rows.

        Args:
            probs: ``(n, classes)``, none of them nan.
            label: ``(n,)``, class numbers.
        """
        raise NotImplementedError


def _of_label(probs: Float64s, label: Int64s) -> Float64s:
    found: Float64s = probs[np.arange(len(label)), label]
    return found


@njit(**KERNEL)
def _entropies(probs, out):  # type: ignore[no-untyped-def]
    for row in range(probs.shape[0]):
        total = 0.0
        for c in range(probs.shape[1]):
            p = probs[row, c]
            if p > 0.0:
                total -= p * np.log(p)
        out[row] = total


def _entropy(probs: Float64s) -> Float64s:
    """In nats; a probability of 0 adds nothing. Added up class by class, in whatever block."""
    found = np.empty(len(probs))
    _entropies(probs, found)
    return found


class SelfConfidence(_OfProbs):
    """Probability of the label (0 to 1); low: probably a wrong label.

    Example:
        >>> batch = pa.record_batch({"probe_probs": [[0.7, 0.3]], "probe_label": [1]})
        >>> SelfConfidence().compute(batch)["self_confidence"].to_pylist()
        [0.3]
    """

    operator: Literal["self_confidence"] = "self_confidence"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = _CLEANLAB

    def score(self, probs: Float64s, label: Int64s) -> Float64s:
        return _of_label(probs, label)


class NormalizedMargin(_OfProbs):
    """(p(label) - largest p of another class + 1) / 2, 0 to 1; low: probably a wrong label.

    Example:
        >>> batch = pa.record_batch({"probe_probs": [[0.7, 0.2, 0.1]], "probe_label": [1]})
        >>> NormalizedMargin().compute(batch)["normalized_margin"].to_pylist()
        [0.25]
    """

    operator: Literal["normalized_margin"] = "normalized_margin"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = _CLEANLAB

    def score(self, probs: Float64s, label: Int64s) -> Float64s:
        mine = _of_label(probs, label)
        others = probs.copy()
        others[np.arange(len(label)), label] = 0.0  # of one class there is no other
        found: Float64s = (mine - others.max(axis=1) + 1.0) / 2.0
        return found


class ConfidenceWeightedEntropy(_OfProbs):
    """log(1 + x) / x of x = entropy / log(classes) / p(label), 0 to 1; low: probably a wrong label.

    As cleanlab defines it (p(label) is at least 1e-6), but for x below 1e-6, where cleanlab falls
    to 0 and would call the surest rows the worst: here it goes to its limit, 1.

    Example:
        >>> batch = pa.record_batch({"probe_probs": [[0.5, 0.5], [1, 0]], "probe_label": [1, 0]})
        >>> scorer = ConfidenceWeightedEntropy()
        >>> [round(x, 6) for x in scorer.compute(batch)["confidence_weighted_entropy"].to_pylist()]
        [0.549306, 1.0]
    """

    operator: Literal["confidence_weighted_entropy"] = "confidence_weighted_entropy"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = _CLEANLAB

    def score(self, probs: Float64s, label: Int64s) -> Float64s:
        # Of one class the entropy is 0, and so is the logarithm.
        share = _entropy(probs) / np.log(max(probs.shape[1], 2))
        x = share / np.maximum(_of_label(probs, label), _LEAST_CONFIDENCE)
        found: Float64s = np.divide(np.log1p(x), x, out=np.ones_like(x), where=x > 0)
        return found


class MaxSoftmax(_OfProbs):
    """Largest probability of any class (0 to 1), whatever the label; low: the model is not sure.

    The baseline for finding rows that a model gets wrong, or that are of no class that it knows.

    Example:
        >>> batch = pa.record_batch({"probe_probs": [[0.7, 0.3]], "probe_label": [1]})
        >>> MaxSoftmax().compute(batch)["max_softmax"].to_pylist()
        [0.7]
    """

    operator: Literal["max_softmax"] = "max_softmax"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Hendrycks and Gimpel 2017, A baseline for detecting misclassified and out-of-distribution "
        "examples in neural networks"
    )

    def score(self, probs: Float64s, label: Int64s) -> Float64s:
        found: Float64s = probs.max(axis=1)
        return found


class LabelLoss(_OfProbs):
    """-log p(label), in nats (0 and more; inf where p is 0); high: probably a wrong label.

    The loss of models that did not see the row; that of a model in training is `training_loss`.

    Example:
        >>> batch = pa.record_batch({"probe_probs": [[0.5, 0.5]], "probe_label": [1]})
        >>> round(LabelLoss().compute(batch)["label_loss"][0].as_py(), 6)
        0.693147
    """

    operator: Literal["label_loss"] = "label_loss"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Arazo et al. 2019, Unsupervised label noise modeling (loss of a label)"

    def score(self, probs: Float64s, label: Int64s) -> Float64s:
        found: Float64s = 0.0 - np.log(_of_label(probs, label))
        return found


class LabelEntropy(_OfProbs):
    """Entropy of the class probabilities in nats (0 to log classes); high: the model is not sure.

    Example:
        >>> batch = pa.record_batch({"probe_probs": [[0.5, 0.5]], "probe_label": [1]})
        >>> round(LabelEntropy().compute(batch)["label_entropy"][0].as_py(), 6)
        0.693147
    """

    operator: Literal["label_entropy"] = "label_entropy"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Shannon 1948, A mathematical theory of communication (entropy)"

    def score(self, probs: Float64s, label: Int64s) -> Float64s:
        return _entropy(probs)
