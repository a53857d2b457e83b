"""Rows that a stage makes: written once, named, and told by the ledger with their parents."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tamis.flows.steps import Generated, Run, table_of
from tamis.recipe import Recipe
from tamis.scoring.evaluate import Evaluated, evaluate
from tamis.scoring.operator import RowScorer, Signal
from tamis.selectors.generator import Generator
from tamis.storage.columns import Mask, Source, read_columns, source_key
from tamis.storage.corpus import Corpus, Shard, packed_schema, parquet_corpus
from tamis.storage.errors import RunError
from tamis.storage.files import digest_of, whole_file
from tamis.storage.hashing import hash_batch, hex_ids
from tamis.storage.kernels import Int64s, in_threads
from tamis.storage.messages import answers, is_plain_text
from tamis.storage.places import Place, absolute, kind_of
from tamis.storage.rows import Identify, Rows, UInt32s, identify

_VERSION = 1


def generate(run: Run, stage: Generator) -> None:
    """Let a generator make its rows, or take those that it made before from the same input."""
    table = table_of(run, run.kept if stage.of == "kept" else _usable(run))
    earlier = {s.stage: s for s in run.recipe.stages[: run.recipe.stages.index(stage)]}
    made = table.evaluated(stage.source(earlier))
    new = run.runner.step(stage.stage, lambda: stage.choose(table, made))
    run.progress(stage.stage, 1, 1)
    positions = table.positions[new.parents]
    corpus = _written(run, stage, made, positions)
    run.signals[stage.stage] = [made]
    run.generated.append(Generated(stage.stage, corpus, _named(run, corpus), positions, new))


def _usable(run: Run) -> Mask:
    """The rows that are not in quarantine."""
    usable = ~run.rows.unusable
    for decided in run.decided:
        if decided.quarantined:
            usable[decided.drops.rows] = False
    return usable


def _written(run: Run, stage: Generator, made: Evaluated, positions: Int64s) -> Corpus:
    """The new rows as Parquet files of the corpus's own schema, one for every shard of parents.

    A file rests on what was made of its own parents only, so that it stays as it is where new
    shards change nothing of that.
    """
    cuts = np.searchsorted(positions, run.rows.start)
    schema = run.corpus.schema
    sources = {name: run.rewritten.get(name, name) for name in _copied(run.recipe, schema)}
    whole = [_VERSION, stage.operator, stage.version, packed_schema(schema)]
    whole.append(run.recipe.corpus.roles.columns())

    def work(shard: Shard) -> Place:
        rows = positions[cuts[shard.index] : cuts[shard.index + 1]] - run.rows.start[shard.index]
        step = digest_of(
            [
                *whole,
                {name: source_key(source, shard) for name, source in sources.items()},
                shard.digest,
                made.steps[shard.index],
                run.rows.digest(shard),
                xxhash.xxh3_128_hexdigest(np.ascontiguousarray(rows).data),
            ]
        )
        name = f"{shard.digest[:16]}-{step[:16]}.parquet"
        path = absolute(run.workspace) / "generated" / stage.operator / name
        if kind_of(path) is None:
            inside = np.zeros(shard.rows, np.bool_)
            inside[rows] = True
            with (
                whole_file(path, stands=lambda: True) as temporary,
                pq.ParquetWriter(temporary, schema, compression="zstd") as out,
            ):
                for table in _tables(run, stage, made, shard, inside, sources):
                    out.write_table(table, row_group_size=max(1, table.num_rows))
        return path

    touched = [shard for shard in run.corpus.shards if cuts[shard.index + 1] > cuts[shard.index]]
    paths = in_threads(work, touched, run.runner.workers)
    if not paths:
        return Corpus(schema, (), ())
    return parquet_corpus(paths, run.workspace, workers=run.runner.workers)


def _copied(recipe: Recipe, schema: pa.Schema) -> list[str]:
    """Columns that a new row has from its parent: what it is an answer to, where it is from, what
    tells rows apart, and what cannot be null.
    """
    roles = recipe.corpus.roles
    made = {roles.id, roles.chosen, roles.rejected}
    wanted = {roles.prompt, roles.domain, *(recipe.corpus.identity or ())}
    return [f.name for f in schema if f.name not in made and (f.name in wanted or not f.nullable)]


def _tables(
    run: Run,
    stage: Generator,
    made: Evaluated,
    shard: Shard,
    inside: Mask,
    sources: Mapping[str, Source],
) -> Iterator[pa.Table]:
    """The new rows of a shard's parents, in the corpus's schema."""
    roles = run.recipe.corpus.roles.columns()
    schema = run.corpus.schema
    names = made.operator.fields().names
    basis = digest_of([stage.operator, stage.version, made.operator.key_parts()])
    # Both kinds of columns are read together, under names that cannot meet.
    read: dict[str, Source] = {f"own {name}": source for name, source in sources.items()}
    read |= {f"made {name}": made.column(name) for name in names}
    for rows, batch in read_columns(shard, read, inside):
        found = pa.record_batch([batch[f"made {name}"] for name in names], names=names)
        columns: dict[str, pa.Array] = {name: batch[f"own {name}"] for name in sources}
        for role, texts in stage.texts(found).items():
            columns[roles[role]] = answers(texts, schema.field(roles[role]).type)
        if "id" in roles:
            kind = schema.field(roles["id"]).type
            columns[roles["id"]] = _new_ids(run.rows, run.rows.of(shard).start + rows, basis, kind)
        for field in schema:
            if field.name not in columns:
                columns[field.name] = pa.nulls(len(rows), field.type)
        yield pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _new_ids(rows: Rows, parents: Int64s, basis: str, kind: pa.DataType) -> pa.Array:
    """Values of the id column, from the parents' ids and what made the rows of them."""
    known = {
        "hi": pa.array(rows.id_hi[parents]),
        "lo": pa.array(rows.id_lo[parents]),
        "copy": pa.array(rows.copy[parents]),
        "basis": pa.repeat(basis, len(parents)),
    }
    found = hash_batch(pa.record_batch(known))
    if is_plain_text(kind):
        return answers(pa.array(hex_ids(*found), pa.string()), kind)
    return pa.array(found.high >> np.uint64(1)).cast(kind)  # fits into int64 and uint64


