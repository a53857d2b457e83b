"""Cutting stretches out of texts: where a cut may be, and what is left."""

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.scoring.cuts import Bounds, Stretches, cut, draw_in, take

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # one emoji, joined of three


def stretches(*found: tuple[int, int, int]) -> Stretches:
    row, start, stop = np.array(found, np.int64).reshape(-1, 3).T
    return Stretches(row, start, stop)


def cut_out(text: str, start: int, stop: int, bounds: Bounds = "character") -> str:
    array = pa.array([text])
    left = cut(array, draw_in(array, stretches((0, start, stop)), bounds)).text
    return left.to_pylist()[0]  # type: ignore[no-any-return]


def test_what_is_left_is_joined() -> None:
    texts = pa.array(["abcdef", "", "xyz", "déjà"])
    found = cut(texts, stretches((0, 1, 2), (0, 4, 6), (2, 0, 1), (3, 1, 3)))
    assert found.text.to_pylist() == ["acd", "", "yz", "djà"]
    assert found.characters.tolist() == [6, 0, 3, 4]
    assert found.removed.tolist() == [3, 0, 1, 1]


def test_a_slice_of_an_array_is_cut_where_it_stands() -> None:
    texts = pa.array(["skipped", "abcdef", "ghi", "skipped too"]).slice(1, 2)
    assert cut(texts, stretches((1, 0, 2))).text.to_pylist() == ["abcdef", "i"]


def test_a_text_of_which_only_white_space_is_left_becomes_empty() -> None:
    texts = pa.array(["\n abc \r\n", " \n "])
    found = cut(texts, stretches((0, 2, 5)))
    assert found.text.to_pylist() == ["", " \n "]
    assert found.removed.tolist() == [8, 0]


@pytest.mark.parametrize(
    ("text", "start", "stop", "left"),
    [
        ("aéb", 0, 2, "éb"),  # half of é
        ("aéb", 2, 4, "aé"),
        ("ae\u0301b", 0, 2, "e\u0301b"),  # the letter without its accent
        ("ae\u0301b", 2, 5, "ae\u0301"),  # the accent without its letter
        ("a漢字b", 2, 7, "a漢b"),
        (f"a{FAMILY}b", 0, 5, f"{FAMILY}b"),
        (f"a{FAMILY}b", 8, 20, f"a{FAMILY}"),
        ("x\U0001f44d\U0001f3fdy", 5, 10, "x\U0001f44d\U0001f3fd"),  # a tone of skin
        ("x☺\ufe0fy", 0, 4, "☺\ufe0fy"),  # a variation selector
        ("ab\r\ncd", 0, 3, "\r\ncd"),
        ("ab\r\ncd", 3, 6, "ab\r\n"),
    ],
)
def test_nothing_is_torn_apart(text: str, start: int, stop: int, left: str) -> None:
    assert cut_out(text, start, stop) == left


@pytest.mark.parametrize(
    ("start", "stop", "left"),
    [(0, 5, "two three\nfour"), (1, 8, "onethree\nfour"), (4, 12, "one three\nfour")],
)
def test_whole_words(start: int, stop: int, left: str) -> None:
    assert cut_out("one two three\nfour", start, stop, "word") == left


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert cut_out("東京都庁", 2, 10, "word") == "東庁"


def test_whole_lines() -> None:
    assert cut_out("one\ntwo\nthree\nfour", 1, 15, "line") == "one\nfour"
    assert cut_out("one\r\ntwo\r\nthree", 2, 11, "line") == "one\r\nthree"
    assert cut_out("one\ntwo", 4, 7, "line") == "one\n"
    assert cut_out("one\ntwo", 1, 7, "line") == "one\n"
    assert cut_out("onetwo", 1, 5, "line") == "onetwo"


def test_what_is_taken_ends_at_a_character() -> None:
    texts = pa.array(["abc", "äöü"])
    found = take(texts, stretches((0, 1, 3), (1, 2, 6)), 3)
    assert found.to_pylist() == ["bc", "ö"]


@given(st.text(max_size=12), st.data(), st.sampled_from(["character", "word", "line"]))
@settings(max_examples=300, deadline=None)
def test_any_cut_leaves_text_in_order(text: str, data: st.DataObject, bounds: Bounds) -> None:
    raw = text.encode()
    start = data.draw(st.integers(0, len(raw)))
    stop = data.draw(st.integers(start, len(raw)))
    array = pa.array([text])
    drawn = draw_in(array, stretches((0, start, stop)), bounds)
    left = cut(array, drawn).text
    left.validate(full=True)  # UTF-8
    (a,), (b,) = drawn.start, drawn.stop
    assert start <= a <= b <= stop
    expected = (raw[:a] + raw[b:]).decode()
    emptied = a < b and not expected.strip(" \t\n\v\f\r")
    assert left.to_pylist()[0] == ("" if emptied else expected)
    for place in (a, b) if a < b else ():
        after = raw[place:].decode()[:1]
        assert place == 0 or not after or not unicodedata.category(after).startswith("M")
