"""What a fit is: it sees a table of runs and returns a small object that predicts, with evidence.

A law is one class, registered by name: its fields are its parameters. Fitting holds out every run
once (cross-validation over distinct mixtures) before the law is fitted to all of them, so that the
object knows how far its predictions were off on runs that it had not seen. It is saved as JSON:
coefficients, the runs' digest, held-out residuals, versions. Nothing in it runs as code.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from threadpoolctl import threadpool_limits

from tamis.scoring.mixture_runs import Floats, Inputs, Ints, Runs, inputs_of
from tamis.storage.errors import UserError
from tamis.storage.files import read_json, write_json
from tamis.storage.places import place_of

FORMAT = "tamis fit 1"
#: Coverage of intervals where none is asked for.
LEVEL = 0.9


class Coefficient(NamedTuple):
    """A fitted number of a target, with its interval; NaN bounds where none was computed."""

    target: str
    name: str
    value: float
    low: float = math.nan
    high: float = math.nan


class Prediction(NamedTuple):
    """Predicted losses and their intervals: float64 [n, k] each."""

    value: Floats
    low: Floats
    high: Floats


class Model:
    """Fitted numbers of a law; what `Fitted` predicts with."""

    def mean(self, inputs: Inputs) -> Floats:
        """Predictions: float64 [n, k]."""
        raise NotImplementedError

    def gradient(self, inputs: Inputs) -> Floats | None:
        """Derivatives by the proportions, float64 [n, k, d]; None where there are none."""
        return None

    def only(self, places: Sequence[int]) -> "Model":
        """A model that predicts some of the targets, by their numbers, in less time."""
        return _Part(self, list(places))

    def coefficients(self) -> list[Coefficient]:
        """Fitted numbers that a reader can interpret."""
        return []

    def notes(self) -> list[str]:
        """What a reader of the fit must know."""
        return []

    def state(self) -> dict[str, Any]:
        """The fitted numbers as JSON."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Part(Model):
    """Some targets of a model that has no quicker way to predict them alone."""

    whole: Model
    places: list[int]

    def mean(self, inputs: Inputs) -> Floats:
        return self.whole.mean(inputs)[:, self.places]

    def gradient(self, inputs: Inputs) -> Floats | None:
        found = self.whole.gradient(inputs)
        return None if found is None else found[:, self.places]


