"""Weights of domains from their losses over a training: group DRO and DoReMi.

Both raise the weight of domains that do badly by a factor exp(rate * score) at every step, from
equal weights on. Group DRO's score is the loss itself, DoReMi's is how far it exceeds a reference
model's. They are computed in logarithms, so that no loss overflows.

Example:
    >>> from tamis.scoring.domain_losses import DomainLosses
    >>> losses = DomainLosses(("code", "web"), np.array([0, 1]), np.array([[1.0, 2.0], [1.0, 2.0]]))
    >>> group_dro(losses, rate=np.log(2)).weights.round(6).tolist()
    [[0.333333, 0.666667], [0.2, 0.8]]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tamis.scoring.domain_losses import DomainLosses
from tamis.scoring.mixture_runs import Floats
from tamis.selectors.domain_weights import softmax, supply_of
from tamis.storage.errors import UserError

if TYPE_CHECKING:
    import polars as pl

Result = Literal["mean", "last"]

#: A weight above this is nearly all of it, which is told (ours).
_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class WeightPath:
    """Weights of d domains after each of s steps.

    Attributes:
        losses: what they come from.
        scores: what raised them, float64 [s, d].
        weights: float64 [s, d]; rows sum to 1.
        method: group_dro or doremi.
        parameters: of the method, for the record.
    """

    method: str
    losses: DomainLosses
    scores: Floats
    weights: Floats
    parameters: Mapping[str, Any]

    def result(self, which: Result) -> dict[str, float]:
        """Weights by domain: their mean over the steps, or those after the last one."""
        found = self.weights.mean(axis=0) if which == "mean" else self.weights[-1]
        # A mean of rows that sum to 1 is off by a rounding.
        return dict(zip(self.losses.domains, map(float, found / found.sum()), strict=True))

    def worst(self) -> dict[str, Any]:
        """The domain with the largest loss at the last step, beside the mean over domains and the
        loss that the weights give.
        """
        last, weights = self.losses.losses[-1], self.weights[-1]
        place = int(last.argmax())
        return {
            "domain": self.losses.domains[place],
            "loss": float(last[place]),
            "first": float(self.losses.losses[0, place]),
            "mean": float(last.mean()),
            "weighted": float(last @ weights),
        }

    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        found = list(self.losses.notes)
        last = self.weights[-1]
        place = int(last.argmax())
        if len(last) == 1:
            found.append("one domain: its weight is 1 whatever its losses are")
        elif last[place] > _NEARLY_ALL:
            found.append(
                f"{self.losses.domains[place]!r} has {last[place]:.4f} of the weight at the last "
                "step. Losses that no weights were fed back to drive them to the worst domain "
                "alone; take those of a training with these weights, or fewer steps"
            )
        return tuple(found)

    def table(self) -> "pl.DataFrame":
        """A row for every step and domain: step, domain, loss, (reference,) score, weight."""
        import polars as pl

        losses = self.losses
        columns: dict[str, Any] = {
            "step": np.repeat(losses.steps, len(losses.domains)),
            "domain": list(losses.domains) * len(losses.steps),
            "loss": losses.losses.ravel(),
        }
        if losses.references is not None:
            columns["reference"] = losses.references.ravel()
        columns |= {"score": self.scores.ravel(), "weight": self.weights.ravel()}
        return pl.DataFrame(columns)


def group_dro(
    losses: DomainLosses,
    *,
    rate: float = 0.01,
    adjustment: float = 0.0,
    sizes: Mapping[str, float] | None = None,
) -> WeightPath:
    """Weights of online group DRO: q ← q exp(rate (loss + adjustment / √n)), normalised.

    A row of group g has the weight q_g / n_g, which sums to 1 over all rows.

    Source: Sagawa, Koh, Hashimoto and Liang 2020 (arXiv 1911.08731), Algorithm 1 and the adjusted
    losses of section 3.3; rate and update as in the authors' public code.

    Args:
        rate: η_q of the paper, more than 0; 0.01 there.
        adjustment: C of the paper, 0 or more, which holds back domains that are small; it tried 0
            to 5.
        sizes: rows of every domain, n_g; needed for an adjustment.

    Raises:
        UserError: for parameters outside these ranges, or sizes of other domains.
    """
    _positive("rate", rate)
    if not 0 <= adjustment < np.inf:
        raise UserError(f"adjustment: expected 0 or more, found {adjustment:g}")
    scores = losses.losses
    if adjustment:
        if sizes is None:
            raise UserError(
                "an adjustment takes the number of rows of every domain", mend="give them as supply"
            )
        scores = scores + adjustment / np.sqrt(supply_of(losses.domains, sizes))
    # The product of all steps is the exponential of a sum. Only differences between domains count.
    apart = scores - scores.max(axis=1, keepdims=True)
    weights = softmax(rate * np.cumsum(apart, axis=0))
    parameters = {"rate": rate, "adjustment": adjustment}
    return WeightPath("group_dro", losses, scores, weights, parameters)


def doremi(losses: DomainLosses, *, rate: float = 1.0, smoothing: float = 1e-4) -> WeightPath:
    """Weights of DoReMi: w ← w exp(rate λ), normalised, then (1 - smoothing) w + smoothing / d.

    λ is the mean of max(loss - reference, 0) of a domain. The paper takes it token by token. Means
    of documents or of domains make it smaller, as what is better than the reference makes up for
    what is worse within them.

    Source: Xie et al. 2023 (arXiv 2305.10429), Algorithm 1; rate 1 and smoothing 1e-4 as in the
    authors' public code. The result there is the mean over all steps.

    Args:
        rate: η of the paper, more than 0.
        smoothing: ε, at least 0 and below 1; no weight is below smoothing / d.

    Raises:
        UserError: for parameters outside these ranges, or without losses of a reference model.
    """
    _positive("rate", rate)
    if not 0 <= smoothing < 1:
        raise UserError(f"smoothing: expected at least 0 and below 1, found {smoothing:g}")
    if losses.excess is None:
        raise UserError(
            "DoReMi takes the losses of a reference model beside the proxy's",
            mend="add a column `reference`, columns `reference_<domain>`, or a table of its own",
        )
    scores = losses.excess
    count = len(losses.domains)
    raised = rate * (scores - scores.max(axis=1, keepdims=True))
    weights = np.empty_like(scores)
    now = np.full(count, 1 / count)
    for step, by in enumerate(raised):
        with np.errstate(divide="ignore"):
            now = softmax(np.log(now) + by)
        now = (1 - smoothing) * now + smoothing / count
        weights[step] = now
    parameters = {"rate": rate, "smoothing": smoothing}
    return WeightPath("doremi", losses, scores, weights, parameters)


def _positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise UserError(f"{name}: expected more than 0, found {value:g}")
