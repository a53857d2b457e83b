"""tamis: `near_duplicates`, text column in memory to verified mask, warm.

One call on a few hundred documents beforehand loads the compiled kernels; reading Parquet is not
timed.
"""

from __future__ import annotations

import common
import numpy as np
import pyarrow.parquet as pq

from tamis.selectors.near_dedup import near_duplicates

WARM_UP = 300


def main() -> None:
    options = common.arguments(__doc__)
    text = pq.read_table(options.input, columns=["text"]).column("text")
    settings = {
        "threshold": options.threshold,
        "ngram": options.ngram,
        "workers": options.workers,
    }
    near_duplicates(text.slice(0, WARM_UP), **settings)
    watch = common.Stopwatch()
    found = near_duplicates(text, **settings)
    watch.lap("near_duplicates")
    beside = options.kept.with_name("partner.npz")
    np.savez(beside, partner=found.partner, similarity=found.similarity)
    common.report("tamis", np.asarray(found.kept), options.kept, watch, watch.total())


if __name__ == "__main__":
    main()
