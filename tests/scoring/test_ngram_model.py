"""The n-gram model: Kneser-Ney by hand, by a slow implementation, and as a distribution."""

from collections import Counter, defaultdict
from math import log
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tamis
from tamis.scoring.ngram_model import HIGHEST_ORDER, NgramLogp, NgramModel, read_model
from tests.conftest import make_texts

Gram = tuple[int, ...]
START = -1
MIXED = [
    "the cat sat",
    "the dog ate the cat",
    "漢字とかな",
    "e\u0301 é",
    "👩‍👩‍👧 🏳️‍🌈",
    "",
    "a",
    "\0\xff",
]


class SlowKneserNey:
    """Chen and Goodman 1999, section 2.7 and appendix A.1.5, over dictionaries of tuples."""

    def __init__(self, texts: list[bytes], order: int) -> None:
        self.order = order
        raw: list[Counter[Gram]] = [Counter() for _ in range(order + 2)]
        for text in texts:
            stream = (START, *text)
            for n in range(1, order + 1):
                for end in range(n, len(stream) + 1):
                    gram = stream[end - n : end]
                    if gram[-1] != START:
                        raw[n][gram] += 1
        self.counts: list[dict[Gram, int]] = [{} for _ in range(order + 1)]
        self.counts[order] = dict(raw[order])
        for n in range(1, order):
            before = defaultdict(set)
            for gram in raw[n + 1]:
                before[gram[1:]].add(gram[0])
            for gram in raw[n]:
                is_first = gram[0] == START
                self.counts[n][gram] = raw[n][gram] if is_first else len(before[gram])
        self.discounts = [self._discounts(list(c.values())) for c in self.counts]
        self.followers: list[dict[Gram, dict[int, int]]] = []
        for counts in self.counts:
            following: dict[Gram, dict[int, int]] = defaultdict(dict)
            for gram, count in counts.items():
                following[gram[:-1]][gram[-1]] = count
            self.followers.append(following)

    @staticmethod
    def _discounts(counts: list[int]) -> list[float]:
        n = [0, *(counts.count(c) for c in (1, 2, 3, 4))]
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            found = [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
            if all(0 < d <= c for c, d in enumerate(found, 1)):
                return [0.0, *found]
        return [0.0, 0.5, 1.0, 1.5]

    def p(self, byte: int, context: Gram) -> float:
        n = len(context) + 1
        lower = 1 / 256 if n == 1 else None
        following = self.followers[n].get(context)
        if following is None:
            return 1 / 256 if n == 1 else self.p(byte, context[1:])
        if lower is None:
            lower = self.p(byte, context[1:])
        off = self.discounts[n]
        total = sum(following.values())
        left = sum(off[min(count, 3)] for count in following.values())
        count = following.get(byte, 0)
        return (count - off[min(count, 3)]) / total + left / total * lower

    def log_likelihood(self, text: bytes) -> float:
        stream = (START, *text)
        size = self.order - 1
        return sum(
            log(self.p(stream[i], stream[max(0, i - size) : i])) for i in range(1, len(stream))
        )


def test_a_number_by_hand() -> None:
    """abab, order 2. Discounts .5, 1 (no count is 3: the fallback). Bytes by what precedes them:
    a after the beginning and b, b after a, so p(a) = (2 - 1) / 3 + .5 / 256 and
    p(b) = (1 - .5) / 3 + .5 / 256, where .5 = (1 + .5) / 3 is left for the uniform."""
    p_a, p_b = 1 / 3 + 0.5 / 256, 0.5 / 3 + 0.5 / 256
    a_after_b = a_first = (1 - 0.5) / 1 + 0.5 / 1 * p_a
    b_after_a = (2 - 1) / 2 + 1 / 2 * p_b
    model = NgramModel.trained(pa.array(["abab"]), 2)
    found = model.log_likelihood(pa.array(["abab", "ab", "c"]))
    assert found[0] == pytest.approx(log(a_first * b_after_a * a_after_b * b_after_a), rel=1e-6)
    assert found[1] == pytest.approx(log(a_first * b_after_a), rel=1e-6)
    assert found[2] == pytest.approx(log(0.5 * 0.5 / 256), rel=1e-6)


@pytest.mark.parametrize("order", range(1, HIGHEST_ORDER + 1))
def test_equals_the_slow_implementation(order: int) -> None:
    texts = [*make_texts(30, seed=order), *MIXED]
    model = NgramModel.trained(pa.array(texts), order)
    slow = SlowKneserNey([text.encode() for text in texts], order)
    wanted = [*texts[:5], *make_texts(5, seed=99), *MIXED, "zebra ", "字漢", "the cat " * 40]
    # Around the length from which a text is walked in several parts.
    wanted += [("the catalogue of words " * 9)[:size] for size in range(120, 145)]
    found = model.log_likelihood(pa.array(wanted))
    expected = [slow.log_likelihood(text.encode()) for text in wanted]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert model.counts.tolist() == [len(counts) for counts in slow.counts[1:]]


def test_estimated_discounts_are_used() -> None:
    texts = make_texts(30, seed=3)
    slow = SlowKneserNey([text.encode() for text in texts], 5)
    assert slow.discounts[5] != [0.0, 0.5, 1.0, 1.5], "the fallback only would be tested"


@settings(max_examples=60)
@given(
    st.lists(st.binary(max_size=40), max_size=5),
    st.binary(max_size=12),
    st.integers(1, HIGHEST_ORDER),
)
def test_probabilities_of_all_bytes_sum_to_one(
    texts: list[bytes], context: bytes, order: int
) -> None:
    p = NgramModel.trained(pa.array(texts, pa.binary()), order).distribution(context)
    assert (p > 0).all()
    assert p.sum() == pytest.approx(1, abs=1e-5)


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=90), max_size=6), st.binary(max_size=200), st.integers(1, 7))
def test_equals_the_slow_implementation_on_any_bytes(
    texts: list[bytes], text: bytes, order: int
) -> None:
    model = NgramModel.trained(pa.array(texts, pa.binary()), order)
    found = model.log_likelihood(pa.array([text], pa.binary()))[0]
    assert found == pytest.approx(SlowKneserNey(texts, order).log_likelihood(text), rel=1e-5)


