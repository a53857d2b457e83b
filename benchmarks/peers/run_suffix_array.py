"""libdivsufsort (pydivsufsort): the bytes in a window that occurred before, from a suffix array.

Rows stand in canonical order. The texts are joined with a byte that UTF-8 does not have; of all
suffixes that agree in a whole window the earliest stays. Joining, suffix array, common prefixes and
mask are timed; reading is not. Writes the number of bytes that go from every row.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import common
import numpy as np
import pydivsufsort


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--length", type=int, required=True)
    options = parser.parse_args()
    texts = [text.encode() for text in common.read_texts(options.input)]
    length = options.length
    watch = common.Stopwatch()
    joined = np.frombuffer(b"\xff".join(texts) + b"\xff", np.uint8).copy()
    watch.lap("join")
    suffixes = pydivsufsort.divsufsort(joined)
    watch.lap("suffix array")
    shared = pydivsufsort.kasai(joined, suffixes)  # with the next suffix
    watch.lap("common prefixes")
    starts = np.r_[0, np.flatnonzero(shared[:-1] < length) + 1]
    earliest = np.minimum.reduceat(suffixes, starts)
    sizes = np.diff(np.r_[starts, len(suffixes)])
    repeated = np.repeat(sizes > 1, sizes) & (suffixes != np.repeat(earliest, sizes))
    windows = suffixes[repeated].astype(np.int64)
    ends = np.flatnonzero(joined == 0xFF)
    windows = windows[windows + length <= ends[np.searchsorted(ends, windows)]]
    change = np.zeros(len(joined) + 1, np.int32)
    np.add.at(change, windows, 1)
    np.add.at(change, windows + length, -1)
    gone = np.cumsum(change)[:-1] > 0
    by_row = np.add.reduceat(gone, np.r_[0, ends[:-1] + 1]).astype(np.int64)
    watch.lap("mask")
    np.save(options.output, by_row)
    print(
        json.dumps(
            {
                "version": f"pydivsufsort {version('pydivsufsort')}",
                "seconds": watch.total(),
                "stages": watch.stages,
                "peak_rss": common.peak_rss(),
            }
        )
    )


if __name__ == "__main__":
    main()
