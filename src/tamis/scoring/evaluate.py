"""Running a row scorer over the shards of a corpus, into sidecars that are never computed twice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
import xxhash

from tamis.scoring.operator import RowScorer, Scorer, operator_class
from tamis.scoring.reuse import (
    KEYS,
    Once,
    Store,
    content_keys,
    keep_known,
    known_rows,
    remove_portions,
    store_portion,
)
from tamis.storage.columns import (
    Beside,
    Mask,
    Source,
    keep_mask,
    kept_mask,
    read_columns,
    source_key,
)
from tamis.storage.corpus import Corpus, Shard, shards_in, starts_in, starts_of
from tamis.storage.files import digest_of, keep_json
from tamis.storage.places import Place, absolute, place_of
from tamis.storage.sidecar import (
    Part,
    is_done,
    sidecar_batches,
    sidecar_once,
    sidecar_path,
)
from tamis.storage.tasks import Done, Runner, Task

S = TypeVar("S", bound=Scorer)


@dataclass(frozen=True)
class Evaluated:
    """Where the results of a scorer lie: one sidecar a shard, for the rows it saw.

    Attributes:
        results: the same as a file of `keep_json`, as `Beside` reads it.
        report: figures of the whole for the manifest, where the scorer has any.
    """

    operator: Scorer
    shards: tuple[Shard, ...]
    paths: tuple[Place, ...]
    steps: tuple[str, ...]
    results: str
    report: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def lying_in(
        cls, folder: Place, operator: Scorer, corpus: Corpus, steps: Sequence[str], orders: Place
    ) -> "Evaluated":
        """Sidecars of all shards of a corpus, by their steps."""
        paths = tuple(
            sidecar_path(folder, shard, step)
            for shard, step in zip(corpus.shards, steps, strict=True)
        )
        results = keep_json(orders, {"folder": str(folder), "steps": list(steps)})
        return cls(operator, corpus.shards, paths, tuple(steps), results)

    def column(self, name: str) -> Beside:
        """One of its columns, as a source of values."""
        return Beside(results=self.results, column=self.stored(name))

    def stored(self, name: str) -> str:
        """What one of its columns is called in the sidecars."""
        names = self.operator.fields().names
        if name not in names:  # a content key, see `reuse`
            return name
        return str(_as_stored(self.operator).fields().names[names.index(name)])

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The sidecars' columns, shard by shard in bounded batches."""
        for index in range(len(self.shards)):
            yield from self.of_shard(index, columns)

    def of_shard(
        self, index: int, columns: Sequence[str], inside: Mask | None = None
    ) -> Iterator[pa.RecordBatch]:
        """One sidecar's columns in bounded batches.

        Args:
            inside: the rows of the shard that are wanted, of which it may hold more; all it holds
                if not given.
        """
        places = (self.paths[index], self.shards[index], self.steps[index])
        stored = [self.stored(name) for name in columns]
        for batch in sidecar_batches(*places, ["row", *stored]):
            found = batch.select(stored).rename_columns(list(columns))
            if inside is None or inside.all():
                yield found
                continue
            here = inside[batch["row"].to_numpy()]
            if here.any():
                yield found if here.all() else found.filter(pa.array(here))


class Evaluate(Task):
    """Compute a row scorer for the rows of a shard that are still kept.

    Attributes:
        operator: the operator with its parameters.
        shards: list of shards, see `Corpus.keep`.
        kept: mask of all rows, see `keep_mask`.
        read: where the values of every role come from.
        folder: where the sidecars lie.
        known: for a costly operator, index of what was computed before, see `keep_known`.
    """

    task: Literal["evaluate"] = "evaluate"
    label: ClassVar[str] = "scores"
    operator: dict[str, Any]
    shards: str
    kept: str
    read: dict[str, Source]
    folder: str
    known: str | None = None

    @property
    def title(self) -> str:
        return f"score {self.operator['operator']}"

    @property
    def scorer(self) -> RowScorer:
        """The operator."""
        found = operator_class(self.operator["operator"]).model_validate(self.operator)
        assert isinstance(found, RowScorer)
        return found

    def place(self, shard: Shard, seen: Mask) -> tuple[Place, str]:
        """Path and step of a shard's sidecar."""
        state = "all" if seen.all() else xxhash.xxh3_128_hexdigest(np.packbits(seen).tobytes())
        read = {role: source_key(source, shard) for role, source in self.read.items()}
        step = digest_of([self.scorer.key_parts(), read, shard.digest, state])
        return sidecar_path(place_of(self.folder), shard, step), step

    def sidecar(self, item: int) -> tuple[Mask, Place, str]:
        """The rows of a shard that are seen, and path and step of its sidecar."""
        shard, start = shards_in(self.shards)[item], starts_in(self.shards)
        seen = kept_mask(self.kept)[start[item] : start[item + 1]]
        return seen, *self.place(shard, seen)

    def run(self, item: int) -> list[str]:
        """Path and step of the sidecar."""
        shard = shards_in(self.shards)[item]
        seen, path, step = self.sidecar(item)
        scorer = self.scorer
        columns = scorer.fields()
        if scorer.costly:
            columns = pa.schema([*columns, *KEYS])
            store = None
            if scorer.portion_bytes is not None:
                store = partial(store_portion, path, scorer.portion_bytes)
            compute = partial(_compute_once, scorer, shard, seen, self.read, self.known, store)
        else:
            compute = partial(_compute, scorer, shard, seen, self.read)
        sidecar_once(path, shard, step, columns, compute)
        if scorer.portion_bytes is not None:
            remove_portions(path)
        return [str(path), step]


