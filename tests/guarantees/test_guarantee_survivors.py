"""Survivors are the greedy maximal independent set of the verified pairs, in rank order."""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from guarantee_tools import (
    decisions_by_row,
    edited,
    jaccard,
    recipe,
    table_of,
    vocabulary,
    workspace_of,
    write_parquet,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tamis
from tamis.scoring.minhash import MinHashSignature, signature_matrix
from tamis.selectors.banding import Banding
from tamis.selectors.near_dedup import near_duplicates

#: Fine bands: pairs of similarity .9 and more share one but for one in 10**9.
FINE = Banding(25, 5)


def _share_a_band(texts: Sequence[str], banding: Banding) -> list[list[bool]]:
    """For every pair of texts, whether all values of some band are equal."""
    batch = pa.record_batch({"text": pa.array(texts, pa.string())})
    matrix = signature_matrix(MinHashSignature().compute(batch)["signature"])
    used = matrix[:, : banding.bands * banding.rows]
    bands = used.reshape(len(texts), banding.bands, banding.rows)
    return [[bool((a == b).all(axis=1).any()) for b in bands] for a in bands]


def _greedy(
    texts: Sequence[str], order: Sequence[int], threshold: float, banding: Banding | None
) -> set[int]:
    """Kept rows: in rank order, every row without a duplicate among those kept before."""
    near = _share_a_band(texts, banding) if banding else None
    kept: list[int] = []
    for row in order:
        rivals = (other for other in kept if near is None or near[row][other])
        if all(jaccard(texts[row], texts[other]) < threshold for other in rivals):
            kept.append(row)
    return set(kept)


def _by_length(texts: Sequence[str]) -> list[int]:
    return sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row))


WORDS = ["ba", "be", "Bi", "bo", "bu", "da", "de", "di,", "do", "du"]


@st.composite
def clusters(draw: st.DrawFn) -> list[str]:
    """A few documents over ten words, and edited copies of them."""
    bases = draw(st.lists(st.lists(st.sampled_from(WORDS), max_size=40), min_size=1, max_size=4))
    texts = [" ".join(base) for base in bases]
    edits = st.tuples(st.integers(0, 40), st.sampled_from(WORDS), st.booleans())
    for _ in range(draw(st.integers(0, 20))):
        words = list(draw(st.sampled_from(bases)))
        for place, word, insert in draw(st.lists(edits, max_size=3)):
            words[place : place + (not insert)] = [word]
        texts.append(draw(st.sampled_from([" ", "  ", ", "])).join(words))
    return texts


THRESHOLDS = st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=clusters(), threshold=THRESHOLDS, workers=st.integers(1, 2))
def test_survivors_in_memory_are_the_greedy_independent_set(
    texts: list[str], threshold: float, workers: int
) -> None:
    found = near_duplicates(pa.array(texts, pa.string()), threshold, workers=workers)
    kept = set(np.flatnonzero(found.kept).tolist())
    banding = Banding.finer_than(threshold, 128)
    assert kept == _greedy(texts, _by_length(texts), threshold, banding)


def _run(texts: Sequence[str], threshold: float, group: int) -> tuple[set[int], list[int]]:
    """Rows kept by a run with fine bands, and all rows in rank order."""
    stage: dict[str, Any] = {"operator": "near_dedup", "threshold": threshold}
    stage.update(bands=FINE.bands, band_rows=FINE.rows)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_parquet(home / "in.parquet", table_of(texts), group)
        options = {"shard_bytes": 1}
        tamis.run(recipe(home / "in.parquet", home / "out", [stage], corpus_options=options))
        # Shards are in the order of the file: so are the rows of the ledger.
        decisions = decisions_by_row(workspace_of(home / "out"))
    keys = list(decisions)
    kept = {row for row, key in enumerate(keys) if decisions[key]["action"] == "keep"}
    return kept, sorted(range(len(texts)), key=lambda row: (-len(texts[row]), keys[row]))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=clusters(), threshold=THRESHOLDS, group=st.integers(1, 9))
def test_survivors_of_a_run_are_the_greedy_independent_set(
    texts: list[str], threshold: float, group: int
) -> None:
    kept, order = _run(texts, threshold, group)
    assert kept == _greedy(texts, order, threshold, FINE)


def _family(seed: int, count: int) -> list[str]:
    """Edited copies of edited copies of ten documents: chains, stars and everything between."""
    draw = random.Random(seed)
    words = vocabulary(200)
    texts = [" ".join(draw.choices(words, k=draw.randint(8, 80))) for _ in range(10)]
    while len(texts) < count:
        texts.append(edited(draw, draw.choice(texts), words))
    return texts


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.7, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_survivors_of_chained_edits_are_the_greedy_independent_set(
    seed: int, threshold: float
) -> None:
    texts = _family(seed, 150)
    found = near_duplicates(pa.array(texts), threshold)
    kept = set(np.flatnonzero(found.kept).tolist())
    banding = Banding.finer_than(threshold, 128)
    assert kept == _greedy(texts, _by_length(texts), threshold, banding)
    assert len(kept) < 140


@pytest.mark.parametrize("threshold", [0.9, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3, 6))
def test_where_banding_finds_all_pairs_survivors_are_those_of_all_pairs(
    seed: int, threshold: float
) -> None:
    texts = _family(seed, 150)
    kept, order = _run(texts, threshold, group=40)
    assert kept == _greedy(texts, order, threshold, None)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9])
def test_the_banding_misses_a_pair_at_the_threshold_once_in_a_thousand(threshold: float) -> None:
    banding = Banding.finer_than(threshold, 128)
    assert (1 - threshold**banding.rows) ** banding.bands <= 1e-3
    assert banding.bands * banding.rows <= 128


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=clusters(), threshold=THRESHOLDS)
def test_every_drop_is_above_the_threshold_of_a_survivor(
    texts: list[str], threshold: float
) -> None:
    found = near_duplicates(pa.array(texts, pa.string()), threshold)
    for row in np.flatnonzero(~found.kept):
        partner = int(found.partner[row])
        assert found.kept[partner]
        assert found.similarity[row] == jaccard(texts[row], texts[partner]) >= threshold
