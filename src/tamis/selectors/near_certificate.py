"""The certificate of near-duplicate removal.

Precision comes from the texts, in plain Python. For the recall, values are sampled: of all values
at all places of the signatures every R-th, by a hash, wherever it occurs. Two rows whose signatures
agree in c places meet in such a value with a probability of 1 - (1 - 1/R)**c, whatever bands they
share or not, and near-duplicates agree in many. Pairs that meet and do not clearly differ are
compared exactly.
"""

from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit, uint32, uint64

from tamis.scoring.minhash import UInt32s
from tamis.scoring.plain_shingles import plain_jaccard
from tamis.scoring.shingles import ShingleSets, Shingling
from tamis.selectors.budgets import draws
from tamis.selectors.certificate import (
    PAIRED,
    SEED,
    Certificate,
    announced,
    giant_groups,
    missed_rows,
    shown_rows,
)
from tamis.selectors.duplicates import MapText, Ranking
from tamis.selectors.jaccard import exact_jaccard
from tamis.selectors.survivors import least_equal
from tamis.storage.grouping import Int32s
from tamis.storage.kernels import KERNEL, Bytes, Int64s, UInt64s, fmix32, fmix64

Float64s = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Values of signatures that are sampled from a table, about: where a tenth of the rows is dropped
#: and none is seen that should have been, the recall is stated as above .999. Unconfirmed.
VALUES = 1 << 16
#: Pairs whose signatures are compared, pairs that are compared exactly, and their shingles.
MAX_PAIRS, MAX_EXACT, MAX_SHINGLES = 1 << 20, 1 << 14, 1 << 23


@njit(**KERNEL)
def _hits(matrix, salt, limit):  # type: ignore[no-untyped-def]
    """Sampled values in every row."""
    count = np.zeros(matrix.shape[0], np.int32)
    for d in range(matrix.shape[0]):
        found = 0
        for k in range(matrix.shape[1]):
            found += fmix32(uint32(matrix[d, k] + salt[k])) <= limit
        count[d] = found
    return count


@njit(**KERNEL)
def _values(matrix, salt, limit, rows, first_row, value, row):  # type: ignore[no-untyped-def]
    at = 0
    for i in range(rows.shape[0]):
        d = rows[i]
        for k in range(matrix.shape[1]):
            if fmix32(uint32(matrix[d, k] + salt[k])) <= limit:
                value[at] = fmix64(uint64(matrix[d, k]) | uint64(k + 1) << uint64(32))
                row[at] = first_row + d
                at += 1


class SharedValues:
    """Every R-th value of the signatures of a table, and the rows that it occurs in.

    Args:
        rows: of the table; R is chosen so that about `VALUES` are kept.
    """

    def __init__(self, rows: int, num_perm: int) -> None:
        self.places = num_perm
        self.rate = min(1.0, VALUES / max(1, rows * num_perm))
        self._limit = np.uint32(min(2**32 - 1, round(self.rate * 2**32)))
        self._salt = np.random.RandomState(SEED).randint(0, 1 << 32, num_perm, dtype=np.uint32)
        self._parts: list[tuple[int, UInt64s, Int64s, Int64s, Bytes]] = []
        self._lock = Lock()

    def add(self, first_row: int, signatures: UInt32s) -> None:
        """Take in the signatures of a run of rows; threads may do so at once."""
        hits = _hits(signatures, self._salt, self._limit)
        rows = np.flatnonzero(hits)
        value, row = np.empty(hits.sum(), np.uint64), np.empty(hits.sum(), np.int64)
        _values(signatures, self._salt, self._limit, rows, first_row, value, row)
        sketch = (signatures[rows] & np.uint32(255)).astype(np.uint8)
        with self._lock:
            self._parts.append((first_row, value, row, rows + first_row, sketch))

    def all(self) -> tuple[UInt64s, Int64s, Int64s, Bytes]:
        """Sampled values with the row of each, those rows once (ascending), and their sketches."""
        parts = sorted(self._parts, key=lambda part: part[0])
        if not parts:
            none = np.zeros(0, np.int64)
            return none.astype(np.uint64), none, none, np.zeros((0, len(self._salt)), np.uint8)
        value, row, rows, sketch = (np.concatenate([p[i] for p in parts]) for i in range(1, 5))
        return value, row, rows, sketch


