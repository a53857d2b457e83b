"""The steps of a run, each of which can be called again and does only what is missing."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tamis.flows.earlier import known_pairs
from tamis.flows.marks import Marked, marks_of
from tamis.recipe import Recipe
from tamis.scoring.evaluate import Evaluated, evaluate, located
from tamis.scoring.operator import RowScorer, Signal
from tamis.selectors.generator import NewRows
from tamis.selectors.known_pairs import Known
from tamis.selectors.marker import Marker
from tamis.selectors.selector import Selector, TableOperator
from tamis.selectors.suspicion import BySuspicion
from tamis.selectors.table import Table, signal_key
from tamis.selectors.table_scorer import TableScorer, evaluate_table
from tamis.storage.columns import Beside, Mask, Source, keep_mask
from tamis.storage.corpus import Corpus, Progress
from tamis.storage.dataset import DatasetWriter
from tamis.storage.edges import Edges
from tamis.storage.errors import RunError
from tamis.storage.files import digest_of, whole_file
from tamis.storage.ingest import UNREAD
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import DECISION, OUTSIDE, RULES, Drops
from tamis.storage.places import Place, kind_of, parquet_file, place_errors, shown
from tamis.storage.rows import Rows, bad_rows, examples_of, rows_of
from tamis.storage.tasks import Done, Runner
from tamis.storage.write import OutputFile, dataset_schema


@dataclass
class Decided:
    """One stage's drops, in corpus positions, and where they are stored.

    Attributes:
        quarantined: whether they are rows that a scorer could not score, not rows it is done with.
    """

    stage: str
    operator: str
    drops: Drops
    path: Place
    edges: Place | None
    step: str
    quarantined: bool = False

    def reasons(self) -> list[str]:
        """Of every row dropped."""
        return [self.drops.reasons[index] for index in self.drops.reason]


@dataclass(frozen=True)
class Generated:
    """The rows that a generator made.

    Attributes:
        corpus: their files, in the order of their parents.
        rows: their ids.
        parents: position in the run's corpus of the row that each was made from.
        new: what the generator said of them.
        scores: those that the dataset shows, computed for these rows.
    """

    stage: str
    corpus: Corpus
    rows: Rows
    parents: Int64s
    new: NewRows
    scores: dict[str, Evaluated] = field(default_factory=dict)


@dataclass
class Run:
    """What is known of a run while it goes on.

    Attributes:
        signed: by `signal_key`, the rows that the first stage to ask a signal asked it of.
        signals: by selector, where the signals that it asked for lie.
        quarantine: files of rows that cannot be used.
        generated: rows that stages made; later stages do not see them.
        marked: what markers say of rows, in the order of the stages.
    """

    recipe: Recipe
    workspace: Place
    corpus: Corpus
    rows: Rows
    runner: Runner
    progress: Progress
    kept: Mask
    columns: dict[str, Source]
    spare: int | None = None
    scores: dict[str, Evaluated] = field(default_factory=dict)
    evaluated: dict[str, Evaluated] = field(default_factory=dict)
    decided: list[Decided] = field(default_factory=list)
    signed: dict[str, Mask] = field(default_factory=dict)
    signals: dict[str, list[Evaluated]] = field(default_factory=dict)
    quarantine: list[Place] = field(default_factory=list)
    generated: list[Generated] = field(default_factory=list)
    marked: list[Marked] = field(default_factory=list)

    @property
    def rewritten(self) -> dict[str, Source]:
        """By column of the corpus, where its values come from that a stage has rewritten."""
        return rewritten_in(self.recipe, self.columns)

    def source(self, name: str) -> Source:
        """Where a score or a column of the corpus lies."""
        if name in self.scores:
            return self.scores[name].column(name)
        return self.rewritten.get(name, name)

    def advance(self, name: str) -> Done:
        """A callback that reports the rows of every shard that is done."""
        return self.corpus.advance(name, self.progress)


def rewritten_in(recipe: Recipe, columns: Mapping[str, Source]) -> dict[str, Source]:
    """By column of the corpus, where its values come from in place of it, from those of roles."""
    roles = recipe.corpus.roles.columns()
    return {roles[role]: s for role, s in columns.items() if isinstance(s, Beside)}


def set_aside(run: Run) -> None:
    """Write the rows that cannot be used into ``quarantine/``.

    Raises:
        RunError: if they are more than the recipe allows; shows the first few.
    """
    corpus = run.corpus
    if run.rows.unusable.any() or corpus.unread_rows:
        step = digest_of(
            [shard.digest for shard in corpus.shards] + [p.name for p in corpus.unread]
        )
        bad = bad_rows(corpus, run.rows, run.recipe.corpus.roles.required())
        _quarantine(run, f"{step[:16]}.parquet", bad)


def _quarantine(run: Run, name: str, rows: Iterable[pa.Table]) -> Place:
    path = run.workspace / "quarantine" / name
    first: list[dict[str, Any]] = []
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, UNREAD) as out:
        for table in rows:
            out.write_table(table)
            first += table.slice(0, 3 - len(first)).to_pylist()
    run.quarantine.append(path)
    total = run.corpus.rows + run.corpus.unread_rows
    bad = int(run.rows.unusable.sum()) + run.corpus.unread_rows
    bad += sum(len(found.drops.rows) for found in run.decided if found.quarantined)
    if bad > run.recipe.max_quarantine * total:
        raise RunError(
            f"{bad:,} of {total:,} rows are bad, more than max_quarantine = "
            f"{run.recipe.max_quarantine:g} allows. {examples_of(first)}",
            where=shown(path),
            mend="mend the corpus, or raise max_quarantine to leave these rows out",
        )
    return path


def score(run: Run, stage: RowScorer | TableScorer) -> None:
    """Evaluate a scorer on the rows still kept; later stages read the text it rewrites."""
    if isinstance(stage, TableScorer):
        step, table = step_of(run, stage), table_of(run)
        evaluated = run.runner.step(stage.stage, lambda: evaluate_table(stage, table, step))
        run.progress(stage.stage, 1, 1)
    else:
        evaluated = evaluate(
            stage,
            run.corpus,
            run.kept,
            {**{name: run.source(name) for name in stage.reads()}, **run.columns},
            run.workspace,
            "signals" if isinstance(stage, Signal) else "scores",
            run.runner,
            run.advance(stage.stage),
        )
    use(run, evaluated)
    mark(run, evaluated)
    refused = refuse(run, evaluated)
    if refused is not None:
        rows = rows_of(run.corpus, run.rows, refused.drops.rows, refused.reasons())
        _quarantine(run, refused.path.name, rows)


def use(run: Run, evaluated: Evaluated) -> None:
    """Let later stages read the scores of a stage, and the text it rewrites."""
    stage = evaluated.operator
    run.evaluated[stage.stage] = evaluated
    run.scores.update(dict.fromkeys(stage.fields().names, evaluated))
    run.columns.update({role: evaluated.column(field) for role, field in stage.rewrites().items()})


def refuse(run: Run, evaluated: Evaluated) -> Decided | None:
    """Leave out the rows that a scorer could not score; None if there are none."""
    stage = evaluated.operator
    name = stage.refused()
    if name is None:
        return None
    reasons = table_of(run).column(name)
    refused = np.flatnonzero(np.asarray(reasons.is_valid()))
    if not len(refused):
        return None
    named = reasons.take(pa.array(refused)).combine_chunks().dictionary_encode()
    drops = Drops.of(np.flatnonzero(run.kept)[refused], "")
    drops.reasons = named.dictionary.to_pylist()
    drops.reason = np.asarray(named.indices, np.int32)
    step = digest_of([stage.stage, *evaluated.steps])
    path = run.workspace / "quarantine" / f"{stage.stage}-{step[:16]}.parquet"
    decided = Decided(stage.stage, stage.operator, drops, path, None, step, quarantined=True)
    run.kept[drops.rows] = False
    run.decided.append(decided)
    return decided


def mark(run: Run, evaluated: Evaluated) -> None:
    """Take over what a marker says of the rows still kept; those that it drops are gone."""
    marker = evaluated.operator
    if not isinstance(marker, Marker):
        return
    found = marks_of(marker, evaluated, run.kept)
    run.marked.append(replace(found, columns=dict(run.columns)))
    if found.drops is not None:
        path, step = evaluated.paths[0], digest_of(evaluated.steps)
        run.kept[found.drops.rows] = False
        run.decided.append(Decided(marker.stage, marker.operator, found.drops, path, None, step))


def select(run: Run, stage: Selector) -> None:
    """Let a selector decide, or take what it decided before from the same input."""
    step = step_of(run, stage)
    run.signals[stage.stage] = [_signed(run, signal) for signal in stage.signals()]
    path = run.workspace / "decisions" / f"{stage.operator}-{step[:16]}.parquet"
    edges = run.workspace / "edges" / path.name
    stored = _load_drops(path, step)
    if stored is None or (stored.has_edges and kind_of(edges) is None):
        stored = run.runner.step(stage.stage, lambda: decide(stage, _with_known(run, stage)))
        if stored.edges is not None:
            _store_edges(run, stored.edges, edges)
            stored.edges = None
        _store_drops(stored, path, step)
    run.progress(stage.stage, 1, 1)
    run.kept[stored.rows] = False
    with_edges = edges if stored.has_edges else None
    run.decided.append(Decided(stage.stage, stage.operator, stored, path, with_edges, step))


def _with_known(run: Run, stage: Selector) -> Table:
    """The rows still kept, with what the last run in the workspace knew of their pairs."""
    table = table_of(run)
    found = known_pairs(stage, run.recipe, run.workspace, run.corpus, run.rows, run.columns)
    return table if found is None else replace(table, known=Known(found, table.positions))


def _signed(run: Run, signal: RowScorer) -> Evaluated:
    """Where a signal lies that was or will be computed for all stages that ask for it."""
    rows = run.signed.setdefault(signal_key(signal, run.columns), run.kept.copy())
    return located(signal, run.corpus, rows, run.columns, run.workspace, "signals")


def step_of(run: Run, stage: TableOperator) -> str:
    """Key of a stage that sees the whole table."""
    read = sorted(stage.reads())
    return digest_of(
        [
            stage.key_parts(),
            {role: _key(run, run.columns[role]) for role in stage.used_roles()},
            [shard.digest for shard in run.corpus.shards],
            [(name, run.scores[name].steps) for name in read if name in run.scores],
            *[_key(run, run.rewritten[name]) for name in read if name in run.rewritten],
            *_settling(run, stage),
            sorted(run.recipe.corpus.identity or [run.recipe.corpus.roles.id or ""]),
            xxhash.xxh3_128_hexdigest(np.packbits(run.kept).tobytes()),
        ]
    )


def _settling(run: Run, stage: TableOperator) -> list[Any]:
    """What markers before it have said, where it leaves alone the labels that they settled."""
    if not isinstance(stage, BySuspicion):
        return []
    markers = [e for e in run.evaluated.values() if isinstance(e.operator, Marker)]
    return [[list(run.evaluated), [e.steps for e in markers]]] if markers else []


def table_of(run: Run, inside: Mask | None = None) -> Table:
    """The rows still kept, or those that are `inside`, as selectors see them."""
    kept = run.kept if inside is None else inside
    return Table(
        run.corpus,
        run.rows,
        kept,
        np.flatnonzero(kept),
        run.columns,
        run.rewritten,
        run.scores,
        run.workspace,
        run.runner,
        run.progress,
        signed=run.signed,
        spare=run.spare,
    )


def _key(run: Run, source: Source) -> Any:
    if isinstance(source, Beside):
        return [source.key(shard) for shard in run.corpus.shards]
    return source


def decide(stage: Selector, table: Table) -> Drops:
    """A selector's drops, in corpus positions."""
    positions = table.positions
    drops = stage.select(table)
    drops.rows = positions[drops.rows]
    drops.partner = np.where(drops.partner >= 0, positions[drops.partner], -1)
    drops.has_edges = drops.edges is not None
    return drops


