"""What the last run in a workspace compared already, as far as it still holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from tamis.recipe import CorpusPart, Recipe, check_recipe
from tamis.scoring.operator import Scorer
from tamis.selectors.known_pairs import KnownPairs
from tamis.selectors.selector import Selector
from tamis.storage.catalog import WORKSPACE_MANIFEST
from tamis.storage.columns import Beside, Mask, Source
from tamis.storage.corpus import Corpus
from tamis.storage.errors import TamisError
from tamis.storage.files import read_json
from tamis.storage.places import Place, kind_of, parquet_file, place_errors
from tamis.storage.rows import Rows

#: Pairs that are taken into memory, for every row of the corpus.
MOST = 0.5
#: Share of the rows whose pairs may be known, from which on it is quicker to look pairs up than to
#: make the shingle sets of all candidates. Not confirmed by a measurement.
ENOUGH = 0.5


def known_pairs(
    stage: Selector,
    recipe: Recipe,
    workspace: Place,
    corpus: Corpus,
    rows: Rows,
    columns: Mapping[str, Source],
) -> KnownPairs | None:
    """Similarities that the last run of a workspace stored for a stage, of texts that are still
    the same; None if there are few.

    Args:
        columns: where the values of every role come from.
    """
    parts = stage.similarity_parts()
    place = workspace / WORKSPACE_MANIFEST
    # Ids tell texts only where rows that share one are equal.
    if parts is None or recipe.corpus.on_duplicate_id != "error" or kind_of(place) is None:
        return None
    try:
        with place_errors(place):
            manifest = read_json(place)
        told = {**manifest["recipe"], "output": None, "workspace": str(workspace)}
        old = check_recipe(told)
        before = next(s for s in old.stages if s.stage == stage.stage)
        told_of = next(s for s in manifest["stages"] if s["stage"] == stage.stage)
        edges = workspace / manifest["edges"][stage.stage]
        texts = _texts(manifest, old, stage.stage)
    except (TamisError, KeyError, StopIteration, ValueError):
        return None  # another recipe's, or of another version
    alike = before.similarity_parts() == parts and _identity(old.corpus) == _identity(recipe.corpus)
    # Another version of the code may compute another similarity from the same parameters.
    now = stage.key_parts()
    alike = alike and all(told_of.get(key) == now.get(key) for key in ("version", "signal"))
    if not alike or kind_of(edges) is None:
        return None
    unchanged = np.zeros(len(rows.id_hi), np.bool_)
    source = columns["text"]
    for shard in corpus.shards:
        text = source.place(shard)[0].name if isinstance(source, Beside) else source
        unchanged[rows.of(shard)] = texts.get(shard.digest) == text
    if unchanged.sum() < max(1, ENOUGH * len(unchanged)):
        return None
    try:
        with place_errors(edges), parquet_file(edges) as file:
            if file.metadata.num_rows > MOST * len(unchanged):
                return None
        return stored_pairs(edges, rows, unchanged)
    except (TamisError, OSError, pa.ArrowException):
        return None  # damaged: the pairs are compared again


def _identity(corpus: CorpusPart) -> Any:
    """What of a recipe decides row ids."""
    return corpus.roles.id, corpus.identity, corpus.on_duplicate_id


def _texts(manifest: dict[str, Any], recipe: Recipe, stage: str) -> dict[str, str]:
    """By a shard's digest, what its texts were before a stage: a column, or a sidecar's name."""
    digests = [shard["digest"] for shard in manifest["shards"]]
    rewriter = None
    for found in recipe.stages:
        if found.stage == stage:
            break
        if isinstance(found, Scorer) and "text" in found.rewrites():
            rewriter = found.stage
    if rewriter is None:
        return dict.fromkeys(digests, str(recipe.corpus.roles.text))
    files = {**manifest["scores"], **manifest["signals"]}[rewriter]["files"]
    return {d: file.rpartition("/")[2] for d, file in zip(digests, files, strict=True)}


def stored_pairs(path: Place, rows: Rows, inside: Mask) -> KnownPairs:
    """The edges of a run between rows that are `inside`, by position in the corpus."""
    with place_errors(path), parquet_file(path) as file:
        edges = pl.from_arrow(file.read())
    assert isinstance(edges, pl.DataFrame)
    at = np.flatnonzero(inside)
    ids = pl.DataFrame(
        {
            "id_hi": rows.id_hi[at],
            "id_lo": rows.id_lo[at],
            "copy": rows.copy[at],
            "position": at,
        }
    )

    def positions(side: str) -> pl.Series:
        names = (f"{side}_hi", f"{side}_lo", "copy" if side == "id" else f"{side}_copy")
        asked = edges.select(
            pl.col(name).alias(of) for name, of in zip(names, ids.columns[:3], strict=True)
        )
        return asked.join(ids, on=asked.columns, how="left", maintain_order="left")["position"]

    pairs = pl.DataFrame(
        {"a": positions("id"), "b": positions("other"), "value": edges["similarity"]}
    ).drop_nulls()
    known = KnownPairs()
    left, right = (pairs[side].to_numpy().astype(np.int64) for side in "ab")
    known.add(left, right, pairs["value"].to_numpy())
    return known
