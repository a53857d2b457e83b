"""gaoya: MinHashStringIndex, bulk insert and bulk query, texts in memory to mask.

gaoya shingles in Rust on all cores (RAYON_NUM_THREADS holds it to the workers given). Its query
computes every signature a second time: the Python interface has no way around that.
"""

from __future__ import annotations

import os

import common
import gaoya
import numpy as np


def keep_first(neighbours: list[list[int]]) -> common.Bools:
    """A row stays unless one before it stays and is its neighbour."""
    kept = np.ones(len(neighbours), dtype=bool)
    for row, found in enumerate(neighbours):
        if len(found) > 1:
            kept[row] = not any(other < row and kept[other] for other in found)
    return kept


def main() -> None:
    options = common.arguments(__doc__)
    os.environ["RAYON_NUM_THREADS"] = str(options.workers)
    texts = common.read_texts(options.input)
    ngrams = (options.ngram, options.ngram)
    watch = common.Stopwatch()
    index = gaoya.minhash.MinHashStringIndex(
        32, options.threshold, options.bands, options.rows, None, "word", True, ngrams, "smallvec"
    )
    index.par_bulk_insert_docs(list(range(len(texts))), texts)
    watch.lap("insert")
    neighbours = index.par_bulk_query(texts)
    watch.lap("query")
    kept = keep_first(neighbours)
    watch.lap("choose")
    common.report("gaoya", kept, options.kept, watch, watch.total())


if __name__ == "__main__":
    main()
