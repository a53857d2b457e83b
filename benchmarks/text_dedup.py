"""Repeated substrings, lines and paragraphs, and n-gram decontamination: speed, memory, peers.

Every operator runs as the one stage of a recipe in a process of its own, from a Parquet file to a
dataset; its own seconds are those of the stage as the run notes them (reading the text, signals,
decisions, writing the new text). CPU seconds and the peak are those of the whole process tree, from
the interpreter's start to the published dataset; `no stage` says what of that is not the stage's.
The corpora are those of `synthetic.py` in canonical order of rows; sizes grow by --documents. Hard
cases are made here.

Peers, on the smallest corpus: a suffix array (libdivsufsort) for substrings, whose bytes removed by
row must be ours; text-dedup's line command; datatrove's decontamination filter on --rows rows, with
the items planted in every tenth row, whose verdicts are compared. Runs of ours and the peer's
alternate; the ratio is the median over --repeats pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import synthetic

from tamis.storage.hashing import hash_columns

LENGTH = 200
OPERATORS: dict[str, dict[str, Any]] = {
    "substring_dedup": {"bounds": "character"},
    "line_dedup": {},
    "paragraph_dedup": {},
}


def run_stage(
    path: Path, stage: dict[str, Any] | None, work: Path, workers: int = 2
) -> dict[str, Any]:
    """Run one stage, or none, in a process of its own."""
    shutil.rmtree(work / "out", ignore_errors=True)
    shutil.rmtree(work / "out.tamis", ignore_errors=True)
    recipe = {
        "corpus": {"path": str(path), "roles": {"text": "text", "id": "id"}},
        "stages": [stage] if stage else [],
        "output": {"path": str(work / "out")},
        "workers": workers,
    }
    (work / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
    command = [sys.executable, "-m", "tamis.cli", "run", str(work / "recipe.yaml"), "--no-prefect"]
    _, wall, peak, cpu = timed(command)
    (noted,) = (work / "out.tamis" / "runs").glob("*/run.json")
    run = json.loads(noted.read_text("utf-8"))
    return {
        "seconds": run["steps"][stage["operator"]] if stage else wall,
        "wall": wall,
        "cpu": cpu,
        "peak": max(peak, run["peak_memory"]),
        "dropped": run["dropped"],
    }


def timed(command: list[str]) -> tuple[str, float, int, float]:
    """What a command prints, its seconds, peak and seconds of processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output, wall, peak = harness.run_watched(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return output, wall, peak, cpu


def canonical(path: Path, work: Path) -> Path:
    """The corpus with its rows in canonical order, numbered anew."""
    out = work / f"canonical-{path.stem}.parquet"
    if not out.exists():
        text = pq.read_table(path, columns=["text"])["text"]
        ids = pa.array(np.arange(len(text)))
        high, low = hash_columns(["id"], [ids], len(text))
        order = np.lexsort((low, high))  # row k in canonical order gets text k
        table = pa.table({"id": pa.array(order), "text": text})
        pq.write_table(table, out, row_group_size=synthetic.ROW_GROUP)
    return out


def removed_by_row(path: Path, output: Path) -> np.ndarray[Any, Any]:
    """Bytes that every row of the corpus has lost."""

    def sizes(files: list[Path]) -> dict[int, int]:
        table = pa.concat_tables(pq.read_table(f, columns=["id", "text"]) for f in files)
        lengths = pa.compute.binary_length(table["text"]).to_pylist()
        return dict(zip(table["id"].to_pylist(), lengths, strict=True))

    before, after = sizes([path]), sizes(sorted(output.glob("*.parquet")))
    return np.array([before[i] - after[i] for i in before])


def megabytes(path: Path) -> float:
    text = pq.read_table(path, columns=["text"])["text"]
    return pa.compute.sum(pa.compute.binary_length(text)).as_py() / 1e6


def run_peer(python: Path, runner: str, **flags: Any) -> dict[str, Any]:
    parts = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    output, _, peak, cpu = timed([str(python), "-B", str(harness.RUNNERS / runner), *parts])
    line: dict[str, Any] = json.loads(output.splitlines()[-1])
    line["peak"] = max(peak, line.get("peak_rss", 0))
    line["cpu"] = cpu
    return line


def hard_cases(work: Path) -> dict[str, Path]:
    """Corpora that a quadratic method does not survive."""
    random = np.random.default_rng(3)
    letters = random.integers(97, 123, 10_000, dtype=np.uint8).tobytes().decode()
    phrase = "all rights reserved, no part of this may be copied in any form or by any means, "
    heads = random.integers(97, 123, (300_000, 120), dtype=np.uint8)
    cases = {
        "one letter, 100 MB": ["a" * 100_000_000],
        "a line of 41 bytes, 100 MB": ["a line of forty characters, or nearly it\n" * 2_440_000],
        "10,000 copies of 10 kB": [letters] * 10_000,
        "300,000 contexts of a phrase": [
            head.tobytes().decode() + phrase * 2 + head[::-1].tobytes().decode() for head in heads
        ],
    }
    paths = {}
    for name, texts in cases.items():
        paths[name] = work / (re.sub(r"\W+", "-", name) + ".parquet")
        if not paths[name].exists():
            table = pa.table(
                {"id": np.arange(len(texts)), "text": pa.array(texts, pa.large_string())}
            )
            pq.write_table(table, paths[name], row_group_size=10_000)
    return paths


def row_of(name: str, size: float, found: list[dict[str, Any]], more: str = "") -> list[str]:
    seconds = [one["seconds"] for one in found]
    middle = statistics.median(seconds)
    print(f"{name}: {middle:.2f} s {more}", file=sys.stderr, flush=True)
    return [
        name,
        f"{size:,.0f}",
        f"{middle:.2f}",
        f"{min(seconds):.2f}-{max(seconds):.2f}",
        f"{size / middle:,.1f}",
        f"{statistics.median(one['cpu'] for one in found):.1f}",
        f"{max(one['peak'] for one in found) / 1e6:,.0f}",
        more,
    ]


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    found = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(found):.1f} ({min(found):.1f}-{max(found):.1f})"


