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
from tamis.selectors.table import as_floats
from tamis.storage.columns import Source, read_columns
from tamis.storage.corpus import Progress, Shard
from tamis.storage.domain_supply import Amount, Supply
from tamis.storage.errors import UserError
from tamis.storage.files import locked
from tamis.storage.kernels import Int64s, in_threads
from tamis.storage.tasks import Threads


@dataclass
class _Sums:
    """Rows, bytes of text and tokens by domain."""

    of: dict[str | None, Int64s] = field(default_factory=dict)

    def add(self, name: str | None, amounts: Int64s) -> None:
        self.of[name] = self.of.get(name, 0) + amounts


def count_domains(
    recipe: Recipe, text: str | None, by: str | None, progress: Progress | None = None
) -> tuple[Supply, int]:
    """Rows, bytes of text and tokens by domain, and the rows that have none.

    Rows in quarantine are not counted. Tokens that are null or nan count nothing.

    Args:
        recipe: a corpus with a domain role, and the scorers that give `by`.
        text: column whose UTF-8 bytes are counted, or None.
        by: score or column that counts tokens, or None.

    Raises:
        UserError: if no row has a domain, `text` holds no text, or tokens are negative or infinite.
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
            for _, batch in read_columns(shard, sources, run.kept[run.rows.of(shard)]):
                _count(batch, found)
            return found

        sums = _Sums()
        for part in in_threads(work, run.corpus.shards, workers):
            for name, amounts in part.of.items():
                sums.add(name, amounts)
    without = sums.of.pop(None, np.zeros(3, np.int64))
    if not sums.of:
        raise UserError("no row has a domain", where=recipe.corpus.path)
    domains = {
        name or "": Amount(
            rows=int(rows),
            bytes=None if text is None else int(size),
            tokens=None if by is None else int(tokens),
        )
        for name, (rows, size, tokens) in sorted(sums.of.items(), key=lambda one: one[0] or "")
    }
    return Supply(domains=domains), int(without[0])


def _count(batch: pa.RecordBatch, sums: _Sums) -> None:
    codes, values = numbers_of(pa.chunked_array([batch["domain"]]))
    count = len(values)
    amounts = np.zeros((count, 3), np.int64)
    amounts[:, 0] = np.bincount(codes, minlength=count)
    if "text" in batch.schema.names:
        amounts[:, 1] = np.bincount(codes, _bytes(batch["text"]), count)
    if "tokens" in batch.schema.names:
        tokens = np.nan_to_num(as_floats(pa.chunked_array([batch["tokens"]])), nan=0.0)
        if (tokens < 0).any() or np.isinf(tokens).any():
            raise UserError(f"tokens of a row are {tokens.min():g}, expected 0 or more")
        amounts[:, 2] = np.rint(np.bincount(codes, tokens, count))
    for name, mine in zip(values.cast(pa.string()).to_pylist(), amounts, strict=True):
        sums.add(name, mine)


def _bytes(text: pa.Array) -> Int64s:
    """UTF-8 bytes of every text, 0 of a null."""
    if pa.types.is_dictionary(text.type):
        text = text.cast(text.type.value_type)
    if not (pa.types.is_string(text.type) or pa.types.is_large_string(text.type)):
        raise UserError(f"expected a column of text, found {text.type}", mend="name one by --text")
    return np.asarray(pc.fill_null(pc.binary_length(text), 0), np.int64)
