"""Rows whose label is probably wrong get the one that is suggested."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from tamis.selectors.labels import NewLabels, all_classes, as_names, fitting_names, label_fields
from tamis.selectors.marker import Marker
from tamis.selectors.suspicion import BySuspicion
from tamis.selectors.table import Table, as_floats
from tamis.selectors.votes import Votes, rules_of
from tamis.storage.errors import UserError
from tamis.storage.ledger import RELABELLED

GIVEN = Field(
    default="given_label",
    description="column of the dataset that keeps the corpus's labels, in their own type",
)


class Relabel(BySuspicion, Marker):
    """Give rows the suggested label where theirs is probably wrong and the suggestion is sure.

    That is where P(wrong) reaches `threshold` and the probability of the suggestion `confidence`.
    Later stages and the dataset have the new label, in the type of the label column; the old one
    stays as a column of the dataset.

    Correcting unreliable labels by confident predictions, in place of dropping the rows, is the
    label correction of DLG-LC; neither figure is from there.
    """

    operator: Literal["relabel"] = "relabel"
    threshold: float = Field(
        default=0.5, ge=0, le=1, description="P(wrong) from which a label may be changed"
    )
    suggested: str = Field(
        default="probe_suggested", description="score or column of the labels suggested"
    )
    suggested_prob: str | None = Field(
        default=None,
        description="score or column of their probabilities; the name of `suggested` and `_prob`",
    )
    confidence: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="probability from which a suggestion is taken (unconfirmed)",
    )
    new_classes: bool = Field(
        default=False, description="whether labels are taken that no row of the corpus has"
    )
    given: str = GIVEN

    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("label",)
    paper: ClassVar[str] = (
        "after Han et al. 2023, Self-supervised learning with cluster-aware-DINO for "
        "high-performance robust speaker verification (label correction)"
    )

    @property
    def prob(self) -> str:
        """The column of the suggestions' probabilities."""
        return self.suggested_prob or f"{self.suggested}_prob"

    def reads(self) -> set[str]:
        return super().reads() | {self.suggested, self.prob}

    def numbers(self) -> set[str]:
        return super().numbers() | {self.prob}

    def groups_by(self) -> set[str]:
        return {self.suggested}

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * 400

    def fields(self) -> pa.Schema:
        """``<stage>_label`` (the label as text), ``_given`` (the one before), neither ever null;
        and where they differ ``_action``, ``_value`` (P(wrong)), ``_threshold``, ``_rules``."""
        return pa.schema([*label_fields(self.stage), *self.action_fields()])

    def rewrites(self) -> dict[str, str]:
        return {"label": f"{self.stage}_label"}

    def given_as(self) -> str | None:
        return self.given

    def compute(self, table: Table) -> Iterator[pa.RecordBatch]:
        new = NewLabels.of(table)
        p = self.suspicion(table)
        sure = as_floats(table.column(self.prob))
        names = as_names(table.column(self.suggested))
        rows = np.flatnonzero(
            (p >= self.threshold) & (sure >= self.confidence) & np.asarray(names.is_valid())
        )
        wanted = names.take(pa.array(rows)).combine_chunks().dictionary_encode()
        fitting = fitting_names(wanted.dictionary.to_pylist(), table)
        self._check_known(fitting, new, table)
        codes = np.array([new.code_of(name) for name in fitting], np.int32)
        new.codes[rows] = codes[np.asarray(wanted.indices)]
        rows = new.changed
        votes = [
            *self.votes_in(table, rows),
            Votes.of(rows, self.prob, sure[rows], self.confidence),
        ]
        yield from self.batches(
            {
                **new.columns(self.stage),
                **self.action_columns(
                    len(table), rows, RELABELLED, p[rows], self.threshold, rules_of(votes, rows)
                ),
            }
        )

    def _check_known(self, names: list[str], new: NewLabels, table: Table) -> None:
        """Hold the suggestions that are taken against the classes of the corpus."""
        if self.new_classes or set(names) <= set(new.labels.classes):
            return
        unknown = sorted(set(names) - all_classes(table))
        if unknown:
            raise UserError(
                f"{self.stage}: {self.suggested!r} suggests {len(unknown):,} labels that no row of "
                f"the corpus has, such as {unknown[0]!r}",
                mend="name a column of suggested labels as `suggested`, or set "
                "`new_classes: true` to take them",
            )