def evaluate(
    operator: RowScorer,
    corpus: Corpus,
    kept: Mask,
    columns: Mapping[str, Source],
    workspace: Place,
    room: str,
    runner: Runner,
    done: Done | None = None,
    orders: Place | None = None,
) -> Evaluated:
    """Compute an operator for the rows still kept.

    Args:
        kept: bool over all rows of the corpus.
        columns: where the values of every role, and of what it reads beside, come from.
        room: folder of the workspace that its sidecars lie in.
        done: called with every shard that is done.
        orders: folder of what workers are told; the workspace's own if not given.
    """
    workspace = absolute(workspace)
    orders = orders or workspace / "orders"
    task = _task(operator, corpus, kept, columns, workspace / room, orders)
    if operator.costly:
        wanted = [task.sidecar(item)[1].name for item in range(len(corpus.shards))]
        folder = place_of(task.folder)
        stored = _as_stored(operator).fields()
        known = keep_known(folder, wanted, stored, orders, runner.workers)
        task = task.model_copy(update={"known": known})
    found = runner.map(task, corpus.sizes, done)
    steps = [step for _, step in found]
    return Evaluated.lying_in(place_of(task.folder), operator, corpus, steps, orders)


def located(
    operator: RowScorer,
    corpus: Corpus,
    kept: Mask,
    columns: Mapping[str, Source],
    workspace: Place,
    room: str,
) -> Evaluated:
    """Where `evaluate` with the same arguments puts what it computes."""
    workspace = absolute(workspace)
    orders = workspace / "orders"
    task = _task(operator, corpus, kept, columns, workspace / room, orders)
    steps = [task.sidecar(item)[2] for item in range(len(corpus.shards))]
    return Evaluated.lying_in(place_of(task.folder), operator, corpus, steps, orders)


def rows_missing(found: Evaluated, kept: Mask) -> int:
    """Rows of `located` sidecars that are not there."""
    start = starts_of(found.shards)
    return sum(
        int(kept[start[shard.index] : start[shard.index + 1]].sum())
        for shard, path, step in zip(found.shards, found.paths, found.steps, strict=True)
        if not is_done(path, shard, step)
    )


def _task(
    operator: RowScorer,
    corpus: Corpus,
    kept: Mask,
    columns: Mapping[str, Source],
    room: Place,
    orders: Place,
) -> Evaluate:
    stored = _as_stored(operator)
    folder = room / operator.operator
    if operator.costly:  # what one operator has computed lies together, to be found again
        folder /= digest_of(stored.key_parts())[:16]
    return Evaluate(
        operator=stored.model_dump(mode="json"),
        shards=corpus.keep(orders),
        kept=keep_mask(kept, orders),
        read={name: columns[name] for name in (*operator.used_roles(), *sorted(operator.reads()))},
        folder=str(folder),
    )


def _as_stored(operator: S) -> S:
    """The operator whose columns the sidecars hold: what is costly is found by any stage's name."""
    if isinstance(operator, RowScorer) and operator.costly:
        return operator.model_copy(update={"name": None})
    return operator


def _compute(
    operator: RowScorer, shard: Shard, seen: Mask, read: Mapping[str, Source]
) -> Iterator[Part]:
    for rows, batch in read_columns(shard, read, seen):
        yield rows, operator.compute(batch)


def _compute_once(
    operator: RowScorer,
    shard: Shard,
    seen: Mask,
    read: Mapping[str, Source],
    known: str | None,
    store: Store | None,
) -> Iterator[Part]:
    keys = content_keys(read_columns(shard, read, seen))
    found = known_rows(known) if known else None
    once = Once(operator.compute, operator.fields(), keys, found, store)
    for rows, batch in read_columns(shard, read, seen):
        yield rows, once.next(batch)