class Fit(BaseModel):
    """Base of every law; one that can be used sets ``law: Literal["its_name"]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    law: str = ""
    folds: int = Field(
        default=5, ge=2, description="parts that runs are held out in, for the error stated"
    )
    seed: int = Field(default=42, ge=0, description="of what is drawn; 42 as published for RegMix")

    kind: ClassVar[str] = "fit"
    version: ClassVar[int]
    paper: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        # A class that only inherits a law's name is no law of that name.
        if "law" in get_annotations(cls) and cls.model_fields["law"].default:
            LAWS[cls.model_fields["law"].default] = cls

    def least_runs(self, runs: Runs) -> int:
        """Different mixtures (or runs) that it takes: as many as it has parameters a target."""
        raise NotImplementedError

    def prepared(self, runs: Runs) -> Runs:
        """The runs as the law reads them.

        Raises:
            UserError: if they lack what it reads.
        """
        return runs

    def train(self, runs: Runs, *, evidence: bool = True) -> Model:
        """Fit to all of these runs.

        Args:
            evidence: compute intervals of coefficients; not wanted of folds.
        """
        raise NotImplementedError

    def resampled(self, runs: Runs, model: Model, count: int, seed: int) -> list[Model]:
        """Models of as many bootstrap resamples over mixtures: how far they are apart tells how
        sure the law is of what it predicts, and where.

        Args:
            model: what `train` made of these runs.

        Raises:
            UserError: if the law cannot be fitted to most resamples.
        """
        draws = np.random.default_rng([seed, 1])
        group = runs.groups()
        found: list[Model] = []
        for _ in range(3 * count):
            chosen = np.bincount(draws.integers(group.max() + 1, size=group.max() + 1))
            times = np.append(chosen, np.zeros(group.max() + 1 - len(chosen), np.int64))
            rows = np.repeat(np.arange(len(runs)), times[group])
            try:
                found.append(self.train(runs.take(rows), evidence=False))
            except UserError:
                continue  # A resample may lack a domain; another takes its place.
            if len(found) == count:
                return found
        raise UserError(
            f"{self.law} could not be fitted to {3 * count - len(found)} of {3 * count} resamples "
            "of the runs",
            mend="add runs that have the domains in other proportions",
        )

    def restore(self, state: Mapping[str, Any]) -> Model:
        """What `Model.state` gave, as the model again."""
        raise NotImplementedError

    def fit(self, runs: Runs) -> "Fitted":
        """Fit to runs, and state the error on runs held out.

        Raises:
            UserError: if there are fewer runs than the law has parameters, or it cannot be fitted
                to them.
        """
        # The order of sums, and with it the last digits, would depend on BLAS's threads.
        with threadpool_limits(limits=1, user_api="blas"):
            return self._fit(self.prepared(runs))

    def _fit(self, runs: Runs) -> "Fitted":
        self.check(runs)
        fold = folds_of(runs, self.folds, self.seed)
        predicted = np.empty_like(runs.losses)
        for number in range(fold.max() + 1):
            held = fold == number
            predicted[held] = self.train(runs.take(~held), evidence=False).mean(runs.take(held))
        model = self.train(runs)
        return Fitted(
            fit=self,
            domains=runs.domains,
            targets=runs.targets,
            model=model,
            evidence=evidence_of(runs, fold, predicted, model.mean(runs), self.seed),
        )

    def check(self, runs: Runs) -> None:
        """Raise if the runs are too few, also where a fold is held out."""
        if not runs.targets:
            raise UserError("no target to fit", mend="name a column of losses")
        groups = int(runs.groups().max()) + 1
        wanted = self.least_runs(runs)
        rest = groups - math.ceil(groups / min(self.folds, groups))
        if groups < 2 or rest < wanted:
            most = min(self.folds, max(groups, 2))
            enough = math.ceil(wanted * most / (most - 1))
            what = "mixtures" if runs.domains else "runs"
            raise UserError(
                f"{self.law} takes at least {wanted} different {what}, and {groups} leave {rest} "
                f"when one of {most} parts is held out",
                mend=f"at least {max(enough, 2)} are needed, several times as many are better",
            )


LAWS: dict[str, type[Fit]] = {}


def law(name: str, **params: Any) -> Fit:
    """The law registered under a name, with parameters.

    Raises:
        UserError: if there is none, or a parameter does not fit.
    """
    load_laws()
    if name not in LAWS:
        raise UserError(f"no law named {name!r}", mend=f"known: {', '.join(sorted(LAWS))}")
    try:
        return LAWS[name](**params)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(map(str, problem["loc"])) or name
        raise UserError(f"{name}: {path}: {problem['msg']}") from None


def load_laws() -> dict[str, type[Fit]]:
    """All laws by name."""
    # Importing a law registers it; a new one is added here.
    from importlib import import_module

    for module in ("mixing_law", "regmix", "power_forms", "loss_to_loss", "task_ladder"):
        import_module(f"tamis.scoring.{module}")
    return dict(sorted(LAWS.items()))


@dataclass(frozen=True)
class Fitted:
    """A law fitted to runs, with its evidence.

    Attributes:
        evidence: ``digest`` of the runs, ``runs``, ``fold`` of every run, ``held_out`` and
            ``in_sample`` by target (``rmse``, ``mae``, ``spearman``; held out also ``rmse_folds``),
            ``residuals`` (observed minus predicted, held out, a number a run), ``domains`` (least
            and largest proportion seen), ``notes``, ``libraries``.
    """

    fit: Fit
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    model: Model
    evidence: dict[str, Any]

    def inputs(self, mixtures: "npt.ArrayLike | Inputs", **covariates: float) -> Inputs:
        """Mixtures [n, d] in the order of `domains`, as this law reads them."""
        if isinstance(mixtures, Inputs):
            return mixtures
        return inputs_of(self.domains, mixtures, **covariates)

    def predict(
        self, mixtures: "npt.ArrayLike | Inputs", *, level: float = LEVEL, **covariates: float
    ) -> Prediction:
        """Predicted losses with intervals.

        The half-width is the quantile of held-out residuals that split conformal prediction takes:
        the ceil((n + 1) level)-th smallest (Vovk et al. 2005), from all folds together. It covers
        a new run drawn as the runs were at about `level`; it promises nothing for mixtures unlike
        them, nor for a mixture that was picked because its prediction is low.

        Args:
            mixtures: float64 [n, d], or inputs.
            level: share of new runs that intervals shall hold.
            covariates: steps, size or what else the law reads, the same for all mixtures.

        Raises:
            UserError: for proportions that do not fit, or a covariate that is not given.
        """
        value = self.model.mean(self.inputs(mixtures, **covariates))
        half = self.half_width(level)
        return Prediction(value, value - half, value + half)

    def half_width(self, level: float = LEVEL) -> Floats:
        """Half of an interval's width, by target: float64 [k]; infinite where runs are too few."""
        found = np.empty(len(self.targets))
        for place, target in enumerate(self.targets):
            away = np.sort(np.abs(self.evidence["residuals"][target]))
            rank = math.ceil((len(away) + 1) * level)
            found[place] = away[rank - 1] if rank <= len(away) else np.inf
        return found

    def save(self, path: "str | Path") -> None:
        """Write as JSON."""
        write_json(
            place_of(str(path)),
            _plain(
                {
                    "format": FORMAT,
                    "law": self.fit.model_dump(mode="json"),
                    "version": self.fit.version,
                    "paper": self.fit.paper,
                    "domains": list(self.domains),
                    "targets": list(self.targets),
                    "model": self.model.state(),
                    "coefficients": [c._asdict() for c in self.model.coefficients()],
                    "evidence": self.evidence,
                }
            ),
        )


