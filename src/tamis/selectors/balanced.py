"""Balanced k-means: clusters of equal size, each row as near to its centre as room allows."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from tamis.selectors.inner_products import Float32s, exact_product, one_blas_thread, slack
from tamis.storage.kernels import KERNEL, Int64s, in_threads

#: The sum of squared moves of the centres at which they have come to rest.
TOLERANCE = 1e-4

#: Scores of rows and centres that a thread holds at a time.
_SCORES_AT_ONCE = 1 << 21


class Balanced(NamedTuple):
    """A cluster for every row (int64), and the rounds of assignment it took."""

    cluster: Int64s
    iterations: int


@njit(**KERNEL)
def _nearer(vectors, chosen, distance):  # type: ignore[no-untyped-def]
    """Lower every row's squared distance to that from the row `chosen` where it is nearer."""
    for row in range(vectors.shape[0]):
        far = 2 - 2 * exact_product(vectors[row], vectors[chosen])
        distance[row] = min(distance[row], max(far, 0.0))
    distance[chosen] = 0.0


@njit(**KERNEL)
def _propose(  # type: ignore[no-untyped-def]
    scores, rows, vectors, centres, full, worst, worst_row, margin, choice, value
):
    """For each of some rows the nearest centre that has room, or holds a row less near.

    `scores` lie within `margin` of the similarities; they only rule centres out.
    """
    for i in range(rows.shape[0]):
        row = rows[i]
        best = -np.inf
        chosen = -1
        for c in range(centres.shape[0]):
            at_most = scores[i, c] + margin
            if at_most <= best or (full[c] and at_most < worst[c]):
                continue
            s = exact_product(vectors[row], centres[c])
            if s <= best:
                continue
            if full[c] and (s < worst[c] or (s == worst[c] and row > worst_row[c])):
                continue
            best = s
            chosen = c
        choice[i] = chosen
        value[i] = best


def _ask(
    vectors: Float32s,
    centres: Float32s,
    asking: Sequence[Any],
    held: Sequence[Any],
    height: int,
    first: int,
) -> None:
    rows, choice, value = (part[first : first + height] for part in asking)
    scores = vectors[rows] @ centres.T
    _propose(scores, rows, vectors, centres, *held, slack(vectors.shape[1]), choice, value)


def _assign(vectors: Float32s, centres: Float32s, capacity: Int64s, workers: int) -> Int64s:
    """What taking all pairs of row and centre in order of similarity gives.

    A row goes to a centre when it is free and the centre has room; ties by row, then by centre.
    That is the one stable matching when both sides prefer the more similar, so rows may propose
    all at once and be displaced by nearer ones, and no list of all pairs is needed.
    """
    rows, clusters = len(vectors), len(centres)
    cluster = np.full(rows, -1, np.int64)
    similarity = np.zeros(rows, np.float64)
    full = np.zeros(clusters, np.bool_)
    worst = np.zeros(clusters, np.float64)
    worst_row = np.zeros(clusters, np.int64)
    free = np.arange(rows)
    height = max(16, min(1024, _SCORES_AT_ONCE // clusters))
    while len(free):
        choice, value = np.empty(len(free), np.int64), np.empty(len(free), np.float64)
        ask = partial(
            _ask, vectors, centres, (free, choice, value), (full, worst, worst_row), height
        )
        in_threads(ask, range(0, len(free), height), workers)
        cluster[free], similarity[free] = choice, value
        asked = np.zeros(clusters, np.bool_)
        asked[choice] = True
        members = np.flatnonzero(asked[cluster])
        members = members[np.lexsort((members, -similarity[members], cluster[members]))]
        size = np.bincount(cluster[members], minlength=clusters)
        begin = np.cumsum(size) - size
        place = np.arange(len(members)) - begin[cluster[members]]
        free = members[place >= capacity[cluster[members]]]
        cluster[free] = -1
        full |= size >= capacity  # a centre that was not asked keeps what it has
        last = members[np.clip(begin + capacity, 1, len(members)) - 1]
        changed = asked & (size >= capacity)
        worst[changed], worst_row[changed] = similarity[last[changed]], last[changed]
    return cluster


def _first_centres(vectors: Float32s, clusters: int, random: np.random.Generator) -> Float32s:
    """k-means++: each next centre a row drawn by its squared distance to those before."""
    rows = len(vectors)
    chosen = [int(random.integers(rows))]
    distance = np.full(rows, np.inf)
    while len(chosen) < clusters:
        _nearer(vectors, chosen[-1], distance)
        total = np.cumsum(distance)
        if total[-1] > 0:
            at = int(np.searchsorted(total, random.random() * total[-1], side="right"))
            chosen.append(min(at, rows - 1))
        else:  # fewer different rows than clusters
            chosen.append(int(np.setdiff1d(np.arange(rows), chosen)[0]))
    return vectors[chosen].copy()


def _centres(vectors: Float32s, cluster: Int64s, clusters: int) -> Float32s:
    """Directions of the members' sums, added up in order of row."""
    order = np.argsort(cluster, kind="stable")
    begin = np.searchsorted(cluster[order], np.arange(clusters))
    sums = np.add.reduceat(vectors[order].astype(np.float64), begin, axis=0)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.where(length > 0, length, 1)).astype(np.float32)


def balanced_clusters(
    vectors: Float32s, clusters: int, *, seed: int = 0, iterations: int = 100, workers: int = 1
) -> Balanced:
    """Cut rows into clusters whose sizes differ by one at most, by cosine.

    Args:
        vectors: ``(n, d)`` float32 unit rows, in an order that depends on nothing but the rows.
        clusters: how many, from 1 to n.
        iterations: most rounds of assigning rows and moving centres.

    Source:
        Hou et al. 2023, Subclass-balancing contrastive learning for long-tailed recognition:
        k-means++ start, capacity n // clusters (one more for the first n % clusters), greedy
        assignment by similarity, at most 100 rounds, tolerance 1e-4 (of the public code).

    Example:
        >>> import numpy as np
        >>> points = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
        >>> found = balanced_clusters(points, 2)
        >>> np.bincount(found.cluster).tolist()
        [2, 2]
    """
    rows = len(vectors)
    if clusters == 1:
        return Balanced(np.zeros(rows, np.int64), 0)
    capacity = np.full(clusters, rows // clusters, np.int64)
    capacity[: rows % clusters] += 1
    centres = _first_centres(vectors, clusters, np.random.default_rng(seed))
    done = 0
    with one_blas_thread():
        while True:
            cluster = _assign(vectors, centres, capacity, workers)
            done += 1
            moved = _centres(vectors, cluster, clusters)
            shift = float(((moved.astype(np.float64) - centres) ** 2).sum())
            if shift < TOLERANCE or done == iterations:
                return Balanced(cluster, done)
            centres = moved
