"""datasketch: MinHash.bulk with xxhash, then MinHashLSH, texts in memory to mask.

One process: datasketch has no parallel interface. Signatures are made block by block, so that the
shingles of a large corpus need not fit in memory.
"""

from __future__ import annotations

import common
import numpy as np
import xxhash
from datasketch import MinHash, MinHashLSH

PERMUTATIONS = 128
BLOCK = 1000


def hash32(token: bytes) -> int:
    return xxhash.xxh3_64_intdigest(token) >> 32


def sign(texts: list[str], ngram: int) -> list[MinHash]:
    signatures: list[MinHash] = []
    for first in range(0, len(texts), BLOCK):
        block = [
            [shingle.encode() for shingle in common.word_shingles(text, ngram)]
            for text in texts[first : first + BLOCK]
        ]
        signatures += MinHash.bulk(block, num_perm=PERMUTATIONS, hashfunc=hash32)
    return signatures


def keep_first(index: MinHashLSH, signatures: list[MinHash]) -> common.Bools:
    kept = np.ones(len(signatures), dtype=bool)
    for row, signature in enumerate(signatures):
        if index.query(signature):
            kept[row] = False
        else:
            index.insert(row, signature)
    return kept


def main() -> None:
    options = common.arguments(__doc__)
    texts = common.read_texts(options.input)
    watch = common.Stopwatch()
    signatures = sign(texts, options.ngram)
    watch.lap("shingle and sign")
    index = MinHashLSH(num_perm=PERMUTATIONS, params=(options.bands, options.rows))
    kept = keep_first(index, signatures)
    watch.lap("query and insert")
    common.report("datasketch", kept, options.kept, watch, watch.total())


if __name__ == "__main__":
    main()
