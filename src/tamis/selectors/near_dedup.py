"""Near-duplicate removal: MinHash candidates, exact Jaccard, greedy survivors."""

import os
from itertools import pairwise
from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from tamis.scoring.minhash import MinHashSignature, Signatures
from tamis.scoring.operator import RowScorer
from tamis.scoring.shingles import ShingleSets
from tamis.scoring.words import UnicodeForm, Unit
from tamis.selectors.banding import Banding
from tamis.selectors.duplicates import (
    SHINGLES_AT_ONCE,
    Candidates,
    Duplicates,
    Ranking,
    decide,
)
from tamis.selectors.ranks import RankedSelector
from tamis.selectors.resemblance import Resemblance
from tamis.selectors.survivors import PAIRS_PER_ROW
from tamis.selectors.table import Table
from tamis.storage.kernels import Int64s, chunks_of, even_cuts, in_threads, string_buffers
from tamis.storage.ledger import Drops

#: Edges are kept this far below the threshold, so that it can be moved later.
EDGE_MARGIN = 0.1


def near_duplicates(
    text: pa.Array | pa.ChunkedArray,
    threshold: float = 0.8,
    *,
    ngram: int | None = None,
    unit: Unit = "word",
    unicode_form: UnicodeForm = "NFKD",
    edge_floor: float | None = None,
    workers: int | None = None,
) -> Duplicates:
    """Find the near-duplicates of a text column held in memory.

    The longest text of a cluster stays, the first of several equally long ones.

    Args:
        text: string array without nulls.
        threshold: exact Jaccard similarity of shingle sets from which two rows are duplicates.
        ngram: tokens per shingle; 5 words or 24 characters if not given.
        edge_floor: smallest similarity reported as an edge; `threshold` - 0.1 if not given.
        workers: threads; all cores if not given.

    Example:
        >>> import pyarrow as pa
        >>> found = near_duplicates(pa.array(["a b c d e f", "A b, c d e f!", "something else"]))
        >>> found.kept.tolist(), found.partner.tolist()
        ([False, True, True], [1, -1, -1])
    """
    workers = workers or len(os.sched_getaffinity(0))
    signal = MinHashSignature(ngram=ngram, unit=unit, unicode_form=unicode_form)
    pieces = [
        chunk.slice(first, last - first)
        for chunk in chunks_of(text)
        for first, last in even_cuts(string_buffers(chunk)[1], workers * 8)
    ]
    start = np.cumsum([0, *map(len, pieces)])
    rows = int(start[-1])
    found = Signatures.room_for(rows, signal.num_perm)
    places = [slice(int(a), int(b)) for a, b in pairwise(start)]

    def sign(job: tuple[slice, pa.Array], found: Signatures = found) -> None:
        found.fill(*job, signal)

    in_threads(sign, list(zip(places, pieces, strict=True)), workers)

    position = np.arange(rows, dtype=np.uint64)
    copy = np.zeros(rows, np.uint32)
    candidates = Candidates.find(
        found,
        Ranking(found.characters.astype(np.float64), position, position, copy),
        Banding.finer_than(threshold, signal.num_perm),
        workers,
    )
    del found, sign  # signatures are most of what is in memory

    def sets_of(wanted: Int64s) -> ShingleSets:
        sets = ShingleSets.room_for(candidates.counts[wanted])
        cuts = np.searchsorted(wanted, start)
        in_threads(
            lambda i: sets.fill(
                slice(cuts[i], cuts[i + 1]),
                pieces[i],
                wanted[cuts[i] : cuts[i + 1]] - start[i],
                signal.shingling,
            ),
            np.flatnonzero(np.diff(cuts)).tolist(),
            workers,
        )
        return sets

    return decide(
        candidates,
        sets_of,
        threshold=threshold,
        edge_floor=threshold - EDGE_MARGIN if edge_floor is None else edge_floor,
        workers=workers,
    )


class NearDedup(RankedSelector, Resemblance):
    """Keep one of the rows whose texts have nearly the same word n-grams.

    Candidates share a band of their MinHash signatures; every candidate pair that the signatures
    do not clearly reject is compared by the exact Jaccard similarity of its shingle sets. A row
    is dropped if a better-ranked row that stays is at least `threshold` similar: survivors are
    the greedy maximal independent set of the verified pairs in rank order.
    """

    operator: Literal["near_dedup"] = "near_dedup"
    edge_floor: float | None = Field(
        default=None, ge=0, le=1, description="pairs are stored down to it; threshold - 0.1"
    )
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Broder 1997 (resemblance); Lee et al. 2022, Deduplicating training data makes language "
        "models better (word 5-grams, threshold .8); Li and König 2010 (b-bit sketches)"
    )
    roles: ClassVar[tuple[str, ...]] = ("text",)

    @model_validator(mode="after")
    def _floor_fits(self) -> Self:
        if self.edge_floor is not None and self.edge_floor > self.threshold:
            raise ValueError("edge_floor lies above the threshold")
        return self

    def memory(self, rows: int, text_bytes: int) -> int:
        """Signatures, sketches, buckets, pairs and results a row; the sets verified at a time.

        Bounded by rows that all have a partner in every band: most corpora need half of it.
        """
        # Signatures are let go of before pairs are drawn.
        or_pairs = max(4 * self.num_perm, 70 * PAIRS_PER_ROW)
        a_row = self.num_perm + 28 * self.banding.bands + or_pairs + 150
        sets = min(8 * SHINGLES_AT_ONCE, 2 * text_bytes)
        return rows * a_row + sets

    def signals(self) -> tuple[RowScorer, ...]:
        return (self.signal,)

    def select(self, table: Table) -> Drops:
        signal = self.signal
        found = Signatures.room_for(len(table), self.num_perm)
        done = 0
        for part in table.signal(signal):
            found.put(slice(done, done + part.num_rows), part)
            done += part.num_rows

        lengths = found.characters.astype(np.float64)
        ranking = self.ranking(table, lengths)
        candidates = Candidates.find(found, ranking, self.banding, table.workers)
        del found  # its signatures are most of what is in memory

        def sets_of(wanted: Int64s) -> ShingleSets:
            sets = ShingleSets.room_for(candidates.counts[wanted])
            table.map_text(
                "text",
                wanted,
                lambda text, rows, places: sets.fill(places, text, rows, signal.shingling),
            )
            return sets

        floor = self.threshold - EDGE_MARGIN if self.edge_floor is None else self.edge_floor
        duplicates = decide(
            candidates,
            sets_of,
            threshold=self.threshold,
            edge_floor=floor,
            workers=table.workers,
            progress=lambda decided, of: table.progress("duplicates decided", decided, of),
        )
        lost = np.flatnonzero(~duplicates.kept)
        return Drops.of(
            lost,
            "",
            value=duplicates.similarity[lost],
            threshold=self.threshold,
            partner=duplicates.partner[lost],
            similarity=duplicates.similarity[lost],
            report={
                "banding": list(self.banding),
                **duplicates.counts,
                "edges": len(duplicates.edge_row),
                "edge_floor": floor,
            },
            edges=(duplicates.edge_row, duplicates.edge_other, duplicates.edge_similarity),
        )
