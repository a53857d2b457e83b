"""Two-component mixtures of a million losses: seconds against scikit-learn and published EM.

    python benchmarks/mixture_cut.py [--rows 1000000] [--repeats 5]

Losses are drawn (exponential, a fifth around 3). "fit" is sorting, fitting and the posteriors of
all rows; "all" also asks whether one component would do, and measures the distance of the fit: what
`mixture_threshold` does. The peers are scikit-learn's GaussianMixture with DivideMix's settings
(fit and posteriors), and the public beta mixture's ten rounds with scipy's densities, both on one
thread. Ours and theirs take turns; seconds are medians, and so are the ratios of a turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import print_table
from scipy import stats
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from tamis.scoring.component_count import count_components
from tamis.scoring.component_fits import PUBLISHED_SCALE, Kind, fit_mixtures, scaled_sample
from tamis.scoring.component_goodness import distances

Float64s = npt.NDArray[np.float64]
HEADER = ("mixture", "fit s", "all s", "peer s", "peer / fit", "peer / all")


def timed(work: Callable[..., Any], *arguments: Any) -> float:
    begun = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begun


def fitted(losses: Float64s, kind: Kind) -> None:
    fit_mixtures(scaled_sample(losses, scale=PUBLISHED_SCALE[kind]), kind).posterior(losses)


def everything(losses: Float64s, kind: Kind) -> None:
    sample = scaled_sample(losses, scale=PUBLISHED_SCALE[kind])
    found = fit_mixtures(sample, kind)
    found.posterior(losses)
    count_components(sample)
    distances(found)


def gaussian_peer(losses: Float64s) -> None:
    scaled = ((losses - losses.min()) / (losses.max() - losses.min()))[:, None]
    model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    model.fit(scaled).predict_proba(scaled)


def beta_peer(losses: Float64s) -> None:
    low, high = np.percentile(losses, [5, 95])
    inside = losses[(losses >= low) & (losses <= high)]
    x = np.clip((inside - low) / (high - low), 1e-3, 1 - 1e-3)
    a, b, weight = np.array([1.0, 2]), np.array([2.0, 1]), np.array([0.5, 0.5])

    def dense(places: Float64s) -> Float64s:
        return np.stack([weight[k] * stats.beta.pdf(places, a[k], b[k]) for k in range(2)])

    for _ in range(10):
        share = dense(x)
        share /= share.sum(axis=0)
        for k in range(2):
            mean = (share[k] * x).sum() / share[k].sum()
            variance = (share[k] * (x - mean) ** 2).sum() / share[k].sum()
            a[k] = mean * (mean * (1 - mean) / variance - 1)
            b[k] = a[k] * (1 - mean) / mean
        weight = share.sum(axis=1) / len(x)
    places = dense(np.linspace(0, 1, 100)[1:-1])  # the public code looks posteriors up
    (places[1] / places.sum(axis=0))[np.clip((98 * losses).astype(int), 0, 97)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    draws = np.random.default_rng(0)
    right = draws.exponential(0.4, arguments.rows * 4 // 5)
    wrong = abs(draws.normal(3, 1, arguments.rows - len(right)))
    losses = draws.permutation(np.concatenate([right, wrong]))
    peers: dict[Kind, Callable[[Float64s], None]] = {
        "gaussian": gaussian_peer,
        "beta": beta_peer,
    }
    lines = []
    with threadpool_limits(1):
        for kind, peer in peers.items():
            everything(losses[:1000], kind)  # kernels are compiled
            turns = [
                (
                    timed(fitted, losses, kind),
                    timed(everything, losses, kind),
                    timed(peer, losses),
                )
                for _ in range(arguments.repeats)
            ]
            seconds = [statistics.median(column) for column in zip(*turns, strict=True)]
            ratios = [statistics.median(turn[2] / turn[at] for turn in turns) for at in range(2)]
            lines.append(
                [kind, *(f"{s:.2f}" for s in seconds), *(f"{ratio:.1f}" for ratio in ratios)]
            )
    print(f"{arguments.rows:,} losses, medians of {arguments.repeats}\n")
    print_table(HEADER, lines, 1)


if __name__ == "__main__":
    main()
