"""Near-duplicate removal: tamis and its peers on the same documents, in one go.

    python benchmarks/near_dedup.py --work DIR --peer-python A/bin/python \\
        --textdedup-python B/bin/python

Everyone gets the same synthetic corpus (see synthetic.py), word 5-grams, 9 bands of 13 hashes at a
threshold of 0.8 (128 permutations, of which 117 are used) and two cores. tamis also verifies: it
drops a row only where the exact Jaccard with a row it keeps reaches the threshold.

Every measurement is a process of its own, and each one of a peer directly follows one of ours
(A B A B …). A ratio is the median, over those pairs, of the peer's seconds by ours. Start-up and
imports are never timed, except in whole commands. What is timed:

- tamis, in memory: the text column in memory to the verified mask, after a call on 300 documents.
- gaoya: Python strings in memory to the mask, Rust on all cores. Every signature is computed twice,
  once to insert and once to query; the interface offers nothing else.
- rensa: Python strings in memory to the mask. Shingles in Python, RMinHash, RMinHashDeduplicator.
  The library works in one process ("1 process"); "2 processes" adds a pool of forked processes
  around shingles and signatures, and is what the gate is held against.
- datasketch: Python strings in memory to the mask; MinHash.bulk with xxhash, one process.
- datatrove: LocalPipelineExecutor, two workers, the first three of its four MinHash stages, that is
  to the list of rows to remove. It reads Parquet in its first stage and we cannot take that out.
  Words by a regular expression and lower-casing only, which is faster than its defaults.
- text-dedup: its minhash command called in process, two processes, from memory-mapped Arrow to the
  filtered data set; saving it is not counted. It copies the text on the way, as it always does.
- tamis dedup: the whole command, interpreter start included, Parquet file to Parquet file.
- datatrove, end to end: its four stages, Parquet to Parquet, without interpreter start.
- pyarrow rewrite: a whole process that reads the file and writes it again with zstd.

Peak memory is the resident size of the whole process tree, sampled ten times a second, with the
texts; pages that forked processes share count once for each. Recall is the share of the known pairs
with an exact Jaccard of at least 0.8 of which not both rows are kept; precision the share of
dropped rows for which a kept row with such a Jaccard exists. datatrove and text-dedup join chains
of similar documents, and nobody but tamis verifies: that is where their precision goes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from harness import (
    Bools,
    Peer,
    Run,
    RunFailedError,
    known_peers,
    ourselves,
    print_table,
    run_command,
    run_peer,
)
from synthetic import Corpus, describe, make_corpus

THRESHOLD = 0.8
GATE_DOCUMENTS = 200_000
WARM_UP_DOCUMENTS = 1_000
OURS, COMMAND, REWRITE = "tamis, in memory", "tamis dedup (command)", "pyarrow rewrite"
END_TO_END = "datatrove, end to end"


@dataclass(frozen=True)
class Gate:
    """`bound` and `goal` on the ratio of `run` to ours; for the floor, of ours to `run`."""

    run: str
    bound: float
    goal: float
    at_most: bool = False

    def met(self, ratio: float, limit: float) -> bool:
        return ratio <= limit if self.at_most else ratio >= limit


GATES = (
    Gate("datatrove", 25, 40),
    Gate("text-dedup", 25, 40),
    Gate("rensa, 2 processes", 10, 18),
    Gate("gaoya", 4, 7),
    Gate(END_TO_END, 10, 10),
    Gate(REWRITE, 3, 2, at_most=True),
)


@dataclass
class Results:
    """Runs by name, and for each name the seconds of the run of ours before it, in pairs."""

    runs: dict[str, list[Run]] = field(default_factory=dict)
    pairs: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, run: Run, ours: float | None = None) -> None:
        self.runs.setdefault(name, []).append(run)
        if ours is not None:
            self.pairs.setdefault(name, []).append((ours, run.seconds))

    def ratio(self, name: str) -> float | None:
        if name not in self.pairs:
            return None
        return statistics.median(theirs / ours for ours, theirs in self.pairs[name])


class Bench:
    """One corpus size: who runs, and what came out."""

    def __init__(self, corpus: Corpus, options: argparse.Namespace) -> None:
        self.corpus, self.work = corpus, options.work
        self.results = Results()
        self.ours = self.present(ourselves(options.workers))
        self.command = Path(sys.executable).with_name("tamis")
        self.workers = options.workers
        peers = known_peers(options.peer_python, options.textdedup_python)
        self.peers = [
            peer for peer in peers if self.wanted(peer, options.peers) and self.present(peer)
        ]

    @staticmethod
    def wanted(peer: Peer, names: list[str]) -> bool:
        return not names or any(peer.name.startswith(name) for name in names)

    def present(self, peer: Peer) -> Peer | None:
        if peer.installed():
            return peer
        self.results.missing[peer.name] = "not installed"
        return None

    def round(self) -> None:
        for peer in self.peers:
            if peer.name in self.results.missing:
                continue
            mine = self.measure_ours()
            command = self.measure_command() if peer.name == "datatrove" else None
            self.measure_peer(peer, mine, command)
        command = self.measure_command()
        floor = Peer(REWRITE, "run_rewrite.py", Path(sys.executable), "pyarrow")
        run = run_peer(floor, self.corpus.path, self.work, THRESHOLD)
        self.add(REWRITE, whole(run, run.wall), command)

    def measure_ours(self) -> float | None:
        if self.ours is None:
            return None
        run = run_peer(self.ours, self.corpus.path, self.work, THRESHOLD)
        self.add(OURS, run)
        return run.seconds

    def measure_command(self) -> float | None:
        if COMMAND in self.results.missing or not self.command.exists():
            self.results.missing.setdefault(COMMAND, "not installed")
            return None
        try:
            run = self.dedup(self.corpus)
        except RunFailedError as failure:
            self.fail(COMMAND, failure)
            return None
        self.add(COMMAND, run)
        return run.seconds

    def dedup(self, corpus: Corpus) -> Run:
        output = self.work / "command-output"
        flags = f"--text text --id id --threshold {THRESHOLD} --workers {self.workers}"
        command = [str(self.command), "dedup", str(corpus.path), str(output), *flags.split()]
        return run_command(command, output, corpus.documents)

    def measure_peer(self, peer: Peer, mine: float | None, command: float | None) -> None:
        try:
            run = run_peer(peer, self.corpus.path, self.work, THRESHOLD)
        except RunFailedError as failure:
            self.fail(peer.name, failure)
            return
        self.add(peer.name, run, mine)
        if peer.name == "datatrove" and run.end_to_end is not None:
            self.add(END_TO_END, whole(run, run.end_to_end), command)

    def fail(self, name: str, failure: RunFailedError) -> None:
        print(failure, file=sys.stderr)
        self.results.missing[name] = f"failed: {str(failure).strip().splitlines()[-1]}"

    def add(self, name: str, run: Run, ours: float | None = None) -> None:
        self.results.add(name, run, ours)
        print(f"  {name}: {run.seconds:.3f} s", file=sys.stderr, flush=True)


def whole(run: Run, seconds: float) -> Run:
    return Run(run.version, seconds, seconds, run.wall, run.peak_rss, run.kept, run.stages)


def quality(corpus: Corpus, kept: Bools) -> tuple[float, float]:
    """Recall over the known near-duplicate pairs, and precision over the dropped rows."""
    near = corpus.jaccard >= THRESHOLD
    left, right = corpus.left[near], corpus.right[near]
    recall = 1.0 - float(np.mean(kept[left] & kept[right]))
    justified = np.zeros(len(kept), dtype=bool)
    justified[left[kept[right]]] = True
    justified[right[kept[left]]] = True
    dropped = ~kept
    precision = float(np.mean(justified[dropped])) if dropped.any() else 1.0
    return recall, precision


def copy_bandwidth(size: int) -> float:
    """Bytes per second of a memory copy on one core, best of five."""
    source = np.ones(max(size, 1 << 28), dtype=np.uint8)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(6):
        begin = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - begin)
    return len(source) / best


def row(corpus: Corpus, results: Results, name: str) -> list[str]:
    runs = results.runs[name]
    seconds = [run.seconds for run in runs]
    middle = statistics.median(seconds)
    ratio = results.ratio(name)
    recall, precision = quality(corpus, runs[-1].kept)
    judged = name != REWRITE
    return [
        name,
        runs[-1].version,
        f"{middle:.3f}",
        f"{min(seconds):.3f}-{max(seconds):.3f}",
        f"{corpus.text_bytes / middle / 1e6:,.1f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{max(run.peak_rss for run in runs) / 1e6:,.0f}",
        f"{runs[-1].kept.sum():,}",
        f"{recall:.4f}" if judged else "",
        f"{precision:.4f}" if judged else "",
    ]


HEADER = (
    *("run", "version", "seconds", "range", "MB/s", "by ours"),
    *("peak MB", "kept", "recall", "precision"),
)


def print_floor(corpus: Corpus, results: Results) -> None:
    if OURS not in results.runs:
        return
    ours = corpus.text_bytes / statistics.median(run.seconds for run in results.runs[OURS])
    copy = copy_bandwidth(corpus.text_bytes)
    print(
        f"Floor: tamis goes through {ours / 1e6:,.0f} MB of text a second, a memory copy on one "
        f"core through {copy / 1e6:,.0f} MB: {copy / ours:.1f} times as much."
    )


def print_gates(results: Results, documents: int) -> None:
    print(f"\nGates (stated for {GATE_DOCUMENTS:,} documents, here {documents:,}):")
    for gate in GATES:
        ratio = results.ratio(gate.run)
        sign = "<=" if gate.at_most else ">="
        if ratio is None:
            print(f"  {gate.run:24} {sign} {gate.bound:g}: not measured")
            continue
        value = 1 / ratio if gate.at_most else ratio
        verdict = "met" if gate.met(value, gate.bound) else "NOT MET"
        goal = "reached" if gate.met(value, gate.goal) else "not reached"
        print(
            f"  {gate.run:24} {sign} {gate.bound:g}: {verdict} ({value:.2f}); "
            f"goal {sign} {gate.goal:g} {goal}"
        )


def print_results(corpus: Corpus, results: Results) -> None:
    print(f"\n{describe(corpus)}\n")
    print_table(HEADER, [row(corpus, results, name) for name in results.runs], words=2)
    for name, reason in results.missing.items():
        print(f"{name}: {reason}")
    print_floor(corpus, results)


def as_json(corpus: Corpus, results: Results) -> dict[str, object]:
    return {
        "documents": corpus.documents,
        "text_bytes": corpus.text_bytes,
        "seconds": {name: [run.seconds for run in runs] for name, runs in results.runs.items()},
        "stages": {name: runs[-1].stages for name, runs in results.runs.items()},
        "pairs": results.pairs,
        "ratios": {name: results.ratio(name) for name in results.pairs},
        "peak_rss": {
            name: max(run.peak_rss for run in runs) for name, runs in results.runs.items()
        },
        "quality": {name: quality(corpus, runs[-1].kept) for name, runs in results.runs.items()},
        "missing": results.missing,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="+", default=[20_000, GATE_DOCUMENTS])
    parser.add_argument("--work", type=Path, required=True, help="corpora and scratch files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="ours")
    parser.add_argument("--non-ascii", type=float, default=0.1, help="share of documents")
    parser.add_argument("--peers", nargs="*", default=[], help="only these, by start of name")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--textdedup-python", type=Path)
    parser.add_argument("--json", type=Path, help="also write every figure here")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, pyarrow {pa.__version__}; threshold {THRESHOLD}, "
        f"{options.repeats} repeats, {options.non_ascii:.0%} of documents with non-ASCII characters"
    )
    collected = []
    small = make_corpus(WARM_UP_DOCUMENTS, options.work, options.non_ascii)
    for documents in sorted(options.documents):
        corpus = make_corpus(documents, options.work, options.non_ascii)
        bench = Bench(corpus, options)
        warm_up(bench, small)
        for _ in range(options.repeats):
            bench.round()
        print_results(corpus, bench.results)
        collected.append(as_json(corpus, bench.results))
        if options.json:
            options.json.write_text(json.dumps(collected, indent=1))
    print_gates(bench.results, corpus.documents)


def warm_up(bench: Bench, small: Corpus) -> None:
    """Compiled kernels are cached on disk by the first command; that is not what we measure."""
    if not bench.command.exists():
        return
    try:
        bench.dedup(small)
    except RunFailedError as failure:
        bench.fail(COMMAND, failure)


if __name__ == "__main__":
    main()
