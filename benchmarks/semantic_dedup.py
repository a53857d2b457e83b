"""Semantic dedup of vectors: tamis, brute force and semhash in one run.

Claim: at 200,000 x 384, at least 0.98 of the pairs that brute force finds, in at most a tenth of
its time.

Without `--vectors` a mixture is made: topics of unequal sizes on low-dimensional planes with noise,
and near copies of a third of the rows at cosines from 0.8 to 1, some of them of near copies.

    python benchmarks/semantic_dedup.py --peer-python semhash-venv/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import RUNNERS, Bools, Ints, Peer, RunFailedError, print_table, run_watched

Vectors = npt.NDArray[np.float32]

OURS, BRUTE, SEMHASH = "tamis", "brute force (numpy)", "semhash"


def mixture(rows: int, dimensions: int, seed: int = 0) -> Vectors:
    """Unit vectors in topics, of which a third are near copies of earlier ones."""
    random = np.random.default_rng(seed)
    topics = max(1, rows // 250)
    share = 1 / np.arange(1, topics + 1) ** 0.7
    topic = random.choice(topics, rows, p=share / share.sum())
    # Topics lie on 24 common directions, so that many are each other's neighbours.
    common = random.standard_normal((24, dimensions)) / np.sqrt(dimensions)
    centre = random.standard_normal((topics, 24)) @ common / np.sqrt(24)
    vectors = centre[topic] * 1.5 + random.standard_normal((rows, dimensions)) * (
        0.8 / np.sqrt(dimensions)
    )
    vectors = unit(vectors)
    for row in np.flatnonzero(random.random(rows) < 1 / 3):
        if row:
            source = vectors[random.integers(0, row)]
            cosine = random.uniform(0.8, 1)
            noise = random.standard_normal(dimensions)
            noise -= (noise @ source) * source
            noise /= np.linalg.norm(noise)
            vectors[row] = cosine * source + np.sqrt(1 - cosine**2) * noise
    return random.permutation(vectors).astype(np.float32)


def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def run(peer: Peer, source: Path, scratch: Path, threshold: float) -> tuple[dict[str, Any], Bools]:
    """What a runner says of itself, with the peak of its memory, and the mask it wrote."""
    kept = scratch / "kept.npy"
    settings = {
        "input": source,
        "kept": kept,
        "work": scratch,
        "threshold": threshold,
        "workers": peer.workers,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    output, _, peak = run_watched([str(peer.python), "-B", str(RUNNERS / peer.runner), *flags])
    line: dict[str, Any] = json.loads(output.splitlines()[-1])
    line["peak_rss"] = max(peak, line["peak_rss"])
    return line, np.load(kept)


def quality(kept: Bools, row: Ints, other: Ints) -> tuple[int, int, int]:
    """Rows dropped; of them without any true pair; rows kept beside a kept true duplicate."""
    paired = np.zeros(len(kept), bool)
    paired[row] = paired[other] = True
    beside = kept[row] & kept[other]
    return int((~kept).sum()), int((~kept & ~paired).sum()), len(np.unique(row[beside]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vectors", type=Path, help=".npy of float32 (n, d)")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-python", type=Path, help="interpreter that has semhash")
    options = parser.parse_args()
    python = Path(sys.executable)
    peers = [
        Peer(OURS, "run_semantic_tamis.py", python, "tamis", options.workers),
        Peer(BRUTE, "run_brute_force.py", python, "numpy", options.workers),
        Peer(SEMHASH, "run_semhash.py", options.peer_python, "semhash", options.workers),
    ]
    peers = [peer for peer in peers if peer.installed()]
    with tempfile.TemporaryDirectory() as work:
        source = options.vectors or Path(work) / "vectors.npy"
        if options.vectors is None:
            np.save(source, mixture(options.rows, options.dimensions))
        rows, dimensions = np.load(source, mmap_mode="r").shape
        lines: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
        masks: dict[str, Bools] = {}
        for _ in range(options.repeats):  # in turn, so that a busy machine is busy for all
            for peer in peers:
                try:
                    line, masks[peer.name] = run(peer, source, Path(work), options.threshold)
                    lines[peer.name].append(line)
                except RunFailedError as error:
                    print(f"{peer.name} failed: {str(error)[-400:]}", file=sys.stderr)
        with np.load(Path(work) / "pairs.npz") as pairs:
            row, other = pairs["row"], pairs["other"]
    print(
        f"{rows:,} x {dimensions}, threshold {options.threshold}, {len(row):,} true pairs, "
        f"{options.repeats} repeats, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
    )
    table = []
    for name, runs in lines.items():
        if not runs:
            continue
        ratios = {
            clock: statistics.median(
                brute[clock] / mine[clock]
                for brute, mine in zip(seconds_of(lines[BRUTE]), seconds_of(runs), strict=False)
            )
            for clock in ("wall", "cpu")
        }
        found = runs[-1]["stages"].get("pairs") if name == OURS else None
        dropped, wrong, left = quality(masks[name], row, other)
        table.append(
            [
                f"{name} {runs[0]['version']}",
                f"{statistics.median(r['seconds'] for r in runs):.1f}",
                f"{statistics.median(r['stages']['cpu'] for r in runs):.1f}",
                f"{ratios['wall']:.1f}",
                f"{ratios['cpu']:.1f}",
                f"{found / len(row):.4f}" if found is not None else "",
                f"{dropped:,}",
                f"{int((~masks[name] & ~masks[BRUTE]).sum()) / int((~masks[BRUTE]).sum()):.4f}",
                f"{wrong:,}",
                f"{left:,}",
                f"{max(r['peak_rss'] for r in runs) / 1e9:.2f}",
            ]
        )
    header = (
        "tool",
        "s",
        "CPU s",
        "times as fast as brute force",
        "by CPU",
        "recall of pairs",
        "dropped",
        "of brute force's",
        "without a duplicate",
        "duplicates left",
        "GB",
    )
    print_table(header, table, 1)


def seconds_of(runs: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{"wall": run["seconds"], "cpu": run["stages"]["cpu"]} for run in runs]


if __name__ == "__main__":
    main()
