"""Spherical k-means: against a slow one, faiss's objective, and every cut of the work."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.selectors import clusters as module
from tamis.selectors.clusters import Clusters, kmeans, nearest_centroids
from tamis.selectors.inner_products import similarities, slack

Matrix = npt.NDArray[np.float32]


def unit(rows: npt.ArrayLike) -> Matrix:
    matrix = np.asarray(rows, np.float64)
    norm = np.linalg.norm(matrix, axis=1, keepdims=True)
    return (matrix / np.where(norm > 0, norm, 1)).astype(np.float32)


def mixture(rows: int, dimensions: int, centres: int, seed: int = 0, spread: float = 0.5) -> Matrix:
    random = np.random.default_rng(seed)
    middle = random.standard_normal((centres, dimensions))
    noise = random.standard_normal((rows, dimensions))
    return unit(middle[random.integers(0, centres, rows)] + spread * noise)


def draws_of(rows: int, seed: int = 1) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).random(rows)


def same(a: Clusters, b: Clusters) -> bool:
    return (
        np.array_equal(a.centroids.view(np.uint32), b.centroids.view(np.uint32))
        and np.array_equal(a.nearest, b.nearest)
        and np.array_equal(a.similarity, b.similarity)
    )


def slow_kmeans(matrix: Matrix, k: int, draw: npt.NDArray[np.float64], iterations: int) -> Matrix:
    """Lloyd's steps, one row and one centroid at a time, where no cluster is ever empty."""
    centroids = [matrix[i].astype(np.float64) for i in np.argsort(draw)[:k]]
    for _ in range(iterations):
        sums = [np.zeros(matrix.shape[1]) for _ in range(k)]
        for row in matrix.astype(np.float64):
            sums[int(np.argmax([row @ c for c in centroids]))] += row
        centroids = [s / np.linalg.norm(s) for s in sums]
    return np.array(centroids, np.float32)


def test_it_is_lloyds_algorithm() -> None:
    matrix, draw = mixture(300, 12, 6), draws_of(300)
    found = kmeans(matrix, 6, draw=draw, iterations=4)
    expected = slow_kmeans(matrix, 6, draw, found.iterations)
    assert np.allclose(found.centroids, expected, atol=1e-6)
    products = matrix.astype(np.float64) @ found.centroids.astype(np.float64).T
    assert np.array_equal(found.assignment, products.argmax(axis=1))
    assert np.allclose(found.similarity, products.max(axis=1), atol=1e-12)


def test_nearest_centroids_are_in_order() -> None:
    matrix = mixture(500, 20, 10)
    nearest, similarity = nearest_centroids(matrix, matrix[:40], 5)
    products = matrix.astype(np.float64) @ matrix[:40].astype(np.float64).T
    order = np.argsort(-products, axis=1, kind="stable")[:, :5]
    assert np.array_equal(nearest, order)
    assert np.allclose(similarity, np.take_along_axis(products, order, axis=1), atol=1e-12)


def test_workers_and_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, draw = mixture(3000, 33, 20), draws_of(3000)
    first = kmeans(matrix, draw=draw, probes=3, workers=1)
    assert same(first, kmeans(matrix, draw=draw, probes=3, workers=3))
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 1000)
    assert same(first, kmeans(matrix, draw=draw, probes=3, workers=2))


def test_equal_rows_share_a_cluster_wherever_they_stand() -> None:
    matrix = np.repeat(mixture(150, 16, 150, spread=1.0), 40, axis=0)
    found = kmeans(matrix, 70, draw=draws_of(len(matrix)), workers=2)
    by_text = found.assignment.reshape(150, 40)
    assert (by_text == by_text[:, :1]).all()


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_few_rows(rows: int) -> None:
    found = kmeans(mixture(3, 5, 3)[:rows], 10, draw=draws_of(rows), probes=4)
    assert len(found) == rows
    assert found.nearest.shape == (rows, min(4, rows))
    assert sorted(found.assignment) == list(range(rows))
    assert np.allclose(found.similarity, 1)


def test_all_rows_equal() -> None:
    found = kmeans(np.repeat(unit([[3, 4, 0]]), 1000, axis=0), 8, draw=draws_of(1000), probes=2)
    assert set(found.assignment) == {0}
    assert np.allclose(found.similarity, 1)


def test_zero_rows_train_nothing_and_are_like_nothing() -> None:
    matrix = mixture(200, 8, 4)
    zeros = np.zeros((50, 8), np.float32)
    alone = kmeans(matrix, 4, draw=draws_of(200))
    both = kmeans(np.r_[matrix, zeros], 4, draw=np.r_[draws_of(200), np.zeros(50)])
    assert np.array_equal(alone.centroids, both.centroids)
    assert (both.assignment[200:] == 0).all()
    assert (both.similarity[200:] == 0).all()
    nothing = kmeans(zeros, draw=np.zeros(50))
    assert len(nothing) == 1
    assert (nothing.similarity == 0).all()


def test_an_empty_cluster_begins_anew_at_an_outlier() -> None:
    # The two smallest draws fall on equal rows: the second centroid wins nothing at first.
    matrix = unit([[1, 0, 0]] * 5 + [[1, 0.1, 0]] * 5 + [[0, 0, 1]])
    draw = np.linspace(0, 0.9, 11)
    found = kmeans(matrix, 2, draw=draw)
    assert found.assignment.tolist() == [0] * 10 + [1]


def test_opposite_rows_have_no_mean() -> None:
    found = kmeans(unit([[1, 0], [-1, 0]]), 1, draw=np.array([0.1, 0.2]))
    assert np.isfinite(found.centroids).all()


def test_its_objective_is_that_of_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    matrix, k = mixture(4000, 32, 40, spread=0.7), 40
    ours = kmeans(matrix, k, draw=draws_of(4000), iterations=20, points_per_centroid=256)
    theirs = faiss.Kmeans(32, k, niter=20, spherical=True, seed=1)
    theirs.train(matrix)
    objective = (matrix @ theirs.centroids.T).max(axis=1).mean()
    # Both end in a local optimum; these differ by their beginnings.
    assert ours.similarity.mean() > objective - 0.02


@given(st.integers(1, 40), st.integers(0, 10**6))
def test_products_are_within_the_slack(dimensions: int, seed: int) -> None:
    matrix = mixture(50, dimensions, 5, seed)
    left, right = np.divmod(np.arange(2500), 50)
    exact = similarities(matrix, left, right)
    fast = (matrix @ matrix.T).ravel()
    assert np.abs(exact - np.minimum(fast, 1.0)).max() <= slack(dimensions)
    assert np.allclose(exact, similarities(matrix, right, left), atol=0)


def test_similarities_do_not_depend_on_the_workers() -> None:
    matrix = mixture(400, 100, 5)
    left, right = np.divmod(np.arange(160_000), 400)
    one, two = (similarities(matrix, left, right, workers) for workers in (1, 2))
    assert np.array_equal(one, two)
    exact = np.array(
        [float(np.dot(matrix[3].astype(float), matrix[j].astype(float))) for j in (5, 9)]
    )
    assert np.allclose(one.reshape(400, 400)[3, [5, 9]], exact, atol=1e-15)