def against_peers(options: argparse.Namespace, path: Path, work: Path) -> list[list[str]]:
    """Ours and the peer's in turn."""
    rows = []
    size = megabytes(path)
    cases = (
        ("substring_dedup", {"min_bytes": LENGTH}, "suffix array", "run_suffix_array.py"),
        ("line_dedup", {"min_characters": 1}, "text-dedup ccnet", "run_ccnet.py"),
    )
    for operator, parameters, peer, runner in cases:
        python = options.textdedup_python
        if python is None:
            continue
        ours, theirs = [], []
        note = ""
        for _ in range(options.repeats):
            ours.append(run_stage(path, {"operator": operator, **parameters}, work))
            with tempfile.TemporaryDirectory(dir=work) as scratch:
                if runner == "run_ccnet.py":
                    theirs.append(run_peer(python, runner, input=path, work=scratch))
                    continue
                found = Path(scratch) / "removed.npy"
                theirs.append(run_peer(python, runner, input=path, output=found, length=LENGTH))
                mine, its = removed_by_row(path, work / "out"), np.load(found)
                note = f"same bytes in {int((mine == its).sum()):,} of {len(its):,} rows"
        rows.append(row_of(f"{operator}, tamis", size, ours, note))
        rows.append(row_of(f"{peer} ({theirs[0]['version']})", size, theirs, ratio(ours, theirs)))
    return rows


