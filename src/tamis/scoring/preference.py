"""Scores of preference pairs and sampled completions from log-probs under policy and reference.

Log-probs are sums over the tokens of a completion, given its prompt, in nats. A policy or a
reference is named by the stage of `logprobs` that ran it.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from tamis.scoring.column_scorer import ColumnScorer, Float64s, log_sigmoid, numbers, ratio

_DPO = "Rafailov et al. 2023, Direct preference optimization"
_RANKINGS = "Chen et al. 2024, Preference learning algorithms do not learn preference rankings"
SIDES = ("chosen", "rejected")


def _convex(policy: str | dict[str, float]) -> str | dict[str, float]:
    if isinstance(policy, dict):
        weights = policy.values()
        if not policy or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-9):
            raise ValueError("the weights of the policies must be 0 or more and sum to 1")
    return policy


Policies = Annotated[str | dict[str, float], AfterValidator(_convex)]


class _ImplicitReward(ColumnScorer):
    """Implicit rewards under one policy, or several that are mixed."""

    policy: Policies = Field(
        default="policy",
        description="stage of `logprobs` under the policy; or several with weights that sum to 1, "
        "as in {second: 0.7, first: 0.3}, whose rewards are mixed",
    )
    reference: str = Field(
        default="reference", description="stage of `logprobs` under the reference model"
    )
    beta: float = Field(
        default=0.1, gt=0, description="factor of the log-ratio; TRL's default, scales all rewards"
    )
    normalise: Literal["sum", "per_token"] = Field(
        default="sum",
        description="log-probs as sums over a completion's tokens, or as means",
    )

    def weights(self) -> dict[str, float]:
        """Policies and their weights."""
        return {self.policy: 1.0} if isinstance(self.policy, str) else self.policy

    def parts(self, side: str) -> set[str]:
        """Columns that a reward reads; `side` begins with an underscore or is empty."""
        wanted = ("logp",) if self.normalise == "sum" else ("logp", "tokens")
        return {f"{s}{side}_{part}" for s in (*self.weights(), self.reference) for part in wanted}

    def reward(self, batch: pa.RecordBatch, side: str) -> Float64s:
        """beta * (log-prob under the policy - log-prob under the reference), mixed by weight."""
        mixed = np.zeros(batch.num_rows)
        for policy, weight in self.weights().items():
            mixed += weight * self._log_prob(batch, policy + side)
        return self.beta * (mixed - self._log_prob(batch, self.reference + side))

    def _log_prob(self, batch: pa.RecordBatch, signal: str) -> Float64s:
        total = numbers(batch, f"{signal}_logp")
        return (
            total if self.normalise == "sum" else ratio(total, numbers(batch, f"{signal}_tokens"))
        )


class ImplicitReward(_ImplicitReward):
    """Implicit reward of a completion: beta * (log-prob under policy - under reference).

    Either sign. For one side of a pair name the stages with ``_chosen`` or ``_rejected`` behind.

    Example:
        >>> batch = pa.record_batch({"policy_logp": [-3.5], "reference_logp": [-4.75]})
        >>> ImplicitReward().compute(batch)["implicit_reward"].to_pylist()
        [0.125]
    """

    operator: Literal["implicit_reward"] = "implicit_reward"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = _DPO

    def reads(self) -> set[str]:
        return self.parts("")

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return [self.reward(batch, "")]


class ImplicitRewardMargin(_ImplicitReward):
    """Implicit reward of the chosen completion less that of the rejected one; either sign.

    Beside it the two rewards, and DPO's loss of the pair, -log sigmoid(margin). What TRL logs as
    ``rewards/margins``, ``rewards/chosen`` and ``rewards/rejected``.

    SeRA mixes the margins of successive policies, which damps what one of them has overfitted to:
    ``policy: {this: 0.7, the_one_before: 0.3}`` (weights unconfirmed).

    Example:
        >>> columns = {
        ...     "policy_chosen_logp": [-3.5],
        ...     "reference_chosen_logp": [-4.75],
        ...     "policy_rejected_logp": [-4.0],
        ...     "reference_rejected_logp": [-3.5],
        ... }
        >>> found = ImplicitRewardMargin().compute(pa.record_batch(columns))
        >>> [round(value, 6) for value in found.to_pylist()[0].values()]
        [0.175, 0.125, -0.05, 0.60947]
    """

    operator: Literal["implicit_reward_margin"] = "implicit_reward_margin"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        f"{_DPO}; Ko et al. 2025, SeRA: self-reviewing and alignment of LLMs using implicit reward "
        "margins"
    )

    def reads(self) -> set[str]:
        return self.parts("_chosen") | self.parts("_rejected")

    def columns(self) -> tuple[str, ...]:
        """The margin by the stage's name, then ``_chosen``, ``_rejected`` and ``_dpo_loss``."""
        return (self.stage, *(f"{self.stage}_{part}" for part in (*SIDES, "dpo_loss")))

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        chosen, rejected = (self.reward(batch, f"_{side}") for side in SIDES)
        margin = chosen - rejected
        return [margin, chosen, rejected, 0.0 - log_sigmoid(margin)]


