"""text-dedup: its minhash command called in this process.

The corpus is handed over as a data set in the library's own form (memory-mapped Arrow), made
beforehand, so that reading Parquet is not timed. The mask takes loading, signatures, clustering and
filtering; writing the result counts only end to end. xxh3 and 32-bit hashes are its fastest
settings. Words are split at every non-word character, so that ", " adds an empty word: its shingles
differ a little from the others' unless the text has single spaces only.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

from pathlib import Path

import common
import datasets
import pyarrow.parquet as pq
import text_dedup.minhash as minhash
from text_dedup.utils import IOArgs, MetaArgs, MinHashArgs, Timer

PERMUTATIONS = 128


class RecordingTimer(Timer):
    """Keeps the library's own stage times where we can read them."""

    latest: RecordingTimer

    def __init__(self) -> None:
        super().__init__()
        RecordingTimer.latest = self


def prepare(source: Path, folder: Path) -> int:
    table = pq.read_table(source, columns=["id", "text"])
    datasets.Dataset(table).save_to_disk(str(folder))
    return table.num_rows


def main() -> None:
    options = common.arguments(__doc__)
    prepared, output = options.work / "in", options.work / "out"
    documents = prepare(options.input, prepared)
    minhash.Timer = RecordingTimer
    watch = common.Stopwatch()
    minhash.main.callback(
        io_args=IOArgs(
            path=str(prepared), output=str(output), local=True, num_proc=options.workers
        ),
        meta_args=MetaArgs(column="text"),
        minhash_args=MinHashArgs(
            ngram=options.ngram,
            min_length=1,
            num_perm=PERMUTATIONS,
            threshold=options.threshold,
            b=options.bands,
            r=options.rows,
            hash_func="xxh3",
            hash_bits=32,
        ),
    )
    watch.stages = dict(RecordingTimer.latest.elapsed_times)
    end_to_end = watch.stages.pop("Total")
    kept = common.mask_of(datasets.load_from_disk(str(output))["id"][:], documents)
    common.report(
        "text-dedup",
        kept,
        options.kept,
        watch,
        watch.total("Saving", "Cleaning"),
        end_to_end=end_to_end,
    )


if __name__ == "__main__":
    main()
