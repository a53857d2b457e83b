"""What-if against runs under the other rules: the same rows, and figures that add up."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tamis
from tamis.flows.differences import Difference
from tamis.selectors import components, duplicates
from tests.commands import tamis as command
from tests.conftest import make_texts
from tests.guarantees.guarantee_tools import documents

NEAR: dict[str, Any] = {"operator": "near_dedup"}
STAGES: list[dict[str, Any]] = [
    {"operator": "text_stats"},
    {"operator": "token_count", "bytes_per_token": 4.0},
    {"operator": "where", "name": "rules", "keep": {"long": "words >= 10", "low": "number < 95"}},
    {"operator": "exact_dedup"},
    {**NEAR, "threshold": 0.7},
    {"operator": "top", "by": "number", "rows": 150},
]


def write(path: Path, texts: list[str], group: int = 100) -> Path:
    numbers = [float(i * 7 % 101) for i in range(len(texts))]
    domains = [("web", "books", None)[i % 3] for i in range(len(texts))]
    ids = [f"row-{i}" for i in range(len(texts))]
    columns = {"id": ids, "text": texts, "number": numbers, "domain": domains}
    schema = {"id": pa.string(), "text": pa.string(), "number": pa.float64(), "domain": pa.string()}
    pq.write_table(pa.table(columns, schema=pa.schema(schema.items())), path, row_group_size=group)
    return path


def recipe(corpus: Path, home: Path, stages: list[dict[str, Any]]) -> dict[str, Any]:
    roles = {"text": "text", "id": "id", "domain": "domain"}
    part = {"path": str(corpus), "roles": roles, "shard_bytes": 1}
    return {"corpus": part, "stages": stages, "workspace": str(home)}


def changed(stages: list[dict[str, Any]], changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages with parameters set, written without the code that is tested."""
    stages = json.loads(json.dumps(stages))
    for name, value in changes.items():
        stage, *path = name.split(".")
        part = next(s for s in stages if s.get("name", s["operator"]) == stage)
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
    return stages


def fates(result: Any) -> dict[Any, Any]:
    names = ["action", "stage", "reason", "value", "threshold", "partner_hi", "similarity"]
    rows = result.decisions.collect()
    return dict(zip(rows["id_hi"], rows.select(names).rows(), strict=True))


def foretold(found: Difference) -> dict[Any, Any]:
    """The fate of every row as what-if tells it: the old one where it tells no other."""
    from tamis.flows.account import drops_in

    run = found._other.run
    drops = drops_in(run, slice(0, len(run.kept))).to_pydict()
    ids = run.rows.id_hi.tolist()
    result: dict[Any, Any] = {i: ("keep", *[None] * 6) for i in ids}
    keys = ("stage", "reason", "value", "threshold", "partner_hi", "similarity")
    for at, values in zip(
        drops["position"], zip(*(drops[k] for k in keys), strict=True), strict=True
    ):
        result[ids[at]] = ("drop", *values)
    return result


def holds(tmp: Path, corpus: Path, stages: list[dict[str, Any]], changes: dict[str, Any]) -> Any:
    """Hold what-if against a run of its own under the same rules."""
    home = tmp / "w"
    before = tamis.run(recipe(corpus, home, stages))
    stored = {p: p.read_bytes() for p in sorted(home.rglob("*.parquet"))}
    manifest = (home / "manifest.json").read_bytes()
    found = tamis.what_if(before, changes, evaluate=False)
    assert {p: p.read_bytes() for p in stored} == stored
    assert (home / "manifest.json").read_bytes() == manifest
    after = tamis.run(recipe(corpus, tmp / "other", changed(stages, changes)))
    if found.exact:
        assert found.after["rows"] == after.manifest["rows"]["kept"]
        assert {k: n for k, (_, n) in found.dropped.items() if n} == after.manifest["rows"][
            "dropped"
        ]
        assert foretold(found) == fates(after)
        if found.domains is not None:
            domains = {name: new["rows"] for name, (_, new) in found.domains.items()}
            assert domains == {n: c["kept"] for n, c in after.manifest["domains"].items()}
    else:
        exact = tamis.what_if(before, changes, evaluate=True)
        assert exact.exact
        assert exact.after["rows"] == after.manifest["rows"]["kept"]
        assert foretold(exact) == fates(after)
    return found


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1000),
    before=st.sampled_from([0.4, 0.6, 0.7, 0.8, 0.9, 1.0]),
    after=st.sampled_from([0.3, 0.5, 0.65, 0.7, 0.75, 0.8, 0.85, 0.95, 1.0]),
)
def test_another_threshold_keeps_what_a_run_at_it_keeps(
    tmp_path_factory: pytest.TempPathFactory, seed: int, before: float, after: float
) -> None:
    tmp = tmp_path_factory.mktemp("threshold")
    corpus = write(tmp / "in.parquet", documents(seed, 300), group=70)
    found = holds(tmp, corpus, [{**NEAR, "threshold": before}], {"near_dedup.threshold": after})
    assert found.exact