class _OfPair(ColumnScorer):
    """A score of a pair under one model."""

    parts: ClassVar[tuple[str, ...]] = ("logp", "tokens")

    def signal_name(self) -> str:
        """The stage that ran the model."""
        raise NotImplementedError

    def reads(self) -> set[str]:
        return {f"{self.signal_name()}_{side}_{part}" for side in SIDES for part in self.parts}

    def difference(self, batch: pa.RecordBatch) -> tuple[Float64s, Float64s]:
        """Log-prob of the chosen completion less that of the rejected one; as sums, and means."""
        signal = self.signal_name()
        totals = [numbers(batch, f"{signal}_{side}_logp") for side in SIDES]
        means = [
            ratio(total, numbers(batch, f"{signal}_{side}_tokens"))
            for total, side in zip(totals, SIDES, strict=True)
        ]
        return totals[0] - totals[1], means[0] - means[1]


class _UnderReference(_OfPair):
    """A score of a pair under the reference model."""

    reference: str = Field(
        default="reference", description="stage of `logprobs` under the reference model"
    )

    def signal_name(self) -> str:
        return self.reference


class ReferenceMargin(_UnderReference):
    """How much likelier the reference model finds the chosen completion, in nats; either sign.

    log p(chosen) - log p(rejected) of sums, and ``_per_token`` of means, which the lengths of the
    two do not move. Far from zero the reference tells the two apart: such pairs are held to be
    clear, and 30 to 50 % of the pairs to be enough. The abstract does not give the formula or the
    direction: this reading is unconfirmed.

    Example:
        >>> columns = {
        ...     "reference_chosen_logp": [-4.75],
        ...     "reference_chosen_tokens": [3],
        ...     "reference_rejected_logp": [-3.5],
        ...     "reference_rejected_tokens": [2],
        ... }
        >>> found = ReferenceMargin().compute(pa.record_batch(columns)).to_pylist()[0]
        >>> [round(value, 6) for value in found.values()]
        [-1.25, 0.166667]
    """

    operator: Literal["reference_margin"] = "reference_margin"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Diwan et al. 2025, Clear preferences leave traces: reference model-guided sampling for "
        "preference learning"
    )

    def columns(self) -> tuple[str, ...]:
        return (self.stage, f"{self.stage}_per_token")

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return self.difference(batch)


