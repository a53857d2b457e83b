"""All trainings of probes on one labelled table: recorded ones, and ones for other rows' judgement.

Rows come in canonical order, each with a random key. Whatever is drawn (threshold samples, folds,
the order of rows in an epoch) is a hash of the row's key, so that nothing depends on where rows
lie.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tamis.scoring.probes import Float32s, Probe, Training, softmax, train
from tamis.scoring.sampling import uniforms
from tamis.scoring.training_records import records_of
from tamis.storage.errors import UserError
from tamis.storage.kernels import Int64s, UInt64s, in_threads

Bools = npt.NDArray[np.bool_]

#: What is recorded of a row at an epoch, and how it is stored.
RECORDED: dict[str, type[np.generic]] = {
    "margin": np.float32,
    "label_prob": np.float32,
    "loss": np.float32,
    "entropy": np.float32,
    "el2n": np.float32,
    "correct": np.int8,
    "other": np.int32,
    "updates": np.int32,
}
#: Numbers of a layer that are computed at a time for rows that are judged.
_NUMBERS_AT_ONCE = 1 << 20
#: Epochs that random numbers are kept apart for.
_EPOCHS = 1 << 16

Progress = Callable[[str, int, int], None]


class Dynamics(NamedTuple):
    """What recorded trainings said, a run after the other.

    Attributes:
        recorded: by the names of `RECORDED`, ``(n, runs * epochs)``.
        ordinary: bool ``(n, runs)``, false for threshold samples of the run.
        logits: of the ordinary classes, float32 ``(n, runs * epochs, classes)``, if asked for.
    """

    recorded: dict[str, npt.NDArray[np.generic]]
    ordinary: Bools
    logits: Float32s | None


class Rows(NamedTuple):
    """What probes learn from.

    Attributes:
        matrix: float32 ``(n, d)``, standardised.
        labels: int64 ``(n,)``, from 0.
        classes: their number.
        keys: uint64 ``(n,)``, a random number for each row.
    """

    matrix: Float32s
    labels: Int64s
    classes: int
    keys: UInt64s

    def order(self, of: Int64s, draw: int, epoch: int) -> Int64s:
        """A random order of some rows, as places in `of`; a new one for every draw and epoch."""
        numbers = uniforms(self.keys[of], draw * _EPOCHS + epoch)
        order: Int64s = np.argsort(numbers, kind="stable")
        return order


def threshold_samples(rows: Rows, runs: int) -> Bools:
    """Which rows are trained as an extra class, in each of so many runs.

    N / (classes + 1) rows in a run, rounded down but at least one, and no row in two runs.

    Returns:
        bool ``(n, runs)``.

    Raises:
        UserError: if there are too few rows.
    """
    chosen = np.zeros((len(rows.labels), runs), np.bool_)
    count = max(1, len(chosen) // (rows.classes + 1))
    if count * runs > len(chosen):
        raise UserError(
            f"threshold_runs: {runs} runs with {count:,} threshold samples each need "
            f"{count * runs:,} rows, and there are {len(chosen):,}",
            where="recipe",
            mend="set fewer runs, or 0 for one without",
        )
    order = rows.order(np.arange(len(chosen)), 0, 0)
    for run in range(runs):
        chosen[order[run * count : (run + 1) * count], run] = True
    return chosen


def folds_of(rows: Rows, folds: int, draw: int) -> Int64s:
    """The fold of every row: every class is spread over them as evenly as can be, by a hash."""
    order = np.lexsort((uniforms(rows.keys, draw * _EPOCHS), rows.labels))
    fold = np.empty(len(order), np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


def study(
    rows: Rows,
    hows: Sequence[Training],
    *,
    threshold_runs: int,
    folds: int,
    repeats: int,
    logits: bool,
    workers: int,
    progress: Progress = lambda *_: None,
) -> tuple[Dynamics, Float32s]:
    """Train all probes.

    Args:
        hows: ways to train, all of as many epochs. Every row is judged by a probe of each;
            recorded ones are trained in the first way. Each training has a seed of its own.
        threshold_runs: recorded trainings with threshold samples of their own; 0: one without.
        folds, repeats: cuts of the rows, and parts of a cut.
        logits: whether to keep all logits of recorded trainings.
        workers: trainings that run side by side; the caller sees to it that each keeps to its
            thread.

    Returns:
        What was recorded, and the out-of-sample probability of every class, float32
        ``(n, classes)``: the mean over all epochs of what probes said that had not seen the row.
    """
    n, classes = len(rows.labels), rows.classes
    runs = threshold_runs or 1
    chosen = threshold_samples(rows, threshold_runs) if threshold_runs else None
    ordinary = np.ones((n, runs), np.bool_) if chosen is None else ~chosen
    times = runs * hows[0].epochs
    recorded: dict[str, npt.NDArray[np.generic]] = {
        name: np.empty((n, times), kind) for name, kind in RECORDED.items()
    }
    recorded["updates"][:] = 1
    kept = np.empty((n, times, classes), np.float32) if logits else None
    probs: Float32s = np.zeros((n, classes), np.float32)
    lock = Lock()
    parts = min(folds, n)
    done, epochs = 0, (runs + repeats * len(hows) * parts) * hows[0].epochs

    def fit(
        number: int,
        how: Training,
        of: Int64s,
        labels: Int64s,
        outputs: int,
        seen: Callable[[int, Int64s, Float32s], None] | None = None,
    ) -> Iterator[Probe]:
        """One training; `number` tells its random numbers from those of others."""
        nonlocal done
        own = replace(how, seed=how.seed + (number << 32))
        order = partial(rows.order, of, number)
        for probe in train(rows.matrix, of, labels, outputs, own, order, seen):
            yield probe
            with lock:
                done += 1
                progress("epochs of probes", done, epochs)

    def record(run: int) -> None:
        labels = np.where(ordinary[:, run], rows.labels, classes)

        def seen(epoch: int, batch: Int64s, found: Float32s) -> None:
            at = run * hows[0].epochs + epoch
            record = records_of(found, labels[batch])
            recorded["margin"][batch, at] = record.label_logit - record.other_logit
            for name in ("label_prob", "loss", "entropy", "el2n", "correct", "other"):
                recorded[name][batch, at] = getattr(record, name)
            if kept is not None:
                kept[batch, at] = found[:, :classes]

        outputs = classes + (threshold_runs > 0)
        for _ in fit(1 + repeats + run, hows[0], np.arange(n), labels, outputs, seen):
            pass

    def judge(cut: int, fold: Int64s, part: int) -> None:
        held = np.flatnonzero(fold == part)
        of = np.flatnonzero(fold != part)
        for at, how in enumerate(hows):
            number = 1 + repeats + runs + (cut * len(hows) + at) * folds + part
            width = max(rows.matrix.shape[1], how.hidden, classes)
            block = max(1, _NUMBERS_AT_ONCE // width)
            for probe in fit(number, how, of, rows.labels[of], classes):
                for begin in range(0, len(held), block):
                    some = held[begin : begin + block]
                    probs[some] += softmax(probe.logits(rows.matrix[some]))

    todo: list[Callable[[], None]] = [partial(record, run) for run in range(runs)]
    for cut in range(repeats):
        fold = folds_of(rows, folds, 1 + cut)
        todo += [partial(judge, cut, fold, part) for part in range(parts)]
        # One cut after the other, so that probabilities are summed in the same order every time.
        in_threads(lambda task: task(), todo, workers)
        todo = []
    probs /= repeats * len(hows) * hows[0].epochs
    return Dynamics(recorded, ordinary, kept), probs