def decontamination(options: argparse.Namespace, path: Path, work: Path) -> list[list[str]]:
    """Speed on the whole corpus, and datatrove's verdicts on some of its rows."""
    items = pq.read_table(options.items, columns=["text"])["text"].to_pylist()
    items = [item for item in items if item.isascii() and len(item.split()) >= 40][:5000]
    reference = work / "items.parquet"
    pq.write_table(pa.table({"text": items}), reference)
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
    texts = [
        f"{text}\n{items[i // 10 % len(items)]}\n" if i % 10 == 0 else text
        for i, text in enumerate(texts)
    ]
    planted = work / "planted.parquet"
    table = pa.table({"id": np.arange(len(texts)), "text": texts})
    pq.write_table(table, planted, row_group_size=synthetic.ROW_GROUP)
    stage = {
        "operator": "decontaminate",
        "references": [{"path": str(reference), "name": "items"}],
        "ngram": 12,
        "min_words": 12,
        "max_items": None,
    }
    size = megabytes(planted)
    ours = [run_stage(planted, stage, work) for _ in range(options.repeats)]
    one = [run_stage(planted, stage, work, workers=1) for _ in range(options.repeats)]
    rows = [row_of("decontaminate, tamis", size, ours, f"{ours[0]['dropped']:,} rows dropped")]
    rows.append(row_of("the same, one worker", size, one))
    if options.peer_python is not None:
        few = work / "few.parquet"
        pq.write_table(table.slice(0, options.rows), few)
        verdicts = work / "verdicts.json"
        flags = {"input": few, "items": reference, "output": verdicts, "ngram": 12}
        theirs = run_peer(options.peer_python, "run_datatrove_decont.py", **flags)
        mine = run_stage(few, stage, work)
        left = pa.concat_tables(
            pq.read_table(f, columns=["id"]) for f in (work / "out").glob("*.parquet")
        )
        kept = set(left["id"].to_pylist())
        found = json.loads(verdicts.read_text("utf-8"))
        same = sum((i in kept) == (not gram) for i, gram in enumerate(found))
        note = f"same verdict in {same:,} of {len(found):,}; dropped {mine['dropped']:,}"
        rows.append(row_of(theirs["version"], megabytes(few), [theirs], note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--documents", type=int, nargs="+", default=[20_000, 80_000, 320_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--textdedup-python", type=Path, help="with text-dedup and pydivsufsort")
    parser.add_argument("--peer-python", type=Path, help="with datatrove")
    parser.add_argument("--items", type=Path, help="Parquet of benchmark items, column text")
    parser.add_argument("--rows", type=int, default=1500, help="rows for datatrove")
    parser.add_argument("--no-hard-cases", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    header = ("run", "MB", "seconds", "range", "MB/s", "CPU s", "peak MB", "")
    paths = [
        canonical(synthetic.make_corpus(n, options.work, non_ascii=0.0).path, options.work)
        for n in options.documents
    ]
    for operator, parameters in OPERATORS.items():  # compiles what is not compiled yet
        run_stage(paths[0], {"operator": operator, **parameters}, options.work)
    rows = []
    for path in paths:
        size = megabytes(path)
        bare = [run_stage(path, None, options.work) for _ in range(options.repeats)]
        rows.append(row_of("no stage", size, bare))
        for operator, parameters in OPERATORS.items():
            stage = {"operator": operator, **parameters}
            found = [run_stage(path, stage, options.work) for _ in range(options.repeats)]
            rows.append(row_of(operator, size, found))
    if not options.no_hard_cases:
        for name, path in hard_cases(options.work).items():
            found = [run_stage(path, {"operator": "substring_dedup"}, options.work)]
            lost = removed_by_row(path, options.work / "out").sum() / 1e6
            rows.append(row_of(name, megabytes(path), found, f"{lost:,.1f} MB removed"))
    try:
        rows += against_peers(options, paths[0], options.work)
        if options.items is not None:
            rows += decontamination(options, paths[0], options.work)
    except harness.RunFailedError as error:
        print(f"a peer failed, what follows is left out: {error}", file=sys.stderr)
    print(f"load before the end: {os.getloadavg()[0]:.1f}\n")
    harness.print_table(header, rows, words=1)


if __name__ == "__main__":
    main()
