"""Loss-to-loss prediction: the loss on one corpus from that on another, by a shifted power law.

Brandfonbrener et al., Loss-to-Loss Prediction: Scaling Laws for All Datasets (2024, arXiv
2411.12925): L1 = K (L0 - E0)^kappa + E1, over runs paired by compute (train to train) or by model
(train to test, test to test).
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


class LossToLoss(Fit):
    """Loss-to-loss: a target's loss as a shifted power law of the loss in another column."""

    law: Literal["loss_to_loss"] = "loss_to_loss"
    source: str = Field(description="column of the loss to predict from, read as a covariate")
    source_floor: float | None = Field(
        default=None,
        description="E0, the loss that scaling laws of its own give the source (as published); "
        "fitted too if not given",
    )
    delta: float = Field(default=0.02, gt=0, description="as of mixing_law")
    starts: int = Field(default=16, ge=1, description="starts of the search, per target")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Brandfonbrener et al. 2024, Loss-to-Loss Prediction, arXiv 2411.12925"

    def least_runs(self, runs: Runs) -> int:
        return 3 if self.source_floor is not None else 4

    def prepared(self, runs: Runs) -> Runs:
        x = runs.covariate(self.source)
        if np.ptp(x) == 0:
            raise UserError(f"{self.source!r} is {x[0]:g} in all runs: nothing to predict from")
        if self.source_floor is not None and self.source_floor >= x.min():
            raise UserError(
                f"source_floor is {self.source_floor:g}, and a run has {x.min():g}",
                mend="give a floor below every loss",
            )
        return runs

    def train(self, runs: Runs, *, evidence: bool = True) -> "LossToLossModel":
        x = runs.covariate(self.source)
        least, span = float(x.min()), max(float(np.ptp(x)), 1e-12)
        scaled = (x - least) / span
        centre, spread = runs.losses.mean(axis=0), np.maximum(runs.losses.std(axis=0), 1e-12)
        losses = ((runs.losses - centre) / spread).T
        fixed = None if self.source_floor is None else (least - self.source_floor) / span
        target = np.repeat(np.arange(len(centre)), self.starts)
        draws = np.random.default_rng(self.seed)
        # log K, log kappa, E1 and, unless it is given, the log of how far E0 lies below the runs.
        start = np.column_stack(
            [
                draws.uniform(-1, 1.5, len(target)),
                draws.uniform(-1, 1, len(target)),
                losses.min(axis=1)[target] - draws.uniform(0, 2, len(target)),
                draws.uniform(-4, 2, len(target)),
            ]
        )[:, : 3 if fixed is not None else 4]

        def objective(x: Floats, which: Ints) -> tuple[Floats, Floats]:
            below = (
                np.exp(np.clip(x[:, 3:4], -20, 20))
                if fixed is None
                else np.full((len(x), 1), fixed)
            )
            power = np.exp(np.clip(x[:, 1:2], -20, 5))
            above = np.log(scaled + below)
            term = np.exp(np.clip(x[:, :1] + power * above, -50, 50))
            loss, slope = huber(
                term + x[:, 2:3] - losses[target[which]],
                self.delta / spread[target[which]][:, None],
            )
            parts = [term, term * power * above, np.ones_like(term)]
            if fixed is None:
                parts.append(term * power * below / (scaled + below))
            gradient = np.stack([(slope * part).mean(axis=1) for part in parts], axis=1)
            return loss.mean(axis=1), gradient

        found = minimise(objective, start)
        best = found.value.reshape(len(centre), self.starts).argmin(axis=1)
        numbers = found.x[np.arange(len(centre)) * self.starts + best]
        power = np.exp(np.clip(numbers[:, 1], -20, 5))
        below = np.exp(np.clip(numbers[:, 3], -20, 20)) if fixed is None else fixed
        return LossToLossModel(
            runs.targets,
            self.source,
            factor=spread * np.exp(numbers[:, 0]) * span**-power,
            power=power,
            source_floor=np.broadcast_to(least - span * below, power.shape).copy(),
            floor=centre + spread * numbers[:, 2],
        )

    def restore(self, state: Mapping[str, Any]) -> "LossToLossModel":
        return LossToLossModel(
            tuple(state["targets"]),
            state["source"],
            floats(state["factor"]),
            floats(state["power"]),
            floats(state["source_floor"]),
            floats(state["floor"]),
        )


@dataclass(frozen=True)
class LossToLossModel(Model):
    """Shifted power laws: K, kappa, E0 and E1 by target, float64 [k] each."""

    targets: tuple[str, ...]
    source: str
    factor: Floats
    power: Floats
    source_floor: Floats
    floor: Floats

    def mean(self, inputs: Inputs) -> Floats:
        above = np.maximum(inputs.covariate(self.source)[:, None] - self.source_floor, 0)
        return np.asarray(self.factor * above**self.power + self.floor)

    def coefficients(self) -> list[Coefficient]:
        names = {
            "K": self.factor,
            "kappa": self.power,
            "E0": self.source_floor,
            "E1": self.floor,
        }
        return [
            Coefficient(target, name, float(values[k]))
            for k, target in enumerate(self.targets)
            for name, values in names.items()
        ]

    def state(self) -> dict[str, Any]:
        return {
            "targets": list(self.targets),
            "source": self.source,
            **{
                name: getattr(self, name).tolist()
                for name in ("factor", "power", "source_floor", "floor")
            },
        }
