"""tamis: `semantic_duplicates`, vectors in memory to mask, warm."""

from __future__ import annotations

import time

import common
import numpy as np

from tamis.selectors.semantic_duplicates import semantic_duplicates

WARM_UP = 300


def main() -> None:
    options = common.arguments(__doc__)
    vectors = np.load(options.input)
    semantic_duplicates(vectors[:WARM_UP], options.threshold, k=9, workers=options.workers)
    watch, cpu = common.Stopwatch(), time.process_time()
    found = semantic_duplicates(vectors, options.threshold, workers=options.workers)
    watch.lap("semantic_duplicates")
    seconds = watch.total()
    watch.stages["cpu"] = time.process_time() - cpu
    watch.stages["pairs"] = found.counts["duplicate_pairs"]
    common.report("tamis", np.asarray(found.kept), options.kept, watch, seconds)


if __name__ == "__main__":
    main()