@pytest.mark.parametrize(("before", "after"), [(0.8, 0.6), (0.6, 0.8), (0.7, 0.95), (0.8, 0.8)])
def test_clusters_chains_and_templates(tmp_path: Path, before: float, after: float) -> None:
    texts = make_texts(1500, copies=0.7, words=30)
    template = " ".join(f"t{i}" for i in range(60))
    texts += [f"{template} {' '.join(f'x{i}y{k}' for k in range(i % 30))}" for i in range(600)]
    corpus = write(tmp_path / "in.parquet", texts, group=500)
    stages = [{**NEAR, "threshold": before}]
    found = holds(tmp_path, corpus, stages, {"near_dedup.threshold": after})
    assert (found.after["rows"] > found.before["rows"]) == (after > before)


@pytest.mark.parametrize("bytes_of_batch", [1, 1 << 19, 1 << 20])
def test_the_size_of_batches_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_of_batch: int
) -> None:
    monkeypatch.setattr(duplicates, "BATCH_BYTES", bytes_of_batch)
    monkeypatch.setattr(components, "MIN_PAIRS", 1)
    corpus = write(tmp_path / "in.parquet", make_texts(1200, copies=0.6, words=30), group=300)
    stages = [{**NEAR, "threshold": 0.8}]
    assert holds(tmp_path, corpus, stages, {"near_dedup.threshold": 0.6}).exact


@pytest.mark.parametrize(
    "changes",
    [
        {"near_dedup.threshold": 0.5},
        {"near_dedup.rank": "number"},
        {"near_dedup.bands": 16, "near_dedup.band_rows": 8},
        {"top.rows": 10},
        {"top.rows": 10_000},
        {"rules.keep.long": "words >= 30"},
        {"rules.keep": "words BETWEEN 12 AND 60 AND number < 95"},
        {"near_dedup.threshold": 0.9, "top.rows": 200, "rules.keep.low": "number < 50"},
    ],
)
def test_any_stage_of_a_recipe(tmp_path: Path, changes: dict[str, Any]) -> None:
    corpus = write(tmp_path / "in.parquet", documents(3, 400), group=90)
    found = holds(tmp_path, corpus, STAGES, changes)
    # A row that was dropped for one which a stricter rule drops now was not seen further on.
    assert found.exact or "rules.keep.low" in changes
    assert found.tokens_by == "tokens_estimated"
    table = pq.read_table(corpus).to_pydict()
    lengths = dict(zip(table["id"], map(len, table["text"]), strict=True))
    assert found.before["characters"] <= sum(lengths.values())
    for name in found.before:
        difference = found.gained[name] - found.lost[name]
        assert found.after[name] == found.before[name] + difference
        assert found.after[name] == sum(new[name] for _, new in found.domains.values())