def _named(run: Run, corpus: Corpus) -> Rows:
    """Ids of new rows, as of any row; copies are numbered on from those of rows that are there."""
    part = run.recipe.corpus
    home = absolute(run.workspace)
    task = Identify(
        shards=corpus.keep(home / "orders"),
        folder=str(home / "ids"),
        identity=part.identity_in(corpus.schema),
        required=[],
    )
    found = identify(corpus, task, run.runner, explicit_id=part.explicit_id, on_duplicate_id="copy")
    for rows in (run.rows, *(earlier.rows for earlier in run.generated)):
        found.copy[:] += _rows_before(found, rows)
    return found


def _rows_before(rows: Rows, others: Rows) -> UInt32s:
    """For every row how many of the others have its id."""
    shared = np.flatnonzero(np.isin(others.id_hi, rows.id_hi))
    if not len(shared):
        return np.zeros(len(rows.id_hi), np.uint32)
    ids = np.empty(len(shared) + len(rows.id_hi), [("hi", np.uint64), ("lo", np.uint64)])
    ids["hi"] = np.concatenate([others.id_hi[shared], rows.id_hi])
    ids["lo"] = np.concatenate([others.id_lo[shared], rows.id_lo])
    _, number = np.unique(ids, return_inverse=True)
    counts = np.bincount(number[: len(shared)], minlength=len(ids))
    return counts[number[len(shared) :]].astype(np.uint32)


def score_generated(run: Run) -> None:
    """Compute the scores that the dataset shows for the rows that stages made.

    Raises:
        RunError: if a stage cannot score one of them.
    """
    assert run.recipe.output is not None
    wanted = set(run.recipe.output.added.values())
    needed: list[RowScorer] = []
    names = set(wanted)
    for stage in reversed(run.recipe.stages):
        if isinstance(stage, RowScorer) and names & set(stage.fields().names):
            needed.append(stage)
            names |= stage.reads()
    for made in run.generated:
        columns: dict[str, Source] = {**run.recipe.corpus.roles.columns()}
        columns |= {name: name for name in made.corpus.schema.names if name in names}
        for stage in reversed(needed):
            found = _score(run, made, stage, columns)
            own = {name: found.column(name) for name in stage.fields().names}
            columns.update(own)
            made.scores.update(dict.fromkeys(own, found))


def _score(run: Run, made: Generated, stage: RowScorer, columns: Mapping[str, Source]) -> Evaluated:
    rows = np.ones(made.corpus.rows, np.bool_)
    room = "signals" if isinstance(stage, Signal) else "scores"
    done = made.corpus.advance(f"{stage.stage} of generated rows", run.progress)
    found = evaluate(stage, made.corpus, rows, columns, run.workspace, room, run.runner, done)
    name = stage.refused()
    for batch in found.batches([name]) if name is not None else ():
        if batch[name].null_count < batch.num_rows:
            reason = batch[name].drop_null()[0]
            raise RunError(
                f"{stage.stage} cannot score a row that {made.stage} made ({reason})",
                where="output.add",
                mend="leave out its scores, or let it take what the stages before it take",
            )
    return found
