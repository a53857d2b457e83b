"""Power laws of the proportions, as comparison: BiMix and AutoScale.

Both papers are named below; their formulae as given here are unconfirmed where it says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tamis.scoring.fits import Coefficient, Fit, Model, floats
from tamis.scoring.lbfgs import huber, minimise
from tamis.scoring.mixture_runs import LOSS, Floats, Inputs, Ints, Runs
from tamis.storage.errors import UserError

#: Exponents of e are cut off here.
_STEEPEST = 50.0


class BiMix(Fit):
    """BiMix: a domain's loss falls as a power of its own proportion, and of the steps.

    L_i = r_i^-alpha (B s^-beta + C), where one of the paper's five numbers a domain, a common
    factor, is part of B and C. The form is from memory of the paper and unconfirmed; so is the
    floor on proportions, which the form needs wherever one is 0. Without a column `steps` it is
    C r_i^-alpha.
    """

    law: Literal["bimix"] = "bimix"
    own: dict[str, str] = Field(
        default={},
        description="the domain whose loss a target is; that of its name without `loss_` if not",
    )
    least: float = Field(
        default=1e-3, gt=0, lt=1, description="proportions below count as this (unconfirmed)"
    )
    delta: float = Field(default=0.02, gt=0, description="as of mixing_law")
    starts: int = Field(default=8, ge=1, description="starts of the search, per target")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Ge et al. 2024, BiMix, arXiv 2405.14908 (formula unconfirmed)"

    def least_runs(self, runs: Runs) -> int:
        return 4 if "steps" in runs.covariates else 2

    def prepared(self, runs: Runs) -> Runs:
        for target in runs.targets:
            self._own(target, runs.domains)
        if "steps" in runs.covariates and np.ptp(runs.covariates["steps"]) == 0:
            rest = {k: v for k, v in runs.covariates.items() if k != "steps"}
            runs = Runs(runs.domains, runs.mixtures, rest, runs.targets, runs.losses, runs.notes)
        if (runs.losses <= 0).any():
            raise UserError("bimix: a loss is 0 or less", mend="leave such targets out")
        return runs

    def _own(self, target: str, domains: tuple[str, ...]) -> int:
        domain = self.own.get(target, target.removeprefix(LOSS))
        if domain not in domains:
            raise UserError(
                f"bimix: {target!r} is the loss of no domain of the mixtures",
                mend="name its domain with own={target: domain}, or leave the target out",
            )
        return domains.index(domain)

    def train(self, runs: Runs, *, evidence: bool = True) -> "BiMixModel":
        own = np.array([self._own(target, runs.domains) for target in runs.targets])
        steps = runs.covariates.get("steps")
        unit = float(np.exp(np.log(steps).mean())) if steps is not None else 1.0
        # By target: float64 [k, n].
        shares = np.log(np.maximum(runs.mixtures[:, own], self.least)).T
        time = np.log(steps / unit) if steps is not None else None
        losses = runs.losses.T
        target = np.repeat(np.arange(len(own)), self.starts)
        draws = np.random.default_rng(self.seed)
        start = np.zeros((len(target), 2 if time is None else 4))
        start[:, 0] = draws.uniform(0.01, 0.5, len(target))
        start[:, 1] = (
            np.log(losses.mean(axis=1))[target] + start[:, 0] * shares.mean(axis=1)[target]
        )
        if time is not None:
            start[:, 1] -= np.log(2)
            start[:, 2] = start[:, 1]
            start[:, 3] = draws.uniform(0.05, 0.8, len(target))

        def objective(x: Floats, which: Ints) -> tuple[Floats, Floats]:
            share = shares[target[which]]
            front = np.exp(np.clip(-x[:, :1] * share, -_STEEPEST, _STEEPEST))
            floor = np.exp(np.minimum(x[:, 1:2], _STEEPEST))
            falling = 0.0 * share
            if time is not None:
                falling = np.exp(np.clip(x[:, 2:3] - x[:, 3:4] * time, -_STEEPEST, _STEEPEST))
            predicted = front * (floor + falling)
            loss, slope = huber(predicted - losses[target[which]], self.delta)
            parts = [-share * predicted, front * floor]
            if time is not None:
                parts += [front * falling, -time * front * falling]
            gradient = np.stack([(slope * part).mean(axis=1) for part in parts], axis=1)
            return loss.mean(axis=1), gradient

        found = minimise(objective, start)
        best = found.value.reshape(len(own), self.starts).argmin(axis=1)
        numbers = found.x[np.arange(len(own)) * self.starts + best]
        return BiMixModel(runs.domains, runs.targets, own, numbers, self.least, unit)

    def restore(self, state: Mapping[str, Any]) -> "BiMixModel":
        return BiMixModel(
            tuple(state["domains"]),
            tuple(state["targets"]),
            np.array(state["own"], np.int64),
            floats(state["numbers"]),
            state["least"],
            state["unit"],
        )


@dataclass(frozen=True)
class BiMixModel(Model):
    """Fitted BiMix laws.

    Attributes:
        own: number of each target's domain: int64 [k].
        numbers: alpha, log C, and with steps log B (at `unit` steps) and beta: float64 [k, 2 or 4].
    """

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    own: Ints
    numbers: Floats
    least: float
    unit: float

    def mean(self, inputs: Inputs) -> Floats:
        share = np.maximum(inputs.mixtures[:, self.own], self.least)
        inner = np.exp(self.numbers[:, 1])
        if self.numbers.shape[1] == 4:
            time = inputs.covariate("steps")[:, None] / self.unit
            inner = inner + np.exp(self.numbers[:, 2]) * time ** -self.numbers[:, 3]
        return np.asarray(share ** -self.numbers[:, 0] * inner)

    def gradient(self, inputs: Inputs) -> Floats:
        share = inputs.mixtures[:, self.own]
        found = np.zeros((len(inputs), len(self.own), len(self.domains)))
        slope = -self.numbers[:, 0] * self.mean(inputs) / np.maximum(share, self.least)
        found[:, np.arange(len(self.own)), self.own] = np.where(share >= self.least, slope, 0)
        return found

    def coefficients(self) -> list[Coefficient]:
        found = []
        for target, row in zip(self.targets, self.numbers, strict=True):
            found += [
                Coefficient(target, "alpha", float(row[0])),
                Coefficient(target, "C", float(np.exp(row[1]))),
            ]
            if len(row) == 4:
                found += [
                    Coefficient(target, "B", float(np.exp(row[2]) * self.unit ** row[3])),
                    Coefficient(target, "beta", float(row[3])),
                ]
        return found

    def state(self) -> dict[str, Any]:
        return {
            "domains": list(self.domains),
            "targets": list(self.targets),
            "own": self.own.tolist(),
            "numbers": self.numbers.tolist(),
            "least": self.least,
            "unit": self.unit,
        }


class AutoScale(Fit):
    """AutoScale's first stage: each domain lowers the loss by a power of its amount.

    L / mean(L) = c + sum_j (n_j + a_j)^-g_j with amounts n_j in units of the runs' mean. The terms
    are those of the authors' public notebook, which fits them one domain at a time to runs with
    three times and a third of it; fitting them together to any table is ours. Its second stage, the
    way of the optimum with scale, is not built.
    """

    law: Literal["autoscale"] = "autoscale"
    delta: float = Field(default=0.02, gt=0, description="as of mixing_law")
    starts: int = Field(default=4, ge=1, description="starts of the search, per target")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Kang et al. 2024, AutoScale, arXiv 2407.20177 (joint fit ours)"

    def least_runs(self, runs: Runs) -> int:
        return 1 + 2 * len(runs.domains)

    def train(self, runs: Runs, *, evidence: bool = True) -> "AutoScaleModel":
        if not runs.domains:
            raise UserError(f"{self.law} reads proportions, and the runs have none")
        unit, scale = runs.mixtures.mean(axis=0), runs.losses.mean(axis=0)
        if (scale <= 0).any():
            raise UserError(
                "autoscale: a target's mean is 0 or less", mend="leave such targets out"
            )
        # Where a part of the runs is held out, the rest may lack a rare domain.
        unit = np.where(unit > 0, unit, unit.mean())
        amounts = runs.mixtures / unit
        relative = (runs.losses / scale).T
        width = len(unit)
        target = np.repeat(np.arange(len(scale)), self.starts)
        draws = np.random.default_rng(self.seed)
        start = np.zeros((len(target), 1 + 2 * width))
        start[:, 1 : 1 + width] = draws.normal(0, 0.5, (len(target), width))
        start[:, 1 + width :] = draws.uniform(-5, -2, (len(target), width))
        start[:, 0] = 1 - width

        def objective(x: Floats, which: Ints) -> tuple[Floats, Floats]:
            terms, base, power, logs = _autoscale_terms(x, amounts)
            away = x[:, :1] + terms.sum(axis=2) - relative[target[which]]
            loss, slope = huber(away, self.delta / scale[target[which]][:, None])
            by_power = -logs * power[:, None] * terms
            by_base = -(power * base)[:, None] * terms / (amounts + base[:, None])
            gradient = np.concatenate(
                [
                    slope.mean(axis=1, keepdims=True),
                    np.einsum("bn,bnd->bd", slope, by_base) / len(amounts),
                    np.einsum("bn,bnd->bd", slope, by_power) / len(amounts),
                ],
                axis=1,
            )
            return loss.mean(axis=1), gradient

        found = minimise(objective, start, iterations=300)
        best = found.value.reshape(len(scale), self.starts).argmin(axis=1)
        numbers = found.x[np.arange(len(scale)) * self.starts + best]
        return AutoScaleModel(runs.domains, runs.targets, unit, scale, numbers)

    def restore(self, state: Mapping[str, Any]) -> "AutoScaleModel":
        return AutoScaleModel(
            tuple(state["domains"]),
            tuple(state["targets"]),
            floats(state["unit"]),
            floats(state["scale"]),
            floats(state["numbers"]),
        )


def _autoscale_terms(x: Floats, amounts: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Terms [b, n, d], a and g [b, d], and log(n + a) [b, n, d]."""
    width = amounts.shape[1]
    base = np.exp(np.clip(x[:, 1 : 1 + width], -20, 20))
    power = np.exp(np.clip(x[:, 1 + width :], -20, 5))
    logs = np.log(amounts + base[:, None])
    return np.exp(np.clip(-power[:, None] * logs, -_STEEPEST, _STEEPEST)), base, power, logs


