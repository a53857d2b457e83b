"""Word n-grams of items in texts, against the definition written down plainly."""

import random
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.scoring.ngram_index import ContaminationHits, NgramIndex, find, words_of
from tests.scoring.test_words import SCRIPTS

Gram = tuple[str, ...]


def words(text: str) -> list[str]:
    assert text.isascii()
    return re.findall(r"\w+", text.lower())


def grams_of(text: str, ngram: int, min_words: int) -> list[Gram]:
    found = words(text)
    if len(found) < min_words:
        return []
    if len(found) < ngram:
        return [tuple(found)]
    return [tuple(found[i : i + ngram]) for i in range(len(found) - ngram + 1)]


def plainly(
    text: str, items: list[str], ngram: int, min_words: int, max_items: int | None
) -> tuple[int, float, float, str]:
    """Item, share of the row, share of the item, words of the first n-gram."""
    held: dict[Gram, set[int]] = {}
    for number, item in enumerate(items):
        for gram in grams_of(item, ngram, min_words):
            held.setdefault(gram, set()).add(number)
    if max_items is not None:
        held = {gram: who for gram, who in held.items() if len(who) <= max_items}
    row = words(text)
    hits: list[tuple[int, Gram]] = []
    for i in range(len(row)):
        hits += [(i, gram) for gram in held if tuple(row[i : i + len(gram)]) == gram]
    if not hits:
        return -1, 0.0, 0.0, ""
    best = (-1, 0.0)
    for number in range(len(items)):
        own = {gram for gram, who in held.items() if number in who}
        share = len(own & {gram for _, gram in hits}) / len(own) if own else 0.0
        if share > best[1]:
            best = (number, share)
    first = min(i for i, gram in hits if best[0] in held[gram])
    lengths = {len(gram) for i, gram in hits if i == first and best[0] in held[gram]}
    windows = max(1, len(row) - ngram + 1)
    row_share = min(1.0, len({i for i, _ in hits}) / windows)
    assert len(lengths) == 1
    return best[0], row_share, best[1], " ".join(row[first : first + lengths.pop()])


def compare(texts: list[str], items: list[str], ngram: int, fewest: int, most: int | None) -> None:
    index = NgramIndex.of(pa.array(items, pa.string()), ngram, fewest, most)
    found = find(pa.array(texts, pa.string()), index)
    for i, text in enumerate(texts):
        item, row_share, item_share, gram = plainly(text, items, ngram, fewest, most)
        assert found.item[i] == item
        assert found.row_share[i] == row_share
        assert found.item_share[i] == item_share
        excerpt = text.encode()[found.start[i] : found.stop[i]].decode()
        assert " ".join(words(excerpt)) == gram


@pytest.mark.parametrize("most", [None, 1, 3])
@pytest.mark.parametrize(("ngram", "fewest"), [(3, 1), (5, 2), (4, 4)])
def test_the_rule(ngram: int, fewest: int, most: int | None) -> None:
    draw = random.Random(ngram)
    vocabulary = ["Aa", "bb", "c_c", "dd", "e", "1", "Ff"]

    def some(longest: int) -> str:
        size = draw.randint(0, longest)
        return "".join(w + draw.choice([" ", ", ", "\n"]) for w in draw.choices(vocabulary, k=size))

    items = [some(9) for _ in range(40)]
    compare([some(30) for _ in range(150)], items, ngram, fewest, most)


@given(
    st.lists(st.text(alphabet="ab ", max_size=14), max_size=6),
    st.lists(st.text(alphabet="aB .", max_size=20), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_text(items: list[str], texts: list[str]) -> None:
    compare(texts, items, 3, 2, None)


def test_an_item_far_into_a_long_text() -> None:
    draw = random.Random(1)
    vocabulary = [f"word{i}" for i in range(500)]
    item = "the item that is planted far into a text of very many words"
    for size in (0, 1, 600, 700, 3000):
        padding = " ".join(draw.choices(vocabulary, k=size))
        compare([f"{padding} {item.upper()} {padding}"], [item, padding[:50]], 8, 4, None)


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_other_scripts(text: str) -> None:
    index = NgramIndex.of(pa.array([text]), 3, 1, None)
    padded = f"« 本 {text.upper()} » ½ ok"
    found = find(pa.array([padded, "something else altogether"]), index)
    assert found.item.tolist() == [0, -1]
    assert found.item_share[0] == 1
    excerpt = padded.encode()[found.start[0] : found.stop[0]].decode()
    inner, _ = words_of(pa.array([excerpt]))
    assert inner.tolist() == words_of(pa.array([text]))[0][:3].tolist()


def test_an_excerpt_keeps_marks_and_joined_emoji() -> None:
    item = "cafe\u0301 👍🏽 漢字 naïve"
    index = NgramIndex.of(pa.array([item]), 4, 2, None)
    text = "(Café 👍🏽漢字, naïve!)"
    found = find(pa.array([text]), index)
    assert found.item[0] == 0
    assert text.encode()[found.start[0] : found.stop[0]].decode().startswith("Café 👍🏽漢")


def test_templates_are_ignored_and_counted() -> None:
    items = [f"which of the following is true of topic {i}" for i in range(12)] + ["too short"]
    index = NgramIndex.of(pa.array(items), 5, 3, 10)
    # items, too short, without n-grams, n-grams, ignored
    assert index.counts.tolist() == [13, 1, 0, 12, 4]
    texts = pa.array(["Which of the following is true of topic five", "is true of topic 5"])
    assert find(texts, index).item.tolist() == [-1, 5]
    assert NgramIndex.of(pa.array(items[:12]), 9, 3, 1).counts.tolist() == [12, 0, 0, 12, 0]
    assert NgramIndex.of(pa.array(["a b c"] * 3), 3, 3, 2).counts.tolist() == [3, 0, 3, 0, 1]


@pytest.mark.parametrize("items", [[], [""], ["one"]])
def test_no_items(items: list[str]) -> None:
    index = NgramIndex.of(pa.array(items, pa.string()), 13, 8, 10)
    assert find(pa.array(["one", "", "one two " * 20]), index).item.tolist() == [-1, -1, -1]


def test_the_signal_reads_a_stored_index(tmp_path: Any) -> None:
    path = tmp_path / "index.npz"
    NgramIndex.of(pa.array(["one two three four"]), 3, 2, None).write(path)
    signal = ContaminationHits(index=str(path), digest="0")
    batch = pa.record_batch({"text": ["zero", "ONE, two,\nthree!", ""]})
    found = signal.compute(batch).to_pylist()
    assert [row["hit_item"] for row in found] == [None, 0, None]
    assert [row["hit_ngram"] for row in found] == [None, "ONE, two,\nthree", None]
    assert found[1]["hit_item_share"] == 0.5
    assert "index" not in signal.key_parts()
