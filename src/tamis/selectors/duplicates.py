"""From signatures to survivors: the near-duplicate search over whole columns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.scoring.shingles import ShingleSets, Shingling
from tamis.selectors.banding import Banding, Buckets, Digests, bucket_lists, shared_buckets
from tamis.selectors.components import (
    BATCH_BYTES,
    SHINGLES_AT_ONCE,
    Batches,
    SetSource,
    SpilledSets,
)
from tamis.selectors.jaccard import Float64s, exact_jaccard
from tamis.selectors.known_pairs import Known, Verify, foresee, remembering
from tamis.selectors.survivors import Survival, survivors
from tamis.storage.edges import Edges
from tamis.storage.errors import RunError
from tamis.storage.grouping import Int32s, first_with_pair
from tamis.storage.kernels import Bytes, Int64s, UInt64s, in_threads
from tamis.storage.memory import show_bytes
from tamis.storage.spill import Spill, SpillRoom

#: Where pairs are known, so many batches, each of that part of the usual size, are decided at once;
#: the candidates of so many are held (a third of what deciding them takes).
BATCHES_AT_ONCE, BATCHES_HELD = 4, 8

#: Calls a function with the texts of the rows asked for (ascending): a text array, positions in
#: it, and the places among the rows asked for that they are.
MapText = Callable[[Int64s, Callable[[pa.Array, Int64s, slice], None]], None]


@dataclass(frozen=True)
class Duplicates:
    """What was found; rows are numbered as they came in.

    Attributes:
        kept: rows that stay.
        partner: for a dropped row, the row that stays in its place; -1 for a kept row.
        similarity: exact Jaccard similarity to the partner; nan for a kept row.
        edges: verified pairs down to the edge floor (the most similar of each row); the first row
            of a pair ranks below the second.
        counts: rows, equal sets, candidate rows, rows of the largest component of candidates,
            verified pairs, rounds, bucket splits, and pairs down to the edge floor that are not
            among the edges.
    """

    kept: npt.NDArray[np.bool_]
    partner: Int64s
    similarity: Float64s
    edges: Edges
    counts: dict[str, int]

    def take(self, ranked: Int64s, outcome: Survival) -> None:
        """Take in what was decided on some rows, given from the best rank down."""
        lost = np.flatnonzero(~outcome.kept)
        self.kept[ranked[lost]] = False
        self.partner[ranked[lost]] = ranked[outcome.partner[lost]]
        self.similarity[ranked[lost]] = outcome.similarity[lost]
        a, b, value = outcome.edges
        self.edges.add(ranked[a], ranked[b], value)
        self.counts["rounds"] = max(self.counts["rounds"], outcome.rounds)
        self.counts["verified_pairs"] += outcome.verified
        self.counts["bucket_splits"] += outcome.splits
        self.counts["edges_left_out"] += outcome.edges_left_out


@dataclass(frozen=True)
class Ranking:
    """Which of two duplicates stays: higher `value` first, ties by id, then by copy.

    `value` is float64 (nan ranks last); `id_hi`, `id_lo` are uint64, `copy` any integer.
    """

    value: Float64s
    id_hi: UInt64s
    id_lo: UInt64s
    copy: npt.NDArray[np.integer]

    def of(self, rows: Int64s) -> "Ranking":
        """The ranks of some rows, numbered anew."""
        return Ranking(self.value[rows], self.id_hi[rows], self.id_lo[rows], self.copy[rows])

    def order(self, rows: Int64s) -> Int64s:
        """`rows` sorted from the best rank down."""
        value = self.value[rows]
        worst = np.isnan(value)
        keys = (self.copy[rows], self.id_lo[rows], self.id_hi[rows], -np.where(worst, 0, value))
        return rows[np.lexsort((*keys, worst))]


def _collapse(digests: Digests, ranking: Ranking) -> tuple[Int64s, Int64s, Int64s]:
    """Rows with equal shingle multisets: (those left, those collapsed, what stands for them).

    Equality is of 128 bits over signature and multiset, together with the number of shingles.
    """
    first = first_with_pair(digests.whole, digests.multiset)
    repeated = first != np.arange(len(first), dtype=np.int32)
    repeats = np.flatnonzero(repeated)
    if len(repeats) == 0:
        return np.arange(len(first), dtype=np.int64), repeats, repeats
    several = repeated.copy()
    several[first[repeats]] = True
    by_rank = ranking.order(np.flatnonzero(several))
    best = np.full(len(first), -1, np.int32)
    best[first[by_rank[::-1]]] = by_rank[::-1]  # the best rank is written last
    several = np.flatnonzero(several)
    stands_for = best[first[several]].astype(np.int64)
    stays = stands_for == several
    left = np.ones(len(first), np.bool_)
    left[several[~stays]] = False
    return np.flatnonzero(left), several[~stays], stands_for[~stays]


def _verifier(ranked: Int64s, counts: Int64s, sets_of: SetSource, workers: int) -> Verify:
    """Exact similarity of pairs of ranks, in blocks that bound the sets in memory."""

    def verify(left: Int32s, right: Int32s) -> Float64s:
        values = np.empty(len(left), np.float64)
        again = np.zeros(len(left), np.bool_)
        again[1:] = left[1:] == left[:-1]
        cost = np.cumsum(counts[ranked[right]] + np.where(again, 0, counts[ranked[left]]))
        begin = 0
        while begin < len(left):
            spent = cost[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(cost, spent + SHINGLES_AT_ONCE)))
            block = slice(begin, end)
            a, b = ranked[left[block]], ranked[right[block]]
            needed = np.zeros(len(counts), np.bool_)
            needed[a] = needed[b] = True
            place = np.cumsum(needed) - 1
            sets = sets_of(np.flatnonzero(needed))
            values[block] = exact_jaccard(sets, place[a], place[b], workers)
            begin = end
        return values

    return verify


@dataclass(frozen=True)
class Candidates:
    """What signatures say of a batch of rows, which share buckets with each other only.

    Attributes:
        ranked: the rows, numbered as they came in, from the best rank down.
        buckets: rows that share a band, numbered by rank.
        component: int32, by rank, which rows can have to do with each other.
        sketch: ``(rows, num_perm)`` uint8 by rank, low bytes of the signatures.
        counts: shingles of every row as it came in, repeats included.
    """

    ranked: Int64s
    buckets: Buckets
    component: Int32s
    sketch: Bytes
    banding: Banding
    counts: Int64s

    @classmethod
    def of_batch(
        cls,
        batches: Batches,
        number: int,
        keys: list[Spill],
        sketch: Spill,
        banding: Banding,
        ranking: Ranking,
        counts: Int64s,
        workers: int = 1,
    ) -> "Candidates":
        """Bring a batch's rows into rank order and list their buckets.

        Args:
            keys, sketch: of `Digests`, in the order of batches.
            counts: shingles of every row of the table.
        """
        here = batches.of(number)
        rows, component = batches.sorted[here], batches.component[here]
        ranked = ranking.of(rows).order(np.arange(len(rows), dtype=np.int64))
        place = np.empty(len(rows), np.int32)
        place[ranked] = np.arange(len(ranked), dtype=np.int32)
        shared = shared_buckets(
            lambda band: keys[band].get(here.start, here.stop), len(keys), workers
        )
        return cls(
            ranked,
            bucket_lists(shared, place, len(ranked)),
            (component - component.min())[ranked],
            sketch.get(here.start, here.stop)[ranked],
            banding,
            counts[rows],
        )

    def survivors(
        self,
        verify: Verify,
        threshold: float,
        edge_floor: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> Survival:
        """See `survivors`."""
        return survivors(
            self.buckets,
            self.component,
            self.sketch,
            verify,
            banding=self.banding,
            threshold=threshold,
            edge_floor=edge_floor,
            progress=progress,
        )


@dataclass(frozen=True)
class _Foreseen:
    """A batch whose rounds were gone through with guesses.

    Attributes:
        ranked: rows of the table from the best rank down.
        outcome: what was decided, with guesses.
        left, right: pairs of the table's rows that were guessed at.
    """

    ranked: Int64s
    candidates: Candidates
    outcome: Survival
    left: Int64s
    right: Int64s


@dataclass(frozen=True)
class _KnownPairs:
    """Decides batches of which pairs are known: texts are read once, for those that are missing.

    What is known changes how much is compared, not what is found.

    Attributes:
        batch: rows of a batch from the best rank down, and its candidates.
    """

    known: Known
    batch: Callable[[int], tuple[Int64s, Candidates]]
    counts: Int64s
    map_text: MapText
    shingling: Shingling
    threshold: float
    edge_floor: float
    workers: int

    def decide(self, batches: int) -> Iterator[tuple[Int64s, Survival]]:
        """Go through all batches with guesses, compare what they lack, and decide them."""
        if not batches:
            return
        workers = min(self.workers, BATCHES_AT_ONCE)
        if batches <= BATCHES_HELD:
            ahead = in_threads(self._look_ahead, range(batches), workers)
            self._compare([(batch.left, batch.right) for batch in ahead])
            yield from in_threads(self._finish, ahead, workers)
            return

        def lacks(number: int) -> tuple[Int64s, Int64s]:
            found = self._look_ahead(number)
            return found.left, found.right

        self._compare(in_threads(lacks, range(batches), workers))
        for first in range(0, batches, workers):
            some = range(first, min(first + workers, batches))
            yield from in_threads(lambda number: self._survive(*self.batch(number)), some, workers)

    def _look_ahead(self, number: int) -> _Foreseen:
        ranked, candidates = self.batch(number)
        run = partial(candidates.survivors, threshold=self.threshold, edge_floor=self.edge_floor)
        outcome, left, right = foresee(
            run, candidates.sketch, self.known.of(ranked), self.threshold
        )
        return _Foreseen(ranked, candidates, outcome, ranked[left], ranked[right])

    def _finish(self, batch: _Foreseen) -> tuple[Int64s, Survival]:
        if not len(batch.left):
            return batch.ranked, batch.outcome
        return self._survive(batch.ranked, batch.candidates)

    def _survive(self, ranked: Int64s, candidates: Candidates) -> tuple[Int64s, Survival]:
        verify = remembering(self._verifier(ranked, 1), self.known.of(ranked))
        return ranked, candidates.survivors(verify, self.threshold, self.edge_floor)

    def _compare(self, pairs: list[tuple[Int64s, Int64s]]) -> None:
        """Compare pairs of the table's rows, and know them from now on."""
        none = np.zeros(0, np.int64)
        left, right = (np.concatenate([none, *side]) for side in zip(*pairs, strict=True))
        rows, place = np.unique(np.concatenate([left, right]), return_inverse=True)
        a, b = place[: len(left)].astype(np.int32), place[len(left) :].astype(np.int32)
        order = np.lexsort((b, a))
        verify = remembering(self._verifier(rows, self.workers), self.known.of(rows))
        verify(a[order], b[order])

    def _verifier(self, rows: Int64s, workers: int) -> Verify:
        """Exact similarity of pairs of some rows, from their texts."""

        def sets_of(wanted: Int64s) -> ShingleSets:
            sets = ShingleSets.room_for(self.counts[wanted])
            self.map_text(
                wanted, lambda text, at, places: sets.fill(places, text, at, self.shingling)
            )
            return sets

        return _verifier(rows, self.counts, sets_of, workers)


