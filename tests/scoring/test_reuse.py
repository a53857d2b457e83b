"""Costly results are computed once for every content, and found again wherever the row has gone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tamis
from tamis.scoring.reuse import KEYS, Once
from tamis.scoring.text_stats import TextStats
from tamis.storage.catalog import query
from tamis.storage.hashing import hash_batch

TEXTS = [f"text number {i} with {'more ' * (i % 7)}words" for i in range(300)]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that text_stats really computes, made costly for the test."""
    seen: list[str] = []
    original = TextStats.compute

    def compute(self: TextStats, batch: pa.RecordBatch) -> pa.RecordBatch:
        seen.extend(batch["text"].to_pylist())
        return original(self, batch)

    monkeypatch.setattr(TextStats, "costly", True)
    monkeypatch.setattr(TextStats, "compute", compute)
    return seen


def write(path: Path, texts: Sequence[str], rows_per_group: int = 50) -> None:
    path.parent.mkdir(exist_ok=True)
    table = pa.table({"id": [f"{path.stem}-{i}" for i in range(len(texts))], "text": list(texts)})
    pq.write_table(table, path, row_group_size=rows_per_group)


def run(folder: Path, stages: list[dict[str, Any]] | None = None, **options: Any) -> list[Any]:
    """Runs on a folder in one workspace; gives the scores, ordered by text."""
    found = tamis.run(
        {
            "corpus": {
                "path": str(folder),
                "roles": {"text": "text", "id": "id"},
                "shard_bytes": 2000,
            },
            "stages": stages or [{"operator": "text_stats"}],
            "workspace": str(folder) + ".tamis",
            **options,
        }
    )
    return query(
        found.workspace,
        "SELECT r.text, words, characters, letter_share, repeated_line_share FROM scores s "
        "JOIN rows r ON r.shard = s.shard AND r.row = s.row ORDER BY ALL",
    )[1]


def test_nothing_is_computed_twice(tmp_path: Path, computed: list[str]) -> None:
    corpus = tmp_path / "corpus"
    write(corpus / "a.parquet", TEXTS)
    first = run(corpus)
    assert sorted(computed) == sorted(TEXTS)

    computed.clear()
    assert run(corpus) == first
    assert computed == []  # the same shards: their own sidecars

    (corpus / "a.parquet").unlink()
    order = np.random.default_rng(0).permutation(len(TEXTS))
    write(corpus / "b.parquet", [TEXTS[i] for i in order[:120]], rows_per_group=17)
    write(corpus / "c.parquet", [TEXTS[i] for i in order[120:]], rows_per_group=300)
    assert run(corpus) == first
    assert computed == []  # split, reordered and renamed

    write(corpus / "d.parquet", ["a new one", "another", TEXTS[0]])
    assert len(run(corpus)) == len(TEXTS) + 3
    assert sorted(computed) == ["a new one", "another"]


def test_other_rows_kept_before_it(tmp_path: Path, computed: list[str]) -> None:
    corpus = tmp_path / "corpus"
    write(corpus / "a.parquet", TEXTS)
    for minimum, new in ((30, None), (20, None), (25, 0)):
        computed.clear()
        rule = {"operator": "where", "keep": {"long": f"length(text) >= {minimum}"}}
        run(corpus, [rule, {"operator": "text_stats"}])
        assert new is None or len(computed) == new
        assert len(computed) < len(TEXTS)


def test_duplicates_in_a_shard_are_computed_once(tmp_path: Path, computed: list[str]) -> None:
    corpus = tmp_path / "corpus"
    write(corpus / "a.parquet", [*TEXTS[:40]] * 3, rows_per_group=1000)
    found = run(corpus)
    assert sorted(computed) == sorted(TEXTS[:40])
    assert len(found) == 120


def test_other_parameters_are_another_result(tmp_path: Path, computed: list[str]) -> None:
    corpus = tmp_path / "corpus"
    write(corpus / "a.parquet", TEXTS[:20])
    run(corpus)
    computed.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextStats, "version", 99)
        run(corpus)
    assert len(computed) == 20


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_broken_sidecar_is_computed_again(
    tmp_path: Path, computed: list[str], damage: str
) -> None:
    corpus = tmp_path / "corpus"
    write(corpus / "a.parquet", TEXTS[:100], rows_per_group=20)
    first = run(corpus)
    (corpus / "a.parquet").rename(corpus / "b.parquet")
    write(corpus / "b.parquet", TEXTS[:100], rows_per_group=20)  # other ids, other digest
    sidecars = sorted((tmp_path / "corpus.tamis").glob("scores/text_stats/*/*.parquet"))
    if damage == "cut":
        sidecars[0].write_bytes(sidecars[0].read_bytes()[:-20])
    elif damage == "empty":
        sidecars[0].write_bytes(b"")
    else:
        pq.write_table(pa.table({"content_hi": [1]}), sidecars[0])
    computed.clear()
    assert run(corpus) == first
    assert 0 < len(computed) < 100


