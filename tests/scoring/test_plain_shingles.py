"""Two implementations of one definition: kernels and plain Python agree on every set's size."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.scoring.minhash import MinHashSignature
from tamis.scoring.plain_shingles import plain_jaccard, plain_shingles
from tamis.scoring.shingles import ShingleSets, Shingling
from tests.scoring.test_words import SCRIPTS

SHINGLINGS = [Shingling(5), Shingling(1), Shingling(2, "word", "NFD"), Shingling(6, "character")]


def kernel_sets(texts: list[str], shingling: Shingling) -> list[set[int]]:
    signal = MinHashSignature(
        ngram=shingling.ngram, unit=shingling.unit, unicode_form=shingling.form, num_perm=16
    )
    text = pa.array(texts, pa.string())
    counts = signal.compute(pa.record_batch({"text": text}))["shingles"].to_numpy()
    sets = ShingleSets.room_for(counts)
    sets.fill(slice(0, len(texts)), text, np.arange(len(texts)), shingling)
    return [
        set(sets.hashes[a : a + n].tolist())
        for a, n in zip(sets.start[:-1], sets.size, strict=True)
    ]


def agree(a: str, b: str, shingling: Shingling) -> None:
    left, right = kernel_sets([a, b], shingling)
    assert len(left) == len(plain_shingles(a, shingling))
    assert len(right) == len(plain_shingles(b, shingling))
    assert len(left & right) / len(left | right) == plain_jaccard(a, b, shingling)


@pytest.mark.parametrize("shingling", SHINGLINGS, ids=str)
@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_scripts(text: str, shingling: Shingling) -> None:
    words = text.split()
    agree(text, " ".join([*words[1:], "more", *words[:2]]), shingling)
    agree(text, text.upper(), shingling)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("", ""),
        ("", "!"),
        ("!!!", "???"),
        ("one", "ONE."),
        ("❤️ 😂 👍🏽", "❤ 😂"),
        ("a b", "a\u00a0b"),
    ],
)
def test_short_texts(a: str, b: str) -> None:
    for shingling in SHINGLINGS:
        agree(a, b, shingling)


ALPHABET = st.one_of(
    st.sampled_from("ab I_9 .,\n\tİıßﬁµ今ก้ॉ😂\u0307\u0323\u0301\u200d\ufe0f½Ⅷ"),
    st.characters(exclude_categories=["Cs", "Cn"]),
)


@settings(max_examples=400, deadline=None)
@given(st.text(ALPHABET, max_size=40), st.text(ALPHABET, max_size=40), st.sampled_from(SHINGLINGS))
def test_any_text(a: str, b: str, shingling: Shingling) -> None:
    if not plain_shingles(a, shingling):
        return
    agree(a, a + " " + b, shingling)
    agree(a + b, b + a, shingling)
