"""Two outcomes of one corpus held against each other: rows, characters, tokens, domains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tamis.flows.account import drops_in, marked_rows_of, reasons_dropped, repeats
from tamis.flows.steps import Run
from tamis.flows.what_if import Alternative, Past
from tamis.scoring.evaluate import evaluate
from tamis.selectors.near_dedup import NearDedup
from tamis.storage.columns import Beside, Mask, Source, read_columns
from tamis.storage.corpus import Shard
from tamis.storage.errors import UserError
from tamis.storage.files import whole_file
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s, in_threads
from tamis.storage.write import Int32s

#: Scores that count tokens, the better one first.
TOKENS = ("tokens", "tokens_estimated")
_WRITERS: dict[str, Callable[[pl.DataFrame, Path], None]] = {
    ".parquet": pl.DataFrame.write_parquet,
    ".csv": pl.DataFrame.write_csv,
    ".jsonl": pl.DataFrame.write_ndjson,
}


@dataclass(frozen=True)
class Sizes:
    """What the rows of two outcomes amount to, by position; 0 where a row is in neither.

    Attributes:
        characters: code points of the text; None without a text role.
        tokens: by the score `tokens_by`; None where no stage counts them.
        domain: number of the row's domain in `domains`; None without a domain role.
        drawn: whether either outcome says how often rows are written.
    """

    characters: Int64s | None
    tokens: Int64s | None
    tokens_by: str | None
    domain: Int64s | None
    domains: list[str]
    drawn: bool

    @classmethod
    def of(cls, past: Past, other: Run) -> "Sizes":
        """Sizes of the rows that either outcome keeps."""
        before, after = past.run.kept, other.kept
        counter = next((name for name in TOKENS if name in past.run.scores), None)
        tokens = None
        if counter is not None:
            tokens = _filled(past.run, past.run.scores[counter].column(counter), before)
            more = after & ~before
            if more.any():
                tokens += _filled(other, other.scores[counter].column(counter), more)
        domain, names = _domains(past.run)
        drawn = any(repeats(run) is not None for run in (past.run, other))
        return cls(_characters(past, other), tokens, counter, domain, names, drawn)

    def sums(self, mask: Mask, repeat: Int32s | None = None) -> dict[str, int]:
        """Rows, characters and tokens of some rows; and where rows are drawn how often they are
        written, all together. Characters and tokens are those that are written.
        """
        amounts = {"rows": int(mask.sum())}
        times = 1 if repeat is None else repeat[mask].astype(np.int64)
        if self.drawn:
            amounts["written"] = int((mask[mask] * times).sum())
        for name in ("characters", "tokens"):
            sizes = getattr(self, name)
            if sizes is not None:
                amounts[name] = int((sizes[mask] * times).sum())
        return amounts


def _filled(run: Run, source: Source, mask: Mask, length: bool = False) -> Int64s:
    """A column's numbers (or its texts' lengths) at the rows of a mask, 0 elsewhere."""
    found = np.zeros(len(mask), np.int64)

    def one(shard: Shard) -> None:
        here = run.rows.of(shard)
        for rows, batch in read_columns(shard, {"": source}, mask[here]):
            values = pc.utf8_length(_plain(batch[""])) if length else batch[""]
            found[here][rows] = np.asarray(pc.fill_null(values.cast(pa.int64()), 0))

    in_threads(one, run.corpus.shards, run.runner.workers)
    return found


def _plain(column: pa.Array) -> pa.Array:
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _characters(past: Past, other: Run) -> Int64s | None:
    """Lengths of texts: from what is stored, if it was computed from the text as it is kept."""
    run = past.run
    if "text" not in run.columns:
        return None
    either = run.kept | other.kept
    text = run.columns["text"]
    if other.columns["text"] != text:
        return _filled(run, text, run.kept, length=True) + _filled(
            other, other.columns["text"], other.kept & ~run.kept, length=True
        )
    seen = next((s for s in run.recipe.stages if isinstance(s, NearDedup)), None)
    if not isinstance(text, Beside) and seen is not None:
        mask = past.before[seen.stage]
        if not (either & ~mask).any():
            signal = evaluate(
                *(seen.signal, run.corpus, mask, past.columns[seen.stage]),
                *(run.workspace, "signals", run.runner),
            )
            return _filled(run, signal.column("characters"), either)
    return _filled(run, text, either, length=True)


def _domains(run: Run) -> tuple[Int64s | None, list[str]]:
    column = run.recipe.corpus.roles.domain
    if column is None:
        return None, []

    def one(shard: Shard) -> tuple[npt.NDArray[Any], list[str]]:
        parts = [batch[column] for batch in shard.batches([column])]
        values = pa.chunked_array([_plain(part) for part in parts])
        codes = values.cast(pa.string()).dictionary_encode("encode").combine_chunks()
        if isinstance(codes, pa.ChunkedArray):
            codes = codes.chunk(0)
        return np.asarray(codes.indices), [str(name) for name in codes.dictionary.to_pylist()]

    parts = in_threads(one, run.corpus.shards, run.runner.workers)
    names = sorted({name for _, known in parts for name in known})
    place = {name: at for at, name in enumerate(names)}
    codes = [np.array([place[n] for n in known], np.int64)[part] for part, known in parts]
    return np.concatenate([np.zeros(0, np.int64), *codes]), names


@dataclass(frozen=True)
class Difference:
    """What would have become of the rows under other rules.

    Attributes:
        changes: the parameters that were set, by ``STAGE.PARAM``.
        before, after: rows kept, and their characters and tokens where these are known; rows
            written, with repeats, where some are drawn.
        gained, lost: the same of the rows that only one of the two keeps.
        dropped: by reason, rows dropped before and after.
        marked: by action of markers, rows kept before and after.
        not_evaluated: by stage, rows that it would have to see first.
        domains: by domain, what is kept before and after; None without a domain role.
        tokens_by: score that tokens are counted by; None if no stage counts them.
        notes: what else there is to say, such as how near a target was reached.
        exact: whether a run under these rules would keep the same rows.
    """

    changes: Mapping[str, Any]
    rows_in: int
    before: dict[str, int]
    after: dict[str, int]
    gained: dict[str, int]
    lost: dict[str, int]
    dropped: dict[str, tuple[int, int]]
    marked: dict[str, tuple[int, int]]
    not_evaluated: dict[str, int]
    domains: dict[str, tuple[dict[str, int], dict[str, int]]] | None
    tokens_by: str | None
    notes: list[str]
    _past: Past
    _other: Alternative
    _sizes: Sizes

    @property
    def exact(self) -> bool:
        return not self.not_evaluated

    @cached_property
    def changed(self) -> pl.DataFrame:
        """The rows whose fate changes, by row_id.

        Columns: ``row_id``, ``copy``, ``change`` (``lost``, ``gained``, ``not evaluated``),
        ``stage``, ``reason``, ``value``, ``threshold``, ``partner``, ``partner_copy``,
        ``similarity`` of the decision that drops the row: the new one for a row that is lost, the
        old one for the others; ``waits_for``, the stage that has not seen the row; ``domain``,
        ``characters`` and ``tokens`` where they are known.
        """
        old, new = self._past.run, self._other.run
        gained = np.flatnonzero(new.kept & ~old.kept)
        lost = np.flatnonzero(old.kept & ~new.kept)
        waiting = {stage: rows for stage, rows in self._other.waiting.items() if len(rows)}
        lost = np.setdiff1d(lost, np.concatenate([*waiting.values(), np.zeros(0, np.int64)]))
        parts = [
            self._part(lost, "lost", new, None),
            self._part(gained, "gained", old, None),
            *(self._part(rows, "not evaluated", old, name) for name, rows in waiting.items()),
        ]
        return pl.concat(parts).sort("row_id", "copy")

    def _part(self, rows: Int64s, change: str, run: Run, waits_for: str | None) -> pl.DataFrame:
        drops = drops_in(run, slice(0, len(run.kept)))
        at = np.searchsorted(drops["position"].to_numpy(), rows)
        found = pl.from_arrow(drops.take(pa.array(at)))
        assert isinstance(found, pl.DataFrame)
        ids, sizes = run.rows, self._sizes
        none = found["partner_hi"].is_null().to_numpy()
        high, low = (found[f"partner_{n}"].fill_null(0).to_numpy() for n in ("hi", "lo"))
        partner = pl.Series(hex_ids(high, low), dtype=pl.String)
        counted = waits_for is None

        def figures(values: Int64s | None) -> pl.Series:
            if values is None or not counted:
                return pl.Series([None] * len(rows), dtype=pl.Int64)
            return pl.Series(values[rows], dtype=pl.Int64)

        names = pl.Series(sizes.domains, dtype=pl.String)
        domain = None if sizes.domain is None else names.gather(sizes.domain[rows])
        return pl.DataFrame(
            {
                "row_id": pl.Series(hex_ids(ids.id_hi[rows], ids.id_lo[rows]), dtype=pl.String),
                "copy": ids.copy[rows],
                "change": pl.Series([change] * len(rows), dtype=pl.String),
                **{name: found[name] for name in ("stage", "reason", "value", "threshold")},
                "partner": partner.set(pl.Series(none, dtype=pl.Boolean), None),
                "partner_copy": found["partner_copy"],
                "similarity": found["similarity"],
                "waits_for": pl.Series([waits_for] * len(rows), dtype=pl.String),
                "domain": pl.Series([None] * len(rows), dtype=pl.String)
                if domain is None
                else domain,
                "characters": figures(sizes.characters),
                "tokens": figures(sizes.tokens),
            }
        )

    def examples(self, count: int) -> list[dict[str, Any]]:
        """Some changed rows, the first by row_id of every kind of change."""
        kinds = self.changed.partition_by("change", maintain_order=True)
        return [row for kind in kinds for row in kind.head(count).to_dicts()]

    def write(self, path: Path) -> None:
        """All changed rows as a Parquet, CSV or JSONL file, by the ending of its name.

        Raises:
            UserError: for another ending.
        """
        check_ending(path)
        with whole_file(path) as temporary:
            _WRITERS[path.suffix](self.changed, temporary)

    def as_json(self, examples: int = 5) -> dict[str, Any]:
        """Everything but the rows as plain JSON, with a few examples of them."""
        named = {
            name: {"before": before, "after": after}
            for name, (before, after) in (self.domains or {}).items()
        }
        return {
            "changes": dict(self.changes),
            "exact": self.exact,
            "rows_in": self.rows_in,
            "before": self.before,
            "after": self.after,
            "gained": self.gained,
            "lost": self.lost,
            "not_evaluated": self.not_evaluated,
            "dropped": {
                name: {"before": before, "after": after}
                for name, (before, after) in self.dropped.items()
            },
            "marked": {
                name: {"before": before, "after": after}
                for name, (before, after) in self.marked.items()
            },
            "domains": None if self.domains is None else named,
            "tokens_by": self.tokens_by,
            "notes": self.notes,
            "examples": self.examples(examples),
        }


def check_ending(path: Path) -> None:
    """Raise unless `Difference.write` knows what to write into a file of this name."""
    if path.suffix not in _WRITERS:
        raise UserError(
            f"expected a name that ends in {', '.join(_WRITERS)}", where=str(path), mend="rename it"
        )


def difference(past: Past, other: Alternative, changes: Mapping[str, Any]) -> Difference:
    """Hold an alternative against the run."""
    old, new = past.run, other.run
    sizes = Sizes.of(past, new)
    before_times, after_times = repeats(old), repeats(new)
    domains = None
    if sizes.domain is not None:
        domains = {}
        for at, name in enumerate(sizes.domains):
            here = sizes.domain == at
            domains[name] = (
                sizes.sums(old.kept & here, before_times),
                sizes.sums(new.kept & here, after_times),
            )
    before, after = reasons_dropped(old), reasons_dropped(new)
    marked = marked_rows_of(new)
    return Difference(
        changes=changes,
        rows_in=old.corpus.rows + old.corpus.unread_rows,
        before=sizes.sums(old.kept, before_times),
        after=sizes.sums(new.kept, after_times),
        gained=sizes.sums(new.kept & ~old.kept, after_times),
        lost=sizes.sums(old.kept & ~new.kept, before_times),
        dropped={
            name: (before.get(name, 0), after.get(name, 0))
            for name in dict.fromkeys([*before, *after])
        },
        marked={name: (count, marked[name]) for name, count in marked_rows_of(old).items()}
        if old.marked or new.marked
        else {},
        not_evaluated={stage: len(rows) for stage, rows in other.waiting.items()},
        domains=domains,
        tokens_by=sizes.tokens_by,
        notes=[],
        _past=past,
        _other=other,
        _sizes=sizes,
    )
