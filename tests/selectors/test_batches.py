"""Deciding in batches that spill: nothing that is found depends on their size."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import tamis
from tamis.scoring.minhash import MinHashSignature, Signatures
from tamis.selectors import components, duplicates, near_dedup
from tamis.selectors.banding import Banding, Digests
from tamis.selectors.components import Batches, SpilledSets
from tamis.selectors.duplicates import Duplicates
from tamis.selectors.near_dedup import near_duplicates
from tamis.storage import edges, rows, spill
from tamis.storage.edges import Edges
from tamis.storage.errors import RunError, UserError
from tamis.storage.spill import SpillRoom, spill_room
from tests.conftest import make_texts, write_corpus


def template_texts(count: int, seed: int = 0, copies: int = 100) -> list[str]:
    """Documents of two templates, copies of some, and others that have nothing to do with them."""
    random = np.random.default_rng(seed)
    texts = []
    for name in "ab":
        header = [f"{name}{i}" for i in range(130)]
        texts += [
            " ".join([*header, *(f"x{v}" for v in random.integers(0, 1 << 40, 66))])
            for _ in range(count)
        ]
    texts += [f"{text} extra{i}" for i, text in enumerate(texts[:copies])]
    return texts + make_texts(500, seed=seed, copies=0.5)


def as_table(found: Duplicates) -> list[Any]:
    row, other, similarity = found.edges.together()
    pairs = sorted(zip(row.tolist(), other.tolist(), similarity.tolist(), strict=True))
    return [found.kept.tolist(), found.partner.tolist(), found.similarity.tobytes(), pairs]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every component a batch of its own, and all of it in files."""
    monkeypatch.setattr(duplicates, "BATCH_BYTES", 1)
    monkeypatch.setattr(spill, "IN_MEMORY", 0)
    monkeypatch.setattr(spill, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(near_dedup, "BATCH_ROWS", 77)
    monkeypatch.setattr(edges, "IN_MEMORY", 100)
    monkeypatch.setattr(edges, "AT_ONCE", 7)
    return monkeypatch


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 1.0])
@pytest.mark.parametrize("size", [1, 20_000, 200_000])
def test_the_size_of_batches_changes_nothing(
    small: pytest.MonkeyPatch, threshold: float, size: int
) -> None:
    texts = pa.array(make_texts(1500, copies=0.7))
    small.setattr(duplicates, "BATCH_BYTES", size)
    parts = near_duplicates(texts, threshold, workers=2)
    small.undo()
    whole = near_duplicates(texts, threshold, workers=1)
    assert as_table(parts) == as_table(whole)
    assert parts.counts == whole.counts


def test_oversized_buckets_are_split_alike_in_batches_of_any_size(
    small: pytest.MonkeyPatch,
) -> None:
    texts = pa.array(template_texts(1000))
    parts = near_duplicates(texts)
    small.undo()
    whole = near_duplicates(texts)
    assert whole.counts["bucket_splits"] > 0
    assert whole.counts["largest_component"] > 1000
    assert as_table(parts) == as_table(whole)
    assert parts.counts == whole.counts


def test_what_is_decided_on_a_component_does_not_depend_on_the_others() -> None:
    texts = template_texts(600)
    whole = near_duplicates(pa.array(texts))
    others = make_texts(3000, seed=9, words=40, copies=0.9)  # many that make progress
    more = near_duplicates(pa.array(texts + others))
    assert np.array_equal(more.kept[: len(texts)], whole.kept)
    assert np.array_equal(more.partner[: len(texts)], whole.partner)


def test_a_component_larger_than_a_block_of_sets_is_gathered(small: pytest.MonkeyPatch) -> None:
    texts = pa.array(make_texts(400, copies=0.9))
    whole = near_duplicates(texts, 0.6)
    small.setattr(components, "SHINGLES_AT_ONCE", 10)
    small.setattr(duplicates, "SHINGLES_AT_ONCE", 300)
    assert as_table(near_duplicates(texts, 0.6)) == as_table(whole)


def test_components_are_those_of_the_graph_of_shared_buckets() -> None:
    texts = pa.array(make_texts(600, copies=0.6))
    signal, banding = MinHashSignature(), Banding(25, 3)
    signatures = Signatures.room_for(len(texts), signal.num_perm)
    signatures.fill(slice(0, len(texts)), texts, signal)
    with spill_room() as room:
        digests = Digests.room_for(len(texts), signal.num_perm, banding, room)
        digests.put(0, signatures)
        everyone = np.arange(len(texts))
        found = Batches.find(digests, everyone, signatures.shingles, 1 << 40, 2)
    assert len(found) == 1
    meets = np.zeros((len(texts), len(texts)), bool)
    for band in range(25):
        keys = signatures.matrix[:, band * 3 : band * 3 + 3]
        meets |= (keys[:, None] == keys[None]).all(axis=2)
    reach = meets.copy()
    while not np.array_equal(reach, wider := (reach.astype(np.float32) @ meets) > 0):
        reach = wider
    assert found.sorted.tolist() == np.flatnonzero(meets.sum(axis=1) > 1).tolist()
    same = found.component[:, None] == found.component[None]
    assert np.array_equal(same, reach[np.ix_(found.sorted, found.sorted)])
    assert found.largest == reach.sum(axis=1).max()