class PreferenceDifficulty(_UnderReference):
    """How far the reference model's ranking of a pair is from right, in nats; either sign.

    c = log p(rejected) - log p(chosen) under the reference, of sums, and ``_per_token`` of means.
    Above 0 the reference ranks the pair wrongly, and DPO has to bring its loss down to
    ``_flip_loss`` = -log sigmoid(beta * c) before the ranking turns: hardly below log 2 for slight
    errors, out of reach for large ones.

    Example:
        >>> columns = {
        ...     "reference_chosen_logp": [-20.0],
        ...     "reference_chosen_tokens": [5],
        ...     "reference_rejected_logp": [-10.0],
        ...     "reference_rejected_tokens": [5],
        ... }
        >>> found = PreferenceDifficulty().compute(pa.record_batch(columns)).to_pylist()[0]
        >>> [round(value, 6) for value in found.values()]
        [10.0, 2.0, 0.313262]
    """

    operator: Literal["preference_difficulty"] = "preference_difficulty"
    beta: float = Field(default=0.1, gt=0, description="that of the DPO training that is meant")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = f"{_RANKINGS} (theorem on the loss at which a ranking flips)"

    def columns(self) -> tuple[str, ...]:
        return (self.stage, f"{self.stage}_per_token", f"{self.stage}_flip_loss")

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        sums, means = self.difference(batch)
        difficulty = 0.0 - sums
        return [difficulty, 0.0 - means, 0.0 - log_sigmoid(self.beta * difficulty)]


class RankingAccuracy(_OfPair):
    """Whether a model finds the chosen completion at least as likely as the rejected one (1 or 0).

    Of sums of log-probs, and ``_per_token`` of means. The mean over rows is the ranking accuracy of
    the model.

    Example:
        >>> columns = {
        ...     "policy_chosen_logp": [-3.5, -6.0],
        ...     "policy_chosen_tokens": [3, 6],
        ...     "policy_rejected_logp": [-4.0, -4.0],
        ...     "policy_rejected_tokens": [2, 2],
        ... }
        >>> found = RankingAccuracy().compute(pa.record_batch(columns))
        >>> found["ranking_accuracy"].to_pylist(), found["ranking_accuracy_per_token"].to_pylist()
        ([1.0, 0.0], [1.0, 1.0])
    """

    operator: Literal["ranking_accuracy"] = "ranking_accuracy"
    signal: str = Field(default="policy", description="stage of `logprobs` under the model")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = _RANKINGS

    def signal_name(self) -> str:
        return self.signal

    def columns(self) -> tuple[str, ...]:
        return (self.stage, f"{self.stage}_per_token")

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return [_at_least(found, 0.0) for found in self.difference(batch)]


