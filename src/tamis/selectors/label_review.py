"""Rows whose label a person should look at, those first that tell most."""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from tamis.selectors.budgets import one_budget, wanted
from tamis.selectors.marker import Marker
from tamis.selectors.suspicion import BySuspicion
from tamis.selectors.table import Table
from tamis.selectors.table_scorer import Scores
from tamis.selectors.votes import rules_of
from tamis.storage.errors import UserError
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import DROPPED, IN_REVIEW, Float64s

#: Probabilities count as no less than this, so that a label thought impossible still has a rank.
LEAST = float(np.finfo(np.float32).tiny)
#: Columns that every queue may have of its own, in order; those that `show` names come before the
#: last two, which a person fills in.
QUEUE = (
    "row_id",
    "copy",
    "text",
    "given_label",
    "suggested_label",
    "p_wrong",
    "information",
    "votes",
    "label",
    "verdict",
)


def information(probs: pa.Array, label: Int64s) -> Float64s:
    """How much a label would tell that a person gives: noisiness less ambiguity.

    Bernhardt et al. 2022, the score of label cleaning: the cross-entropy of the given label, -log p
    of it, less the entropy of the model's posterior, in nats. It is high where the model is sure of
    another label, and low where it is not sure at all.

    Args:
        probs: lists of a model's probabilities, one for every class.
        label: place of the given label in them.

    Returns:
        float64 ``(n,)``, at most -log of `LEAST` (87.3); nan where there are no probabilities, one
        is no finite number, or the label is none of the classes.

    Example:
        >>> probs = pa.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], None])
        >>> [round(x, 3) for x in information(probs, np.zeros(4, np.int64)).tolist()]
        [-0.22, 1.978, 0.0, nan]
    """
    row = np.asarray(pc.list_parent_indices(probs), np.int64)
    p = np.asarray(pc.fill_null(pc.list_flatten(probs).cast(pa.float64()), np.nan))
    count = np.asarray(pc.fill_null(pc.list_value_length(probs), 0), np.int64)
    p = np.maximum(p, LEAST)
    entropy = -np.bincount(row, weights=p * np.log(p), minlength=len(count))
    inside = np.flatnonzero((label >= 0) & (label < count))
    found: Float64s = np.full(len(count), np.nan)
    at = (np.cumsum(count) - count)[inside] + label[inside]
    found[inside] = -np.log(p[at]) - entropy[inside]
    found[~np.isfinite(found)] = np.nan
    return found


class LabelReview(BySuspicion, Marker):
    """Put the rows into review that a person's label would tell most about.

    They stay in the dataset, or are held out of it, and are written to a queue for a person to fill
    in, ``review/<stage>-<key>.csv`` and ``.parquet`` in the workspace; `label_corrections` reads
    what comes back. Rows are ordered by information: how surprising their label is to a model that
    has not seen them, less how unsure the model is (cross-entropy less entropy), so that rows come
    first that are wrong rather than hard; or by P(wrong). Ties by row_id. Rows without either
    figure, and those whose label a person has given, are not asked for.
    """

    operator: Literal["label_review"] = "label_review"
    rows: int | None = Field(default=None, ge=0, description="rows to look at")
    fraction: float | None = Field(default=None, ge=0, le=1, description="share to look at")
    order: Literal["information", "p_wrong"] = Field(
        default="information", description="which rows come first"
    )
    probe: str = Field(
        default="probe",
        description="stage whose `_probs` and `_label` tell the information of a row: the "
        "probabilities of the classes, and the number of its label among them",
    )
    suggested: str | None = Field(
        default="probe_suggested",
        description="score or column of labels to suggest to the person; none with null",
    )
    show: list[str] = Field(
        default=[],
        description="further scores and columns that the queue shows, none by a name of its own",
    )
    held_out: bool = Field(
        default=False, description="whether rows in review are kept out of the dataset"
    )

    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("label",)
    paper: ClassVar[str] = (
        "Bernhardt et al. 2022, Active label cleaning for improved dataset quality under resource "
        "constraints"
    )

    _one_budget = model_validator(mode="after")(one_budget)

    @field_validator("show")
    @classmethod
    def _shows_others(cls, show: list[str]) -> list[str]:
        """Files that come back are read by these names, whatever their case."""
        for name in show:
            own = name.strip().lower()
            if own in QUEUE:
                raise ValueError(
                    f"a queue has a column {own!r} of its own; leave out {name!r}, or give that "
                    "column of the corpus another name"
                )
        return show

    @property
    def _posterior(self) -> tuple[str, str]:
        return f"{self.probe}_probs", f"{self.probe}_label"

    def reads(self) -> set[str]:
        found = super().reads() | set(self.show)
        found |= set() if self.suggested is None else {self.suggested}
        return found | (set(self._posterior) if self.order == "information" else set())

    @property
    def needs_probability(self) -> bool:
        return False

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 200

    def fields(self) -> pa.Schema:
        """``<stage>_information`` (float64, nats; null where it is not known or not asked for),
        ``_place`` (int64, from 1: place by what rows are ordered by), and for rows in the queue
        ``_action``, ``_value`` (what they are ordered by), ``_threshold`` (that of the last in the
        queue), ``_rules``."""
        own = [
            pa.field(f"{self.stage}_information", pa.float64()),
            pa.field(f"{self.stage}_place", pa.int64()),
        ]
        return pa.schema([*own, *self.action_fields()])

    def evaluate(self, table: Table) -> Scores:
        """The queue, and how many rows were ranked: the others have no figure, or are left
        alone."""
        p = self.suspicion(table)
        told = self._information(table) if self.order == "information" else np.full(len(p), np.nan)
        merit = p if self.order == "p_wrong" else np.where(np.isnan(p), np.nan, told)
        order = np.lexsort((table.copy, table.id_lo, table.id_hi, -merit))
        order = order[~np.isnan(merit[order])]
        rows = np.sort(order[: wanted(len(table), self.rows, self.fraction)])
        place = np.zeros(len(table), np.int64)
        place[order] = np.arange(1, len(order) + 1)
        batches = self.batches(
            {
                f"{self.stage}_information": pa.array(told, from_pandas=True),
                f"{self.stage}_place": pa.array(place, mask=place == 0),
                **self.action_columns(
                    len(table),
                    rows,
                    DROPPED if self.held_out else IN_REVIEW,
                    merit[rows],
                    merit[rows].min(initial=np.inf),
                    rules_of(self.votes_in(table, rows), rows),
                ),
            }
        )
        return Scores(batches, {"ranked": len(order)})

    def _information(self, table: Table) -> Float64s:
        probs, label = self._posterior
        found = [np.zeros(0)]
        for batch in table.batches([probs, label]):
            kind = batch[probs].type
            lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
            if not any(test(kind) for test in lists) or not pa.types.is_floating(kind.value_type):
                raise UserError(
                    f"{self.stage}: expected lists of probabilities, found {probs!r} of type {kind}"
                )
            codes = pc.fill_null(batch[label].cast(pa.int64()), -1)
            found.append(information(batch[probs], np.asarray(codes)))
        return np.concatenate(found)
