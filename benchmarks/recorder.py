"""What recording adds to a step of training, beside the `aum` package on the same batches.

For batches of one and of --rows rows and several numbers of classes (float32 logits of PyTorch on
the processor, one thread): processor time of `DynamicsRecorder.record`, its share of a step of
100 ms, and that of `AUMCalculator.update` of the `aum` package, which keeps a sum and a count of a
row only, and fails at a batch of one.
Times of one number of classes are taken in turns, batch by batch, and are medians; ratios are
medians of ratios of neighbours. A batch is made anew each time, outside of the clock.

Then the end of an epoch of --epoch rows: seconds by the clock, of which the disk is a part,
processor time per million records, bytes in the file and, while it is recorded, resident memory a
record.

    python benchmarks/recorder.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from aum import AUMCalculator
from harness import print_table

from tamis import DynamicsRecorder

STEP_MS = 100.0


def batch_times(
    rows: int, classes: int, times: int, logits: bool
) -> tuple[list[float], list[float]]:
    """Milliseconds of processor time of each `record`, and of each `update` of `aum`."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        recorder = DynamicsRecorder(folder, logits=logits)
        other = AUMCalculator(folder)
        recorder.start_epoch(0)
        for number in range(-3, times):
            z = torch.randn(rows, classes) * 3
            y = torch.randint(0, classes, (rows,))
            ids = torch.arange(rows) + (number + 3) * rows
            begin = time.process_time()
            recorder.record(ids, z, y, number + 3)
            middle = time.process_time()
            if rows > 1:
                other.update(z, y, ids.tolist())
            end = time.process_time()
            if number >= 0:  # the first few load and compile
                ours.append((middle - begin) * 1e3)
                theirs.append((end - middle) * 1e3)
    return ours, theirs


def epoch_times(rows: int, batch: int, text: bool) -> tuple[float, float, float, float]:
    """Of the end of an epoch: seconds, processor seconds; bytes a record on disk and in memory."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = DynamicsRecorder(folder)
        order = np.random.default_rng(0).permutation(rows)
        z, y = torch.randn(batch, 10) * 3, torch.randint(0, 10, (batch,))
        with recorder.epoch(0):
            recorder.record(
                [f"{i:032x}" for i in order[:batch]] if text else order[:batch], z, y, 0
            )
        process = psutil.Process()
        before = process.memory_info().rss
        recorder.start_epoch(1)
        for begin in range(0, rows, batch):
            ids = order[begin : begin + batch]
            at = slice(0, len(ids))
            given = [f"{i:032x}" for i in ids] if text else ids
            recorder.record(given, z[at] + begin / rows, y[at], begin)
        memory = process.memory_info().rss - before
        wall, busy = time.perf_counter(), time.process_time()
        recorder.end_epoch()
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        size = Path(recorder.files()[-1]).stat().st_size
    return wall, busy, size / rows, memory / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=256, help="rows of a batch")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--times", type=int, default=200, help="batches of each number of classes")
    parser.add_argument("--epoch", type=int, default=2_000_000, help="rows of an epoch")
    given = parser.parse_args()
    torch.set_num_threads(1)

    lines = []
    for rows in sorted({1, given.rows}):
        for classes in given.classes:
            ours, theirs = batch_times(rows, classes, given.times, False)
            kept, _ = batch_times(rows, classes, min(given.times, 50), True)
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            fails = rows == 1
            mine = statistics.median(ours)
            lines.append(
                [
                    f"{rows:,} × {classes:,}",
                    f"{mine:.2f}",
                    f"{mine / STEP_MS:.2%}",
                    f"{statistics.median(kept):.2f}",
                    "fails" if fails else f"{statistics.median(theirs):.2f}",
                    "" if fails else f"{ratio:.1f}",
                ]
            )
    header = ("batch × classes", "ms", "of 100 ms", "with logits", "aum, ms", "aum / ours")
    print_table(header, lines, 1)
    print()
    lines = []
    for text in (False, True):
        wall, busy, size, memory = epoch_times(given.epoch, given.rows, text)
        lines.append(
            [
                "text of 32" if text else "int64",
                *(f"{given.epoch:,}", f"{wall:.1f}", f"{busy / given.epoch * 1e6:.2f}"),
                *(f"{size:.0f}", f"{memory:.0f}"),
            ]
        )
    header = ("ids", "records", "s", "processor s a million", "bytes a record", "memory a record")
    print_table(header, lines, 1)


if __name__ == "__main__":
    main()
