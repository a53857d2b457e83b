"""Operators over whole tables: score columns, vectors, references, partners outside."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.flows.explain import explain
from tamis.recipe import check_recipe
from tamis.scoring.operator import REGISTRY
from tamis.selectors.exact_dedup import ContentKey
from tamis.selectors.reference import Reference, scored
from tamis.selectors.selector import Selector
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.selectors.vectors import vectors_of
from tamis.storage.catalog import query
from tamis.storage.errors import UserError
from tamis.storage.ledger import OUTSIDE, Drops
from tamis.storage.places import Place


class Rank(TableScorer):
    """Place of every row by the length of its vector."""

    operator: Literal["test_rank"] = "test_rank"
    version: ClassVar[int] = 1
    calls: ClassVar[int] = 0

    def reads(self) -> set[str]:
        return {"vector"}

    def fields(self) -> pa.Schema:
        return pa.schema([pa.field("rank", pa.int64(), nullable=False)])

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        type(self).calls += 1
        found = vectors_of(table, "vector")
        rank = np.empty(len(table), np.int64)
        rank[found.rows] = np.arange(len(table))
        for begin in range(0, len(rank), 3):
            yield pa.record_batch([pa.array(rank[begin : begin + 3])], schema=self.fields())


class Known(Selector):
    """Drop what a reference has, byte for byte."""

    operator: Literal["test_known"] = "test_known"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("text",)
    reference: Reference

    def resolve(self, workspace: Place) -> "Known":
        return self.model_copy(update={"reference": self.reference.resolve(workspace)})

    def select(self, table: Table) -> Drops:
        other = scored(self.reference.table(table), ContentKey())
        theirs = dict(zip(other.column("key_hi").to_pylist(), range(len(other)), strict=True))
        mine = [key for batch in table.signal(ContentKey()) for key in batch["key_hi"].to_pylist()]
        lost = np.flatnonzero([key in theirs for key in mine])
        place = np.array([theirs[mine[row]] for row in lost], np.int64)
        outside = pa.table(
            {
                "partner_source": [self.reference.title] * len(lost),
                "partner_hi": other.id_hi[place],
                "partner_lo": other.id_lo[place],
                "partner_copy": other.copy[place],
                "evidence": other.column(self.reference.text).take(place),
            },
            schema=OUTSIDE,
        )
        return Drops.of(lost, "", similarity=np.ones(len(lost)), outside=outside)


# A recipe's own union of stages, which these are not part of, warns of them.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

# They are for these tests alone.
for cls in (Rank, Known):
    del REGISTRY[cls.model_fields["operator"].default]


def run(folder: Path, table: pa.Table, stages: list[Any], **output: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "in.parquet", row_group_size=4)
    recipe = check_recipe(
        {
            "corpus": {"path": str(folder / "in.parquet"), "roles": {"text": "text", "id": "id"}},
            "stages": [],
            "output": {"path": str(folder / "out"), **output},
        }
    )
    return tamis.run(recipe.model_copy(update={"stages": stages}))


def corpus(vectors: Any = None) -> pa.Table:
    return pa.table(
        {
            "id": [f"r{i}" for i in range(10)],
            "text": [f"text {i}" for i in range(10)],
            "vector": vectors or [[float(i), 1.0] for i in range(10)],
        }
    )


def written(folder: Path) -> pa.Table:
    files = sorted((folder / "out").glob("*.parquet"))
    return pq.read_table(files, columns=["id", "rank"]).sort_by("id")


def test_a_table_scorer_gives_columns_like_any_other(tmp_path: Path) -> None:
    Rank.calls = 0
    for _ in range(2):
        result = run(tmp_path, corpus(), [Rank()], add=["rank"])
    assert Rank.calls == 1
    assert sorted(written(tmp_path)["rank"].to_pylist()) == list(range(10))
    stored = sorted((result.workspace / "scores" / "test_rank").glob("*.parquet"))
    stored[0].unlink()
    run(tmp_path, corpus(), [Rank()])
    assert Rank.calls == 2
    assert stored[0].exists()


def test_canonical_order_is_not_the_order_of_rows(tmp_path: Path) -> None:
    run(tmp_path / "a", corpus(), [Rank()], add=["rank"])
    run(tmp_path / "b", corpus().take(list(range(9, -1, -1))), [Rank()], add=["rank"])
    a, b = (written(tmp_path / name) for name in "ab")
    assert a.equals(b)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 0.0]] * 9 + [[1.0]], "expected 2 numbers, found 1 in row"),
        ([[1.0, 0.0]] * 9 + [None], "is null"),
        ([[1.0, 0.0]] * 9 + [[1.0, float("nan")]], "NaN"),
        ([[1.0, 0.0]] * 9 + [[None, 1.0]], "holds a null"),
        (["a"] * 10, "expected a list of numbers"),
    ],
)
def test_vectors_that_are_none_are_refused(tmp_path: Path, vectors: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, corpus(vectors), [Rank()])


def test_a_partner_may_lie_in_a_reference(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["text 3", "x", "text 7"]}), tmp_path / "ref.parquet")
    known = Known(
        reference={"path": str(tmp_path / "ref.parquet"), "text": "body", "name": "yesterday"}
    )
    for _ in range(2):  # the second time from the stored decisions
        result = run(tmp_path, corpus(), [known])
        lost = result.dropped.collect()
        assert lost["partner_source"].to_list() == ["yesterday"] * 2
        assert sorted(lost["evidence"].to_list()) == ["text 3", "text 7"]
        assert lost["partner_hi"].null_count() == 0
    row_id = f"{lost['id_hi'][0]:016x}{lost['id_lo'][0]:016x}"
    entry = explain(result.workspace, row_id)[-1]
    assert entry["partner_source"] == "yesterday"
    assert entry["partner_text"] is None

    pq.write_table(pa.table({"body": ["text 5"]}), tmp_path / "ref.parquet")
    assert run(tmp_path, corpus(), [known]).manifest["rows"]["kept"] == 9

    pinned = known.model_copy(
        update={"reference": known.reference.model_copy(update={"digest": "0" * 32})}
    )
    with pytest.raises(UserError, match="pins"):
        run(tmp_path, corpus(), [pinned])
    with pytest.raises(UserError, match="no column 'text'"):
        Reference(path=str(tmp_path / "ref.parquet")).resolve(tmp_path / "work")


def test_a_signal_may_be_a_stage(tmp_path: Path) -> None:
    result = run(tmp_path, corpus(), [ContentKey()])
    names, rows = query(result.workspace, "SELECT * FROM signals")
    assert {"row_id", "key_hi", "key_lo"} <= set(names)
    assert len(rows) == 10
    assert "key_hi" not in query(result.workspace, "SELECT * FROM scores")[0]