def test_a_looser_rule_leaves_rows_that_later_stages_have_not_seen(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in.parquet", documents(4, 400), group=90)
    changes = {"rules.keep.long": "words >= 5"}
    found = holds(tmp_path, corpus, STAGES, changes)
    assert not found.exact
    assert found.not_evaluated["exact_dedup"] > 0
    waiting = found.changed.filter(pl.col("change") == "not evaluated")
    assert len(waiting) == sum(found.not_evaluated.values())
    assert set(waiting["reason"]) == {"rules:long"}
    assert waiting["tokens"].null_count() == len(waiting)


def test_a_looser_rule_before_a_scorer_leaves_rows_without_scores(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in.parquet", documents(5, 300))
    stages = [
        {"operator": "where", "keep": "length(text) > 60"},
        {"operator": "text_stats"},
        {"operator": "top", "by": "words", "fraction": 0.5},
    ]
    run = tamis.run(recipe(corpus, tmp_path / "w", stages))
    found = tamis.what_if(run, {"where.keep": "length(text) > 20"})
    assert found.not_evaluated == {"text_stats": found.changed.height}
    assert found.after == found.before
    exact = tamis.what_if(run, {"where.keep": "length(text) > 20"}, evaluate=True)
    assert exact.after["rows"] > found.after["rows"]


def test_text_that_a_stage_rewrites(tmp_path: Path) -> None:
    texts = [f"write to a{i % 50}@b.cd {text}" for i, text in enumerate(documents(6, 200))]
    corpus = write(tmp_path / "in.parquet", texts)
    stages = [{"operator": "pii", "mask": True}, {**NEAR, "threshold": 0.8}]
    found = holds(tmp_path, corpus, stages, {"near_dedup.threshold": 0.5})
    kept = tamis.run(
        {**recipe(corpus, tmp_path / "x", stages), "output": {"path": str(tmp_path / "o")}}
    )
    written = pl.read_parquet(tmp_path / "o" / "*.parquet")
    assert kept.manifest["rows"]["kept"] == found.before["rows"]
    assert found.before["characters"] == written["text"].str.len_chars().sum()


def test_several_dedup_stages(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in.parquet", documents(7, 300))
    stages = [
        {**NEAR, "threshold": 0.9, "name": "first"},
        {**NEAR, "threshold": 0.6, "unit": "character", "name": "second"},
    ]
    assert holds(tmp_path, corpus, stages, {"first.threshold": 0.7}).exact
    assert holds(tmp_path / "..", corpus, stages, {"second.threshold": 0.8}).exact
    loose = tamis.what_if(tmp_path / "w", {"first.threshold": 1.0})
    assert loose.not_evaluated["second"] > 0


@pytest.mark.parametrize(
    ("texts", "threshold"),
    [([], 0.8), (["one"], 0.5), (["", ""], 0.5), (["a b c d e f"] * 30, 0.9), (list("abcdef"), 1)],
)
def test_small_corpora(tmp_path: Path, texts: list[str], threshold: float) -> None:
    corpus = write(tmp_path / "in.parquet", texts)
    found = holds(tmp_path, corpus, [NEAR], {"near_dedup.threshold": threshold})
    assert found.lost["rows"] == found.gained["rows"] == 0
    assert found.changed.height == 0


def test_everything_may_be_dropped(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in.parquet", documents(8, 50))
    found = holds(
        tmp_path, corpus, [{"operator": "top", "by": "number", "rows": 20}], {"top.rows": 0}
    )
    assert found.after["rows"] == 0
    assert found.lost["rows"] == found.before["rows"] == 20


def test_rows_without_roles(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in.parquet", documents(8, 50))
    told = {
        "corpus": {"path": str(corpus)},
        "stages": [{"operator": "sample", "fraction": 0.5}],
        "workspace": str(tmp_path / "w"),
    }
    found = tamis.what_if(tamis.run(told), {"sample.fraction": 0.2})
    assert set(found.before) == {"rows"}
    assert found.domains is None
    assert found.as_json()["domains"] is None


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("what-if")
    corpus = write(folder / "in.parquet", documents(9, 600))
    tamis.run(recipe(corpus, folder / "w", STAGES))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"near.threshold": 0.7}, "no stage 'near'; stages that decide: rules, exact_dedup"),
        ({"near_dedup.treshold": 0.7}, "has no 'treshold'; it has threshold"),
        ({"near_dedup.threshold": 1.2}, "less than or equal to 1"),
        ({"near_dedup.threshold": 0}, "greater than 0"),
        ({"near_dedup.threshold": None}, "threshold: Input should be a valid number"),
        ({"near_dedup": 0.7}, "expected STAGE.PARAM"),
        ({"near_dedup.threshold.x": 0.7}, "near_dedup.threshold has no 'x'"),
        ({"near_dedup.ngram": 3}, "signal minhash would have to be computed for"),
        ({"rules.keep.short": "words < 4"}, "rules.keep has no 'short'; it has long, low"),
        ({"rules.keep.long": "wrds < 4"}, "neither a column nor a score"),
        ({"rules.keep.long": "words <"}, "not an SQL expression"),
        ({"text_stats.name": "x"}, "text_stats is a row scorer"),
        ({"top.operator": "sample"}, "has no 'operator'"),
        ({}, "nothing to change"),
    ],
)
def test_what_does_not_fit(done: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(tamis.UserError) as error:
        tamis.what_if(done / "w", changes)
    assert message in str(error.value)


def test_no_run_and_another_corpus(done: Path, tmp_path: Path) -> None:
    with pytest.raises(tamis.UserError, match="no finished run here"):
        tamis.what_if(tmp_path / "nothing", {"near_dedup.threshold": 0.7})
    assert not (tmp_path / "nothing").exists()
    # A dataset has a manifest too; what-if must leave no lock in it.
    told = recipe(done / "in.parquet", tmp_path / "elsewhere", [NEAR])
    tamis.run({**told, "output": {"path": str(tmp_path / "out")}})
    before = sorted(tmp_path.joinpath("out").iterdir())
    with pytest.raises(tamis.UserError, match="no finished run here"):
        tamis.what_if(tmp_path / "out", {"near_dedup.threshold": 0.7})
    assert sorted(tmp_path.joinpath("out").iterdir()) == before
    corpus = write(tmp_path / "in.parquet", documents(1, 50))
    tamis.run(recipe(corpus, tmp_path / "w", [NEAR]))
    write(corpus, documents(2, 50))
    with pytest.raises(tamis.UserError, match="the corpus has changed since the run"):
        tamis.what_if(tmp_path / "w", {"near_dedup.threshold": 0.7})
    corpus.unlink()
    with pytest.raises(tamis.UserError, match=r"in\.parquet"):
        tamis.what_if(tmp_path / "w", {"near_dedup.threshold": 0.7})


def test_the_signal_is_computed_if_asked_for(done: Path, tmp_path: Path) -> None:
    changes = {"near_dedup.ngram": 3}
    found = tamis.what_if(done / "w", changes, evaluate=True)
    after = tamis.run(recipe(done / "in.parquet", tmp_path / "w", changed(STAGES, changes)))
    assert foretold(found) == fates(after)


@pytest.mark.parametrize(
    ("move", "wanted"),
    [
        ("near_dedup.threshold", {"target_rows": 140}),
        ("top.rows", {"target_rows": 77}),
        ("top.rows", {"target_rows": 150}),
        ("top.rows", {"target_characters": 9_000}),
        ("rules.keep.long", {"target_rows": 100}),
        ("rules.keep.low", {"target_tokens": 3_000}),
    ],
)
def test_a_budget(done: Path, tmp_path: Path, move: str, wanted: dict[str, int]) -> None:
    found = tamis.what_if(done / "w", move=move, **wanted)
    ((name, target),) = wanted.items()
    name = name.removeprefix("target_")
    after = tamis.run(
        recipe(done / "in.parquet", tmp_path / "w", changed(STAGES, dict(found.changes)))
    )
    assert found.after["rows"] == after.manifest["rows"]["kept"]
    # No value next to the one found comes nearer.
    value = found.changes[move]
    off = abs(found.after[name] - target)
    if move == "top.rows":
        others: list[Any] = [value - 1, value + 1]
    elif move == "near_dedup.threshold":
        others = [value - 0.001, value + 0.001, value - 0.02, min(1.0, value + 0.02)]
    else:
        number = float(value.split()[-1])
        others = [
            f"{value.split('>')[0].split('<')[0]}{value.split()[1]} {number + d}" for d in (-1, 1)
        ]
    for other in others:
        near = tamis.what_if(done / "w", {move: other})
        assert abs(near.after[name] - target) >= off or not near.exact
    if off:
        assert "is not reached" in found.notes[0]


def test_a_budget_that_is_out_of_reach(done: Path) -> None:
    most = tamis.what_if(done / "w", move="top.rows", target_rows=10**9)
    assert most.after["rows"] < 10**9
    assert "is not reached; the nearest with fewer is" in most.notes[0]
    for wrong, message in (
        ({"move": "top.rows"}, "one target"),
        ({"target_rows": 5}, "the parameter to move"),
        ({"move": "top.rows", "target_rows": 5, "target_tokens": 5}, "one target"),
        ({"move": "top.by", "target_rows": 5}, "expected a number"),
        ({"move": "top.fraction", "target_rows": 5}, "no value in the recipe"),
        ({"move": "top.rows", "target_rows": -5}, "found -5"),
        ({"move": "nothing.rows", "target_rows": 5}, "no stage 'nothing'"),
    ):
        with pytest.raises(tamis.UserError, match=message):
            tamis.what_if(done / "w", **wrong)


def test_the_command(done: Path, tmp_path: Path) -> None:
    out, _ = command("what-if", "-w", done / "w", "near_dedup.threshold=0.5", "top.rows=1000")
    assert "kept: rows" in out
    assert "kept: tokens" in out
    assert "lost" in out
    for ending in ("parquet", "csv", "jsonl"):
        path = tmp_path / f"rows.{ending}"
        out, _ = command(
            *("what-if", "-w", done / "w", "near_dedup.threshold=0.5", "--json", "--out", path)
        )
        said = json.loads(out)
        read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}[ending]
        rows = read(path)
        assert len(rows) == said["lost"]["rows"] + said["gained"]["rows"]
        assert set(rows["change"]) <= {"lost", "gained"}
    assert said["changes"] == {"near_dedup.threshold": 0.5}
    assert said["examples"][0]["reason"]
    out, _ = command(
        *("what-if", "-w", done / "w", "--move", "top.rows", "--target-rows", "50", "--json")
    )
    assert json.loads(out)["after"]["rows"] == 50
    for wrong, message in (
        (["near_dedup.threshold"], "STAGE.PARAM=VALUE"),
        (["threshold=0.5"], "STAGE.PARAM=VALUE"),
        (["near_dedup.threshold=[", "x"], "no YAML value"),
        (["top.rows=5", "--out", tmp_path / "x.txt"], "expected a name that ends in"),
    ):
        _, err = command("what-if", "-w", done / "w", *wrong, code=2)
        assert message in err
        assert len(err.splitlines()) == 1
    out, _ = command("what-if", "-w", done / "w", "rules.keep.long=words >= 2")
    assert "not evaluated: exact_dedup" in out
    assert "--evaluate" in out


def test_a_reference_that_has_changed_is_told(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in.parquet", documents(3, 60))
    known = write(tmp_path / "known.parquet", documents(3, 5))
    stage = {"operator": "known_dedup", "references": [{"path": str(known), "name": "before"}]}
    run = tamis.run(recipe(corpus, tmp_path / "w", [stage, NEAR]))
    tamis.what_if(run, {"near_dedup.threshold": 0.7})
    write(known, documents(4, 5))
    with pytest.raises(tamis.UserError, match="known_dedup: a model or reference has changed"):
        tamis.what_if(run, {"near_dedup.threshold": 0.7})


def test_rows_that_another_stage_signed_are_evaluated(tmp_path: Path) -> None:
    texts = documents(3, 60)
    corpus = write(tmp_path / "in.parquet", texts)
    known = write(tmp_path / "known.parquet", texts[:5])
    stage = {"operator": "known_dedup", "references": [{"path": str(known), "name": "before"}]}
    run = tamis.run(recipe(corpus, tmp_path / "w", [stage, NEAR]))
    found = tamis.what_if(run, {"known_dedup.threshold": 1.0})
    assert found.exact


def test_another_parameter_may_bound_the_search(tmp_path: Path) -> None:
    corpus = write(tmp_path / "in.parquet", documents(5, 100))
    stage = {**NEAR, "edge_floor": 0.75}
    run = tamis.run(recipe(corpus, tmp_path / "w", [stage]))
    found = tamis.what_if(run, move="near_dedup.threshold", target_rows=1)
    assert found.changes["near_dedup.threshold"] >= 0.75
