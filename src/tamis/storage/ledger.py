"""The ledger: one decision for every row, and the sum that must come out."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.storage.edges import Edges
from tamis.storage.errors import RunError
from tamis.storage.kernels import Int64s

Float64s = npt.NDArray[np.float64]

RULES = pa.list_(
    pa.struct(
        [
            pa.field("rule", pa.string(), nullable=False),
            pa.field("value", pa.float64()),
            pa.field("threshold", pa.float64()),
        ]
    )
)

#: A partner that is no row of the corpus: a row of a reference, by the reference's name, and the
#: text that speaks for it.
OUTSIDE = pa.schema(
    [
        pa.field("partner_source", pa.string()),
        pa.field("partner_hi", pa.uint64()),
        pa.field("partner_lo", pa.uint64()),
        pa.field("partner_copy", pa.uint32()),
        pa.field("evidence", pa.string()),
    ]
)

#: The row that a generated row was made from.
PARENT = pa.schema(
    [
        pa.field("parent_hi", pa.uint64()),
        pa.field("parent_lo", pa.uint64()),
        pa.field("parent_copy", pa.uint32()),
    ]
)

#: What a decision says, after ``shard`` and ``row``.
DECISION = pa.schema(
    [
        pa.field("id_hi", pa.uint64(), nullable=False),
        pa.field("id_lo", pa.uint64(), nullable=False),
        pa.field("copy", pa.uint32(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("rules", RULES),
        *OUTSIDE,
        pa.field("similarity", pa.float64()),
        *PARENT,
    ]
)

#: Actions of rows that stay: as they were, with another label, or for a person to look at.
KEPT, RELABELLED, IN_REVIEW = "keep", "relabel", "review"
STAYS = (KEPT, RELABELLED, IN_REVIEW)
#: Action of a row that a stage is done with.
DROPPED = "drop"
#: Action of a row that no input row is: a stage made it.
GENERATED = "generate"
#: Why a row that no stage saw is not in the dataset.
QUARANTINED = "quarantine"


@dataclass
class Drops:
    """The rows that one stage drops, in ascending order, and why.

    Attributes:
        rows: positions among the rows the stage was given.
        reason: index into `reasons` for each of them.
        reasons: the names that are counted.
        value, threshold: what decided (nan where nothing numeric did).
        partner: position of the row that stays in its place, -1 where there is none.
        similarity: to the partner (nan where there is none).
        outside: for a stage that compares with a reference, what takes the place of `partner`
            (schema `OUTSIDE`, a row for each row dropped).
        rules: every rule of the stage that would have dropped the row (type `RULES`), or None.
        report: figures for the manifest.
        edges: pairs of positions (dropped or not), the better-ranked row second, or None.
        has_edges: whether edges were stored with these drops.
    """

    rows: Int64s
    reasons: list[str]
    reason: npt.NDArray[np.int32]
    value: Float64s
    threshold: Float64s
    partner: Int64s
    similarity: Float64s
    outside: pa.Table | None = None
    rules: pa.Array | None = None
    report: dict[str, Any] = field(default_factory=dict)
    edges: Edges | None = None
    has_edges: bool = False

    @classmethod
    def of(
        cls,
        rows: Int64s,
        reason: str,
        *,
        value: Float64s | None = None,
        threshold: Float64s | float | None = None,
        partner: Int64s | None = None,
        similarity: Float64s | None = None,
        outside: pa.Table | None = None,
        report: dict[str, Any] | None = None,
        edges: Edges | None = None,
    ) -> "Drops":
        """Rows dropped for one reason; what is not given is absent from the ledger."""
        none = np.full(len(rows), np.nan)
        if isinstance(edges, tuple):
            pairs, edges = edges, Edges()
            edges.add(*pairs)
        limit = none if threshold is None else np.broadcast_to(threshold, len(rows)).astype(float)
        return cls(
            rows=rows,
            reasons=[reason],
            reason=np.zeros(len(rows), np.int32),
            value=none if value is None else value,
            threshold=limit,
            partner=np.full(len(rows), -1, np.int64) if partner is None else partner,
            similarity=none if similarity is None else similarity,
            outside=outside,
            report=report or {},
            edges=edges,
        )

    def part(self, some: slice) -> "Drops":
        """A run of these drops, without report and edges."""
        columns = ("rows", "reason", "value", "threshold", "partner", "similarity")
        return Drops(
            reasons=self.reasons,
            outside=None if self.outside is None else self.outside[some],
            rules=None if self.rules is None else self.rules[some],
            **{name: getattr(self, name)[some] for name in columns},
        )


@dataclass(frozen=True)
class Balance:
    """How the rows of a run add up.

    Attributes:
        kept: rows that stay, `marked` ones among them.
        marked: those with another label and those in review, by action.
    """

    rows_in: int
    kept: int
    marked: dict[str, int]
    dropped: dict[str, int]
    quarantined: int
    generated: int
    written: int

    def check(
        self, expected_marked: dict[str, int], expected_generated: int, expected_written: int
    ) -> None:
        """Raise unless every row is accounted for exactly once.

        Raises:
            RunError: with both sides of the sum.
        """
        accounted = self.kept + sum(self.dropped.values()) + self.quarantined
        if accounted != self.rows_in:
            raise RunError(
                f"the ledger does not balance: {self.rows_in} rows in, but {self.kept} kept + "
                f"{sum(self.dropped.values())} dropped + {self.quarantined} quarantined = "
                f"{accounted}",
                mend="this is a defect of tamis: nothing was published",
            )
        for action, count in expected_marked.items():
            if self.marked[action] != count:
                raise RunError(
                    f"{count} rows were marked {action}, the ledger holds {self.marked[action]}",
                    mend="this is a defect of tamis: nothing was published",
                )
        if self.generated != expected_generated:
            raise RunError(
                f"{expected_generated} rows were generated, the ledger holds {self.generated}",
                mend="this is a defect of tamis: nothing was published",
            )
        if self.written != expected_written:
            raise RunError(
                f"{expected_written} rows should have been written, {self.written} were",
                mend="this is a defect of tamis: nothing was published",
            )

    def as_manifest(self) -> dict[str, Any]:
        """The `rows` part of a manifest."""
        return {
            "in": self.rows_in,
            "kept": self.kept,
            "relabelled": self.marked[RELABELLED],
            "in_review": self.marked[IN_REVIEW],
            "dropped": self.dropped,
            "quarantined": self.quarantined,
            "generated": self.generated,
            "written": self.written,
        }
