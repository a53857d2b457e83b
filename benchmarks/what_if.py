"""What-if on a million rows against a run under the other rules.

Makes a corpus of short documents with known copies, deduplicates it at 0.8, and then takes turns:
`tamis what-if` at another threshold, and `tamis dedup` at that threshold from nothing. Both are
timed as commands, from interpreter start to the last line, and must keep the same number of rows.

    python benchmarks/what_if.py --work DIR [--documents 1000000] [--words 60]

Texts are read for the pairs that are missing, more of them at a lower threshold. Seconds are
medians; "CPU" is what the process and its threads used, which other work on the machine changes
less than seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness import print_table
from synthetic import make_corpus

HEADER = ("threshold", "what-if s", "CPU s", "run s", "CPU s", "ratio", "kept")


def timed(*arguments: object) -> tuple[float, float, dict[str, object]]:
    """Seconds, CPU seconds, and what a command says with --json."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    command = [sys.executable, "-m", "tamis.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, json.loads(done.stdout)


def dedup(corpus: Path, home: Path, threshold: float) -> tuple[float, float, int]:
    for folder in (home, home.with_name(f"{home.name}.tamis")):
        shutil.rmtree(folder, ignore_errors=True)
    seconds, cpu, said = timed("dedup", corpus, home, "--id", "id", "--threshold", threshold)
    return seconds, cpu, said["rows"]["kept"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=60, help="of a median document")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.7, 0.75, 0.85, 0.9])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    corpus = make_corpus(arguments.documents, arguments.work, words=arguments.words)
    home, other = arguments.work / "what-if", arguments.work / "what-if-other"
    dedup(corpus.path, other, 0.8)  # compiles what is not compiled yet
    dedup(corpus.path, home, 0.8)
    timed("what-if", "-w", home, "near_dedup.threshold=0.81")
    print(
        f"{corpus.documents:,} documents, {corpus.text_bytes / 1e6:,.0f} MB of text, run at 0.8; "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    rows = []
    for threshold in arguments.thresholds:
        quick, slow = [], []
        for _ in range(arguments.repeats):
            change = f"near_dedup.threshold={threshold}"
            seconds, cpu, said = timed("what-if", "-w", home, change)
            quick.append((seconds, cpu))
            kept = said["after"]["rows"]
            *run, truth = dedup(corpus.path, other, threshold)
            slow.append(run)
            assert kept == truth, f"at {threshold} what-if keeps {kept}, a run {truth}"
        ratio = statistics.median(b[0] / a[0] for a, b in zip(quick, slow, strict=True))
        figures = [
            statistics.median(part) for side in (quick, slow) for part in zip(*side, strict=True)
        ]
        rows.append([f"{threshold:g}", *(f"{f:.2f}" for f in figures), f"{ratio:.1f}", f"{kept:,}"])
    print_table(HEADER, rows, words=1)
    seconds, cpu, said = timed(
        *("what-if", "-w", home, "--move", "near_dedup.threshold"),
        *("--target-rows", int(0.87 * corpus.documents)),
    )
    print(f"a budget of rows: {seconds:.1f} s, CPU {cpu:.1f} s; {said['notes'][0]}")


if __name__ == "__main__":
    main()
