"""What recording adds to a step of training, beside the `aum` package on the same batches.

For batches of one and of --rows rows and several numbers of classes (float32 logits of PyTorch on
the processor, one thread): processor time of `DynamicsRecorder.record`, its share of a step of
100 ms, that of the batch's cross-entropy forward and backward, which every step takes anyway, and
that of `AUMCalculator.update` of the `aum` package, which keeps a sum and a count of a row only,
and fails at a batch of one.
Times of one number of classes are taken in turns, batch by batch, and are medians; ratios are
medians of ratios of neighbours. A batch is made anew each time, outside of the clock.

Then the end of an epoch of --epoch rows: seconds by the clock, of which the disk is a part,
processor time per million records, and bytes a record: in the file, in memory (of NumPy and Arrow)
before the end, and at most.

    python benchmarks/recorder.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from aum import AUMCalculator
from harness import print_table

from tamis import DynamicsRecorder

STEP_MS = 100.0


def batch_times(rows: int, classes: int, times: int, logits: bool) -> list[list[float]]:
    """Milliseconds of processor time of each `record`, cross-entropy, and `update` of `aum`."""
    found: list[list[float]] = [[], [], []]
    with tempfile.TemporaryDirectory() as folder:
        recorder = DynamicsRecorder(folder, logits=logits)
        other = AUMCalculator(folder)
        recorder.start_epoch(0)
        for number in range(times + 3):
            z = (torch.randn(rows, classes) * 3).requires_grad_()
            y = torch.randint(0, classes, (rows,))
            ids = torch.arange(rows) + number * rows
            at = [time.process_time()]
            recorder.record(ids, z, y, number)
            at.append(time.process_time())
            torch.nn.functional.cross_entropy(z, y).backward()
            at.append(time.process_time())
            if rows > 1:
                with torch.no_grad():
                    other.update(z, y, ids.tolist())
            at.append(time.process_time())
            for place, took in enumerate(found):
                took.append((at[place + 1] - at[place]) * 1e3)
    return [took[3:] for took in found]  # the first few load and compile


def epoch_times(rows: int, batch: int, text: bool) -> tuple[float, float, float]:
    """Of the end of an epoch: seconds, processor seconds, bytes a record on disk."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = DynamicsRecorder(folder)
        record_epoch(recorder, 1000, batch, text)
        recorder.end_epoch()  # the first loads and compiles
        record_epoch(recorder, rows, batch, text)
        wall, busy = time.perf_counter(), time.process_time()
        recorder.end_epoch()
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        return wall, busy, Path(recorder.files()[-1]).stat().st_size / rows


def epoch_memory(rows: int, batch: int, text: bool) -> tuple[float, float]:
    """Bytes a record in memory, of NumPy and Arrow: before the end of the epoch, and at most."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = DynamicsRecorder(folder)
        pool = pa.default_memory_pool()
        tracemalloc.start()
        before = pool.bytes_allocated()
        record_epoch(recorder, rows, batch, text)
        held = tracemalloc.get_traced_memory()[0] + pool.bytes_allocated() - before
        tracemalloc.reset_peak()
        recorder.end_epoch()
        most = tracemalloc.get_traced_memory()[1] + pool.max_memory() - before
        tracemalloc.stop()
        return held / rows, most / rows


def record_epoch(recorder: DynamicsRecorder, rows: int, batch: int, text: bool) -> None:
    order = np.random.default_rng(0).permutation(rows)
    recorder.start_epoch(len(recorder.files()))
    for begin in range(0, rows, batch):
        ids = order[begin : begin + batch]
        given = [f"{i:032x}" for i in ids] if text else ids
        logits = torch.randn(len(ids), 10) * 3
        recorder.record(given, logits, torch.randint(0, 10, (len(ids),)), begin // batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=256, help="rows of a batch")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000, 2000, 10_000])
    parser.add_argument("--times", type=int, default=200, help="batches of each number of classes")
    parser.add_argument("--epoch", type=int, default=1_000_000, help="rows of an epoch")
    given = parser.parse_args()
    torch.set_num_threads(1)

    lines = []
    for rows in sorted({1, given.rows}):
        for classes in given.classes:
            ours, loss, theirs = batch_times(rows, classes, given.times, False)
            kept = batch_times(rows, classes, min(given.times, 50), True)[0]
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            mine, fails = statistics.median(ours), rows == 1
            lines.append(
                [
                    f"{rows:,} × {classes:,}",
                    f"{mine:.2f}",
                    f"{mine / STEP_MS:.2%}",
                    f"{statistics.median(kept):.2f}",
                    f"{statistics.median(loss):.2f}",
                    "fails" if fails else f"{statistics.median(theirs):.2f}",
                    "" if fails else f"{ratio:.1f}",
                ]
            )
    header = (
        *("batch × classes", "ms", "of 100 ms", "with logits", "cross-entropy", "aum"),
        "aum / ours",
    )
    print_table(header, lines, 1)
    print()
    lines = []
    for text in (False, True):
        held, most = epoch_memory(given.epoch, given.rows, text)
        wall, busy, size = epoch_times(given.epoch, given.rows, text)
        lines.append(
            [
                "text of 32" if text else "int64",
                *(f"{given.epoch:,}", f"{wall:.1f}", f"{busy / given.epoch * 1e6:.2f}"),
                *(f"{size:.0f}", f"{held:.0f}", f"{most:.0f}"),
            ]
        )
    header = ("ids", "records", "s", "processor s a million", "in the file", "in memory", "at most")
    print_table(header, lines, 1)


if __name__ == "__main__":
    main()
