"""The certificate of duplicate removal by embeddings.

Precision comes from inner products summed exactly. For the recall, rows that stay meet in cells cut
by random hyperplanes through the mean of all vectors, whatever clusters they lie in. Two rows whose
centred vectors are at an angle a fall on the same side of a plane with a probability of 1 - a / pi
(Goemans and Williamson 1995; Charikar 2002), so the probability with which they meet is known.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit, uint64

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
from tamis.selectors.duplicates import Ranking
from tamis.selectors.inner_products import Float32s, exact_similarity, one_blas_thread
from tamis.selectors.near_certificate import mixed
from tamis.selectors.table import Table
from tamis.selectors.vectors import Vectors
from tamis.storage.kernels import KERNEL, Int64s, UInt64s, fmix64, in_threads

Float64s = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Times that the space is cut, rows that a cell is to hold, and rows that are cut at a time.
CUTS, CELL_ROWS, AT_ONCE = 4, 8, 1 << 13
#: Pairs that are compared at most.
MAX_PAIRS = 1 << 21
#: Rows are of length one in float32: the cosine of their angle may differ from their inner product
#: by so much.
ROUNDING = 1e-6


def certify_vectors(
    table: Table,
    vectors: Vectors,
    ranking: Ranking,
    kept: Mask,
    partner: Int64s,
    similarity: Float64s,
    *,
    threshold: float,
    rows: int,
) -> Certificate:
    """Draw the samples and say what they show; nothing here depends on the order of the rows.

    Args:
        ranking: of the table's rows.
        kept, partner, similarity: what was decided, in the order of `vectors`.
        rows: dropped rows whose similarity is computed again.
    """
    ranking = ranking.of(vectors.rows)
    drawn = draws(ranking.id_hi, ranking.id_lo, ranking.copy.astype(np.uint32), SEED)
    dropped = np.flatnonzero(~kept)
    sample = dropped[np.argsort(drawn[dropped], kind="stable")[:rows]]
    again = np.array([_cosine(vectors.matrix, a, b) for a, b in _pairs_of(sample, partner)])
    stays = np.flatnonzero(kept)
    found = _meetings(vectors.matrix, stays, drawn, threshold, table.workers)
    missed, seen = missed_rows(
        found.left,
        found.right,
        found.chance,
        found.cell,
        ranking,
        unseen=found.unseen,
        most=len(stays),
    )
    giants = giant_groups(kept, partner, similarity, drawn)
    return Certificate(
        dropped=len(dropped),
        checked=len(sample),
        right=int((again >= threshold - ROUNDING).sum()),
        off=float(np.abs(again - similarity[sample]).max(initial=0.0)),
        missed=missed,
        compared=found.compared,
        seen=seen,
        giants=announced(giants, similarity, ranking, _texts(table, vectors, shown_rows(giants))),
    )


def _pairs_of(sample: Int64s, partner: Int64s) -> list[tuple[int, int]]:
    return list(zip(sample.tolist(), partner[sample].tolist(), strict=True))


def _cosine(matrix: Float32s, a: int, b: int) -> float:
    """Cosine of the angle of two vectors, every sum correctly rounded."""
    left, right = matrix[a].astype(np.float64), matrix[b].astype(np.float64)
    norms = math.fsum(left * left) * math.fsum(right * right)
    return math.fsum(left * right) / math.sqrt(norms) if norms else 0.0


def _texts(table: Table, vectors: Vectors, places: Int64s) -> dict[int, str]:
    """Texts of a few rows, by their place among the vectors."""
    texts = table.texts(vectors.rows[places]).to_pylist()
    return dict(zip(places.tolist(), texts, strict=True))


class _Meetings:
    """Pairs of rows that stay, met in a cell, and are duplicates.

    Attributes:
        left, right: rows of the matrix.
        chance: with which each of them meets anywhere.
        cell: number of the cell.
        unseen: the chance of a pair just at the threshold.
        compared: pairs that met.
    """

    def __init__(
        self,
        left: Int64s,
        right: Int64s,
        chance: Float64s,
        cell: Int64s,
        unseen: float,
        compared: int,
    ) -> None:
        self.left, self.right, self.chance, self.cell = left, right, chance, cell
        self.unseen, self.compared = unseen, compared


def _meetings(
    matrix: Float32s, stays: Int64s, drawn: Float64s, threshold: float, workers: int
) -> _Meetings:
    mean = matrix[stays].mean(axis=0, dtype=np.float64) if len(stays) else np.zeros(matrix.shape[1])
    bits = max(0, round(math.log2(max(1, len(stays)) / CELL_ROWS)))
    value, row = _cells(matrix, stays, mean.astype(np.float32), bits, workers)
    order = np.lexsort((row, value))
    value, row = value[order], row[order]
    room = 1 << 16
    left, right, cell = (np.empty(room, np.int64) for _ in range(3))
    share = np.empty(room)
    found, gone, compared = _near_pairs(
        *(value, row, mixed(drawn[row], value), PAIRED, MAX_PAIRS, matrix, threshold),
        *(left, right, cell, share),
    )
    some = slice(0, found)
    left, right, cell, share = left[some], right[some], cell[some], share[some]
    through = 1.0 if gone == len(value) else float(value[gone]) / 2**64
    a, b = (matrix[side].astype(np.float64) - mean for side in (left, right))
    norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    cosine = np.divide((a * b).sum(axis=1), norms, out=np.ones(found), where=norms > 0)
    # Of a pair at the threshold the distance is known, and from the centre that of most rows.
    radius = max(1e-9, 1.0 - float(mean @ mean))
    at_least = max(-1.0, 1.0 - (1.0 - threshold) / radius)
    _, size = np.unique(value, return_counts=True)
    taken = np.minimum(size, PAIRED)
    pairs = np.maximum(1, size * (size - 1))
    paired = float((size * taken * (taken - 1) / pairs).sum() / max(1, size[size > 1].sum()))

    def meets(cosine: Float64s, share: Float64s | float) -> Float64s:
        same = (1 - np.arccos(np.clip(cosine, -1, 1)) / np.pi) ** bits
        return np.asarray(1 - (1 - same * share * through) ** CUTS)

    unseen = float(meets(np.array(at_least), paired if len(value) else 1.0))
    return _Meetings(left, right, meets(cosine, share), cell, unseen, compared)


def _cells(
    matrix: Float32s, stays: Int64s, mean: Float32s, bits: int, workers: int
) -> tuple[UInt64s, Int64s]:
    """Cell of every row that stays, once for every cut."""
    planes = np.random.RandomState(SEED).standard_normal((matrix.shape[1], CUTS * bits))
    planes = planes.astype(np.float32)
    value = np.empty((CUTS, len(stays)), np.uint64)
    weight = np.uint64(1) << np.arange(bits, dtype=np.uint64)

    def cut(begin: int) -> None:
        here = stays[begin : begin + AT_ONCE]
        side = ((matrix[here] - mean) @ planes > 0).reshape(len(here), CUTS, bits)
        keys = (side * weight).sum(axis=2, dtype=np.uint64)
        value[:, begin : begin + AT_ONCE] = keys.T

    with one_blas_thread():
        in_threads(cut, range(0, len(stays), AT_ONCE), workers)
    for number in range(CUTS):
        _hash(value[number], np.uint64(number + 1))
    return value.reshape(-1), np.tile(stays, CUTS)


@njit(**KERNEL)
def _hash(value, number):  # type: ignore[no-untyped-def]
    for i in range(value.shape[0]):
        value[i] = fmix64(value[i] | number << uint64(56))


@njit(**KERNEL)
def _near_pairs(  # type: ignore[no-untyped-def]
    value, row, draw, paired, most, matrix, threshold, left, right, cell, share
):
    """Duplicates that share a cell, cells in ascending order.

    Stops before the cell with which more than `most` pairs would be compared, or for which there is
    no room. Returns the number of duplicates found, of entries gone through, and of pairs compared.
    """
    found = compared = 0
    begin = 0
    while begin < value.shape[0]:
        end = begin
        while end < value.shape[0] and value[end] == value[begin]:
            end += 1
        size = end - begin
        taken = min(size, paired)
        if compared + taken * (taken - 1) // 2 > most:
            return found, begin, compared
        chance = 1.0
        order = np.arange(size)
        if size > paired:
            order = np.argsort(draw[begin:end])[:paired]
            chance = (paired / size) * ((paired - 1) / (size - 1))
        before = found
        for i in range(taken):
            a = row[begin + order[i]]
            for j in range(i):
                b = row[begin + order[j]]
                if exact_similarity(matrix[a], matrix[b]) < threshold:
                    continue
                if found == left.shape[0]:
                    return before, begin, compared
                left[found] = a
                right[found] = b
                cell[found] = begin
                share[found] = chance
                found += 1
        compared += taken * (taken - 1) // 2
        begin = end
    return found, value.shape[0], compared
