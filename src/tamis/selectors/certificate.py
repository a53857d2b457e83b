"""A certificate for a removal of near-duplicates: what it got wrong, with intervals, from samples.

**Precision**: of the rows dropped, the share that is at least as similar to its partner as the
threshold says. The similarity of a sample is computed once more from the texts, in plain Python.

**Recall**: of the rows that have a better-ranked near-duplicate among those that stay, the share
that was dropped: d / (d + m), where d rows were dropped and m rows that stay should have been. Rows
that stay and should not are rare, so that a sample of rows would hold none. What is sampled is what
they have in common: of all values at all places of the signatures every R-th, by a hash, wherever
it occurs. Two rows whose signatures agree in c places meet in such a value with a probability of
1 - (1 - 1/R)**c, whatever bands they share or not, and near-duplicates agree in many. Pairs that
meet and do not clearly differ are compared exactly. Each row found so stands for the inverse of
that probability (Horvitz and Thompson 1952), and the bounds of m follow from the binomial.
"""

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit, uint32, uint64

from tamis.scoring.minhash import UInt32s
from tamis.scoring.plain_shingles import plain_jaccard
from tamis.scoring.shingles import ShingleSets, Shingling
from tamis.selectors.budgets import draws
from tamis.selectors.duplicates import MapText, Ranking
from tamis.selectors.intervals import CONFIDENCE, Interval, number_of, share_of
from tamis.selectors.jaccard import exact_jaccard
from tamis.selectors.survivors import least_equal
from tamis.storage.grouping import Int32s
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import KERNEL, Bytes, Int64s, UInt64s, fmix32, fmix64

