"""The account of a run: the ledger of all decisions, and the figures of its manifest."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from tamis.flows.steps import Decided, Generated, Run
from tamis.selectors.reference import told_references
from tamis.storage.columns import Beside
from tamis.storage.corpus import Shard
from tamis.storage.files import digest_of, keep_json, whole_file
from tamis.storage.hashing import hash_batch
from tamis.storage.kernels import in_threads
from tamis.storage.ledger import (
    DECISION,
    DROPPED,
    GENERATED,
    IN_REVIEW,
    KEPT,
    OUTSIDE,
    PARENT,
    QUARANTINED,
    RELABELLED,
    RULES,
    STAYS,
    Drops,
    Float64s,
)
from tamis.storage.places import Place, absolute, parquet_file, place_errors, shown
from tamis.storage.sidecar import PLACE, Part, sidecar_once, sidecar_path
from tamis.storage.write import Int32s

_LEDGER_VERSION = 6
_TOLD_COLUMNS = (
    "action",
    "stage",
    "reason",
    "value",
    "threshold",
    "rules",
    *OUTSIDE.names,
    "similarity",
)


def count_reasons(decided: Decided) -> dict[str, int]:
    """Rows a stage dropped, by reason: the stage, or ``stage:rule``."""
    counts = np.bincount(decided.drops.reason, minlength=len(decided.drops.reasons))
    return {
        _reason(decided.stage, name): int(count)
        for name, count in zip(decided.drops.reasons, counts, strict=True)
        if count
    }


def reasons_dropped(run: Run) -> dict[str, int]:
    """Rows that all stages dropped, by reason."""
    dropped: dict[str, int] = {}
    for decided in run.decided:
        if not decided.quarantined:
            dropped.update(count_reasons(decided))
    return dropped


def _reason(stage: str, name: str) -> str:
    return f"{stage}:{name}" if name else stage


def write_ledger(run: Run) -> tuple[list[Place], Beside]:
    """One decision for every row, shard by shard; also where the weights of rows lie.

    A shard's part rests on what was decided of its own rows only, so that it stays as it is where
    new shards change nothing of that.
    """

    weight, repeat = weights(run), repeats(run)

    def work(shard: Shard) -> tuple[Place, str]:
        here = run.rows.of(shard)
        told = told_in(run, here)
        mine = None if weight is None else weight[here]
        times = None if repeat is None else repeat[here]
        parts = [_LEDGER_VERSION, shard.digest, run.rows.digest(shard), _digest(run, shard, told)]
        for numbers in (mine, times):
            if numbers is not None:
                parts.append([str(numbers.dtype), xxhash.xxh3_128_hexdigest(numbers.data)])
        key = digest_of(parts)
        path = sidecar_path(run.workspace / "ledger", shard, key)
        sidecar_once(
            path, shard, key, DECISION, lambda: _decisions_of(run, shard, told, mine, times)
        )
        return path, key

    if not run.corpus.shards:
        path = run.workspace / "ledger" / "empty.parquet"
        with whole_file(path) as temporary:
            pq.write_table(pa.schema([*PLACE, *DECISION]).empty_table(), temporary)
        paths, steps = [path], []
    else:
        found = in_threads(work, run.corpus.shards, run.runner.workers)
        paths, steps = [path for path, _ in found], [key for _, key in found]
    home = absolute(run.workspace)
    results = keep_json(home / "orders", {"folder": str(home / "ledger"), "steps": steps})
    return paths, Beside(results=results, column="weight")


def _digest(run: Run, shard: Shard, told: pa.Table) -> str:
    """Of a shard's part of `told_in`, wherever in the corpus the shard stands."""
    inside = pa.array(told["position"].to_numpy() - run.rows.of(shard).start)
    return _table_digest(told.set_column(0, "position", inside))


