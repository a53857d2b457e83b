"""Repeated lines and paragraphs, against the rule written down plainly."""

import random
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamis.scoring.segments import KEY_BYTES, SegmentKeys
from tamis.selectors import segment_dedup
from tests.selectors.cutter_tools import canonical_order, row_ids, run

BLANK = " \t\n\v\f\r"


def split(text: str, unit: str) -> list[tuple[str, str]]:
    """Segments, each with what stands between it and the one before."""
    parts = re.split("(\r?\n)", text)
    lines = [("", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
    if unit == "line":
        return lines
    found: list[tuple[str, str]] = []
    gap, blank_before = "", True
    for end, line in lines:
        gap += end
        if not line.strip(BLANK):
            if not found:
                found.append(("", line))
                gap = ""
            else:
                gap += line
            blank_before = True
        elif blank_before:
            found.append((gap, line))
            gap, blank_before = "", False
        else:
            before, held = found.pop()
            found.append((before, held + gap + line))
            gap = ""
    return [*found, (gap, "")] if gap else found


def key_of(segment: str, normalisation: str) -> str:
    if normalisation == "exact":
        return segment
    segment = segment.strip(BLANK)
    if normalisation == "stripped":
        return segment
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", segment).casefold())
    return " ".join(folded.replace("ı", "i").split())


def expected(
    texts: list[str],
    unit: str,
    min_characters: int = 1,
    normalisation: str = "exact",
    min_count: int = 2,
    keep_first: bool = True,
) -> list[str]:
    """Texts in canonical order, without what occurred before."""
    cut_up = [split(text, unit) for text in texts]

    def long_enough(segment: str) -> bool:
        return len(segment.strip(BLANK)) >= min_characters and bool(segment.strip(BLANK))

    counts = Counter(key_of(s, normalisation) for row in cut_up for _, s in row if long_enough(s))
    seen: set[str] = set()
    left = []
    for row in cut_up:
        text, any_kept, any_gone = "", False, False
        for gap, segment in row:
            key = key_of(segment, normalisation)
            if (
                long_enough(segment)
                and counts[key] >= min_count
                and (key in seen or not keep_first)
            ):
                any_gone = True
                continue
            if long_enough(segment):
                seen.add(key)
            text += (gap if any_kept else "") + segment
            any_kept = True
        left.append("" if any_gone and not text.strip(BLANK) else text)
    return left


def check(folder: Path, texts: list[str], unit: str, **parameters: Any) -> dict[int, Any]:
    parameters = {"min_characters": 1, **parameters}
    found = run(folder, texts, f"{unit}_dedup", **parameters)
    order = canonical_order(len(texts))
    left = expected([texts[i] for i in order], unit, **parameters)
    assert {i: found[i]["text"] for i in order} == dict(zip(order, left, strict=True))
    for i, text in enumerate(texts):
        lost = len(text) - len(found[i]["text"])
        assert found[i]["removed"] == lost
        assert found[i]["share"] == (lost / len(text) if text else 0)
        assert (found[i]["cuts"] > 0) == (lost > 0) == (found[i]["partner"] is not None)
    return found


TEXTS = [
    "one\ntwo\nthree\n",
    "two\nfour",
    "four\nfour\r\nfour\r\nfive",
    "",
    "\n\n",
    "three",
    "  two  \n\n\n TWO\n",
    "one\ntwo\n\nthree\nfour\n\n\none\ntwo",
    "one\ntwo\r\n\r\nthree\nfour",
    "漢字\nかな\n漢字",
    "Straße\nSTRASSE\ncafé\ncafe\u0301\n👍🏽\n👍🏽",
    "no line end",
    "no line end",
    "no line end\n",
]


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@pytest.mark.parametrize("normalisation", ["exact", "stripped", "folded"])
@pytest.mark.parametrize("keep_first", [True, False])
def test_the_rule(tmp_path: Path, unit: str, normalisation: str, keep_first: bool) -> None:
    check(tmp_path / "in", TEXTS, unit, normalisation=normalisation, keep_first=keep_first)


def test_short_and_rare_ones_stay(tmp_path: Path) -> None:
    texts = ["abc\nlong enough\nab", "abc\nab", "ab\nlong enough", "abc\nab"]
    check(tmp_path / "a", texts, "line", min_characters=3)
    check(tmp_path / "b", texts, "line", min_characters=4)
    check(tmp_path / "c", texts, "line", min_count=3)


def test_first_occurrence_and_evidence_are_named(tmp_path: Path) -> None:
    first, second = canonical_order(2)
    texts = ["", ""]
    texts[first], texts[second] = "a line\nthat repeats", "  that repeats\nnew"
    found = run(tmp_path / "in", texts, "line_dedup", min_characters=1, normalisation="stripped")
    assert found[second]["evidence"] == "that repeats"
    assert found[second]["partner"] == row_ids([first])[0]
    assert found[first]["partner"] is None


def test_a_row_that_loses_all_is_empty_and_a_rule_drops_it(tmp_path: Path) -> None:
    found = run(tmp_path / "in", ["same\n", "same\n"], "line_dedup", min_characters=1)
    assert sorted((row["text"], row["share"]) for row in found.values()) == [("", 1), ("same\n", 0)]


@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_order_sharding_and_workers_do_not_matter(tmp_path: Path, unit: str) -> None:
    draw = random.Random(5)
    lines = [f"line {i}" for i in range(30)] + ["", ""]
    texts = ["\n".join(draw.choices(lines, k=draw.randint(0, 9))) for _ in range(60)]
    plain = check(tmp_path / "a", texts, unit)
    ids = list(range(60))
    draw.shuffle(ids)
    shuffled = [texts[i] for i in ids]
    other = run(
        tmp_path / "b",
        shuffled,
        f"{unit}_dedup",
        ids=ids,
        rows_per_file=17,
        workers=3,
        min_characters=1,
    )
    assert other == plain


def test_passes_by_range_of_the_key_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = check(tmp_path / "a", TEXTS, "line")
    monkeypatch.setattr(segment_dedup, "SEGMENTS_AT_ONCE", 3)
    assert check(tmp_path / "b", TEXTS, "line") == plain


@given(
    st.lists(st.text(alphabet="aB \n\r\té", max_size=14), max_size=8),
    st.sampled_from(["line", "paragraph"]),
    st.sampled_from(["exact", "stripped", "folded"]),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], unit: str, normalisation: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    check(folder / "in", texts, unit, normalisation=normalisation)


def test_one_line_of_100_mb() -> None:
    text = pa.array(["x" * 100_000_000 + "\nshort"])
    (keys,) = SegmentKeys().compute(pa.record_batch({"text": text}))["keys"].to_pylist()
    assert len(keys) == KEY_BYTES
