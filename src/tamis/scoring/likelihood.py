"""Scores of one model from the sums that the signal `logprobs` leaves of every text.

All but `excess_loss` and the two definitions of IFD read one signal, named by `signal`: a stage's
name, with ``_chosen`` or ``_rejected`` behind it for one side of a pair.
"""

import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from tamis.scoring.column_scorer import ColumnScorer, Float64s, at_level, numbers, ratio
from tamis.scoring.operator import Scorer
from tamis.storage.errors import UserError
from tamis.storage.kernels import string_buffers

_LN2 = float(np.log(2.0))
_DECILES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

Share = Annotated[float, Field(ge=0, le=1)]


class _OfSignal(ColumnScorer):
    """A score of one signal's columns."""

    signal: str = Field(
        default="logprobs",
        description="stage of `logprobs` whose columns it reads; with `_chosen` or `_rejected` "
        "behind it for one side of a pair",
    )

    #: Columns of the signal, without its name.
    parts: ClassVar[tuple[str, ...]] = ("logp", "tokens")

    def reads(self) -> set[str]:
        return {f"{self.signal}_{part}" for part in self.parts}

    def part(self, batch: pa.RecordBatch, part: str) -> Float64s:
        """A column of the signal."""
        return numbers(batch, f"{self.signal}_{part}")


def surprisal(batch: pa.RecordBatch, signal: str) -> Float64s:
    """Negative log-likelihood, in nats."""
    return 0.0 - numbers(batch, f"{signal}_logp")  # not -x, which would make -0.0 of a zero


def mean_loss(batch: pa.RecordBatch, signal: str) -> Float64s:
    """Negative log-likelihood over tokens, in nats; nan where there is none."""
    return ratio(surprisal(batch, signal), numbers(batch, f"{signal}_tokens"))


def loss_difference(batch: pa.RecordBatch, first: str, second: str) -> Float64s:
    """Mean loss of a token under one signal, less that under another.

    Raises:
        UserError: if the two count different tokens, whose means cannot be compared.
    """
    tokens = [numbers(batch, f"{signal}_tokens") for signal in (first, second)]
    both = ~np.isnan(tokens[0]) & ~np.isnan(tokens[1])
    if (tokens[0][both] != tokens[1][both]).any():
        raise UserError(
            f"{first!r} and {second!r} count different tokens: their losses of a token cannot be "
            "compared",
            mend="score both with models of one tokenizer, or take `excess_loss` with `unit: byte`",
        )
    return mean_loss(batch, first) - mean_loss(batch, second)


class Loss(_OfSignal):
    """Mean negative log-likelihood of a token, in nats (0 and more).

    Also published as Chow-Average, the uncertainty normalised by length.

    Example:
        >>> batch = pa.record_batch({"logprobs_logp": [-3.5], "logprobs_tokens": [3]})
        >>> round(Loss().compute(batch)["loss"][0].as_py(), 6)
        1.166667
    """

    operator: Literal["loss"] = "loss"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Gupta et al. 2024, Language model cascades: token-level uncertainty and beyond "
        "(Chow-Average)"
    )

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return [mean_loss(batch, self.signal)]


class Perplexity(_OfSignal):
    """exp of the mean negative log-likelihood of a token (1 and more; inf where that overflows).

    Example:
        >>> batch = pa.record_batch({"logprobs_logp": [-3.5], "logprobs_tokens": [3]})
        >>> round(Perplexity().compute(batch)["perplexity"][0].as_py(), 6)
        3.211271
    """

    operator: Literal["perplexity"] = "perplexity"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Jelinek et al. 1977, Perplexity: a measure of the difficulty of speech recognition tasks"
    )

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return [np.exp(mean_loss(batch, self.signal))]


