"""Probes: classifiers of vectors, linear or with one hidden layer, trained row by row in batches.

Everything here is float32 matrix products of numpy; a training takes one thread, so that several
run beside one another, and gives the same numbers wherever its rows lie.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from numba import float32, njit

from tamis.storage.errors import UserError
from tamis.storage.kernels import KERNEL, Int64s

Float32s = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]

#: Adam's own constants (Kingma and Ba 2015, algorithm 1).
_FIRST, _SECOND, _SMALL = 0.9, 0.999, 1e-8
#: Probabilities that ELR works with are kept from 0 and 1 by this (the authors' public code).
ELR_CLAMP = 1e-4
#: A column that varies less than this share of the one that varies most holds rounding only.
_ROUNDING = 1e-6

#: Steps of an epoch at least: with fewer, few rows would hardly be learnt from.
_STEPS = 16

Loss = Literal["cross_entropy", "gce", "elr"]


@dataclass(frozen=True)
class Training:
    """How a probe is trained.

    Attributes:
        hidden: numbers of the hidden layer (ReLU); 0 for a linear probe.
        loss: `cross_entropy`; `gce`, generalised cross-entropy (1 - p**q) / q of the label's
            probability p; `elr`, cross-entropy + lam * mean(log(1 - <t, p>)), where t is the mean
            over time of what was said of the row before, t <- beta * t + (1 - beta) * p.
        q, beta, lam: of these losses.
        epochs: how often every row is learnt from.
        learning_rate: of Adam, the same throughout.
        weight_decay: share of every weight (not of biases) that a step takes off, times
            `learning_rate` (decoupled, Loshchilov and Hutter 2019).
        batch_rows: rows of a step at most; fewer where an epoch would have fewer than 16 steps.
        seed: of the first weights; a linear probe begins at zero.
    """

    hidden: int
    loss: Loss
    q: float
    beta: float
    lam: float
    epochs: int
    learning_rate: float
    weight_decay: float
    batch_rows: int
    seed: int = 0


class Probe:
    """A classifier of vectors.

    Its weights and biases lie in one array, which `layers` are views of: a pair of a matrix (from,
    to) and a bias for each layer.

    Args:
        sizes: numbers that go in, of a hidden layer if there is one, and classes.
        seed: of the first weights. Those of the last layer and all biases are zero, those of a
            hidden layer normal with variance 2 / inputs (He et al. 2015).
    """

    def __init__(self, sizes: list[int], seed: int) -> None:
        shapes = list(pairwise(sizes))
        self.weights: Float32s = np.zeros(sum((i + 1) * o for i, o in shapes), np.float32)
        self.layers = _layers(self.weights, shapes)
        random = np.random.Generator(np.random.PCG64(seed))
        for matrix, _ in self.layers[:-1]:
            scale = np.sqrt(2 / len(matrix))
            matrix[:] = random.standard_normal(matrix.shape) * scale
        self._shapes = shapes

    def logits(self, rows: Float32s) -> Float32s:
        """What it says of rows, ``(n, classes)``."""
        return self.activations(rows)[-1]

    def activations(self, rows: Float32s) -> list[Float32s]:
        """The rows, every layer's output after them, and the logits last."""
        found = [rows]
        for at, (matrix, bias) in enumerate(self.layers):
            out = found[-1] @ matrix
            out += bias
            if at + 1 < len(self.layers):
                np.maximum(out, 0, out=out)
            found.append(out)
        return found

    def gradient(self, activations: list[Float32s], upward: Float32s) -> Float32s:
        """Gradient of all weights, in the order of `weights`.

        Args:
            activations: of `activations`.
            upward: gradient of the logits.
        """
        found = np.empty_like(self.weights)
        layers = _layers(found, self._shapes)
        for at in reversed(range(len(layers))):
            matrix, bias = layers[at]
            np.matmul(activations[at].T, upward, out=matrix)
            upward.sum(axis=0, out=bias)
            if at:
                upward = upward @ self.layers[at][0].T
                upward *= activations[at] > 0
        return found


def _layers(flat: Float32s, shapes: list[tuple[int, int]]) -> list[tuple[Float32s, Float32s]]:
    """Views of one array: a matrix and a bias for every layer, all matrices first."""
    found = []
    at = 0
    bias = sum(inputs * outputs for inputs, outputs in shapes)
    for inputs, outputs in shapes:
        matrix = flat[at : at + inputs * outputs].reshape(inputs, outputs)
        found.append((matrix, flat[bias : bias + outputs]))
        at += inputs * outputs
        bias += outputs
    return found


def softmax(logits: Float32s) -> Float32s:
    """Probabilities of classes, row by row.

    Example:
        >>> softmax(np.array([[0.0, np.log(3.0)]], np.float32)).round(4).tolist()
        [[0.25, 0.75]]
    """
    found: Float32s = logits - logits.max(axis=1, keepdims=True)
    np.exp(found, out=found)
    found /= found.sum(axis=1, keepdims=True)
    return found


