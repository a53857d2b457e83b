"""The steps of a run, each of which can be called again and does only what is missing."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tamis.recipe import Recipe
from tamis.scoring.evaluate import Evaluated, Mask, evaluate
from tamis.scoring.operator import REGISTRY, RowScorer
from tamis.selectors.selector import Selector
from tamis.selectors.table import Table, is_number
from tamis.storage.corpus import Corpus, Shard
from tamis.storage.errors import RunError, UserError
from tamis.storage.files import digest_of, whole_file
from tamis.storage.hashing import hex_ids
from tamis.storage.ingest import UNREAD, line_of
from tamis.storage.kernels import Int64s, in_threads
from tamis.storage.ledger import DECISION, QUARANTINED, RULES, Drops
from tamis.storage.rows import Rows
from tamis.storage.sidecar import PLACE, Part, sidecar_once, sidecar_path

Progress = Callable[[str, int, int], None]

_LEDGER_VERSION = 1


@dataclass
class Decided:
    """One selector's drops, in corpus positions, and where they are stored."""

    stage: str
    operator: str
    drops: Drops
    path: Path
    edges: Path | None
    step: str


@dataclass
class Run:
    """What is known of a run while it goes on."""

    recipe: Recipe
    workspace: Path
    corpus: Corpus
    rows: Rows
    workers: int
    progress: Progress
    kept: Mask
    scores: dict[str, Evaluated] = field(default_factory=dict)
    evaluated: dict[str, Evaluated] = field(default_factory=dict)
    decided: list[Decided] = field(default_factory=list)

    @property
    def columns(self) -> dict[str, str]:
        return self.recipe.corpus.roles.columns()


def check_columns(recipe: Recipe, schema: pa.Schema) -> None:
    """Hold the recipe against the corpus before any work.

    Raises:
        UserError: for a column that is not there, has the wrong type or two meanings, and for a
            score that no earlier stage gives.
    """
    where = "recipe"
    for role, column in recipe.corpus.roles.columns().items():
        if column not in schema.names:
            raise UserError(
                f"corpus.roles.{role}: no column {column!r}",
                where=where,
                mend=f"the corpus has {', '.join(schema.names)}",
            )
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if role == "text" and not _is_text(kind):
            raise UserError(
                f"corpus.roles.text: expected a string column, found {column!r} of type {kind}",
                where=where,
            )
    for column in recipe.corpus.identity or ():
        if column not in schema.names:
            raise UserError(f"corpus.identity: no column {column!r}", where=where)
    known = set(schema.names)
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, Selector):
            for name in sorted(stage.reads() - known):
                raise UserError(
                    f"stages[{index}] ({stage.stage}) reads {name!r}, which is neither a column "
                    "nor a score of an earlier stage",
                    where=where,
                    mend=_who_gives(name) or f"known here: {', '.join(sorted(known))}",
                )
            for name in sorted(stage.numbers() & set(schema.names)):
                if not is_number(schema.field(name).type):
                    raise UserError(
                        f"stages[{index}] ({stage.stage}): expected a number or a time, found "
                        f"{name!r} of type {schema.field(name).type}",
                        where=where,
                    )
        elif isinstance(stage, RowScorer):
            for name in stage.fields().names:
                if name in known:
                    raise UserError(
                        f"stages[{index}] ({stage.stage}) gives the score {name!r}, a name that "
                        "is taken already",
                        where=where,
                        mend="rename the column of the corpus or leave out one of the two",
                    )
                known.add(name)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _who_gives(name: str) -> str:
    for operator, cls in REGISTRY.items():
        if (
            issubclass(cls, RowScorer)
            and cls.kind == RowScorer.kind
            and name in cls().fields().names
        ):
            return f"put `- operator: {operator}` before it"
    return ""


def score_names(cls: type[RowScorer]) -> list[str]:
    """Scores that a row scorer gives with its default parameters."""
    return list(cls().fields().names)


def missing_scorers(recipe: Recipe) -> list[str]:
    """Row scorers that give names its selectors read and nothing in the recipe gives."""
    given = {n for s in recipe.stages if isinstance(s, RowScorer) for n in s.fields().names}
    read = {n for s in recipe.stages if isinstance(s, Selector) for n in s.reads()}
    return [
        name
        for name, cls in sorted(REGISTRY.items())
        if issubclass(cls, RowScorer)
        and cls.kind == RowScorer.kind
        and set(score_names(cls)) & (read - given)
    ]


