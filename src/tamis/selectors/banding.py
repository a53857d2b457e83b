"""Locality-sensitive hashing: which rows share a bucket, so that only those are compared."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, uint8, uint64

from tamis.scoring.minhash import Signatures
from tamis.storage.errors import RunError
from tamis.storage.grouping import Int32s, counting_sort, first_with_key
from tamis.storage.kernels import INLINE, KERNEL, Bytes, Int64s, UInt64s, fmix64, in_threads
from tamis.storage.spill import Spill, SpillRoom

_NOTHING = (np.zeros(0, np.int32), np.zeros(0, np.int32))

#: A pair that is just a duplicate may fail to meet with at most this probability.
MAX_MISS = 1e-3


class Banding(NamedTuple):
    """`bands` of `rows` signature values each; two rows meet where a whole band is equal.

    A pair of Jaccard similarity J fails to meet with probability (1 - J**rows)**bands.
    """

    bands: int
    rows: int

    @classmethod
    def finer_than(cls, threshold: float, num_perm: int) -> "Banding":
        """The longest bands that miss a pair at the threshold with probability `MAX_MISS` at most.

        Example:
            >>> Banding.finer_than(0.8, 128)
            Banding(bands=25, rows=5)
        """
        similarity = min(threshold, 0.95)  # above, bands so long would leave no edges
        for rows in range(num_perm, 1, -1):
            bands = num_perm // rows
            if (1 - similarity**rows) ** bands <= MAX_MISS:
                return cls(bands, rows)
        return cls(num_perm, 1)


class Buckets(NamedTuple):
    """Buckets with at least two members, in compressed form; rows are numbered by rank.

    Bucket ``b`` has members ``members[start[b]:start[b + 1]]``, best rank first, and came from
    band ``band[b]``. ``entry_row[e]``/``entry_bucket[e]`` list the same memberships by row.
    """

    start: Int64s
    members: Int32s
    band: npt.NDArray[np.int16]
    entry_row: Int32s
    entry_bucket: Int32s


@njit(**INLINE)
def band_key(signature, band, rows):  # type: ignore[no-untyped-def]
    """Hash of one band of a signature."""
    h = uint64(band + 1) * uint64(0x9E3779B97F4A7C15)
    for r in range(band * rows, band * rows + rows):
        h = fmix64(h ^ uint64(signature[r]))
    return h


@njit(**KERNEL)
def _digest(signatures, rows, keys, sketch, whole):  # type: ignore[no-untyped-def]
    """Of every signature a key for each band, the low bytes, and a hash of all of it."""
    for d in range(signatures.shape[0]):
        signature = signatures[d]
        for band in range(keys.shape[0]):
            keys[band, d] = band_key(signature, band, rows)
        h = uint64(0)
        for k in range(signature.shape[0]):
            sketch[d, k] = uint8(signature[k])
            h = fmix64(h ^ uint64(signature[k]))
        whole[d] = h


def digest(found: Signatures, banding: Banding) -> tuple[UInt64s, Bytes, UInt64s]:
    """Keys ``(bands, rows)``, sketch and hash of the whole of some signatures; see `Digests`."""
    rows = len(found.matrix)
    keys = np.empty((banding.bands, rows), np.uint64)
    sketch, whole = np.empty(found.matrix.shape, np.uint8), np.empty(rows, np.uint64)
    _digest(found.matrix, banding.rows, keys, sketch, whole)
    return keys, sketch, whole


class Digests(NamedTuple):
    """What is kept of the signatures of a table, whose rows fill it in any order.

    Attributes:
        banding: bands, and signature values of each.
        keys: by band a uint64 key a row; rows whose whole band is equal have the same.
        sketch: ``(rows, num_perm)`` uint8, low bytes of the signatures (b-bit MinHash, Li and
            König 2010).
        whole: uint64 hash of the signature; with `multiset` it says whose shingles are equal.
        multiset: uint64, sum of the shingle hashes and their number.
    """

    banding: Banding
    keys: list[Spill]
    sketch: Spill
    whole: UInt64s
    multiset: UInt64s

    @classmethod
    def room_for(cls, rows: int, num_perm: int, banding: Banding, room: SpillRoom) -> "Digests":
        """Arrays of the right size, not yet filled."""
        keys = [room.array((rows,), np.uint64) for _ in range(banding.bands)]
        sketch = room.array((rows, num_perm), np.uint8)
        return cls(banding, keys, sketch, np.empty(rows, np.uint64), np.empty(rows, np.uint64))

    def put(self, at: int, found: Signatures) -> None:
        """Take in the signatures of a run of rows; threads may share the arrays."""
        rows = len(found.matrix)
        keys, sketch, self.whole[at : at + rows] = digest(found, self.banding)
        self.multiset[at : at + rows] = found.multiset + found.shingles.astype(np.uint64)
        for spill, values in zip(self.keys, keys, strict=True):
            spill.put(at, values)
        self.sketch.put(at, sketch)


@njit(**KERNEL)
def _shared(first):  # type: ignore[no-untyped-def]
    """Rows in buckets of two or more, and the bucket of each, named by its first row."""
    rows = first.shape[0]
    shared = np.zeros(rows, np.bool_)
    for d in range(rows):
        if first[d] != d:
            shared[d] = True
            shared[first[d]] = True
    count = 0
    for d in range(rows):
        count += shared[d]
    members = np.empty(count, np.int32)
    bucket = np.empty(count, np.int32)
    at = 0
    for d in range(rows):
        if shared[d]:
            members[at] = d
            bucket[at] = first[d]
            at += 1
    return members, bucket


def shared_buckets(
    keys: Callable[[int], UInt64s], bands: int, workers: int = 1
) -> list[tuple[Int32s, Int32s]]:
    """Per band, the rows that share a bucket with another and the bucket's first row.

    Args:
        keys: gives the keys of a band.
    """
    return in_threads(lambda band: _shared(first_with_key(keys(band))), range(bands), workers)


def bucket_lists(shared: list[tuple[Int32s, Int32s]], rank_of: Int32s, ranked: int) -> Buckets:
    """Bring the buckets of all bands into one list, rows renamed to their rank.

    Args:
        shared: as `shared_buckets` returns it; emptied.
        rank_of: for every row its place among the `ranked` rows, best first; -1 for the others.
    """
    entries = sum(len(members) for members, _ in shared)
    if entries >= 1 << 31:
        raise RunError(
            f"{entries:,} bucket memberships are more than one table can hold",
            mend="split the corpus, or give fewer bands",
        )
    entry_row, entry_bucket = np.empty(entries, np.int32), np.empty(entries, np.int32)
    bands: list[npt.NDArray[np.int16]] = []
    buckets = done = 0
    for band, (members, bucket) in enumerate(shared):
        shared[band] = _NOTHING  # the lists of all bands are large: none is held twice
        distinct, name = np.unique(bucket, return_inverse=True)
        here = slice(done, done + len(members))
        entry_row[here] = rank_of[members]
        entry_bucket[here] = name + buckets
        bands.append(np.full(len(distinct), band, np.int16))
        buckets += len(distinct)
        done += len(members)
    return grouped(entry_row, entry_bucket, np.concatenate(bands), ranked)


def grouped(
    entry_row: Int32s, entry_bucket: Int32s, band: npt.NDArray[np.int16], ranked: int
) -> Buckets:
    """Memberships sorted by row, and for every bucket its members from the best rank down."""
    by_row, _ = counting_sort(entry_row, ranked)
    entry_row, entry_bucket = entry_row[by_row], entry_bucket[by_row]
    by_bucket, start = counting_sort(entry_bucket, len(band))
    return Buckets(start, entry_row[by_bucket], band, entry_row, entry_bucket)
