"""Semantic duplicates against all pairs and the published loop, and what blows others up."""

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.selectors import similar_pairs
from tamis.selectors.clusters import Clusters, kmeans
from tamis.selectors.semantic_duplicates import (
    SemanticDuplicates,
    greedy,
    published,
    semantic_duplicates,
)
from tamis.selectors.similar_pairs import true_neighbours
from tamis.selectors.survivors import EDGES_PER_ROW
from tests.selectors.test_clusters import Matrix, draws_of, mixture, unit

Floats = npt.NDArray[np.float64]


def products(matrix: Matrix) -> Floats:
    wide = matrix.astype(np.float64)
    return np.minimum(wide @ wide.T, 1.0)


def slow_greedy(matrix: Matrix, order: npt.NDArray[np.int64], threshold: float) -> dict[int, int]:
    """Dropped row to its partner, from all pairs."""
    similarity = products(matrix)
    kept: list[int] = []
    partner = {}
    for row in order.tolist():
        near = [other for other in kept if similarity[row, other] >= threshold]
        if near:
            partner[row] = max(near, key=lambda other: similarity[row, other])
        else:
            kept.append(row)
    return partner


def slow_published(matrix: Matrix, clusters: Clusters, threshold: float) -> set[int]:
    """Rows that SemDeDup drops: cluster by cluster, the upper triangle of the similarities."""
    similarity = products(matrix)
    lost = set()
    for cluster in range(len(clusters)):
        items = np.flatnonzero(clusters.assignment == cluster)
        items = items[np.argsort(clusters.similarity[items], kind="stable")]
        block = np.triu(similarity[np.ix_(items, items)], k=1)
        if len(items):
            lost |= set(items[block.max(axis=0, initial=0) >= threshold].tolist())
    return lost


def everywhere(matrix: Matrix, k: int) -> Clusters:
    """Clusters of which every row looks into all."""
    return kmeans(matrix, k, draw=draws_of(len(matrix)), probes=k)


def check_partners(found: SemanticDuplicates) -> None:
    lost = np.flatnonzero(~found.kept)
    assert found.kept[found.partner[lost]].all()
    assert (found.partner[found.kept] == -1).all()
    assert np.isnan(found.similarity[found.kept]).all()


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("dimensions", [3, 5, 8, 33])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_greedy_equals_all_pairs(dimensions: int, threshold: float, k: int) -> None:
    # In few dimensions most rows have many duplicates: chains, and lists that are cut short.
    matrix = mixture(700, dimensions, 12, spread=0.7)
    order = np.random.default_rng(5).permutation(700)
    found = greedy(matrix, everywhere(matrix, k), order, threshold, edge_floor=threshold)
    expected = slow_greedy(matrix, order, threshold)
    assert np.flatnonzero(~found.kept).tolist() == sorted(expected)
    assert {row: int(found.partner[row]) for row in expected} == expected
    similarity = products(matrix)
    for row, partner in expected.items():
        assert found.similarity[row] == pytest.approx(similarity[row, partner], abs=1e-12)
        assert found.similarity[row] >= threshold
    check_partners(found)


@pytest.mark.parametrize("probes", [1, 2, 3])
def test_a_pair_is_met_from_either_side(probes: int) -> None:
    """Greedy over exactly the pairs of which one reaches the other's cluster."""
    matrix = mixture(600, 6, 10, spread=0.8)
    clusters = kmeans(matrix, 9, draw=draws_of(600), probes=probes)
    reaches = (clusters.nearest[:, :, None] == clusters.assignment[None, None, :]).any(axis=1)
    met = reaches | reaches.T
    similarity = products(matrix)
    order = np.random.default_rng(1).permutation(600)
    kept: list[int] = []
    for row in order.tolist():
        if not any(met[row, o] and similarity[row, o] >= 0.8 for o in kept):
            kept.append(row)
    found = greedy(matrix, clusters, order, 0.8, edge_floor=0.7)
    assert np.flatnonzero(found.kept).tolist() == sorted(kept)
    above = int((met & (similarity >= 0.8)).sum() - 600) // 2
    assert found.counts["duplicate_pairs"] == above
    near = int((met & (similarity >= 0.7)).sum() - 600) // 2
    assert len(found.edges) + found.counts["edges_left_out"] == near
    place = np.argsort(order)
    edge_row, edge_other, _ = found.edges.together()
    for row in range(600):
        mine = edge_row == row
        earlier = np.flatnonzero(met[row] & (place < place[row]) & (similarity[row] >= 0.7))
        best = earlier[np.argsort(-similarity[row, earlier])][:EDGES_PER_ROW]
        assert sorted(edge_other[mine].tolist()) == sorted(best.tolist())


