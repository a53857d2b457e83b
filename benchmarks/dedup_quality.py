"""Near-duplicate removal on real texts: what is found, what is lost, against exact Jaccard.

    python benchmarks/dedup_quality.py --data DIR --work DIR --peer-python A/bin/python \\
        --textdedup-python B/bin/python

Texts with labels of their own: licence notices (truth: licence expression within its kind), seven
translations of the New Testament (truth: the verse), successive editions of books (truth: the
work). The exact Jaccard of all pairs comes from the product of the document-by-shingle matrix with
its transpose. A word is a run of `\\w` in the lower-cased text; a document of fewer than n words is
one shingle of itself.

Peers get the words joined by single spaces, so that each of them builds these very shingles. tamis
gets the text as it is and has its own rule outside ASCII (compatibility forms, case folding, one
word per character in scripts without spaces): `differs` counts the dropped rows whose similarity is
not the exact one by the plain rule, and how many of them have only ASCII, which must be none.

Columns: `pairs found`, share of the pairs at or above the threshold of which not both rows are
kept. `unfounded`, dropped rows with an exact Jaccard below the threshold to the partner that tamis
names (in brackets those with only ASCII, which must be none), and for peers, which name none, to
every kept row. `label precision`, share of dropped rows
for which a kept row has the same label; different licences can have nearly the same text, so this
is a lower bound. `label recall`, share of the surplus rows of all labels that were dropped; it says
how alike rows of one label are more than how good a tool is. datatrove keeps documents of fewer
than n words; gaoya takes all of those for duplicates of each other.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from harness import (
    Bools,
    Floats,
    Ints,
    Peer,
    Run,
    RunFailedError,
    known_peers,
    ourselves,
    print_table,
    run_peer,
)

THRESHOLDS = (0.8, 0.7)
PEERS = ("datatrove", "text-dedup", "gaoya")
BLOCK = 512
find_words = re.compile(r"\w+").findall


@dataclass(frozen=True)
class Task:
    name: str
    file: str
    label: tuple[str, ...]
    ngram: int


TASKS = (
    Task("licences", "dedup_scancode_licenses.parquet", ("kind", "license_expression"), 5),
    Task("bible", "dedup_bible_nt.parquet", ("verse_index",), 2),
    Task("bible", "dedup_bible_nt.parquet", ("verse_index",), 5),
    Task("editions", "dedup_gutenberg_editions.parquet", ("work",), 5),
)


@dataclass(frozen=True)
class Truth:
    """A task's documents, their labels and shingles, and all pairs above the lowest threshold."""

    texts: list[str]
    words: list[list[str]]
    labels: Ints
    shingles: sp.csr_array
    left: Ints
    right: Ints
    jaccard: Floats


def make_truth(task: Task, data: Path) -> Truth:
    table = pq.read_table(data / task.file, columns=["text", *task.label])
    texts = table.column("text").to_pylist()
    words = [find_words(text.lower()) for text in texts]
    shingles = shingle_matrix(words, task.ngram)
    labels = label_numbers([table.column(name).to_pylist() for name in task.label])
    return Truth(texts, words, labels, shingles, *near_pairs(shingles, min(THRESHOLDS)))


