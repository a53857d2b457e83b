"""rensa: Python shingles, RMinHash signatures, RMinHashDeduplicator, texts in memory to mask.

The fastest complete pipeline of version 0.5: shingles are handed over lazily, so that they are
hashed while they are in the cache, and the deduplicator answers row by row. With one worker that is
rensa as its documentation uses it; with more, forked processes shingle and sign while this one
deduplicates, since shingling in Python is most of the time.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import common
import numpy as np
import rensa

BLOCK = 500


class Signer:
    """Signs a block of the texts that a forked process inherits."""

    def __init__(self, texts: list[str], ngram: int, permutations: int) -> None:
        self.texts, self.ngram, self.permutations = texts, ngram, permutations

    def shingles(self, first: int, last: int) -> Iterator[list[str]]:
        return (common.word_shingles(text, self.ngram) for text in self.texts[first:last])

    def sign(self, first: int) -> list[rensa.RMinHash]:
        shingles = self.shingles(first, first + BLOCK)
        return rensa.RMinHash.from_token_sets(shingles, self.permutations, common.SEED)


signer: Signer


def sign(first: int) -> list[rensa.RMinHash]:
    return signer.sign(first)


def in_one_process(deduplicator: rensa.RMinHashDeduplicator) -> list[bool]:
    shingles = signer.shingles(0, len(signer.texts))
    return deduplicator.add_pairs((str(row), tokens) for row, tokens in enumerate(shingles))


def in_processes(deduplicator: rensa.RMinHashDeduplicator, workers: int) -> list[bool]:
    kept: list[bool] = []
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for signatures in pool.imap(sign, range(0, len(signer.texts), BLOCK)):
            first = len(kept)
            pairs = ((str(first + place), value) for place, value in enumerate(signatures))
            kept.extend(deduplicator.add_pairs(pairs))
    return kept


def main() -> None:
    global signer
    options = common.arguments(__doc__)
    permutations = options.bands * options.rows
    signer = Signer(common.read_texts(options.input), options.ngram, permutations)
    watch = common.Stopwatch()
    deduplicator = rensa.RMinHashDeduplicator(
        options.threshold, permutations, True, options.bands, common.SEED
    )
    if options.workers == 1:
        kept = in_one_process(deduplicator)
    else:
        kept = in_processes(deduplicator, options.workers)
    watch.lap("shingle, sign, deduplicate")
    common.report("rensa", np.array(kept, dtype=bool), options.kept, watch, watch.total())


if __name__ == "__main__":
    main()