@pytest.mark.parametrize("threshold", [0.6, 0.85, 0.97])
@pytest.mark.parametrize("k", [1, 6, 25])
def test_published_equals_the_papers_loop(threshold: float, k: int) -> None:
    matrix = mixture(500, 6, 10, spread=0.6)
    clusters = kmeans(matrix, k, draw=draws_of(500))
    found = published(matrix, clusters, threshold=threshold)
    assert set(np.flatnonzero(~found.kept).tolist()) == slow_published(matrix, clusters, threshold)
    check_partners(found)
    lost = np.flatnonzero(~found.kept)
    similarity = products(matrix)
    assert np.allclose(found.similarity[lost], similarity[lost, found.partner[lost]], atol=1e-12)
    assert (found.value[lost] >= threshold).all()


def test_a_chain_as_published_and_greedy() -> None:
    """Four steps of 20 degrees: one is a duplicate of the next, not of the one after."""
    angles = np.deg2rad([0, 20, 40, 60])
    matrix = unit(np.c_[np.cos(angles), np.sin(angles)])
    clusters = Clusters(
        centroids=unit([[1, 0]]),
        assignment=np.zeros(4, np.int32),
        similarity=matrix[:, 0].astype(np.float64),
        nearest=np.zeros((4, 1), np.int32),
        iterations=1,
    )
    # Farthest from the centroid first: 3, 2, 1, 0. A dropped row still suppresses the next.
    by_paper = published(matrix, clusters, threshold=0.9)
    assert by_paper.kept.tolist() == [False, False, False, True]
    assert by_paper.partner.tolist() == [3, 3, 3, -1]
    assert by_paper.value[:3].round(6).tolist() == [0.939693] * 3
    assert by_paper.similarity[:3].round(6).tolist() == [0.5, 0.766044, 0.939693]
    found = greedy(matrix, clusters, np.array([3, 2, 1, 0]), 0.9, edge_floor=0.9)
    assert found.kept.tolist() == [False, True, False, True]
    assert found.partner.tolist() == [1, -1, 3, -1]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.75, 0.9, 1.0])
def test_a_share_is_met_to_the_row(fraction: float) -> None:
    matrix = np.r_[mixture(400, 6, 10), np.repeat(mixture(1, 6, 1, seed=9), 100, axis=0)]
    clusters = kmeans(matrix, 5, draw=draws_of(500))
    found = published(matrix, clusters, fraction=fraction)
    assert found.kept.sum() == round(500 * fraction)
    check_partners(found)
    if fraction == 1.0:
        assert np.isnan(found.threshold)
        return
    # Exactly the rows with the highest similarity to an earlier one.
    everyone = published(matrix, clusters, threshold=1e-9, edge_floor=0)
    lost = np.flatnonzero(~found.kept)
    assert (found.value[lost] >= found.threshold).all()
    assert np.nansum(everyone.value > found.threshold) <= len(lost)


def test_a_share_stops_where_no_row_has_an_earlier_one() -> None:
    matrix = np.eye(4, dtype=np.float32)
    clusters = kmeans(matrix, 4, draw=draws_of(4))
    assert published(matrix, clusters, fraction=0.5).kept.all()


def test_ten_thousand_copies() -> None:
    copies = np.repeat(mixture(1, 64, 1), 10_000, axis=0)
    begin = time.perf_counter()
    found = semantic_duplicates(copies, 0.9)
    assert found.kept.tolist() == [True] + [False] * 9_999
    assert (found.partner[1:] == 0).all()
    assert (found.similarity[1:] == 1).all()
    assert len(found.edges) == 9_999
    assert found.counts["compared_pairs"] == 0
    assert time.perf_counter() - begin < 20


def test_five_thousand_near_copies_have_few_edges() -> None:
    random = np.random.default_rng(3)
    matrix = unit(np.ones(32) + 0.05 * random.standard_normal((5000, 32)))
    found = semantic_duplicates(matrix, 0.9)
    assert found.kept.sum() == 1
    assert (found.partner[1:] == 0).all()
    assert len(found.edges) <= EDGES_PER_ROW * 5000
    assert found.counts["edges_left_out"] > 1_000_000
    assert found.counts["duplicate_pairs"] == 5000 * 4999 // 2
    # A clump that k-means cuts into many clusters may keep a row in each of them, not more.
    cut = semantic_duplicates(matrix, 0.9, k=71, probes=3)
    assert cut.kept.sum() < 71
    check_partners(cut)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(rows: int) -> None:
    matrix = mixture(2, 8, 1, spread=0.01)[:rows]
    found = semantic_duplicates(matrix, 0.9)
    assert found.kept.tolist() == [True, False][:rows]
    clusters = kmeans(matrix, draw=draws_of(rows))
    assert published(matrix, clusters, threshold=0.9).kept.sum() == min(rows, 1)
    assert published(matrix, clusters, fraction=0.5).kept.sum() == min(rows, 1)


def test_no_duplicates() -> None:
    found = semantic_duplicates(np.eye(50, dtype=np.float32), 0.5, k=7)
    assert found.kept.all()
    assert len(found.edges) == 0