@dataclass(frozen=True)
class AutoScaleModel(Model):
    """Fitted AutoScale terms.

    Attributes:
        unit: mean proportions, in which amounts are counted: float64 [d].
        scale: mean losses: float64 [k].
        numbers: c, log a and log g: float64 [k, 1 + 2 d].
    """

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    unit: Floats
    scale: Floats
    numbers: Floats

    def mean(self, inputs: Inputs) -> Floats:
        terms, *_ = _autoscale_terms(self.numbers, inputs.mixtures / self.unit)
        return np.asarray(self.scale * (self.numbers[:, 0] + terms.sum(axis=2).T))

    def gradient(self, inputs: Inputs) -> Floats:
        amounts = inputs.mixtures / self.unit
        terms, base, power, _ = _autoscale_terms(self.numbers, amounts)
        slope = -power[:, None] * terms / (amounts + base[:, None]) / self.unit
        return np.asarray(slope.transpose(1, 0, 2) * self.scale[:, None])

    def coefficients(self) -> list[Coefficient]:
        width = len(self.domains)
        found = []
        for k, target in enumerate(self.targets):
            row = self.numbers[k]
            found.append(Coefficient(target, "c", float(row[0] * self.scale[k])))
            for j, domain in enumerate(self.domains):
                found.append(Coefficient(target, f"a[{domain}]", float(np.exp(row[1 + j]))))
                found.append(Coefficient(target, f"g[{domain}]", float(np.exp(row[1 + width + j]))))
        return found

    def state(self) -> dict[str, Any]:
        return {
            "domains": list(self.domains),
            "targets": list(self.targets),
            "unit": self.unit.tolist(),
            "scale": self.scale.tolist(),
            "numbers": self.numbers.tolist(),
        }
