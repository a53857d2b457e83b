"""Embeddings: every back end beside plain `SentenceTransformer.encode`, in one run.

Takes real texts of mixed lengths (--data, a Parquet file; the shared data sets' if they are beside
the repository) or made-up ones. In every round plain sentence-transformers and each of our back
ends embed the same texts, one after the other; shown are medians over the rounds of the ratio of
wall time and of processor time, and how close our vectors are to plain ones. Wall time is against
plain as it comes, on all cores. Processor time is against plain on one thread: on several its
threads spin while they wait, the more so the more else runs on the machine. The share of the peak
is of the fastest matrix product that PyTorch or numpy reaches in the same numbers in the same run,
both by processor time.

The static model has vectors of its own: it is compared with model2vec's `encode`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tamis.scoring.embedding import Embedding
from tamis.scoring.embedding_models import find_model
from tamis.scoring.hardware import one_thread

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "domains_text.parquet"
BACKENDS: dict[str, dict[str, str]] = {
    "openvino bfloat16": {"backend": "openvino", "precision": "bfloat16"},
    "openvino float32": {"backend": "openvino", "precision": "float32"},
    "torch bfloat16": {"backend": "torch", "precision": "bfloat16"},
    "torch float32": {"backend": "torch", "precision": "float32"},
}

Matrix = npt.NDArray[np.float32]


def texts_of(data: Path | None, count: int, seed: int) -> list[str]:
    """Texts of mixed lengths."""
    if data is not None and data.exists():
        return pl.read_parquet(data)["text"].sample(count, seed=seed).to_list()
    random = np.random.default_rng(seed)
    words = [
        "".join(map(chr, random.integers(97, 123, random.integers(2, 10)))) for _ in range(5000)
    ]
    sizes = np.exp(random.uniform(np.log(5), np.log(800), count)).astype(int)
    return [" ".join(words[i] for i in random.integers(0, len(words), n)) for n in sizes]


def timed(work: Callable[[], Matrix]) -> tuple[float, float, Matrix]:
    """Seconds by the clock, by the processor, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def embedder(stage: Embedding, texts: list[str]) -> Callable[[], Matrix]:
    batch = pa.record_batch({"text": pa.array(texts)})

    def work() -> Matrix:
        column = stage.compute(batch).column(0)
        return np.asarray(column.flatten(), np.float32).reshape(len(texts), -1)

    return work


def cosines(a: Matrix, b: Matrix) -> Matrix:
    wide, other = a.astype(np.float64), b.astype(np.float64)
    length = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    return ((wide * other).sum(axis=1) / np.where(length == 0, 1, length))[length > 0]


def peaks() -> dict[str, float]:
    """Fastest matrix products of one thread, operations in a second of processor time."""
    import torch

    found = {}
    for name in ("float32", "bfloat16"):
        best = 0.0
        for rows, inner, columns in ((2048, 384, 1536), (2048, 1536, 384), (4096, 2048, 2048)):
            a = torch.rand(rows, inner).to(getattr(torch, name))
            b = torch.rand(inner, columns).to(getattr(torch, name))
            with one_thread():
                for turn in range(16):
                    # For float32 also numpy's library: PyTorch's is slow on some processors.
                    if turn % 2 and name == "float32":
                        _, seconds, _ = timed(lambda a=a, b=b: a.numpy() @ b.numpy())
                    else:
                        _, seconds, _ = timed(lambda a=a, b=b: torch.mm(a, b))
                    best = max(best, 2 * rows * inner * columns / seconds)
        found[name] = best
    return found


def operations(tokens: npt.NDArray[np.int64], stage: Embedding) -> float:
    """Floating-point operations of a BERT: its matrices, and attention's two products."""
    import json

    config = json.loads((stage._files().folder / "config.json").read_text())
    width, inner, layers = (
        config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    each = 2 * layers * (4 * width * width + 2 * width * inner)
    return float((tokens * each + 4 * layers * width * tokens**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--busy",
        action="store_true",
        help="leave out plain on all cores, whose threads hardly get on beside other work",
    )
    options = parser.parse_args()

    from sentence_transformers import SentenceTransformer

    texts = texts_of(options.data, options.texts, options.seed)
    plain = SentenceTransformer(str(find_model("minilm").folder), device="cpu")
    stages = {
        name: Embedding(model="minilm", device="cpu", **fields).resolve(Path())
        for name, fields in BACKENDS.items()
    }
    stages["static"] = Embedding(model="static").resolve(Path())
    ours = {name: embedder(stage, texts) for name, stage in stages.items()}
    with one_thread():
        plain.encode(texts[:16])
    for stage in stages.values():
        embedder(stage, texts[:16])()

    tokens = stages["openvino float32"].compute(pa.record_batch({"text": pa.array(texts)}))
    read = tokens["embedding_tokens"].to_numpy().astype(np.int64)
    print(
        f"{len(texts):,} texts, {sum(map(len, texts)) / 1e6:.2f} M characters, "
        f"{read.sum():,} tokens read (median {np.median(read):.0f}, "
        f"{np.mean(read == 256):.0%} cut off at 256); "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )

    def encode() -> Matrix:
        return np.asarray(plain.encode(texts, show_progress_bar=False))

    def encode_on_one() -> Matrix:
        with one_thread():
            return encode()

    base = "plain, one thread" if options.busy else "plain"
    runs = {base: encode, "plain, one thread": encode_on_one, **ours}
    walls: dict[str, list[float]] = {name: [] for name in runs}
    cpus: dict[str, list[float]] = {name: [] for name in runs}
    vectors: dict[str, Matrix] = {}
    for _ in range(options.rounds):
        for name, work in runs.items():
            wall, cpu, vectors[name] = timed(work)
            walls[name].append(wall)
            cpus[name].append(cpu)
    peak = peaks()
    print(
        "| back end | times plain | by processor time | cosine min | 1 % | mean | texts/s "
        "| tokens/s | of peak |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, seconds in walls.items():
        ratio = statistics.median(a / b for a, b in zip(walls[base], seconds, strict=True))
        by_cpu = statistics.median(
            a / b for a, b in zip(cpus["plain, one thread"], cpus[name], strict=True)
        )
        if name == "static":
            from model2vec import StaticModel

            folder = stages[name]._files().folder
            model = StaticModel.from_pretrained(str(folder), max_length=None)
            near = cosines(vectors[name], model.encode(texts, max_length=None).astype(np.float32))
        else:
            near = cosines(vectors[name], vectors[base])
        second = statistics.median(seconds)
        share = ""
        if name != "static":
            kind = "bfloat16" if "bfloat16" in name else "float32"
            done = operations(read, stages["openvino float32"]) / statistics.median(cpus[name])
            share = f"{done / peak[kind]:.0%}"
        count = int(read.sum())
        rate = "" if name == "static" else f"{count / second:,.0f}"
        times = "" if options.busy else f"{ratio:.2f}"
        print(
            f"| {name} | {times} | {by_cpu:.2f} | {near.min():.5f} | "
            f"{np.quantile(near, 0.01):.5f} | {near.mean():.5f} | {len(texts) / second:,.0f} | "
            f"{rate} | {share} |"
        )
    print(
        f"\npeak of a matrix product: {peak['float32'] / 1e9:.0f} GFLOP/s in float32, "
        f"{peak['bfloat16'] / 1e9:.0f} in bfloat16; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
