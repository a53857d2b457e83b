"""Signatures against datasketch, shingles against a slow implementation."""

import re

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.scoring.minhash import MinHashSignature, signature_matrix
from tamis.scoring.shingles import ShingleSets, Shingling
from tests.conftest import make_texts


def compute(texts: list[str], **options: object) -> pa.RecordBatch:
    signal = MinHashSignature.model_validate(options)
    return signal.compute(pa.record_batch({"text": pa.array(texts, pa.large_string())}))


def sets_of(texts: list[str], shingling: Shingling = Shingling()) -> list[set[int]]:  # noqa: B008
    text = pa.array(texts, pa.string())
    batch = compute(texts, ngram=shingling.ngram, unit=shingling.unit)
    sets = ShingleSets.room_for(batch["shingles"].to_numpy())
    sets.fill(slice(0, len(texts)), text, np.arange(len(texts)), shingling)
    return [
        {int(h) for h in sets.hashes[a : a + n]}
        for a, n in zip(sets.start[:-1], sets.size, strict=True)
    ]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.mark.parametrize("num_perm", [128, 64])
def test_a_signature_equals_datasketch_on_the_same_shingles(num_perm: int) -> None:
    texts = [
        *make_texts(60),
        "",
        "one",
        "!!!",
        "Straße und Ärger über fünf Wörter",
        "漢字の文章です",
    ]
    matrix = signature_matrix(compute(texts, num_perm=num_perm, seed=7)["signature"])
    for row, shingles in zip(matrix, sets_of(texts), strict=True):
        theirs = MinHash(num_perm=num_perm, seed=7, hashfunc=lambda h: h >> 32)
        theirs.update_batch(shingles)
        assert np.array_equal(theirs.hashvalues, row)
        loaded = MinHash(hashvalues=row, scheme="affine32", seed=7)
        assert loaded.jaccard(theirs) == 1.0


def test_signatures_estimate_jaccard_as_well_as_datasketch_does() -> None:
    texts = make_texts(200, words=200, copies=0.8)
    matrix = signature_matrix(compute(texts)["signature"])
    sets = sets_of(texts)
    errors = []
    for a in range(0, 200, 3):
        for b in range(a + 1, 200, 7):
            exact = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
            errors.append((matrix[a] == matrix[b]).mean() - exact)
    # The standard error at J = .5 is .044; the mean over many pairs lies near zero.
    assert abs(np.mean(errors)) < 0.01
    assert np.abs(errors).max() < 0.25


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="abC d_9.,\n-", max_size=60), min_size=1, max_size=8))
def test_ascii_sets_have_the_structure_of_word_ngrams(texts: list[str]) -> None:
    def slow(text: str) -> set[object]:
        found = words(text)
        if not found:
            return {text}
        if len(found) < 5:
            return {tuple(found)}
        return {tuple(found[i : i + 5]) for i in range(len(found) - 4)}

    ours, theirs = sets_of(texts), [slow(text) for text in texts]
    for i in range(len(texts)):
        assert len(ours[i]) == len(theirs[i])
        for j in range(i):
            assert len(ours[i] & ours[j]) == len(theirs[i] & theirs[j])


def test_a_document_longer_than_a_block_is_shingled_across_its_seams() -> None:
    found = [f"w{i}" for i in range(30_000)]
    text = " ".join(found)
    shingles = sets_of([text, text + " end", " ".join(found[:10_000])])
    assert len(shingles[0]) == 30_000 - 4
    assert len(shingles[1] - shingles[0]) == 1
    assert shingles[2] < shingles[0]


def test_non_ascii_blocks_join_at_their_seams_too() -> None:
    found = [f"é{i}漢" for i in range(6_000)]  # two tokens each
    whole = sets_of([" ".join(found)], Shingling(2))[0]
    assert len(whole) == 2 * 6_000 - 1


def test_counts_and_lengths() -> None:
    batch = compute(["one two three four five six", "one", "", "日本語", "a b c d e " * 3])
    assert batch["shingles"].to_pylist() == [2, 1, 1, 1, 11]
    assert batch["characters"].to_pylist() == [27, 3, 0, 3, 30]


def test_short_documents_are_single_shingles_of_themselves() -> None:
    a, b, c, d, e = sets_of(["one two", "One, two!", "two one", "", "!!!"])
    assert a == b
    assert a != c
    assert len(d) == len(e) == 1
    assert d != e


def test_slices_chunks_and_offset_widths_do_not_matter() -> None:
    texts = make_texts(50)
    whole = compute(texts)
    signal = MinHashSignature()
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        array = pa.array(["x", *texts, "y"], kind).slice(1, 50)
        assert signal.compute(pa.record_batch({"text": array})).equals(whole)
    coded = pa.array(texts).dictionary_encode()
    assert signal.compute(pa.record_batch({"text": coded})).equals(whole)


def test_character_shingles_collapse_white_space_and_case() -> None:
    shingling = Shingling(3, "character")
    a, b, c = sets_of([" Ab \n c", "ab c", "abc"], shingling)
    assert a == b
    assert a != c
    assert len(b) == 2