def label_numbers(columns: list[list[object]]) -> Ints:
    numbers: dict[tuple[object, ...], int] = {}
    keys = zip(*columns, strict=True)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def shingle_matrix(documents: list[list[str]], n: int) -> sp.csr_array:
    """One row per document, a one for each of its distinct shingles."""
    numbers: dict[tuple[str, ...], int] = {}
    columns: list[int] = []
    start = [0]
    for words in documents:
        grams = {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
        columns.extend(numbers.setdefault(gram, len(numbers)) for gram in grams)
        start.append(len(columns))
    ones = np.ones(len(columns), dtype=np.int32)
    return sp.csr_array((ones, columns, start), shape=(len(documents), len(numbers)))


def near_pairs(shingles: sp.csr_array, threshold: float) -> tuple[Ints, Ints, Floats]:
    """All pairs (left < right) with an exact Jaccard of at least `threshold`."""
    sizes = np.diff(shingles.indptr)
    by_shingle = shingles.T.tocsr()
    found: list[tuple[Ints, Ints, Floats]] = []
    for first in range(0, shingles.shape[0], BLOCK):
        shared = (shingles[first : first + BLOCK] @ by_shingle).tocoo()
        left, right = shared.row.astype(np.int64) + first, shared.col.astype(np.int64)
        jaccard = shared.data / (sizes[left] + sizes[right] - shared.data)
        near = (left < right) & (jaccard >= threshold)
        found.append((left[near], right[near], jaccard[near]))
    left, right, jaccard = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return left, right, jaccard


def pair_jaccard(shingles: sp.csr_array, left: Ints, right: Ints) -> Floats:
    shared = shingles[left].multiply(shingles[right]).sum(axis=1)
    sizes = np.diff(shingles.indptr)
    return np.asarray(shared / (sizes[left] + sizes[right] - shared), dtype=np.float64)


@dataclass(frozen=True)
class Quality:
    dropped: int
    pairs_found: float
    unfounded: str
    label_precision: float
    label_recall: float
    differs: str


def judge(truth: Truth, run: Run, threshold: float) -> Quality:
    kept = run.kept
    near = truth.jaccard >= threshold
    left, right = truth.left[near], truth.right[near]
    precision, recall = label_quality(truth.labels, kept)
    return Quality(
        dropped=int((~kept).sum()),
        pairs_found=share(~(kept[left] & kept[right])),
        unfounded=count_unfounded(truth, run, left, right, threshold),
        label_precision=precision,
        label_recall=recall,
        differs=differences(truth, run),
    )


def share(hits: Bools) -> float:
    return float(hits.mean()) if len(hits) else 1.0


def count_unfounded(truth: Truth, run: Run, left: Ints, right: Ints, threshold: float) -> str:
    dropped = np.flatnonzero(~run.kept)
    if run.partner is None:
        has_kept_match = np.zeros(len(run.kept), dtype=bool)
        has_kept_match[left[run.kept[right]]] = True
        has_kept_match[right[run.kept[left]]] = True
        return f"{int((~has_kept_match[dropped]).sum())}"
    partner = run.partner[dropped]
    if (partner < 0).any() or not run.kept[partner].all():
        raise ValueError("a dropped row names no partner, or one that was not kept")
    low = pair_jaccard(truth.shingles, dropped, partner) < threshold
    return with_ascii(truth, dropped[low], partner[low])


def with_ascii(truth: Truth, left: Ints, right: Ints) -> str:
    """How many pairs, and in how many of them the word rules cannot differ."""
    ascii_only = [
        truth.texts[a].isascii() and truth.texts[b].isascii()
        for a, b in zip(left, right, strict=True)
    ]
    return f"{len(ascii_only)} ({sum(ascii_only)} ASCII)"


def label_quality(labels: Ints, kept: Bools) -> tuple[float, float]:
    size = np.bincount(labels)
    stays = np.bincount(labels[kept], minlength=len(size))
    precision = share(stays[labels[~kept]] > 0)
    surplus = (size - 1).sum()
    removed = (size - np.maximum(stays, 1)).sum()
    return precision, float(removed / surplus)


def differences(truth: Truth, run: Run) -> str:
    if run.partner is None or run.similarity is None:
        return ""
    dropped = np.flatnonzero(~run.kept)
    partner = run.partner[dropped]
    exact = pair_jaccard(truth.shingles, dropped, partner)
    other = np.abs(exact - run.similarity[dropped]) > 1e-6
    return with_ascii(truth, dropped[other], partner[other])


def write_input(texts: list[str], path: Path) -> Path:
    table = pa.table({"id": np.arange(len(texts)), "text": pa.array(texts, pa.large_string())})
    pq.write_table(table, path, compression="zstd")
    return path


def table_rows(task: Task, data: Path, work: Path, peers: list[Peer]) -> list[list[str]]:
    truth = make_truth(task, data)
    with tempfile.TemporaryDirectory(dir=work, prefix="quality-") as folder:
        original = write_input(truth.texts, Path(folder) / "original.parquet")
        plain = [" ".join(words) for words in truth.words]
        normalised = write_input(plain, Path(folder) / "normalised.parquet")
        return [
            row(
                task, truth, peer, original if peer.name == "tamis" else normalised, work, threshold
            )
            for threshold in THRESHOLDS
            for peer in peers
        ]


def row(
    task: Task, truth: Truth, peer: Peer, source: Path, work: Path, threshold: float
) -> list[str]:
    name = [f"{task.name}, {task.ngram}-grams", f"{threshold}", peer.name]
    try:
        run = run_peer(peer, source, work, threshold, task.ngram)
    except RunFailedError as failure:
        return [*name, *[""] * 7, str(failure).splitlines()[-1][:60]]
    quality = judge(truth, run, threshold)
    return [
        *name,
        f"{run.kept.sum():,}",
        f"{quality.dropped:,}",
        f"{quality.pairs_found:.4f} of {(truth.jaccard >= threshold).sum():,}",
        quality.unfounded,
        f"{quality.label_precision:.4f}",
        f"{quality.label_recall:.4f}",
        f"{run.seconds:.3f}",
        quality.differs,
    ]


HEADER = (
    *("task", "threshold", "tool", "kept", "dropped", "pairs found", "unfounded"),
    *("label precision", "label recall", "seconds", "differs"),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--tasks", nargs="*", default=[], help="only these, by name")
    parser.add_argument("--peers", nargs="*", default=PEERS)
    parser.add_argument("--workers", type=int, default=2, help="ours")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--textdedup-python", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    others = known_peers(options.peer_python, options.textdedup_python)
    wanted = [peer for peer in others if peer.name.startswith(tuple(options.peers))]
    tools = [ourselves(options.workers), *wanted]
    rows: list[list[str]] = []
    for task in TASKS:
        if not options.tasks or task.name in options.tasks:
            present = [tool for tool in tools if tool.installed()]
            rows += table_rows(task, options.data, options.work, present)
    print_table(HEADER, rows, words=3)
    for tool in tools:
        if not tool.installed():
            print(f"{tool.name}: not installed")


if __name__ == "__main__":
    main()
