"""Calibrating an embedder on a file of pairs of texts that mean the same."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.scoring.embedding import Embedding
from tamis.selectors.calibration import calibrate, check_enough
from tamis.selectors.inner_products import Float32s
from tamis.selectors.vectors import normalise
from tamis.storage.errors import UserError
from tamis.storage.ingest import open_corpus
from tamis.storage.kernels import Int64s


def calibrate_file(
    path: str,
    left: str,
    right: str,
    models: list[str],
    *,
    format: str | None = None,
    most: int = 5000,
    false_positives: float = 0.001,
    seed: int = 0,
    workers: int = 1,
) -> dict[str, dict[str, Any]]:
    """Calibrate models on the pairs of a file; see `calibrate`.

    Args:
        left, right: columns with the two texts of every pair.
        models: what the parameter `model` of the operator `embedding` may be.
        most: pairs used; of more a random part, the same for any order of the file.

    Returns:
        What `calibrate` gives, by model.

    Raises:
        UserError: if the file, a column or a model is not there, or the pairs are too few.
    """
    operators = {
        model: Embedding(operator="embedding", model=model).resolve(Path()) for model in models
    }
    with tempfile.TemporaryDirectory(prefix="tamis-calibrate-") as home:
        corpus = open_corpus(path, Path(home), format=format)
        for column in (left, right):
            if column not in corpus.schema.names:
                raise UserError(
                    f"no column {column!r}",
                    where=path,
                    mend=f"the file has {', '.join(corpus.schema.names)}",
                )
        batches = [
            batch.select([left, right])
            for shard in corpus.shards
            for batch in shard.batches([left, right])
        ]
    fields = [corpus.schema.field(name) for name in (left, right)]
    numbers, texts = _distinct(pa.Table.from_batches(batches, pa.schema(fields)), most, seed)
    mine, theirs = numbers
    check_enough(len(mine), false_positives)
    found = {}
    for model, operator in operators.items():
        vectors = _embed(operator, texts)
        found[model] = calibrate(
            vectors[mine],
            vectors[theirs],
            numbers,
            false_positives=false_positives,
            seed=seed,
            workers=workers,
        )
    return found


def _distinct(pairs: pa.Table, most: int, seed: int) -> tuple[tuple[Int64s, Int64s], pa.Array]:
    """Different pairs without nulls, as numbers of their texts, and those texts, sorted.

    Pairs are sorted by text and then mixed, so that the order of the file does not matter.
    """
    columns = [pc.cast(column, pa.large_string()) for column in pairs.drop_null().itercolumns()]
    texts = pa.chunked_array([c for column in columns for c in column.chunks], pa.large_string())
    texts = pc.unique(texts).sort()
    both = np.stack([np.asarray(pc.index_in(column, texts), np.int64) for column in columns], 1)
    both = np.unique(both, axis=0)
    both = both[both[:, 0] != both[:, 1]]  # a text and itself are no evidence
    both = np.random.default_rng(seed).permutation(both)[:most]
    used, places = np.unique(both, return_inverse=True)
    places = places.reshape(both.shape)
    return (places[:, 0], places[:, 1]), texts.take(pa.array(used))


def _embed(operator: Embedding, texts: pa.Array) -> Float32s:
    column = operator.compute(pa.record_batch({"text": texts}))[operator.stage]
    flat = np.asarray(column.flatten().cast(pa.float32()))
    vectors: Float32s = flat.reshape(len(texts), -1).copy()
    normalise(vectors)
    return vectors
