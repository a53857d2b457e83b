"""Anchors: places in a text that the text around them chooses, so that copies choose alike.

Winnowing (Schleimer, Wilkerson and Aiken 2003): of every `window` consecutive k-grams the one with
the smallest hash is an anchor, the last one of several. Which it is depends on the bytes of the
window alone; so two equal stretches of ``window + k - 1`` bytes have an anchor at the same place.
"""

from typing import ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit, uint64
from pydantic import Field

from tamis.scoring.operator import Signal
from tamis.storage.kernels import KERNEL, Int64s, UInt64s, fmix64, string_buffers

#: Anchors of a text that are worked on at a time; a text of one letter has one at every byte.
BLOCK = 4096
#: Bytes of an anchor's hash.
ANCHOR_BYTES = 8

_BASE = uint64(0x9E3779B97F4A7C15)
_NONE = uint64(0xFFFFFFFFFFFFFFFF)
_SEEN = 1024


class Winnow(NamedTuple):
    """How anchors are chosen: any stretch of `length` bytes holds one.

    Attributes:
        length: bytes of the stretches.
        gram: bytes of a k-gram.
    """

    length: int
    gram: int

    @classmethod
    def of(cls, length: int) -> "Winnow":
        """K-grams of half the length: one anchor in about a quarter of the length."""
        return cls(length, length // 2)

    @property
    def window(self) -> int:
        """Consecutive k-grams of which one is an anchor."""
        return self.length - self.gram + 1

    @property
    def reach(self) -> int:
        """Bytes on either side of an anchor's k-gram that stretches with it can reach."""
        return self.length - self.gram


@njit(**KERNEL)
def power_of(exponent):  # type: ignore[no-untyped-def]
    """The base of the rolling hash to some power."""
    found = uint64(1)
    for _ in range(exponent):
        found *= _BASE
    return found


@njit(**KERNEL)
def work_for(winnow):  # type: ignore[no-untyped-def]
    """Work arrays of one thread: hashes of the window, state, places and hashes of a block."""
    room = 1
    while room < winnow.length:
        room *= 2
    return (
        np.empty(room, np.uint64),
        np.zeros(2, np.uint64),
        np.zeros(3, np.int64),
        np.empty(BLOCK, np.int64),
        np.empty(BLOCK, np.uint64),
    )


@njit(**KERNEL)
def begin_text(work):  # type: ignore[no-untyped-def]
    """Make the work arrays ready for another text."""
    _, rolling, place, _, _ = work
    rolling[0], rolling[1] = uint64(0), _NONE
    place[0], place[1], place[2] = 0, -1, -1


@njit(**KERNEL)
def next_anchors(data, first, end, winnow, power, work):  # type: ignore[no-untyped-def]
    """The next anchors of a text: their k-grams' places and hashes in the work arrays.

    Args:
        power: `power_of` of a byte less than a k-gram.

    Returns:
        How many there are; fewer than `BLOCK` at the text's end.
    """
    ring, rolling, state, places, hashes = work
    mask = uint64(ring.shape[0] - 1)
    gram, window = uint64(winnow.gram), winnow.length - winnow.gram + 1
    begin = uint64(first)
    h, least = rolling[0], rolling[1]
    done, at, last = state[0], state[1], state[2]
    total = end - first - winnow.gram + 1
    if total < window:
        return 0
    if done == 0:
        for i in range(gram - uint64(1)):
            h = h * _BASE + uint64(data[begin + i])
    found = 0
    for k in range(done, total):
        j = uint64(k)
        h = h * _BASE + uint64(data[begin + j + gram - uint64(1)])
        value = fmix64(h)
        h -= uint64(data[begin + j]) * power
        ring[j & mask] = value
        if value <= least:
            least, at = value, k
        elif at <= k - window:
            least = _NONE
            for t in range(j - uint64(window - 1), j + uint64(1)):
                if ring[t & mask] <= least:
                    least, at = ring[t & mask], np.int64(t)
        if at != last and k >= window - 1:
            places[found], hashes[found] = first + at, least
            last = at
            found += 1
            if found == BLOCK:
                rolling[0], rolling[1] = h, least
                state[0], state[1], state[2] = k + 1, at, last
                return found
    state[0] = total
    rolling[0], rolling[1] = h, least
    state[1], state[2] = at, last
    return found


@njit(**KERNEL)
def _anchors(data, offsets, winnow, keys, counts, first_row, size):  # type: ignore[no-untyped-def]
    """Hashes of the anchors of texts from `first_row` on; gives rows done and hashes written.

    One that a text has often is written twice at least and may be left out from then on: more is
    not asked than whether there is another.
    """
    work = work_for(winnow)
    power = power_of(winnow.gram - 1)
    seen, seen_row = np.zeros(_SEEN, np.uint64), np.full(_SEEN, -1, np.int64)
    times = np.zeros(_SEEN, np.int8)
    for row in range(first_row, counts.shape[0]):
        begin = size
        begin_text(work)
        while True:
            found = next_anchors(data, offsets[row], offsets[row + 1], winnow, power, work)
            if size + found > keys.shape[0]:
                return row, begin
            for i in range(found):
                h = work[4][i]
                slot = h & uint64(_SEEN - 1)
                if seen_row[slot] == row and seen[slot] == h:
                    if times[slot] == 2:
                        continue
                    times[slot] = 2
                else:
                    seen_row[slot], seen[slot], times[slot] = row, h, 1
                keys[size] = h
                size += 1
            if found < BLOCK:
                break
        counts[row] = size - begin
    return counts.shape[0], size


class SubstringAnchors(Signal):
    """Hashes of a text's anchors: what says quickly where no repeated stretch can be.

    Example:
        >>> text = "Two texts that share a long stretch choose the same anchors inside of it."
        >>> batch = pa.record_batch({"text": pa.array([text, "# " + text])})
        >>> a, b = SubstringAnchors(length=40).compute(batch)["anchors"].to_pylist()
        >>> a in b
        True
    """

    operator: Literal["substring_anchors"] = "substring_anchors"
    length: int = Field(default=200, ge=16, description="any stretch of so many bytes holds one")
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Schleimer, Wilkerson and Aiken 2003 (winnowing)"
    roles: ClassVar[tuple[str, ...]] = ("text",)

    @property
    def winnow(self) -> Winnow:
        return Winnow.of(self.length)

    def fields(self) -> pa.Schema:
        """``anchors`` (large_binary): 8 bytes each, uint64 as the machine has them."""
        return pa.schema([pa.field("anchors", pa.large_binary(), nullable=False)])

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        data, offsets = string_buffers(batch["text"])
        rows = batch.num_rows
        counts = np.zeros(rows, np.int64)
        keys = np.empty(BLOCK + 3 * int(offsets[-1] - offsets[0]) // self.winnow.window, np.uint64)
        done = size = 0
        while done < rows:
            done, size = _anchors(data, offsets, self.winnow, keys, counts, done, size)
            if done < rows:
                keys = np.concatenate([keys, np.empty_like(keys)])
        starts = np.zeros(rows + 1, np.int64)
        np.cumsum(counts * ANCHOR_BYTES, out=starts[1:])
        held = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), rows, [None, pa.py_buffer(starts), pa.py_buffer(keys[:size].copy())]
        )
        return pa.record_batch([held], schema=self.fields())


def anchors_of(column: pa.Array) -> tuple[UInt64s, Int64s]:
    """Hashes of a batch, and where those of every row begin."""
    data, offsets = string_buffers(column)
    return data[offsets[0] : offsets[-1]].view(np.uint64), (offsets - offsets[0]) // ANCHOR_BYTES
