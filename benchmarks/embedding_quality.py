"""How often the nearest text is the right one: the packaged MiniLM beside the static model.

Takes the shared data sets. Rephrased benchmark items look for their originals, verses of one
translation of the New Testament for the same verses of another. Shown is the share for which the
nearest by cosine is the right one, and beside it what word 1-grams (Jaccard) find. The last table
holds both models' cosines against one another over random and over nearest pairs.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tamis.scoring.embedding import Embedding

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
Matrix = npt.NDArray[np.float32]


def vectors(model: str, texts: list[str]) -> Matrix:
    column = Embedding(model=model).compute(pa.record_batch({"text": pa.array(texts)})).column(0)
    found = np.asarray(column.flatten(), np.float32).reshape(len(texts), -1)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def found_by_words(asked: list[str], candidates: list[str]) -> float:
    sets = [frozenset(re.findall(r"\w+", text.lower())) for text in candidates]
    right = 0
    for i, text in enumerate(asked):
        words = frozenset(re.findall(r"\w+", text.lower()))
        shared = [len(words & other) / max(1, len(words | other)) for other in sets]
        right += int(np.argmax(shared)) == i
    return right / len(asked)


def tasks(data: Path, verses: int) -> dict[str, tuple[list[str], list[str]]]:
    """By name, texts that ask and their answers, in the same order."""
    found = {}
    rephrased = pl.read_parquet(data / "decon_rephrased.parquet").drop_nulls()
    for key, rows in sorted(rephrased.partition_by("benchmark", "kind", as_dict=True).items()):
        rows = rows.unique("original", maintain_order=True)
        found["/".join(map(str, key))] = (rows["rephrased"].to_list(), rows["original"].to_list())
    bible = pl.read_parquet(data / "dedup_bible_nt.parquet").pivot(
        "translation", index="verse_index", values="text", aggregate_function="first"
    )
    for other in ("Webster", "BBE", "YLT"):
        rows = bible.select("ASV", other).drop_nulls().unique(maintain_order=True)
        rows = rows.unique("ASV", maintain_order=True).sample(verses, seed=0)
        found[f"verses ASV/{other}"] = (rows["ASV"].to_list(), rows[other].to_list())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--verses", type=int, default=1500)
    options = parser.parse_args()

    print("| task | pairs | minilm | static | words |\n|---|---:|---:|---:|---:|")
    for name, (asked, answers) in tasks(options.data, options.verses).items():
        shares = []
        for model in ("minilm", "static"):
            similar = vectors(model, asked) @ vectors(model, answers).T
            shares.append(float((similar.argmax(axis=1) == np.arange(len(asked))).mean()))
        shares.append(found_by_words(asked, answers))
        print(f"| {name} | {len(asked):,} | " + " | ".join(f"{s:.3f}" for s in shares) + " |")

    texts = pl.read_parquet(options.data / "domains_text.parquet")["text"].sample(1000, seed=0)
    a, b = (vectors(model, texts.to_list()) for model in ("minilm", "static"))
    similar, other = a @ a.T, b @ b.T
    np.fill_diagonal(similar, -1)
    near = np.arange(len(a)), similar.argmax(axis=1)
    upper = np.triu_indices(len(a), 1)
    print("\n| pairs of 1,000 mixed texts | Spearman of the two models' cosines |\n|---|---:|")
    for name, pairs in (("every text and its nearest by minilm", near), ("all", upper)):
        ranks = [pl.Series(m[pairs]).rank() for m in (similar, other)]
        print(f"| {name} | {np.corrcoef(*ranks)[0, 1]:.2f} |")


if __name__ == "__main__":
    main()