def _store_drops(drops: Drops, path: Place, step: str) -> None:
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
    if drops.outside is not None:
        for name in OUTSIDE.names:
            table = table.append_column(OUTSIDE.field(name), drops.outside[name])
    notes = {
        "step": step,
        "reasons": drops.reasons,
        "report": drops.report,
        "edges": drops.has_edges,
    }
    with whole_file(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata({"tamis": json.dumps(notes)}),
            temporary,
            compression="zstd",
        )


def _load_drops(path: Place, step: str) -> Drops | None:
    if kind_of(path) is None:
        return None
    try:
        with place_errors(path), parquet_file(path) as file:
            table = file.read()
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
        outside=table.select(OUTSIDE.names) if OUTSIDE.names[0] in table.column_names else None,
        report=notes["report"],
        has_edges=notes["edges"],
    )


_EDGES = pa.schema(
    [
        ("id_hi", pa.uint64()),
        ("id_lo", pa.uint64()),
        ("copy", pa.uint32()),
        ("other_hi", pa.uint64()),
        ("other_lo", pa.uint64()),
        ("other_copy", pa.uint32()),
        ("similarity", pa.float64()),
    ]
)


def _store_edges(run: Run, edges: Edges, path: Place) -> None:
    """Verified pairs, the better-ranked row second; a row group at a time in order of position."""
    # `run.kept` is as it was when the pairs were numbered.
    positions = np.flatnonzero(run.kept)
    rows = run.rows
    with (
        whole_file(path) as temporary,
        pq.ParquetWriter(temporary, _EDGES, compression="zstd", use_dictionary=False) as out,
    ):
        for row, other, similarity in edges.batches():
            order = np.lexsort((other, row))
            a, b = positions[row[order]], positions[other[order]]
            columns = [
                column[side] for side in (a, b) for column in (rows.id_hi, rows.id_lo, rows.copy)
            ]
            table = pa.table([*columns, similarity[order]], schema=_EDGES)
            out.write_table(table, row_group_size=max(1, table.num_rows))


