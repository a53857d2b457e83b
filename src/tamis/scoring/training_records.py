"""What a model says of rows at one moment of training: the numbers of a record, from logits."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from tamis.storage.errors import UserError
from tamis.storage.kernels import KERNEL

Float32s = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


class Records(NamedTuple):
    """Numbers of n rows, each of shape ``(n,)``, as `storage.dynamics.RECORD` holds them.

    Attributes:
        label_logit: logit of the row's own class.
        other_logit: the largest logit of another class; nan if one of them is nan.
        other: that class; the lowest of several.
        loss: cross-entropy in nats, at least 0.
        label_prob: softmax of the row's own class, 0 to 1.
        entropy: of the softmax, in nats, 0 to log(classes).
        el2n: length of softmax minus one-hot label, 0 to sqrt(2).
        correct: whether the row's own logit is larger than every other; a tie is not.
    """

    label_logit: Float32s
    other_logit: Float32s
    other: Int32s
    loss: Float32s
    label_prob: Float32s
    entropy: Float32s
    el2n: Float32s
    correct: Bools


@njit(**KERNEL)
def _records(  # type: ignore[no-untyped-def]
    logits, labels, label_logit, other_logit, other, loss, label_prob, entropy, el2n, correct
):
    rows, classes = logits.shape
    for row in range(rows):
        label = labels[row]
        mine = logits[row, label]
        best = np.float32(-np.inf)
        at = 0 if label else 1
        unknown = False
        for k in range(classes):
            z = logits[row, k]
            if k != label:
                unknown |= np.isnan(z)
                if z > best:
                    best = z
                    at = k
        if unknown:
            best = np.float32(np.nan)
        label_logit[row] = mine
        other_logit[row] = best
        other[row] = at
        correct[row] = mine > best
        if not (np.isfinite(mine) and np.isfinite(best)):
            loss[row] = label_prob[row] = entropy[row] = el2n[row] = np.nan
            continue
        first = label if mine >= best else at
        top = np.float64(logits[row, first])
        own = np.float64(mine) - top
        e = np.exp(own)
        # Sums without the term that is almost all there is keep their digits: the label's for
        # `others` and `squares`, the largest for `rest`.
        others, squares, rest, weighted = 0.0, 0.0, 0.0, 0.0
        for k in range(classes):
            below = np.float64(logits[row, k]) - top
            share = np.exp(below)
            if share > 0:
                weighted += share * below
            if k != label:
                others += share
                squares += share * share
            if k != first:
                rest += share
        total = 1.0 + rest
        loss[row] = np.log1p(rest) - own
        label_prob[row] = e / total
        entropy[row] = np.log1p(rest) - weighted / total
        el2n[row] = np.sqrt(others * others + squares) / total


def records_of(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Records:
    """The numbers of a record for every row of a batch of logits.

    A class whose logit is minus infinity has probability 0. Where the own or the largest other
    logit is not finite, or any logit is nan, `label_logit` and `other_logit` are given as they are,
    `loss`, `label_prob`, `entropy` and `el2n` are nan and `correct` is what comparing them gives
    (false for nan).

    Args:
        logits: ``(n, classes)``, any float type; rounded to float32, sums are taken in float64.
        labels: ``(n,)`` integers, the class that each row is trained as.

    Raises:
        UserError: for fewer than two classes, a label outside of them, or shapes that do not fit.

    Example:
        >>> found = records_of([[2.0, 1.0, 0.0]], [0])
        >>> found.label_logit - found.other_logit
        array([1.], dtype=float32)
        >>> round(float(found.loss[0]), 6), round(float(found.el2n[0]), 6)
        (0.407606, 0.424336)
    """
    z = np.ascontiguousarray(logits, np.float32)
    y = np.asarray(labels)
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise UserError(
            f"logits of shape {z.shape} and labels of shape {y.shape}",
            mend="logits must be rows by classes, with one label for each row",
        )
    if z.shape[1] < 2:
        raise UserError(
            f"logits of {z.shape[1]} class: a label has no other class to be told from",
            mend="a model with a single output gives logits (0, z) for its two classes",
        )
    if y.dtype.kind not in "iu" and len(y):
        raise UserError(f"labels of type {y.dtype}", mend="give the number of each row's class")
    if len(y) and not (y.min() >= 0 and y.max() < z.shape[1]):
        wrong = int(y[(y < 0) | (y >= z.shape[1])][0])
        raise UserError(
            f"label {wrong}, but the logits have classes 0 to {z.shape[1] - 1}",
            mend="the model needs an output for every class that occurs",
        )
    n = len(y)
    loss, label_prob, entropy, el2n, mine, best = (np.empty(n, np.float32) for _ in range(6))
    other, correct = np.empty(n, np.int32), np.empty(n, np.bool_)
    found = Records(mine, best, other, loss, label_prob, entropy, el2n, correct)
    _records(z, y.astype(np.int64), *found)
    return found