def weights(run: Run) -> Float64s | None:
    """The product of the weights that markers give every row of the corpus; None if none does."""
    weighed = [marked.weighed for marked in run.marked if len(marked.weighed[0])]
    if not weighed:
        return None
    found = np.ones(len(run.kept))
    for rows, weight in weighed:
        found[rows] *= weight
    return found


def repeats(run: Run) -> Int32s | None:
    """How often every row of the corpus is written if it is kept; None where that is once."""
    repeated = [marked.repeated for marked in run.marked if len(marked.repeated[0])]
    if not repeated:
        return None
    found = np.ones(len(run.kept), np.int32)
    for rows, times in repeated:
        found[rows] = times
    return found


def _table_digest(table: pa.Table) -> str:
    state = xxhash.xxh3_128()
    for batch in table.combine_chunks().to_batches():
        for half in hash_batch(batch):
            state.update(np.ascontiguousarray(half).data)
    return state.hexdigest()


def write_generated(run: Run, made: Generated) -> tuple[list[Place], list[Place]]:
    """The part of the ledger that tells of rows that a stage made, and beside it what more the
    stage says of them; shard by shard of the new rows.
    """
    told = _told_of(run, made)

    def work(shard: Shard) -> tuple[Place, Place]:
        here = made.rows.of(shard)
        rows = np.arange(shard.rows, dtype=np.int64)
        places = []
        for room, table in (("ledger", told), ("generated/notes", made.new.notes)):
            part = table[here].combine_chunks()
            key = digest_of([_LEDGER_VERSION, room, shard.digest, _table_digest(part)])
            path = sidecar_path(run.workspace / room, shard, key)
            (batch,) = part.to_batches()
            sidecar_once(path, shard, key, part.schema, partial(iter, [(rows, batch)]))
            places.append(path)
        return places[0], places[1]

    found = in_threads(work, made.corpus.shards, run.runner.workers)
    return [ledger for ledger, _ in found], [notes for _, notes in found]


def _told_of(run: Run, made: Generated) -> pa.Table:
    """A decision for every row that a stage made."""
    count = len(made.parents)
    rows, parents = made.rows, made.parents
    told = {
        "id_hi": pa.array(rows.id_hi),
        "id_lo": pa.array(rows.id_lo),
        "copy": pa.array(rows.copy),
        "action": pa.repeat(GENERATED, count),
        "repeat": pa.array(np.ones(count, np.int32)),
        "weight": pa.array(np.ones(count)),
        "stage": pa.repeat(made.stage, count),
        "reason": pa.repeat(made.stage, count),
        "value": pa.array(made.new.value, from_pandas=True),
        "threshold": pa.array(made.new.threshold, from_pandas=True),
        "parent_hi": pa.array(run.rows.id_hi[parents]),
        "parent_lo": pa.array(run.rows.id_lo[parents]),
        "parent_copy": pa.array(run.rows.copy[parents]),
    }
    columns = [told.get(f.name, pa.nulls(count, f.type)) for f in DECISION]
    return pa.table(columns, schema=DECISION)


def ledger_counts(paths: list[Place]) -> tuple[dict[str, int], int]:
    """Rows of a ledger by action, and how often all of them are written, counted from its files."""
    counts: Counter[str] = Counter()
    written = 0
    for path in paths:
        with place_errors(path), parquet_file(path) as file:
            for batch in file.iter_batches(columns=["action", "repeat"], use_threads=False):
                for entry in batch["action"].value_counts().to_pylist():
                    counts[entry["values"]] += entry["counts"]
                written += pc.sum(batch["repeat"], min_count=0).as_py()
    return dict(counts), written


def marked_rows_of(run: Run) -> dict[str, int]:
    """Rows that stay, by what the last marker says of them."""
    found = dict.fromkeys((RELABELLED, IN_REVIEW), 0)
    seen = ~run.kept
    for marked in reversed(run.marked):
        new = ~seen[marked.rows]
        seen[marked.rows] = True
        for entry in marked.told["action"].filter(pa.array(new)).value_counts().to_pylist():
            found[entry["values"]] += entry["counts"]
    return found