def write_dataset(run: Run, writer: DatasetWriter, weight: Beside) -> list[OutputFile]:
    """Write the kept rows, then those that stages made: the corpus's columns, rewritten text and
    labels, the scores asked for, and what markers add: the labels that were given, and weights.

    Args:
        weight: where the weights of rows lie.
    """
    assert run.recipe.output is not None
    added = run.recipe.output.added
    given, weights = marked_columns(run.recipe)
    fields = dict.fromkeys(weights, DECISION.field("weight"))
    passes, phase = drawn_passes(run)
    fields |= {} if phase is None else {phase: pa.field(phase, pa.int32(), nullable=False)}
    fields |= {c: run.scores[n].operator.fields().field(n) for c, n in added.items()}
    schema = dataset_schema(run.corpus.schema, fields, given)
    entries: list[OutputFile] = []

    def write(
        corpus: Corpus,
        kept: Mask,
        sources: dict[str, Source],
        name: str,
        first: int,
        passes: Beside | None = None,
    ) -> None:
        mask, done = keep_mask(kept, run.workspace / "orders"), corpus.advance(name, run.progress)
        found = writer.write(corpus, mask, schema, sources, run.runner, done, first, passes, phase)
        entries.extend(found)

    sources: dict[str, Source] = {**run.rewritten, **given, **dict.fromkeys(weights, weight)}
    sources |= {column: run.scores[name].column(name) for column, name in added.items()}
    write(run.corpus, run.kept, sources, "writing the dataset", 0, passes)
    first = len(run.corpus.shards)
    for made in run.generated:
        sources = {column: made.scores[name].column(name) for column, name in added.items()}
        every = np.ones(made.corpus.rows, np.bool_)
        write(made.corpus, every, sources, f"writing rows of {made.stage}", first)
        first += len(made.corpus.shards)
    return entries or [writer.write_nothing(schema)]


def drawn_passes(run: Run) -> tuple[Beside | None, str | None]:
    """Where it lies how often rows are written in each phase, if a marker says it; and the column
    of the dataset for the number of the phase.
    """
    for evaluated in run.evaluated.values():
        marker = evaluated.operator
        if isinstance(marker, Marker) and "passes" in marker.marks():
            return evaluated.column(marker.marks()["passes"]), marker.phase_as()
    return None, None


def marked_columns(recipe: Recipe) -> tuple[dict[str, str], list[str]]:
    """Columns that markers add to the dataset: by name the corpus's column of labels that each
    keeps, and those of the weights.
    """
    markers = [stage for stage in recipe.stages if isinstance(stage, Marker)]
    labels = recipe.corpus.roles.label or ""
    given = {name: labels for marker in markers if (name := marker.given_as()) is not None}
    weights = [name for marker in markers if (name := marker.weight_as()) is not None]
    return given, list(dict.fromkeys(weights))
