"""What a run would take: measured on two samples of its corpus, and drawn out to the whole."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tamis.flows.checks import ROW_BYTES, table_memory, vector_lengths
from tamis.recipe import CLUSTERS, Recipe
from tamis.selectors.reference import told_references
from tamis.selectors.selector import TableOperator
from tamis.storage.errors import RunError
from tamis.storage.places import Place, kind_of, place_errors
from tamis.storage.sample import Whole

#: Bytes of files that the larger sample takes, at most; half of the corpus if that is less.
SAMPLE_BYTES = 32 << 20
#: Memory grows with the bytes of columns until the batches and row groups in work are full, and
#: from there with rows only. Both figures, and how much of a selector's stated bound its rows
#: take in truth, were measured on the demonstration and the benchmark corpora.
FULL_BYTES = 64 << 20
MOST_PER_BYTE = 6.0
SHARE_OF_BOUND = 0.4


@dataclass(frozen=True)
class Plan:
    """What a run of a recipe would take on this machine, if nothing of it were done yet.

    Attributes:
        files, bytes, rows, shards: of the corpus; rows are an estimate unless `exact_rows`.
        kept: rows of the corpus that the dataset would have.
        written: rows of the dataset, with those that are repeated or made.
        sampled: share of the corpus that the larger sample is.
        seconds: wall time of the command, start included.
        step_seconds: wall time by step.
        peak_memory: resident bytes at the highest.
        workspace_bytes, output_bytes: on disk at the end.
        found: sidecars and decisions that the workspace holds already, by room: shards whose
            content and whose rows at that stage are unchanged will not be computed again.
    """

    files: int
    bytes: int
    rows: int
    exact_rows: bool
    shards: int
    kept: int
    written: int
    sampled: float
    seconds: float
    step_seconds: dict[str, float]
    peak_memory: int
    workspace_bytes: int
    output_bytes: int
    found: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Measured:
    share: float
    figures: dict[str, float]
    steps: dict[str, float]


def plan(recipe: Recipe) -> Plan:
    """Measure a recipe on samples; nothing is written but in a temporary folder.

    Duplicates are rarer in a sample than in the whole, so that the rows kept, and with them the
    bytes of the dataset, are rather too many.

    Raises:
        UserError: as the run would, where the sample shows it.
        RunError: if the recipe fails on the sample.
    """
    whole = Whole.of(recipe.corpus.path, recipe.corpus.format)
    large = min(0.5, SAMPLE_BYTES / max(1, whole.bytes))
    with tempfile.TemporaryDirectory(prefix="tamis-plan-") as folder:
        _run(recipe, whole, large / 2, Path(folder) / "warm")  # compiles what is not compiled yet
        small = _run(recipe, whole, large / 2, Path(folder) / "small")
        big = _run(recipe, whole, large, Path(folder) / "large")
    drawn = {
        name: _draw(small.share, small.figures[name], big.share, big.figures[name])
        for name in big.figures
    }
    steps = {
        name: _draw(small.share, small.steps.get(name, 0.0), big.share, seconds)
        for name, seconds in big.steps.items()
    }
    return Plan(
        files=len(whole.files),
        bytes=whole.bytes,
        rows=whole.rows if whole.rows is not None else round(drawn["rows"]),
        exact_rows=whole.rows is not None,
        shards=max(1, round(drawn["shards"])),
        kept=round(drawn["kept"]),
        written=round(drawn["written"]),
        sampled=big.share,
        seconds=drawn["seconds"],
        step_seconds=steps,
        peak_memory=_memory(recipe, small.figures, big.figures, drawn),
        workspace_bytes=round(drawn["workspace"]),
        output_bytes=round(drawn["output"]),
        found=_found(recipe.workspace_path),
    )


def _found(workspace: Place) -> dict[str, int]:
    """Files of finished steps in a workspace, by the room they lie in."""
    found: dict[str, int] = {}
    if kind_of(workspace) is not None:
        with place_errors(workspace):
            for pattern in (
                "ids/*.parquet",
                "s*/**/*.parquet",
                "decisions/*.parquet",
                "generated/**/*.parquet",
            ):
                for path in map(str, workspace.glob(pattern)):
                    inside = path.removeprefix(f"{workspace}/").split("/")
                    room = "/".join(inside[: min(2, len(inside) - 1)])
                    found[room] = found.get(room, 0) + 1
    return dict(sorted(found.items()))


def _draw(share: float, value: float, larger_share: float, larger_value: float) -> float:
    """The line through two measurements, at the whole; never less than was measured."""
    if larger_share <= share:
        return larger_value / larger_share if larger_share else larger_value
    slope = (larger_value - value) / (larger_share - share)
    return larger_value + max(0.0, slope) * (1 - larger_share)


def _memory(
    recipe: Recipe, small: dict[str, float], big: dict[str, float], drawn: dict[str, float]
) -> int:
    """Peak memory at the whole."""
    measured, seen = big["peak_memory"], min(big["bytes"], FULL_BYTES)
    grown = max(0.0, measured - small["peak_memory"])
    each = min(MOST_PER_BYTE, grown / max(1.0, seen - min(small["bytes"], FULL_BYTES)))
    batches = each * max(0.0, min(drawn["bytes"], FULL_BYTES) - seen)
    tables = [stage for stage in recipe.stages if isinstance(stage, TableOperator)]
    rows, seen_rows = round(drawn["rows"]), round(big["rows"])
    lengths = vector_lengths(recipe, pa.schema([]))

    def needs(stage: TableOperator, rows: int) -> int:
        return table_memory(stage, rows, 0, lengths)

    bound = max((needs(stage, rows) - needs(stage, seen_rows) for stage in tables), default=0)
    unseen = max(0.0, drawn["bytes"] - FULL_BYTES) / max(1.0, drawn["bytes"])
    table = ROW_BYTES * (rows - seen_rows) + SHARE_OF_BOUND * max(0, bound)
    return round(measured + batches + unseen * table)


def _run(recipe: Recipe, whole: Whole, share: float, home: Path) -> _Measured:
    path, kind, share = whole.sample(share, home / "in")
    told = recipe.model_dump(mode="json", exclude={"memory"})
    told["corpus"] |= {"path": path, "format": kind}
    told |= {"max_quarantine": 1.0, "cluster": None}
    if told["runner"] in CLUSTERS:
        told["runner"] = "processes"
    told["workspace"] = str(home / "work")
    if told["output"] is not None:
        told["output"]["path"] = str(home / "out")
    for stage in told["stages"]:
        if stage["operator"] == "label_corrections":  # the sample lacks rows, and so classes
            stage |= {"unknown": "skip", "new_classes": True}
        if stage["operator"] == "mixture_draw":  # it has less of every domain, and lacks some
            stage["shortfall"] = "fewer"
            for total in ("tokens", "rows"):
                if stage[total] is not None:
                    stage[total] = max(1, round(stage[total] * share))
    for reference in (one for stage in told["stages"] for one in told_references(stage)):
        reference["index"] = None
    (home / "recipe.yaml").write_text(json.dumps(told), "utf-8")
    begun = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "tamis.cli",
        "run",
        str(home / "recipe.yaml"),
        "--no-prefect",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"the sample's run failed ({said})", mend="mend it: the run would fail too")
    summary = json.loads(done.stdout)
    (noted,) = (home / "work" / "runs").glob("*/run.json")
    manifest = json.loads((home / "work" / "manifest.json").read_text("utf-8"))
    return _Measured(
        share,
        {
            "rows": summary["rows"]["in"],
            "kept": summary["rows"]["kept"],
            "written": summary["rows"]["written"],
            "shards": len(manifest["shards"]),
            "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
            "seconds": seconds,
            "peak_memory": summary["peak_memory"],
            "workspace": _size(home / "work"),
            "output": _size(home / "out"),
        },
        json.loads(noted.read_text("utf-8"))["steps"],
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
