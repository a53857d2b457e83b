"""Weights of rows towards a target: do they raise the target's kind, and at what cost?

Three parts, each with a table of its own:

- ``real``: a pool of real texts of many kinds whose labels nobody looks at, towards a few texts of
  one kind or of two. Told are the area under the ROC curve of the weight against being of that
  kind, the share of all weight on rows of that kind, and the effective sample size; mean over seeds
  that draw other targets.
- ``landmarks``: `kernel_mean_weight` with landmarks beside the exact kernel, on rows of the same
  pool: half the sum of differences between the weights, over the rows (0: the same, 1: nothing in
  common), and the distance of the kernel means (by the exact kernel) that either reaches.
- ``speed``: seconds and peak memory of a run over made-up vectors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from sklearn.metrics import roc_auc_score

import tamis
from tamis.scoring.embedding import Embedding
from tamis.scoring.kernel_mean import (
    double_weights,
    exact_product,
    landmark_product,
    median_distance,
)

OPERATORS: dict[str, dict[str, Any]] = {
    "importance_weight": {},
    "propensity_weight": {},
    "kernel_mean_weight": {},
    "kernel_mean_weight, noise 0": {"noise": 0},
}
TARGETS = [["law"], ["medical"], ["science_abstracts"], ["books"], ["law", "code_python"]]


def embedded(data: Path, model: str) -> pl.DataFrame:
    """Distinct texts of one language each, their domains and vectors."""
    whole = pl.read_parquet(data / "domains_text.parquet").filter(
        ~pl.col("domain").str.contains("multilingual")
    )
    whole = whole.select("text", "domain").unique(maintain_order=True)
    whole = whole.with_columns(id=pl.int_range(pl.len()).cast(pl.String))
    texts = pa.table({"text": whole["text"].to_arrow()})
    embedder = Embedding(model=model)
    parts = [
        embedder.compute(pa.record_batch({"text": batch["text"]}))["embedding"]
        for batch in texts.to_batches(max_chunksize=2000)
    ]
    vectors = np.concatenate([np.stack(part.to_numpy(zero_copy_only=False)) for part in parts])
    return whole.with_columns(vector=pl.Series(vectors))


def weights(
    folder: Path, pool: pl.DataFrame, target: pl.DataFrame, name: str, workers: int | None = None
) -> tuple[pl.DataFrame, dict[str, Any], tamis.Result]:
    """A run's rows with the column `weight`, what the manifest says of the operator, the run."""
    pool.write_parquet(folder / "pool.parquet", row_group_size=10_000)
    target.write_parquet(folder / "target.parquet")
    operator = name.split(",")[0]
    stage = {
        "operator": operator,
        "embedding": "vector",
        "target": {"path": str(folder / "target.parquet"), "name": "target"},
        **OPERATORS[name],
    }
    result = tamis.run(
        {
            "corpus": {"path": str(folder / "pool.parquet"), "roles": {"text": "text", "id": "id"}},
            "stages": [stage, {"operator": "row_weight", "by": operator}],
            "output": {"path": str(folder / f"out {name}")},
            "workspace": str(folder / f"work {name}"),
            **({} if workers is None else {"workers": workers}),
        }
    )
    files = sorted((folder / f"out {name}").glob("*.parquet"))
    rows = pl.concat([pl.read_parquet(f) for f in files])
    return rows, result.manifest["stages"][0]["report"], result