def test_zero_vectors_are_nobodys_duplicates() -> None:
    matrix = np.zeros((6, 4), np.float32)
    matrix[3:] = 1
    found = semantic_duplicates(matrix, 0.5)
    assert found.kept.tolist() == [True] * 4 + [False] * 2
    assert found.counts["zero_vectors"] == 3
    assert semantic_duplicates(np.zeros((5, 4), np.float32), 0.5).kept.all()


def test_a_threshold_of_one_means_equal_directions() -> None:
    matrix = np.array([[3, 4], [6, 8], [3, 4.01], [1, 0]], np.float32)
    assert semantic_duplicates(matrix, 1.0).kept.tolist() == [True, False, True, True]


def outcome(found: SemanticDuplicates) -> list[bytes]:
    row, other, similarity = found.edges.together()
    order = np.lexsort((other, row))
    edges = (row[order], other[order], similarity[order])
    return [array.tobytes() for array in (found.kept, found.partner, found.similarity, *edges)]


@pytest.mark.parametrize("greedily", [True, False])
def test_rounding_to_float32_parts_no_equal_directions(greedily: bool) -> None:
    vectors = np.random.default_rng(8).standard_normal((200, 384)).astype(np.float32)
    both = np.concatenate([vectors, 3 * vectors])
    if greedily:
        kept = semantic_duplicates(both, 1.0).kept
        assert kept.tolist() == [True] * 200 + [False] * 200
    else:
        matrix = unit(both)
        clusters = kmeans(matrix, 3, draw=draws_of(len(matrix)))
        assert published(matrix, clusters, threshold=1.0).kept.sum() == 200
    near = np.concatenate([vectors, vectors + np.float32(2e-4) * vectors[::-1]])
    assert semantic_duplicates(near, 1.0).kept.all()


def test_workers_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = mixture(3000, 10, 40, spread=0.6)
    first = semantic_duplicates(matrix, 0.9, k=50, workers=1)
    assert outcome(first) == outcome(semantic_duplicates(matrix, 0.9, k=50, workers=4))
    for name, size in {
        "ROWS_A_JOB": 37,
        "ROWS_AT_ONCE": 5,
        "OTHERS_AT_ONCE": 11,
        "ROWS_A_ROUND": 100,
    }.items():
        monkeypatch.setattr(similar_pairs, name, size)
    cut = semantic_duplicates(matrix, 0.9, k=50, workers=2)
    assert outcome(first) == outcome(cut)
    assert first.counts["duplicate_pairs"] == cut.counts["duplicate_pairs"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=40),
    st.sampled_from([0.3, 0.7, 0.9, 1.0]),
    st.integers(1, 5),
)
def test_any_vectors_keep_a_partner(rows: list[list[int]], threshold: float, k: int) -> None:
    matrix = unit(rows)
    found = greedy(
        matrix, everywhere(matrix, k), np.arange(len(rows)), threshold, edge_floor=threshold
    )
    check_partners(found)
    lost = np.flatnonzero(~found.kept)
    assert (found.similarity[lost] >= threshold).all()
    # Ties at the threshold are decided by exact products; leave room for those of numpy.
    similarity = products(matrix)
    kept = np.flatnonzero(found.kept)
    apart = similarity[np.ix_(kept, kept)][~np.eye(len(kept), dtype=bool)]
    assert (apart < threshold + 1e-9).all()


def test_true_neighbours_are_all_of_them() -> None:
    matrix = mixture(900, 12, 10)
    asked = np.arange(0, 900, 7)
    found = true_neighbours(matrix, asked, 0.8, workers=2)
    similarity = products(matrix)
    np.fill_diagonal(similarity, 0)
    expected = [(i, j) for i in asked for j in np.flatnonzero(similarity[i] >= 0.8)]
    assert list(zip(found.row, found.other, strict=True)) == expected
    assert np.allclose(found.similarity, similarity[found.row, found.other], atol=1e-12)
    assert len(true_neighbours(matrix, asked[:0], 0.8).row) == 0


def test_recall_with_three_probes() -> None:
    """A hard case: no clusters at all, and partners planted at graded similarities."""
    random = np.random.default_rng(0)
    base = unit(random.standard_normal((4000, 64)))
    noise = random.standard_normal((4000, 64))
    cosine = random.uniform(0.9, 1, 4000)[:, None]
    noise = unit(noise - (noise * base).sum(axis=1, keepdims=True) * base)
    matrix = np.r_[base, unit(cosine * base + np.sqrt(1 - cosine**2) * noise)]
    truth = true_neighbours(matrix, np.arange(8000), 0.9, workers=2)
    found = semantic_duplicates(matrix, 0.9, k=89, probes=3)
    recall = (found.edges.together()[2] >= 0.9).sum() / (len(truth.row) / 2)
    assert recall > 0.97
