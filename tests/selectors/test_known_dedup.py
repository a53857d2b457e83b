"""Rows that another corpus holds already: against brute force, and where the corpora are odd."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tamis
from tamis.flows.account import hide_credentials
from tamis.flows.explain import explain
from tamis.scoring.minhash import MinHashSignature
from tamis.selectors import matching
from tamis.selectors.banding import Banding
from tamis.selectors.matching import TextSide, matches
from tamis.selectors.reference import Reference
from tamis.storage.errors import RunError, UserError
from tamis.storage.tasks import Threads
from tests.conftest import make_texts
from tests.scoring.test_minhash import sets_of

Ids = tuple[int, int, int]


def write(path: Path, texts: list[Any], group: int = 20, ids: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ids or [f"{path.stem}-{i}" for i in range(len(texts))]
    table = pa.table({"id": pa.array(names, pa.string()), "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=group)
    return path


def run(
    corpus: Path, out: Path, against: list[dict[str, Any]], shard_bytes: int = 1, **stage: Any
) -> Any:
    return tamis.run(
        {
            "corpus": {
                "path": str(corpus),
                "roles": {"text": "text", "id": "id"},
                "shard_bytes": shard_bytes,
            },
            "stages": [{"operator": "known_dedup", "references": against, **stage}],
            "output": {"path": str(out)},
        }
    )


def reference(path: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(path), "id": "id", **more}


def decisions(result: Any) -> dict[Ids, tuple[Any, ...]]:
    frame = result.decisions.collect()
    return {
        (row["id_hi"], row["id_lo"], row["copy"]): (
            row["action"],
            row["reason"],
            row["similarity"],
            row["partner_source"],
            row["partner_hi"],
            row["partner_lo"],
            row["evidence"],
        )
        for row in frame.iter_rows(named=True)
    }


def in_order(result: Any) -> list[dict[str, Any]]:
    """Decisions in the order of the corpus."""
    return list(result.decisions.collect().iter_rows(named=True))


def nearest(mine: list[str], theirs: list[str], threshold: float) -> list[tuple[float, list[int]]]:
    """By brute force: the best similarity of every text, and whose it is."""
    left, right = sets_of(mine), sets_of(theirs)
    found = []
    for a in left:
        values = [len(a & b) / len(a | b) for b in right]
        best = max(values, default=0.0)
        found.append((best, [i for i, v in enumerate(values) if v == best >= threshold]))
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("swapped", [False, True])
def test_matches_equal_brute_force(threshold: float, swapped: bool) -> None:
    texts = make_texts(500, seed=3, words=40, copies=0.6)
    mine, theirs = (texts[:150], texts[150:]) if not swapped else (texts[150:], texts[:150])
    signal = MinHashSignature()
    found = matches(
        TextSide(pa.array(mine)),
        TextSide(pa.array(theirs)),
        signal,
        Banding.finer_than(threshold, signal.num_perm),
        threshold,
        2,
    )
    expected = nearest(mine, theirs, threshold)
    assert found.rows.tolist() == [i for i, (_, who) in enumerate(expected) if who]
    assert len(found.rows) > 20
    for row, partner, value in zip(*found[:3], strict=True):
        assert value == expected[row][0]
        assert partner == expected[row][1][0]  # of equals the first


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    mine=st.lists(st.lists(st.sampled_from("abcdef"), max_size=9).map(" ".join), max_size=12),
    theirs=st.lists(st.lists(st.sampled_from("abcdef"), max_size=9).map(" ".join), max_size=12),
    threshold=st.sampled_from([0.3, 0.6, 1.0]),
)
def test_short_texts_equal_brute_force(
    mine: list[str], theirs: list[str], threshold: float
) -> None:
    signal = MinHashSignature()
    found = matches(
        TextSide(pa.array(mine, pa.string())),
        TextSide(pa.array(theirs, pa.string())),
        signal,
        Banding(128, 1),
        threshold,
        1,
    )
    expected = nearest(mine, theirs, threshold)
    for row, partner, value in zip(*found[:3], strict=True):
        assert (value, partner) == (expected[row][0], expected[row][1][0])
    if threshold == 1.0:
        assert found.rows.tolist() == [i for i, (_, who) in enumerate(expected) if who]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Memory for a few rows only, so that blocks and lists of candidates come to an end."""

    def shrink() -> None:
        monkeypatch.setattr(matching, "BLOCK_ROWS", 37)
        monkeypatch.setattr(matching, "PAIRS_AT_ONCE", 50)
        monkeypatch.setattr(matching, "SHINGLES_AT_ONCE", 500)

    return shrink


