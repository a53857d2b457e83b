"""Near-duplicates against all pairs, and the cases that make other tools blow up."""

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.selectors.near_dedup import near_duplicates
from tests.conftest import make_texts
from tests.scoring.test_minhash import sets_of


def all_pairs(texts: list[str], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Greedy maximal independent set over exact similarities of all pairs, longest first."""
    sets = sets_of(texts)
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    similarity = np.array(
        [[len(a & b) / len(a | b) for b in sets] for a in sets] if sets else np.zeros((0, 0))
    )
    kept: list[int] = []
    for i in order:
        if not any(similarity[i, j] >= threshold for j in kept):
            kept.append(i)
    mask = np.zeros(len(texts), bool)
    mask[kept] = True
    return mask, similarity


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_survivors_equal_all_pairs(threshold: float, seed: int) -> None:
    texts = make_texts(300, seed=seed, words=40, copies=0.6)
    found = near_duplicates(pa.array(texts), threshold, workers=2)
    kept, similarity = all_pairs(texts, threshold)
    # Banding misses a pair with probability 1e-3 at most; on these corpora it misses none.
    assert np.array_equal(found.kept, kept)
    for row in np.flatnonzero(~found.kept):
        partner = found.partner[row]
        assert found.kept[partner]
        assert found.similarity[row] == similarity[row, partner] >= threshold


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12).map(" ".join),
        min_size=1,
        max_size=25,
    )
)
def test_a_dropped_row_always_has_a_kept_partner(texts: list[str]) -> None:
    found = near_duplicates(pa.array(texts), 0.6, ngram=2, workers=1)
    for row in np.flatnonzero(~found.kept):
        assert found.kept[found.partner[row]]
        assert found.similarity[row] >= 0.6
    assert (found.partner[found.kept] == -1).all()


def test_edges_are_exact_and_reach_down_to_the_floor() -> None:
    texts = make_texts(200, words=80, copies=0.7)
    found = near_duplicates(pa.array(texts), 0.8, edge_floor=0.6)
    sets = sets_of(texts)
    for a, b, value in zip(*found.edges.together(), strict=True):
        assert value == len(sets[a] & sets[b]) / len(sets[a] | sets[b]) >= 0.6
    assert found.edges.together()[2].min() < 0.8


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        ([], []),
        (["one"], [True]),
        (["", ""], [True, False]),
        (["!!!", "???"], [True, True]),
        (["same words here"] * 4, [True, False, False, False]),
        (["a b", "c d", "e f"], [True, True, True]),
    ],
)
def test_small_corpora(texts: list[str], kept: list[bool]) -> None:
    assert near_duplicates(pa.array(texts, pa.string())).kept.tolist() == kept


def test_ten_thousand_copies_take_one_comparison_each() -> None:
    text = make_texts(1, words=500)[0]
    others = make_texts(500, seed=1, copies=0)
    found = near_duplicates(pa.array([text] * 10_000 + others))
    assert found.kept.sum() == 501
    assert found.counts["verified_pairs"] < 20_000


def test_ten_thousand_near_copies_do_not_grow_quadratically() -> None:
    random = np.random.default_rng(0)
    base = [f"w{i}" for i in random.integers(0, 5000, 400)]
    texts = []
    for i in range(10_000):
        found = list(base)
        found[int(random.integers(400))] = f"only{i}"
        texts.append(" ".join(found))
    result = near_duplicates(pa.array(texts))
    assert result.counts["verified_pairs"] < 100_000
    # Every text is within .97 of every other: one stays.
    assert result.kept.sum() == 1


def test_documents_of_one_template_are_neither_dropped_nor_quadratic() -> None:
    random = np.random.default_rng(0)
    template = [f"t{i}" for i in range(130)]
    texts = [
        " ".join([*template, *(f"x{v}" for v in random.integers(0, 1 << 40, 66))])
        for _ in range(6_000)
    ]
    near_duplicates(pa.array(texts[:300]))
    begin = time.perf_counter()
    found = near_duplicates(pa.array(texts))
    assert found.kept.all()  # J is about .48
    assert found.counts["bucket_splits"] > 0
    assert time.perf_counter() - begin < 60


def test_duplicates_within_a_template_are_found_after_its_buckets_are_split() -> None:
    random = np.random.default_rng(0)
    template = [f"t{i}" for i in range(130)]
    texts = [
        " ".join([*template, *(f"x{v}" for v in random.integers(0, 1 << 40, 66))])
        for _ in range(3_000)
    ]
    copies = [text + f" extra{i}" for i, text in enumerate(texts[:300])]  # J about .995
    found = near_duplicates(pa.array(texts + copies))
    assert found.counts["bucket_splits"] > 0
    assert (~found.kept).sum() == 300
    assert (found.partner[:300] == np.arange(3_000, 3_300)).all()


def test_the_number_of_workers_changes_nothing() -> None:
    texts = pa.array(make_texts(2_000, copies=0.5))
    one, two = near_duplicates(texts, workers=1), near_duplicates(texts, workers=2)
    assert np.array_equal(one.partner, two.partner)
    assert np.array_equal(one.similarity, two.similarity, equal_nan=True)
    assert all(map(np.array_equal, one.edges.together(), two.edges.together()))


def test_chunks_change_nothing() -> None:
    texts = make_texts(500, copies=0.5)
    whole = near_duplicates(pa.array(texts))
    chunked = pa.chunked_array([texts[:7], texts[7:400], texts[400:]])
    assert np.array_equal(near_duplicates(chunked).partner, whole.partner)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 3)), max_size=60),
    st.integers(1, 5),
)
def test_thebest_edges_of_every_row(pairs: list[tuple[int, int, int]], limit: int) -> None:
    from tamis.selectors.survivors import Pairs, best_edges

    unique = sorted({(row, other): value for row, other, value in pairs}.items())
    row, other = (np.array([p[0][k] for p in unique], np.int32) for k in (0, 1))
    value = np.array([p[1] for p in unique], np.float64)
    found = best_edges(Pairs(row, other, value), limit)
    expected = []
    for name in sorted(set(row.tolist())):
        mine = [(-v, o) for r, o, v in zip(row, other, value, strict=True) if r == name]
        expected += [(name, o, -v) for v, o in sorted(mine)[:limit]]
    assert sorted(zip(*map(np.ndarray.tolist, found), strict=True)) == sorted(expected)