def told_in(run: Run, here: slice) -> pa.Table:
    """What there is to tell of a run of rows beside that they are kept, by position: what dropped
    them, or what the last marker that acted on them says.
    """
    drops = drops_in(run, here)
    parts = [drops]
    seen = ~run.kept[here]
    for marked in reversed(run.marked):
        first, last = np.searchsorted(marked.rows, [here.start, here.stop]).tolist()
        rows = marked.rows[first:last]
        new = np.flatnonzero(~seen[rows - here.start])
        seen[rows - here.start] = True
        told = marked.told.slice(first, last - first).take(pa.array(new))
        stage = pa.repeat(marked.stage, len(new))
        own = {
            "position": pa.array(rows[new]),
            "action": told["action"],
            "stage": stage,
            "reason": stage,
            **{name: told[name] for name in ("value", "threshold", "rules")},
        }
        columns = [own.get(f.name, pa.nulls(len(new), f.type)) for f in drops.schema]
        parts.append(pa.table(columns, schema=drops.schema))
    return pa.concat_tables(parts).sort_by("position").combine_chunks()


def drops_in(run: Run, here: slice) -> pa.Table:
    """All stages' drops in a run of rows, by position; a row is dropped by one stage at most."""
    parts = []
    for decided in run.decided:
        first, last = np.searchsorted(decided.drops.rows, [here.start, here.stop]).tolist()
        drops = decided.drops.part(slice(first, last))
        names = pa.array([_reason(decided.stage, name) for name in drops.reasons], pa.string())
        stage = pa.array([decided.stage], pa.string())
        parts.append(
            pa.table(
                {
                    "position": drops.rows,
                    "action": pa.repeat(
                        QUARANTINED if decided.quarantined else DROPPED, len(drops.rows)
                    ),
                    "stage": stage.take(pa.array(np.zeros(len(drops.rows), np.int8))),
                    "reason": names.take(pa.array(drops.reason)),
                    "value": pa.array(drops.value, from_pandas=True),
                    "threshold": pa.array(drops.threshold, from_pandas=True),
                    "rules": (
                        pa.nulls(len(drops.rows), RULES) if drops.rules is None else drops.rules
                    ),
                    **_partners(run, drops),
                    "similarity": pa.array(drops.similarity, from_pandas=True),
                }
            )
        )
    if not parts:
        columns = [pa.field(f.name, f.type) for f in DECISION if f.name in _TOLD_COLUMNS]
        return pa.schema([pa.field("position", pa.int64()), *columns]).empty_table()
    return pa.concat_tables(parts).sort_by("position").combine_chunks()


def _partners(run: Run, drops: Drops) -> dict[str, pa.Array]:
    """Who stays in the place of every row dropped: a row of the corpus, or one of a reference."""
    if drops.outside is not None:
        return {name: drops.outside[name] for name in OUTSIDE.names}
    none = drops.partner < 0
    partner = np.where(none, 0, drops.partner)
    absent = pa.nulls(len(partner), pa.string())
    return {
        "partner_source": absent,
        "partner_hi": pa.array(run.rows.id_hi[partner], mask=none),
        "partner_lo": pa.array(run.rows.id_lo[partner], mask=none),
        "partner_copy": pa.array(run.rows.copy[partner], mask=none),
        "evidence": absent,
    }


