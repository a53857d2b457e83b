"""Rows with new labels, weights and reviews: every guarantee holds of them, too."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from guarantee_tools import (
    SIDECARS,
    check_balance,
    decisions_by_row,
    digests,
    leftovers,
    manifest_of,
    read_dataset,
    recipe,
    workspace_of,
    write_parquet,
)
from tests.selectors.label_tools import ROLES, rows

import tamis
from tamis.selectors.label_review import LabelReview
from tamis.selectors.relabel import Relabel
from tamis.selectors.table_scorer import Scores

BY = {"by": "p_wrong"}
ACTIONS: list[dict[str, Any]] = [
    {"operator": "where", "keep": {"even": "loss < 4"}},
    {"operator": "relabel", "confidence": 0.95, **BY},
    {"operator": "label_weight", **BY},
    {"operator": "label_review", "rows": 20, **BY},
    {"operator": "label_weight", "name": "again", "floor": 0.3, **BY},
    {"operator": "label_review", "name": "aside", "rows": 9, "held_out": True, **BY},
    {"operator": "label_errors", "threshold": 0.7, **BY},
    {"operator": "exact_dedup"},
]


def _labelled(count: int = 300, nulls: int = 0) -> pa.Table:
    table = rows(count)
    labels = table["label"].to_pylist()
    labels[5 : 5 + nulls] = [None] * nulls
    texts = pa.array([f"text {i % (count - 20)}" for i in range(count)])
    table = table.set_column(1, "text", texts)
    return table.set_column(2, "label", pa.array(labels, pa.string()))


def _corrections(path: Path, table: pa.Table, home: Path) -> dict[str, Any]:
    """A person's answers on some rows, and the stage that reads them."""
    write_parquet(home / "in.parquet", table)
    told = recipe(home / "in.parquet", None, [], roles=ROLES, workspace=str(home / "work"))
    told["max_quarantine"] = 1.0
    ids = tamis.sql(tamis.run(told), "SELECT row_id FROM rows ORDER BY row_id")["row_id"]
    verdicts = ["keep", "relabel", "drop", ""]
    lines = ["row_id,verdict,label"]
    for number, row_id in enumerate(ids[:60]):
        verdict = verdicts[number % 4]
        lines.append(f"{row_id},{verdict},{'neu' if verdict == 'relabel' else ''}")
    path.write_text("\n".join(lines))
    return {"operator": "label_corrections", "path": str(path)}


