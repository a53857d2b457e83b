"""How likely a text is under a small language model of a target set, without PyTorch."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field

from tamis.scoring.ngram_model import (
    HIGHEST_ORDER,
    MODEL_VERSION,
    PAPER,
    NgramLogp,
    NgramModel,
)
from tamis.selectors.budgets import draws
from tamis.selectors.reference import Reference
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.errors import UserError
from tamis.storage.files import digest_of
from tamis.storage.kernels import Int64s, string_buffers
from tamis.storage.places import Place, absolute, kind_of, shown

#: Of every byte and order, while a model is trained: measured on random bytes, in which nearly
#: every n-gram is new (49 to 57 at orders 4 to 7; English text takes a tenth).
NGRAM_BYTES = 60


class NgramLikelihood(TableScorer):
    """Log-likelihood of every text under a byte n-gram model of a target set, or of the corpus.

    The model is interpolated modified Kneser-Ney over bytes: any text has a probability, in any
    language or none. It is trained on rows drawn by a hash of their row_id, up to `max_bytes`, and
    kept in the workspace.

    Without `train` the corpus is its own target, which a general model for
    `cross_entropy_difference` needs. Then no row is scored by a model that was trained on it: the
    corpus is halved by a hash of row_id, and each half is scored by the model of the other.

    The columns are those of `logprobs`, a byte being a token, so that the same scores (`loss`,
    `perplexity`, `bits_per_byte`) work on either.
    """

    operator: Literal["ngram_likelihood"] = "ngram_likelihood"
    train: Reference | None = Field(
        default=None,
        description="rows of the kind that is wanted, to train the model on; if not given, rows "
        "of the corpus itself",
    )
    order: int = Field(
        default=4,
        ge=1,
        le=HIGHEST_ORDER,
        description="bytes of the longest n-gram; 3 and 4 found the rows of small targets best "
        "(benchmarks/ngram.py), likelihood by itself gains from more",
    )
    max_bytes: int = Field(
        default=4_000_000,
        ge=1,
        le=100_000_000,
        description="bytes of text to train a model on, at most; the last row drawn may be cut",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of which rows are drawn")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def resolve(self, workspace: Place) -> Self:
        if self.train is None:
            return self
        return self.model_copy(update={"train": self.train.resolve(workspace)})

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "column": self.stage, "model": MODEL_VERSION}

    def memory(self, rows: int, text_bytes: int) -> int:
        """Of the rows; and of the n-grams while they are counted, were they all different."""
        there = text_bytes if self.train is None else self.train.bytes
        rows += 0 if self.train is None else self.train.rows
        return rows * 64 + NGRAM_BYTES * self.order * min(self.max_bytes, there)

    def fields(self) -> pa.Schema:
        """By the name of the stage: ``_logp`` (float64, nats, at most 0; null where the text is
        empty), ``_tokens`` and ``_bytes`` (int64), both the bytes of UTF-8.
        """
        return pa.schema(
            [
                pa.field(f"{self.stage}_logp", pa.float64()),
                pa.field(f"{self.stage}_tokens", pa.int64(), nullable=False),
                pa.field(f"{self.stage}_bytes", pa.int64(), nullable=False),
            ]
        )

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        logp = np.zeros(len(table))
        sizes = np.zeros(len(table), np.int64)
        for rows, signal in self._models(table):
            part = pa.Table.from_batches(
                list(_of_rows(table, rows).signal(signal)), schema=signal.fields()
            )
            logp[rows] = pc.fill_null(part["ngram_logp"], 0.0).to_numpy()
            sizes[rows] = part["ngram_bytes"].to_numpy()
        for begin in range(0, len(table), BATCH_ROWS):
            some = sizes[begin : begin + BATCH_ROWS]
            found = pa.array(logp[begin : begin + BATCH_ROWS], mask=some == 0)
            yield pa.record_batch([found, some, some], schema=self.fields())

    def _models(self, table: Table) -> Iterator[tuple[Int64s, NgramLogp]]:
        """Rows of the table, and what scores them."""
        everything = np.arange(len(table), dtype=np.int64)
        if self.train is not None:
            yield everything, self._of_target(table, self.train)
            return
        # Other draws than those that choose what is trained on.
        half = _draws(table, self.seed + 2**32) < 0.5
        for inside in (half, ~half):
            others = np.flatnonzero(~inside)
            texts = _drawn(table, others, self.seed, self.max_bytes)
            digest = self._digest([_digest_of_texts(texts)])
            path = _path(table, digest)
            if kind_of(path) is None:
                NgramModel.trained(texts, self.order).write(path)
            yield everything[inside], NgramLogp(model=str(path), digest=digest)

    def _of_target(self, table: Table, target: Reference) -> NgramLogp:
        which = target.model_dump(mode="json", include={"digest", "text", "id"})
        digest = self._digest([which, self.max_bytes, self.seed])
        path = _path(table, digest)
        if kind_of(path) is None:
            wanted = target.table(table)
            rows = np.arange(len(wanted), dtype=np.int64)
            texts = _drawn(wanted, rows, self.seed, self.max_bytes)
            if not pc.sum(pc.binary_length(texts)).as_py():
                raise UserError(
                    "there is no text to train the n-gram model on", where=shown(target.path)
                )
            NgramModel.trained(texts, self.order).write(path)
        return NgramLogp(model=str(path), digest=digest)

    def _digest(self, trained_on: list[Any]) -> str:
        return digest_of([MODEL_VERSION, self.order, trained_on])


def _path(table: Table, digest: str) -> Place:
    return absolute(table.workspace) / "models" / f"ngram-{digest}.npz"


def _of_rows(table: Table, rows: Int64s) -> Table:
    """A table of some of its rows."""
    positions = table.positions[rows]
    kept = np.zeros(len(table.kept), np.bool_)
    kept[positions] = True
    return replace(table, kept=kept, positions=positions)


def _draws(table: Table, seed: int) -> npt.NDArray[np.float64]:
    return draws(table.id_hi, table.id_lo, table.copy, seed)


def _drawn(table: Table, rows: Int64s, seed: int, most: int) -> pa.Array:
    """Texts of rows in the order of a draw, up to so many bytes; the last may be cut.

    Returns:
        A large_binary array.
    """
    sizes = np.zeros(len(rows), np.int64)

    def measure(text: pa.Array, places: Int64s, inside: slice) -> None:
        _, offsets = string_buffers(text)
        sizes[inside] = np.diff(offsets)[places]

    table.map_text("text", rows, measure)
    ids = (table.copy[rows], table.id_lo[rows], table.id_hi[rows])
    order = np.lexsort((*ids, _draws(table, seed)[rows]))
    before = np.cumsum(sizes[order]) - sizes[order]
    chosen = order[before < most]
    texts = table.texts(rows[chosen]).cast(pa.large_binary())
    room = most - int(before[len(chosen) - 1]) if len(chosen) else 0
    if len(chosen) and sizes[chosen[-1]] > room:
        last = pc.binary_slice(texts.slice(len(chosen) - 1), 0, room)
        texts = pa.concat_arrays([texts.slice(0, len(chosen) - 1), last])
    return texts


def _digest_of_texts(texts: pa.Array) -> str:
    data, offsets = string_buffers(texts)
    state = xxhash.xxh3_128(np.diff(offsets).tobytes())
    state.update(data[offsets[0] : offsets[-1]].data)
    return state.hexdigest()
