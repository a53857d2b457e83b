"""How far a text compresses: repetition and boilerplate compress well, noise does not."""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numba import njit, uint32, uint64

from tamis.scoring.operator import RowScorer
from tamis.storage.kernels import KERNEL, string_buffers

# The LZ4 block format: matches of at least 4 bytes at most 65535 back; the last match begins at
# least 12 bytes before the end, and the last 5 bytes are literals.
_MIN_MATCH, _WINDOW, _LAST_MATCH, _LAST_LITERALS = 4, 65535, 12, 5
_TABLE_BITS = 14


@njit(**KERNEL)
def _word(data, i):  # type: ignore[no-untyped-def]
    return (
        uint32(data[i])
        | uint32(data[i + 1]) << uint32(8)
        | uint32(data[i + 2]) << uint32(16)
        | uint32(data[i + 3]) << uint32(24)
    )


@njit(**KERNEL)
def _length_bytes(length, inline):  # type: ignore[no-untyped-def]
    """Extra bytes that a literal run or match needs for its length."""
    return 0 if length < inline else 1 + (length - inline) // 255


@njit(**KERNEL)
def _lz4_size(data, start, end, table):  # type: ignore[no-untyped-def]
    """Bytes of the LZ4 block that a greedy parse with one candidate per hash gives."""
    size = 0
    literals = start
    table[:] = -1
    i = start
    limit = end - _LAST_MATCH
    while i <= limit:
        word = _word(data, i)
        slot = uint32(uint32(word * uint32(2654435761)) >> uint32(32 - _TABLE_BITS))
        candidate = table[slot]
        table[slot] = i
        if candidate < 0 or i - candidate > _WINDOW or _word(data, candidate) != word:
            i += 1
            continue
        length = np.int64(_MIN_MATCH)
        while i + length < end - _LAST_LITERALS and data[candidate + length] == data[i + length]:
            length += 1
        run = i - literals
        size += 1 + _length_bytes(run, 15) + run + 2 + _length_bytes(length - _MIN_MATCH, 15)
        i += length
        literals = i
    run = end - literals
    return size + 1 + _length_bytes(run, 15) + run


@njit(**KERNEL)
def _compression_ratios(data, offsets, ratio):  # type: ignore[no-untyped-def]
    table = np.empty(1 << _TABLE_BITS, np.int64)
    for row in range(ratio.shape[0]):
        length = offsets[row + 1] - offsets[row]
        if length == 0:
            ratio[row] = np.nan
        else:
            packed = _lz4_size(data, offsets[row], offsets[row + 1], table)
            ratio[row] = float(uint64(length)) / packed


class CompressionRatio(RowScorer):
    """Bytes of a text over the bytes of its LZ4 block (greedy parse); nan for an empty text.

    About 0.9 to 1 for short or random text, 1.3 to 1.4 for long
    prose in books, 1.5 to 2.2 for statutes, far more for repetition.
    LZ4 rather than zlib because its size can be computed without compressing: the ratio is
    lower than zlib's, and orders texts alike.

    Example:
        >>> import pyarrow as pa
        >>> batch = pa.record_batch({"text": pa.array(["ab" * 500])})
        >>> round(CompressionRatio().compute(batch)["compression_ratio"][0].as_py(), 1)
        66.7
    """

    operator: Literal["compression_ratio"] = "compression_ratio"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "LZ4 block format 1.6 (Collet); ratio as in the zlib quality heuristics"
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def fields(self) -> pa.Schema:
        """``compression_ratio`` (bytes over compressed bytes, > 0)."""
        return pa.schema([pa.field("compression_ratio", pa.float64(), nullable=False)])

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        data, offsets = string_buffers(batch["text"])
        ratio = np.empty(batch.num_rows, np.float64)
        _compression_ratios(data, offsets, ratio)
        return pa.record_batch([pa.array(ratio)], schema=self.fields())