#: Resident bytes of the interpreter with what the core imports, and of a worker's batches:
#: measured on the benchmark corpus, rounded up.
BASE_BYTES = 450 << 20
WORKER_BYTES = 300 << 20
ROW_BYTES = 110


def memory_needed(recipe: Recipe, corpus: Corpus, workers: int) -> tuple[int, str]:
    """Upper bound of the resident bytes of a run, and what takes most of them."""
    group = max((shard.bytes // len(shard.groups) for shard in corpus.shards), default=0)
    each = max(WORKER_BYTES, min(2 * group, 2 * WORKER_BYTES))
    fixed = BASE_BYTES + workers * each + corpus.rows * ROW_BYTES
    needs = {
        stage.stage: stage.memory(corpus.rows, corpus.bytes)
        for stage in recipe.stages
        if isinstance(stage, Selector)
    }
    largest = max(needs, key=lambda name: needs[name], default="")
    return fixed + needs.get(largest, 0), largest


def set_aside(run: Run) -> tuple[Path | None, int]:
    """Write the rows that cannot be used into ``quarantine/``.

    Raises:
        RunError: if they are more than the recipe allows; shows the first few.
    """
    corpus, rows = run.corpus, run.rows
    unusable = np.flatnonzero(rows.unusable)
    bad = len(unusable) + corpus.unread_rows
    if bad == 0:
        return None, 0
    tables = [pq.read_table(path) for path in corpus.unread]
    found: list[dict[str, Any]] = []
    text = run.columns.get("text", "")
    limit = 1000  # places are looked up one by one
    for position in unusable:
        shard = corpus.shards[int(np.searchsorted(rows.start, position, side="right")) - 1]
        row = int(position - rows.start[shard.index])
        line = line_of(shard, row) if len(found) < limit else None
        ids = hex_ids(rows.id_hi[position : position + 1], rows.id_lo[position : position + 1])
        reason = f"column {text!r}: expected a text, found null"
        found.append({"file": shard.source, "line": line, "row_id": ids[0], "reason": reason})
    tables.append(pa.Table.from_pylist(found, UNREAD))
    table = pa.concat_tables(tables)
    step = digest_of([shard.digest for shard in corpus.shards] + [p.name for p in corpus.unread])
    path = run.workspace / "quarantine" / f"{step[:16]}.parquet"
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    total = corpus.rows + corpus.unread_rows
    if bad > run.recipe.max_quarantine * total:
        first = "; ".join(
            f"{r['file']} line {r['line']}: {r['reason']}" for r in table.slice(0, 3).to_pylist()
        )
        raise RunError(
            f"{bad:,} of {total:,} rows are bad, more than max_quarantine = "
            f"{run.recipe.max_quarantine:g} allows. {first}",
            where=str(path),
            mend="mend the corpus, or raise max_quarantine to leave these rows out",
        )
    return path, bad


def score(run: Run, stage: RowScorer) -> None:
    """Evaluate a row scorer on the rows still kept."""
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        run.progress(stage.stage, done, run.corpus.rows)

    evaluated = evaluate(
        stage,
        run.corpus,
        run.rows,
        run.kept,
        run.columns,
        run.workspace / "scores" / stage.operator,
        workers=run.workers,
        progress=advance,
    )
    run.evaluated[stage.stage] = evaluated
    run.scores.update(dict.fromkeys(stage.fields().names, evaluated))


def select(run: Run, stage: Selector) -> None:
    """Let a selector decide, or take what it decided before from the same input."""
    read = sorted(stage.reads())
    step = digest_of(
        [
            stage.key_parts(),
            {role: run.columns[role] for role in stage.roles},
            [shard.digest for shard in run.corpus.shards],
            [(name, run.scores[name].steps) for name in read if name in run.scores],
            sorted(run.recipe.corpus.identity or [run.columns.get("id", "")]),
            xxhash.xxh3_128_hexdigest(np.packbits(run.kept).tobytes()),
        ]
    )
    path = run.workspace / "decisions" / f"{stage.operator}-{step[:16]}.parquet"
    edges = run.workspace / "edges" / path.name
    stored = _load_drops(path, step)
    if stored is None:
        drops = _decide(run, stage)
        stored = drops
        if drops.edges is not None:
            _store_edges(run, drops.edges, edges)
        _store_drops(drops, path, step)
    run.progress(stage.stage, 1, 1)
    run.kept[stored.rows] = False
    with_edges = edges if edges.exists() else None
    run.decided.append(Decided(stage.stage, stage.operator, stored, path, with_edges, step))


def _decide(run: Run, stage: Selector) -> Drops:
    positions = np.flatnonzero(run.kept)
    table = Table(
        run.corpus,
        run.rows,
        run.kept,
        positions,
        run.columns,
        run.scores,
        run.workspace / "signals",
        run.workers,
        run.progress,
    )
    drops = stage.select(table)
    drops.rows = positions[drops.rows]
    drops.partner = np.where(drops.partner >= 0, positions[drops.partner], -1)
    if drops.edges is not None:
        a, b, value = drops.edges
        drops.edges = (positions[a], positions[b], value)
    return drops


def _store_drops(drops: Drops, path: Path, step: str) -> None:
    table = pa.table(
        {
            "position": drops.rows,
            "reason": drops.reason,
            "value": drops.value,
            "threshold": drops.threshold,
            "partner": drops.partner,
            "similarity": drops.similarity,
            "rules": pa.nulls(len(drops.rows), RULES) if drops.rules is None else drops.rules,
        }
    )
    notes = {"step": step, "reasons": drops.reasons, "report": drops.report}
    with whole_file(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata({"tamis": json.dumps(notes)}),
            temporary,
            compression="zstd",
        )


def _load_drops(path: Path, step: str) -> Drops | None:
    try:
        table = pq.read_table(path)
        notes = json.loads(table.schema.metadata[b"tamis"])
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None
    if notes["step"] != step:
        return None
    rules = table["rules"].combine_chunks()
    return Drops(
        rows=table["position"].to_numpy(),
        reasons=notes["reasons"],
        reason=table["reason"].to_numpy(),
        value=table["value"].to_numpy(),
        threshold=table["threshold"].to_numpy(),
        partner=table["partner"].to_numpy(),
        similarity=table["similarity"].to_numpy(),
        rules=rules if rules.null_count < len(rules) else None,
        report=notes["report"],
    )


def _store_edges(
    run: Run, edges: tuple[Int64s, Int64s, npt.NDArray[np.float64]], path: Path
) -> None:
    """Verified pairs, the better-ranked row second, in order of position."""
    a, b, similarity = edges
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    rows = run.rows
    table = pa.table(
        {
            "id_hi": rows.id_hi[a],
            "id_lo": rows.id_lo[a],
            "copy": rows.copy[a],
            "other_hi": rows.id_hi[b],
            "other_lo": rows.id_lo[b],
            "other_copy": rows.copy[b],
            "similarity": similarity[order],
        }
    )
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False)


def count_reasons(decided: Decided) -> dict[str, int]:
    """Rows a stage dropped, by reason: the stage, or ``stage:rule``."""
    counts = np.bincount(decided.drops.reason, minlength=len(decided.drops.reasons))
    return {
        _reason(decided.stage, name): int(count)
        for name, count in zip(decided.drops.reasons, counts, strict=True)
        if count
    }


def _reason(stage: str, name: str) -> str:
    return f"{stage}:{name}" if name else stage


def write_ledger(run: Run) -> list[Path]:
    """One decision for every row, shard by shard."""
    step = digest_of([_LEDGER_VERSION, [(d.stage, d.step) for d in run.decided]])
    drops = _all_drops(run)

    def work(shard: Shard) -> Path:
        key = digest_of([step, shard.digest])
        path = sidecar_path(run.workspace / "ledger", shard, key)
        sidecar_once(path, shard, key, DECISION, lambda: _decisions_of(run, drops, shard))
        return path

    if not run.corpus.shards:
        path = run.workspace / "ledger" / "empty.parquet"
        with whole_file(path) as temporary:
            pq.write_table(pa.schema([*PLACE, *DECISION]).empty_table(), temporary)
        return [path]
    return in_threads(work, run.corpus.shards, run.workers)


def _all_drops(run: Run) -> pa.Table:
    """All stages' drops in order of position; a row is dropped by one stage at most."""
    parts = []
    for decided in run.decided:
        drops = decided.drops
        names = pa.array([_reason(decided.stage, name) for name in drops.reasons], pa.string())
        stage = pa.array([decided.stage], pa.string())
        none = drops.partner < 0
        partner = np.where(none, 0, drops.partner)
        parts.append(
            pa.table(
                {
                    "position": drops.rows,
                    "stage": stage.take(pa.array(np.zeros(len(drops.rows), np.int8))),
                    "reason": names.take(pa.array(drops.reason)),
                    "value": pa.array(drops.value, from_pandas=True),
                    "threshold": pa.array(drops.threshold, from_pandas=True),
                    "rules": (
                        pa.nulls(len(drops.rows), RULES) if drops.rules is None else drops.rules
                    ),
                    "partner_hi": pa.array(run.rows.id_hi[partner], mask=none),
                    "partner_lo": pa.array(run.rows.id_lo[partner], mask=none),
                    "partner_copy": pa.array(run.rows.copy[partner], mask=none),
                    "similarity": pa.array(drops.similarity, from_pandas=True),
                }
            )
        )
    if not parts:
        names_only = [f for f in DECISION if f.name in _DROP_COLUMNS]
        return pa.schema([pa.field("position", pa.int64()), *names_only]).empty_table()
    return pa.concat_tables(parts).sort_by("position").combine_chunks()


_DROP_COLUMNS = (
    "stage",
    "reason",
    "value",
    "threshold",
    "rules",
    "partner_hi",
    "partner_lo",
    "partner_copy",
    "similarity",
)


def _part_of(run: Run, drops: pa.Table, shard: Shard) -> pa.Table:
    here = run.rows.of(shard)
    first, last = np.searchsorted(drops["position"].to_numpy(), [here.start, here.stop])
    return drops.slice(int(first), int(last - first))


def _decisions_of(run: Run, drops: pa.Table, shard: Shard) -> Iterator[Part]:
    here = run.rows.of(shard)
    part = _part_of(run, drops, shard)
    count = shard.rows
    at = np.zeros(count, np.int64)
    absent = np.ones(count, np.bool_)
    inside = part["position"].to_numpy() - here.start
    at[inside] = np.arange(len(inside))
    absent[inside] = False
    taken = part.take(pa.array(at, mask=absent))
    unusable = run.rows.unusable[here]
    action = np.where(unusable, 2, np.where(absent, 0, 1))
    actions = pa.array(["keep", "drop", QUARANTINED]).take(pa.array(action))
    kept = (action == 0).astype(np.int32)
    columns = {
        "id_hi": pa.array(run.rows.id_hi[here]),
        "id_lo": pa.array(run.rows.id_lo[here]),
        "copy": pa.array(run.rows.copy[here]),
        "action": actions,
        "repeat": pa.array(kept),
        "weight": pa.array(kept.astype(np.float64)),
        **{name: taken[name] for name in _DROP_COLUMNS},
    }
    table = pa.table({name: columns[name] for name in DECISION.names}, schema=DECISION)
    for batch in table.combine_chunks().to_batches():
        yield np.arange(count, dtype=np.int64), batch


def groups_lost_whole(run: Run) -> dict[str, int]:
    """By deduplicating stage: groups whose survivor a later stage dropped."""
    lost = {}
    for decided in run.decided:
        partners = np.unique(decided.drops.partner[decided.drops.partner >= 0])
        if len(partners):
            lost[decided.stage] = int((~run.kept[partners]).sum())
    return lost


def domain_counts(run: Run) -> dict[str, dict[str, int]] | None:
    """Rows in and kept by the domain role, if there is one."""
    column = run.columns.get("domain")
    if column is None:
        return None
    everything: dict[str, int] = {}
    remaining: dict[str, int] = {}

    def add(counts: dict[str, int], values: pa.Array) -> None:
        for entry in values.value_counts().to_pylist():
            name = str(entry["values"])
            counts[name] = counts.get(name, 0) + entry["counts"]

    for values, inside in _column_by_batch(run, column):
        add(everything, values)
        add(remaining, values.filter(pa.array(inside)))
    return {
        name: {"in": count, "kept": remaining.get(name, 0)}
        for name, count in sorted(everything.items())
    }


def _column_by_batch(run: Run, column: str) -> Iterator[tuple[pa.Array, Mask]]:
    for shard in run.corpus.shards:
        inside = run.kept[run.rows.of(shard)]
        begin = 0
        for batch in shard.batches([column]):
            yield batch[column], inside[begin : begin + batch.num_rows]
            begin += batch.num_rows


def stage_reports(run: Run) -> list[dict[str, Any]]:
    """What the manifest says of every stage."""
    lost = groups_lost_whole(run)
    decided = {d.stage: d for d in run.decided}
    reports = []
    for stage in run.recipe.stages:
        report: dict[str, Any] = {"stage": stage.stage, **stage.key_parts()}
        if stage.stage in decided:
            found = decided[stage.stage]
            report["dropped"] = count_reasons(found)
            report["report"] = found.drops.report
            if stage.stage in lost:
                report["groups_lost_later"] = lost[stage.stage]
        reports.append(report)
    return reports