Float64s = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Values of signatures that are sampled from a table, about. With them a recall of 1 is stated as
#: above .9995 where a tenth of the rows is dropped, for a hundredth of a run's time. Unconfirmed.
VALUES = 1 << 18
#: Rows that are paired at each value; of more that share it a sample by hash.
PAIRED = 64
#: Pairs whose signatures are compared, pairs that are compared exactly, and their shingles.
MAX_PAIRS, MAX_EXACT, MAX_SHINGLES = 1 << 20, 1 << 14, 1 << 23
#: A group is announced from so many rows, or from this share of all rows if it has some.
GIANT_ROWS, GIANT_SHARE, GIANT_LEAST = 1000, 0.01, 100
#: Groups that are announced, and characters of a text that are shown.
GIANTS, EXCERPT = 5, 120
_SEED = 20_26


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
        self.rate = min(1.0, VALUES / max(1, rows * num_perm))
        self._limit = np.uint32(min(2**32 - 1, round(self.rate * 2**32)))
        self._salt = np.random.RandomState(_SEED).randint(0, 1 << 32, num_perm, dtype=np.uint32)
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
        places: in a signature.
    """

    left: Int64s
    right: Int64s
    equal: Int32s
    cell: Int64s
    chance: Float64s
    rate: float
    places: int

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
            _mixed(drawn[row], value),
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
            places=sketch.shape[1],
        )


@njit(**KERNEL)
def _mixed(drawn, value):  # type: ignore[no-untyped-def]
    """A draw for every row at every value that it has."""
    mixed = np.empty(drawn.shape[0], np.uint64)
    for i in range(drawn.shape[0]):
        mixed[i] = fmix64(uint64(drawn[i] * 2.0**53) ^ value[i])
    return mixed


@dataclass
class Certificate:
    """What a sample says of a stage's decisions.

    Attributes:
        dropped: rows that the stage drops.
        checked, right: dropped rows whose similarity was computed again, and those among them that
            are as similar as the threshold asks.
        off: largest difference to the similarity that was stored.
        missed: rows that stay although a better one of which they are a near-duplicate does.
        compared: pairs of rows that stay which were compared exactly.
        seen: rows among them that should have been dropped.
        giants: groups that are unusually large.
    """

    dropped: int
    checked: int
    right: int
    off: float
    missed: Interval
    compared: int
    seen: int
    giants: list[dict[str, Any]] = field(default_factory=list)

    @property
    def precision(self) -> Interval:
        return share_of(self.right, self.checked)

    @property
    def recall(self) -> Interval:
        """The share of the rows to drop that were dropped."""
        few, estimate, many = self.missed.low, self.missed.estimate, self.missed.high

        def share(missed: float) -> float:
            whole = self.dropped + missed
            return self.dropped / whole if whole else float("nan")

        if not self.dropped and not estimate:
            return Interval(float("nan"), 0.0, 1.0)
        return Interval(share(estimate), share(many), share(few))

    def as_report(self) -> dict[str, Any]:
        """Plain JSON; an estimate is null where there was nothing to estimate it from."""

        def told(interval: Interval, digits: int) -> dict[str, float | None]:
            return {
                name: None if value != value else round(value, digits)
                for name, value in interval._asdict().items()
            }

        return {
            "confidence": CONFIDENCE,
            "precision": {
                **told(self.precision, 6),
                "checked": self.checked,
                "right": self.right,
                "largest_difference": self.off,
            },
            "recall": {
                **told(self.recall, 6),
                "missed": told(self.missed, 1),
                "compared": self.compared,
                "seen": self.seen,
            },
            "giant_groups": self.giants,
        }


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
    characters: int,
    workers: int = 1,
) -> Certificate:
    """Draw the samples, read their texts in one pass, and say what they show.

    Nothing here depends on the order of the rows.

    Args:
        kept, partner, similarity: what was decided, by row of the table.
        counts: shingles of every row, repeats included.
        rows: dropped rows whose similarity is computed again.
        characters: of the texts from which that is done, at most; longer pairs are left out.
    """
    drawn = draws(ranking.id_hi, ranking.id_lo, ranking.copy.astype(np.uint32), _SEED)
    dropped = np.flatnonzero(~kept)
    sample = dropped[np.argsort(drawn[dropped], kind="stable")[:rows]]
    suspects = _Suspects.among(kept, values, drawn, threshold, counts)
    giants = _giant_groups(dropped, partner, similarity, drawn)
    shown = np.array([row for giant in giants for row in giant[:2]], np.int64)
    wanted, texts, sets = _read(
        np.concatenate([sample, partner[sample], shown]),
        np.concatenate([suspects.left, suspects.right]),
        counts,
        map_text,
        shingling,
    )
    checked, right, off = _checked(
        *(sample, partner, similarity, texts, shingling, threshold, characters)
    )
    left, other = (np.searchsorted(wanted, side) for side in (suspects.left, suspects.right))
    order = np.argsort(left, kind="stable")
    value = np.empty(len(left))
    value[order] = exact_jaccard(sets, left[order], other[order], workers)
    missed, seen = _missed(suspects, value >= threshold, ranking, threshold, int(kept.sum()))
    ids = hex_ids(ranking.id_hi[shown], ranking.id_lo[shown])
    return Certificate(
        dropped=len(dropped),
        checked=checked,
        right=right,
        off=off,
        missed=missed,
        compared=len(value),
        seen=seen,
        giants=[
            {
                "rows": size,
                "share": round(size / len(kept), 6),
                "row_id": ids[2 * number],
                "text": _excerpt(texts[stays]),
                "least_similar": {
                    "similarity": float(similarity[least]),
                    "row_id": ids[2 * number + 1],
                    "text": _excerpt(texts[least]),
                },
            }
            for number, (stays, least, size) in enumerate(giants)
        ],
    )


def _read(
    as_texts: Int64s, as_sets: Int64s, counts: Int64s, map_text: MapText, shingling: Shingling
) -> tuple[Int64s, dict[int, str], ShingleSets]:
    """Read rows once, some as they are and some as sets.

    Returns:
        All of them, ascending; texts by row; and sets, one for each, empty where not asked for.
    """
    wanted = np.union1d(as_texts, as_sets)
    whole, cut = np.isin(wanted, as_texts), np.isin(wanted, as_sets)
    sets = ShingleSets.room_for(np.where(cut, counts[wanted], 0))
    texts: dict[int, str] = {}

    def take(text: pa.Array, at: Int64s, places: slice) -> None:
        for place in np.flatnonzero(whole[places]).tolist():
            texts[int(wanted[places.start + place])] = text[int(at[place])].as_py()
        for place in np.flatnonzero(cut[places]).tolist():
            here = places.start + place
            sets.fill(slice(here, here + 1), text, at[place : place + 1], shingling)

    map_text(wanted, take)
    return wanted, texts, sets


def _checked(
    sample: Int64s,
    partner: Int64s,
    similarity: Float64s,
    texts: dict[int, str],
    shingling: Shingling,
    threshold: float,
    characters: int,
) -> tuple[int, int, float]:
    """Dropped rows compared in Python with their partners, as many as the characters allow."""
    checked = right = 0
    off = 0.0
    for row in sample.tolist():
        a, b = texts[row], texts[int(partner[row])]
        if len(a) + len(b) > characters:
            continue
        characters -= len(a) + len(b)
        value = plain_jaccard(a, b, shingling)
        checked += 1
        right += value >= threshold
        off = max(off, abs(value - float(similarity[row])))
    return checked, right, off


def _missed(
    suspects: _Suspects, near: Mask, ranking: Ranking, threshold: float, most: int
) -> tuple[Interval, int]:
    """How many rows stay that should have been dropped, and how many of them were seen.

    Args:
        near: which of the pairs are near-duplicates.
        most: rows that stay.
    """
    left, right = suspects.left[near], suspects.right[near]
    places = suspects.places
    if not len(left):
        return number_of(0, 1 - (1 - suspects.rate) ** (places * threshold), most), 0
    rows = np.unique(np.concatenate([left, right]))
    rank = np.empty(len(rows), np.int64)
    rank[np.searchsorted(rows, ranking.order(rows))] = np.arange(len(rows))
    a, b = (rank[np.searchsorted(rows, side)] for side in (left, right))
    worse, name = np.unique(np.where(a > b, left, right), return_inverse=True)
    # Sketches agree in one of 255 places by chance.
    agree = suspects.equal[near] - (places - suspects.equal[near]) / 255
    meet = 1 - (1 - suspects.rate * suspects.chance[near]) ** agree
    chance = np.zeros(len(worse))
    np.maximum.at(chance, name, meet)
    first = np.full(len(worse), np.iinfo(np.int64).max)
    np.minimum.at(first, name, suspects.cell[near])
    estimate = float((1 / chance).sum())
    # Rows that were found at one value were found together or not at all.
    _, together = np.unique(first, return_counts=True)
    spread = float((together**2).sum() / together.sum())
    seen = len(worse)
    bounds = number_of(round(seen / spread), seen / estimate, most)
    return (
        Interval(
            min(estimate, most),
            max(float(seen), min(estimate, bounds.low * spread)),
            min(float(most), max(estimate, bounds.high * spread)),
        ),
        seen,
    )


def _giant_groups(
    dropped: Int64s, partner: Int64s, similarity: Float64s, drawn: Float64s
) -> list[tuple[int, int, int]]:
    """The largest groups: the row that stays, the least similar of the others, and its size."""
    stays, count = np.unique(partner[dropped], return_counts=True)
    size = count + 1
    share = GIANT_SHARE * len(partner)
    giant = np.flatnonzero((size >= GIANT_ROWS) | ((size >= GIANT_LEAST) & (size >= share)))
    giant = giant[np.lexsort((drawn[stays[giant]], -size[giant]))][:GIANTS]
    found = []
    for at in giant.tolist():
        members = dropped[partner[dropped] == stays[at]]
        least = members[np.lexsort((drawn[members], similarity[members]))[0]]
        found.append((int(stays[at]), int(least), int(size[at])))
    return found


def _excerpt(text: str) -> str:
    """The beginning of a text, on one line, without what a terminal would obey."""
    line = " ".join(text[: 4 * EXCERPT].split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"
