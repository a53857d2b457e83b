"""Datasets drawn in the proportions of a mixture."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

import tamis
from tamis.cli import app
from tamis.flows import account
from tamis.flows.plan import plan
from tamis.recipe import check_recipe
from tamis.selectors.budgets import draws
from tamis.selectors.drawing import Line, domain_order
from tamis.selectors.mixture_draw import MixtureDraw
from tamis.storage.domain_supply import load_supply
from tamis.storage.errors import UserError
from tamis.storage.mixture_plan import MixturePlan

ROLES = {"id": "id", "text": "text", "domain": "domain"}


def corpus(counts: dict[str | None, int], seed: int = 0) -> pl.DataFrame:
    """So many rows of every domain, of 0 to 60 tokens each, in random order."""
    draws = np.random.default_rng(seed)
    domains = [name for name, count in counts.items() for _ in range(count)]
    table = pl.DataFrame(
        {
            "id": [f"row {i}" for i in range(len(domains))],
            "domain": pl.Series(domains, dtype=pl.String),
            "text": [f"text of row {i}" for i in range(len(domains))],
            "size": pl.Series(draws.integers(0, 61, len(domains)), dtype=pl.Int64),
        }
    )
    return table[draws.permutation(len(table))]


def recipe(
    folder: Path,
    table: pl.DataFrame,
    draw: dict[str, Any],
    *,
    cuts: Sequence[int] = (),
    **more: Any,
) -> dict[str, Any]:
    """A recipe on these rows, in files of these rows."""
    source = folder / "in"
    source.mkdir(parents=True, exist_ok=True)
    for old in source.iterdir():
        old.unlink()
    bounds = [0, *cuts, len(table)]
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        table[begin:end].write_parquet(source / f"{number:03d}.parquet", row_group_size=50)
    return {
        "corpus": {"path": str(source), "roles": ROLES, "shard_bytes": 1},
        "stages": [{"operator": "mixture_draw", **draw}],
        "output": {"path": str(folder / "out")},
        **more,
    }


def drawn(folder: Path, table: pl.DataFrame, draw: dict[str, Any], **more: Any) -> Any:
    return tamis.run(recipe(folder, table, draw, **more))


def written(result: Any) -> pl.DataFrame:
    """The dataset, in the order of its files."""
    names = [entry["name"] for entry in result.manifest["files"]]
    return pl.concat([pl.read_parquet(result.output / name) for name in names])


def report(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = result.manifest["stages"][-1]["report"]
    return found


def failure(folder: Path, table: pl.DataFrame, draw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        drawn(folder, table, draw)
    assert not (folder / "out").exists()
    return str(caught.value)


# The line, against what its definition says.


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    st.floats(0, 20, allow_nan=False),
)
def test_what_is_drawn_comes_nearest(sizes: list[int], rounds: float) -> None:
    line = Line(np.cumsum(np.array(sizes, float)))
    amount = rounds * sum(sizes)
    found = line.rows_in(amount)
    ends = np.r_[0.0, np.cumsum(np.resize(np.array(sizes, float), 30 * len(sizes)))]
    nearest = np.abs(ends - amount).min()
    assert abs(ends[found] - amount) == pytest.approx(nearest, abs=1e-9)
    assert line.rows_in(amount + 1) >= found


def test_a_whole_round_has_every_row() -> None:
    line = Line(np.array([0.1, 0.3, 0.6, 0.6]))  # the last row is empty
    assert line.rows_in(3 * (0.1 + 0.2 + 0.3)) == 12
    assert line.rows_in(0.6 * (1 - 1e-15)) == 4
    assert Line(np.zeros(0)).rows_in(5.0) == Line(np.zeros(3)).rows_in(5.0) == 0


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
    st.lists(st.floats(0, 40), min_size=1, max_size=4),
)
def test_phases_are_parts_of_one_line(sizes: list[int], parts: list[float]) -> None:
    line = Line(np.cumsum(np.array(sizes, float)))
    amounts = np.cumsum(parts)
    found = line.passes(amounts)
    walked: Counter[tuple[int, int]] = Counter()
    begin = 0
    for phase, amount in enumerate(amounts):
        end = line.rows_in(float(amount))
        walked.update((place % len(sizes), phase) for place in range(begin, end))
        begin = end
    expected = [[walked[row, p] for p in range(len(parts))] for row in range(len(sizes))]
    assert found.tolist() == expected
    assert found.sum(axis=1).max() - found.sum(axis=1).min() <= 1


def test_equal_draws_are_told_apart() -> None:
    draw, domain = np.array([0.5, 0.5, 0.5, 0.1]), np.array([0, 0, 0, 1])
    ties = (np.array([2, 1, 1, 0]), np.array([0, 9, 8, 0]))
    assert domain_order(domain, draw, *ties).tolist() == [2, 1, 0, 3]


# Whole runs.

MIXTURE = {"web": 0.5, "code": 0.35, "law": 0.15, "spam": 0.0}
COUNTS: dict[str | None, int] = {"web": 120, "code": 40, "law": 9, "spam": 15}


def check_adds_up(result: Any, table: pl.DataFrame, total: float, plan: MixturePlan) -> None:
    """Every domain within a row of what was asked, in every phase and in all."""
    found = written(result)
    phase = found["phase"] if "phase" in found.columns else pl.Series([0] * len(found))
    for name in plan.domains:
        most = table.filter(pl.col("domain") == name)["size"].max() or 0
        parts = [
            found.filter((pl.col("domain") == name) & (phase == p))["size"].sum()
            for p in range(len(plan.phases))
        ]
        for number, one in enumerate(plan.phases):
            asked = total * one.share * one.mixture[name]
            assert abs(parts[number] - asked) <= most, (name, number)
        assert abs(sum(parts) - total * plan.over_all()[name]) <= most / 2
        assert sum(parts) == pytest.approx(report(result)["domains"][name].get("drawn"))


def test_rows_are_written_as_often_as_they_are_drawn(tmp_path: Path) -> None:
    table = corpus(COUNTS)
    result = drawn(tmp_path, table, {"mixture": MIXTURE, "by": "size", "tokens": 4000})
    check_adds_up(result, table, 4000, MixturePlan.of(MIXTURE))
    found = written(result)
    ledger = tamis.sql(result, "SELECT r.id, d.* FROM decisions d JOIN rows r USING (row_id, copy)")
    times = Counter(found["id"])
    assert {r["id"]: r["repeat"] for r in ledger.to_dicts()} == {
        name: times.get(name, 0) for name in table["id"]
    }
    rows = result.manifest["rows"]
    assert rows["kept"] == len(times)
    assert rows["written"] == len(found) == int(ledger["repeat"].sum()) > rows["kept"]
    domains = result.manifest["domains"]
    for name, count in Counter(found["domain"]).items():
        assert domains[name]["written"] == count
    assert domains["spam"] == {"in": 15, "kept": 0, "written": 0}
    assert domains["law"]["kept"] == 9  # asked more than once
    assert rows["dropped"]["mixture_draw:left_out"] == 15
    left = ledger.filter(pl.col("reason") == "mixture_draw")
    asked = {"web": 2000.0, "code": 1400.0}
    by_id = dict(zip(table["id"], table["domain"], strict=True))
    for row in left.to_dicts():
        assert row["action"] == "drop"
        assert row["threshold"] == asked[by_id[row["id"]]]
        assert row["value"] > row["threshold"] - 60
    assert found.columns == table.columns


def test_copies_of_a_row_lie_apart(tmp_path: Path) -> None:
    table = corpus({"web": 30})
    result = drawn(tmp_path, table, {"mixture": {"web": 1.0}, "rows": 75})
    found = written(result)["id"].to_list()
    assert len(found) == 75
    assert set(found[:30]) == set(found[30:60]) == set(table["id"])
    assert len(set(found[60:])) == 15


# The operator, on a table that stands for a run's.


@dataclass
class Rows:
    """Rows as a stage sees them."""

    domain: list[str | None]
    size: list[float | None]
    id_hi: np.ndarray[Any, np.dtype[np.uint64]]

    @property
    def id_lo(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return self.id_hi ^ np.uint64(9)

    @property
    def copy(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        return np.zeros(len(self.domain), np.uint32)

    def __len__(self) -> int:
        return len(self.domain)

    def role(self, name: str) -> pa.ChunkedArray:
        assert name == "domain"
        return pa.chunked_array([pa.array(self.domain, pa.string())])

    def column(self, name: str) -> pa.ChunkedArray:
        assert name == "size"
        return pa.chunked_array([pa.array(self.size, pa.float64())])

    def taken(self, order: list[int]) -> "Rows":
        return Rows(
            [self.domain[i] for i in order], [self.size[i] for i in order], self.id_hi[order]
        )


def passes(rows: Rows, **draw: Any) -> list[list[int]]:
    stage = MixtureDraw.model_validate({"by": "size", "seed": 3, **draw})
    batches, _ = stage.evaluate(rows)  # type: ignore[arg-type]
    return [found for batch in batches for found in batch["mixture_draw_passes"].to_pylist()]


def by_hand(rows: Rows, plan: MixturePlan, total: float) -> list[list[int]]:
    """Row by row what the definition says."""
    found = [[0] * len(plan.phases) for _ in range(len(rows))]
    draw = draws(rows.id_hi, rows.id_lo, rows.copy, 3)
    for name in plan.domains:
        line = sorted(
            (i for i in range(len(rows)) if rows.domain[i] == name), key=lambda i: draw[i]
        )
        ends = [0.0]
        for row in line * 9:
            ends.append(ends[-1] + (rows.size[row] or 0.0))
        taken, amount = 0, 0.0
        for number, phase in enumerate(plan.phases):
            amount += total * phase.share * phase.mixture[name]
            end = min(range(len(ends)), key=lambda n: (round(abs(ends[n] - amount), 6), n))
            for place in range(taken, end):
                found[line[place % len(line)]][number] += 1
            taken = end
    return found


@st.composite
def drawable(draw: st.DrawFn) -> tuple[Rows, MixturePlan, float]:
    """Rows of three domains, a mixture of one to three phases, and a total that it can reach."""
    names = ["a", "b", "c"]
    count = draw(st.integers(3, 40))
    domain = [*names, *(draw(st.sampled_from(names)) for _ in range(count - 3))]
    size: list[float | None] = [float(draw(st.integers(1, 50))) for _ in domain]
    phases = draw(st.integers(1, 3))
    parts = [[draw(st.integers(1, 9)) for _ in names] for _ in range(phases)]
    mixtures = [dict(zip(names, np.array(p) / sum(p), strict=True)) for p in parts]
    plan = MixturePlan.of(*mixtures, shares=[draw(st.integers(1, 4)) for _ in range(phases)])
    rows = Rows(domain, size, np.random.default_rng(count).integers(0, 2**63, count, np.uint64))
    share = plan.over_all()
    there = {n: sum(s or 0 for s, d in zip(size, domain, strict=True) if d == n) for n in names}
    most = min(4 * there[n] / share[n] for n in names)
    return rows, plan, most * draw(st.floats(0.01, 0.999))


@settings(deadline=None, max_examples=60)
@given(drawable(), st.randoms(use_true_random=False))
def test_passes_are_what_the_definition_says(
    told: tuple[Rows, MixturePlan, float], random: Any
) -> None:
    rows, plan, total = told
    found = passes(rows, mixture=plan, tokens=total)
    assert found == by_hand(rows, plan, total)
    times = np.array(found).sum(axis=1)
    for name in plan.domains:
        mine = times[np.array(rows.domain) == name]
        assert mine.max() - mine.min() <= 1  # none comes again before all have come
        assert mine.max() <= 4
    order = list(range(len(rows)))
    random.shuffle(order)
    assert passes(rows.taken(order), mixture=plan, tokens=total) == [found[i] for i in order]
    less = np.array(passes(rows, mixture=plan, tokens=total * random.random() + 1e-9))
    assert (less.sum(axis=1) <= times).all()


@settings(deadline=None, max_examples=30)
@given(drawable())
def test_without_a_total_the_cap_is_reached(told: tuple[Rows, MixturePlan, float]) -> None:
    rows, plan, _ = told
    times = np.array(passes(rows, mixture=plan, epochs=2)).sum(axis=1)
    full = [n for n in plan.domains if (times[np.array(rows.domain) == n] == 2).all()]
    assert full
    assert times.max() == 2


# Bad input, and the corpora that are easily forgotten.


def test_a_domain_with_too_little_is_told_with_what_would_mend_it(tmp_path: Path) -> None:
    table = corpus({"web": 100, "code": 10}).with_columns(size=pl.lit(10))
    draw = {"mixture": {"web": 0.5, "code": 0.5}, "by": "size", "tokens": 1000}
    said = failure(tmp_path, table, draw)
    assert "'code': 100 size there, 4 times are 400, asked 500" in said
    assert "draw at most 800 in all, or allow 5 epochs" in said
    assert "code at most 0.4" in said
    for mended in ({"tokens": 800}, {"epochs": 5}, {"mixture": {"web": 0.6, "code": 0.4}}):
        result = drawn(tmp_path / "mended", table, {**draw, **mended})
        plan = MixturePlan.of({**draw, **mended}["mixture"])
        check_adds_up(result, table, {**draw, **mended}["tokens"], plan)
    result = drawn(tmp_path, table, {**draw, "shortfall": "fewer"})
    assert report(result)["short"] == ["code"]
    assert report(result)["domains"]["code"]["drawn"] == 400
    assert report(result)["drawn"] == 900
    assert "of code 500 size were asked, 100 were there and 400 were drawn" in (
        (tmp_path / "out" / "README.md").read_text()
    )


def test_names_of_mixture_and_corpus_are_held_against_each_other(tmp_path: Path) -> None:
    table = corpus({"web": 3, "code": 2})
    rows = {"rows": 2}
    said = failure(tmp_path, table, {"mixture": {"web": 0.5, "cod": 0.5}, **rows})
    assert "asks for 'cod'" in said
    assert "'code', 'web'" in said
    said = failure(tmp_path, table, {"mixture": {"web": 1.0}, **rows})
    assert "has 'code', which the mixture does not name" in said
    assert "0 to leave it out" in said
    some = {"mixture": {"web": 0.5, "code": 0.25, "law": 0.25}}
    assert "'law'" in failure(tmp_path, table, {**some, **rows})
    result = drawn(tmp_path, table, {**some, **rows, "shortfall": "fewer"})
    assert report(result)["short"] == ["law"]


@pytest.mark.parametrize(
    ("size", "said"),
    [(-3.0, r"of row [0-9a-f]{32} is -3, expected 0 or more"), (np.inf, "is inf")],
)
def test_sizes_that_are_none(tmp_path: Path, size: float, said: str) -> None:
    table = corpus({"web": 4}).with_columns(size=pl.Series([1.0, size, 2.0, 3.0]))
    draw = {"mixture": {"web": 1.0}, "by": "size", "tokens": 3}
    with pytest.raises(UserError, match=said):
        drawn(tmp_path, table, draw)


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        ({"mixture": {"web": 0.5}}, "proportions sum to 0.5, expected 1"),
        ({"mixture": {"web": -1, "code": 2}}, "'web' has -1"),
        ({"mixture": {"web": 1}, "tokens": 5}, "`tokens` needs `by`"),
        ({"mixture": {"web": 1}, "rows": 5, "by": "size"}, "give neither `tokens` nor `by`"),
        ({"mixture": {"web": 1}, "rows": 2.5}, "multiple of 1"),
        ({"mixture": {"web": 1}, "rows": 0}, "greater than 0"),
        ({"mixture": {"web": 1}, "by": "text"}, "expected a number"),
        ({"mixture": {"web": 1}, "by": "words"}, "text_stats"),
        ({"mixture": "nowhere.json"}, "no such file"),
    ],
)
def test_parameters_that_do_not_fit(tmp_path: Path, draw: dict[str, Any], said: str) -> None:
    assert said in failure(tmp_path, corpus({"web": 3}), draw)


def test_it_comes_last(tmp_path: Path) -> None:
    told = recipe(tmp_path, corpus({"web": 3}), {"mixture": {"web": 1}, "rows": 2})
    told["stages"].append({"operator": "sample", "rows": 1})
    with pytest.raises(UserError, match="put it last"):
        tamis.run(told)


def test_rows_without_domain_or_size_say_so(tmp_path: Path) -> None:
    table = corpus({"web": 40, None: 3}).with_columns(
        size=pl.when(pl.col("id") == "row 5").then(None).otherwise(pl.col("size").cast(float))
    )
    result = drawn(tmp_path, table, {"mixture": {"web": 1.0}, "by": "size"})
    dropped = result.manifest["rows"]["dropped"]
    assert dropped == {"mixture_draw:no_domain": 3, "mixture_draw:no_size": 1}
    assert result.manifest["rows"]["written"] == 4 * 39


@pytest.mark.parametrize("kind", [pl.Int64, pl.Categorical])
def test_domains_of_any_plain_type(tmp_path: Path, kind: Any) -> None:
    table = corpus({"1": 6, "2": 4}).with_columns(pl.col("domain").cast(kind))
    result = drawn(tmp_path, table, {"mixture": {"1": 0.5, "2": 0.5}, "rows": 8})
    assert Counter(written(result)["domain"].cast(pl.String)) == {"1": 4, "2": 4}


def test_an_empty_corpus_has_nothing_to_draw(tmp_path: Path) -> None:
    table = corpus({"web": 1})[:0]
    draw = {"mixture": {"web": 1.0}, "rows": 5}
    assert "no row at this stage; its domains: none" in failure(tmp_path, table, draw)
    result = drawn(tmp_path, table, {**draw, "shortfall": "fewer"})
    assert written(result).columns == table.columns
    assert result.manifest["rows"]["written"] == 0


def test_one_row_and_one_huge_row(tmp_path: Path) -> None:
    one = corpus({"web": 1})
    assert len(written(drawn(tmp_path / "one", one, {"mixture": {"web": 1.0}, "rows": 3}))) == 3
    huge = corpus({"web": 50}).with_columns(
        size=pl.when(pl.col("id") == "row 7").then(10**12).otherwise(pl.col("size"))
    )
    result = drawn(tmp_path / "huge", huge, {"mixture": {"web": 1.0}, "by": "size", "tokens": 2e12})
    assert Counter(written(result)["id"])["row 7"] == 2
    assert abs(report(result)["drawn"] - 2e12) <= 2 * huge["size"].sort()[:-1].sum()


def test_rows_that_count_nothing(tmp_path: Path) -> None:
    table = corpus({"web": 5, "code": 5}).with_columns(
        size=pl.when(pl.col("domain") == "web").then(0).otherwise(3)
    )
    draw = {"mixture": {"web": 0.5, "code": 0.5}, "by": "size"}
    said = failure(tmp_path, table, {**draw, "tokens": 9})
    assert "'web': 0 size there" in said
    assert "take another mixture (web at most 0)" in said
    nothing = table.with_columns(size=pl.Series([0, None] * 5))
    for total in ({}, {"tokens": 9}):
        said = failure(tmp_path, nothing, {**draw, **total})
        assert "nothing can be drawn, as 'size' is 0 or missing in every row" in said
        told = report(drawn(tmp_path, nothing, {**draw, **total, "shortfall": "fewer"}))
        assert (told["drawn"], told["short"]) == (0.0, ["web", "code"])
        shutil.rmtree(tmp_path / "out")


def test_a_fraction_of_epochs_is_of_what_there_is(tmp_path: Path) -> None:
    result = drawn(tmp_path, corpus({"web": 10}), {"mixture": {"web": 1.0}, "epochs": 2.5})
    assert Counter(Counter(written(result)["id"]).values()) == {2: 5, 3: 5}


def test_mends_are_understood_in_a_recipe_and_on_the_command_line(tmp_path: Path) -> None:
    both = "(`shortfall: fewer` in a recipe, `--shortfall fewer` of a command)"
    table = corpus({"web": 3})
    assert both in failure(tmp_path, table, {"mixture": {"web": 1.0}, "rows": 99})
    assert both in failure(tmp_path, table, {"mixture": {"web": 0.5, "law": 0.5}})


def test_texts_in_place_of_domains_are_not_shown_whole(tmp_path: Path) -> None:
    table = corpus({"web": 3}).with_columns(domain=pl.lit("once upon a time " * 9) + pl.col("id"))
    said = failure(tmp_path, table, {"mixture": {"web": 1.0}})
    assert "'once upon a time once upon a time once …'" in said
    assert "row 1" not in said
    assert len(said) < 500


# Phases, weights, reuse, commands.

CURRICULUM = {
    "phases": [
        {"share": 0.75, "mixture": {"web": 0.8, "code": 0.2, "law": 0.0}},
        {"share": 0.25, "mixture": {"web": 0.2, "code": 0.3, "law": 0.5}},
    ]
}


def test_phases_follow_one_another_in_every_file(tmp_path: Path) -> None:
    table = corpus({"web": 150, "code": 60, "law": 12})
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(CURRICULUM))
    draw = {"mixture": str(plan), "by": "size", "tokens": 4800}
    result = drawn(tmp_path, table, draw, cuts=(70, 75, 160))
    check_adds_up(result, table, 4800, MixturePlan.model_validate(CURRICULUM))
    schedule = json.loads((result.output / "schedule.json").read_text())
    assert schedule == result.manifest["schedule"]
    rows = 0
    for number, phase in enumerate(schedule["phases"]):
        assert phase["mixture"] == CURRICULUM["phases"][number]["mixture"]
        parts = []
        for file in phase["files"]:
            part = pl.read_parquet(result.output / file["name"])
            parts.append(part[file["first_row"] :][: file["rows"]])
            assert set(parts[-1]["phase"]) == {number}
        mine = pl.concat(parts)
        sizes = dict(mine.group_by("domain").agg(pl.col("size").sum()).iter_rows())
        assert {n: v for n, v in phase["drawn"].items() if v} == sizes
        assert phase["rows"] == len(mine)
        rows += len(mine)
    found = written(result)
    assert rows == len(found) == result.manifest["rows"]["written"]
    assert found.schema["phase"] == pl.Int32
    assert found.drop("phase").columns == table.columns
    law = found.filter(pl.col("domain") == "law")
    assert set(law["phase"]) == {1}
    assert set(Counter(law["id"]).values()) <= {1, 2, 3}
    # A mixture without phases, in the same place, leaves no schedule behind.
    again = drawn(tmp_path, table, {**draw, "mixture": {"web": 1, "code": 0, "law": 0}})
    assert not (again.output / "schedule.json").exists()
    assert "schedule" not in again.manifest


def test_weights_have_the_proportions_and_the_mean(tmp_path: Path) -> None:
    table = corpus(COUNTS)
    draw = {"mixture": MIXTURE, "by": "size", "write_as": "weight"}
    result = drawn(tmp_path, table, draw)
    found = written(result)
    assert len(found) == len(table)
    assert set(found.filter(pl.col("domain") == "spam")["weight"]) == {0.0}
    weighed = (found["weight"] * found["size"]).sum()
    assert weighed / found["size"].sum() == pytest.approx(1)
    for name, share in MIXTURE.items():
        mine = found.filter(pl.col("domain") == name)
        assert (mine["weight"] * mine["size"]).sum() / weighed == pytest.approx(share)
    ledger = result.decisions.collect()
    assert sorted(ledger["weight"]) == sorted(found["weight"])
    assert set(ledger["repeat"]) == {1}
    # Upsample or upweight: the weight is the mixture over the natural one.
    natural = table["size"].sum() / table.filter(pl.col("domain") == "law")["size"].sum()
    assert report(result)["domains"]["law"]["weight"] == pytest.approx(0.15 * natural)


def test_weights_of_labels_and_of_domains_are_multiplied(tmp_path: Path) -> None:
    table = corpus({"web": 20, "code": 5}).with_columns(label=pl.lit("x"), wrong=pl.lit(0.25))
    told = recipe(tmp_path, table, {"mixture": {"web": 0.5, "code": 0.5}, "write_as": "weight"})
    told["corpus"]["roles"] = {**ROLES, "label": "label"}
    told["stages"].insert(0, {"operator": "label_weight", "by": "wrong"})
    found = written(tamis.run(told)).group_by("domain").agg(pl.col("weight").unique())
    weights = {name: one for name, (one,) in found.iter_rows()}
    assert weights == {"web": pytest.approx(0.75 * 0.625), "code": pytest.approx(0.75 * 2.5)}


def test_a_run_whose_files_are_not_what_was_drawn_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = account.repeats

    def one_more(run: Any) -> Any:
        found = honest(run)
        assert found is not None
        found[np.flatnonzero(found)[0]] += 1
        return found

    monkeypatch.setattr(account, "repeats", one_more)
    with pytest.raises(tamis.RunError, match="16 rows should have been written, 15 were"):
        drawn(tmp_path, corpus({"web": 10}), {"mixture": {"web": 1.0}, "rows": 15})
    assert not (tmp_path / "out").exists()


def test_weights_of_phases_are_in_the_schedule(tmp_path: Path) -> None:
    table = corpus({"web": 100, "code": 60, "law": 12})
    result = drawn(tmp_path, table, {"mixture": CURRICULUM, "write_as": "weight", "column": "w"})
    schedule = json.loads((result.output / "schedule.json").read_text())
    assert schedule["column"] == "w"
    assert "files" not in schedule["phases"][0]
    for phase in schedule["phases"]:
        of_web = phase["weights"]["web"]
        assert of_web == pytest.approx(phase["mixture"]["web"] * 172 / 100)
    shares = [phase["share"] for phase in schedule["phases"]]
    whole = sum(s * p["weights"]["law"] for s, p in zip(shares, schedule["phases"], strict=True))
    (weight,) = set(written(result).filter(pl.col("domain") == "law")["w"])
    assert weight == pytest.approx(whole)


def test_neither_order_nor_sharding_nor_workers_matter(tmp_path: Path) -> None:
    table = corpus(COUNTS)
    draw = {"mixture": MIXTURE, "by": "size", "tokens": 4000}
    found = []
    for name, rows, cuts, workers in (
        ("one", table, (), 1),
        ("two", table.reverse(), (10, 90, 91), 2),
    ):
        result = drawn(tmp_path / name, rows, draw, cuts=cuts, workers=workers)
        told = tamis.sql(result, "SELECT row_id, repeat, reason, value, threshold FROM decisions")
        found.append((told.sort("row_id"), Counter(written(result)["id"]), report(result)))
    assert found[0][0].equals(found[1][0])
    assert found[0][1:] == found[1][1:]


def test_what_is_drawn_is_summed_in_order_whatever_the_threads() -> None:
    # Rows enough that BLAS would share them among its threads.
    count = 60_000
    sizes = np.random.default_rng(0).lognormal(3, 2, count)
    rows = Rows(["web"] * count, list(sizes), np.arange(count, dtype=np.uint64))
    stage = MixtureDraw.model_validate(
        {"mixture": {"web": 1.0}, "by": "size", "tokens": sizes.sum() * 1.5}
    )
    told = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads, user_api="blas"):
            told.append(stage.evaluate(rows).report["drawn"])  # type: ignore[arg-type]
    line = np.argsort(draws(rows.id_hi, rows.id_lo, rows.copy, 0))
    times = np.array(passes(rows, mixture={"web": 1.0}, tokens=sizes.sum() * 1.5, seed=0))[:, 0]
    in_order = 0.0
    for amount in (sizes * times)[line].tolist():
        in_order += amount
    assert told == [in_order, in_order]


def test_files_that_stay_as_they_are_are_not_written_again(tmp_path: Path) -> None:
    table = corpus({"web": 60})
    draw = {"mixture": {"web": 1.0}, "epochs": 2}

    def inodes(result: Any) -> dict[str, int]:
        return {
            e["key"]: (result.output / e["name"]).stat().st_ino for e in result.manifest["files"]
        }

    first = inodes(drawn(tmp_path, table[:40], draw, cuts=(20,)))
    again = inodes(drawn(tmp_path, table[:40], draw, cuts=(20,)))
    assert again == first
    grown = inodes(drawn(tmp_path, table, draw, cuts=(20, 40)))
    assert len(grown) == 3
    assert {key: grown.get(key) for key in first} == first
    fewer = inodes(drawn(tmp_path, table, {**draw, "rows": 110}, cuts=(20, 40)))
    assert fewer.keys() != grown.keys()


def test_why_and_what_if_tell_how_often(tmp_path: Path) -> None:
    table = corpus({"web": 10})
    result = drawn(tmp_path, table, {"mixture": {"web": 1.0}, "rows": 15})
    why = tamis.sql(result, "SELECT row_id, repeat FROM why ORDER BY repeat")
    assert Counter(why["repeat"]) == {1: 5, 2: 5}
    told = CliRunner().invoke(app, ["why", "-w", str(tmp_path / "out"), why["row_id"][-1]])
    assert "written    2 times" in told.output
    found = tamis.what_if(result, {"mixture_draw.rows": 4})
    assert (found.before["written"], found.after["written"]) == (15, 4)
    assert (found.before["rows"], found.after["rows"]) == (10, 4)
    assert found.before["characters"] == 15 * len("text of row 0")  # as often as they are written
    assert found.after["characters"] == 4 * len("text of row 0")


def test_the_commands(tmp_path: Path) -> None:
    recipe(tmp_path, corpus({"web": 50, "code": 20, None: 1}), {})
    source, out = str(tmp_path / "in"), str(tmp_path / "out")

    def said(*arguments: str) -> str:
        found = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.stdout

    supply = tmp_path / "supply.json"
    table = said("mix", "count", source, "--domain", "domain", "--by", "size", "--out", str(supply))
    assert "1 rows have no domain" in table
    counted = load_supply(supply)
    assert counted.of("rows") == {"code": 20.0, "web": 50.0}
    assert counted.domains["code"].bytes == sum(len(f"text of row {i}") for i in range(50, 70))
    with pytest.raises(UserError, match=r"--text: no column 'body'"):
        said("mix", "count", source, "--domain", "domain", "--text", "body")
    with pytest.raises(UserError, match="expected a column of text, found int64"):
        said("mix", "count", source, "--domain", "domain", "--text", "size")
    shares = ("--share", "web=0.5", "--share", "code=0.5")
    draw = ("mix", "apply", source, out, "--domain", "domain", *shares)
    printed = json.loads(said(*draw, "--rows", "8e1", "--json"))
    assert printed["rows"]["written"] == 80
    assert printed["mixture"]["domains"]["code"]["times"] == 2.0
    estimate = ("--tokens", "5e2", "--param", "token_count.bytes_per_token=4")
    assert "tokens_estimated there" in said(*draw, *estimate)
    assert "weight" in said(*draw, "--as", "weight")
    with pytest.raises(UserError, match="give either --mixture or --share"):
        said(*draw, "--mixture", "m.json")
    with pytest.raises(UserError, match=r"'tokens' is neither .*bytes_per_token"):
        said(*draw, "--tokens", "5e2")


@pytest.mark.slow
def test_processes_write_what_threads_write(tmp_path: Path) -> None:
    table = corpus({"web": 150, "code": 60, "law": 12})
    draw = {"mixture": CURRICULUM, "by": "size", "tokens": 4800}
    digests = [
        drawn(tmp_path / r, table, draw, cuts=(70, 160), runner=r, workers=2).manifest["files"]
        for r in ("threads", "processes")
    ]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_the_plan_tells_rows_written(tmp_path: Path) -> None:
    table = corpus({"web": 3000, "code": 500})
    told = recipe(tmp_path, table, {"mixture": {"web": 0.4, "code": 0.6}, "rows": 3000})
    planned = plan(check_recipe(told))
    rows = tamis.run(told).manifest["rows"]
    assert planned.written == pytest.approx(rows["written"], rel=0.2)
    assert planned.kept == pytest.approx(rows["kept"], rel=0.2)
