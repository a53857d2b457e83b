"""What markers have said of the rows still kept, by position in the corpus."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.scoring.evaluate import Evaluated
from tamis.selectors.marker import Marker
from tamis.storage.columns import Mask, Source
from tamis.storage.corpus import starts_of
from tamis.storage.errors import RunError
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import DROPPED, RULES, STAYS, Drops, Float64s
from tamis.storage.write import Int32s, passes_of


@dataclass(frozen=True)
class Marked:
    """One marker's actions.

    Attributes:
        rows: positions of the rows that it has one for, ascending.
        told: ``action``, ``value``, ``threshold`` and ``rules`` of each.
        weighed: positions of the rows that it weighs, ascending, and their weights.
        repeated: positions of the rows that it says of how often they are written, ascending, and
            how often, over all phases.
        columns: where the values of every role come from after it.
    """

    stage: str
    rows: Int64s
    told: pa.Table
    weighed: tuple[Int64s, Float64s]
    repeated: tuple[Int64s, Int32s]
    columns: dict[str, Source] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Rows by action."""
        counted = self.told["action"].value_counts().to_pylist()
        return {entry["values"]: entry["counts"] for entry in counted}

    @property
    def drops(self) -> Drops | None:
        """The rows that are to go; None if there are none."""
        at = np.flatnonzero(np.asarray(pc.equal(self.told["action"], DROPPED)))
        if not len(at):
            return None
        told = self.told.take(pa.array(at))
        drops = Drops.of(
            self.rows[at],
            "",
            value=told["value"].to_numpy(),
            threshold=told["threshold"].to_numpy(),
        )
        drops.rules = told["rules"].combine_chunks()
        names = pc.fill_null(told["reason"], "").combine_chunks().dictionary_encode()
        drops.reasons = names.dictionary.to_pylist()
        drops.reason = np.asarray(names.indices, np.int32)
        return drops


_TOLD = pa.schema(
    [
        ("action", pa.string()),
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("rules", RULES),
    ]
)


def marks_of(marker: Marker, evaluated: Evaluated, kept: Mask) -> Marked:
    """What a marker's columns say of the rows still kept.

    Raises:
        RunError: for an action, a weight or a number of passes that is none.
    """
    marks = marker.marks()
    start = starts_of(evaluated.shards)
    rows, tables = [np.zeros(0, np.int64)], [_TOLD.empty_table()]
    weighed, weights = [np.zeros(0, np.int64)], [np.zeros(0)]
    repeated, times = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for shard in evaluated.shards:
        here = kept[start[shard.index] : start[shard.index + 1]]
        at = start[shard.index] + np.flatnonzero(here)
        for batch in evaluated.of_shard(shard.index, list(marks.values()), here):
            mine, at = at[: batch.num_rows], at[batch.num_rows :]
            found = dict(zip(marks, batch.columns, strict=True))
            if "action" in found:
                some = found["action"].is_valid()
                columns = [
                    found[f.name].filter(some)
                    if f.name in found
                    else pa.nulls(some.true_count, f.type)
                    for f in _TOLD
                ]
                rows.append(mine[np.asarray(some)])
                tables.append(pa.table(columns, schema=_TOLD))
            if "weight" in found:
                some = np.asarray(found["weight"].is_valid())
                weighed.append(mine[some])
                weights.append(np.asarray(found["weight"].drop_null()))
            if "passes" in found:
                repeated.append(mine)
                times.append(passes_of(found["passes"]).sum(axis=1, dtype=np.int32))
    told = pa.concat_tables(tables).combine_chunks()
    weight, repeat = np.concatenate(weights), np.concatenate(times)
    unknown = set(told["action"].unique().to_pylist()) - {*STAYS[1:], DROPPED}
    if unknown or not (np.isfinite(weight) & (weight >= 0)).all() or (repeat < 0).any():
        raise RunError(
            f"{marker.stage} gives actions {unknown or 'as they should be'}, and weights from "
            f"{weight.min(initial=1.0):g} to {weight.max(initial=1.0):g}, passes from "
            f"{repeat.min(initial=1)}: a defect of tamis"
        )
    return Marked(
        marker.stage,
        np.concatenate(rows),
        told,
        (np.concatenate(weighed), weight),
        (np.concatenate(repeated), repeat),
    )
