"""Runs one measurement in a process of its own and watches the memory of its whole tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow.parquet as pq

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RUNNERS = Path(__file__).parent / "peers"
SAMPLE_SECONDS = 0.1  # walking the process table costs about 1 % of a core at this rate
BANDS = {0.8: (9, 13), 0.7: (14, 9)}  # datasketch's optimum for 128 permutations


@dataclass(frozen=True)
class Peer:
    """A runner, the interpreter it needs, and the module whose absence means `not installed`."""

    name: str
    runner: str
    python: Path | None
    module: str
    workers: int = 2

    def installed(self) -> bool:
        if self.python is None or not self.python.exists():
            return False
        probe = [
            str(self.python),
            "-c",
            f"import importlib.util as u; u.find_spec('{self.module}').name",
        ]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Run:
    """What one process took. `wall` includes the start of the interpreter, `seconds` does not."""

    version: str
    seconds: float
    end_to_end: float | None
    wall: float
    peak_rss: int
    kept: Bools
    stages: dict[str, float]
    partner: Ints | None = None
    similarity: Floats | None = None


def print_table(header: tuple[str, ...], rows: list[list[str]], words: int) -> None:
    """A Markdown table; the first `words` columns are set to the left, the figures to the right."""
    widths = [max(len(line[place]) for line in (header, *rows)) for place in range(len(header))]
    for line in (header, tuple("-" * width for width in widths), *rows):
        cells = [
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("| " + " | ".join(cells) + " |")


class RunFailedError(Exception):
    """A runner or command ended with an error; the message is the end of what it said."""


def known_peers(python: Path | None, textdedup_python: Path | None) -> list[Peer]:
    return [
        Peer("gaoya", "run_gaoya.py", python, "gaoya"),
        Peer("rensa, 2 processes", "run_rensa.py", python, "rensa"),
        Peer("rensa, 1 process", "run_rensa.py", python, "rensa", workers=1),
        Peer("datasketch", "run_datasketch.py", python, "datasketch"),
        Peer("datatrove", "run_datatrove.py", python, "datatrove"),
        Peer("text-dedup", "run_textdedup.py", textdedup_python, "text_dedup"),
    ]


def ourselves(workers: int = 2) -> Peer:
    return Peer(
        "tamis", "run_tamis.py", Path(sys.executable), "tamis.selectors.near_dedup", workers
    )


def run_peer(peer: Peer, source: Path, work: Path, threshold: float = 0.8, ngram: int = 5) -> Run:
    """Run a peer's script on `source`, in a scratch folder that is removed afterwards."""
    bands, rows = BANDS[threshold]
    with tempfile.TemporaryDirectory(dir=work, prefix="run-") as scratch:
        kept = Path(scratch) / "kept.npy"
        settings = {
            "input": source,
            "kept": kept,
            "work": scratch,
            "threshold": threshold,
            "bands": bands,
            "rows": rows,
            "ngram": ngram,
            "workers": peer.workers,
        }
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        command = [str(peer.python), "-B", str(RUNNERS / peer.runner), *flags]
        output, wall, peak = run_watched(command)
        line = json.loads(output.splitlines()[-1])
        partner, similarity = read_partners(kept.with_name("partner.npz"))
        return Run(
            version=f"{line['package']} {line['version']}",
            seconds=line["seconds"],
            end_to_end=line["end_to_end"],
            wall=wall,
            peak_rss=max(peak, line["peak_rss"]),
            kept=np.load(kept),
            stages=line["stages"],
            partner=partner,
            similarity=similarity,
        )


def read_partners(path: Path) -> tuple[Ints | None, Floats | None]:
    """Which kept row a dropped one duplicates, and how closely: only ours says so."""
    if not path.exists():
        return None, None
    with np.load(path) as found:
        return found["partner"], found["similarity"]


def run_command(command: list[str], output: Path, documents: int) -> Run:
    """Run a file-to-file command; the mask comes from the `id` column of the Parquet it wrote."""
    shutil.rmtree(output, ignore_errors=True)
    _, wall, peak = run_watched(command)
    kept = np.zeros(documents, dtype=bool)
    kept[written_ids(output)] = True
    return Run(Path(command[0]).name, wall, wall, wall, peak, kept, {})


def written_ids(output: Path) -> Ints:
    """Ids of all written rows; files without an `id` and a `text` column are not data."""
    files = [output] if output.is_file() else sorted(output.rglob("*.parquet"))
    data = [path for path in files if {"id", "text"} <= set(pq.read_schema(path).names)]
    columns = [pq.ParquetFile(path).read(["id"]).column("id").to_numpy() for path in data]
    return np.concatenate([np.zeros(0, np.int64), *columns])


def run_watched(command: list[str]) -> tuple[str, float, int]:
    """Standard output, seconds and peak resident bytes of the process tree."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env={**os.environ, "COLUMNS": "200"}
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_rss(process.pid))
            try:
                process.wait(SAMPLE_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        wall = time.perf_counter() - begin
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            raise RunFailedError(f"{' '.join(command)}\n{(out.read() + err.read())[-2000:]}")
        return out.read(), wall, peak


def tree_rss(pid: int) -> int:
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in tree:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
