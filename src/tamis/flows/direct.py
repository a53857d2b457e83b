"""A run in this process: the steps in order, from corpus to published dataset."""

import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from tamis import __version__
from tamis.flows.account import (
    domain_counts,
    hide_credentials,
    ledger_counts,
    marked_rows_of,
    reasons_dropped,
    stage_reports,
    write_generated,
    write_ledger,
)
from tamis.flows.checks import check_columns, memory_needed
from tamis.flows.generate import generate, score_generated
from tamis.flows.overlaps import (
    check_indices,
    check_inputs,
    check_places,
    check_references,
)
from tamis.flows.phases import schedule_of
from tamis.flows.queues import write_queues
from tamis.flows.steps import Run, score, select, set_aside, write_dataset
from tamis.recipe import Recipe
from tamis.scoring.operator import RowScorer, Scorer, Signal
from tamis.selectors.generator import Generator
from tamis.selectors.marker import Marker
from tamis.selectors.selector import Selector
from tamis.selectors.table_scorer import TableScorer
from tamis.storage.catalog import WORKSPACE_MANIFEST, write_catalog
from tamis.storage.columns import Source
from tamis.storage.corpus import Corpus, Progress
from tamis.storage.dataset import DatasetWriter, card, check_output, file_entries
from tamis.storage.errors import UserError
from tamis.storage.files import digest_of, locked, write_json
from tamis.storage.ingest import open_corpus
from tamis.storage.ledger import (
    DROPPED,
    GENERATED,
    IN_REVIEW,
    QUARANTINED,
    RELABELLED,
    STAYS,
    Balance,
)
from tamis.storage.memory import show_bytes, watch_memory
from tamis.storage.places import Place, absolute, place_of, shown
from tamis.storage.rows import Identify, identify
from tamis.storage.tables import scan
from tamis.storage.tasks import Runner, Threads
from tamis.storage.write import OutputFile

#: Libraries whose version can change bytes that are written.
_VERSIONED = ("pyarrow", "numba", "numpy", "polars", "duckdb")


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        manifest: rows in, kept (of these relabelled, in review), dropped by reason, quarantined,
            generated, written; stages; digests.
        workspace: folder of sidecars, ledger and catalog.
        output: folder of the dataset, or None.
        peak_memory: resident bytes of the process tree at its highest.
        memory_bound: bytes the run said it might need.
        queues: by stage that put rows into review, the files to fill in.
        seconds: wall time.
        step_seconds: wall time by step: ``corpus``, the stages, ``ledger``, ``dataset``.
    """

    manifest: dict[str, Any]
    workspace: Place
    output: Place | None
    peak_memory: int
    memory_bound: int
    seconds: float
    step_seconds: dict[str, float]
    queues: dict[str, list[Place]]
    _ledger: tuple[Place, ...] = field(repr=False)

    @property
    def decisions(self) -> pl.LazyFrame:
        """Every row's decision, those of generated rows last."""
        return scan(self._ledger)

    @property
    def kept(self) -> pl.LazyFrame:
        """Decisions of the rows that stay, also with another label or in review."""
        return self.decisions.filter(pl.col("action").is_in(STAYS))

    @property
    def dropped(self) -> pl.LazyFrame:
        """Decisions of the rows that were dropped, with reason, value, threshold and partner."""
        return self.decisions.filter(pl.col("action") == DROPPED)

    @property
    def generated(self) -> pl.LazyFrame:
        """What the ledger says of rows that stages made, with their parents."""
        return self.decisions.filter(pl.col("action") == GENERATED)


