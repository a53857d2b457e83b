"""MinHash signatures that datasketch 2.0 reads as its own."""

import unicodedata
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit, uint32, uint64
from pydantic import Field

from tamis.scoring.operator import Signal
from tamis.scoring.shingles import (
    DEFAULT_NGRAM,
    Shingling,
    begin_document,
    mark_begun,
    next_shingles,
    scratch,
)
from tamis.scoring.words import UnicodeForm, Unit, is_ascii
from tamis.storage.kernels import KERNEL, Int64s, UInt64s, fmix32, string_buffers

UInt32s = npt.NDArray[np.uint32]


@lru_cache(maxsize=8)
def affine_permutations(num_perm: int, seed: int) -> tuple[UInt32s, UInt32s]:
    """Multipliers (odd) and increments as ``datasketch.MinHash(num_perm, seed)`` draws them.

    The same arrays for every caller, not to be changed.
    """
    random = np.random.RandomState(seed)
    multiplier = random.randint(0, 1 << 31, num_perm, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return multiplier, random.randint(0, 1 << 32, num_perm, dtype=np.uint32)


@njit(**KERNEL)
def minhash_rows(  # type: ignore[no-untyped-def]
    data,
    offsets,
    ngram,
    characters,
    tables,
    multiplier,
    increment,
    signature,
    multiset,
    counts,
    lengths,
):
    """Signature, multiset hash, shingle count and characters of every row.

    The permutations are datasketch 2.0's ``affine32``: the shingle's high 32 bits h, mixed once
    by MurmurHash3's finaliser, then ``a * h + b`` modulo 2**32, ``a`` odd.
    """
    work = scratch(ngram)
    shingles, short = work[1], work[2]
    permutations = multiplier.shape[0]
    for row in range(signature.shape[0]):
        minima = signature[row]
        minima[:] = uint32(0xFFFFFFFF)
        position, end = offsets[row], offsets[row + 1]
        ascii_row = is_ascii(data, position, end)
        characters_in_row = end - position
        if not ascii_row:
            for i in range(position, end):
                characters_in_row -= (data[i] & 0xC0) == 0x80
        lengths[row] = characters_in_row
        begin_document(work)
        carried = 0
        total = 0
        accumulated = uint64(0)
        while True:
            count, position, carried = next_shingles(
                data,
                position,
                offsets[row],
                end,
                ascii_row,
                ngram,
                characters,
                tables,
                work,
                carried,
            )
            for i in range(count):
                accumulated += shingles[i]
            for i in range(count):
                short[i] = fmix32(uint32(shingles[i] >> uint64(32)))
            _lower(short, count, multiplier, increment, minima, permutations)
            total += count
            if count:
                mark_begun(work)
            if position >= end:
                break
        multiset[row] = accumulated
        counts[row] = total


@njit(**KERNEL)
def _lower(short, count, multiplier, increment, minima, permutations):  # type: ignore[no-untyped-def]
    """Lower `minima` by the permuted hashes, eight shingles a sweep to spare loads and stores."""
    i = 0
    while i + 8 <= count:
        h0, h1, h2, h3 = short[i], short[i + 1], short[i + 2], short[i + 3]
        h4, h5, h6, h7 = short[i + 4], short[i + 5], short[i + 6], short[i + 7]
        for k in range(permutations):
            a, b = multiplier[k], increment[k]
            low = min(
                min(
                    min(uint32(a * h0 + b), uint32(a * h1 + b)),
                    min(uint32(a * h2 + b), uint32(a * h3 + b)),
                ),
                min(
                    min(uint32(a * h4 + b), uint32(a * h5 + b)),
                    min(uint32(a * h6 + b), uint32(a * h7 + b)),
                ),
            )
            held = minima[k]
            minima[k] = low if low < held else held
        i += 8
    while i < count:
        h = short[i]
        for k in range(permutations):
            low = uint32(multiplier[k] * h + increment[k])
            held = minima[k]
            minima[k] = low if low < held else held
        i += 1


class Signatures(NamedTuple):
    """Signatures of a run of rows, as the arrays that deduplication works on.

    ``matrix`` is ``(rows, num_perm)`` uint32, ``multiset`` uint64 (sum of the shingle hashes
    modulo 2**64), ``shingles`` int64 (count with repeats), ``characters`` int64 (code points).
    """

    matrix: UInt32s
    multiset: UInt64s
    shingles: Int64s
    characters: Int64s

    @classmethod
    def room_for(cls, rows: int, num_perm: int) -> "Signatures":
        """Arrays of the right size, not yet filled."""
        counts = np.empty(rows, np.int64), np.empty(rows, np.int64)
        return cls(np.empty((rows, num_perm), np.uint32), np.empty(rows, np.uint64), *counts)

    def fill(self, at: slice, text: pa.Array, signal: "MinHashSignature") -> None:
        """Compute the rows of a text array into places `at`; threads may share the arrays."""
        shingling = signal.shingling
        minhash_rows(
            *string_buffers(text),
            shingling.ngram,
            shingling.unit == "character",
            shingling.tables,
            *affine_permutations(signal.num_perm, signal.seed),
            *(array[at] for array in self),
        )

    @classmethod
    def stored(cls, columns: pa.RecordBatch) -> "Signatures":
        """Those that lie in the fields of `MinHashSignature`, without copying them."""
        counts = (columns[name].to_numpy() for name in ("multiset", "shingles", "characters"))
        return cls(signature_matrix(columns["signature"]), *counts)


class MinHashSignature(Signal):
    """MinHash signature of a text's shingles, with the counts that deduplication needs.

    Example:
        >>> import pyarrow as pa
        >>> batch = pa.record_batch({"text": pa.array(["one two three four five six"])})
        >>> MinHashSignature().compute(batch)["shingles"].to_pylist()
        [2]
    """

    operator: Literal["minhash"] = "minhash"
    ngram: int | None = Field(
        default=None, ge=1, description="tokens per shingle; 5 words or 24 characters if not given"
    )
    unit: Unit = Field(default="word", description="what a token is")
    unicode_form: UnicodeForm = Field(
        default="NFKD", description="decomposition before full case folding of non-ASCII rows"
    )
    num_perm: int = Field(default=128, ge=16, le=256, description="permutations")
    seed: int = Field(default=1, ge=0, lt=2**32, description="seed of the permutations")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Broder 1997, On the resemblance and containment of documents"
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "unicode": unicodedata.unidata_version}

    @property
    def shingling(self) -> Shingling:
        return Shingling(self.ngram or DEFAULT_NGRAM[self.unit], self.unit, self.unicode_form)

    def fields(self) -> pa.Schema:
        """``signature`` (num_perm little-endian uint32), ``multiset`` (sum of the shingle hashes
        modulo 2**64), ``shingles`` (count with repeats), ``characters`` (code points)."""
        return pa.schema(
            [
                pa.field("signature", pa.binary(4 * self.num_perm), nullable=False),
                pa.field("multiset", pa.uint64(), nullable=False),
                pa.field("shingles", pa.int64(), nullable=False),
                pa.field("characters", pa.int64(), nullable=False),
            ]
        )

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        found = Signatures.room_for(batch.num_rows, self.num_perm)
        found.fill(slice(0, batch.num_rows), batch["text"], self)
        packed = pa.Array.from_buffers(
            pa.binary(4 * self.num_perm), batch.num_rows, [None, pa.py_buffer(found.matrix)]
        )
        columns = [packed, *map(pa.array, (found.multiset, found.shingles, found.characters))]
        return pa.record_batch(columns, schema=self.fields())


def signature_matrix(signatures: pa.Array) -> UInt32s:
    """The ``(rows, num_perm)`` uint32 matrix of a ``signature`` column, without copying it.

    A row loads into datasketch as it is:
    ``datasketch.MinHash(hashvalues=matrix[i], scheme="affine32", seed=seed)``.
    """
    width = signatures.type.byte_width // 4
    flat = np.frombuffer(signatures.buffers()[1], np.uint32)
    return flat[signatures.offset * width : (signatures.offset + len(signatures)) * width].reshape(
        len(signatures), width
    )
