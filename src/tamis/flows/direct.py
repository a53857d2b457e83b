"""A run in this process: the steps in order, from corpus to published dataset."""

import os
import platform
import uuid
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from tamis import __version__
from tamis.flows.account import (
    count_reasons,
    domain_counts,
    ledger_counts,
    stage_reports,
    write_ledger,
)
from tamis.flows.checks import check_columns, memory_needed
from tamis.flows.steps import Progress, Run, score, select, set_aside
from tamis.recipe import Recipe
from tamis.scoring.operator import RowScorer
from tamis.selectors.selector import Selector
from tamis.storage.catalog import WORKSPACE_MANIFEST, write_catalog
from tamis.storage.corpus import Corpus
from tamis.storage.dataset import DatasetWriter, OutputFile, card, check_output, file_entries
from tamis.storage.errors import UserError
from tamis.storage.files import digest_of, locked, write_json
from tamis.storage.ingest import open_corpus
from tamis.storage.ledger import QUARANTINED, Balance
from tamis.storage.memory import show_bytes, watch_memory
from tamis.storage.rows import identify

#: Libraries whose version can change bytes that are written.
_VERSIONED = ("pyarrow", "numba", "numpy", "polars", "duckdb")


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        manifest: rows in, kept, dropped by reason, quarantined, written; stages; digests.
        workspace: folder of sidecars, ledger and catalog.
        output: folder of the dataset, or None.
        peak_memory: resident bytes of the process tree at its highest.
        memory_bound: bytes the run said it might need.
        seconds: wall time.
    """

    manifest: dict[str, Any]
    workspace: Path
    output: Path | None
    peak_memory: int
    memory_bound: int
    seconds: float
    _ledger: tuple[Path, ...] = field(repr=False)

    @property
    def decisions(self) -> pl.LazyFrame:
        """Every row's decision."""
        return pl.scan_parquet(list(self._ledger), glob=False)

    @property
    def kept(self) -> pl.LazyFrame:
        """Decisions of the rows that stay."""
        return self.decisions.filter(pl.col("action") == "keep")

    @property
    def dropped(self) -> pl.LazyFrame:
        """Decisions of the rows that were dropped, with reason, value, threshold and partner."""
        return self.decisions.filter(pl.col("action") == "drop")


def run_recipe(recipe: Recipe, progress: Progress | None = None) -> Result:
    """Run a recipe from corpus to dataset; finished steps of earlier runs are not computed again.

    Raises:
        UserError: the recipe does not fit the corpus, or a place cannot be read or written.
        RunError: too many bad rows, a broken file, a full disk, a ledger that does not balance.
    """
    started = datetime.now(UTC)
    workspace = recipe.workspace_path
    output = Path(recipe.output.path) if recipe.output is not None else None
    if output is not None:
        check_output(output)
    _check_places(workspace, output)
    workers = recipe.workers or len(os.sched_getaffinity(0))
    report = progress or (lambda name, done, total: None)
    with watch_memory() as watch, locked(workspace):
        run, bound = _open(recipe, workspace, workers, report)
        quarantine = set_aside(run)
        for stage in recipe.stages:
            if isinstance(stage, RowScorer):
                score(run, stage)
            elif isinstance(stage, Selector):
                select(run, stage)
        ledger = write_ledger(run)
        # The dataset takes its place last: a run that fails before has touched nothing.
        with DatasetWriter(output) if output is not None else nullcontext() as writer:
            entries = _write_dataset(run, writer) if writer is not None else []
            manifest = _manifest(run, ledger, entries)
            write_json(
                workspace / WORKSPACE_MANIFEST, _with_places(run, manifest, ledger, quarantine)
            )
            watch.sample()
            ended = datetime.now(UTC)
            _note_run(workspace, manifest, started, ended, watch.peak)
            write_catalog(workspace)
            if writer is not None:
                writer.publish(manifest, entries, card(manifest))
    seconds = (ended - started).total_seconds()
    return Result(manifest, workspace, output, watch.peak, bound, seconds, tuple(ledger))


def _note_run(
    workspace: Path, manifest: dict[str, Any], started: datetime, ended: datetime, peak: int
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
            "written": rows["written"],
            "peak_memory": peak,
            "tamis": __version__,
            "platform": platform.platform(),
        },
    )


def _check_places(workspace: Path, output: Path | None) -> None:
    """Refuse folders that lie in one another: publishing would remove the workspace.

    Raises:
        UserError: naming them.
    """
    if output is not None:
        inner, outer = workspace.resolve(), output.resolve()
        if inner.is_relative_to(outer) or outer.is_relative_to(inner):
            raise UserError(
                "output and workspace lie in one another", where=str(output), mend="separate them"
            )


