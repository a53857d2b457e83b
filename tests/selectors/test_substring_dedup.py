"""Repeated substrings, against all windows listed plainly and against a suffix array."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamis.scoring.anchors import SubstringAnchors, anchors_of
from tamis.scoring.cuts import Stretches, cut, draw_in
from tamis.selectors import substring_dedup
from tamis.selectors.repeats import Filter
from tests.conftest import make_texts
from tests.selectors.cutter_tools import canonical_order, row_ids, run

LENGTH = 16


def by_windows(texts: list[bytes], length: int) -> list[list[bool]]:
    """Of texts in canonical order, the bytes in a window that occurred before."""
    seen: set[bytes] = set()
    gone = []
    for text in texts:
        marks = [False] * len(text)
        for i in range(len(text) - length + 1):
            window = text[i : i + length]
            if window in seen:
                marks[i : i + length] = [True] * length
            seen.add(window)
        gone.append(marks)
    return gone


def by_suffix_array(texts: list[bytes], length: int) -> list[list[bool]]:
    """The same from the suffixes in order and the lengths that neighbours have in common."""
    joined: list[int] = []
    owner: list[tuple[int, int]] = []
    for number, text in enumerate(texts):
        joined += [*text, 256 + number]  # every text ends in a letter of its own
        owner += [(number, i) for i in range(len(text) + 1)]
    suffixes = sorted(range(len(joined)), key=lambda i: joined[i:])
    gone = [[False] * len(text) for text in texts]
    group: list[int] = []

    def settle() -> None:
        for start in sorted(group)[1:]:
            number, i = owner[start]
            gone[number][i : i + length] = [True] * length

    for a, b in zip([*suffixes[:1], *suffixes], suffixes, strict=False):
        common = 0
        while joined[a + common : a + common + 1] == joined[b + common : b + common + 1] != []:
            common += 1
            if common == length:
                break
        if a != b and common < length:
            settle()
            group = []
        group.append(b)
    settle()
    return gone


def left_of(texts: list[str], gone: list[list[bool]], bounds: Any = "character") -> list[str]:
    """Texts without the marked bytes, drawn in to characters, words or lines."""
    rows, starts, stops = [], [], []
    for row, marks in enumerate(gone):
        edges = np.flatnonzero(np.diff([0, *map(int, marks), 0]))
        rows += [row] * (len(edges) // 2)
        starts += edges[::2].tolist()
        stops += edges[1::2].tolist()
    array = pa.array(texts, pa.string())
    found = Stretches(*(np.array(column, np.int64) for column in (rows, starts, stops)))
    return cut(array, draw_in(array, found, bounds)).text.to_pylist()  # type: ignore[no-any-return]


def check(folder: Path, texts: list[str], length: int = LENGTH, **parameters: Any) -> Any:
    found = run(folder, texts, "substring_dedup", min_bytes=length, **parameters)
    order = canonical_order(len(texts))
    sorted_texts = [texts[i] for i in order]
    gone = by_windows([text.encode() for text in sorted_texts], length)
    left = left_of(sorted_texts, gone, parameters.get("bounds", "character"))
    assert {i: found[i]["text"] for i in order} == dict(zip(order, left, strict=True))
    for i, text in enumerate(texts):
        assert found[i]["removed"] == len(text) - len(found[i]["text"])
    return found


def spliced(seed: int, count: int, alphabet: str = "abc", longest: int = 60) -> list[str]:
    """Texts that have pieces of one another."""
    draw = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        text = ""
        for _ in range(draw.randint(0, 4)):
            if texts and draw.random() < 0.6:
                other = draw.choice(texts)
                a = draw.randint(0, len(other))
                text += other[a : a + draw.randint(0, longest)]
            else:
                text += "".join(draw.choices(alphabet, k=draw.randint(0, longest)))
        texts.append(text)
    return texts


def test_the_two_slow_ways_agree() -> None:
    for seed in range(20):
        texts = [text.encode() for text in spliced(seed, 6, "ab", 25)]
        assert by_windows(texts, 8) == by_suffix_array(texts, 8)


@pytest.mark.parametrize("alphabet", ["ab", "abcdefgh", "aä漢👍🏽e\u0301"])
def test_pieces_of_one_another(tmp_path: Path, alphabet: str) -> None:
    for seed in range(2):
        texts = spliced(seed, 40, alphabet)
        check(tmp_path / f"{seed}", texts)
        gone = by_suffix_array([text.encode() for text in texts[:8]], LENGTH)
        assert gone == by_windows([text.encode() for text in texts[:8]], LENGTH)


@pytest.mark.parametrize("bounds", ["word", "line"])
def test_whole_words_and_lines(tmp_path: Path, bounds: str) -> None:
    check(tmp_path / "in", spliced(1, 40, "abc  \n"), bounds=bounds)


@given(
    st.lists(
        st.one_of(
            st.text(alphabet="ab", max_size=50),
            st.builds(
                lambda piece, times: piece * times, st.text("abc", max_size=9), st.integers(0, 9)
            ),
        ),
        max_size=7,
    )
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_texts(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    check(tmp_path_factory.mktemp("any") / "in", texts)


EDGES = {
    "empty corpus": [],
    "one row": ["a" * 40],
    "empty texts": ["", "", "x"],
    "one byte too short": ["abcdefghijklmno", "abcdefghijklmno"],
    "just long enough": ["abcdefghijklmnop", "_abcdefghijklmnop_"],
    "all the same": ["abcdefghijklmnopqrstuvwxyz"] * 7,
    "one letter": ["a" * 100, "b" * 100, "a" * 15, "a" * 16 + "b"],
    "a period": ["abcdefg" * 20, "cdefgab" * 5],
    "carriage returns": ["one line\r\nanother line\r\n" * 3, "another line\r\none line\r\n"],
    "without spaces": ["東京都庁舎は新宿区にある。" * 2, "東京都庁舎は新宿区にある"],
    "emoji": ["👨‍👩‍👧👍🏽☺️" * 3, "👍🏽☺️👨‍👩‍👧" * 2],
    "overlap at the edges": [
        "abcdefghijklmnopqrst",
        "klmnopqrstabcdefghij",
        "qrstabcdefghijklmnop",
    ],
}


@pytest.mark.parametrize("texts", EDGES.values(), ids=EDGES.keys())
def test_edges(tmp_path: Path, texts: list[str]) -> None:
    if texts:
        check(tmp_path / "in", texts)
    else:
        assert run(tmp_path / "in", [], "substring_dedup") == {}


def test_a_phrase_that_is_too_short_in_many_places(tmp_path: Path) -> None:
    texts = [f"{i:03}<the same phrase>{i * 7:03}" for i in range(120)]
    found = check(tmp_path / "in", texts, length=24)
    assert all(row["removed"] == 0 for row in found.values())
    check(tmp_path / "out", texts, length=16)


def test_first_occurrence_and_evidence_are_named(tmp_path: Path) -> None:
    first, second = canonical_order(2)
    texts = ["", ""]
    texts[first] = "Before: the part that repeats, after"
    texts[second] = "something else, the part that repeats"
    found = run(tmp_path / "in", texts, "substring_dedup", min_bytes=16)
    assert found[second]["evidence"] == "the part that repeats"
    assert found[second]["partner"] == row_ids([first])[0]
    assert found[second]["cuts"] == 1
    assert found[first]["partner"] is None


def test_order_sharding_and_workers_do_not_matter(tmp_path: Path) -> None:
    texts = spliced(9, 60)
    plain = check(tmp_path / "a", texts)
    ids = list(range(60))
    random.Random(3).shuffle(ids)
    shuffled = [texts[i] for i in ids]
    more = {"ids": ids, "rows_per_file": 17, "workers": 3}
    assert run(tmp_path / "b", shuffled, "substring_dedup", min_bytes=LENGTH, **more) == plain


def test_passes_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = spliced(4, 60)
    plain = check(tmp_path / "a", texts)
    monkeypatch.setattr(substring_dedup, "ANCHORS_AT_ONCE", 20)
    monkeypatch.setattr(substring_dedup, "TEXTS_AT_ONCE", 7)
    assert check(tmp_path / "b", texts) == plain


def test_real_looking_texts(tmp_path: Path) -> None:
    texts = make_texts(120, copies=0.6)
    found = check(tmp_path / "in", texts, length=200)
    assert sum(row["removed"] for row in found.values()) > 1000


def test_equal_stretches_choose_equal_anchors() -> None:
    draw = random.Random(2)
    shared = "".join(draw.choices("abcd ", k=64))
    texts = ["".join(draw.choices("abcd ", k=99)) + shared + "xyz" for _ in range(50)]
    column = SubstringAnchors(length=64).compute(pa.record_batch({"text": texts}))["anchors"]
    hashes, starts = anchors_of(column)
    sets = [set(hashes[a:b].tolist()) for a, b in pairwise(starts)]
    assert set.intersection(*sets)


@pytest.mark.parametrize("piece", ["a", "ab", "a line of forty characters, or nearly it\n"])
def test_long_repetition_leaves_one_period(tmp_path: Path, piece: str) -> None:
    text = piece * (20_000_000 // len(piece))
    assert run(tmp_path / "in", [text], "substring_dedup")[0]["text"] == piece


def test_many_copies(tmp_path: Path) -> None:
    text = " ".join(make_texts(20, copies=0))
    found = run(tmp_path / "in", [text] * 2000, "substring_dedup", rows_per_file=500)
    assert sorted(len(row["text"]) for row in found.values())[-2:] == [0, len(text)]


def test_the_filter_lets_through_little_that_is_not_repeated() -> None:
    texts = make_texts(2000, copies=0, words=100)
    column = SubstringAnchors().compute(pa.record_batch({"text": texts}))["anchors"]
    hashes, _ = anchors_of(column)
    assert len(np.unique(hashes)) == len(hashes) > 5000
    repeated = Filter(len(hashes))
    repeated.put(hashes)
    assert repeated.repeated(hashes).mean() < 0.13  # 1 - exp(-1 / 8) of the slots are taken
    repeated.put(hashes[:10])
    assert repeated.repeated(hashes[:10]).all()
