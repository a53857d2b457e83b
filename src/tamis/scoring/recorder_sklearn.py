"""Trains a scikit-learn classifier epoch by epoch, and records each."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tamis.scoring.recorder import DynamicsRecorder
from tamis.storage.errors import UserError

#: Logits computed at a time.
_AT_ONCE = 1 << 22


def record_partial_fit(
    estimator: Any,
    X: Any,  # noqa: N803 - as scikit-learn names it
    y: npt.ArrayLike,
    row_ids: Any,
    recorder: DynamicsRecorder,
    *,
    epochs: int,
    batch_size: int = 256,
    classes: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Any:
    """Train by ``partial_fit`` on shuffled batches; after every epoch record all rows.

    What is recorded of a row is the estimator's ``decision_function`` (of two classes -z/2 and
    z/2, whose softmax is the logistic function of z), or, where it has none, the logarithm of its
    ``predict_proba``, which is held above the least step of its float type, as scikit-learn's
    ``log_loss`` does. Of several classes `SGDClassifier` fits one against the rest: the softmax of
    its decisions is not its ``predict_proba``, and margins are those of the decisions.

    Args:
        estimator: a classifier with ``partial_fit``.
        X: array, sparse matrix or DataFrame of n rows.
        y: their labels. Label numbers in the records are places in ``estimator.classes_``, which is
            sorted, and so is the recorder's `threshold_label`.
        row_ids: their ids, n integers or strings.
        epochs: how often all rows are trained on.
        batch_size: rows of a ``partial_fit``; unconfirmed.
        classes: all classes, if `y` does not have them all.
        seed: of the order of rows, which is another in every epoch.

    Returns:
        The estimator.

    Raises:
        UserError: for an estimator that cannot be trained so, fewer than two classes, or lengths
            that differ.
    """
    if not hasattr(estimator, "partial_fit"):
        raise UserError(
            f"{type(estimator).__name__} has no partial_fit",
            where="record_partial_fit",
            mend="take one that learns epoch by epoch, such as SGDClassifier(loss='log_loss')",
        )
    labels = np.asarray(y)
    known = np.unique(labels if classes is None else np.asarray(classes))
    ids = np.asarray(row_ids)
    if labels.ndim != 1 or not len(labels) == len(ids) == X.shape[0]:
        raise UserError(
            f"X of shape {X.shape}, y of shape {labels.shape} and {len(ids)} row ids",
            where="record_partial_fit",
            mend="give a label and an id for every row",
        )
    if len(known) < 2 or not np.isin(labels, known).all():
        raise UserError(
            f"classes {known.tolist()}; expected at least two, among them all labels",
            where="record_partial_fit",
        )
    codes = np.searchsorted(known, labels)
    rows = X.iloc if hasattr(X, "iloc") else X
    order = np.random.default_rng(seed)
    step = 0
    for epoch in range(epochs):
        shuffled = order.permutation(len(labels))
        for begin in range(0, len(labels), batch_size):
            at = shuffled[begin : begin + batch_size]
            estimator.partial_fit(rows[at], labels[at], classes=known)
            step += 1
        with recorder.epoch(epoch):
            size = max(1, _AT_ONCE // len(known))
            for begin in range(0, len(labels), size):
                part = slice(begin, begin + size)
                recorder.record(ids[part], _logits(estimator, rows[part]), codes[part], step)
    return estimator


def _logits(estimator: Any, rows: Any) -> npt.NDArray[np.floating[Any]]:
    if hasattr(estimator, "decision_function"):
        decision: npt.NDArray[np.floating[Any]] = estimator.decision_function(rows)
        half = decision / 2
        return decision if decision.ndim == 2 else np.stack([-half, half], axis=1)
    if not hasattr(estimator, "predict_proba"):
        raise UserError(
            f"{type(estimator).__name__} has neither decision_function nor predict_proba",
            where="record_partial_fit",
        )
    probability = estimator.predict_proba(rows)
    logits: npt.NDArray[np.floating[Any]] = np.log(
        np.maximum(probability, np.finfo(probability.dtype).eps)
    )
    return logits