def test_a_run_in_small_batches_equals_one_in_memory(
    small: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "in.parquet", template_texts(400, copies=20))

    def run(name: str, memory: str | None = None) -> tuple[list[Any], list[Any]]:
        result = tamis.run(
            {
                "corpus": {
                    "path": str(corpus),
                    "roles": {"text": "text", "id": "id"},
                    "shard_bytes": 20_000,
                },
                "stages": [{"operator": "near_dedup", "threshold": 0.7}],
                "workspace": str(tmp_path / name),
                "memory": memory,
            }
        )
        pairs = pl.read_parquet(tmp_path / name / "edges" / "*.parquet").sort(pl.all()).rows()
        decisions = result.decisions.sort("shard", "row").collect().rows()
        left = [p.name for p in (tmp_path / name).iterdir()]
        assert "orders" not in left
        assert not [n for n in left if n.startswith("tmp")]
        return decisions, pairs

    parts = run("parts")
    small.undo()
    assert run("whole") == parts
    assert run("limited", "30GB") == parts
    assert len(parts[1]) > 100


def test_a_component_beyond_the_limit_is_told_with_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "in.parquet", template_texts(300))
    recipe = {
        "corpus": {"path": str(corpus), "roles": {"text": "text", "id": "id"}},
        "stages": [{"operator": "near_dedup"}],
        "workspace": str(tmp_path / "work"),
    }
    bound = tamis.run(recipe).memory_bound
    monkeypatch.setattr(duplicates, "BATCH_BYTES", 1000)
    with pytest.raises(RunError, match=r"rows are joined .* raise --memory by"):
        tamis.run({**recipe, "workspace": str(tmp_path / "new"), "memory": bound})
    tamis.run({**recipe, "workspace": str(tmp_path / "new"), "memory": bound + (100 << 20)})


@pytest.mark.parametrize("in_memory", [0, 100, 1 << 20])
def test_a_spill_gives_back_what_was_put(tmp_path: Path, in_memory: int) -> None:
    room = SpillRoom(tmp_path, in_memory)
    values = np.arange(300, dtype=np.uint16).reshape(100, 3)
    wide, flat, empty = (
        room.array((100, 3), np.uint16),
        room.array((9,), np.int64),
        room.array((0, 3), np.uint8),
    )
    wide.put(60, values[60:])
    wide.put(0, values[:60])
    flat.put(0, np.arange(9)[::-1])
    assert np.array_equal(wide.get(0, 100), values)
    assert np.array_equal(wide.get(59, 61), values[59:61])
    assert flat.get(2, 4).tolist() == [6, 5]
    assert empty.get(0, 0).shape == (0, 3)
    assert list(tmp_path.iterdir()) == []
    room.close()


def test_room_that_is_given_back_is_used_again(tmp_path: Path) -> None:
    room = SpillRoom(tmp_path, 100)
    first = room.array((100,), np.uint8)
    second = room.array((1,), np.uint8)
    first.close()
    third = room.array((100,), np.uint8)
    in_memory = [spill._array is not None for spill in (second, third)]
    assert in_memory == [False, True]
    with pytest.raises(EOFError):
        second.get(0, 1)
    room.close()


def test_no_pairs_are_no_pairs(tmp_path: Path) -> None:
    none = Edges(tmp_path)
    assert [len(part) for part in none.together()] == [0, 0, 0]
    assert list(none.batches()) == []


def test_sets_of_no_rows() -> None:
    with spill_room() as room:
        digests = Digests.room_for(0, 128, Banding(25, 5), room)
        batches = Batches.find(digests, np.arange(0), np.zeros(0, np.int64), 1, 1)
        assert len(batches) == 0
        SpilledSets(batches, np.zeros(0, np.int64), room).close()


def test_more_rows_than_can_be_numbered_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "in.parquet", make_texts(11))
    monkeypatch.setattr(rows, "MOST_ROWS", 10)
    recipe = {
        "corpus": {"path": str(corpus), "roles": {"text": "text"}},
        "stages": [{"operator": "near_dedup"}],
        "workspace": str(tmp_path / "work"),
    }
    with pytest.raises(UserError, match="11 rows are more than one run can number"):
        tamis.run(recipe)