class IdealisedRankingAccuracy(_UnderReference):
    """Whether a model that met DPO's objective perfectly would rank the pair right (1 or 0).

    Its odds for the chosen completion are those of the reference times (alpha / (1 - alpha)) to the
    power of 1 / beta, where alpha is the share of raters who prefer it. The mean over rows is the
    ranking accuracy that a data set allows. As sums, and ``_per_token`` as means of log-probs.

    Example:
        >>> columns = {
        ...     "reference_chosen_logp": [-20.0, -40.0],
        ...     "reference_chosen_tokens": [5, 5],
        ...     "reference_rejected_logp": [-10.0, -10.0],
        ...     "reference_rejected_tokens": [5, 5],
        ... }
        >>> found = IdealisedRankingAccuracy(alpha=0.9).compute(pa.record_batch(columns))
        >>> found["idealised_ranking_accuracy"].to_pylist()
        [1.0, 0.0]
    """

    operator: Literal["idealised_ranking_accuracy"] = "idealised_ranking_accuracy"
    beta: float = Field(default=0.1, gt=0, description="that of the DPO training that is meant")
    alpha: Annotated[float, Field(ge=0, le=1)] | str = Field(
        description="share of raters who prefer the chosen completion (0 to 1), or the column that "
        "holds it"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = _RANKINGS

    def reads(self) -> set[str]:
        return super().reads() | ({self.alpha} if isinstance(self.alpha, str) else set())

    def columns(self) -> tuple[str, ...]:
        return (self.stage, f"{self.stage}_per_token")

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        alpha = (
            numbers(batch, self.alpha)
            if isinstance(self.alpha, str)
            else np.full(batch.num_rows, self.alpha)
        )
        # A share outside 0 to 1 has no logarithm, and so no score.
        gain = (np.log(alpha) - np.log(1.0 - alpha)) / self.beta
        return [_at_least(found + gain, 0.0) for found in self.difference(batch)]


def _at_least(value: Float64s, threshold: float) -> Float64s:
    """1 or 0, nan where there is no value."""
    return np.where(np.isnan(value), np.nan, (value >= threshold).astype(np.float64))


class _OfRewards(ColumnScorer):
    """A score of the difference between two reward columns."""

    chosen: str = Field(
        default="score_chosen", description="column with the reward of the chosen completion"
    )
    rejected: str = Field(
        default="score_rejected", description="column with the reward of the rejected completion"
    )

    def reads(self) -> set[str]:
        return {self.chosen, self.rejected}

    def margin(self, batch: pa.RecordBatch) -> Float64s:
        return numbers(batch, self.chosen) - numbers(batch, self.rejected)


class MarginAdaptiveWeight(_OfRewards):
    """MADPO's weight of a pair's DPO loss, from its margin h under a reward model (0 and more).

    sigmoid(c * h) / sigmoid(h) where h > -tau, else 1, with
    c = c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) * exp(lam * (|h| - tau))) and
    c_min = 1 / c_max. Slightly above 1 for hard pairs, 1 for easy ones, far below 1 where the
    reward model contradicts the label: in effect it damps label noise.

    Example:
        >>> columns = {"score_chosen": [0.88, 0.0, 1.0], "score_rejected": [0.0, 0.0, 3.0]}
        >>> found = MarginAdaptiveWeight().compute(pa.record_batch(columns))
        >>> [round(w, 3) for w in found["margin_adaptive_weight"].to_pylist()]
        [1.206, 1.0, 0.158]
    """

    operator: Literal["margin_adaptive_weight"] = "margin_adaptive_weight"
    c_max: float = Field(default=2.0, gt=1, description="largest factor of the margin")
    lam: float = Field(default=1.0, gt=0, description="how steeply the factor falls around tau")
    tau: float = Field(
        default=math.log(0.999 / 0.001),
        gt=0,
        description="margin from which a pair is easy; of a probability of 0.999",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Margin adaptive DPO: leveraging reward model for granular control (2025)"
    )

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        h = self.margin(batch)
        low, high = 1.0 / self.c_max, self.c_max
        rise = (high - 1.0) / (1.0 - low) * np.exp(self.lam * (np.abs(h) - self.tau))
        factor = low + (high - low) / (1.0 + rise)
        weight = np.exp(log_sigmoid(factor * h) - log_sigmoid(h))
        return [np.where(h <= -self.tau, 1.0, weight)]


class DynamicRewardScaling(_OfRewards):
    """MM-RLHF's beta of every pair: larger where the rewards of the two lie far apart.

    beta * (1 + w * (1 - exp(-k * delta))), between beta and (1 + w) * beta, of the margin delta of
    the rewards. A margin below 0, where the rewards contradict the label, counts as 0.

    Example:
        >>> columns = {"score_chosen": [0.0, 2.0], "score_rejected": [0.0, 0.0]}
        >>> found = DynamicRewardScaling().compute(pa.record_batch(columns))
        >>> [round(b, 6) for b in found["dynamic_reward_scaling"].to_pylist()]
        [0.1, 0.131606]
    """

    operator: Literal["dynamic_reward_scaling"] = "dynamic_reward_scaling"
    beta: float = Field(default=0.1, gt=0, description="beta of a pair without a margin")
    w: float = Field(default=0.5, ge=0, description="how much beta may grow (0.5 is unconfirmed)")
    k: float = Field(default=0.5, gt=0, description="how soon it grows (0.5 is unconfirmed)")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "MM-RLHF: the next step forward in multimodal LLM alignment (2025)"

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        delta = np.maximum(self.margin(batch), 0.0)
        return [self.beta * (1.0 - self.w * np.expm1(-self.k * delta))]
