"""How near every row lies to topics that are given by a few keywords each."""

from collections.abc import Iterable
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from numba import njit
from pydantic import Field

from tamis.scoring.embedding_models import need_embed
from tamis.scoring.operator import RowScorer
from tamis.selectors.inner_products import Float32s, Float64s, exact_product, one_blas_thread
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.selectors.vectors import Vectors, vectors_of
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.kernels import KERNEL, Int64s, in_threads
from tamis.storage.places import Place

#: Rows compared with the topics at a time.
_ROWS_AT_ONCE = 1 << 13


class Topics(TableScorer):
    """Tag every row with the topic whose documents it is most like, without labelled rows.

    The keywords of a topic are embedded as the rows were. The documents nearest to their mean are
    the topic's own; their mean is its vector, and a row's score is the cosine to it. So a topic is
    described by the corpus's own words, and the keywords only find them.

    A topic's own documents are those whose cosine to the keywords is at least
    `similarity_threshold`, or, without one, at most `offset` below the best; at least
    `min_documents` and at most `max_documents` of them, the nearest first, ties by row_id.
    """

    operator: Literal["topics"] = "topics"
    topics: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        min_length=1, description="keywords or short descriptions, by the name of the topic"
    )
    embedding: str = Field(
        default="embedding",
        description="vectors: the signal of an earlier stage, which also embeds the keywords",
    )
    similarity_threshold: float | None = Field(
        default=None, ge=-1, le=1, description="cosine to the keywords of a topic's own documents"
    )
    offset: float = Field(
        default=0.1,
        ge=0,
        le=2,
        description="without a threshold: how far below the best document (unconfirmed)",
    )
    min_documents: int = Field(default=1, ge=1, description="documents a topic has at least")
    max_documents: int | None = Field(
        default=None, ge=1, description="documents a topic has at most"
    )
    clean_outliers: bool = Field(
        default=False, description="leave out documents that the local outlier factor marks"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Schopf et al. 2021, Lbl2Vec: an embedding-based approach for unsupervised document "
        "retrieval on predefined topics; Breunig et al. 2000 (local outlier factor)"
    )

    def resolve(self, workspace: Place) -> Self:
        if self.clean_outliers:
            need_embed("sklearn", f"`clean_outliers` of the stage {self.stage!r}")
        return self

    def key_parts(self) -> dict[str, Any]:
        """With the version of what finds outliers."""
        parts = super().key_parts()
        return {**parts, "scikit-learn": version("scikit-learn")} if self.clean_outliers else parts

    def reads(self) -> set[str]:
        return {self.embedding}

    def vectors(self) -> set[str]:
        return {self.embedding}

    def embeds(self) -> set[str]:
        return {self.embedding}

    def held_vectors(self, rows: int) -> int:
        return 2 * rows

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * (16 * len(self.topics) + 100)

    def fields(self) -> pa.Schema:
        """``topic`` (the nearest), ``topic_similarity`` (float64, its cosine) and
        ``topic_similarities`` (float64 to every topic, in the order of the recipe).
        """
        each = pa.list_(pa.field("item", pa.float64(), nullable=False), len(self.topics))
        return pa.schema(
            [
                pa.field("topic", pa.string(), nullable=False),
                pa.field("topic_similarity", pa.float64(), nullable=False),
                pa.field("topic_similarities", each, nullable=False),
            ]
        )

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        if not len(table):
            return
        found = vectors_of(table, self.embedding)
        near = cosines(found.matrix, self._keywords(table), table.workers)
        labels = np.stack([self._label(found, column) for column in near.T])
        cosine = np.empty_like(near)
        cosine[found.rows] = cosines(found.matrix, labels, table.workers)
        schema = self.fields()
        names = pa.array(list(self.topics), pa.string())
        for begin in range(0, len(table), BATCH_ROWS):
            part = cosine[begin : begin + BATCH_ROWS]
            best = part.argmax(axis=1)  # the first of equals
            columns = [
                names.take(pa.array(best)),
                pa.array(part[np.arange(len(part)), best]),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(part.ravel()), type=schema.field(2).type
                ),
            ]
            yield pa.record_batch(columns, schema=schema)

    def _keywords(self, table: Table) -> Float32s:
        """The direction of the mean of every topic's keywords."""
        operator = table.scores[self.embedding].operator
        assert isinstance(operator, RowScorer)  # as `embeds` asks for
        words = [word for keywords in self.topics.values() for word in keywords]
        batch = operator.compute(pa.record_batch({"text": pa.array(words, pa.string())}))
        flat = batch[self.embedding].flatten().cast(pa.float32())
        vectors = np.asarray(flat, np.float64).reshape(len(words), -1)
        cuts = np.cumsum([len(keywords) for keywords in self.topics.values()])[:-1]
        return np.stack([_direction(part) for part in np.split(vectors, cuts)])

    def _label(self, found: Vectors, near: Float64s) -> Float32s:
        """The direction of the mean of the documents nearest to a topic's keywords."""
        bar = self.similarity_threshold
        if bar is None:
            bar = float(near.max()) - self.offset
        order = np.argsort(-near, kind="stable")
        count = max(int((near >= bar).sum()), self.min_documents)
        if self.max_documents is not None:
            count = min(count, self.max_documents)
        own = np.sort(order[:count])
        if self.clean_outliers:
            own = _without_outliers(found.matrix, own)
        return _direction(found.matrix[own].astype(np.float64))


def _direction(vectors: Float64s) -> Float32s:
    """The mean of the directions of some vectors, of length one; zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = (vectors / np.where(length == 0, 1, length)).sum(axis=0)
    size = float(np.sqrt(np.square(mean).sum()))
    direction: Float32s = (mean / (size or 1.0)).astype(np.float32)
    return direction


def _without_outliers(matrix: Float32s, rows: Int64s) -> Int64s:
    """Those of some rows that the local outlier factor does not mark."""
    from sklearn.neighbors import LocalOutlierFactor

    if len(rows) < 3:
        return rows
    neighbours = min(20, len(rows) - 1)  # scikit-learn's own default
    with one_blas_thread():
        inliers: Int64s = rows[LocalOutlierFactor(neighbours).fit_predict(matrix[rows]) > 0]
    return inliers


@njit(**KERNEL)
def _cosines(rows, centres, result):  # type: ignore[no-untyped-def]
    for i in range(rows.shape[0]):
        for c in range(centres.shape[0]):
            result[i, c] = exact_product(rows[i], centres[c])


def cosines(matrix: Float32s, centres: Float32s, workers: int) -> Float64s:
    """Exact inner products of every row with every one of a few centres, ``(n, k)``."""
    result: Float64s = np.empty((len(matrix), len(centres)), np.float64)

    def work(first: int) -> None:
        mine = slice(first, first + _ROWS_AT_ONCE)
        _cosines(matrix[mine], centres, result[mine])

    in_threads(work, range(0, len(matrix), _ROWS_AT_ONCE), workers)
    return result