class BitsPerByte(_OfSignal):
    """Negative log-likelihood in bits over the UTF-8 bytes of the text (0 and more).

    Unlike the loss of a token it can be compared between tokenizers.

    Example:
        >>> batch = pa.record_batch({"logprobs_logp": [-5.545177], "logprobs_bytes": [4]})
        >>> round(BitsPerByte().compute(batch)["bits_per_byte"][0].as_py(), 6)
        2.0
    """

    operator: Literal["bits_per_byte"] = "bits_per_byte"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Gao et al. 2020, The Pile (bits per UTF-8 encoded byte)"
    parts: ClassVar[tuple[str, ...]] = ("logp", "bytes")

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return [ratio(surprisal(batch, self.signal) / _LN2, self.part(batch, "bytes"))]


class ChowSum(_OfSignal):
    """Negative log-likelihood of the whole text, in nats (0 and more): grows with its length.

    Chow-Average is `loss`, Chow-Quantile `chow_quantile`.

    Example:
        >>> batch = pa.record_batch({"logprobs_logp": [-3.5, None]})
        >>> ChowSum().compute(batch)["chow_sum"].to_pylist()
        [3.5, None]
    """

    operator: Literal["chow_sum"] = "chow_sum"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = Loss.paper.replace("Average", "Sum")
    parts: ClassVar[tuple[str, ...]] = ("logp",)

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return [surprisal(batch, self.signal)]


class AtLevel(_OfSignal):
    """A score of one of the numbers that a signal leaves for each of its levels."""

    levels: tuple[Share, ...]

    #: The column of these numbers, and the parameter of `logprobs` that says its levels.
    listed: ClassVar[str]

    @property
    def list_column(self) -> str:
        """Name of the column of lists."""
        return f"{self.signal}_{self.listed}"

    def numbers(self) -> set[str]:
        return self.reads() - {self.list_column}

    def check_levels(self, giver: Scorer | None) -> None:
        """Hold its levels against those of the stage that gives its lists, if that has any.

        Raises:
            UserError: if they differ.
        """
        given = getattr(giver, self.listed, None)
        if given is not None and tuple(given) != self.levels:
            raise UserError(
                f"{self.stage}: `levels` is {list(self.levels)}, `{self.listed}` of the stage "
                f"that it reads is {list(given)}",
                where="recipe",
                mend=f"set `levels: {list(given)}`",
            )

    def at(self, batch: pa.RecordBatch, level: float) -> Float64s:
        """The numbers of one of the levels."""
        return at_level(batch, self.list_column, self.levels, level, self.listed)


