"""A certificate for a removal of duplicates: what it got wrong, with intervals, from samples.

**Precision**: of the rows dropped, the share that is at least as similar to its partner as the
threshold says. The similarity of a sample is computed once more on another path.

**Recall**: of the rows that have a better-ranked duplicate among those that stay, the share that
was dropped: d / (d + m), where d rows were dropped and m rows that stay should have been. Rows
that stay and should not are rare, so that a sample of rows would hold none. Who draws the sample
(`near_certificate`, `vector_certificate`) therefore samples meeting places that duplicates are
likely to share, by hash, and knows the probability with which two rows met in one. Each row found
so stands for its inverse (Horvitz and Thompson 1952); the bounds of m follow from the binomial.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tamis.selectors.duplicates import Ranking
from tamis.selectors.intervals import CONFIDENCE, Interval, number_of, share_of
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s

Float64s = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Rows that are paired at a meeting place; of more that meet there a sample by hash.
PAIRED = 64
#: A group is announced from so many rows, or from this share of all rows if it has some.
GIANT_ROWS, GIANT_SHARE, GIANT_LEAST = 1000, 0.01, 100
#: Groups that are announced, and characters of a text that are shown.
GIANTS, EXCERPT = 5, 120
#: Of everything drawn here.
SEED = 20_26


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


def missed_rows(
    left: Int64s,
    right: Int64s,
    chance: Float64s,
    place: Int64s,
    ranking: Ranking,
    *,
    unseen: float,
    most: int,
) -> tuple[Interval, int]:
    """How many rows stay that should have been dropped, and how many of them were seen.

    Args:
        left, right: pairs of duplicates of which both stay.
        chance: with which each of them meets anywhere.
        place: number of the meeting place.
        unseen: the same chance for a pair just at the threshold.
        most: rows that stay.
    """
    if not len(left):
        return number_of(0, unseen, most), 0
    rows = np.unique(np.concatenate([left, right]))
    rank = np.empty(len(rows), np.int64)
    rank[np.searchsorted(rows, ranking.order(rows))] = np.arange(len(rows))
    a, b = (rank[np.searchsorted(rows, side)] for side in (left, right))
    worse, name = np.unique(np.where(a > b, left, right), return_inverse=True)
    best = np.zeros(len(worse))
    np.maximum.at(best, name, chance)
    first = np.full(len(worse), np.iinfo(np.int64).max)
    np.minimum.at(first, name, place)
    estimate = float((1 / best).sum())
    # Rows that were found at one place were found together or not at all.
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


@dataclass
class Giant:
    """A large group: the row that stays, the least similar of the others, and its size."""

    stays: int
    least: int
    size: int


def giant_groups(kept: Mask, partner: Int64s, similarity: Float64s, drawn: Float64s) -> list[Giant]:
    """The largest of the groups that are to be announced."""
    dropped = np.flatnonzero(~kept)
    stays, count = np.unique(partner[dropped], return_counts=True)
    size = count + 1
    share = GIANT_SHARE * len(partner)
    giant = np.flatnonzero((size >= GIANT_ROWS) | ((size >= GIANT_LEAST) & (size >= share)))
    giant = giant[np.lexsort((drawn[stays[giant]], -size[giant]))][:GIANTS]
    found = []
    for at in giant.tolist():
        members = dropped[partner[dropped] == stays[at]]
        least = members[np.lexsort((drawn[members], similarity[members]))[0]]
        found.append(Giant(int(stays[at]), int(least), int(size[at])))
    return found


def shown_rows(giants: list[Giant]) -> Int64s:
    """The rows whose texts are shown."""
    return np.array([row for giant in giants for row in (giant.stays, giant.least)], np.int64)


def announced(
    giants: list[Giant], similarity: Float64s, ranking: Ranking, texts: dict[int, str]
) -> list[dict[str, Any]]:
    """Groups as a report holds them.

    Args:
        texts: of `shown_rows`.
    """

    def told(row: int) -> dict[str, str]:
        here = slice(row, row + 1)
        (row_id,) = hex_ids(ranking.id_hi[here], ranking.id_lo[here])
        return {"row_id": row_id, "text": _excerpt(texts[row])}

    return [
        {
            "rows": giant.size,
            "share": round(giant.size / len(similarity), 6),
            **told(giant.stays),
            "least_similar": {
                "similarity": float(similarity[giant.least]),
                **told(giant.least),
            },
        }
        for giant in giants
    ]


def _excerpt(text: str) -> str:
    """The beginning of a text, on one line, without what a terminal would obey."""
    line = " ".join(text[: 4 * EXCERPT].split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"
