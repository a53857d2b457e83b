"""Running a row scorer over the shards of a corpus, into sidecars that are never computed twice."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from tamis.scoring.operator import RowScorer
from tamis.storage.corpus import Corpus, Shard
from tamis.storage.files import digest_of
from tamis.storage.kernels import in_threads
from tamis.storage.rows import Rows
from tamis.storage.sidecar import (
    Part,
    read_sidecar,
    sidecar_batches,
    sidecar_once,
    sidecar_path,
)

Mask = npt.NDArray[np.bool_]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Evaluated:
    """Where the results of a row scorer lie: one sidecar a shard, for the rows it saw."""

    operator: RowScorer
    shards: tuple[Shard, ...]
    paths: tuple[Path, ...]
    steps: tuple[str, ...]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The sidecars' columns, shard by shard in bounded batches."""
        for shard, path, step in zip(self.shards, self.paths, self.steps, strict=True):
            yield from sidecar_batches(path, shard, step, columns)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The sidecars' columns, one table a shard."""
        for shard, path, step in zip(self.shards, self.paths, self.steps, strict=True):
            yield read_sidecar(path, shard, step, columns)


def evaluate(
    operator: RowScorer,
    corpus: Corpus,
    rows: Rows,
    kept: Mask,
    columns: Mapping[str, str],
    folder: Path,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> Evaluated:
    """Compute an operator for the rows still kept.

    Args:
        kept: bool over all rows of the corpus.
        columns: column of every role the operator reads.
        folder: where its sidecars lie.
        progress: called with the rows of a shard when it is done.
    """
    read = {role: columns[role] for role in operator.roles}

    def place(shard: Shard) -> tuple[Path, str]:
        seen = kept[rows.of(shard)]
        state = "all" if seen.all() else xxhash.xxh3_128_hexdigest(np.packbits(seen).tobytes())
        step = digest_of([operator.key_parts(), read, shard.digest, state])
        return sidecar_path(folder, shard, step), step

    def work(shard: Shard) -> tuple[Path, str]:
        path, step = place(shard)
        seen = kept[rows.of(shard)]
        fields = operator.fields()
        sidecar_once(path, shard, step, fields, lambda: _compute(operator, shard, seen, read))
        if progress is not None:
            progress(shard.rows)
        return path, step

    places = in_threads(work, corpus.shards, workers)
    return Evaluated(
        operator,
        corpus.shards,
        tuple(path for path, _ in places),
        tuple(step for _, step in places),
    )


def _compute(
    operator: RowScorer, shard: Shard, seen: Mask, read: Mapping[str, str]
) -> Iterator[Part]:
    begin = 0
    for batch in shard.batches(list(read.values())):
        inside = seen[begin : begin + batch.num_rows]
        named = batch.rename_columns(list(read))
        if not inside.all():
            named = named.filter(pa.array(inside))
        if named.num_rows:
            yield begin + np.flatnonzero(inside), operator.compute(named)
        begin += batch.num_rows
