"""Does the implicit reward margin find preference pairs whose answers were swapped?

A fifth of the pairs of a set are flipped (`chosen` and `rejected` exchanged, by a seed). Every
score is read as evidence that a pair is right; the area under the ROC curve says how well low
scores point at the flipped ones: 0.5 is chance. All these scores change their sign where a pair is
flipped, so the area also tells how often a pair of the set itself is ranked right.

    python benchmarks/preference_flips.py --pairs pairs/work/held-out --data ../shared/data

`--pairs` are datasets of `python-pairs:` from packages that the models have not seen (what
`examples/models/train.py` leaves in its work folder), `--data` a folder of other sets `pref_*`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import rankdata

import tamis

Float64s = npt.NDArray[np.float64]
MODELS = Path(__file__).parents[1] / "examples" / "models"


def scored(pairs: pl.DataFrame, arguments: argparse.Namespace) -> pl.DataFrame:
    """The scores of every pair that both models can read, by name."""
    columns = [pairs]
    for name in ("policy", "reference"):
        params = {
            "name": name,
            "model": str(getattr(arguments, name)),
            "of": "pair",
            "dtype": "float32",
            "over_long": "keep_end",  # the answers of a long conversation, not its beginning
        }
        columns.append(tamis.score("logprobs", pairs, params=params))
    frame = pl.concat(columns, how="horizontal")
    for normalise in ("sum", "per_token"):
        params = {"name": f"margin_{normalise}", "normalise": normalise}
        margin = tamis.score("implicit_reward_margin", frame, params=params)
        frame = frame.with_columns(margin[f"margin_{normalise}"])
    side = {s: pl.col(f"reference_{s}_logp") for s in ("chosen", "rejected")}
    mean = {s: side[s] / pl.col(f"reference_{s}_tokens") for s in side}
    length = {s: pl.col(s).str.len_chars().cast(pl.Float64) for s in side}
    return frame.with_columns(
        reference=side["chosen"] - side["rejected"],
        reference_per_token=mean["chosen"] - mean["rejected"],
        length=length["chosen"] - length["rejected"],
    )


SCORES = ("margin_sum", "margin_per_token", "reference", "reference_per_token", "length")


def area(score: Float64s, flipped: npt.NDArray[np.bool_]) -> float:
    """Probability that a flipped pair has a lower score than one that is not; ties count half."""
    ranks = rankdata(-score)
    hits, others = int(flipped.sum()), int((~flipped).sum())
    return float((ranks[flipped].sum() - hits * (hits + 1) / 2) / (hits * others))


def areas(value: Float64s, arguments: argparse.Namespace) -> tuple[float, float, float]:
    """Area, and its bootstrap interval of 95 % over pairs."""
    random = np.random.default_rng(arguments.seed)
    flipped = np.zeros(len(value), np.bool_)
    flipped[random.permutation(len(value))[: round(arguments.share * len(value))]] = True
    score = np.where(flipped, -value, value)
    drawn = []
    for _ in range(arguments.draws):
        rows = random.integers(len(value), size=len(value))
        drawn.append(area(score[rows], flipped[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return area(score, flipped), float(low), float(high)


def sets(arguments: argparse.Namespace) -> dict[str, pl.DataFrame]:
    """Pairs of every set; ``part`` says which kind a pair is of, where the set has kinds."""
    found = {folder.name: pl.read_parquet(folder / "*.parquet") for folder in arguments.pairs}
    for file in sorted(arguments.data.glob("pref_*.parquet")) if arguments.data else []:
        found[file.stem] = pl.read_parquet(file)
    for name, pairs in found.items():
        part = "rejected_kind" if "rejected_kind" in pairs.columns else pl.lit(None, pl.String)
        pairs = pairs.select("prompt", "chosen", "rejected", part=part)
        rows = min(len(pairs), arguments.rows)
        found[name] = pairs.sort(pl.all()).sample(rows, shuffle=True, seed=arguments.seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", type=Path, default=MODELS / "policy")
    parser.add_argument("--reference", type=Path, default=MODELS / "reference")
    parser.add_argument("--pairs", type=Path, nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=6000, help="most pairs of a set")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    told = []
    print(f"| pairs | number | unread | {' | '.join(SCORES)} |")
    print("|---|---:|---:|" + "---|" * len(SCORES))
    for name, pairs in sets(arguments).items():
        start = time.perf_counter()
        frame = scored(pairs, arguments)
        seconds = time.perf_counter() - start
        for part in [None, *sorted(set(frame["part"].drop_nulls()))]:
            some = frame if part is None else frame.filter(pl.col("part") == part)
            read = some.drop_nulls(SCORES)
            unread = len(some) - len(read)
            found = {score: areas(read[score].to_numpy(), arguments) for score in SCORES}
            label = name if part is None else f"{name}: {part}"
            told.append({"pairs": label, "rows": len(read), "unread": unread, **found})
            cells = ["{:.3f} ({:.3f} to {:.3f})".format(*found[score]) for score in SCORES]
            print(f"| {label} | {len(read)} | {unread} | {' | '.join(cells)} |", flush=True)
        print(f"{name}: {len(frame)} pairs scored in {seconds:.0f} s", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