def test_blocks_and_workers_change_nothing(small_blocks: Callable[[], None]) -> None:
    texts = make_texts(600, seed=4, words=40, copies=0.7)
    signal = MinHashSignature()

    def find(mine: list[str], theirs: list[str], workers: int) -> Any:
        sides = TextSide(pa.array(mine)), TextSide(pa.array(theirs))
        return matches(*sides, signal, Banding.finer_than(0.7, 128), 0.7, workers)

    whole = [find(texts[:200], texts[200:], 1), find(texts[200:], texts[:200], 1)]
    small_blocks()
    cut = [find(texts[:200], texts[200:], 2), find(texts[200:], texts[:200], 2)]
    for a, b in zip(whole, cut, strict=True):
        for x, y in zip(a[:3], b[:3], strict=True):
            assert np.array_equal(x, y)
        assert a.counts == b.counts


def test_many_copies_in_the_reference_are_not_compared_one_by_one() -> None:
    words = make_texts(1, words=300, seed=9)[0].split()
    near = [" ".join([*words, f"end{i}"]) for i in range(3_000)]
    signal = MinHashSignature()
    mine = pa.array([" ".join(words), "something else"])
    found = matches(
        TextSide(mine), TextSide(pa.array(near)), signal, Banding.finer_than(0.8, 128), 0.8, 2
    )
    assert found.rows.tolist() == [0]
    assert found.counts["verified_pairs"] <= matching.CANDIDATES_PER_ROW
    assert found.counts["candidates_left_out"] > 2_000


@pytest.mark.parametrize("exact", [False, True])
def test_planted_copies_across_references(tmp_path: Path, exact: bool) -> None:
    fresh = make_texts(60, seed=1, words=50, copies=0)
    old, bench = make_texts(40, seed=2, copies=0), make_texts(30, seed=5, copies=0)
    edited = old[3] + " one more word"
    both = "a text that is in both of them, word for word"
    corpus = write(tmp_path / "in.parquet", [*fresh, old[7], bench[2], edited, both])
    write(tmp_path / "old.parquet", [*old, both])
    write(tmp_path / "bench.parquet", [*bench, both])
    against = [
        reference(tmp_path / "old.parquet", name="yesterday"),
        reference(tmp_path / "bench.parquet", name="benchmark"),
    ]
    for _ in range(2):  # the second time from the stored decisions
        result = run(corpus, tmp_path / "out", against, threshold=0.5, exact=exact)
    assert result.manifest["rows"]["kept"] == 60 + exact
    rows = in_order(result)[60:]
    assert [r["partner_source"] for r in rows[:2]] == ["yesterday", "benchmark"]
    assert rows[0]["reason"] == "known_dedup:yesterday"
    assert [r["similarity"] for r in rows[:2]] == [1.0, 1.0]
    assert rows[0]["evidence"] == old[7][:200]
    if exact:
        assert rows[2]["action"] == "keep"
    else:
        assert rows[2]["similarity"] == nearest([edited], old, 0.5)[0][0] < 1
    assert rows[3]["action"] == "drop"
    row_id = f"{rows[0]['id_hi']:016x}{rows[0]['id_lo']:016x}"
    assert explain(result.workspace, row_id)[-1]["evidence"] == old[7][:200]
    told = result.manifest["stages"][0]["report"]["references"]
    assert told["yesterday"]["resembled"] == (2 if exact else 3)