class Clock:
    """Seconds that the steps of a run take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun


def run_recipe(
    recipe: Recipe, progress: Progress | None = None, runner: Runner | None = None
) -> Result:
    """Run a recipe from corpus to dataset; finished steps of earlier runs are not computed again.

    Args:
        progress: called with a step's name, work done and work in all.
        runner: does the work on shards; threads of this process if not given.

    Raises:
        UserError: the recipe does not fit the corpus, or a place cannot be read or written.
        RunError: too many bad rows, a broken file, a full disk, a ledger that does not balance.
    """
    started = datetime.now(UTC)
    workspace = recipe.workspace_path
    output = place_of(recipe.output.path) if recipe.output is not None else None
    if output is not None:
        check_output(output)
    check_places(workspace, output)
    runner = runner or Threads(recipe.workers or len(os.sched_getaffinity(0)))
    report = progress or (lambda name, done, total: None)
    clock = Clock()
    with watch_memory() as watch, locked(workspace):
        with clock.step("corpus"):
            run, bound = open_run(recipe, workspace, runner, report)
            set_aside(run)
        for stage in run.recipe.stages:
            with clock.step(stage.stage):
                if isinstance(stage, RowScorer | TableScorer):
                    score(run, stage)
                elif isinstance(stage, Selector):
                    select(run, stage)
                elif isinstance(stage, Generator):
                    generate(run, stage)
        with clock.step("ledger"):
            ledger, weight = write_ledger(run)
            queues = write_queues(run)
            lineage = [write_generated(run, made) for made in run.generated]
            made_ledger = [path for paths, _ in lineage for path in paths]
        # The dataset takes its place last: a run that fails before has touched nothing.
        with DatasetWriter(output, workspace) if output else nullcontext() as writer:
            with clock.step("dataset"):
                if writer is not None:
                    score_generated(run)
                entries = write_dataset(run, writer, weight) if writer is not None else []
            manifest = _manifest(run, [*ledger, *made_ledger], entries)
            write_json(
                workspace / WORKSPACE_MANIFEST, _with_places(run, manifest, ledger, lineage, queues)
            )
            watch.sample()
            ended = datetime.now(UTC)
            _note_run(workspace, manifest, started, ended, watch.peak, clock.seconds)
            write_catalog(workspace)
            if writer is not None:
                writer.publish(manifest, entries, card(manifest))
        if isinstance(workspace, Path):  # on a store another run may be reading its own
            shutil.rmtree(workspace / "orders", ignore_errors=True)
    seconds = (ended - started).total_seconds()
    return Result(
        manifest,
        workspace,
        output,
        watch.peak,
        bound,
        seconds,
        clock.seconds,
        queues,
        (*ledger, *made_ledger),
    )


def _note_run(
    workspace: Place,
    manifest: dict[str, Any],
    started: datetime,
    ended: datetime,
    peak: int,
    steps: dict[str, float],
) -> None:
    """What differs from run to run lies apart from what does not."""
    rows = manifest["rows"]
    run_id = f"{started:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    write_json(
        workspace / "runs" / run_id / "run.json",
        {
            "run_id": run_id,
            "recipe": manifest["recipe_digest"],
            "started": started.isoformat(),
            "ended": ended.isoformat(),
            "rows_in": rows["in"],
            "kept": rows["kept"],
            "dropped": sum(rows["dropped"].values()),
            "quarantined": rows["quarantined"],
            "generated": rows["generated"],
            "written": rows["written"],
            "peak_memory": peak,
            "steps": {name: round(seconds, 3) for name, seconds in steps.items()},
            "tamis": __version__,
            "platform": platform.platform(),
        },
    )


def columns_of(recipe: Recipe) -> list[str]:
    """Names of a corpus's columns."""
    part = recipe.corpus
    corpus = open_corpus(part.path, recipe.workspace_path, format=part.format)
    return list(corpus.schema.names)


def open_run(
    recipe: Recipe, workspace: Place, runner: Runner, report: Progress, *, row_bytes: int = 0
) -> tuple[Run, int]:
    """Open the corpus, hold the recipe against it, and give every row its id.

    `row_bytes` of memory a row are for what the caller does beside the recipe's stages.
    Returns the run and the bytes of memory it may need.
    """
    check_indices(recipe)
    recipe = recipe.resolve(absolute(workspace))
    part = recipe.corpus
    report("reading the corpus", 0, 1)
    corpus = open_corpus(
        part.path, workspace, runner, format=part.format, shard_bytes=part.shard_bytes
    )
    report("reading the corpus", 1, 1)
    check_inputs(recipe, corpus)
    check_references(recipe)
    check_columns(recipe, corpus.schema)
    bound, largest = memory_needed(recipe, corpus, runner.workers)
    bound += row_bytes * corpus.rows
    if recipe.memory is not None and bound > recipe.memory:
        why = f", most of it for {largest}" if largest else ""
        raise UserError(
            f"the run may need {show_bytes(bound)} of memory for {corpus.rows:,} rows{why}; "
            f"the limit is {show_bytes(recipe.memory)}",
            where="memory",
            mend="raise --memory, use fewer --workers, or split the corpus; nothing was run",
        )
    roles = part.roles
    home = absolute(workspace)
    task = Identify(
        shards=corpus.keep(home / "orders"),
        folder=str(home / "ids"),
        identity=part.identity_in(corpus.schema),
        required=roles.required(),
    )
    rows = identify(
        corpus,
        task,
        runner,
        explicit_id=part.explicit_id,
        on_duplicate_id=part.on_duplicate_id,
    )
    columns: dict[str, Source] = {**roles.columns()}
    spare = None if recipe.memory is None else recipe.memory - bound
    run = Run(recipe, workspace, corpus, rows, runner, report, ~rows.unusable, columns, spare)
    return run, bound