def test_a_sidecar_that_goes_while_it_is_read(tmp_path: Path, computed: list[str]) -> None:
    corpus = tmp_path / "corpus"
    write(corpus / "a.parquet", TEXTS[:100], rows_per_group=20)
    first = run(corpus)
    write(corpus / "a.parquet", TEXTS[:100][::-1], rows_per_group=20)
    computed.clear()
    with pytest.MonkeyPatch.context() as patch:

        def gone(*arguments: object) -> None:
            raise FileNotFoundError("gone")

        patch.setattr("tamis.scoring.reuse.Known.take", gone)
        assert run(corpus) == first
    assert sorted(computed) == sorted(TEXTS[:100])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 15))
def test_once_equals_computing_all(numbers: list[int], size: int) -> None:
    count = 0

    def compute(batch: pa.RecordBatch) -> pa.RecordBatch:
        nonlocal count
        count += batch.num_rows
        values = pa.array([len(t) * 7.5 for t in batch["text"].to_pylist()])
        lists = pa.FixedSizeListArray.from_arrays(
            pa.array(np.repeat(values, 2), pa.float32()), type=kind
        )
        return pa.record_batch([values, lists], schema=columns)

    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), 2)
    columns = pa.schema([("a", pa.float64()), ("b", kind)])
    batch = pa.record_batch({"text": pa.array(["x" * n for n in numbers], pa.string())})
    once = Once(compute, columns, hash_batch(batch), None)
    parts = [once.next(batch.slice(i, size)) for i in range(0, len(numbers), size)]
    assert count == len(set(numbers))
    if parts:
        found = pa.Table.from_batches(parts)
        assert found["a"].to_pylist() == [n * 7.5 for n in numbers]
        assert found["b"].to_pylist() == [[n * 7.5] * 2 for n in numbers]
        assert found.schema.names[2:] == [field.name for field in KEYS]


def test_a_stage_of_another_name_finds_the_same_results(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = TextStats.fields
    monkeypatch.setattr(
        TextStats,
        "fields",
        lambda self: pa.schema([f.with_name(f"{self.stage}_{f.name}") for f in fields(self)]),
    )
    corpus = tmp_path / "corpus"
    write(corpus / "a.parquet", TEXTS)
    rule = {"operator": "where", "keep": {"long": "mine_words >= 6"}}
    told = {"path": str(corpus), "roles": {"text": "text", "id": "id"}}
    space = str(tmp_path / "work")
    for name in ("yours", "mine"):
        stages = [{"operator": "text_stats", "name": name}]
        if name == "mine":
            stages.append(rule)
        found = tamis.run({"corpus": told, "stages": stages, "workspace": space})
    assert sorted(computed) == sorted(TEXTS)
    assert found.manifest["rows"]["kept"] == sum(len(text.split()) >= 6 for text in TEXTS)
    names = query(found.workspace, "SELECT * FROM scores LIMIT 1")[0]
    assert "mine_words" in names
    assert "text_stats_words" not in names


def test_what_was_stored_in_portions_is_not_computed_again_after_a_stop(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    write(corpus / "a.parquet", TEXTS, rows_per_group=300)
    monkeypatch.setattr(TextStats, "portion_bytes", 1000)
    compute = TextStats.compute

    def stops(self: TextStats, batch: pa.RecordBatch) -> pa.RecordBatch:
        if len(computed) > 100:
            raise KeyboardInterrupt
        return compute(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(TextStats, "compute", stops)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, workers=1)
    before = len(computed)
    assert 100 < before < 200
    signals = tmp_path / "corpus.tamis" / "scores" / "text_stats"
    assert len(list(signals.glob("*/*.parquet"))) > 3

    found = run(corpus)
    assert sorted(computed) == sorted(TEXTS)  # each once, over both runs
    assert len(list(signals.glob("*/*.parquet"))) == 1  # the portions have gone
    computed.clear()
    monkeypatch.setattr(TextStats, "portion_bytes", None)
    again = run(corpus, workspace=str(tmp_path / "whole"))
    assert found == again
