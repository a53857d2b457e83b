"""text-dedup: its line-level command (ccnet) called in this process.

As in run_textdedup.py the corpus is handed over as memory-mapped Arrow, made beforehand. Hashing,
comparing and filtering are timed; loading and saving are not. It compares lines in lower case and
without punctuation and digits, empty lines too, and keeps no minimum length: it removes more.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

from importlib.metadata import version
from pathlib import Path

import common
import text_dedup.ccnet as ccnet
from run_textdedup import RecordingTimer, prepare
from text_dedup.utils import ExactHashArgs, IOArgs, MetaArgs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    prepared = options.work / "in"
    prepare(options.input, prepared)
    ccnet.Timer = RecordingTimer
    ccnet.main.callback(
        io_args=IOArgs(
            path=str(prepared),
            output=str(options.work / "out"),
            local=True,
            num_proc=options.workers,
        ),
        meta_args=MetaArgs(column="text"),
        exact_hash_args=ExactHashArgs(hash_func="xxh3"),
    )
    stages = dict(RecordingTimer.latest.elapsed_times)
    print(
        json.dumps(
            {
                "version": f"text-dedup {version('text-dedup')}",
                "seconds": stages["Processing"] + stages["Filtering"],
                "stages": stages,
                "peak_rss": common.peak_rss(),
            }
        )
    )


if __name__ == "__main__":
    main()
