"""Model ladders: from size and tokens to a task's loss, and from that to its accuracy.

Bhagia et al., Establishing Task Scaling Laws via Compute-Efficient Model Ladders (2024, arXiv
2412.04403): L(N, D) = A / N^a + B / D^b + E, then accuracy = low + high / (1 + exp(-k (L - L0))).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tamis.scoring.fits import Coefficient, Fit, Model, floats
from tamis.scoring.lbfgs import huber, minimise
from tamis.scoring.mixture_runs import Floats, Inputs, Ints, Runs
from tamis.storage.errors import UserError


class TaskLadder(Fit):
    """Task ladder: size and tokens to task loss, task loss to accuracy.

    The error stated is that on runs held out one fold at a time, from among sizes like theirs; the
    error on the largest size, held out as a whole, is among the notes and says more of going on
    upwards.
    """

    law: Literal["task_ladder"] = "task_ladder"
    loss: str = Field(description="target that holds the task's loss")
    accuracy: str = Field(description="target that holds the task's accuracy, 0 to 1")
    delta: float = Field(
        default=1e-3,
        gt=0,
        description="residual of the logarithm of the loss from which Huber's loss is linear (as "
        "Hoffmann et al. 2022)",
    )
    starts: int = Field(default=32, ge=1, description="starts of each search")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Bhagia et al. 2024, Model Ladders, arXiv 2412.04403, eqs. 1 and 2"

    def least_runs(self, runs: Runs) -> int:
        return 5

    def prepared(self, runs: Runs) -> Runs:
        for name in ("size", "tokens"):
            if (runs.covariate(name) <= 0).any():
                raise UserError(f"task_ladder: {name!r} is 0 or less in some run")
        runs = runs.only([self.loss, self.accuracy])
        if (runs.losses[:, 0] <= 0).any():
            raise UserError(f"task_ladder: {self.loss!r} is 0 or less in some run")
        if ((runs.losses[:, 1] < 0) | (runs.losses[:, 1] > 1)).any():
            raise UserError(
                f"task_ladder: {self.accuracy!r} lies outside 0 to 1", mend="divide percentages"
            )
        return runs

    def train(self, runs: Runs, *, evidence: bool = True) -> "LadderModel":
        unit = np.array([np.exp(np.log(runs.covariate(n)).mean()) for n in ("size", "tokens")])
        loss = self._loss_law(runs, unit)
        accuracy = self._sigmoid(runs.losses[:, 0], runs.losses[:, 1])
        model = LadderModel(runs.targets, unit, loss, accuracy)
        if not evidence:
            return model
        largest = runs.covariate("size") == runs.covariate("size").max()
        rest = runs.take(~largest)
        if len(rest) <= self.least_runs(runs):
            return model
        away = self.train(rest, evidence=False).mean(runs.take(largest)) - runs.losses[largest]
        error = np.sqrt(np.mean(away**2, axis=0))
        note = f"error on the largest size, held out: loss {error[0]:.4f}, accuracy {error[1]:.4f}"
        return LadderModel(runs.targets, unit, loss, accuracy, (note,))

    def _loss_law(self, runs: Runs, unit: Floats) -> Floats:
        """log A, a, log B, b, log E at the units: float64 [5]."""
        logs = np.log(np.column_stack([runs.covariate(n) for n in ("size", "tokens")]) / unit)
        losses = np.log(runs.losses[:, 0])
        draws = np.random.default_rng(self.seed)
        level = losses.mean()
        start = np.column_stack(
            [
                level + draws.uniform(-4, 0, self.starts),
                draws.uniform(0.05, 0.8, self.starts),
                level + draws.uniform(-4, 0, self.starts),
                draws.uniform(0.05, 0.8, self.starts),
                level + draws.uniform(-2, 0, self.starts),
            ]
        )

        def objective(x: Floats, which: Ints) -> tuple[Floats, Floats]:
            by_size = np.exp(np.clip(x[:, :1] - x[:, 1:2] * logs[:, 0], -50, 50))
            by_tokens = np.exp(np.clip(x[:, 2:3] - x[:, 3:4] * logs[:, 1], -50, 50))
            floor = np.exp(np.clip(x[:, 4:5], -50, 50))
            total = by_size + by_tokens + floor
            value, slope = huber(np.log(total) - losses, self.delta)
            slope = slope / total
            parts = [
                by_size,
                -logs[:, 0] * by_size,
                by_tokens,
                -logs[:, 1] * by_tokens,
                floor + 0 * total,
            ]
            gradient = np.stack([(slope * part).mean(axis=1) for part in parts], axis=1)
            return value.mean(axis=1), gradient

        found = minimise(objective, start, iterations=1000)
        return np.asarray(found.x[found.value.argmin()])

    def _sigmoid(self, losses: Floats, accuracy: Floats) -> Floats:
        """low, high, k, L0: float64 [4]."""
        centre, spread = losses.mean(), max(float(losses.std()), 1e-12)
        scaled = (losses - centre) / spread
        draws = np.random.default_rng(self.seed)
        start = np.column_stack(
            [
                np.full(self.starts, accuracy.min()) - draws.uniform(0, 0.2, self.starts),
                np.full(self.starts, max(np.ptp(accuracy), 0.05))
                * draws.uniform(1, 3, self.starts),
                -draws.uniform(0.3, 4, self.starts),
                draws.uniform(-2, 2, self.starts),
            ]
        )

        def objective(x: Floats, which: Ints) -> tuple[Floats, Floats]:
            away = scaled - x[:, 3:4]
            share = 1 / (1 + np.exp(np.clip(-x[:, 2:3] * away, -50, 50)))
            value, slope = huber(x[:, :1] + x[:, 1:2] * share - accuracy, 0.05)
            steep = x[:, 1:2] * share * (1 - share)
            parts = [np.ones_like(share), share, steep * away, -steep * x[:, 2:3]]
            gradient = np.stack([(slope * part).mean(axis=1) for part in parts], axis=1)
            return value.mean(axis=1), gradient

        found = minimise(objective, start, iterations=1000)
        low, high, steep, middle = found.x[found.value.argmin()]
        return np.array([low, high, steep / spread, centre + spread * middle])

    def restore(self, state: Mapping[str, Any]) -> "LadderModel":
        return LadderModel(
            tuple(state["targets"]),
            floats(state["unit"]),
            floats(state["loss"]),
            floats(state["accuracy"]),
            tuple(state["told"]),
        )


@dataclass(frozen=True)
class LadderModel(Model):
    """The two steps.

    Attributes:
        unit: size and tokens that the first step counts in: float64 [2].
        loss: log A, a, log B, b and log E at those units: float64 [5].
        accuracy: low, high, k and L0: float64 [4].
    """

    targets: tuple[str, ...]
    unit: Floats
    loss: Floats
    accuracy: Floats
    told: tuple[str, ...] = ()

    def mean(self, inputs: Inputs) -> Floats:
        size, tokens = (
            np.log(inputs.covariate(name) / self.unit[place])
            for place, name in enumerate(("size", "tokens"))
        )
        a, power_a, b, power_b, floor = self.loss
        loss = np.exp(a - power_a * size) + np.exp(b - power_b * tokens) + np.exp(floor)
        low, high, steep, middle = self.accuracy
        accuracy = low + high / (1 + np.exp(np.clip(-steep * (loss - middle), -50, 50)))
        return np.column_stack([loss, accuracy])

    def coefficients(self) -> list[Coefficient]:
        a, power_a, b, power_b, floor = self.loss
        by_loss = {
            "A": np.exp(a) * self.unit[0] ** power_a,
            "a": power_a,
            "B": np.exp(b) * self.unit[1] ** power_b,
            "b": power_b,
            "E": np.exp(floor),
        }
        by_accuracy = dict(zip(("low", "high", "k", "L0"), self.accuracy, strict=True))
        return [
            Coefficient(target, name, float(value))
            for target, part in zip(self.targets, (by_loss, by_accuracy), strict=True)
            for name, value in part.items()
        ]

    def notes(self) -> list[str]:
        return list(self.told)

    def state(self) -> dict[str, Any]:
        return {
            "targets": list(self.targets),
            "unit": self.unit.tolist(),
            "loss": self.loss.tolist(),
            "accuracy": self.accuracy.tolist(),
            "told": list(self.told),
        }
