"""Several laws on one table of runs, ranked by their error on runs held out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.scoring.fits import law
from tamis.scoring.mixture_runs import Runs
from tamis.storage.errors import UserError

#: Laws of proportions that need nothing but a table.
COMPARED: tuple[Mapping[str, Any], ...] = (
    {"law": "mixing_law"},
    {"law": "mixing_law", "components": 2},
    {"law": "regmix"},
    {"law": "linear"},
    {"law": "bimix"},
    {"law": "autoscale"},
)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        rows: a law and target each, best first by target: ``target``, ``law``, ``rank``, ``rmse``,
            ``rmse_sd`` (standard deviation over folds), ``mae``, ``spearman`` (all held out) and
            ``in_sample_rmse``.
        laws: best first: ``law``, ``rank`` (mean over targets), ``rmse_relative`` (held-out error
            in units of the losses' standard deviation, mean over targets), ``spearman`` (mean),
            ``seconds``.
        refused: by law, why it could not be fitted.
    """

    rows: list[dict[str, Any]]
    laws: list[dict[str, Any]]
    refused: dict[str, str]


def compare(runs: Runs, laws: Sequence[Mapping[str, Any]] = COMPARED) -> Comparison:
    """Fit laws to one table and rank them; all hold the same mixtures out together.

    Args:
        laws: names and parameters, as in ``{"law": "mixing_law", "components": 2}``.

    Raises:
        UserError: if no law can be fitted.
    """
    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    spread = runs.losses.std(axis=0)
    for given in laws:
        params = dict(given)
        name = str(params.pop("law"))
        title = f"{name}({', '.join(f'{k}={v}' for k, v in params.items())})" if params else name
        begin = time.perf_counter()
        try:
            fitted = law(name, **params).fit(runs)
        except UserError as error:
            refused[title] = str(error).removeprefix(f"{name}: ")
            continue
        seconds[title] = time.perf_counter() - begin
        for target in fitted.targets:
            held = fitted.evidence["held_out"][target]
            rows.append(
                {
                    "target": target,
                    "law": title,
                    "rmse": held["rmse"],
                    "rmse_sd": float(np.std(held["rmse_folds"], ddof=1)),
                    "mae": held["mae"],
                    "spearman": held["spearman"],
                    "in_sample_rmse": fitted.evidence["in_sample"][target]["rmse"],
                }
            )
    if not rows:
        first = next(iter(refused.values()), "no law was named")
        raise UserError(f"no law could be fitted: {first}")
    rows = [
        {**row, "rank": place + 1}
        for target in runs.targets
        for place, row in enumerate(
            sorted((r for r in rows if r["target"] == target), key=lambda r: float(r["rmse"]))
        )
    ]
    summary = []
    for title, took in seconds.items():
        own = [row for row in rows if row["law"] == title]
        relative = [row["rmse"] / spread[runs.targets.index(row["target"])] for row in own]
        summary.append(
            {
                "law": title,
                "rank": float(np.mean([row["rank"] for row in own])),
                "rmse_relative": float(np.mean(relative)),
                "spearman": float(np.mean([row["spearman"] for row in own])),
                "seconds": took,
            }
        )
    return Comparison(rows, sorted(summary, key=lambda row: row["rmse_relative"]), refused)
