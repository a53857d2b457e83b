"""What finds benchmark items in training rows: word n-grams and embeddings, on known truth.

Takes a folder with `decon_benchmarks.parquet` (benchmark, text), `decon_rephrased.parquet`
(benchmark, kind, item, original, rephrased), `domains_text.parquet` and `sft_dolly_3k.parquet`
(instruction). References are the items of GSM8K and HumanEval that the rephrasings are of.

- verbatim: items as rows of their own, and planted in the middle of rows of other text.
- by kind of rephrasing: share of the rephrased items that are found, and for which the right item
  is named.
- clean: instructions that have nothing to do with the benchmarks; what is found there is wrong.

N-grams: `contamination` with 13 and 8 words. Embeddings: cosine to the nearest reference, from the
threshold that one clean row in a thousand reaches.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.scoring.embedding import Embedding
from tamis.scoring.ngram_index import NgramIndex, find
from tamis.selectors.nearest import nearest

CLEAN_SHARE = 0.001
Floats = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def vectors(model: Embedding, texts: list[str]) -> Floats:
    found = model.compute(pa.record_batch({"text": pa.array(texts, pa.string())}))["embedding"]
    matrix: Floats = np.stack(found.to_numpy(zero_copy_only=False)).astype(np.float32)
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["minilm"])
    parser.add_argument("--planted", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)

    rephrased = pq.read_table(options.data / "decon_rephrased.parquet").to_pylist()
    originals = list(dict.fromkeys(row["original"] for row in rephrased))
    number = {text: i for i, text in enumerate(originals)}
    everything = pq.read_table(options.data / "decon_benchmarks.parquet")["text"].to_pylist()
    items = originals + [text for text in dict.fromkeys(everything) if text not in number]
    rows = pq.read_table(options.data / "domains_text.parquet", columns=["text"])["text"]
    hosts = rows.take(random.choice(len(rows), options.planted, replace=False)).to_pylist()
    chosen = random.choice(len(originals), options.planted)
    middle = [len(host) // 2 for host in hosts]
    dolly = pq.read_table(options.data / "sft_dolly_3k.parquet")["instruction"].to_pylist()

    sets: dict[str, tuple[list[str], list[int]]] = {
        "verbatim, alone": ([originals[i] for i in chosen], chosen.tolist()),
        "verbatim, planted": (
            [
                f"{host[:m]}\n{originals[i]}\n{host[m:]}"
                for host, m, i in zip(hosts, middle, chosen, strict=True)
            ],
            chosen.tolist(),
        ),
    }
    for kind in dict.fromkeys(row["kind"] for row in rephrased):
        some = [row for row in rephrased if row["kind"] == kind]
        sets[kind] = (
            [row["rephrased"] for row in some],
            [number[row["original"]] for row in some],
        )
    sets["clean"] = (dolly, [-1] * len(dolly))

    header = ["rows", "set"]
    cells = {name: [f"{len(texts):,}", name] for name, (texts, _) in sets.items()}
    for ngram, fewest in ((13, 8), (8, 8)):
        index = NgramIndex.of(pa.array(items), ngram, fewest, 10)
        header.append(f"{ngram}-grams")
        for name, (texts, truth) in sets.items():
            found = find(pa.array(texts), index).item
            cells[name].append(shown(found, found >= 0, np.array(truth)))
    for model_name in options.models:
        model = Embedding(model=model_name)
        reference = vectors(model, originals)
        held = {
            name: nearest(vectors(model, texts), reference, 2) for name, (texts, _) in sets.items()
        }
        threshold = float(np.quantile(held["clean"].similarity, 1 - CLEAN_SHARE))
        header.append(f"{model_name}, cosine {threshold:.3f}")
        for name, (_, truth) in sets.items():
            near = held[name]
            cells[name].append(shown(near.row, near.similarity >= threshold, np.array(truth)))
    harness.print_table(tuple(header), list(cells.values()), words=0)


def shown(item: np.ndarray, hit: np.ndarray, truth: np.ndarray) -> str:
    """Share found, and in brackets share found with the right item named."""
    if (truth < 0).all():
        return f"{hit.mean():.4f}"
    return f"{hit.mean():.3f} ({(hit & (item == truth)).mean():.3f})"


if __name__ == "__main__":
    main()
