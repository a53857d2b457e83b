"""What a model held a row's class to be while it learnt, before it memorised wrong labels."""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numba import njit
from pydantic import Field

from tamis.scoring.column_scorer import Float64s, numbers, vector_blocks
from tamis.scoring.label_dynamics import Matrix, OfDynamics, Runs
from tamis.scoring.label_probs import check_codes
from tamis.storage.errors import UserError
from tamis.storage.kernels import KERNEL

#: Bounds that probabilities are clamped to in the authors' code.
_LEAST, _MOST = 1e-4, 1.0 - 1e-4


class EarlyLearningTarget(OfDynamics):
    """How far the target of early-learning regularisation is for the label (0 to 1); low: suspect.

    The target is a moving average over epochs of the model's probabilities p (clamped to 1e-4 and
    1 - 1e-4, then normalised): t <- beta t + (1 - beta) p from 0, here brought to a sum of 1, so
    that rows which some epochs lack compare; for the others that is one factor for all. Of several
    runs it is the mean target. The score is the target's number for the label; ``_class`` (int32)
    the class it is most for; ``_memorised`` says that it is for another class, and that in the last
    epoch the model had nevertheless fitted the label (our reading; the paper has no such flag).

    The stage before must leave all logits (``logits: true``).

    Example:
        >>> batch = pa.record_batch(
        ...     {
        ...         "probe_logits": [[9.0, 0.0, 0.0, 9.0]],
        ...         "probe_label": [1],
        ...         "probe_updates": [[1, 1]],
        ...         "probe_ordinary": [[True]],
        ...     }
        ... )
        >>> found = EarlyLearningTarget(beta=0.9).compute(batch)
        >>> round(found["early_learning_target"][0].as_py(), 4)
        0.5263
    """

    operator: Literal["early_learning_target"] = "early_learning_target"
    beta: float = Field(
        default=0.7,
        ge=0,
        lt=1,
        description="share of the target that stays at an epoch; in the authors' configurations "
        "0.7 for CIFAR-10, 0.9 for CIFAR-100 and for asymmetric noise",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Liu et al. 2020, Early-learning regularization prevents memorization of noisy labels"
    )
    parts: ClassVar[tuple[str, ...]] = ()

    def reads(self) -> set[str]:
        return super().reads() | {f"{self.dynamics}_logits", f"{self.dynamics}_label"}

    def numbers(self) -> set[str]:
        return {f"{self.dynamics}_label"}

    def fields(self) -> pa.Schema:
        """The score (float64), ``_class`` (int32) and ``_memorised`` (bool), all nullable."""
        kinds = {"": pa.float64(), "_class": pa.int32(), "_memorised": pa.bool_()}
        return pa.schema([pa.field(self.stage + name, kind) for name, kind in kinds.items()])

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        runs = self.runs(batch)
        counted = runs.counted
        label = numbers(batch, f"{self.dynamics}_label")
        score = np.full(batch.num_rows, np.nan)
        target = np.zeros(batch.num_rows, np.int32)
        memorised = np.zeros(batch.num_rows, np.bool_)
        for some, logits in vector_blocks(batch, f"{self.dynamics}_logits"):
            cut = self._cut(logits, runs)
            if cut is None:
                continue
            known = ~np.isnan(label[some])
            number = np.where(known, label[some], 0).astype(np.int64)
            check_codes(number, cut.shape[3], f"{self.dynamics}_label")
            use = counted[some] & known[:, None]
            out = score[some], target[some], memorised[some]
            _targets(cut, runs.updates[:, some], use, number, self.beta, *out)
        unknown = np.isnan(score)
        arrays = [pa.array(found, mask=unknown) for found in (score, target, memorised)]
        return pa.record_batch(arrays, schema=self.fields())

    def _cut(self, logits: Float64s, runs: Runs) -> Matrix | None:
        """Logits as ``(n, runs, epochs, classes)``; None where no row has any."""
        epochs = len(runs) * runs.epochs
        classes, rest = divmod(logits.shape[1], epochs)
        if rest or not classes:
            if np.isnan(logits).all():
                return None
            raise UserError(
                f"{self.dynamics}_logits: expected as many logits for each of {epochs} epochs, "
                f"found {logits.shape[1]} a row"
            )
        return logits.reshape(len(logits), len(runs), runs.epochs, classes)


@njit(**KERNEL)
def _targets(  # type: ignore[no-untyped-def]
    logits, updates, counted, label, beta, score, target, memorised
):
    classes = logits.shape[3]
    probs = np.empty(classes)
    average = np.empty(classes)
    mean = np.empty(classes)
    last = np.empty(classes)
    for row in range(logits.shape[0]):
        mean[:] = 0.0
        last[:] = 0.0
        runs, broken = 0, False
        for run in range(logits.shape[1]):
            if not counted[row, run]:
                continue
            runs += 1
            average[:] = 0.0
            mass = 0.0
            for t in range(logits.shape[2]):
                if updates[run, row, t] == 0:
                    continue
                line = logits[row, run, t]
                top = -np.inf
                for c in range(classes):
                    # A class may be ruled out (-inf), if not all of them are.
                    broken |= np.isnan(line[c]) or line[c] == np.inf
                    top = max(top, line[c])
                if broken or top == -np.inf:
                    broken = True
                    break
                total = 0.0
                for c in range(classes):
                    probs[c] = np.exp(line[c] - top)
                    total += probs[c]
                clamped = 0.0
                for c in range(classes):
                    probs[c] /= total
                    clamped += min(max(probs[c], _LEAST), _MOST)
                for c in range(classes):
                    p = min(max(probs[c], _LEAST), _MOST) / clamped
                    average[c] = beta * average[c] + (1.0 - beta) * p
                mass = beta * mass + (1.0 - beta)
            if broken:
                break
            for c in range(classes):
                mean[c] += average[c] / mass
                last[c] += probs[c]
        if broken or runs == 0:
            continue
        y = label[row]
        score[row] = mean[y] / runs
        target[row] = np.argmax(mean)  # the first of equals
        memorised[row] = target[row] != y and np.argmax(last) == y
