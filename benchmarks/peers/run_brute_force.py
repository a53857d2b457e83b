"""Brute force in numpy: every pair once, in blocks of a matrix product; the first of a pair stays.

The pairs found go beside the mask, as the truth for the others.
"""

from __future__ import annotations

import time

import common
import numpy as np

ROWS, OTHERS = 2048, 8192


def main() -> None:
    options = common.arguments(__doc__)
    vectors = np.load(options.input)
    watch, cpu = common.Stopwatch(), time.process_time()
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found: list[tuple[common.Bools, common.Bools]] = []
    for first in range(0, len(vectors), ROWS):
        block = vectors[first : first + ROWS]
        # Others up to the end of the block: with the later rows each pair is met once.
        for begin in range(0, first + len(block), OTHERS):
            others = vectors[begin : min(begin + OTHERS, first + len(block))]
            row, other = np.nonzero(block @ others.T >= options.threshold)
            row += first
            other += begin
            found.append((row[other < row], other[other < row]))
    watch.lap("pairs")
    row = np.concatenate([part[0] for part in found])
    other = np.concatenate([part[1] for part in found])
    order = np.argsort(row, kind="stable")
    kept = np.ones(len(vectors), dtype=bool)
    for place in order.tolist():
        if kept[other[place]]:
            kept[row[place]] = False
    watch.lap("choose")
    seconds = watch.total()
    watch.stages["cpu"] = time.process_time() - cpu
    np.savez(options.kept.with_name("pairs.npz"), row=row, other=other)
    common.report("numpy", kept, options.kept, watch, seconds)


if __name__ == "__main__":
    main()