class ChowQuantile(AtLevel):
    """A quantile of the negative log-probabilities of a text's tokens, in nats (0 and more).

    A high quantile finds texts with a few tokens that the model did not expect, whatever their
    length. Several quantiles, each under a name of its own, make the vector of features from which
    the paper learns when a larger model is needed.

    Example:
        >>> batch = pa.record_batch({"logprobs_quantiles": [[0.5, 1.0, 2.0]]})
        >>> scorer = ChowQuantile(quantile=1.0, levels=(0.0, 0.5, 1.0))
        >>> scorer.compute(batch)["chow_quantile"].to_pylist()
        [2.0]
    """

    operator: Literal["chow_quantile"] = "chow_quantile"
    quantile: float = Field(
        default=0.9, ge=0, le=1, description="which; one of `levels` (0.9 is unconfirmed)"
    )
    levels: tuple[Share, ...] = Field(
        default=_DECILES, description="`quantiles` of the stage that gives the signal"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = Loss.paper.replace("Average", "Quantile")
    parts: ClassVar[tuple[str, ...]] = ("quantiles",)
    listed: ClassVar[str] = "quantiles"

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.quantile not in self.levels:
            raise ValueError(f"quantile {self.quantile} is none of the levels {list(self.levels)}")
        return self

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return [self.at(batch, self.quantile)]


class Top1Accuracy(_OfSignal):
    """Share of a text's tokens that the model held most likely (0 to 1).

    Example:
        >>> batch = pa.record_batch({"logprobs_top1": [2], "logprobs_tokens": [8]})
        >>> Top1Accuracy().compute(batch)["top1_accuracy"].to_pylist()
        [0.25]
    """

    operator: Literal["top1_accuracy"] = "top1_accuracy"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    parts: ClassVar[tuple[str, ...]] = ("top1", "tokens")

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return [ratio(self.part(batch, "top1"), self.part(batch, "tokens"))]


class MeanEntropy(_OfSignal):
    """Mean entropy of the model's predictions over a text's tokens, in nats (0 and more).

    What the model did not know before it saw the token, where `loss` says how wrong it was.

    Example:
        >>> batch = pa.record_batch({"logprobs_entropy": [6.0], "logprobs_tokens": [4]})
        >>> MeanEntropy().compute(batch)["mean_entropy"].to_pylist()
        [1.5]
    """

    operator: Literal["mean_entropy"] = "mean_entropy"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Shannon 1948 (conditional entropy of the next symbol)"
    parts: ClassVar[tuple[str, ...]] = ("entropy", "tokens")

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return [ratio(self.part(batch, "entropy"), self.part(batch, "tokens"))]


class ExcessLoss(_OfSignal):
    """Loss of a model less that of a reference on the same text, in nats; either sign.

    High: learnable and not yet learnt, if the reference was trained on data that is wanted.
    RHO-LOSS keeps the highest of a batch (its reference is trained on held-out rows), Rho-1 does so
    for tokens. As a membership test the reference calibrates: low is a sign of a member.

    Example:
        >>> batch = pa.record_batch(
        ...     {
        ...         "logprobs_logp": [-6.0],
        ...         "logprobs_tokens": [3],
        ...         "reference_logp": [-4.5],
        ...         "reference_tokens": [3],
        ...     }
        ... )
        >>> ExcessLoss().compute(batch)["excess_loss"].to_pylist()
        [0.5]
    """

    operator: Literal["excess_loss"] = "excess_loss"
    reference: str = Field(
        default="reference", description="stage of `logprobs` under the reference model"
    )
    unit: Literal["token", "byte"] = Field(
        default="token",
        description="what the loss is a mean over; models of different tokenizers need `byte`",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Mindermann et al. 2022, Prioritized training on points that are learnable, worth "
        "learning, and not yet learnt (RHO-LOSS); Lin et al. 2024, Rho-1"
    )

    def reads(self) -> set[str]:
        return {
            f"{signal}_{part}"
            for signal in (self.signal, self.reference)
            for part in ("logp", f"{self.unit}s")
        }

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        if self.unit == "token":
            return [loss_difference(batch, self.signal, self.reference)]
        mine, theirs = (
            ratio(surprisal(batch, signal), numbers(batch, f"{signal}_bytes"))
            for signal in (self.signal, self.reference)
        )
        return [mine - theirs]


class MinKProb(AtLevel):
    """Mean log-probability of a text's least likely tokens, in nats (0 and less).

    Of n tokens the floor(n * k) least likely ones count, at least one. High for texts that were
    trained on, which hold few tokens that surprise the model.

    Example:
        >>> batch = pa.record_batch({"logprobs_min_k": [[-9.0]], "logprobs_tokens": [11]})
        >>> MinKProb().compute(batch)["min_k_prob"].to_pylist()
        [-4.5]
    """

    operator: Literal["min_k_prob"] = "min_k_prob"
    k: float = Field(
        default=0.2, gt=0, le=1, description="share of the tokens that counts; one of `levels`"
    )
    levels: tuple[Share, ...] = Field(
        default=(0.2,), description="`min_k` of the stage that gives the signal"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Shi et al. 2024, Detecting pretraining data from large language models (Min-K% Prob; "
        "k = 20 %)"
    )
    parts: ClassVar[tuple[str, ...]] = ("min_k", "tokens")
    listed: ClassVar[str] = "min_k"

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.k not in self.levels:
            raise ValueError(f"k {self.k} is none of the levels {list(self.levels)}")
        return self

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        total = self.at(batch, self.k)
        tokens = self.part(batch, "tokens")
        counted = np.where(tokens > 0, np.maximum(1.0, np.floor(tokens * self.k)), tokens)
        return [ratio(total, counted)]


class ZlibRatio(_OfSignal):
    """Loss (nats a token) over the bytes that zlib compresses the text to (0 and more).

    Low for texts that the model finds likelier than their repetition explains, such as those that
    it was trained on. As in MIMIR: zlib at level 6, of the text as UTF-8.

    Example:
        >>> batch = pa.record_batch(
        ...     {"text": ["ab" * 9], "logprobs_logp": [-24.0], "logprobs_tokens": [2]}
        ... )
        >>> ZlibRatio().compute(batch)["zlib_ratio"].to_pylist()
        [1.0]
    """

    operator: Literal["zlib_ratio"] = "zlib_ratio"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Carlini et al. 2021, Extracting training data from large language models; Duan et al. "
        "2024, Do membership inference attacks work on large language models? (MIMIR)"
    )
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "zlib": zlib.ZLIB_RUNTIME_VERSION}

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        data, offsets = string_buffers(batch["text"])
        bounds = offsets.tolist()
        text = data.data
        # A call a row, of which zlib itself takes all but a few per cent.
        sizes = [len(zlib.compress(text[begin:end], 6)) for begin, end in pairwise(bounds)]
        return [ratio(mean_loss(batch, self.signal), np.array(sizes, np.float64))]


