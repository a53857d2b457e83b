"""128-bit hashes of Arrow columns: row identity and content keys.

A value hashes alike however Arrow holds it: as string or large_string, dictionary or plain,
sliced or chunked. Not cryptographic; two different rows of a corpus of 10**10 share a hash with
probability 1.5e-19.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numba import njit, uint64

from tamis.storage.errors import UserError
from tamis.storage.kernels import INLINE, KERNEL, UInt64s, fmix64, string_buffers

_A, _B = uint64(0x87C37B91114253D5), uint64(0x4CF5AD432745937F)
_C, _D = uint64(0x9E3779B97F4A7C15), uint64(0xD6E8FEB86659FD93)
_NULL = (0x6E756C6C_6E756C6C, 0x0FEDCBA9_87654321)


class Hashes(NamedTuple):
    """The two halves of one 128-bit hash per row."""

    high: UInt64s
    low: UInt64s


@njit(**INLINE)
def absorb(high, low, value):  # type: ignore[no-untyped-def]
    """Take 64 more bits into the two halves of a hash."""
    high ^= value * _A
    high = ((high << uint64(31)) | (high >> uint64(33))) * _B
    low ^= value * _D
    low = ((low << uint64(27)) | (low >> uint64(37))) * _C
    return high, low


@njit(**INLINE)
def finish(high, low, length):  # type: ignore[no-untyped-def]
    """Mix the halves of a hash of `length` units, so that every bit depends on every other."""
    high ^= length
    low ^= length
    high += low
    low += high
    high = fmix64(high)
    low = fmix64(low)
    high += low
    low += high
    return high, low


@njit(**KERNEL)
def _hash_bytes(data, offsets, high, low):  # type: ignore[no-untyped-def]
    for row in range(high.shape[0]):
        at, end = uint64(offsets[row]), uint64(offsets[row + 1])
        length = end - at
        h, g = uint64(0), uint64(0)
        while at + uint64(8) <= end:
            value = uint64(data[at])
            for k in range(1, 8):
                value |= uint64(data[at + uint64(k)]) << uint64(8 * k)
            h, g = absorb(h, g, value)
            at += uint64(8)
        value = uint64(0)
        shift = uint64(0)
        while at < end:
            value |= uint64(data[at]) << shift
            shift += uint64(8)
            at += uint64(1)
        h, g = absorb(h, g, value)
        high[row], low[row] = finish(h, g, length)


@njit(**KERNEL)
def _hash_words(values, high, low):  # type: ignore[no-untyped-def]
    for row in range(high.shape[0]):
        h, g = absorb(uint64(0), uint64(0), values[row])
        high[row], low[row] = finish(h, g, uint64(8))


@njit(**KERNEL)
def _hash_lists(item_high, item_low, offsets, high, low):  # type: ignore[no-untyped-def]
    for row in range(high.shape[0]):
        h, g = uint64(1), uint64(1)
        for i in range(offsets[row], offsets[row + 1]):
            h, g = absorb(h, g, item_high[i])
            h, g = absorb(h, g, item_low[i])
        high[row], low[row] = finish(h, g, uint64(offsets[row + 1] - offsets[row]))


@njit(**KERNEL)
def _fold_in(name, item_high, item_low, high, low):  # type: ignore[no-untyped-def]
    for row in range(high.shape[0]):
        h, g = absorb(high[row], low[row], name)
        h, g = absorb(h, g, item_high[row])
        h, g = absorb(h, g, item_low[row])
        high[row], low[row] = finish(h, g, uint64(3))


def _pair(rows: int) -> Hashes:
    return Hashes(np.zeros(rows, np.uint64), np.zeros(rows, np.uint64))


def _fixed_width(array: pa.Array, width: int) -> Hashes:
    """Values of `width` bytes, as they lie in the buffer."""
    rows = len(array)
    raw = np.frombuffer(array.buffers()[1], np.uint8)
    raw = raw[array.offset * width : (array.offset + rows) * width]
    out = _pair(rows)
    if width <= 8:
        words = np.zeros((rows, 8), np.uint8)
        words[:, :width] = raw.reshape(rows, width)
        _hash_words(words.view(np.uint64).ravel(), *out)
    else:
        _hash_bytes(raw, np.arange(rows + 1, dtype=np.int64) * width, *out)
    return out


def hash_array(array: pa.Array) -> Hashes:
    """A 128-bit hash of every value of an Arrow array, nested ones included.

    Raises:
        UserError: for types that have no canonical value (unions, run-end encoding).
    """
    kind = array.type
    rows = len(array)
    if isinstance(array, pa.ExtensionArray):
        return hash_array(array.storage)
    if pa.types.is_dictionary(kind):
        return hash_array(array.dictionary_decode())
    out = _pair(rows)
    if pa.types.is_null(kind) or rows == 0:
        pass
    elif pa.types.is_boolean(kind):
        out = _fixed_width(pc.fill_null(array, False).cast(pa.uint8()), 1)
    elif pa.types.is_struct(kind):
        out = hash_columns(kind.names, array.flatten(), rows)
    elif pa.types.is_map(kind):
        entry = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
        return hash_array(array.cast(pa.list_(entry)))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0), np.int64)
        _hash_lists(*hash_array(array.flatten()), np.r_[0, np.cumsum(lengths)], *out)
    elif pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        values = array.values.slice(array.offset * size, rows * size)
        _hash_lists(*hash_array(values), np.arange(rows + 1, dtype=np.int64) * size, *out)
    elif _is_bytes(kind):
        _hash_bytes(*string_buffers(array), *out)
    elif pa.types.is_primitive(kind) or pa.types.is_decimal(kind):
        out = _fixed_width(array, kind.bit_width // 8)
    elif pa.types.is_fixed_size_binary(kind):
        out = _fixed_width(array, kind.byte_width)
    else:
        raise UserError(
            f"values of type {kind} cannot identify a row",
            mend="name the identifying columns under `corpus.identity`",
        )
    if array.null_count:
        null = ~np.asarray(array.is_valid())
        out.high[null], out.low[null] = _NULL
    return out


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_string_view,
        pa.types.is_binary_view,
    )
    return any(test(kind) for test in tests)


def hash_columns(names: list[str], columns: list[pa.Array], rows: int) -> Hashes:
    """One hash per row over several named columns; their order does not matter."""
    out = _pair(rows)
    for name, column in sorted(zip(names, columns, strict=True), key=lambda pair: pair[0]):
        seed = np.uint64(xxhash.xxh3_64_intdigest(name.encode()))
        _fold_in(seed, *hash_array(column), *out)
    return out


def hash_batch(batch: pa.RecordBatch) -> Hashes:
    """`hash_columns` over all columns of a batch."""
    return hash_columns(batch.schema.names, batch.columns, batch.num_rows)


def hex_ids(high: UInt64s, low: UInt64s) -> list[str]:
    """Row ids as they are shown: 32 hex digits."""
    return [f"{int(a):016x}{int(b):016x}" for a, b in zip(high, low, strict=True)]
