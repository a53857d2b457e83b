"""semhash: `SemHash.from_embeddings` and `self_deduplicate`, vectors in memory to mask.

Records are the row numbers as text, so that no two are the same; the model is never called.
"""

from __future__ import annotations

import time
from typing import Any

import common
import numpy as np
from semhash import SemHash


class NoModel:
    def encode(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the vectors are given")


def main() -> None:
    options = common.arguments(__doc__)
    vectors = np.load(options.input)
    records = [str(row) for row in range(len(vectors))]
    watch, cpu = common.Stopwatch(), time.process_time()
    index = SemHash.from_embeddings(vectors, records, NoModel())
    watch.lap("index")
    found = index.self_deduplicate(options.threshold)
    watch.lap("query")
    seconds = watch.total()
    watch.stages["cpu"] = time.process_time() - cpu
    partner = np.full(len(vectors), -1)
    for lost in found.filtered:
        partner[int(lost.record)] = int(lost.duplicate_of)
    np.savez(options.kept.with_name("partner.npz"), partner=partner)
    kept = common.mask_of([int(record) for record in found.selected], len(vectors))
    common.report("semhash", kept, options.kept, watch, seconds)


if __name__ == "__main__":
    main()
