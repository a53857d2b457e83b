"""A dropped duplicate names a partner that stayed, with their exact similarity."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from guarantee_tools import (
    STAGES,
    Key,
    Outcome,
    decisions_by_row,
    documents,
    jaccard,
    manifest_of,
    partner_of,
    recipe,
    table_of,
    workspace_of,
    write_parquet,
)

import tamis
from tamis.flows.explain import explain

ORDER = [stage["operator"] for stage in STAGES]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over 600 documents, in shards of 50."""
    folder = tmp_path_factory.mktemp("partners")
    write_parquet(folder / "in.parquet", table_of(documents(11, 600)), rows_per_group=50)
    stages = [*STAGES[:-1], {"operator": "top", "by": "number", "fraction": 0.6}]
    tamis.run(
        recipe(folder / "in.parquet", folder / "out", stages, corpus_options={"shard_bytes": 1})
    )
    return folder


@pytest.fixture(scope="module")
def decisions(home: Path) -> dict[Key, dict[str, Any]]:
    return decisions_by_row(workspace_of(home / "out"))


@pytest.fixture(scope="module")
def texts(home: Path) -> dict[Key, str]:
    from tamis.storage.catalog import query

    rows = query(workspace_of(home / "out"), "SELECT row_id, copy, text FROM rows")[1]
    return {(int(r[:16], 16), int(r[16:], 16), copy): text for r, copy, text in rows}


def _of_stage(decisions: dict[Key, dict[str, Any]], stage: str) -> dict[Key, dict[str, Any]]:
    found = {key: row for key, row in decisions.items() if row["stage"] == stage}
    assert len(found) > 20, "the corpus does not try what the test is about"
    return found


@pytest.mark.parametrize("stage", ["exact_dedup", "near_dedup"])
def test_the_partner_is_kept_at_the_end_of_the_stage(
    decisions: dict[Key, dict[str, Any]], stage: str
) -> None:
    for key, row in _of_stage(decisions, stage).items():
        partner = partner_of(row)
        assert partner is not None
        assert partner != key
        fate = decisions[partner]
        assert fate["action"] == "keep" or ORDER.index(fate["stage"]) > ORDER.index(stage)


def test_the_similarity_to_the_partner_is_exact(
    decisions: dict[Key, dict[str, Any]], texts: dict[Key, str]
) -> None:
    for key, row in _of_stage(decisions, "near_dedup").items():
        partner = partner_of(row)
        assert partner is not None
        assert row["similarity"] == row["value"] == jaccard(texts[key], texts[partner])
        assert row["threshold"] == 0.8
        assert row["similarity"] >= row["threshold"]


def test_a_partner_of_exact_dedup_has_the_same_text(
    decisions: dict[Key, dict[str, Any]], texts: dict[Key, str]
) -> None:
    for key, row in _of_stage(decisions, "exact_dedup").items():
        partner = partner_of(row)
        assert partner is not None
        assert texts[key] == texts[partner]
        assert row["similarity"] == 1.0


def test_the_partner_ranks_above_the_dropped_row(
    decisions: dict[Key, dict[str, Any]], texts: dict[Key, str]
) -> None:
    for stage in ("exact_dedup", "near_dedup"):
        for key, row in _of_stage(decisions, stage).items():
            partner = partner_of(row)
            assert partner is not None
            assert (-len(texts[partner]), partner) < (-len(texts[key]), key)


def test_rows_that_are_no_duplicates_name_no_partner(
    decisions: dict[Key, dict[str, Any]],
) -> None:
    for row in decisions.values():
        if row["stage"] not in ("exact_dedup", "near_dedup"):
            assert partner_of(row) is None
            assert row["similarity"] is None


def test_groups_whose_survivor_is_dropped_later_are_counted(
    home: Path, decisions: dict[Key, dict[str, Any]]
) -> None:
    reports = {stage["stage"]: stage for stage in manifest_of(home / "out")["stages"]}
    for stage in ("exact_dedup", "near_dedup"):
        partners = {partner_of(row) for row in _of_stage(decisions, stage).values()}
        lost = {key for key in partners if key and decisions[key]["action"] != "keep"}
        assert lost
        assert reports[stage]["groups_lost_later"] == len(lost)


def _chain(decisions: dict[Key, dict[str, Any]], key: Key) -> list[Key]:
    chain = [key]
    while (partner := partner_of(decisions[chain[-1]])) is not None:
        chain.append(partner)
    return chain


def test_why_follows_the_chain_of_partners(
    home: Path, decisions: dict[Key, dict[str, Any]], texts: dict[Key, str]
) -> None:
    dropped = sorted(_of_stage(decisions, "exact_dedup"))
    by_length = sorted(dropped, key=lambda key: -len(_chain(decisions, key)))
    assert len(_chain(decisions, by_length[0])) >= 3
    ends = set()
    for key in by_length[:12]:
        expected = _chain(decisions, key)
        told = explain(workspace_of(home / "out"), f"{key[0]:016x}{key[1]:016x}", key[2])
        assert [
            (int(e["row_id"][:16], 16), int(e["row_id"][16:], 16), e["copy"]) for e in told
        ] == expected
        for at, entry in zip(expected, told, strict=True):
            assert entry["text"] == texts[at]
            assert entry["action"] == decisions[at]["action"]
            assert entry["reason"] == decisions[at]["reason"]
            assert entry["similarity"] == decisions[at]["similarity"]
        for entry, following in pairwise(told):
            assert entry["partner_text"] == following["text"]
        ends.add(told[-1]["reason"])
    assert ends <= {None, "top"}


def test_the_command_why_tells_the_same(
    home: Path, decisions: dict[Key, dict[str, Any]], command: Callable[..., Outcome]
) -> None:
    key = max(_of_stage(decisions, "exact_dedup"), key=lambda key: len(_chain(decisions, key)))
    row_id = f"{key[0]:016x}{key[1]:016x}"
    told = command("why", row_id, "-w", home / "out", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)[0]["row_id"] == row_id
    assert len(json.loads(told.out)) == len(_chain(decisions, key))
    plain = command("why", row_id[:12], "-w", workspace_of(home / "out"))
    assert plain.out.count("its partner") == len(_chain(decisions, key)) - 1


def test_edges_hold_exact_similarities_down_to_their_floor(
    home: Path, texts: dict[Key, str]
) -> None:
    import pyarrow.parquet as pq

    workspace = workspace_of(home / "out")
    edges = pq.read_table(workspace / manifest_of(workspace)["edges"]["near_dedup"]).to_pylist()
    assert len(edges) > 20
    for edge in edges:
        row = edge["id_hi"], edge["id_lo"], edge["copy"]
        other = edge["other_hi"], edge["other_lo"], edge["other_copy"]
        assert (-len(texts[other]), other) < (-len(texts[row]), row)
        assert edge["similarity"] == jaccard(texts[row], texts[other])
        assert edge["similarity"] >= 0.7
