"""What several detectors together say of a label: how probably it is wrong, and who says so."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from tamis.scoring.column_scorer import vectors
from tamis.scoring.label_noise import fit_noise
from tamis.scoring.label_probs import check_codes
from tamis.scoring.operator import Judgement
from tamis.selectors.table import Table, as_floats
from tamis.selectors.table_scorer import TableScorer
from tamis.selectors.votes import Votes, rules_of
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.errors import UserError
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import RULES

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
End = Literal["high", "low"]

#: What the noise model's votes go by.
NOISE_MODEL = "noise_model"


def suspicion(value: Float64s, end: End) -> Float64s:
    """The share of values that are less suspicious than each: midranks over their number, 0 to 1.

    Args:
        value: a detector's scores; nan where it has none.
        end: which end is suspicious.

    Returns:
        float64, as long as `value`, nan where that is.

    Example:
        >>> suspicion(np.array([3.0, np.nan, 1.0, 1.0]), "low").round(4).tolist()
        [0.1667, nan, 0.6667, 0.6667]
    """
    found = np.full(len(value), np.nan)
    rows = np.flatnonzero(~np.isnan(value))
    if len(rows):
        signed = value[rows] if end == "high" else -value[rows]
        _, place, size = np.unique(signed, return_inverse=True, return_counts=True)
        found[rows] = ((np.cumsum(size) - size / 2.0) / len(rows))[place]
    return found


def mean_suspicion(parts: list[Float64s]) -> Float64s:
    """Mean over the detectors that know a row; nan where none does.

    Example:
        >>> mean_suspicion([np.array([0.25, 0.75]), np.array([np.nan, 0.25])]).tolist()
        [0.25, 0.5]
    """
    stack = np.stack(parts)
    known = ~np.isnan(stack)
    total = np.where(known, stack, 0.0).sum(axis=0)
    found = np.full(stack.shape[1], np.nan)
    np.divide(total, known.sum(axis=0), out=found, where=known.any(axis=0))
    return found


def scaled(order: Float64s, wrong: Float64s) -> Float64s:
    """Probabilities in the order of another score, with the distribution that they have.

    The row at a quantile of `order` has the probability at that quantile of `wrong`; rows that tie
    have the mean of theirs.

    Args:
        order: nan where a row has none.
        wrong: probabilities, of these rows or some of them; nan where there is none.

    Example:
        >>> scaled(np.array([0.1, 0.9, 0.5]), np.array([0.3, 0.2, 0.9])).tolist()
        [0.2, 0.9, 0.3]
    """
    found = np.full(len(order), np.nan)
    rows = np.flatnonzero(~np.isnan(order))
    levels = np.sort(wrong[~np.isnan(wrong)])
    if not len(rows) or not len(levels):
        return found
    if len(levels) != len(rows):
        places = (np.arange(len(rows)) + 0.5) / len(rows)
        levels = np.interp(places, (np.arange(len(levels)) + 0.5) / len(levels), levels)
    _, place, size = np.unique(order[rows], return_inverse=True, return_counts=True)
    ends = np.cumsum(size)
    total = np.add.reduceat(levels, ends - size)
    found[rows] = (total / size)[place]
    return found


def vote(value: Float64s, end: End, share: float) -> tuple[Int64s, float]:
    """The rows that a detector holds for wrong, if a share of all rows are.

    Those are its most suspicious ones, as many as the share says, and what ties with the last of
    them; but none that is not more suspicious than its (lower) median, so that a detector that
    says the same of all rows, or of most, does not vote against them.

    Returns:
        Rows, ascending, and the last value that has a vote (nan without any).

    Example:
        >>> vote(np.array([5.0, 1.0, 4.0, np.nan, 3.0]), "low", 0.25)
        (array([1]), 1.0)
    """
    known = value[~np.isnan(value)]
    count = int(np.ceil(share * len(known) - 1e-9))
    if not count:
        return np.zeros(0, np.int64), np.nan
    signed = value if end == "high" else -value
    ranked = np.sort(known if end == "high" else -known)
    limit, middle = ranked[-count], ranked[(len(ranked) - 1) // 2]
    with np.errstate(invalid="ignore"):  # nan is no vote
        rows = np.flatnonzero((signed >= limit) & (signed > middle))
    if not len(rows):
        return rows, np.nan
    last = float(signed[rows].min())
    return rows, last if end == "high" else -last


class LabelConsensus(TableScorer):
    """P(label is wrong), from several detectors and a fitted noise model, and each one's vote.

    Every detector ranks the rows; a row's consensus is the mean of its midranks over the detectors
    that know it. `combine: rank` gives that mean, 0 to 1, which orders rows and is no probability.

    `combine: model` fits a noise model to the out-of-sample probabilities of a stage
    (`tamis.scoring.label_noise`): how often each class is labelled as each other one, and with it
    every row's P(label is wrong). The model is one more detector beside the others, and gives the
    numbers: the mean rank says which rows, the model how probable. Rows in order of their mean rank
    have the model's probabilities in order of size. They are calibrated where wrong labels are
    drawn by class; errors that people make on rows that look like another class are more than the
    model says.

    A detector votes against its most suspicious rows, as many as the noise model expects wrong
    labels (the mean of its probabilities), or `rate` of all rows. See `vote` for ties.

    Rows that a detector has no score for (null, nan) use the others; without any, both are null.
    """

    operator: Literal["label_consensus"] = "label_consensus"
    detectors: dict[str, End] = Field(
        default={"aum": "low", "confidence": "low", "label_agreement": "low"},
        min_length=1,
        description="scores, and which end of each is suspicious",
    )
    combine: Literal["rank", "model"] = Field(
        default="model",
        description="mean of ranks, or probabilities by the noise model in that order",
    )
    probs: str = Field(
        default="probe",
        description="stage that gives out-of-sample probabilities, for the noise model",
    )
    rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of rows that a detector votes against; the noise model's estimate if "
        "not given",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Carlini et al. 2019, Distribution density, tails, and outliers in machine learning (mean "
        "rank); Dawid and Skene 1979; Northcutt et al. 2021, Confident learning"
    )

    @model_validator(mode="after")
    def _own_name(self) -> Self:
        if NOISE_MODEL in self.detectors:
            raise ValueError(
                f"detectors: {NOISE_MODEL!r} is the name of the fitted noise model; give the "
                "column another"
            )
        return self

    @property
    def fits(self) -> bool:
        """Whether it fits the noise model."""
        return self.combine == "model" or self.rate is None

    def reads(self) -> set[str]:
        probs = {f"{self.probs}_probs", f"{self.probs}_label"} if self.fits else set()
        return set(self.detectors) | probs

    def numbers(self) -> set[str]:
        return set(self.detectors) | ({f"{self.probs}_label"} if self.fits else set())

    def vectors(self) -> set[str]:
        return {f"{self.probs}_probs"} if self.fits else set()

    def held_vectors(self, rows: int) -> int:
        # A class has a row at least, so a matrix of classes by classes is no larger than theirs.
        return 7 * rows if self.fits else 0

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * (200 + 120 * (len(self.detectors) + 1))

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "column": self.stage}

    def fields(self) -> pa.Schema:
        """The consensus by the stage's name (float64, 0 to 1) and ``_votes`` (a list of the
        detectors that vote against the label: ``rule``, ``value``, ``threshold``); both nullable.
        """
        return pa.schema(
            [pa.field(self.stage, pa.float64()), pa.field(f"{self.stage}_votes", RULES)]
        )

    def judges(self) -> dict[str, Judgement]:
        return {self.stage: "probability" if self.combine == "model" else "order"}

    def compute(self, table: Table) -> Iterable[pa.RecordBatch]:
        """Batches of the columns above.

        Raises:
            UserError: if the noise model is asked for and no row has probabilities, or if labels
                and probabilities do not fit one another.
        """
        if not len(table):
            return
        value = {name: as_floats(table.column(name)) for name in self.detectors}
        ends = dict(self.detectors)
        wrong = self._wrong(table) if self.fits else np.full(len(table), np.nan)
        if self.combine == "model":
            value[NOISE_MODEL], ends[NOISE_MODEL] = wrong, "high"
        consensus = mean_suspicion([suspicion(value[name], ends[name]) for name in value])
        if self.combine == "model":
            consensus = scaled(consensus, wrong)
        share = float(np.nanmean(np.sort(wrong))) if self.rate is None else self.rate
        votes = []
        for name in value:
            rows, limit = vote(value[name], ends[name], share)
            votes.append(Votes.of(rows, name, value[name][rows], limit))
        for begin in range(0, len(table), BATCH_ROWS):
            some = slice(begin, begin + BATCH_ROWS)
            rows = np.arange(len(table))[some]
            none = np.isnan(consensus[some])
            rules = rules_of([_within(one, rows) for one in votes], rows)
            columns = [
                pa.array(consensus[some], pa.float64(), mask=none),
                pa.ListArray.from_arrays(
                    rules.offsets, rules.values, type=RULES, mask=pa.array(none)
                ),
            ]
            yield pa.record_batch(columns, schema=self.fields())

    def _wrong(self, table: Table) -> Float64s:
        """P(label is wrong) by the noise model; nan for rows without probabilities.

        They are fitted in order of row_id, so that sums do not depend on that of the rows.
        """
        name = f"{self.probs}_probs"
        label = as_floats(table.column(f"{self.probs}_label"))
        probs = np.zeros((len(table), 0), np.float32)
        done = 0
        for batch in table.batches([name]):
            part = vectors(batch, name)
            some = slice(done, done + batch.num_rows)
            done += batch.num_rows
            if np.isnan(part).all():
                continue
            if not probs.shape[1]:
                probs = np.full((len(table), part.shape[1]), np.nan, np.float32)
            if part.shape[1] != probs.shape[1]:
                raise UserError(
                    f"{name}: expected lists of one length, found {probs.shape[1]} and "
                    f"{part.shape[1]} numbers"
                )
            probs[some] = part
        known = ~np.isnan(label) & ~np.isnan(probs).any(axis=1) & bool(probs.shape[1])
        order = np.lexsort((table.copy, table.id_lo, table.id_hi))
        rows = order[known[order]]
        if not len(rows):
            raise UserError(
                f"{self.stage}: no row has probabilities in {name!r}, which the noise model is "
                "fitted to",
                mend="set `combine: rank` and a `rate`",
            )
        codes = label[rows].astype(np.int64)
        check_codes(codes, probs.shape[1], f"{self.probs}_label")
        given = probs[rows]
        if not 0 <= given.min() <= given.max() <= 1 + 1e-6:
            raise UserError(
                f"{name}: expected probabilities from 0 to 1, found {given.min():g} to "
                f"{given.max():g}"
            )
        found = np.full(len(table), np.nan)
        found[rows] = fit_noise(given, codes).wrong
        return found


def _within(votes: Votes, rows: Int64s) -> Votes:
    """The votes on some consecutive rows; those of a detector are in order of the rows."""
    first, last = np.searchsorted(votes.row, [rows[0], rows[-1] + 1])
    part = slice(first, last)
    return Votes(votes.row[part], votes.rule[part], votes.value[part], votes.threshold[part])