def _run(home: Path, table: pa.Table, stages: list[dict[str, Any]], **options: Any) -> Any:
    write_parquet(home / "in/a.parquet", table.slice(0, table.num_rows // 2), 40)
    write_parquet(home / "in/b.parquet", table.slice(table.num_rows // 2), 50)
    corpus = {"shard_bytes": 1}
    return tamis.run(
        recipe(home / "in", home / "out", stages, roles=ROLES, corpus_options=corpus, **options)
    )


def test_conservation_with_every_action(tmp_path: Path) -> None:
    table = _labelled(nulls=4)
    correct = _corrections(tmp_path / "c.csv", table, tmp_path / "plain")
    result = _run(tmp_path, table, [correct, *ACTIONS], max_quarantine=0.05)
    manifest = check_balance(workspace_of(tmp_path / "out"), tmp_path / "out")
    counts = manifest["rows"]
    assert counts["quarantined"] == 4
    assert set(counts["dropped"]) == {
        *("where:even", "label_corrections", "aside", "label_errors", "exact_dedup"),
    }
    assert counts["relabelled"] > 10
    assert 0 < counts["in_review"] <= 20
    actions = result.decisions.collect()["action"].value_counts().rows()
    assert dict(actions)["review"] == counts["in_review"]
    assert result.kept.collect().height == counts["kept"]
    dataset = read_dataset(tmp_path / "out")
    changed = np.array(dataset["label"].to_pylist()) != np.array(dataset["given_label"].to_pylist())
    assert changed.sum() == counts["relabelled"]
    weights = dict(
        tamis.sql(
            result, "SELECT r.id, d.weight FROM decisions d JOIN rows r USING (row_id)"
        ).rows()
    )
    assert [weights[name] for name in dataset["id"].to_pylist()] == dataset["weight"].to_pylist()
    queued = pq.read_table(result.queues["label_review"][1]).num_rows
    assert queued == counts["in_review"]
    assert pq.read_table(result.queues["aside"][1]).num_rows == counts["dropped"]["aside"]
    card = (tmp_path / "out/README.md").read_text()
    assert f"| of these relabelled | {counts['relabelled']:,} |" in card
    assert f"| of these in review | {counts['in_review']:,} |" in card


@pytest.mark.parametrize("count", [0, 1])
def test_conservation_of_hardly_any_rows(tmp_path: Path, count: int) -> None:
    table = _labelled(30).slice(0, count)
    result = _run(tmp_path, table, ACTIONS)
    check_balance(workspace_of(tmp_path / "out"), tmp_path / "out")
    dataset = read_dataset(tmp_path / "out")
    assert dataset.schema.names == [*table.schema.names, "given_label", "weight"]
    assert pq.read_table(result.queues["label_review"][1]).num_rows <= count


def test_conservation_where_every_label_is_missing(tmp_path: Path) -> None:
    table = _labelled(40).set_column(2, "label", pa.nulls(40, pa.string()))
    _run(tmp_path, table, ACTIONS, max_quarantine=1.0)
    manifest = check_balance(workspace_of(tmp_path / "out"), tmp_path / "out")
    assert manifest["rows"]["quarantined"] == 40


def test_marks_that_the_ledger_lacks_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tamis.flows import account, direct

    honest = account.marked_rows_of
    monkeypatch.setattr(
        direct, "marked_rows_of", lambda run: {k: v + 1 for k, v in honest(run).items()}
    )
    with pytest.raises(tamis.RunError, match="rows were marked relabel, the ledger holds"):
        _run(tmp_path, _labelled(), ACTIONS)
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_the_same_run_in_another_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    table = _labelled()
    correct = _corrections(tmp_path / "c.csv", table, tmp_path / "plain")
    homes = [tmp_path / "first", tmp_path / "second place"]
    for home, workers in zip(homes, (1, 3), strict=True):
        _run(home, table, [correct, *ACTIONS], workers=workers)
    folders = (*SIDECARS, "review")
    first, second = (digests(workspace_of(home / "out"), folders) for home in homes)
    assert first == second
    assert any(name.startswith("review/") for name in first)
    datasets = [
        {n: d for n, d in digests(home / "out").items() if n.endswith(".parquet")} for home in homes
    ]
    assert datasets[0] == datasets[1]


def _layouts(table: pa.Table, home: Path) -> Iterator[Path]:
    order = list(range(table.num_rows))
    for number, per_group in enumerate((300, 45, 20)):
        random.Random(number).shuffle(order)
        some = table.take(pa.array(order))
        for part in range(number + 1):
            size = -(-len(order) // (number + 1))
            path = home / f"{number}/in/{part}.parquet"
            write_parquet(path, some.slice(part * size, size), per_group)
        yield home / f"{number}"


def test_decisions_do_not_depend_on_order_shards_or_workers(tmp_path: Path) -> None:
    table = _labelled()
    correct = _corrections(tmp_path / "c.csv", table, tmp_path / "plain")
    found = []
    for number, home in enumerate(_layouts(table, tmp_path)):
        told = recipe(
            *(home / "in", home / "out", [correct, *ACTIONS]),
            roles=ROLES,
            corpus_options={"shard_bytes": 1},
            workers=number + 1,
        )
        result = tamis.run(told)
        queues = {
            stage: [path.read_bytes() for path in paths] for stage, paths in result.queues.items()
        }
        dataset = read_dataset(home / "out").sort_by("id").to_pylist()
        found.append((decisions_by_row(workspace_of(home / "out")), queues, dataset))
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_processes_write_the_same_dataset(tmp_path: Path) -> None:
    table = _labelled(80)
    datasets = []
    for runner in ("threads", "processes"):
        _run(tmp_path / runner, table, ACTIONS[1:4], runner=runner, workers=2)
        files = digests(tmp_path / runner / "out")
        datasets.append({n: d for n, d in files.items() if n.endswith(".parquet")})
    assert datasets[0] == datasets[1]


@pytest.mark.parametrize("stage", [Relabel, LabelReview])
def test_a_run_that_was_cut_off_ends_as_an_undisturbed_one(
    tmp_path: Path, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = _labelled()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for home in (whole, cut):
        home.mkdir()
    _run(whole, table, ACTIONS)
    honest = stage.evaluate

    def fails(self: Any, table: Any) -> Scores:
        found = honest(self, table)

        def batches() -> Iterator[pa.RecordBatch]:
            yield next(iter(found.batches)).slice(0, 60)
            raise tamis.RunError("the power went")

        return Scores(batches(), found.report)

    with monkeypatch.context() as broken:
        broken.setattr(stage, "evaluate", fails)
        with pytest.raises(tamis.RunError, match="the power went"):
            _run(cut, table, ACTIONS)
    assert not (cut / "out").exists()
    _run(cut, table, ACTIONS)
    folders = (*SIDECARS, "review")
    assert digests(cut / "out.tamis", folders) == digests(whole / "out.tamis", folders)
    assert manifest_of(cut / "out")["files"] == manifest_of(whole / "out")["files"]

    def never(self: Any, table: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(stage, "evaluate", never)
    _run(cut, table, ACTIONS)


def test_new_files_leave_those_of_old_rows_as_they_are(tmp_path: Path) -> None:
    table = _labelled()
    stages = [ACTIONS[2], ACTIONS[6]]
    write_parquet(tmp_path / "in/a.parquet", table.slice(0, 200), 50)
    told = recipe(
        *(tmp_path / "in", tmp_path / "out", stages),
        roles=ROLES,
        corpus_options={"shard_bytes": 1},
    )
    tamis.run(told)
    before = {p.name: p.stat().st_ino for p in (tmp_path / "out").glob("*.parquet")}
    write_parquet(tmp_path / "in/b.parquet", table.slice(200), 50)
    tamis.run(told)
    after = {p.name: p.stat().st_ino for p in (tmp_path / "out").glob("*.parquet")}
    assert before.items() < after.items()
    check_balance(workspace_of(tmp_path / "out"), tmp_path / "out")


def test_a_rewritten_text_is_what_the_queue_shows(tmp_path: Path) -> None:
    table = _labelled(40)
    texts = [f"write to a{i}@example.com now" for i in range(40)]
    table = table.set_column(1, "text", pa.array(texts))
    stages = [{"operator": "pii", "mask": True}, {**ACTIONS[3], "rows": 5}]
    result = _run(tmp_path, table, stages)
    queue = pq.read_table(result.queues["label_review"][1])
    assert not any("@example.com" in text for text in queue["text"].to_pylist())


def test_rows_are_not_made_where_labels_are_marked(tmp_path: Path) -> None:
    from tamis.recipe import check_recipe

    roles = {**ROLES, "prompt": "text", "chosen": "probe_suggested", "rejected": "label"}
    bootstrap = {"operator": "sera_bootstrap"}
    draw = {"operator": "responses", "policy": {"model": "m"}, "reference": {"model": "m"}}
    told = recipe(
        *(tmp_path / "in.parquet", tmp_path / "out", [ACTIONS[2], draw, bootstrap]), roles=roles
    )
    from tamis.flows.checks import check_columns

    with pytest.raises(tamis.UserError, match="makes rows, and label_weight marks rows"):
        check_columns(check_recipe(told), _labelled(3).schema)
