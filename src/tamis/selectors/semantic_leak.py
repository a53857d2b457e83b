"""Rows that say what a reference says, in whatever words: benchmark items, alignment data."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field

from tamis.scoring.embedding_models import need_embed
from tamis.selectors.inner_products import Float64s
from tamis.selectors.nearest import nearest
from tamis.selectors.reference import EXCERPT, Reference, left_out, told_apart
from tamis.selectors.selector import Selector, TableOperator
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.selectors.vectors import reference_vectors, vectors_of
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.errors import UserError
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import OUTSIDE, Drops
from tamis.storage.places import Place


class _Nearest:
    """The nearest row of some references for every row of a table.

    Attributes:
        similarity: cosine to it, nan where the references are empty.
        row: its number, counted through all references; -1 where there is none.
        left_out: by reference, lines that could not be read and rows without text.
    """

    def __init__(self, table: Table, references: list[Reference], embedding: str) -> None:
        self._names = [reference.title for reference in references]
        self._tables = [reference.table(table) for reference in references]
        self.left_out = left_out(references, self._tables)
        self._start = np.cumsum([0, *map(len, self._tables)])
        mine = vectors_of(table, embedding)
        numbers, matrices = [], []
        for name, other, start in zip(self._names, self._tables, self._start, strict=False):
            theirs = reference_vectors(table, other, embedding)
            if len(mine.rows) and len(theirs.rows):
                _same_length(mine.matrix.shape[1], theirs.matrix.shape[1], name)
                numbers.append(theirs.rows + start)
                matrices.append(theirs.matrix)
        self.similarity: Float64s = np.full(len(table), np.nan)
        self.row: Int64s = np.full(len(table), -1, np.int64)
        if matrices:
            found = nearest(mine.matrix, np.concatenate(matrices), table.workers)
            self.similarity[mine.rows] = found.similarity
            self.row[mine.rows] = np.concatenate(numbers)[found.row]

    def sources(self, rows: Int64s) -> pa.Array:
        """Names of the references that the nearest rows of some rows lie in."""
        found = np.searchsorted(self._start, self.row[rows], side="right") - 1
        return pa.array(self._names, pa.string()).take(pa.array(found, mask=self.row[rows] < 0))

    def ids(self, rows: Int64s) -> dict[str, npt.NDArray[Any]]:
        """Row ids of the nearest rows of some rows; there must be one."""
        at = self.row[rows]
        return {
            name: np.concatenate([getattr(table, name) for table in self._tables])[at]
            for name in ("id_hi", "id_lo", "copy")
        }

    def texts(self, rows: Int64s) -> pa.Array:
        """Texts of the nearest rows of some rows; there must be one."""
        wanted, place = np.unique(self.row[rows], return_inverse=True)
        cuts = np.searchsorted(wanted, self._start)
        parts = [
            table.texts(wanted[first:last] - start)
            for table, start, first, last in zip(
                self._tables, self._start[:-1], cuts[:-1], cuts[1:], strict=True
            )
        ]
        return pa.concat_arrays(parts).take(pa.array(place))

    def counts(self, rows: Int64s) -> dict[str, int]:
        """Of some rows, how many have their nearest row in each reference."""
        found = np.searchsorted(self._start, self.row[rows], side="right") - 1
        counts = np.bincount(found, minlength=len(self._names)).tolist()
        return dict(zip(self._names, counts, strict=True))


def _same_length(mine: int, theirs: int, name: str) -> None:
    if mine != theirs:
        raise UserError(
            f"the corpus's vectors have {mine} numbers, those of the reference {theirs}",
            where=name,
            mend="embed both with the same model",
        )


def indel_similarity(left: pa.Array, right: pa.Array, workers: int = 1) -> Float64s:
    """Twice the longest common subsequence over both lengths, for pairs of texts.

    Example:
        >>> import pyarrow as pa
        >>> indel_similarity(pa.array(["abcd", ""]), pa.array(["abxd", "a"])).tolist()
        [0.75, 0.0]
    """
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    score = Indel.normalized_similarity
    texts = (left.to_pylist(), right.to_pylist())
    found = process.cpdist(*texts, scorer=score, dtype=np.float64, workers=workers)
    return np.asarray(found, np.float64)


class AgainstReferences(TableOperator):
    """Compares every row with the nearest row of some references, by cosine of their vectors."""

    references: Annotated[list[Reference], AfterValidator(told_apart)] = Field(
        min_length=1, description="what the rows are held against"
    )
    embedding: str = Field(
        default="embedding",
        description="vectors: the signal of an earlier stage, which then embeds the references as "
        "well, or a column that the corpus and the references have",
    )

    roles: ClassVar[tuple[str, ...]] = ("text",)

    def resolve(self, workspace: Place) -> Self:
        need_embed("rapidfuzz", f"the stage {self.stage!r}")
        found = [reference.resolve(workspace) for reference in self.references]
        return self.model_copy(update={"references": found})

    def reads(self) -> set[str]:
        return {self.embedding}

    def vectors(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        """As read and in order; of references also one after the other."""
        return 2 * rows + 3 * self._reference_rows

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * (EXCERPT + 100) + 60 * self._reference_rows

    @property
    def _reference_rows(self) -> int:
        return sum(reference.rows for reference in self.references)


class SemanticLeak(Selector, AgainstReferences):
    """Drop rows whose vector is as good as that of a row of a reference.

    The cosine to the nearest row of all references is exact; of equally near ones the first
    reference and the smallest row_id are named. A row is counted as ``verbatim`` if the strings
    are similar too, and as ``rephrased`` if only the vectors are: what matching strings would
    have missed.

    The threshold is that of the paper for gemini-embedding-001. It means nothing for another
    model: `tamis calibrate` finds one.
    """

    operator: Literal["semantic_leak"] = "semantic_leak"
    threshold: float = Field(
        default=0.95, gt=-1, le=1, description="cosine from which a row is dropped (unconfirmed)"
    )
    string_threshold: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="indel similarity from which a dropped row is verbatim (unconfirmed)",
    )

    version: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "Barbero et al. 2025, Extracting alignment data in open models (embedding similarity "
        "beside normalised string distance)"
    )

    def select(self, table: Table) -> Drops:
        found = _Nearest(table, self.references, self.embedding)
        lost = np.flatnonzero(found.similarity >= self.threshold)
        verbatim = np.zeros(len(lost), np.bool_)
        evidence = [pa.nulls(0, pa.large_string())]
        for begin in range(0, len(lost), BATCH_ROWS):
            some = lost[begin : begin + BATCH_ROWS]
            theirs = found.texts(some)
            alike = indel_similarity(table.texts(some), theirs, table.workers)
            verbatim[begin : begin + BATCH_ROWS] = alike >= self.string_threshold
            evidence.append(pc.utf8_slice_codeunits(theirs, 0, EXCERPT))
        ids = found.ids(lost)
        outside = pa.table(
            {
                "partner_source": found.sources(lost),
                "partner_hi": ids["id_hi"],
                "partner_lo": ids["id_lo"],
                "partner_copy": ids["copy"],
                "evidence": pa.concat_arrays(evidence).cast(pa.string()),
            },
            schema=OUTSIDE,
        )
        drops = Drops.of(
            lost,
            "",
            value=found.similarity[lost],
            threshold=self.threshold,
            similarity=found.similarity[lost],
            outside=outside,
            report={
                "references": found.left_out,
                "leaks": found.counts(lost),
                "reference_rows_hit": len(np.unique(found.row[lost])),
            },
        )
        drops.reasons = ["rephrased", "verbatim"]
        drops.reason = verbatim.astype(np.int32)
        return drops


class ReferenceSimilarity(TableScorer, AgainstReferences):
    """How near every row is to its nearest row in some references, and which that is.

    The same comparison as `semantic_leak`, to look at before cutting: the cosine of the vectors,
    and the indel similarity of the two texts (2 LCS / (length + length), in characters).
    """

    operator: Literal["reference_similarity"] = "reference_similarity"

    version: ClassVar[int] = 2
    paper: ClassVar[str] = SemanticLeak.paper

    def fields(self) -> pa.Schema:
        """``reference_similarity`` and ``reference_indel`` (float64), the reference's name
        ``reference`` and the row's id there ``reference_row`` (32 hex digits); null where the
        references are empty.
        """
        return pa.schema(
            [
                pa.field("reference_similarity", pa.float64()),
                pa.field("reference_indel", pa.float64()),
                pa.field("reference", pa.string()),
                pa.field("reference_row", pa.string()),
            ]
        )

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        found = _Nearest(table, self.references, self.embedding)
        for begin in range(0, len(table), BATCH_ROWS):
            rows = np.arange(begin, min(begin + BATCH_ROWS, len(table)))
            have = rows[found.row[rows] >= 0]
            place = pa.array(np.searchsorted(have, rows), mask=found.row[rows] < 0)
            ids = found.ids(have)
            indel = indel_similarity(table.texts(have), found.texts(have), table.workers)
            columns = [
                pa.array(found.similarity[rows], from_pandas=True),
                pa.array(indel, pa.float64()).take(place),
                found.sources(rows),
                pa.array(hex_ids(ids["id_hi"], ids["id_lo"]), pa.string()).take(place),
            ]
            yield pa.record_batch(columns, schema=self.fields())
