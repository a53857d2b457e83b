"""How much there is of every domain of a corpus."""

import os
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.flows.direct import open_run
from tamis.flows.steps import score, set_aside
from tamis.recipe import Recipe
from tamis.selectors.budgets import numbers_of
from tamis.selectors.drawing import Float64s
from tamis.selectors.table import as_floats, is_number
from tamis.storage.columns import Source, read_columns
from tamis.storage.corpus import Progress, Shard
from tamis.storage.domain_supply import Amount, Supply
from tamis.storage.errors import UserError
from tamis.storage.files import locked
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s, in_threads
from tamis.storage.rows import Rows
from tamis.storage.tasks import Threads

#: A row's tokens are added as whole ones and as so many parts of one: whole numbers, whose sum is
#: the same in any order and over any shards.
_PARTS = 2**32
#: More tokens than any row has: below it the sums of a batch are exact in float64.
_MOST = 1e11


@dataclass(frozen=True)
class Counted:
    """What there is of every domain.

    Attributes:
        without_domain: rows that have none, and are in no amount.
        without_tokens: rows of a domain whose tokens are null or nan, which add none.
    """

    supply: Supply
    without_domain: int
    without_tokens: int


@dataclass
class _Sums:
    """By domain int64: rows, bytes of text, whole tokens, parts of tokens, rows without tokens."""

    of: dict[str | None, Int64s] = field(default_factory=dict)

    def add(self, name: str | None, amounts: Int64s) -> None:
        self.of[name] = self.of.get(name, 0) + amounts


def count_domains(
    recipe: Recipe, text: str | None, by: str | None, progress: Progress | None = None
) -> Counted:
    """Rows, bytes of text and tokens by domain.

    Rows in quarantine are not counted. Tokens that are null or nan count nothing; the sum of a
    domain's is rounded, not the tokens of a row.

    Args:
        recipe: a corpus with a domain role, and the scorers that give `by`.
        text: column whose UTF-8 bytes are counted, or None.
        by: score or column that counts tokens, or None.

    Raises:
        UserError: if no row has a domain, `text` holds no text, `by` no numbers, or tokens of a row
            are negative, infinite or more than 1e11.
    """
    workers = recipe.workers or len(os.sched_getaffinity(0))
    workspace = recipe.workspace_path
    with locked(workspace):
        run, _ = open_run(recipe, workspace, Threads(workers), progress or (lambda *_: None))
        set_aside(run)
        for stage in run.recipe.stages:
            score(run, stage)
        sources: dict[str, Source] = {"domain": run.columns["domain"]}
        sources |= {} if text is None else {"text": text}
        sources |= {} if by is None else {"tokens": run.source(by)}

        def work(shard: Shard) -> _Sums:
            found = _Sums()
            here = run.rows.of(shard)
            for rows, batch in read_columns(shard, sources, run.kept[here]):
                amounts = None
                if by is not None:
                    amounts = _tokens(batch["tokens"], by, run.rows, here.start + rows)
                _count(batch, amounts, found)
            return found

        sums = _Sums()
        for part in in_threads(work, run.corpus.shards, workers):
            for name, amounts in part.of.items():
                sums.add(name, amounts)
    without = sums.of.pop(None, np.zeros(5, np.int64))
    if not sums.of:
        raise UserError("no row has a domain", where=recipe.corpus.path)
    domains = {
        name or "": Amount(
            rows=int(rows),
            bytes=None if text is None else int(size),
            tokens=None if by is None else int(whole) + round(int(parts) / _PARTS),
        )
        for name, (rows, size, whole, parts, _) in sorted(
            sums.of.items(), key=lambda one: one[0] or ""
        )
    }
    lacking = sum(int(amounts[4]) for amounts in sums.of.values())
    return Counted(Supply(domains=domains), int(without[0]), 0 if by is None else lacking)


def _count(batch: pa.RecordBatch, tokens: Float64s | None, sums: _Sums) -> None:
    codes, values = numbers_of(pa.chunked_array([batch["domain"]]))
    count = len(values)
    amounts = np.zeros((count, 5), np.int64)
    amounts[:, 0] = np.bincount(codes, minlength=count)
    if "text" in batch.schema.names:
        amounts[:, 1] = np.bincount(codes, _bytes(batch["text"]), count)
    if tokens is not None:
        unknown = np.isnan(tokens)
        parts, whole = np.modf(np.where(unknown, 0.0, tokens))
        amounts[:, 2] = np.bincount(codes, whole, count)
        amounts[:, 3] = np.bincount(codes, np.rint(parts * _PARTS), count)
        amounts[:, 4] = np.bincount(codes, unknown, count)
    for name, mine in zip(values.cast(pa.string()).to_pylist(), amounts, strict=True):
        sums.add(name, mine)


def _tokens(column: pa.Array, name: str, rows: Rows, places: Int64s) -> Float64s:
    """Tokens of some rows of the corpus, nan where they are not known."""
    if not is_number(column.type):
        raise UserError(f"--by: expected numbers, found {name!r} of {column.type}")
    tokens = as_floats(pa.chunked_array([column]))
    wrong = np.flatnonzero((tokens < 0) | (tokens > _MOST))
    if len(wrong):
        first = places[wrong[:1]]
        (row,) = hex_ids(rows.id_hi[first], rows.id_lo[first])
        raise UserError(
            f"{name!r} of row {row} is {tokens[wrong[0]]:g}, expected 0 to {_MOST:g}",
            mend="mend it, or count by another column or score",
        )
    return tokens


def _bytes(text: pa.Array) -> Int64s:
    """UTF-8 bytes of every text, 0 of a null."""
    if pa.types.is_dictionary(text.type):
        text = text.cast(text.type.value_type)
    if not (pa.types.is_string(text.type) or pa.types.is_large_string(text.type)):
        raise UserError(f"expected a column of text, found {text.type}", mend="name one by --text")
    return np.asarray(pc.fill_null(pc.binary_length(text), 0), np.int64)
