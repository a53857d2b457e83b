"""Semantic and near-duplicate removal on labelled texts: which tool drops the right rows.

A dropped row is right if its partner bears the same label. Recall is of the rows that one row a
label makes superfluous.

    python benchmarks/semantic_quality.py verses.parquet --label verse_index \\
        --vectors verses.npy --peer-python semhash-venv/bin/python
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Ints, Peer, print_table
from semantic_dedup import run

from tamis.selectors.near_dedup import near_duplicates
from tamis.selectors.semantic_duplicates import semantic_duplicates


def judged(name: str, threshold: float, partner: Ints, label: Ints) -> list[str]:
    """A line of the table."""
    lost = np.flatnonzero(partner >= 0)
    right = int((label[lost] == label[partner[lost]]).sum())
    precision = right / max(1, len(lost))
    recall = right / (len(label) - len(np.unique(label)))
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    figures = (f"{figure:.3f}" for figure in (precision, recall, f1))
    return [name, f"{threshold:g}", f"{len(lost):,}", *figures]


def labels(table: pa.Table, columns: list[str]) -> Ints:
    """A number for every distinct line of the columns."""
    lines = list(zip(*(table[column].to_pylist() for column in columns), strict=True))
    numbers = {line: number for number, line in enumerate(dict.fromkeys(lines))}
    return np.array([numbers[line] for line in lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("texts", type=Path, help="Parquet file")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", nargs="+", required=True, help="columns that make the label")
    parser.add_argument("--vectors", type=Path, required=True, help=".npy of float32 (n, d)")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.8, 0.85, 0.9, 0.95])
    parser.add_argument("--jaccard", type=float, nargs="+", default=[0.5, 0.7, 0.8])
    parser.add_argument("--peer-python", type=Path, help="interpreter that has semhash")
    options = parser.parse_args()
    table = pq.read_table(options.texts)
    label = labels(table, options.label)
    vectors: npt.NDArray[np.float32] = np.load(options.vectors)
    lines = [
        judged("near_dedup", at, near_duplicates(table[options.text], at).partner, label)
        for at in options.jaccard
    ]
    semhash = Peer("semhash", "run_semhash.py", options.peer_python, "semhash")
    for at in options.thresholds:
        lines.append(judged("semdedup", at, semantic_duplicates(vectors, at).partner, label))
        if semhash.installed():
            with tempfile.TemporaryDirectory() as work:
                run(semhash, options.vectors, Path(work), at)
                with np.load(Path(work) / "partner.npz") as found:
                    lines.append(judged("semhash", at, found["partner"], label))
    print(f"{len(label):,} rows, {len(np.unique(label)):,} labels\n")
    print_table(("tool", "threshold", "dropped", "precision", "recall", "F1"), lines, 1)


if __name__ == "__main__":
    main()