def _decisions_of(
    run: Run, shard: Shard, part: pa.Table, weight: Float64s | None, repeat: Int32s | None
) -> Iterator[Part]:
    here = run.rows.of(shard)
    count = shard.rows
    at = np.zeros(count, np.int64)
    absent = np.ones(count, np.bool_)
    inside = part["position"].to_numpy() - here.start
    at[inside] = np.arange(len(inside))
    absent[inside] = False
    taken = part.take(pa.array(at, mask=absent))
    unusable = run.rows.unusable[here]
    told = pc.fill_null(taken["action"], KEPT)
    actions = pc.if_else(pa.array(unusable), QUARANTINED, told)
    kept = np.asarray(pc.is_in(actions, value_set=pa.array(STAYS))).astype(np.int32)
    columns = {
        **{name: taken[name] for name in _TOLD_COLUMNS},
        "id_hi": pa.array(run.rows.id_hi[here]),
        "id_lo": pa.array(run.rows.id_lo[here]),
        "copy": pa.array(run.rows.copy[here]),
        "action": actions,
        "repeat": pa.array(kept if repeat is None else kept * repeat),
        "weight": pa.array(kept.astype(np.float64) if weight is None else kept * weight),
        **{field.name: pa.nulls(count, field.type) for field in PARENT},
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
    """Rows in and kept by the domain role, if there is one; and written, where some repeat."""
    column = run.recipe.corpus.roles.domain
    if column is None:
        return None
    everything: dict[str, int] = {}
    remaining: dict[str, int] = {}
    written: dict[str, int] = {}
    repeat = repeats(run)

    def add(counts: dict[str, int], values: pa.Array, times: int = 1) -> None:
        for entry in values.value_counts().to_pylist():
            name = str(entry["values"])
            counts[name] = counts.get(name, 0) + times * entry["counts"]

    for values, here in _column_by_batch(run, column):
        inside = run.kept[here]
        kept = values.filter(pa.array(inside))
        add(everything, values)
        add(remaining, kept)
        if repeat is not None:
            often = repeat[here][inside]
            for times in np.unique(often).tolist():
                add(written, kept.filter(pa.array(often == times)), times)
    found = {
        name: {
            "in": count,
            "kept": remaining.get(name, 0),
            **({} if repeat is None else {"written": written.get(name, 0)}),
        }
        for name, count in sorted(everything.items())
    }
    if run.generated:
        made: dict[str, int] = {}
        for shard in (shard for found in run.generated for shard in found.corpus.shards):
            for batch in shard.batches([column]):
                add(made, batch[column])
        found = {name: {**of, "generated": made.get(name, 0)} for name, of in found.items()}
    return found


def _column_by_batch(run: Run, column: str) -> Iterator[tuple[pa.Array, slice]]:
    """A column of the corpus in batches, and the positions that each is for."""
    for shard in run.corpus.shards:
        begin = run.rows.of(shard).start
        for batch in shard.batches([column]):
            yield batch[column], slice(begin, begin + batch.num_rows)
            begin += batch.num_rows


def hide_credentials(stage: dict[str, Any]) -> None:
    """Bring the places of the references in a stage's parameters into the form that is stored."""
    for reference in told_references(stage):
        for name in ("path", "index"):
            reference[name] = reference[name] and shown(reference[name])


def stage_reports(run: Run) -> list[dict[str, Any]]:
    """What the manifest says of every stage."""
    lost = groups_lost_whole(run)
    decided = {d.stage: d for d in run.decided}
    generated = {g.stage: g for g in run.generated}
    marked = {m.stage: m for m in run.marked}
    reports = []
    for stage in run.recipe.stages:
        report: dict[str, Any] = {"stage": stage.stage, **stage.key_parts()}
        hide_credentials(report)
        if stage.stage in decided:
            found = decided[stage.stage]
            report["quarantined" if found.quarantined else "dropped"] = count_reasons(found)
            report["report"] = found.drops.report
            if stage.stage in lost:
                report["groups_lost_later"] = lost[stage.stage]
        scored = run.evaluated.get(stage.stage)
        if scored is not None and scored.report:
            report["report"] = scored.report
        if stage.stage in marked:
            report["marked"] = marked[stage.stage].counts
        if stage.stage in generated:
            made = generated[stage.stage]
            report["generated"] = len(made.parents)
            report["report"] = made.new.report
        reports.append(report)
    return reports
