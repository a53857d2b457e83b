"""Density ratios by a classifier: how much likelier a row is in a target than in a corpus.

A classifier that tells target rows from corpus rows gives P(target | x). Its odds, over the odds of
the counts, are p_target(x) / p_corpus(x) (Bickel et al. 2007, Discriminative learning for differing
training and test distributions). Every row is judged by a classifier that has not seen it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from tamis.scoring.lbfgs import Floats, Ints, minimise
from tamis.storage.kernels import KERNEL, in_threads

Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

#: Penalties that are tried, strongest first: `l2 |w|^2 / 2` beside the sum of the log losses, for
#: columns of deviation 1. scikit-learn's C is 1 / l2.
PENALTIES = (1e5, 1e4, 1e3, 1e2, 1e1, 1e0)
#: Rows of a block, and runs of blocks whose sums are added up in order.
_BLOCK, _RUNS = 1 << 12, 32
#: Relative decrease of the loss at which a classifier is done: far below what folds differ by.
_TOLERANCE = 1e-9


class Judged(NamedTuple):
    """What classifiers that have not seen a row say of it.

    Attributes:
        log_ratio: float64 ``(n,)``, log p_target(x) / p_corpus(x) of every row.
        probability: float64 ``(n,)``, P(target | x) where there are as many of each as here.
        l2: the penalty.
        losses: by penalty the mean log loss (nats) of all rows.
        auc: P(a target row is judged likelier to be one than a corpus row), ties half.
        folds: classifiers; with 1 it has seen all rows.
    """

    log_ratio: Floats
    probability: Floats
    l2: float
    losses: dict[float, float]
    auc: float
    folds: int


def auc(positive: Floats, negative: Floats) -> float:
    """Area under the ROC curve: P(positive > negative), ties half.

    Example:
        >>> auc(np.array([1.0, 3.0]), np.array([0.0, 1.0, 2.0]))
        0.75
    """
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return float(below.sum() / (2 * len(order) * len(positive)))


@njit(**KERNEL)
def _residuals(logits, wanted, fold, left_out, loss):  # type: ignore[no-untyped-def]
    """Turn logits into derivatives of the log loss, zero for the rows that a problem leaves out."""
    for row in range(logits.shape[0]):
        for problem in range(logits.shape[1]):
            if fold[row] == left_out[problem]:
                logits[row, problem] = 0.0
                continue
            z = logits[row, problem]
            small = np.exp(-abs(z))
            p = (1.0 if z >= 0 else small) / (1.0 + small)
            loss[problem] += np.log1p(small) + (z if z > 0 else 0.0) - (z if wanted[row] else 0.0)
            logits[row, problem] = p - (1.0 if wanted[row] else 0.0)


def fit(
    rows: Float32s,
    wanted: Bools,
    fold: Ints,
    left_out: Ints,
    l2: Floats,
    workers: int = 1,
) -> Floats:
    """Logistic regressions on the same rows, each without one fold and with a penalty of its own.

    Minimises ``sum of log losses + l2 |w|^2 / 2``; the intercept is not penalised.

    Args:
        rows: float32 ``(n, d)``.
        wanted: bool ``(n,)``.
        fold: int64 ``(n,)``.
        left_out, l2: by classifier ``(b,)``; no row is left out of one whose fold there is not.

    Returns:
        float64 ``(b, d + 1)``, the intercept last.
    """
    count, width = rows.shape
    size = max(_BLOCK, -(-count // _RUNS))
    begins = range(0, count, size)
    kept = np.array([[np.sum((fold != f) & (wanted == w)) for w in (0, 1)] for f in left_out])
    scale = 1.0 / np.maximum(1, kept.min(axis=1))
    start = np.zeros((len(left_out), width + 1))
    start[:, -1] = np.log(np.maximum(kept[:, 1], 0.5) / np.maximum(kept[:, 0], 0.5))

    def objective(x: Floats, which: Ints) -> tuple[Floats, Floats]:
        turned = np.ascontiguousarray(x[:, :-1].T)
        without = left_out[which]

        def part(begin: int) -> tuple[Floats, Floats]:
            value, gradient = np.zeros(len(x)), np.zeros_like(x)
            for first in range(begin, min(begin + size, count), _BLOCK):
                block = slice(first, min(first + _BLOCK, begin + size))
                wide = rows[block].astype(np.float64)
                logits = wide @ turned
                logits += x[:, -1]
                _residuals(logits, wanted[block], fold[block], without, value)
                gradient[:, :-1] += logits.T @ wide
                gradient[:, -1] += logits.sum(axis=0)
            return value, gradient

        parts = in_threads(part, begins, workers)
        value = np.sum([one for one, _ in parts], axis=0)
        gradient = np.sum([one for _, one in parts], axis=0)
        value += l2[which] * np.square(x[:, :-1]).sum(axis=1) / 2
        gradient[:, :-1] += l2[which, None] * x[:, :-1]
        return value * scale[which], gradient * scale[which, None]

    return minimise(objective, start, gradient_tolerance=1e-6, value_tolerance=_TOLERANCE).x


def judge(
    rows: Float32s,
    wanted: Bools,
    fold: Ints,
    penalties: Sequence[float] = PENALTIES,
    workers: int = 1,
) -> Judged:
    """Density ratios of rows, each by a classifier that was fitted to the other folds.

    Of several penalties the one with the lowest log loss over all rows held out is taken, the
    strongest of equals; without a fold to hold out, the strongest.

    Args:
        rows: float32 ``(n, d)``, standardised; at least one of either kind.
        wanted: bool ``(n,)``, whether a row is of the target.
        fold: int64 ``(n,)``, from 0; each fold has rows of either kind. All 0: none is held out.
    """
    folds = int(fold.max()) + 1
    each = np.sort(np.array(penalties, np.float64))[::-1]
    if folds == 1:
        each = each[:1]
    left_out = np.repeat(np.arange(folds) if folds > 1 else [-1], len(each))
    weights = fit(rows, wanted, fold, left_out, np.tile(each, folds), workers)
    logit = np.empty((len(rows), len(each)))
    shares = np.empty(len(rows))
    for part in range(folds):
        mine = weights[part * len(each) : (part + 1) * len(each)]
        held = np.flatnonzero(fold == part)
        for begin in range(0, len(held), _BLOCK):
            some = held[begin : begin + _BLOCK]
            logit[some] = rows[some].astype(np.float64) @ mine[:, :-1].T + mine[:, -1]
        learnt = wanted[fold != part] if folds > 1 else wanted
        shares[held] = np.log(learnt.sum() / (~learnt).sum())
    ratio = logit - shares[:, None]
    logit = ratio + np.log(wanted.sum() / (~wanted).sum())
    loss = (np.logaddexp(0, logit) - np.where(wanted[:, None], logit, 0)).mean(axis=0)
    best = int(loss.argmin())
    found = logit[:, best]
    return Judged(
        log_ratio=ratio[:, best],
        probability=1 / (1 + np.exp(-np.clip(found, -700, 700))),
        l2=float(each[best]),
        losses=dict(zip(each.tolist(), loss.tolist(), strict=True)),
        auc=auc(found[wanted], found[~wanted]),
        folds=folds,
    )