def _with_places(
    run: Run,
    manifest: dict[str, Any],
    ledger: list[Place],
    lineage: list[tuple[list[Place], list[Place]]],
    queues: dict[str, list[Place]],
) -> dict[str, Any]:
    """The manifest with what the catalog needs: where shards and sidecars lie."""

    home = absolute(run.workspace)

    def inside(path: Place) -> str:
        return str(absolute(path)).removeprefix(f"{str(home).rstrip('/')}/")

    return {
        **manifest,
        "columns": run.corpus.schema.names,
        "ledger": [inside(path) for path in ledger],
        "shards": _shard_entries(run.corpus, run.workspace),
        "generated": {
            made.stage: {
                "shards": _shard_entries(made.corpus, run.workspace),
                "ledger": [inside(path) for path in decisions],
                "notes": [inside(path) for path in notes],
                "scores": {
                    found.operator.stage: [inside(path) for path in found.paths]
                    for found in made.scores.values()
                },
            }
            for made, (decisions, notes) in zip(run.generated, lineage, strict=True)
        },
        **{
            view: {
                name: {
                    "columns": {n: found.stored(n) for n in found.operator.fields().names},
                    "files": [inside(path) for path in found.paths],
                    "steps": list(found.steps),
                    "in_ledger": _in_ledger(found.operator),
                }
                for name, found in run.evaluated.items()
                if isinstance(found.operator, Signal) == (view == "signals")
            }
            for view in ("scores", "signals")
        },
        "sidecars": {
            stage: {
                one.operator.operator: {
                    "files": [inside(path) for path in one.paths],
                    "steps": list(one.steps),
                }
                for one in found
            }
            for stage, found in run.signals.items()
        },
        "edges": {d.stage: inside(d.edges) for d in run.decided if d.edges},
        "quarantine": [inside(path) for path in run.quarantine],
        "review": {stage: [inside(path) for path in paths] for stage, paths in queues.items()},
    }


def _in_ledger(scorer: Scorer) -> list[str]:
    """Columns of a scorer that say of a row what the ledger says again, where it has a mark."""
    marks = scorer.marks() if isinstance(scorer, Marker) else {}
    return [name for mark, name in marks.items() if mark not in ("passes", "weight")]


def _manifest(run: Run, ledger: list[Place], entries: list[OutputFile]) -> dict[str, Any]:
    """What the run did. The ledger is balanced first: a run that does not balance ends here.

    Kept and quarantined rows and how often each is written are counted from the ledger's files,
    drops from the stages' decisions, and written rows from the dataset's files, so that they check
    one another.
    """
    counts, written = ledger_counts(ledger)
    kept = sum(counts.get(action, 0) for action in STAYS)
    quarantined = counts.get(QUARANTINED, 0) + run.corpus.unread_rows
    dropped = reasons_dropped(run)
    corpus = run.corpus
    balance = Balance(
        rows_in=corpus.rows + corpus.unread_rows,
        kept=kept,
        marked={action: counts.get(action, 0) for action in (RELABELLED, IN_REVIEW)},
        dropped=dropped,
        quarantined=quarantined,
        generated=counts.get(GENERATED, 0),
        written=sum(entry.rows for entry in entries),
    )
    balance.check(
        expected_marked=marked_rows_of(run),
        expected_generated=sum(len(made.parents) for made in run.generated),
        expected_written=written if entries else 0,
    )
    schedule = schedule_of(run, entries)
    recipe = run.recipe.model_dump(mode="json", exclude={"memory", "workers", "runner", "cluster"})
    recipe["corpus"]["path"] = shown(recipe["corpus"]["path"])
    for stage in recipe["stages"]:
        hide_credentials(stage)
    return {
        "rows": balance.as_manifest(),
        "domains": domain_counts(run),
        "stages": stage_reports(run),
        "rewritten": _rewritten(run),
        "recipe": recipe,
        "recipe_digest": digest_of(recipe),
        "versions": {"tamis": __version__, **{name: version(name) for name in _VERSIONED}},
        "inputs": [vars(found) for found in corpus.inputs],
        "files": file_entries(entries),
        **({} if schedule is None else {"schedule": schedule}),
    }


def _rewritten(run: Run) -> dict[str, list[str]]:
    """By role, the scores that stages have put in its place, in order."""
    found: dict[str, list[str]] = {}
    for evaluated in run.evaluated.values():
        for role, name in evaluated.operator.rewrites().items():
            found.setdefault(role, []).append(name)
    return found


def _shard_entries(corpus: Corpus, workspace: Place) -> list[dict[str, Any]]:
    """Where the rows of every shard lie; inside the workspace by relative path."""
    entries = []
    home = f"{str(absolute(workspace)).rstrip('/')}/"
    for shard in corpus.shards:
        entries.append(
            {
                "shard": shard.index,
                "path": str(absolute(shard.path)).removeprefix(home),
                "groups": [shard.groups.start, shard.groups.stop],
                "first_row": shard.first_row,
                "rows": shard.rows,
                "bytes": shard.bytes,
                "digest": shard.digest,
                "source": shard.source,
            }
        )
    return entries
