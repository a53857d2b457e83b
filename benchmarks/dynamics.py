"""Scores of training records: speed beside reading the same Parquet, and peak memory.

Writes the records of a made-up training (10 million rows by 10 epochs if not told otherwise) into a
temporary folder below --work, which is removed at the end. Then, in turns and each in a process of
its own:

- pyarrow reads the same columns of the same files on as many threads, in the quicker of two ways:
  a file after the other with Arrow's own threads, or files side by side in batches;
- pyarrow reads all columns, likewise;
- tamis computes the area under the margin and the coordinates of the data map (confidence,
  variability, correctness), and keeps them; and all scores, which read nearly all columns.

Shown are medians over the turns of seconds and of ratios within a turn, by the clock and by the
processor (which other work on the machine disturbs less), and the peak memory of the process tree.
Last the public `aum` package (1.0.2): its calculator is given the logits of a slice in batches, as
a trainer gives them, and its seconds a record are set beside ours, which include the reading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import print_table, run_watched

from tamis.scoring.record_scores import SCORES, Account, score_records
from tamis.scoring.training_records import records_of
from tamis.storage.dynamics import RECORD, find_dynamics, write_records

#: What the area under the margin and the data map read.
COLUMNS = ["row_id", "label_logit", "other_logit", "label_prob", "correct"]
MAP = ["aum", "confidence", "variability", "correctness"]
CLASSES = 10


def made(rows: int, epochs: int, folder: Path) -> None:
    """Records of rows whose margins grow over the epochs; a tenth of the labels is wrong."""
    random = np.random.default_rng(0)
    ids = random.integers(0, 1 << 62, rows)
    label = random.integers(0, CLASSES, rows, dtype=np.int32)
    wrong = random.random(rows) < 0.1
    for epoch in range(epochs):
        grown = np.where(wrong, -2, 3) * (epoch + 1) / epochs
        margin = (grown + random.normal(size=rows)).astype(np.float32)
        other = random.normal(size=rows).astype(np.float32)
        prob = 1 / (1 + np.exp(-margin))
        columns: dict[str, Any] = {
            "row_id": ids,
            "epoch": np.full(rows, epoch, np.int32),
            "step": random.permutation(rows) // 256 + epoch * (rows // 256),
            "label": label,
            "label_logit": other + margin,
            "other_logit": other,
            "other": (label + random.integers(1, CLASSES, rows, dtype=np.int32)) % CLASSES,
            "loss": -np.log(np.maximum(prob, 1e-30)),
            "label_prob": prob,
            "entropy": -(prob * np.log(np.maximum(prob, 1e-30))),
            "el2n": np.sqrt(2) * (1 - prob),
            "correct": margin > 0,
            "threshold": np.zeros(rows, np.bool_),
        }
        arrays = [pa.array(columns[f.name]).cast(f.type, safe=False) for f in RECORD]
        told = {"run": 0, "epoch": epoch, "window": 0, "rank": 0, "classes": CLASSES}
        path = folder / "run-0" / f"epoch-{epoch:05d}.parquet"
        write_records(path, pa.table(arrays, schema=RECORD), told)


def read_whole(files: list[Path], columns: list[str] | None) -> None:
    for file in files:
        pq.ParquetFile(file).read(columns, use_threads=True)


def read_batches(files: list[Path], columns: list[str] | None, threads: int) -> None:
    def read(file: Path) -> None:
        for _ in pq.ParquetFile(file).iter_batches(1 << 17, columns=columns, use_threads=False):
            pass

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, files))


def measure(what: str, folder: Path, threads: int) -> dict[str, Any]:
    """Seconds of one thing, with all that it needs loaded and compiled before."""
    files = sorted(folder.rglob("*.parquet"))
    pa.set_cpu_count(threads)
    if what.startswith("pyarrow"):
        columns = COLUMNS if what == "pyarrow" else None
        took = []
        for way in (read_whole, lambda *a: read_batches(*a, threads)):
            begin = time.perf_counter(), time.process_time()
            way(files, columns)
            took.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        return {"seconds": min(took)[0], "processor": min(two[1] for two in took)}
    scores = MAP if what == "tamis" else list(SCORES)
    with tempfile.TemporaryDirectory() as small:
        made(1000, 2, Path(small))
        list(score_records(find_dynamics(small), Account(), threads, scores))
    begin, processor = time.perf_counter(), time.process_time()
    account = Account()
    kept = list(score_records(find_dynamics(str(folder)), account, threads, scores))
    told = {
        "seconds": time.perf_counter() - begin,
        "processor": time.process_time() - processor,
    }
    aum = [float(np.nansum(batch["aum"].to_numpy(zero_copy_only=False))) for batch in kept]
    return {**told, "rows": account.rows, "mean": sum(aum) / account.rows}


def measure_package(rows: int, epochs: int) -> dict[str, Any]:
    """Seconds of the aum package for logits in batches of 256, and of what a recorder computes."""
    import torch
    from aum import AUMCalculator

    random = np.random.default_rng(1)
    labels = random.integers(0, CLASSES, rows)
    theirs = AUMCalculator(tempfile.gettempdir())
    records_of(np.zeros((1, CLASSES), np.float32), [0])
    taken, ours = 0.0, 0.0
    sums = np.zeros(rows)
    for _ in range(epochs):
        for begin in range(0, rows, 256):
            some = slice(begin, min(rows, begin + 256))
            logits = random.normal(size=(some.stop - begin, CLASSES)).astype(np.float32)
            tensors, ids = (torch.from_numpy(logits), torch.from_numpy(labels[some])), range(rows)
            names = list(ids[some])
            start = time.perf_counter()
            theirs.update(*tensors, names)
            between = time.perf_counter()
            found = records_of(logits, labels[some])
            ours += time.perf_counter() - between
            taken += between - start
            sums[some] += found.label_logit - found.other_logit
    expected = np.array([theirs.sums[row] for row in range(rows)])
    if np.abs(expected - sums).max() > 1e-4:
        raise SystemExit("the margins differ from the package's")
    records = rows * epochs
    return {"seconds": taken, "records": records, "recorder": ours}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slice", type=int, default=100_000, help="rows for the aum package")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure == "write":
        made(options.rows, options.epochs, options.folder)
        return
    if options.measure == "aum":
        print(json.dumps(measure_package(options.slice, 2)))
        return
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder, options.threads)))
        return

    def alone(what: str, folder: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--measure", what, "--folder", folder]
        for name in ("rows", "epochs", "threads", "slice"):
            command += [f"--{name}", str(getattr(options, name))]
        said, _, peak = run_watched(command)
        return {**json.loads(said.splitlines()[-1] if said.strip() else "{}"), "peak": peak}

    with tempfile.TemporaryDirectory(dir=options.work, prefix="dynamics-") as folder:
        alone("write", folder)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        records = options.rows * options.epochs
        print(f"{records:,} records of {options.rows:,} rows in {size / 1e9:.2f} GB\n")
        kinds = ["pyarrow", "tamis", "pyarrow, all columns", "tamis, all scores"]
        turns = [{kind: alone(kind, folder) for kind in kinds} for _ in range(options.repeats)]
        package = [alone("aum", folder) for _ in range(options.repeats)]
    lines = []
    for kind in kinds:
        seconds = [turn[kind]["seconds"] for turn in turns]
        base = "pyarrow" if kind in kinds[:2] else "pyarrow, all columns"
        speeds = [turn[base]["seconds"] / turn[kind]["seconds"] for turn in turns]
        busy = [turn[base]["processor"] / turn[kind]["processor"] for turn in turns]
        lines.append(
            [
                kind,
                f"{statistics.median(seconds):.2f}",
                f"{1e9 * statistics.median(seconds) / records:.0f}",
                f"{statistics.median(speeds):.2f}",
                f"{min(speeds):.2f}-{max(speeds):.2f}",
                f"{statistics.median(busy):.2f}",
                f"{max(turn[kind]['peak'] for turn in turns) / 1e9:.2f}",
            ]
        )
    for name, key in (("aum package", "seconds"), ("records_of, one thread", "recorder")):
        each = [1e9 * run[key] / run["records"] for run in package]
        lines.append([name, "", f"{statistics.median(each):.0f}", "", "", "", ""])
    header = ("", "seconds", "ns a record", "speed of reading", "range", "by processor", "peak GB")
    print_table(header, lines, 1)


if __name__ == "__main__":
    main()