def test_contexts_that_all_bytes_and_that_many_follow() -> None:
    """Records of every kind: 1 to 8 labels, up to 24, and a value for every byte."""
    texts = [bytes([1, b]) for b in range(256)]
    texts += [bytes([2, b]) for b in range(24)] + [bytes([3, b, b]) for b in range(25)]
    texts += [bytes([4, b]) for b in range(8)] + [bytes([5, b]) for b in range(9)]
    model = NgramModel.trained(pa.array(texts, pa.binary()), 3)
    slow = SlowKneserNey(texts, 3)
    every = [bytes([a, b]) for a in range(7) for b in range(256)]
    expected = [slow.log_likelihood(text) for text in every]
    found = model.log_likelihood(pa.array(every, pa.binary()))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_neither_order_nor_layout_of_texts_counts() -> None:
    texts = [*make_texts(50), *MIXED]
    model = NgramModel.trained(pa.array(texts), 5)
    others = [
        pa.array(texts[::-1]),
        pa.array(["left out", *texts, "as well"], pa.large_string()).slice(1, len(texts)),
        pa.array(texts).cast(pa.large_binary()),
    ]
    for other in others:
        for one, two in zip(model, NgramModel.trained(other, 5), strict=True):
            np.testing.assert_array_equal(one, two)
    found = model.log_likelihood(pa.array(texts))
    np.testing.assert_array_equal(found, model.log_likelihood(others[1]))
    np.testing.assert_array_equal(found, [model.log_likelihood(pa.array([t]))[0] for t in texts])


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_nothing_to_train_on_makes_all_bytes_alike_likely(texts: list[str]) -> None:
    for order in (1, 5):
        model = NgramModel.trained(pa.array(texts, pa.string()), order)
        found = model.log_likelihood(pa.array(["", "a", "漢"]))
        np.testing.assert_allclose(found, [0, -log(256), -3 * log(256)], rtol=1e-6)


def test_a_huge_document_is_the_sum_of_its_bytes() -> None:
    text = " ".join(make_texts(50)).encode()
    model = NgramModel.trained(pa.array([text[:5000]], pa.binary()), 4)
    many = text * (1 + 2_000_000 // len(text))
    found = model.log_likelihood(pa.array([many], pa.large_binary()))[0]
    slow = SlowKneserNey([text[:5000]], 4)
    once = slow.log_likelihood(text)
    # After the first copy every other one has the last bytes of the one before as its context.
    again = slow.log_likelihood(text * 2) - once
    assert found == pytest.approx(once + again * (len(many) // len(text) - 1), rel=1e-6)


def test_the_file_is_plain_and_holds_all(tmp_path: Path) -> None:
    model = NgramModel.trained(pa.array(make_texts(50)), 5)
    model.write(tmp_path / "model.npz")
    back = read_model(str(tmp_path / "model.npz"))
    for one, two in zip(model, back, strict=True):
        np.testing.assert_array_equal(one, two)
    with np.load(tmp_path / "model.npz", allow_pickle=False) as held:
        assert set(held.files) == {"order", "begin", "records", "counts"}
    frame = pa.table({"text": ["", "some words"]})
    scored = tamis.score("ngram_logp", frame, params={"model": str(tmp_path / "model.npz")})
    assert scored["ngram_logp"].to_list() == [
        None,
        model.log_likelihood(pa.array(["some words"]))[0],
    ]
    assert scored["ngram_bytes"].to_list() == [0, 10]


def test_where_the_model_lies_is_no_part_of_the_key() -> None:
    a, b = (NgramLogp(model=path, digest="d").key_parts() for path in ("a", "b"))
    assert a == b
    assert NgramLogp(model="a", digest="e").key_parts() != a
