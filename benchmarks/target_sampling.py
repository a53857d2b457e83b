"""Does sampling towards a target help? Importance samples against random subsets of equal size.

A pool of real texts of many kinds, whose labels nobody looks at, is cut down to a share of its
bytes: by `importance_sample` towards a few dozen texts of one domain, and at random by
`random_subset`. A language model is fitted to each subset and asked how many bits a byte it needs
for other texts of that domain, which are in neither the pool nor the target set.

The model is the proxy of `selection.py`: an interpolated Kneser-Ney n-gram model over byte-pair
tokens. A seed draws other held-out texts, another target set and other subsets; the interval is of
the difference over seeds (Student's t, 95 %), for each domain and for the mean of the domains.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from selection import NGrams, kept_rows, tokenizer_of, tokens_of

DOMAINS = ["medical", "law", "code_python", "science_abstracts", "books", "cli_docs"]
#: Share of the texts of a domain that is in no pool.
HELD_OUT = 0.2


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    whole = pl.read_parquet(arguments.data / "domains_text.parquet").filter(
        ~pl.col("domain").str.contains("multilingual")
    )
    whole = whole.select("text", "domain").unique(maintain_order=True)
    whole = whole.with_columns(bytes=pl.col("text").str.len_bytes().cast(pl.Int64))
    found = []
    for seed in range(arguments.seeds):
        random = np.random.default_rng(seed)
        held = pl.Series(random.random(len(whole)) < HELD_OUT)
        pool = whole.filter(~held).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
        tokenizer = tokenizer_of(pool.sample(5_000, seed=seed)["text"])
        tokens = tokens_of(tokenizer, pool["text"].to_list())
        sizes = pool["bytes"].to_numpy()
        limit = int(arguments.share * sizes.sum())

        def cut(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            """Random ones of these rows that together have the budget's bytes."""
            mixed = random.permutation(rows)  # noqa: B023 (of this round)
            return mixed[np.cumsum(sizes[mixed]) <= limit]  # noqa: B023 (of this round)

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pool.write_parquet(folder / "pool.parquet")
            # Twice the share of rows, so that cutting to bytes has enough to cut from.
            rows = {"fraction": min(1.0, 2 * arguments.share)}
            baseline = kept_rows(
                folder, [{"operator": "random_subset", "epoch": seed, **rows}], arguments.model
            )
            for domain in DOMAINS:
                others = whole.filter(held & (pl.col("domain") == domain))
                others = others.sample(fraction=1, shuffle=True, seed=seed)
                target, test = others[: arguments.target], others[arguments.target :]
                target.write_parquet(folder / f"{domain}.parquet")
                stage = {
                    "operator": "importance_sample",
                    "target": {"path": str(folder / f"{domain}.parquet")},
                    **rows,
                }
                kept = kept_rows(folder, [stage], arguments.model)
                bits = {}
                for method, subset in (("selected", kept), ("random", baseline)):
                    subset = cut(subset)
                    fitted = NGrams([tokens[row] for row in subset])
                    bits[method] = float(
                        fitted.bits(tokens_of(tokenizer, test["text"].to_list())).sum()
                        / test["bytes"].sum()
                    )
                    bits[f"{method}_bytes"] = int(sizes[subset].sum())
                    bits[f"{method}_domain"] = float((pool["domain"][subset] == domain).mean())
                found.append({"seed": seed, "domain": domain, **bits})
                print(json.dumps(found[-1]), flush=True)
    return found


def report(found: list[dict[str, Any]]) -> None:
    """A Markdown table: the difference to random subsets, and its interval over seeds."""
    from scipy.stats import t

    table = pl.DataFrame(found).with_columns(difference=pl.col("selected") - pl.col("random"))
    print("\n| target | share of it: selected, random | bits/byte | random | difference | 95 % |")
    print("|---|---:|---:|---:|---:|---:|")
    numeric = pl.col(pl.Float64)
    mean = table.group_by("seed").agg(numeric.mean()).with_columns(domain=pl.lit("mean"))
    for domain in [*DOMAINS, "mean"]:
        rows = mean if domain == "mean" else table
        rows = rows.filter(pl.col("domain") == domain)
        difference = rows["difference"].to_numpy()
        half = t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / len(difference) ** 0.5
        low, high = difference.mean() - half, difference.mean() + half
        print(
            f"| {domain} | {rows['selected_domain'].mean():.0%}, "
            f"{rows['random_domain'].mean():.0%} | {rows['selected'].mean():.3f} "
            f"| {rows['random'].mean():.3f} | {difference.mean():+.3f} "
            f"| {low:+.3f} to {high:+.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the shared data sets")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.1, help="of the pool's bytes")
    parser.add_argument("--target", type=int, default=50, help="texts of the target set")
    parser.add_argument("--model", default="static", help="embedder")
    parser.add_argument("--json", type=Path, help="where all figures go")
    arguments = parser.parse_args()
    found = measure(arguments)
    report(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