@njit(**KERNEL)
def _pairs(value, row, draw, paired, most, sketch, least, left, right, equal, cell, chance):  # type: ignore[no-untyped-def]
    """Pairs of rows that share a value and do not clearly differ, values in ascending order.

    Stops before the value at which more than `most` pairs were looked at or there is no room.
    Returns the number of pairs found, and of entries gone through.
    """
    found = looked = 0
    begin = 0
    while begin < value.shape[0]:
        end = begin
        while end < value.shape[0] and value[end] == value[begin]:
            end += 1
        size = end - begin
        taken = min(size, paired)
        if looked + taken * (taken - 1) // 2 > most:
            return found, begin
        looked += taken * (taken - 1) // 2
        share = 1.0
        if size > paired:
            order = np.argsort(draw[begin:end])[:paired]
            share = (paired / size) * ((paired - 1) / (size - 1))
        else:
            order = np.arange(size)
        before = found
        for i in range(taken):
            a = row[begin + order[i]]
            for j in range(i):
                b = row[begin + order[j]]
                same = 0
                for k in range(sketch.shape[1]):
                    same += sketch[a, k] == sketch[b, k]
                if same < least:
                    continue
                if found == left.shape[0]:
                    return before, begin
                left[found] = a
                right[found] = b
                equal[found] = same
                cell[found] = begin
                chance[found] = share
                found += 1
        begin = end
    return found, value.shape[0]


@dataclass
class _Suspects:
    """Pairs of rows that stay and may be near-duplicates, by the value that they met in.

    Attributes:
        left, right: rows of the table.
        equal: places in which their sketches agree.
        cell: number of the value, ascending.
        chance: that both are paired at the value.
        rate: share of the values of all signatures that was gone through.
    """

    left: Int64s
    right: Int64s
    equal: Int32s
    cell: Int64s
    chance: Float64s
    rate: float

    @classmethod
    def among(
        cls, kept: Mask, values: SharedValues, drawn: Float64s, threshold: float, counts: Int64s
    ) -> "_Suspects":
        """Pairs among the rows that stay."""
        value, row, rows, sketch = values.all()
        stays = kept[row]
        value, row = value[stays], row[stays]
        order = np.lexsort((row, value))
        value, row = value[order], row[order]
        left, right, cell = (np.empty(MAX_EXACT, np.int64) for _ in range(3))
        equal, chance = np.empty(MAX_EXACT, np.int32), np.empty(MAX_EXACT)
        found, gone = _pairs(
            value,
            np.searchsorted(rows, row),
            mixed(drawn[row], value),
            PAIRED,
            MAX_PAIRS,
            sketch,
            least_equal(sketch.shape[1], threshold),
            left,
            right,
            equal,
            cell,
            chance,
        )
        a, b = rows[left[:found]], rows[right[:found]]
        # A value stands at the place among all values that its hash says.
        through = 1.0 if gone == len(value) else float(value[gone]) / 2**64
        cost = np.cumsum(counts[a] + counts[b])
        if found and cost[-1] > MAX_SHINGLES:
            last = max(1, int(np.searchsorted(cost, MAX_SHINGLES)))
            if last < found:
                found = int(np.searchsorted(cell[:found], cell[last]))
                through = float(value[cell[last]]) / 2**64
        some = slice(0, found)
        return cls(
            a[some],
            b[some],
            equal[some],
            cell[some],
            chance[some],
            rate=values.rate * through,
        )


@njit(**KERNEL)
def mixed(drawn, value):  # type: ignore[no-untyped-def]
    """A draw for every row at every value that it has."""
    mixed = np.empty(drawn.shape[0], np.uint64)
    for i in range(drawn.shape[0]):
        mixed[i] = fmix64(uint64(drawn[i] * 2.0**53) ^ value[i])
    return mixed