def upward_gradient(
    logits: Float32s, labels: Int64s, how: Training, targets: Float32s | None = None
) -> Float32s:
    """Gradient of the mean loss of a batch with respect to its logits.

    Args:
        labels: the class of every row.
        targets: for ELR, the targets t of the rows, taken as constants.
    """
    p = softmax(logits)
    at = np.arange(len(labels)), labels
    own = p[at]
    found = p.copy() if targets is not None else p
    found[at] -= 1
    if how.loss == "gce":
        found *= (own**how.q)[:, None]
    if targets is not None:
        # d log(1 - <t, p>) / d p_k = -t_k / (1 - <t, p>), where p_k is not clamped; then through
        # the softmax: p_k * (g_k - <g, p>).
        clamped = np.clip(p, ELR_CLAMP, 1 - ELR_CLAMP)
        agreement = np.einsum("ij,ij->i", targets, clamped)
        slope = np.where(clamped == p, targets, 0) / (agreement - 1)[:, None]
        slope -= np.einsum("ij,ij->i", slope, p)[:, None]
        slope *= p
        slope *= how.lam
        found += slope
    found /= len(labels)
    return found


def next_targets(targets: Float32s, logits: Float32s, beta: float) -> Float32s:
    """ELR's targets of a batch after what was just said of its rows."""
    p = np.clip(softmax(logits), ELR_CLAMP, 1 - ELR_CLAMP)
    p /= p.sum(axis=1, keepdims=True)
    found: Float32s = np.float32(beta) * targets + np.float32(1 - beta) * p
    return found


@njit(**KERNEL)
def _adam(weights, gradient, first, second, rate, size, decay, decayed):  # type: ignore[no-untyped-def]
    """A step of Adam; `rate` and `size` hold the corrections for the means' beginning at zero."""
    for i in range(weights.shape[0]):
        g = gradient[i]
        m = float32(_FIRST) * first[i] + float32(1 - _FIRST) * g
        v = float32(_SECOND) * second[i] + float32(1 - _SECOND) * g * g
        first[i] = m
        second[i] = v
        step = rate * m / (np.sqrt(v) * size + float32(_SMALL))
        kept = weights[i] * decay if i < decayed else weights[i]
        weights[i] = kept - step


def train(
    matrix: Float32s,
    rows: Int64s,
    labels: Int64s,
    classes: int,
    how: Training,
    order: Callable[[int], Int64s],
    seen: Callable[[int, Int64s, Float32s], None] | None = None,
) -> Iterator[Probe]:
    """Train a probe; gives it after every epoch, and trains it on after that.

    Args:
        matrix: float32 ``(n, d)``, all vectors.
        rows: those that it learns from.
        labels: the class of each of `rows`.
        classes: number of classes.
        order: for an epoch, from 0, the order in which `rows` are visited, as places in `rows`.
        seen: called for every batch before its step, with epoch, places in `rows` and logits.

    Raises:
        UserError: if the weights grow beyond all bounds.

    Before its first step a probe says of every row that classes are as likely as they are frequent
    among `labels` (each counted once more than it occurs).
    """
    hidden = [how.hidden] if how.hidden else []
    probe = Probe([matrix.shape[1], *hidden, classes], how.seed)
    # Steps of Adam are too small for biases to come by the classes' shares on their own, and
    # without them every label of a rare class looks wrong.
    probe.layers[-1][1][:] = np.log((np.bincount(labels, minlength=classes) + 1) / len(labels))
    first = np.zeros_like(probe.weights)
    second = np.zeros_like(probe.weights)
    decayed = sum(weight.size for weight, _ in probe.layers)
    decay = np.float32(1 - how.learning_rate * how.weight_decay)
    # Before anything was said of a row its target is zero, as in the authors' public code.
    targets = np.zeros((len(rows), classes), np.float32) if how.loss == "elr" else None
    size = min(how.batch_rows, -(-len(rows) // _STEPS))
    steps = 0

    def step(epoch: int, batch: Int64s) -> None:
        nonlocal steps
        activations = probe.activations(matrix[rows[batch]])
        logits = activations[-1]
        if seen is not None:
            seen(epoch, batch, logits)
        mine = None
        if targets is not None:
            mine = targets[batch] = next_targets(targets[batch], logits, how.beta)
        upward = upward_gradient(logits, labels[batch], how, mine)
        steps += 1
        _adam(
            probe.weights,
            probe.gradient(activations, upward),
            first,
            second,
            np.float32(how.learning_rate / (1 - _FIRST**steps)),
            np.float32((1 - _SECOND**steps) ** -0.5),
            decay,
            decayed,
        )

    for epoch in range(how.epochs):
        places = order(epoch)
        with np.errstate(over="ignore", invalid="ignore"):  # told of below
            for begin in range(0, len(places), size):
                step(epoch, places[begin : begin + size])
        if not np.isfinite(probe.weights).all():
            raise UserError(
                f"the probe's weights grew beyond all bounds in epoch {epoch}",
                mend=f"set a `learning_rate` below {how.learning_rate:g}",
            )
        yield probe


def standardise(matrix: Float32s) -> None:
    """Bring every column to mean 0 and standard deviation 1, in place.

    A column that is constant but for rounding becomes zero.
    """
    if not len(matrix):
        return
    mean = matrix.mean(axis=0, dtype=np.float64)
    square = np.zeros_like(mean)
    block = 1 << 12
    for begin in range(0, len(matrix), block):
        square += np.square(matrix[begin : begin + block] - mean).sum(axis=0)
    deviation = np.sqrt(square / len(matrix))
    scale = np.where(deviation > _ROUNDING * deviation.max(), deviation, np.inf)
    for begin in range(0, len(matrix), block):
        part = matrix[begin : begin + block]
        part[:] = (part - mean) / scale
