"""RegMix: the loss as a regression on the proportions, by boosted trees or linear.

Liu et al., RegMix: Data Mixture as Regression for Language Model Pre-training (2024, arXiv
2407.01492). The published notebook stops boosting by the loss on its test set, which then is no
test: here training rows are held out for it (`stopping` of `RegMix.train` reproduces the published
figures).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tamis.scoring.fits import LEVEL, Coefficient, Fit, Model, floats, folds_of
from tamis.scoring.mixture_runs import Floats, Inputs, Runs
from tamis.scoring.model_files import need_package
from tamis.scoring.tree_ensemble import MOST_LEAVES, TreeEnsemble, ensemble_of
from tamis.storage.errors import UserError


class RegMix(Fit):
    """RegMix: gradient-boosted trees (LightGBM) on the proportions, per target.

    Boosting stops when the loss on training rows that are held out for it has not fallen for
    `early_stopping` trees; of a whole mixture all runs are held out together.
    """

    law: Literal["regmix"] = "regmix"
    trees: int = Field(default=1000, ge=1, description="most trees (published)")
    learning_rate: float = Field(default=0.01, gt=0, le=1, description="shrinkage (published)")
    early_stopping: int = Field(
        default=3, ge=1, description="trees without gain before boosting stops (published)"
    )
    hold_out: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of training mixtures that early stopping looks at (unconfirmed: the "
        "published notebook looks at its test set)",
    )
    leaves: int = Field(
        default=31, ge=2, le=MOST_LEAVES, description="most leaves of a tree (LightGBM's default)"
    )
    leaf_rows: int = Field(
        default=20, ge=1, description="least runs of a leaf (LightGBM's default)"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Liu et al. 2024, RegMix, arXiv 2407.01492, section 3"

    def least_runs(self, runs: Runs) -> int:
        # Below this LightGBM can make no split at all.
        return 2 * self.leaf_rows + 2

    def prepared(self, runs: Runs) -> Runs:
        if not runs.domains:
            raise UserError(f"{self.law} reads proportions, and the runs have none")
        return runs

    def train(
        self, runs: Runs, *, evidence: bool = True, stopping: Runs | None = None
    ) -> "TreesModel":
        """Fit to runs.

        Args:
            stopping: runs whose loss stops the boosting, in place of rows held out; giving a test
                set reproduces the published figures, and is no test any more.
        """
        need_package("lightgbm", "regmix", "mixtures")
        import lightgbm

        if stopping is None:
            held = folds_of(runs, max(2, round(1 / self.hold_out)), self.seed) == 0
            runs, stopping = runs.take(~held), runs.take(held)
        params = {
            "boosting": "gbdt",
            "objective": "regression",
            # Boosting stops by whichever of the two stops first, as published.
            "metric": ["l1", "l2"],
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.leaf_rows,
            "seed": self.seed,
            "verbosity": -1,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
        }
        found = []
        with TemporaryDirectory() as folder:
            file = Path(folder, "trees.txt")
            for place in range(len(runs.targets)):
                data = lightgbm.Dataset(runs.mixtures, runs.losses[:, place], params=params)
                seen = data.create_valid(stopping.mixtures, stopping.losses[:, place])
                booster = lightgbm.train(
                    params,
                    data,
                    self.trees,
                    valid_sets=[seen],
                    callbacks=[lightgbm.early_stopping(self.early_stopping, verbose=False)],
                    keep_training_booster=True,  # else it is written as text and read again
                )
                # The same text as of `model_to_string`, which writes long ones twice.
                booster.save_model(file, num_iteration=booster.best_iteration)
                found.append(file.read_text(encoding="utf-8"))
        return TreesModel(runs.targets, len(runs.domains), tuple(found))

    def restore(self, state: Mapping[str, Any]) -> "TreesModel":
        return TreesModel(tuple(state["targets"]), state["features"], tuple(state["trees"]))


@dataclass(frozen=True)
class TreesModel(Model):
    """Boosted trees.

    Attributes:
        trees: LightGBM's text of the model of each target.
    """

    targets: tuple[str, ...]
    features: int
    trees: tuple[str, ...]

    @cached_property
    def ensembles(self) -> tuple[TreeEnsemble, ...]:
        return tuple(ensemble_of(text, self.features) for text in self.trees)

    def mean(self, inputs: Inputs) -> Floats:
        return np.column_stack([trees.predict(inputs.mixtures) for trees in self.ensembles])

    def only(self, places: Sequence[int]) -> "TreesModel":
        kept = [(self.targets[place], self.trees[place]) for place in places]
        return TreesModel(
            tuple(target for target, _ in kept), self.features, tuple(trees for _, trees in kept)
        )

    def coefficients(self) -> list[Coefficient]:
        return [
            Coefficient(target, "trees", float(len(trees.leaves)))
            for target, trees in zip(self.targets, self.ensembles, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        return {
            "targets": list(self.targets),
            "features": self.features,
            "trees": list(self.trees),
        }


class Linear(Fit):
    """Linear regression on the proportions (RegMix's other regressor), per target.

    As proportions sum to 1 there is no intercept: a coefficient is the loss predicted for that
    domain alone. Their intervals are those of least squares with normal residuals.
    """

    law: Literal["linear"] = "linear"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Liu et al. 2024, RegMix, arXiv 2407.01492, section 3"

    def least_runs(self, runs: Runs) -> int:
        return len(runs.domains)

    def prepared(self, runs: Runs) -> Runs:
        if not runs.domains:
            raise UserError(f"{self.law} reads proportions, and the runs have none")
        return runs

    def train(self, runs: Runs, *, evidence: bool = True) -> "LinearModel":
        weights, _, rank, _ = np.linalg.lstsq(runs.mixtures, runs.losses)
        half = np.full(weights.shape, np.nan)
        spare = len(runs) - rank
        if evidence and rank == len(runs.domains) and spare > 0:
            need_package("scipy", "an interval of least squares", "mixtures")
            from scipy.stats import t

            away = runs.losses - runs.mixtures @ weights
            inverse = np.linalg.inv(runs.mixtures.T @ runs.mixtures)
            error = np.sqrt(np.outer(np.diag(inverse), (away**2).sum(axis=0) / spare))
            half = t.ppf((1 + LEVEL) / 2, spare) * error
        return LinearModel(runs.domains, runs.targets, np.asarray(weights, np.float64), half)

    def restore(self, state: Mapping[str, Any]) -> "LinearModel":
        return LinearModel(
            tuple(state["domains"]),
            tuple(state["targets"]),
            floats(state["weights"]),
            floats(state["half"]),
        )


@dataclass(frozen=True)
class LinearModel(Model):
    """Least squares: weights and half-widths of their intervals, float64 [d, k]."""

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    weights: Floats
    half: Floats

    def mean(self, inputs: Inputs) -> Floats:
        return np.asarray(inputs.mixtures @ self.weights)

    def gradient(self, inputs: Inputs) -> Floats:
        return np.broadcast_to(self.weights.T, (len(inputs), *self.weights.T.shape))

    def coefficients(self) -> list[Coefficient]:
        return [
            Coefficient(
                target,
                domain,
                float(self.weights[j, k]),
                float(self.weights[j, k] - self.half[j, k]),
                float(self.weights[j, k] + self.half[j, k]),
            )
            for k, target in enumerate(self.targets)
            for j, domain in enumerate(self.domains)
        ]

    def state(self) -> dict[str, Any]:
        return {
            "domains": list(self.domains),
            "targets": list(self.targets),
            "weights": self.weights.tolist(),
            "half": self.half.tolist(),
        }
