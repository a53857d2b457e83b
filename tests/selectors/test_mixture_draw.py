"""Datasets drawn in the proportions of a mixture."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tamis
from tamis.selectors.drawing import Line, domain_order
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


def rows_by_hand(sizes: list[float], amount: float, most: int = 60) -> int:
    """The first prefix of the endless line that comes nearest, by looking at all of them."""
    ends = np.cumsum(np.resize(sizes, most * len(sizes)))
    return int(np.argmin(np.abs(np.r_[0.0, ends] - amount)))


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
