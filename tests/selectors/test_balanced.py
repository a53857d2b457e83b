"""Balanced k-means against the greedy assignment as published, and on planted groups."""

import numpy as np
import numpy.typing as npt
import pytest

from tamis.selectors.balanced import _assign, _centres, balanced_clusters
from tests.selectors.test_nearest import unit_rows


def greedy(
    vectors: npt.NDArray[np.float32],
    centres: npt.NDArray[np.float32],
    capacity: npt.NDArray[np.int64],
) -> list[int]:
    """All pairs sorted by similarity, taken in order while there is room."""
    similarity = vectors @ centres.T
    room = capacity.tolist()
    cluster = [-1] * len(vectors)
    pairs = [(-similarity[r, c], r, c) for r in range(len(vectors)) for c in range(len(centres))]
    for _, row, centre in sorted(pairs):
        if cluster[row] < 0 and room[centre] > 0:
            cluster[row] = centre
            room[centre] -= 1
    return cluster


@pytest.mark.parametrize(("rows", "clusters"), [(7, 3), (60, 6), (200, 9), (90, 90)])
def test_proposals_give_the_greedy_assignment(rows: int, clusters: int) -> None:
    vectors = unit_rows(rows, 16, rows)
    vectors[rows // 2 :] += 2 * vectors[0]  # crowded: most rows want the same centres
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    capacity = np.full(clusters, rows // clusters, np.int64)
    capacity[: rows % clusters] += 1
    centres = vectors[:clusters].copy()
    found = _assign(vectors, centres, capacity, workers=2)
    assert found.tolist() == greedy(vectors, centres, capacity)


def test_equal_rows_are_told_apart_by_their_place() -> None:
    vectors = np.tile(unit_rows(1, 4, 0), (6, 1))
    found = _assign(vectors, vectors[:3].copy(), np.full(3, 2, np.int64), workers=1)
    assert found.tolist() == [0, 0, 1, 1, 2, 2]
    again = balanced_clusters(vectors, 4)
    assert sorted(np.bincount(again.cluster)) == [1, 1, 2, 2]


def test_planted_groups_of_equal_size_are_found() -> None:
    random = np.random.default_rng(3)
    truth = random.permutation(np.repeat(np.arange(8), 50))
    vectors = unit_rows(8, 32, 4)[truth] + 0.1 * unit_rows(400, 32, 5)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = balanced_clusters(vectors, 8, seed=1, workers=2)
    assert np.bincount(found.cluster).tolist() == [50] * 8
    assert len(set(zip(truth, found.cluster, strict=True))) == 8
    assert np.array_equal(found.cluster, balanced_clusters(vectors, 8, seed=1).cluster)


def test_one_cluster_and_one_row_each() -> None:
    vectors = unit_rows(5, 8, 6)
    assert balanced_clusters(vectors, 1).cluster.tolist() == [0] * 5
    assert sorted(balanced_clusters(vectors, 5).cluster) == [0, 1, 2, 3, 4]


def test_a_vector_without_direction_gets_a_place_too() -> None:
    vectors = np.zeros((4, 3), np.float32)
    assert np.bincount(balanced_clusters(vectors, 2).cluster).tolist() == [2, 2]


def test_centres_are_mean_directions() -> None:
    vectors = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    found = _centres(vectors, np.array([0, 0, 1]), 2)
    assert np.allclose(found, [[2**-0.5, 2**-0.5], [0, 1]])
