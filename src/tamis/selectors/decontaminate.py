"""Rows that hold items of benchmarks, by the word n-grams they share."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field, model_validator

from tamis.scoring.ngram_index import EXCERPT_BYTES, ContaminationHits, NgramIndex, read_index
from tamis.selectors.reference import Reference, left_out, told_apart
from tamis.selectors.selector import Selector, TableOperator
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import TableScorer
from tamis.storage.files import digest_of
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s, UInt64s
from tamis.storage.ledger import OUTSIDE, Drops
from tamis.storage.places import Place, absolute, kind_of
from tamis.storage.rows import UInt32s

#: Raised when indices hold something else.
_INDEX_VERSION = 1
#: Of every byte of the items, while their n-grams are sorted: 128 of an n-gram, and a word is taken
#: to begin at every fourth byte.
NGRAM_BYTES = 32


class Benchmark(Reference):
    """A set of items that must not be trained on."""

    benchmark: str | None = Field(
        default=None, description="its column that names the benchmark of an item; `name` if not"
    )

    def _columns(self) -> list[str | None]:
        return [*super()._columns(), self.benchmark]


class Items(NamedTuple):
    """The items of all benchmarks, in an order that no order of files can change.

    Attributes:
        text, benchmark, label: text, name of the benchmark, and id or row_id, of each.
        id_hi, id_lo, copy: row_id and copy in its reference.
        left_out: by reference, lines that could not be read and rows without text.
    """

    text: pa.Array
    benchmark: pa.Array
    label: pa.Array
    id_hi: UInt64s
    id_lo: UInt64s
    copy: UInt32s
    left_out: dict[str, dict[str, int]]


class NgramOverlap(TableOperator):
    """What the two operators on n-gram overlap with benchmarks share."""

    references: Annotated[list[Benchmark], AfterValidator(told_apart)] = Field(
        min_length=1, description="the benchmarks"
    )
    ngram: int = Field(
        default=13,
        ge=2,
        le=100,
        description="words of an n-gram; Brown et al. 2020 (GPT-3), appendix C; datatrove has 12",
    )
    min_words: int = Field(
        default=8,
        ge=1,
        description="an item shorter than an n-gram is looked for as a whole if it has so many "
        "words; GPT-3's smallest n-gram",
    )
    max_items: int | None = Field(
        default=10,
        ge=1,
        description="an n-gram that more items have is taken for a template and ignored; NeMo "
        "Curator's max_matches is 10, counted over the corpus (unconfirmed for items)",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Brown et al. 2020 (GPT-3), appendix C: 13-gram overlap"
    roles: ClassVar[tuple[str, ...]] = ("text",)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_words > self.ngram:
            raise ValueError("min_words is more than the words of an n-gram")
        return self

    def resolve(self, workspace: Place) -> Self:
        resolved = [reference.resolve(workspace) for reference in self.references]
        return self.model_copy(update={"references": resolved})

    def memory(self, rows: int, text_bytes: int) -> int:
        """What the rows hold of the items, the items, and their n-grams while they are sorted."""
        hits = rows * 64 + 2 * min(rows * EXCERPT_BYTES, text_bytes)
        items = sum(100 * one.rows + (2 + NGRAM_BYTES) * one.bytes for one in self.references)
        return hits + items

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "index": _INDEX_VERSION}

    def hits(self, table: Table) -> tuple[Items, NgramIndex, pa.Table]:
        """The items, their index, and what the rows of a table hold of them."""
        items = _items(table, self.references)
        parts = self.model_dump(mode="json", include={"ngram", "min_words", "max_items"})
        which = [r.model_dump(mode="json", exclude={"path", "name"}) for r in self.references]
        digest = digest_of([_INDEX_VERSION, parts, which])
        path = absolute(table.workspace) / "references" / f"{digest}.npz"
        if kind_of(path) is None:
            NgramIndex.of(items.text, self.ngram, self.min_words, self.max_items).write(path)
        signal = ContaminationHits(index=str(path), digest=digest)
        hits = pa.Table.from_batches(list(table.signal(signal)), schema=signal.fields())
        return items, read_index(str(path)), hits


class Contamination(NgramOverlap, TableScorer):
    """Which benchmark item a row holds most of, and how much of it.

    Texts are cut into words as for near_dedup. An n-gram is found where all its words are, one by
    one; no hash of n-grams decides. A row's item is the one of which it has the largest share of
    n-grams, the first in the order of `references` and row_id if there are several.
    """

    operator: Literal["contamination"] = "contamination"

    def fields(self) -> pa.Schema:
        """``contaminated``; null where it is false: ``contamination_benchmark``,
        ``contamination_item`` (its id, or its row_id) and ``contamination_ngram`` (the first of
        the item's in the row, as it stands there); ``contamination_row_share`` (0 to 1, n-grams of
        the row that some item has), ``contamination_item_share`` (0 to 1, of the item's n-grams
        those that the row has)."""
        return pa.schema(
            [
                pa.field("contaminated", pa.bool_(), nullable=False),
                pa.field("contamination_benchmark", pa.string()),
                pa.field("contamination_item", pa.string()),
                pa.field("contamination_ngram", pa.large_string()),
                pa.field("contamination_row_share", pa.float64(), nullable=False),
                pa.field("contamination_item_share", pa.float64(), nullable=False),
            ]
        )

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        items, _, hits = self.hits(table)
        for batch in hits.to_batches():
            item = batch["hit_item"]
            columns = [
                item.is_valid(),
                items.benchmark.take(item),
                items.label.take(item),
                batch["hit_ngram"],
                batch["hit_row_share"],
                batch["hit_item_share"],
            ]
            yield pa.record_batch(columns, schema=self.fields())


class Decontaminate(NgramOverlap, Selector):
    """Drop rows that share a word n-gram with a benchmark, and name item and n-gram.

    How overlap is found is said at `contamination`. The ledger has the benchmark as
    `partner_source`, the item's row_id as `partner`, the n-gram as `evidence`, and the share of
    the item that the row holds as `similarity`.
    """

    operator: Literal["decontaminate"] = "decontaminate"
    threshold: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of an item's n-grams from which a row is dropped; 0: any one of them, "
        "as GPT-3's rule",
    )

    def select(self, table: Table) -> Drops:
        items, index, hits = self.hits(table)
        share = hits["hit_item_share"].to_numpy()
        lost = np.flatnonzero((share > 0) & (share >= self.threshold))
        gone = hits.take(pa.array(lost))
        item = gone["hit_item"].to_numpy()
        outside = pa.table(
            {
                "partner_source": items.benchmark.take(pa.array(item)),
                "partner_hi": items.id_hi[item],
                "partner_lo": items.id_lo[item],
                "partner_copy": items.copy[item],
                "evidence": gone["hit_ngram"].cast(pa.string()),
            },
            schema=OUTSIDE,
        )
        names = ("items", "items_too_short", "items_without_ngrams", "ngrams", "ngrams_ignored")
        counts = dict(zip(names, index.counts.tolist(), strict=True))
        by_benchmark = pc.value_counts(outside["partner_source"]).to_pylist()
        return Drops.of(
            lost,
            "",
            value=share[lost],
            threshold=self.threshold,
            similarity=share[lost],
            outside=outside,
            report={
                **counts,
                "references": items.left_out,
                "benchmarks": {
                    entry["values"]: entry["counts"]
                    for entry in sorted(by_benchmark, key=lambda entry: str(entry["values"]))
                },
            },
        )


def _items(table: Table, references: list[Benchmark]) -> Items:
    """The items of all benchmarks, reference by reference in the order of row_id and copy."""
    found: list[list[Any]] = []
    tables = [reference.table(table) for reference in references]
    for reference, other in zip(references, tables, strict=True):
        order: Int64s = np.lexsort((other.copy, other.id_lo, other.id_hi))
        hi, lo, copy = other.id_hi[order], other.id_lo[order], other.copy[order]

        def column(name: str | None, other: Table = other, order: Int64s = order) -> Any:
            if name is None:
                return None
            return other.column(name).take(pa.array(order)).combine_chunks()

        benchmark = column(reference.benchmark)
        label = column(reference.id)
        if benchmark is None:
            benchmark = pa.array([reference.title] * len(order), pa.string())
        else:
            benchmark = pc.fill_null(benchmark.cast(pa.string()), reference.title)
        label = pa.array(hex_ids(hi, lo)) if label is None else label.cast(pa.string())
        text = column(reference.text).cast(pa.large_string())
        found.append([text, benchmark, label, hi, lo, copy])
    text, benchmarks, labels, *ids = (list(column) for column in zip(*found, strict=True))
    high, low, copies = (np.concatenate(column) for column in ids)
    return Items(
        pa.concat_arrays(text),
        pa.concat_arrays(benchmarks),
        pa.concat_arrays(labels),
        high,
        low,
        copies,
        left_out(references, tables),
    )
