"""An increment: one new file on a hundred, beside the first run and beside a clean run over all.

    python benchmarks/increment.py --work DIR

A synthetic corpus (see synthetic.py) is cut into 101 Parquet files of equal rows. The first run
takes a hundred of them with the one stage ``near_dedup`` into a dataset; then the last file joins
the folder and the same recipe runs again. Every run is a process of its own; what is timed is
`tamis.run`, without the start of the interpreter, and the page cache is warm for both.

Printed are the rows whose signature was computed, and the seconds that this and the whole run took,
of the second run as a share of the first's. The claims: signals at most 2 %, the run at most 15 %.
Copies of a document are spread over all files. With the default rank (the longest text stays) half
of the new copies take the place of an old row, so that nearly every file of the dataset is written
anew. ``--rank first`` lets the row of the earlier file stay (rank by the row number, lowest first):
published rows win, and the files of the dataset stay as they are.

With ``--published`` the new file is also held against the dataset of the first run: a recipe with
`known_dedup` and `near_dedup`, whose corpus is the new file alone. A run on a few rows before it
computes the signatures of the dataset's rows, as those of every earlier day would be there.

With ``--clean`` a third run over all 101 files into a fresh workspace must give the same dataset,
decisions and edges, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from harness import print_table
from synthetic import make_corpus

FILES = 100
SIGNALS, RUN = 0.02, 0.15

_CHILD = """
import json, sys, threading, time
import tamis
from tamis.scoring.minhash import MinHashSignature

lock, signed, seconds = threading.Lock(), 0, 0.0
honest = MinHashSignature.compute

def spy(self, batch):
    global signed, seconds
    begun = time.perf_counter()
    found = honest(self, batch)
    with lock:
        signed, seconds = signed + batch.num_rows, seconds + time.perf_counter() - begun
    return found

MinHashSignature.compute = spy
begun, used = time.perf_counter(), time.process_time()
result = tamis.run(json.loads(sys.argv[1]))
took, used = time.perf_counter() - begun, time.process_time() - used
print(json.dumps({
    "signed": signed, "signal_seconds": seconds, "seconds": took, "cpu": used,
    "steps": result.step_seconds, "rows": result.manifest["rows"], "peak": result.peak_memory,
}))
"""


RANKS = {"longest": {}, "first": {"rank": "id", "rank_order": "lowest"}}


def run(source: Path, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    recipe = {
        "corpus": {"path": str(source), "roles": {"text": "text", "id": "id"}},
        "stages": [{"operator": "near_dedup", **RANKS[options.rank]}],
        "output": {"path": str(output)},
        "workers": options.workers,
    }
    return started(recipe)


def run_against(source: Path, history: Path, output: Path, workers: int) -> dict[str, Any]:
    """The new rows alone, against what was published."""
    known = {"operator": "known_dedup", "references": [{"path": str(history), "id": "id"}]}
    return started(
        {
            "corpus": {"path": str(source), "roles": {"text": "text", "id": "id"}},
            "stages": [known, {"operator": "near_dedup"}],
            "output": {"path": str(output)},
            "workers": workers,
        }
    )


def started(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a run in a process of its own took."""
    command = [sys.executable, "-c", _CHILD, json.dumps(recipe)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cut(source: Path, folder: Path, rows: int) -> list[Path]:
    """The corpus in files of so many rows each."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = []
    with pq.ParquetFile(source) as file:
        for number, batch in enumerate(file.iter_batches(batch_size=rows)):
            paths.append(folder / f"{number:03d}.parquet")
            with pq.ParquetWriter(paths[-1], batch.schema, compression="zstd") as out:
                out.write_batch(batch)
    return paths


def contents(output: Path) -> dict[str, bytes]:
    """All that must not depend on what was there before, by name."""
    workspace = output.with_name(f"{output.name}.tamis")
    manifest = json.loads((workspace / "manifest.json").read_text())
    names = [*manifest["ledger"], *manifest["edges"].values()]
    found = {name: (workspace / name).read_bytes() for name in names}
    return found | {
        entry["name"]: (output / entry["name"]).read_bytes() for entry in manifest["files"]
    }


def measure(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    corpus = make_corpus(options.documents // FILES * (FILES + 1), options.work)
    *_, last = cut(corpus.path, folder / "in", options.documents // FILES)
    aside = folder / "later.parquet"
    last.rename(aside)
    first = run(folder / "in", folder / "out", options)
    if options.published:
        few = folder / "few.parquet"
        pq.write_table(pq.read_table(aside).slice(0, 100), few)
        daily = folder / "new"
        warm = run_against(few, folder / "out", daily, options.workers)
        third = run_against(aside, folder / "out", daily, options.workers)
        print(json.dumps({"published, first": warm, "published": third}), file=sys.stderr)
        share = {name: third[name] / first[name] for name in ("signed", "seconds", "cpu")}
        print(
            f"against what was published: signals {100 * share['signed']:.2f} %, "
            f"run {100 * share['seconds']:.1f} % (of the processor {100 * share['cpu']:.1f} %)"
        )
    aside.rename(last)
    second = run(folder / "in", folder / "out", options)
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rank", choices=RANKS, default="longest", help="which row stays")
    parser.add_argument("--clean", action="store_true", help="compare with a clean run over all")
    parser.add_argument("--published", action="store_true", help="also with known_dedup")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = options.work / "increment"
    pairs = []
    for _ in range(options.repeats):
        shutil.rmtree(folder, ignore_errors=True)
        first, second = measure(options, folder)
        pairs.append((first, second))
        print(json.dumps({"first": first, "second": second}), file=sys.stderr)
    steps = list(pairs[0][0]["steps"])
    figures: list[tuple[str, Any]] = [
        ("rows signed", lambda r: r["signed"]),
        ("signature seconds", lambda r: r["signal_seconds"]),
        *((f"  {name}, s", lambda r, name=name: r["steps"][name]) for name in steps),
        ("whole run, s", lambda r: r["seconds"]),
        ("  of the processor, s", lambda r: r["cpu"]),
    ]
    lines = []
    for title, of in figures:
        shares = [of(second) / max(of(first), 1e-9) for first, second in pairs]
        first, second = (statistics.median(of(pair[k]) for pair in pairs) for k in (0, 1))
        lines.append(
            [title, f"{first:,.4g}", f"{second:,.4g}", f"{100 * statistics.median(shares):.2f} %"]
        )
    print_table(("", "first run", "one file more", "share"), lines, 1)
    if options.clean:
        run(folder / "in", folder / "clean", options)
        same = contents(folder / "out") == contents(folder / "clean")
        print(f"equal to a clean run over all, byte for byte: {'yes' if same else 'NO'}")
    if options.json:
        options.json.write_text(json.dumps([{"first": a, "second": b} for a, b in pairs], indent=2))
    signals = statistics.median(b["signed"] / a["signed"] for a, b in pairs)
    whole = statistics.median(b["seconds"] / a["seconds"] for a, b in pairs)
    print(f"signals {100 * signals:.2f} % (at most {100 * SIGNALS:g} %), ", end="")
    print(f"run {100 * whole:.1f} % (at most {100 * RUN:g} %)")


if __name__ == "__main__":
    main()