@pytest.mark.parametrize("exact", [False, True])
def test_order_sharding_and_workers_change_nothing(tmp_path: Path, exact: bool) -> None:
    texts = make_texts(400, seed=6, words=30, copies=0.6)
    draw = np.random.default_rng(0)
    found = []
    for turn, (group, shard_bytes, workers) in enumerate(
        [(400, 1 << 30, 1), (7, 1, 2), (50, 1, 3)]
    ):
        home = tmp_path / str(turn)
        mine, theirs = np.arange(200), np.arange(200, 400)
        if turn:
            draw.shuffle(mine)
            draw.shuffle(theirs)
        corpus = write(
            home / "in.parquet", [texts[i] for i in mine], group, [f"r{i}" for i in mine]
        )
        write(home / "ref.parquet", [texts[i] for i in theirs], group, [f"r{i}" for i in theirs])
        against = [reference(home / "ref.parquet", name="old")]
        recipe = {
            "corpus": {
                "path": str(corpus),
                "roles": {"text": "text", "id": "id"},
                "shard_bytes": shard_bytes,
            },
            "stages": [{"operator": "known_dedup", "references": against, "exact": exact}],
            "workspace": str(home / "work"),
            "workers": workers,
        }
        found.append(decisions(tamis.run(recipe)))
    assert found[0] == found[1] == found[2]
    assert sum(row[0] == "drop" for row in found[0].values()) > 20


