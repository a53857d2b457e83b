"""Many short documents: time, memory and quality of `tamis dedup` as the rows grow.

    python benchmarks/scale.py --rows 1000000 5000000 20000000 --work DIR

The documents have 20 to 60 pseudo-words and are made from their row number alone, straight into
Parquet files of a million rows. Of them 15 % are copies of another in which a run of one to six
words is replaced, in half of them the last, so that their exact Jaccard similarity is known: with
n word 5-grams, of which the run touches k, it is (n - k) / (n + k). 5 % are exact copies. 2 % are
documents of 20 templates: 30 words that all share and 10 of their own, J about 0.5, no duplicates,
but thousands to a bucket. The rest, and the originals of the copies, have nothing in common.

The whole command runs in a process of its own, from Parquet to Parquet, ids, ledger, catalog and
interpreter start included. On a machine with other work, seconds on cores tell more than seconds.
Peak memory is the resident size of its process tree, sampled ten times
a second; it runs threads, so the tree is one process and no page is counted twice. Pages of the
system's file cache are not part of it.

Recall is the share of copies with a known J of at least 0.8 that are not left beside their
original; exact copies are told apart from edited ones. A false drop is a dropped row that is
neither a copy nor the original of one. A drop without a known pair is one that no known J of at
least 0.8 explains: two edited copies of one original may be that similar to each other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from harness import print_table, run_watched
from numba import njit, uint64
from synthetic import make_words

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Kinds = npt.NDArray[np.uint8]

SEED = 20_261_121
THRESHOLD = 0.8
NGRAM = 5
FILE_ROWS, GROUP_ROWS = 1_000_000, 100_000
#: Kinds of documents, and the share of 256 that is of each.
ORIGINAL, EDITED, EXACT, TEMPLATE = range(4)
EDITED_SHARE, EXACT_SHARE, TEMPLATE_SHARE = 38, 13, 5
TEMPLATES, SHARED_WORDS, OWN_WORDS = 20, 30, 10
MOST_EDITED = 6


@njit(cache=True)
def mix(h):
    h ^= h >> uint64(33)
    h *= uint64(0xFF51AFD7ED558CCD)
    h ^= h >> uint64(33)
    h *= uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> uint64(33))


@njit(cache=True)
def draw(row, place):
    """A random number of a row: `place` says which."""
    return mix(mix(uint64(row) + uint64(SEED)) + uint64(place) * uint64(0x9E3779B97F4A7C15))


@njit(cache=True)
def kind_of(row):
    share = draw(row, 0) & uint64(255)
    if share < EDITED_SHARE:
        return EDITED
    if share < EDITED_SHARE + EXACT_SHARE:
        return EXACT
    if share < EDITED_SHARE + EXACT_SHARE + TEMPLATE_SHARE:
        return TEMPLATE
    return ORIGINAL


@njit(cache=True)
def words_in(row):
    return np.int64(20) + np.int64(draw(row, 1) % uint64(41))


@njit(cache=True)
def source_of(row, rows):
    """The original that a row is a copy of."""
    place = 2
    while True:
        found = np.int64(draw(row, place) % uint64(rows))
        if kind_of(found) == ORIGINAL:
            return found
        place += 1 << 20


@njit(cache=True)
def edit_of(row, words):
    """The run of words that is replaced, in half of the rows their last: first, and past it."""
    count = np.int64(1) + np.int64(draw(row, 3) % uint64(MOST_EDITED))
    first = words - count
    if draw(row, 6) & uint64(1):
        first = np.int64(draw(row, 4) % uint64(words - count + 1))
    return first, first + count


@njit(cache=True)
def word_at(row, base, kind, place, first, last, vocabulary):
    """The word at a place of a row, of which those from `first` up to `last` are replaced."""
    if kind == TEMPLATE and place < SHARED_WORDS:
        # A row beyond all others stands for every template.
        base = (np.int64(1) << 40) + np.int64(draw(row, 5) % uint64(TEMPLATES))
    elif kind == EDITED and first <= place < last:
        base = row
    return np.int64(draw(base, 64 + place) % uint64(vocabulary))


@njit(cache=True)
def write_rows(first, last, rows, known, known_start, offsets, data):
    """Texts of some rows into `data`, or only their ends into `offsets` where it is empty."""
    vocabulary = known_start.shape[0] - 1
    at = 0
    for row in range(first, last):
        kind = kind_of(row)
        base = source_of(row, rows) if kind in (EDITED, EXACT) else row
        words = SHARED_WORDS + OWN_WORDS if kind == TEMPLATE else words_in(base)
        edit_first, edit_last = edit_of(row, words)
        for place in range(words):
            word = word_at(row, base, kind, place, edit_first, edit_last, vocabulary)
            begin, end = known_start[word], known_start[word + 1]
            if data.shape[0]:
                for i in range(begin, end):
                    data[at + i - begin] = known[i]
                data[at + end - begin] = 32
            at += end - begin + 1
        offsets[row - first + 1] = at
    return at


@njit(cache=True)
def plan(rows):
    """Of every row its kind, its original (itself where it is none), and the similarity to it."""
    kind = np.empty(rows, np.uint8)
    source = np.empty(rows, np.int64)
    similarity = np.ones(rows, np.float64)
    for row in range(rows):
        kind[row] = kind_of(row)
        source[row] = row
        if kind[row] != EDITED and kind[row] != EXACT:
            continue
        source[row] = source_of(row, rows)
        if kind[row] == EDITED:
            words = words_in(source[row])
            first, last = edit_of(row, words)
            grams = words - NGRAM + 1
            touched = min(grams - 1, last - 1) - max(0, first - NGRAM + 1) + 1
            similarity[row] = (grams - touched) / (grams + touched)
    return kind, source, similarity


def make_files(rows: int, work: Path) -> Path:
    """The corpus as Parquet files, made once."""
    folder = work / f"scale-{SEED}-{rows}"
    if folder.exists():
        return folder
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    words = make_words(np.random.default_rng(SEED))
    known = np.frombuffer("".join(words).encode(), np.uint8)
    known_start = np.concatenate([[0], np.cumsum([len(word.encode()) for word in words])])
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    for number, begin in enumerate(range(0, rows, FILE_ROWS)):
        path = unfinished / f"{number:05d}.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) as out:
            for first in range(begin, min(begin + FILE_ROWS, rows), GROUP_ROWS):
                last = min(first + GROUP_ROWS, begin + FILE_ROWS, rows)
                offsets = np.zeros(last - first + 1, np.int32)
                nothing = np.zeros(0, np.uint8)
                size = write_rows(first, last, rows, known, known_start, offsets, nothing)
                data = np.empty(size, np.uint8)
                write_rows(first, last, rows, known, known_start, offsets, data)
                buffers = pa.py_buffer(offsets), pa.py_buffer(data)
                text = pa.StringArray.from_buffers(last - first, *buffers)
                out.write_table(pa.table([np.arange(first, last), text], schema=schema))
    unfinished.rename(folder)
    return folder


@dataclass(frozen=True)
class Outcome:
    """One run of the command."""

    rows: int
    seconds: float
    cpu_seconds: float
    peak: int
    bound: int
    steps: dict[str, float]
    report: dict[str, int]
    sizes: dict[str, int]
    quality: dict[str, float]


def run(rows: int, work: Path, memory: str, workers: int) -> Outcome:
    source = make_files(rows, work)
    output, workspace = work / "scale-out", work / "scale-out.tamis"
    for folder in (output, workspace):
        shutil.rmtree(folder, ignore_errors=True)
    flags = f"--text text --id id --threshold {THRESHOLD} --workers {workers} --memory {memory}"
    tamis = Path(sys.executable).with_name("tamis")
    command = [str(tamis), "dedup", str(source), str(output), *flags.split(), "--json"]
    before = cpu_seconds()
    said, seconds, peak = run_watched(command)
    used = cpu_seconds() - before
    notes = json.loads(next((workspace / "runs").glob("*/run.json")).read_text())
    manifest = json.loads((output / "manifest.json").read_text())
    outcome = Outcome(
        rows,
        seconds,
        used,
        max(peak, notes["peak_memory"]),
        json.loads(said)["memory_bound"],
        {**notes["steps"], "near_dedup, of it signatures": signing(workspace, notes)},
        manifest["stages"][-1]["report"],
        {
            "corpus": size_of(source),
            "dataset": size_of(output),
            **{path.name: size_of(path) for path in sorted(workspace.iterdir())},
        },
        judge(rows, workspace / json.loads((workspace / "manifest.json").read_text())["ledger"][0]),
    )
    for folder in (output, workspace):
        shutil.rmtree(folder)
    return outcome


def cpu_seconds() -> float:
    """Seconds that processes which have ended spent on a core."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def signing(workspace: Path, notes: dict[str, Any]) -> float:
    """Seconds from the end of the step before to the last sidecar of signatures."""
    begun = datetime.fromisoformat(notes["started"]).timestamp() + notes["steps"]["corpus"]
    return max(p.stat().st_mtime for p in (workspace / "signals").rglob("*.parquet")) - begun


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def judge(rows: int, ledger: Path) -> dict[str, float]:
    """Hold the ledger against the plan."""
    import polars as pl

    output = ledger.parents[1].with_name("scale-out")
    kept = np.zeros(rows, np.bool_)
    for path in sorted(output.glob("*.parquet")):
        kept[pq.read_table(path, columns=["id"])["id"].to_numpy()] = True
    kind, source, similarity = plan(rows)
    copies = np.flatnonzero(source != np.arange(rows))
    found = ~(kept[copies] & kept[source[copies]])
    near, exact = similarity[copies] >= THRESHOLD, kind[copies] == EXACT
    planted, known = np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
    planted[copies] = planted[source[copies]] = True
    known[copies[near]] = known[source[copies[near]]] = True
    dropped = ~kept
    decisions = pl.scan_parquet(ledger.parent / "*.parquet").filter(pl.col("action") == "drop")
    stated = decisions.select("similarity").collect()["similarity"].to_numpy()
    return {
        "copies with J >= 0.8": int((near & ~exact).sum()),
        "recall": float(found[near & ~exact].mean()),
        "exact copies": int(exact.sum()),
        "recall of exact": float(found[exact].mean()),
        "copies below": int((~near).sum()),
        "of them lost": float(found[~near].mean()),
        "dropped": int(dropped.sum()),
        "false drops": int((dropped & ~planted).sum()),
        "drops without a known pair": int((dropped & ~known).sum()),
        "template rows dropped": int((dropped & (kind == TEMPLATE)).sum()),
        "least similarity": float(stated.min()) if len(stated) else 1.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000])
    parser.add_argument("--work", type=Path, required=True, help="corpora and scratch files")
    parser.add_argument("--memory", default="6GB", help="limit that the command is given")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write every figure here")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"pyarrow {pa.__version__}; load before: {os.getloadavg()[0]:.1f}"
    )
    outcomes = []
    for rows in options.rows:
        outcomes.append(run(rows, options.work, options.memory, options.workers))
        print(json.dumps(vars(outcomes[-1])), flush=True)
        if options.json:
            options.json.write_text(json.dumps([vars(o) for o in outcomes], indent=1))
    header = (
        "rows",
        "seconds",
        "on cores",
        "rows/s",
        "peak GB",
        "bound GB",
        "recall",
        "exact",
        "false drops",
    )
    lines = [
        [
            f"{o.rows:,}",
            f"{o.seconds:.0f}",
            f"{o.cpu_seconds:.0f}",
            f"{o.rows / o.seconds:,.0f}",
            f"{o.peak / 1e9:.2f}",
            f"{o.bound / 1e9:.2f}",
            f"{o.quality['recall']:.6f}",
            f"{o.quality['recall of exact']:.6f}",
            f"{o.quality['false drops']:,}",
        ]
        for o in outcomes
    ]
    print_table(header, lines, words=0)
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