def certify(
    kept: Mask,
    partner: Int64s,
    similarity: Float64s,
    values: SharedValues,
    counts: Int64s,
    ranking: Ranking,
    map_text: MapText,
    shingling: Shingling,
    *,
    threshold: float,
    rows: int,
    lengths: Float64s,
    characters: int,
    workers: int = 1,
) -> Certificate:
    """Draw the samples, read their texts in one pass, and say what they show.

    Nothing here depends on the order of the rows.

    Args:
        kept, partner, similarity: what was decided, by row of the table.
        counts: shingles of every row, repeats included.
        rows: dropped rows whose similarity is computed again.
        lengths: characters of every row.
        characters: of the texts from which that is done, at most; longer pairs are left out.
    """
    drawn = draws(ranking.id_hi, ranking.id_lo, ranking.copy.astype(np.uint32), SEED)
    dropped = np.flatnonzero(~kept)
    sample = dropped[np.argsort(drawn[dropped], kind="stable")[:rows]]
    sample = sample[_affordable(lengths[sample] + lengths[partner[sample]], characters)]
    suspects = _Suspects.among(kept, values, drawn, threshold, counts)
    giants = giant_groups(kept, partner, similarity, drawn)
    compared = np.unique(np.concatenate([suspects.left, suspects.right]))
    texts, sets = _read(
        np.concatenate([sample, partner[sample], shown_rows(giants)]),
        compared,
        counts,
        map_text,
        shingling,
    )
    right, off = _checked(sample, partner, similarity, texts, shingling, threshold)
    left, other = (np.searchsorted(compared, side) for side in (suspects.left, suspects.right))
    order = np.argsort(left, kind="stable")
    value = np.empty(len(left))
    value[order] = exact_jaccard(sets, left[order], other[order], workers)
    near = value >= threshold
    # Sketches agree in one of 255 places by chance.
    agree = suspects.equal[near] - (values.places - suspects.equal[near]) / 255
    missed, seen = missed_rows(
        suspects.left[near],
        suspects.right[near],
        1 - (1 - suspects.rate * suspects.chance[near]) ** agree,
        suspects.cell[near],
        ranking,
        unseen=1 - (1 - suspects.rate) ** (values.places * threshold),
        most=int(kept.sum()),
    )
    return Certificate(
        dropped=len(dropped),
        checked=len(sample),
        right=right,
        off=off,
        missed=missed,
        compared=len(value),
        seen=seen,
        giants=announced(giants, similarity, ranking, texts),
    )


def _read(
    as_texts: Int64s, as_sets: Int64s, counts: Int64s, map_text: MapText, shingling: Shingling
) -> tuple[dict[int, str], ShingleSets]:
    """Read rows once, some as they are and some as sets.

    Args:
        as_sets: ascending.

    Returns:
        Texts by row, and the sets of `as_sets`.
    """
    wanted = np.union1d(as_texts, as_sets)
    whole, cut = np.isin(wanted, as_texts), np.isin(wanted, as_sets)
    place = np.cumsum(cut) - 1
    sets = ShingleSets.room_for(counts[as_sets])
    texts: dict[int, str] = {}

    def take(text: pa.Array, at: Int64s, places: slice) -> None:
        some = np.flatnonzero(whole[places])
        found = text.take(pa.array(at[some])).to_pylist()
        texts.update(zip(wanted[places][some].tolist(), found, strict=True))
        some = np.flatnonzero(cut[places])
        if len(some):
            first = int(place[places.start + some[0]])
            sets.fill(slice(first, first + len(some)), text, at[some], shingling)

    map_text(wanted, take)
    return texts, sets


def _affordable(lengths: Float64s, characters: int) -> Mask:
    """Which pairs to compare, in their order, so that all together are no longer than allowed."""
    taken = np.zeros(len(lengths), np.bool_)
    for place, length in enumerate(lengths.tolist()):
        if length <= characters:
            taken[place] = True
            characters -= int(length)
    return taken


def _checked(
    sample: Int64s,
    partner: Int64s,
    similarity: Float64s,
    texts: dict[int, str],
    shingling: Shingling,
    threshold: float,
) -> tuple[int, float]:
    """Dropped rows compared in Python with their partners: how many are right, and how far off."""
    right = 0
    off = 0.0
    for row in sample.tolist():
        value = plain_jaccard(texts[row], texts[int(partner[row])], shingling)
        right += value >= threshold
        off = max(off, abs(value - float(similarity[row])))
    return right, off