def real(arguments: argparse.Namespace) -> None:
    whole = embedded(arguments.data, arguments.model)
    found = []
    for seed in range(arguments.seeds):
        for domains in TARGETS:
            shuffled = whole.sample(fraction=1, shuffle=True, seed=seed)
            parts = [
                shuffled.filter(pl.col("domain") == d)[: arguments.target // len(domains)]
                for d in domains
            ]
            target = pl.concat(parts)
            pool = whole.filter(~pl.col("id").is_in(target["id"].implode()))
            kind = pl.col("domain").is_in(domains)
            for name in OPERATORS:
                with tempfile.TemporaryDirectory() as folder:
                    begin = time.perf_counter()
                    rows, report, _ = weights(Path(folder), pool, target, name)
                    seconds = time.perf_counter() - begin
                weight, own = rows["weight"].to_numpy(), rows.select(kind).to_series().to_numpy()
                found.append(
                    {
                        "seed": seed,
                        "target": " + ".join(domains),
                        "operator": name,
                        "rows_of_kind": int(own.sum()),
                        "rows": len(rows),
                        "auc": float(roc_auc_score(own, weight)),
                        "share": float(weight[own].sum() / weight.sum()),
                        "ess": report["effective_sample_size"],
                        "seconds": seconds,
                        "report": report,
                    }
                )
                print(json.dumps(found[-1]), flush=True)
    print("\n| target | its rows | operator | AUC | share of the weight | effective rows |")
    print("|---|---:|---|---:|---:|---:|")
    table = pl.DataFrame([{k: v for k, v in one.items() if k != "report"} for one in found])
    for domains in TARGETS:
        for name in OPERATORS:
            some = table.filter(
                (pl.col("target") == " + ".join(domains)) & (pl.col("operator") == name)
            )
            m = some.select(pl.col(pl.Float64).mean(), pl.col("rows_of_kind", "rows").max())
            one = m.row(0, named=True)
            print(
                f"| {' + '.join(domains)} | {one['rows_of_kind'] / one['rows']:.1%} | {name} "
                f"| {one['auc']:.4f} | {one['share']:.1%} | {one['ess']:,.0f} |"
            )


def landmarks(arguments: argparse.Namespace) -> None:
    whole = embedded(arguments.data, arguments.model).sample(fraction=1, shuffle=True, seed=0)
    law = whole.filter(pl.col("domain") == "law")
    target = law[:100]
    rest = whole.filter(~pl.col("id").is_in(target["id"].implode()))[: arguments.rows]
    rows, theirs = rest["vector"].to_numpy(), target["vector"].to_numpy()
    both = np.concatenate([rows, theirs])
    bandwidth = median_distance(both[:2000])
    n, t = len(rows), len(theirs)
    begin = time.perf_counter()
    product = exact_product(both, bandwidth)
    exact = double_weights(product, n, t, tolerance=0.01)
    print(f"{n} rows, {t} of the target, bandwidth {bandwidth:.3f}")
    print("| kernel | unexplained | distance | differs by | effective rows | steps | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")

    def line(name: str, left: float, found: Any, seconds: float) -> None:
        u = np.r_[found.beta / n, -found.alpha / t]
        apart = max(float(u @ product(u)), 0.0) ** 0.5
        beta, other = found.beta / found.beta.sum(), exact.beta / exact.beta.sum()
        off = np.abs(beta - other).sum() / 2
        ess = 1 / np.square(beta).sum()
        print(
            f"| {name} | {left:.3f} | {apart:.4f} | {off:.3f} | {ess:.0f} | {found.iterations} "
            f"| {seconds:.1f} |",
            flush=True,
        )

    line("exact", 0.0, exact, time.perf_counter() - begin)
    for count in (128, 256, 512, 1024, 2048):
        begin = time.perf_counter()
        own = min(t, count // 2)
        some = np.concatenate([rows[: count - own], theirs[:own]])
        approximate, left = landmark_product(both, some, bandwidth)
        found = double_weights(approximate, n, t, tolerance=0.01)
        line(f"{count:,} landmarks", left, found, time.perf_counter() - begin)
    print(f"(all weights 1: distance {exact.before:.4f})")


def speed(arguments: argparse.Namespace) -> None:
    """Fifty kinds of rows, of which the target has five."""
    width, kinds = 384, 50
    random = np.random.default_rng(0)
    centres = random.normal(size=(kinds, width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)

    def made(count: int, first: int) -> pl.DataFrame:
        kind = random.integers(0, first, count)
        noise = 1.2 * random.normal(size=(count, width)) / width**0.5
        rows = (centres[kind] + noise).astype(np.float32)
        ids = [f"{first}-{i}" for i in range(count)]
        return pl.DataFrame({"id": ids, "text": ids, "kind": kind, "vector": rows})

    pool, target = made(arguments.rows, kinds), made(1000, 5)
    print("| operator | seconds | peak memory | bound | weight on the target's kinds |")
    print("|---|---:|---:|---:|---:|")
    for name in OPERATORS:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            rows, _, result = weights(Path(folder), pool, target, name, arguments.workers)
            seconds = time.perf_counter() - begin
        own = rows.filter(pl.col("kind") < 5)["weight"].sum() / rows["weight"].sum()
        print(
            f"| {name} | {seconds:.0f} | {result.peak_memory / 1e9:.2f} GB "
            f"| {result.memory_bound / 1e9:.2f} GB | {own:.1%} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["real", "landmarks", "speed"])
    parser.add_argument("data", type=Path, nargs="?", help="folder of the shared data sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=int, default=100, help="texts of the target set")
    parser.add_argument("--model", default="static", help="embedder")
    parser.add_argument("--rows", type=int, default=5000, help="of landmarks and speed")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    {"real": real, "landmarks": landmarks, "speed": speed}[arguments.part](arguments)


if __name__ == "__main__":
    main()