def find_duplicates(
    digests: Digests,
    counts: Int64s,
    ranking: Ranking,
    map_text: MapText,
    shingling: Shingling,
    room: SpillRoom,
    *,
    threshold: float,
    edge_floor: float,
    spare: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    known: Known | None = None,
) -> Duplicates:
    """Collapse equal sets, join what shares a bucket, and decide batch by batch.

    What is found does not depend on the size of a batch.

    Args:
        digests: of all rows; its spills are let go of.
        counts: shingles of every row, repeats included.
        map_text: calls a function with the texts of some rows.
        spare: bytes that a component may take beyond a batch; any number if not given.
        progress: called with rows decided and rows in all.
        known: pairs that were compared before. Texts are then read only where others are missing.

    Raises:
        RunError: if a component takes more.
    """
    left, collapsed, stand_in = _collapse(digests, ranking)
    # With known pairs no sets are held, and several smaller batches are decided at once.
    limit, held = (BATCH_BYTES, counts)
    if known is not None:
        limit, held = BATCH_BYTES // BATCHES_AT_ONCE, np.zeros_like(counts)
    batches = Batches.find(digests, left, held, limit, workers)
    del left, held
    if spare is not None and batches.most_bytes > BATCH_BYTES + spare:
        raise RunError(
            f"{batches.largest:,} rows are joined by what they have in common (one template, or "
            f"copies of copies) and must be decided together, which may take "
            f"{show_bytes(batches.most_bytes)}; {show_bytes(BATCH_BYTES + spare)} are left",
            where="memory",
            mend=f"raise --memory by {show_bytes(batches.most_bytes - BATCH_BYTES - spare)}, or "
            "have an earlier stage remove what the rows share",
        )
    *keys, sketch = in_threads(
        lambda spill: batches.sort(spill, room), [*digests.keys, digests.sketch], workers
    )

    at_a_time = 1 if known is None else min(workers, BATCHES_AT_ONCE)

    def batch(number: int) -> tuple[Int64s, Candidates]:
        candidates = Candidates.of_batch(
            *(batches, number, keys, sketch, digests.banding, ranking, counts),
            max(1, workers // at_a_time),
        )
        return batches.sorted[batches.of(number)][candidates.ranked], candidates

    rows = len(counts)
    found = Duplicates(
        kept=np.ones(rows, np.bool_),
        partner=np.full(rows, -1, np.int64),
        similarity=np.full(rows, np.nan),
        edges=Edges(room.folder),
        counts={
            "rows": rows,
            "equal_sets": len(collapsed),
            "candidates": len(batches.rows),
            "largest_component": batches.largest,
            "verified_pairs": 0,
            "rounds": 0,
            "bucket_splits": 0,
            "edges_left_out": 0,
        },
    )
    found.edges.add(collapsed, stand_in, np.ones(len(collapsed)))
    if known is not None:
        again = _KnownPairs(
            known, batch, counts, map_text, shingling, threshold, edge_floor, workers
        )
        for ranked, outcome in again.decide(len(batches)):
            found.take(ranked, outcome)
    else:
        sets = SpilledSets(batches, counts[batches.sorted], room)
        map_text(batches.rows, partial(sets.fill, shingling=shingling))
        for number in range(len(batches)):
            ranked, candidates = batch(number)
            verify = _verifier(candidates.ranked, candidates.counts, sets.of(number), workers)
            shown = _shifted(progress, batches.of(number).start, len(batches.rows))
            found.take(ranked, candidates.survivors(verify, threshold, edge_floor, shown))
        sets.close()
    for spill in (*keys, sketch):
        spill.close()
    found.kept[collapsed] = False
    stays = found.kept[stand_in]
    found.partner[collapsed] = np.where(stays, stand_in, found.partner[stand_in])
    found.similarity[collapsed] = np.where(stays, 1.0, found.similarity[stand_in])
    return found


def _shifted(
    progress: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, of: progress(before + done, total)
