"""Scores of rows from what a model said of them epoch by epoch: functions of plain matrices.

Matrices have a row per row of the corpus and a column per epoch of one run. ``updates`` (integers)
says how often a row was seen in an epoch: 0 is an epoch without it, which no score counts. A value
of an epoch with updates that is not finite, or a negative `correct`, is a broken record: the row's
score is nan, never a number from the rest. A row without any epoch has nan as well.

Sums run in the order of epochs in float64: the same values whatever the number of threads.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from tamis.storage.kernels import KERNEL

Float64s = npt.NDArray[np.float64]
Matrix = npt.NDArray[Any]


class DataMap(NamedTuple):
    """Coordinates of rows on a data map, float64 ``(n,)`` each; nan as the module says.

    Attributes:
        confidence: mean probability of the label over epochs, 0 to 1.
        variability: its population standard deviation over epochs, 0 to 0.5.
        correctness: epochs in which the row was classified as its label.
    """

    confidence: Float64s
    variability: Float64s
    correctness: Float64s


@njit(**KERNEL)
def _means(values, updates, weighted, out):  # type: ignore[no-untyped-def]
    for row in range(values.shape[0]):
        total, weight = 0.0, 0
        for t in range(values.shape[1]):
            seen = updates[row, t]
            if seen > 0:
                times = seen if weighted else 1
                total += times * np.float64(values[row, t])
                weight += times
        # An infinite sum is that of an infinite value.
        out[row] = total / weight if weight and np.isfinite(total) else np.nan


@njit(**KERNEL)
def _deviations(values, updates, mean, out):  # type: ignore[no-untyped-def]
    for row in range(values.shape[0]):
        total, epochs = 0.0, 0
        for t in range(values.shape[1]):
            if updates[row, t] > 0:
                off = np.float64(values[row, t]) - mean[row]
                total += off * off
                epochs += 1
        out[row] = np.sqrt(total / epochs) if epochs else np.nan


@njit(**KERNEL)
def _last(values, updates, out):  # type: ignore[no-untyped-def]
    for row in range(values.shape[0]):
        out[row] = np.nan
        for t in range(values.shape[1]):
            if updates[row, t] > 0:
                out[row] = values[row, t]
                if not np.isfinite(values[row, t]):
                    out[row] = np.nan
                    break


@njit(**KERNEL)
def _learning(correct, updates, correctness, forgotten):  # type: ignore[no-untyped-def]
    for row in range(correct.shape[0]):
        epochs, right, lost, before, broken = 0, 0, 0, 0, False
        for t in range(correct.shape[1]):
            if updates[row, t] > 0:
                now = correct[row, t]
                broken |= now < 0
                epochs += 1
                right += now
                lost += before == 1 and now == 0
                before = now
        if broken or epochs == 0:
            correctness[row] = forgotten[row] = np.nan
        else:
            correctness[row] = right
            forgotten[row] = lost if right else epochs


def _learned(correct: Matrix, updates: Matrix) -> tuple[Float64s, Float64s]:
    correctness, forgotten = np.empty(len(correct)), np.empty(len(correct))
    _learning(correct, updates, correctness, forgotten)
    return correctness, forgotten


def area_under_margin(margin: Matrix, updates: Matrix) -> Float64s:
    """Mean margin over all updates: low where other classes win, so for labels likely wrong.

    Pleiss et al. 2020, Identifying mislabeled data using the area under the margin ranking, eq. 1.
    An epoch's margin is the mean of its updates, and counts as often as there were updates.

    Args:
        margin: float32 ``(n, epochs)``, label's logit minus largest other, raw logits.
        updates: integers ``(n, epochs)``.

    Returns:
        float64 ``(n,)``, in units of logits.

    Example:
        >>> area_under_margin(np.array([[-1.0, 2.0, np.nan]]), np.array([[2, 1, 0]]))
        array([0.])
    """
    return _mean(margin, updates, weighted=True)


def mean_over_epochs(values: Matrix, updates: Matrix) -> Float64s:
    """Mean of a row's values (loss, EL2N, …) over the epochs that have it, each counting once.

    Returns:
        float64 ``(n,)``, in units of `values`.

    Example:
        >>> mean_over_epochs(np.array([[0.5, 1.5, np.nan]]), np.array([[1, 1, 0]]))
        array([1.])
    """
    return _mean(values, updates, weighted=False)


def _mean(values: Matrix, updates: Matrix, *, weighted: bool) -> Float64s:
    out = np.empty(len(values))
    _means(values, updates, weighted, out)
    return out


def last_value(values: Matrix, updates: Matrix) -> Float64s:
    """A row's value in the last epoch that has it; float64 ``(n,)``.

    Example:
        >>> last_value(np.array([[0.5, 1.5, np.nan]]), np.array([[1, 1, 0]]))
        array([1.5])
    """
    out = np.empty(len(values))
    _last(values, updates, out)
    return out


def data_map(label_prob: Matrix, correct: Matrix, updates: Matrix) -> DataMap:
    """Confidence, variability and correctness: hard-to-learn rows (low, low) are often mislabelled.

    Swayamdipta et al. 2020, Dataset cartography, section 2; correctness here is a count of epochs.

    Args:
        label_prob: float32 ``(n, epochs)``, softmax of the label.
        correct: int8 ``(n, epochs)``, 1 or 0.
        updates: integers ``(n, epochs)``.

    Example:
        >>> seen = np.ones((1, 2), np.int32)
        >>> data_map(np.array([[0.25, 0.75]]), np.array([[0, 1]], np.int8), seen)
        DataMap(confidence=array([0.5]), variability=array([0.25]), correctness=array([1.]))
    """
    confidence = mean_over_epochs(label_prob, updates)
    variability = np.empty(len(confidence))
    _deviations(label_prob, updates, confidence, variability)
    return DataMap(confidence, variability, _learned(correct, updates)[0])


def forgetting(correct: Matrix, updates: Matrix) -> Float64s:
    """How often a row was right in one epoch and wrong in the next that has it; high is suspicious.

    Toneva et al. 2019, An empirical study of example forgetting during deep neural network
    learning. A row never learnt, so never forgotten, has the number of epochs that presented it,
    more than any row that was learnt can have; others give it infinity.

    Args:
        correct: int8 ``(n, epochs)``, 1 or 0.
        updates: integers ``(n, epochs)``.

    Returns:
        float64 ``(n,)``, whole numbers.

    Example:
        >>> correct = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.int8)
        >>> forgetting(correct, np.ones((3, 4), np.int32))
        array([2., 0., 4.])
    """
    return _learned(correct, updates)[1]


def mean_over_runs(by_run: Matrix, counted: npt.NDArray[np.bool_]) -> Float64s:
    """Mean of a score over runs.

    Args:
        by_run: float64 ``(n, runs)``.
        counted: ``(n, runs)``, the runs that saw a row, and as an ordinary one.

    Returns:
        float64 ``(n,)``; nan where no run is counted, or one that is has nan.

    Example:
        >>> counted = np.array([[True, False], [True, True]])
        >>> mean_over_runs(np.array([[1.0, np.nan], [1.0, 2.0]]), counted)
        array([1. , 1.5])
    """
    return mean_over_epochs(by_run, counted.astype(np.int8))
