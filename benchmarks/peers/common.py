"""What every runner shares: arguments, texts, word shingles and the one line of JSON.

A runner reads a Parquet file with the columns `id` (the row number) and `text`, writes the mask of
kept rows as .npy and prints one JSON object. It runs under its peer's interpreter, so this file
needs only numpy and pyarrow.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

Bools = npt.NDArray[np.bool_]

SEED = 42
find_words = re.compile(r"\w+").findall


@dataclass
class Stopwatch:
    """Seconds by stage, in the order of the stages."""

    stages: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self.last
        self.last = now

    def total(self, *excluded: str) -> float:
        return sum(seconds for stage, seconds in self.stages.items() if stage not in excluded)


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True, help="where the mask goes (.npy)")
    parser.add_argument("--work", type=Path, required=True, help="an empty scratch folder")
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--bands", type=int, default=9)
    parser.add_argument("--rows", type=int, default=13, help="hashes per band")
    parser.add_argument("--ngram", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def read_texts(path: Path) -> list[str]:
    texts: list[str] = pq.read_table(path, columns=["text"]).column("text").to_pylist()
    return texts


def word_shingles(text: str, n: int) -> list[str]:
    words = find_words(text.lower())
    if len(words) < n:
        return [" ".join(words)]
    return list(map(" ".join, zip(*(words[place:] for place in range(n)), strict=False)))


def mask_of(rows: npt.ArrayLike, documents: int) -> Bools:
    mask = np.zeros(documents, dtype=bool)
    mask[np.asarray(rows, dtype=np.int64)] = True
    return mask


def peak_rss() -> int:
    """Highest resident bytes of this process so far; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def report(
    package: str,
    kept: Bools,
    path: Path,
    watch: Stopwatch,
    seconds: float,
    end_to_end: float | None = None,
) -> None:
    """`seconds`: to the mask. `end_to_end`: from file to file, where the peer works that way."""
    np.save(path, kept)
    line = {
        "package": package,
        "version": version(package),
        "seconds": seconds,
        "end_to_end": end_to_end,
        "stages": {stage: round(taken, 4) for stage, taken in watch.stages.items()},
        "kept": int(kept.sum()),
        "peak_rss": peak_rss(),
    }
    print(json.dumps(line))
