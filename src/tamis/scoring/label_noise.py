"""A noise model of labels: which class a row is of, given what is said of it and its label.

The label depends on the row through its class alone: P(label i | class j) = T[j, i]. With
out-of-sample probabilities p of the classes, the row's class has the posterior

    P(j | row, label i) = p[j] T[j, i] / sum_k p[k] T[k, i]

and the label is wrong with one minus that of i.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from tamis.storage.kernels import KERNEL, Int64s

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

#: Steps of EM; the estimates hardly move after ten.
ITERATIONS = 20
#: Share of wrong labels that the prior says at least and at most, so that no label is impossible.
_LEAST, _MOST = 1e-3, 0.95


class Noise(NamedTuple):
    """A fitted noise model.

    Attributes:
        wrong: float64 ``(n,)``, P(label is wrong) of every row.
        transition: float64 ``(classes, classes)``, P(label | class), a row for every class.
        prior_rate: share of wrong labels that confident learning counts, and the prior says.
    """

    wrong: Float64s
    transition: Float64s
    prior_rate: float


@njit(**KERNEL)
def _joint(probs, labels, thresholds, counts):  # type: ignore[no-untyped-def]
    """Rows by label and by the class they are confidently of: the most probable of those whose
    probability reaches the class's threshold, the first of equals.
    """
    for row in range(probs.shape[0]):
        best = -1
        for cls in range(probs.shape[1]):
            p = probs[row, cls]
            if p >= thresholds[cls] and (best < 0 or p > probs[row, best]):
                best = cls
        if best >= 0:
            counts[labels[row], best] += 1


def confident_rate(probs: Float32s, labels: Int64s) -> float:
    """Share of wrong labels by confident learning: off the diagonal of the calibrated joint.

    A class's threshold is its mean probability over the rows labelled so; a row counts as of a
    class whose threshold it reaches. Counts of a label are scaled to the rows that have it.

    Args:
        probs: float32 ``(n, classes)``, out of sample.
        labels: int64 ``(n,)``, class numbers.

    Source: Northcutt et al. 2021, Confident learning, section 3.1 (equations 1 and 3).

    Example:
        >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.1, 0.9]], np.float32)
        >>> round(confident_rate(probs, np.array([0, 0, 1, 1])), 6)
        0.25
    """
    if not len(labels):
        return 0.0
    classes = probs.shape[1]
    size = np.bincount(labels, minlength=classes)
    own = probs[np.arange(len(labels)), labels].astype(np.float64)
    thresholds = np.full(classes, np.inf)
    total = np.bincount(labels, weights=own, minlength=classes)
    np.divide(total, size, out=thresholds, where=size > 0)
    # The rounding of a mean may lift it above equal numbers.
    thresholds -= 1e-9
    counts = np.zeros((classes, classes), np.int64)
    _joint(probs, labels, thresholds, counts)
    found = counts.sum(axis=1)
    # A label without a confident row counts as right, as in cleanlab.
    share = np.ones(classes)
    np.divide(np.diagonal(counts), found, out=share, where=found > 0)
    return float(1.0 - (share * size).sum() / len(labels))


@njit(**KERNEL)
def _expect(probs, labels, likelihood, counts, right):  # type: ignore[no-untyped-def]
    """Posterior of every row, summed by label and class, and that of its label.

    `likelihood` is P(label | class) with a row for every label.
    """
    classes = probs.shape[1]
    counts[:] = 0.0
    for row in range(probs.shape[0]):
        label = labels[row]
        total = 0.0
        for cls in range(classes):
            total += probs[row, cls] * likelihood[label, cls]
        if total > 0.0:
            for cls in range(classes):
                counts[label, cls] += probs[row, cls] * likelihood[label, cls] / total
            right[row] = probs[row, label] * likelihood[label, label] / total
        else:  # probabilities that are all zero say nothing against the label
            counts[label, label] += 1.0
            right[row] = 1.0


def fit_noise(probs: Float32s, labels: Int64s, iterations: int = ITERATIONS) -> Noise:
    """Fit the noise model by EM, from symmetric noise at confident learning's rate.

    That symmetric matrix is also the prior of T, and counts for as many rows as a class has on
    average: where a class has few rows, or the noise no direction, T stays near it.

    Rows are added up in the order given, so a fit is reproducible if they come in a fixed order.

    Args:
        probs: float32 ``(n, classes)``, out of sample, no nan.
        labels: int64 ``(n,)``, class numbers.
        iterations: steps of EM.

    Source: the E- and M-step of Dawid and Skene 1979 with one annotator and given p, and a
    Dirichlet prior (maximum a posteriori).

    Example:
        >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.1, 0.9]], np.float32)
        >>> fit_noise(probs, np.array([0, 0, 1, 1])).wrong.round(3).tolist()
        [0.026, 0.057, 0.749, 0.036]
    """
    n, classes = probs.shape
    right = np.ones(n)
    rate = min(max(confident_rate(probs, labels), _LEAST), _MOST)
    prior = np.full((classes, classes), rate / max(classes - 1, 1))
    np.fill_diagonal(prior, 1.0 - rate if classes > 1 else 1.0)
    if not n:
        return Noise(right, prior, rate)
    likelihood = prior.copy()
    counts = np.empty((classes, classes))
    for _ in range(iterations):
        _expect(probs, labels, likelihood, counts, right)
        np.multiply(prior, n / classes, out=likelihood)
        likelihood += counts
        likelihood /= likelihood.sum(axis=0)
    _expect(probs, labels, likelihood, counts, right)
    return Noise(np.clip(1.0 - right, 0.0, 1.0), likelihood.T, rate)