def _check_inputs(recipe: Recipe, corpus: Corpus) -> None:
    """Refuse a run that would replace its own input, or take its own output for input next time.

    Raises:
        UserError: naming the place.
    """
    places = {"workspace": recipe.workspace_path.resolve()}
    if recipe.output is not None:
        places["output"] = Path(recipe.output.path).resolve()
    searched = [Path(recipe.corpus.path)] if Path(recipe.corpus.path).is_dir() else []
    if "**" in recipe.corpus.path:
        searched.append(Path(recipe.corpus.path.split("*")[0]))
    searched += [Path(found.path) for found in corpus.inputs if Path(found.path).is_dir()]
    for name, place in places.items():
        for found in corpus.inputs:
            if Path(found.path).resolve().is_relative_to(place):
                raise UserError(
                    f"the corpus lies in the {name}, which the run would replace or clear",
                    where=found.path,
                    mend=f"name another {name}",
                )
        for folder in searched:
            if place.is_relative_to(folder.resolve()):
                raise UserError(
                    f"the {name} lies inside the corpus {folder}",
                    where=str(place),
                    mend="put it elsewhere: the next run would take it for input",
                )


def columns_of(recipe: Recipe) -> list[str]:
    """Names of a corpus's columns."""
    part = recipe.corpus
    return list(open_corpus(part.path, recipe.workspace_path, format=part.format).schema.names)


def _open(recipe: Recipe, workspace: Path, workers: int, report: Progress) -> tuple[Run, int]:
    """Open the corpus, hold the recipe against it, and give every row its id.

    Returns the run and the bytes of memory it may need.
    """
    part = recipe.corpus
    report("reading the corpus", 0, 1)
    corpus = open_corpus(
        part.path, workspace, format=part.format, shard_bytes=part.shard_bytes, workers=workers
    )
    report("reading the corpus", 1, 1)
    _check_inputs(recipe, corpus)
    check_columns(recipe, corpus.schema)
    bound, largest = memory_needed(recipe, corpus, workers)
    if recipe.memory is not None and bound > recipe.memory:
        why = f", most of it for {largest}" if largest else ""
        raise UserError(
            f"the run may need {show_bytes(bound)} of memory for {corpus.rows:,} rows{why}; "
            f"the limit is {show_bytes(recipe.memory)}",
            where="memory",
            mend="raise --memory, use fewer --workers, or split the corpus; nothing was run",
        )
    roles = part.roles
    rows = identify(
        corpus,
        workspace / "ids",
        identity=[roles.id] if roles.id else part.identity or corpus.schema.names,
        explicit_id=roles.id is not None or part.identity is not None,
        required=[roles.text] if roles.text else [],
        on_duplicate_id=part.on_duplicate_id,
        workers=workers,
    )
    return Run(recipe, workspace, corpus, rows, workers, report, kept=~rows.unusable), bound


def _write_dataset(run: Run, writer: DatasetWriter) -> list[OutputFile]:
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        run.progress("writing the dataset", done, run.corpus.rows)

    return writer.write(run.corpus, run.rows, run.kept, run.workers, advance)


def _with_places(
    run: Run, manifest: dict[str, Any], ledger: list[Path], quarantine: Path | None
) -> dict[str, Any]:
    """The manifest with what the catalog needs: where shards and sidecars lie."""

    def inside(path: Path) -> str:
        return str(path.relative_to(run.workspace))

    return {
        **manifest,
        "columns": run.corpus.schema.names,
        "ledger": [inside(path) for path in ledger],
        "shards": _shard_entries(run.corpus, run.workspace),
        "scores": {
            name: {
                "columns": found.operator.fields().names,
                "files": [inside(path) for path in found.paths],
            }
            for name, found in run.evaluated.items()
        },
        "edges": {d.stage: inside(d.edges) for d in run.decided if d.edges},
        "quarantine": inside(quarantine) if quarantine else None,
    }


def _manifest(run: Run, ledger: list[Path], entries: list[OutputFile]) -> dict[str, Any]:
    """What the run did. The ledger is balanced first: a run that does not balance ends here.

    Kept and quarantined rows are counted from the ledger's files, drops from the stages'
    decisions, and written rows from the dataset's files, so that they check one another.
    """
    counts = ledger_counts(ledger)
    kept = counts.get("keep", 0)
    quarantined = counts.get(QUARANTINED, 0) + run.corpus.unread_rows
    dropped: dict[str, int] = {}
    for decided in run.decided:
        dropped.update(count_reasons(decided))
    written = sum(entry.rows for entry in entries)
    corpus = run.corpus
    balance = Balance(corpus.rows + corpus.unread_rows, kept, dropped, quarantined, written)
    balance.check(expected_written=kept if entries else 0)
    recipe = run.recipe.model_dump(mode="json", exclude={"memory", "workers"})
    return {
        "rows": balance.as_manifest(),
        "domains": domain_counts(run),
        "stages": stage_reports(run),
        "recipe": recipe,
        "recipe_digest": digest_of(recipe),
        "versions": {"tamis": __version__, **{name: version(name) for name in _VERSIONED}},
        "inputs": [vars(found) for found in corpus.inputs],
        "files": file_entries(entries),
    }


def _shard_entries(corpus: Corpus, workspace: Path) -> list[dict[str, Any]]:
    """Where the rows of every shard lie; inside the workspace by relative path."""
    entries = []
    home = workspace.resolve()
    for shard in corpus.shards:
        path = shard.path.resolve()
        inside = path.is_relative_to(home)
        entries.append(
            {
                "shard": shard.index,
                "path": str(path.relative_to(home) if inside else path),
                "first_row": shard.first_row,
                "rows": shard.rows,
                "digest": shard.digest,
                "source": shard.source,
            }
        )
    return entries