def _plain(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_fit(path: "str | Path") -> Fitted:
    """A fit that was saved.

    Raises:
        UserError: if there is no such file, or it is no fit of this version.
    """
    place = place_of(str(path))
    try:
        saved = read_json(place)
    except FileNotFoundError:
        raise UserError(
            "no such file", where=str(path), mend="`tamis mix fit` writes one"
        ) from None
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=str(path)) from None
    if saved.get("format") != FORMAT:
        raise UserError(
            f"expected {FORMAT!r}, found {saved.get('format')!r}",
            where=str(path),
            mend="give a file that `tamis mix fit` of this version wrote",
        )
    fit = law(saved["law"].pop("law"), **saved["law"])
    if saved["version"] != fit.version:
        raise UserError(
            f"{fit.law} of version {saved['version']}, and this one has {fit.version}",
            where=str(path),
            mend="fit again",
        )
    return Fitted(
        fit=fit,
        domains=tuple(saved["domains"]),
        targets=tuple(saved["targets"]),
        model=fit.restore(saved["model"]),
        evidence=saved["evidence"],
    )


def folds_of(runs: Runs, folds: int, seed: int) -> Ints:
    """Part that a run is held out in: int64 [n]; runs of one mixture lie in one part.

    Mixtures are shuffled in the order of their proportions, so that the order of runs is nothing
    to it.
    """
    group = runs.groups()
    count = int(group.max()) + 1
    if runs.domains:
        keys = runs.mixtures
    else:
        keys = np.column_stack([*runs.covariates.values(), runs.losses])
    _, first = np.unique(group, return_index=True)
    sort = np.lexsort(keys[first].T[::-1])
    shuffled = np.random.default_rng(seed).permutation(count)
    part = np.empty(count, np.int64)
    part[sort[shuffled]] = np.arange(count) % min(folds, count)
    return part[group]


def evidence_of(
    runs: Runs, fold: Ints, held_out: Floats, in_sample: Floats, seed: int
) -> dict[str, Any]:
    """What `Fitted.evidence` holds."""
    return {
        "digest": runs.digest(),
        "runs": len(runs),
        "mixtures": int(runs.groups().max()) + 1,
        "seed": seed,
        "fold": fold.tolist(),
        "held_out": {
            target: {
                **errors_of(runs.losses[:, k], held_out[:, k]),
                "rmse_folds": [
                    errors_of(runs.losses[fold == f, k], held_out[fold == f, k])["rmse"]
                    for f in range(fold.max() + 1)
                ],
            }
            for k, target in enumerate(runs.targets)
        },
        "in_sample": {
            target: errors_of(runs.losses[:, k], in_sample[:, k])
            for k, target in enumerate(runs.targets)
        },
        "residuals": {
            target: (runs.losses[:, k] - held_out[:, k]).tolist()
            for k, target in enumerate(runs.targets)
        },
        "domains": {
            name: [float(runs.mixtures[:, j].min()), float(runs.mixtures[:, j].max())]
            for j, name in enumerate(runs.domains)
        },
        "notes": list(runs.notes),
        "libraries": _libraries(),
    }


def errors_of(observed: Floats, predicted: Floats) -> dict[str, float]:
    """Root mean square and mean absolute error, and Spearman's rank correlation.

    Example:
        >>> errors_of(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))["spearman"]
        1.0
    """
    away = observed - predicted
    return {
        "rmse": float(np.sqrt(np.mean(away**2))),
        "mae": float(np.mean(np.abs(away))),
        "spearman": spearman(observed, predicted),
    }


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one side never changes."""
    ranks = [_ranks(values) for values in (a, b)]
    centred = [r - r.mean() for r in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum() / scale) if scale > 0 else math.nan


def _ranks(values: Floats) -> Floats:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group])


def _libraries() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("tamis", "numpy", "scipy", "lightgbm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def floats(values: Sequence[Any]) -> Floats:
    """An array from JSON, NaN where that has null."""
    return np.asarray(values, np.float64)
