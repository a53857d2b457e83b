"""Locality-sensitive hashing: which rows share a bucket, so that only those are compared."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, uint64

from tamis.scoring.minhash import UInt32s
from tamis.storage.errors import RunError
from tamis.storage.grouping import Int32s, counting_sort, first_with_key
from tamis.storage.kernels import KERNEL, Int64s, UInt64s, even_cuts, fmix64, in_threads

_NOTHING = (np.zeros(0, np.int32), np.zeros(0, np.int32))
#: Band keys held in memory together: 8 bytes a row each.
BANDS_AT_ONCE = 5


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


@njit(**KERNEL)
def band_keys(signatures, picked, first, last, first_band, rows, keys):  # type: ignore[no-untyped-def]
    """Hash of bands ``first_band + j`` of rows ``picked[d]`` into ``keys[j, d]``."""
    for d in range(first, last):
        signature = signatures[picked[d]]
        for j in range(keys.shape[0]):
            band = first_band + j
            h = uint64(band + 1) * uint64(0x9E3779B97F4A7C15)
            for r in range(band * rows, band * rows + rows):
                h = fmix64(h ^ uint64(signature[r]))
            keys[j, d] = h


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
    signatures: UInt32s, picked: Int64s, banding: Banding, workers: int = 1
) -> list[tuple[Int32s, Int32s]]:
    """Per band, the rows that share a bucket with another and the bucket's first row.

    Args:
        signatures: ``(n, num_perm)`` uint32.
        picked: the rows of `signatures` to band; results count in this numbering.
    """
    shared: list[tuple[Int32s, Int32s]] = []
    cuts = even_cuts(np.arange(len(picked) + 1, dtype=np.int64), workers * 4)
    for first in range(0, banding.bands, BANDS_AT_ONCE):
        count = min(BANDS_AT_ONCE, banding.bands - first)
        keys: UInt64s = np.empty((count, len(picked)), np.uint64)

        def fill(cut: tuple[int, int], first: int = first, keys: UInt64s = keys) -> None:
            band_keys(signatures, picked, cut[0], cut[1], first, banding.rows, keys)

        in_threads(fill, cuts, workers)
        shared += in_threads(lambda key: _shared(first_with_key(key)), keys, workers)
    return shared


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