def test_the_corpus_itself_as_its_reference_leaves_nothing(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in.parquet", make_texts(50, copies=0.3))
    result = run(corpus, tmp_path / "out", [reference(corpus)])
    assert result.manifest["rows"]["kept"] == 0
    assert set(result.dropped.collect()["similarity"]) == {1.0}


@pytest.mark.parametrize("exact", [False, True])
def test_empty_corpora_and_odd_texts(tmp_path: Path, exact: bool) -> None:
    odd = ["", "!", "漢字とかなで書いた文", "👩\u200d👩\u200d👧 e\u0301", "one", "word " * 50_000]
    (tmp_path / "none").mkdir()
    empty = write(tmp_path / "empty.parquet", [])
    corpus = write(tmp_path / "in.parquet", odd)
    for nothing in (tmp_path / "none", empty):
        result = run(corpus, tmp_path / "out", [reference(nothing)], exact=exact)
        assert result.manifest["rows"]["kept"] == len(odd)
    # Rows of the reference without a text are no partners.
    others = [f"something else {i}" for i in range(200)]
    other = write(tmp_path / "ref.parquet", [None, *odd[:3], None, *odd[3:], *others])
    result = run(corpus, tmp_path / "out", [reference(other)], exact=exact)
    assert result.manifest["rows"]["kept"] == 0
    assert in_order(result)[0]["evidence"] == ""
    assert len(in_order(result)[5]["evidence"]) == 200
    result = run(empty, tmp_path / "out2", [reference(other)], exact=exact)
    assert result.manifest["rows"]["in"] == 0


def test_a_changed_reference_costs_only_its_own_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed: list[str] = []
    honest = MinHashSignature.compute

    def spy(self: MinHashSignature, batch: pa.RecordBatch) -> pa.RecordBatch:
        signed.extend(batch["text"].to_pylist())
        return honest(self, batch)

    monkeypatch.setattr(MinHashSignature, "compute", spy)
    texts = make_texts(120, copies=0)
    corpus = write(tmp_path / "in.parquet", texts[:30])
    for day in range(3):
        write(tmp_path / f"old/{day}.parquet", texts[30 + day * 30 : 60 + day * 30])
    index = str(tmp_path / "index")
    against = [reference(tmp_path / "old", index=index)]
    run(corpus, tmp_path / "out", against)
    assert sorted(signed) == sorted(texts)
    signed.clear()
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == ["ids", "signals"]
    write(tmp_path / "old/1.parquet", ["another text", texts[4]])
    assert run(corpus, tmp_path / "out", against).manifest["rows"]["kept"] == 29
    assert signed == ["another text", texts[4]]
    signed.clear()
    # Another recipe with the same index computes no signal of the history.
    run(corpus, tmp_path / "other", against, threshold=0.7)
    assert sorted(signed) == sorted(texts[:30])


def test_near_dedup_after_it_uses_the_same_signatures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    honest = MinHashSignature.compute

    def spy(self: MinHashSignature, batch: pa.RecordBatch) -> pa.RecordBatch:
        nonlocal count
        count += batch.num_rows
        return honest(self, batch)

    monkeypatch.setattr(MinHashSignature, "compute", spy)
    texts = make_texts(300, copies=0.5)
    corpus = write(tmp_path / "in.parquet", texts[:200])
    old = write(tmp_path / "old.parquet", texts[200:])
    recipe = {
        "corpus": {"path": str(corpus), "roles": {"text": "text", "id": "id"}, "shard_bytes": 1},
        "stages": [
            {"operator": "known_dedup", "references": [reference(old)]},
            {"operator": "near_dedup"},
        ],
        "output": {"path": str(tmp_path / "out")},
    }
    first = decisions(tamis.run(recipe))
    assert count == 300
    # The same where the first decision is there already and the second is not.
    for path in (tmp_path / "out.tamis/decisions").glob("near_dedup*"):
        path.unlink()
    assert decisions(tamis.run(recipe)) == first
    assert count == 300
    # And as if the rows dropped first had never been there.
    stays = [row for row in first.values() if row[0] == "keep"]
    alone = write(
        tmp_path / "alone.parquet",
        [
            text
            for text, row in zip(texts[:200], in_order(tamis.run(recipe)), strict=True)
            if row["stage"] != "known_dedup"
        ],
    )
    plain = {**recipe, "corpus": {**recipe["corpus"], "path": str(alone)}}
    plain["stages"] = [{"operator": "near_dedup", "name": "near"}]
    plain["output"] = {"path": str(tmp_path / "plain")}
    assert tamis.run(plain).manifest["rows"]["kept"] == len(stays)


def test_published_rows_stay_as_they_are_over_days(tmp_path: Path) -> None:
    """The daily flow of docs/history.md: what was published once is never taken back."""
    texts = make_texts(300, seed=11, words=40, copies=0.6)
    published = tmp_path / "published"
    published.mkdir()
    kept: list[str] = []
    for day in range(3):
        write(tmp_path / "today.parquet", texts[day * 100 : day * 100 + 100])
        tamis.run(
            {
                "corpus": {"path": str(tmp_path / "today.parquet"), "roles": {"text": "text"}},
                "stages": [
                    {"operator": "known_dedup", "references": [{"path": str(published)}]},
                    {"operator": "near_dedup"},
                ],
                "output": {"path": str(tmp_path / "new")},
                "workspace": str(tmp_path / "work"),
            }
        )
        (tmp_path / "new").rename(published / f"day-{day}")
        today = pq.read_table(sorted((published / f"day-{day}").glob("*.parquet")))
        for text, (_, who) in zip(
            today["text"].to_pylist(), nearest(today["text"].to_pylist(), kept, 0.8), strict=True
        ):
            assert not who, text
        kept += today["text"].to_pylist()
    assert 100 < len(kept) < 200
    assert json.loads((published / "day-0/manifest.json").read_text())["rows"]["in"] == 100


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in.parquet", ["a"])
    with pytest.raises(UserError, match="no such file"):
        run(corpus, tmp_path / "out", [reference(tmp_path / "nothing")])
    with pytest.raises(UserError, match="no column 'body'"):
        run(corpus, tmp_path / "out", [reference(corpus, text="body")])
    with pytest.raises(UserError, match="two references are called"):
        run(corpus, tmp_path / "out", [reference(corpus), reference(corpus)])
    with pytest.raises(UserError, match="references"):
        run(corpus, tmp_path / "out", [])
    write(tmp_path / "all/old/a.parquet", ["b"])
    with pytest.raises(UserError, match="this run's own output"):
        run(corpus, tmp_path / "all/out", [reference(tmp_path / "all")])
    everything = [reference(tmp_path / "all/*/*.parquet")]
    assert run(corpus, tmp_path / "all/out", everything).manifest["rows"]["kept"] == 1
    with pytest.raises(UserError, match="this run's own output"):
        run(corpus, tmp_path / "all/out", everything)


def find(mine: list[str], theirs: list[str]) -> Any:
    signal = MinHashSignature()
    sides = TextSide(pa.array(mine)), TextSide(pa.array(theirs))
    return matches(*sides, signal, Banding.finer_than(0.8, signal.num_perm), 0.8, 2)


def test_many_equal_texts_on_both_sides() -> None:
    text = " ".join(make_texts(1, seed=5, words=60, copies=0))
    # Same shingles, other bytes: compared once, and the one with the smallest id is the partner.
    found = find([text, text.upper()] * 10_000, ["nothing like it at all", *[text] * 20_000])
    assert found.rows.tolist() == list(range(20_000))
    assert set(found.partner.tolist()) == {1}
    assert set(found.similarity.tolist()) == {1.0}
    assert found.counts["candidate_pairs"] == 1


def test_many_rows_of_one_template(monkeypatch: pytest.MonkeyPatch) -> None:
    template = " ".join(make_texts(1, seed=6, words=150, copies=0))
    mine = [f"{template} number {i} of them" for i in range(5_000)]
    theirs = [f"{template} number {i} of all" for i in range(5_001)]
    # The one side or the other lies in tables; what is found and counted is the same.
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", 1 << 18)
    found = find(mine, theirs)
    assert len(found.rows) == 5_000
    assert found.counts["verified_pairs"] == 5_000 * matching.CANDIDATES_PER_ROW
    other = find([*mine, "quite another", "and one more"], theirs)
    for a, b in zip(found[:3], other[:3], strict=True):
        assert np.array_equal(a, b)
    assert found.counts == other.counts


def test_bad_rows_of_a_reference_are_counted_or_refused(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in.parquet", ["kept"])
    lines = [json.dumps({"id": str(i), "text": f"text {i}"}) for i in range(300)]
    lines[7:9] = ["{", '{"id": "n", "text": null}']
    against = [reference(tmp_path / "old.jsonl", name="old")]
    (tmp_path / "old.jsonl").write_text("\n".join(lines))
    report = run(corpus, tmp_path / "out", against).manifest["stages"][0]["report"]
    told = report["references"]["old"]
    assert (told["rows"], told["unread"], told["without_text"]) == (298, 1, 1)
    lines[9:11] = ["no JSON", "nor this"]
    (tmp_path / "old.jsonl").write_text("\n".join(lines))
    with pytest.raises(RunError, match=r"4 of 300 rows of the reference.*old\.jsonl line 8"):
        run(corpus, tmp_path / "out", against)


def test_a_reference_that_changes_while_a_run_goes_on(tmp_path: Path) -> None:
    old = write(tmp_path / "old.parquet", ["a", "b"])
    resolved = Reference(path=str(old)).resolve(tmp_path / "work")
    write(old, ["a", "b", "c"])
    with pytest.raises(RunError, match="changed since the run began"):
        resolved.open(tmp_path / "work", Threads(1), lambda name, done, total: None)


@pytest.mark.parametrize("inside", ["old", "in", "out"])
def test_an_index_among_what_is_read_or_written(tmp_path: Path, inside: str) -> None:
    write(tmp_path / "in/a.parquet", ["a"])
    write(tmp_path / "old/a.parquet", ["b"])
    against = [reference(tmp_path / "old", index=str(tmp_path / inside / "index"))]
    with pytest.raises(UserError, match="the index of a reference lies in the"):
        run(tmp_path / "in", tmp_path / "out", against)
    assert not (tmp_path / inside / "index").exists()


def test_credentials_of_references_are_not_stored() -> None:
    one = Reference(path="s3://key:secret@bucket/a", index="https://host/b?token=1").model_dump()
    stage: dict[str, Any] = {"references": [one], "target": {**one, "index": None}}
    hide_credentials(stage)
    assert stage["references"][0]["path"] == stage["target"]["path"] == "s3://***@bucket/a"
    assert stage["references"][0]["index"] == "https://host/b?***"
    assert stage["target"]["index"] is None
