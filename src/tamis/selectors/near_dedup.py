"""Near-duplicate removal: MinHash candidates, exact Jaccard, greedy survivors."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from tamis.scoring.minhash import MinHashSignature, Signatures
from tamis.scoring.operator import RowScorer
from tamis.scoring.words import UnicodeForm, Unit
from tamis.selectors.banding import Banding, Digests
from tamis.selectors.components import (
    BATCH_BYTES,
    GROUPING_AT_ONCE,
    GROUPING_BYTES,
    MEMBER_BYTES,
    PAIR_BYTES,
    ROW_BYTES,
)
from tamis.selectors.duplicates import Duplicates, Ranking, find_duplicates
from tamis.selectors.near_certificate import SharedValues, certify
from tamis.selectors.ranks import RankedSelector
from tamis.selectors.resemblance import Resemblance
from tamis.selectors.survivors import PAIRS_PER_ROW
from tamis.selectors.table import Table
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.kernels import Int64s, chunks_of, even_cuts, in_threads, string_buffers
from tamis.storage.ledger import Drops
from tamis.storage.spill import IN_MEMORY, spill_room

#: Edges are kept this far below the threshold, so that it can be moved later.
EDGE_MARGIN = 0.1
#: Characters that the certificate compares in Python: a share of the texts, and at least so many.
CHARACTER_SHARE, MIN_CHARACTERS = 0.005, 200_000


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
        chunk.slice(begin, min(BATCH_ROWS, last - begin))
        for chunk in chunks_of(text)
        for first, last in even_cuts(string_buffers(chunk)[1], workers * 8)
        for begin in range(first, last, BATCH_ROWS)
    ]
    start = np.cumsum([0, *map(len, pieces)])
    rows = int(start[-1])

    def map_text(wanted: Int64s, function: Callable[[pa.Array, Int64s, slice], None]) -> None:
        cuts = np.searchsorted(wanted, start)
        in_threads(
            lambda i: function(
                pieces[i], wanted[cuts[i] : cuts[i + 1]] - start[i], slice(cuts[i], cuts[i + 1])
            ),
            np.flatnonzero(np.diff(cuts)).tolist(),
            workers,
        )

    with spill_room() as room:
        banding = Banding.finer_than(threshold, signal.num_perm)
        digests = Digests.room_for(rows, signal.num_perm, banding, room)
        shingles, characters = np.empty(rows, np.int64), np.empty(rows, np.int64)

        def sign(piece: int) -> None:
            found = Signatures.room_for(len(pieces[piece]), signal.num_perm)
            found.fill(slice(0, len(pieces[piece])), pieces[piece], signal)
            here = slice(int(start[piece]), int(start[piece + 1]))
            shingles[here], characters[here] = found.shingles, found.characters
            digests.put(here.start, found)

        in_threads(sign, range(len(pieces)), workers)
        position = np.arange(rows, dtype=np.uint64)
        return find_duplicates(
            digests,
            shingles,
            Ranking(characters.astype(np.float64), position, position, np.zeros(rows, np.uint32)),
            map_text,
            signal.shingling,
            room,
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
    certificate: int = Field(
        default=500,
        ge=0,
        description="dropped rows whose similarity is computed again from the texts, to state "
        "precision beside a sampled recall; 0: no certificate. Unconfirmed",
    )

    version: ClassVar[int] = 2
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

    def similarity_parts(self) -> Any:
        return list(self.signal.shingling)

    def memory(self, rows: int, text_bytes: int) -> int:
        """Columns of the whole table, the spills that lie in memory, and one batch.

        True unless the rows that are joined by their buckets take more than a batch has room for;
        then `select` raises where a limit is set that does not leave as much.
        """
        # Most is held while bands are grouped: hashes, counts, ranks, and what is joined to what.
        band = rows * GROUPING_BYTES
        columns = rows * 50 + max(2 * band, min(self.banding.bands * band, GROUPING_AT_ONCE))
        record = 8 * self.banding.bands + self.num_perm
        spilled = min(2 * rows * record + 2 * text_bytes, IN_MEMORY)
        a_row = ROW_BYTES + self.banding.bands * MEMBER_BYTES + PAIRS_PER_ROW * PAIR_BYTES
        batch = min(rows * a_row + 2 * text_bytes, BATCH_BYTES)
        return columns + spilled + batch

    def signals(self) -> tuple[RowScorer, ...]:
        return (self.signal,)

    def select(self, table: Table) -> Drops:
        signal = self.signal
        with spill_room(table.spill_folder) as room:
            digests = Digests.room_for(len(table), self.num_perm, self.banding, room)
            shingles = np.empty(len(table), np.int64)
            characters = np.empty(len(table), np.float64)
            values = SharedValues(len(table), self.num_perm)

            def sign(at: int, part: pa.RecordBatch) -> None:
                found = Signatures.stored(part)
                here = slice(at, at + part.num_rows)
                shingles[here], characters[here] = found.shingles, found.characters
                digests.put(at, found)
                if self.certificate:
                    values.add(at, found.matrix)

            table.map_signal(signal, sign)
            floor = self.threshold - EDGE_MARGIN if self.edge_floor is None else self.edge_floor
            ranking, map_text = self.ranking(table, characters), partial(table.map_text, "text")
            duplicates = find_duplicates(
                digests,
                shingles,
                ranking,
                map_text,
                signal.shingling,
                room,
                threshold=self.threshold,
                edge_floor=floor,
                spare=table.spare,
                workers=table.workers,
                progress=lambda decided, of: table.progress("duplicates decided", decided, of),
                known=table.known,
            )
        report = {
            "banding": list(self.banding),
            **duplicates.counts,
            "edges": len(duplicates.edges),
            "edge_floor": floor,
        }
        if self.certificate:
            report["certificate"] = certify(
                duplicates.kept,
                duplicates.partner,
                duplicates.similarity,
                values,
                shingles,
                ranking,
                map_text,
                signal.shingling,
                threshold=self.threshold,
                rows=self.certificate,
                lengths=characters,
                characters=max(MIN_CHARACTERS, int(CHARACTER_SHARE * characters.sum())),
                workers=table.workers,
            ).as_report()
        lost = np.flatnonzero(~duplicates.kept)
        similarity = duplicates.similarity[lost]
        return Drops.of(
            lost,
            "",
            value=similarity,
            threshold=self.threshold,
            partner=duplicates.partner[lost],
            similarity=similarity,
            report=report,
            edges=duplicates.edges,
        )