class _InstructionFollowing(ColumnScorer):
    """How much a prompt helps with its answer, from two signals of the answer."""

    conditioned: str = Field(
        default="conditioned", description="stage of `logprobs` of the answer after its prompt"
    )
    alone: str = Field(
        default="alone",
        description="stage of `logprobs` of the answer alone (`conditioned: false`)",
    )

    def reads(self) -> set[str]:
        return {
            f"{s}_{part}" for s in (self.conditioned, self.alone) for part in ("logp", "tokens")
        }

    def losses(self, batch: pa.RecordBatch) -> tuple[Float64s, Float64s]:
        """Of the answer after its prompt, and alone; nan where the two are not of one answer.

        Alone it may have a token less: the first, where no BOS comes before it.
        """
        less = numbers(batch, f"{self.conditioned}_tokens") - numbers(batch, f"{self.alone}_tokens")
        alone = mean_loss(batch, self.alone)
        return mean_loss(batch, self.conditioned), np.where((less < 0) | (less > 1), np.nan, alone)


class IfdLoss(_InstructionFollowing):
    """Mean loss of an answer given its prompt over that of the answer alone (0 and more).

    Instruction-following difficulty as Cherry LLM defines it. Rows over 1, whose prompt makes the
    answer less likely, are left out there; the highest of the others are kept. Not the ratio of
    perplexities: that is `ifd_perplexity`.

    Example:
        >>> batch = pa.record_batch(
        ...     {
        ...         "conditioned_logp": [-6.96],
        ...         "conditioned_tokens": [10],
        ...         "alone_logp": [-7.61],
        ...         "alone_tokens": [10],
        ...     }
        ... )
        >>> round(IfdLoss().compute(batch)["ifd_loss"][0].as_py(), 3)
        0.915
    """

    operator: Literal["ifd_loss"] = "ifd_loss"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Li et al. 2024, From quantity to quality: boosting LLM performance with self-guided data "
        "selection for instruction tuning (Cherry LLM, equations 3 to 5)"
    )

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        conditioned, alone = self.losses(batch)
        return [ratio(conditioned, alone)]


class IfdPerplexity(_InstructionFollowing):
    """Perplexity of an answer given its prompt over that of the answer alone (above 0).

    Instruction-following difficulty as Superfiltering defines it: exp of the difference of the two
    mean losses, so it orders rows otherwise than their ratio, `ifd_loss`.

    Example:
        >>> batch = pa.record_batch(
        ...     {
        ...         "conditioned_logp": [-6.96],
        ...         "conditioned_tokens": [10],
        ...         "alone_logp": [-7.61],
        ...         "alone_tokens": [10],
        ...     }
        ... )
        >>> round(IfdPerplexity().compute(batch)["ifd_perplexity"][0].as_py(), 3)
        0.937
    """

    operator: Literal["ifd_perplexity"] = "ifd_perplexity"

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Li et al. 2024, Superfiltering: weak-to-strong data filtering for fast instruction-tuning "
        "(equations 1 and 2)"
    )

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        conditioned, alone = self.losses(batch)
        return [np.exp(conditioned - alone)]
