"""Answers to prompts, sampled from a language model and scored under two."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from tamis.scoring.completions import load_tokenizer
from tamis.scoring.hardware import loaded_once, model_threads
from tamis.scoring.language_files import (
    find_language_model,
    locate_language_model,
    state_bytes,
    words_of,
)
from tamis.scoring.language_model import LanguageModel, context_length
from tamis.scoring.logprobs import Logprobs
from tamis.scoring.model_files import ModelFiles
from tamis.scoring.operator import Operator, Signal
from tamis.scoring.sampling import BATCH_CHANCES, BATCH_TOKENS, CHANCE_BYTES, Sampler
from tamis.storage.hashing import hash_batch
from tamis.storage.kernels import Int64s, UInt64s
from tamis.storage.messages import answers as as_answers
from tamis.storage.places import Place


class Drawing(Operator):
    """How answers are drawn from a model."""

    samples: int = Field(
        default=4, ge=1, le=1024, description="answers to every prompt (default not confirmed)"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="what logits are divided by (default not confirmed)"
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="draw from the most probable tokens that together have this probability "
        "(default not confirmed)",
    )
    max_new_tokens: int = Field(
        default=256, ge=1, description="tokens of an answer at the most (default not confirmed)"
    )
    seed: int = Field(default=0, ge=0, description="another seed draws other answers")


class Responses(Drawing, Signal):
    """Answers that a policy gives to every prompt, with their log-probabilities.

    Each is drawn token by token from the policy, at a temperature and from a nucleus (top p). The
    random numbers come from the prompt's content, the answer's number and the seed, so that order,
    sharding and workers do not matter, up to numbers that lie within rounding of the border between
    two tokens. Then each is scored under policy and reference, as text, the way a trainer will
    read it; so an answer is the text without special tokens. What the model's own generation
    settings say beside the tokens that end an answer is not used.

    Columns, by the stage's name: ``_texts`` (list of strings, `samples` of them, null where the
    prompt cannot be answered), ``_ended`` (list of bool: whether the policy ended the answer, or
    `max_new_tokens` did), ``_policy_logp`` and ``_reference_logp`` (lists of float64, sums over the
    tokens in nats, null where an answer cannot be scored, as an empty one), ``_refused`` (string:
    why the prompt cannot be answered).

    Example:
        >>> stage = Responses(policy={"model": "policy"}, reference={"model": "before"})
        >>> stage.fields().names[:2]
        ['responses_texts', 'responses_ended']
    """

    operator: Literal["responses"] = "responses"

    policy: Logprobs = Field(description="the model that answers, as a stage `logprobs` names it")
    reference: Logprobs = Field(description="the model that its answers are also scored under")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Ko et al. 2025, SeRA: Self-Reviewing and Alignment of Large Language Models using "
        "Implicit Reward Margins, arXiv 2410.09362"
    )
    roles: ClassVar[tuple[str, ...]] = ("prompt",)
    costly: ClassVar[bool] = True
    portion_bytes: ClassVar[int | None] = 1 << 14

    def resolve(self, workspace: Place) -> Self:
        models = {
            name: scoring(getattr(self, name)).resolve(workspace)
            for name in ("policy", "reference")
        }
        return self.model_copy(update=models)

    def key_parts(self) -> dict[str, Any]:
        # Their names as stages decide nothing.
        models = {name: getattr(self, name).key_parts() for name in ("policy", "reference")}
        return {**super().key_parts(), **models}

    def memory(self) -> int:
        return self.policy.memory() + self.reference.memory() + self.drawing_memory()

    def drawing_memory(self) -> int:
        """Bytes beside the models that sampling takes at the most on a processor, as long as no
        prompt alone is longer than a batch.
        """
        folder, _ = locate_language_model(self.policy.model, self.policy.revision)
        states = BATCH_TOKENS["cpu"] * state_bytes(folder, self.policy.model)
        chances = max(BATCH_CHANCES["cpu"], words_of(folder) or 1) * CHANCE_BYTES
        return model_threads() * (states + chances)

    def fields(self) -> pa.Schema:
        def column(name: str, kind: pa.DataType) -> pa.Field:
            return pa.field(f"{self.stage}_{name}", kind)

        return pa.schema(
            [
                column("texts", pa.list_(pa.string())),
                column("ended", pa.list_(pa.bool_())),
                column("policy_logp", pa.list_(pa.float64())),
                column("reference_logp", pa.list_(pa.float64())),
                column("refused", pa.string()),
            ]
        )

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        prompts = batch["prompt"]
        sampler = self._sampler()
        read = sampler.read(prompts.to_pylist(), self.max_new_tokens)
        refused = pa.array([r if isinstance(r, str) else None for r in read], pa.string())
        answered = np.flatnonzero(np.asarray(refused.is_null()))
        parents = np.repeat(answered, self.samples)
        ids = [found for found in read if not isinstance(found, str) for _ in range(self.samples)]
        answers = sampler.answers(
            ids,
            self.keys(prompts)[answered].ravel(),
            self.max_new_tokens,
            self.temperature,
            self.top_p,
        )
        texts = pa.array([answer.text for answer in answers], pa.string())
        models = [scoring(self.policy), scoring(self.reference)]
        logps = _scored(models, prompts, parents, texts)
        ended = pa.array([answer.ended for answer in answers], pa.bool_())
        counts = np.where(np.asarray(refused.is_null()), self.samples, 0)
        offsets = pa.array(np.r_[0, np.cumsum(counts)].astype(np.int32))
        lists = [
            pa.ListArray.from_arrays(offsets, values, mask=refused.is_valid())
            for values in (texts, ended, *logps)
        ]
        return pa.record_batch([*lists, refused], schema=self.fields())

    def _sampler(self) -> Sampler:
        files = find_language_model(self.policy.model, self.policy.revision)
        context = context_length(files, self.policy.max_tokens)
        return _sampler(self.policy.loaded(), files, context)

    def keys(self, prompts: pa.Array) -> UInt64s:
        """Of every answer to every prompt, a row each: from content, number and seed."""
        found = hash_batch(pa.record_batch({"prompt": prompts}))
        numbers = np.arange(self.samples, dtype=np.uint64)
        told = pa.record_batch(
            {
                "high": pa.array(np.repeat(found.high, self.samples)),
                "low": pa.array(np.repeat(found.low, self.samples)),
                "sample": pa.array(np.tile(numbers, len(prompts))),
                "seed": pa.repeat(self.seed, len(prompts) * self.samples),
            }
        )
        return hash_batch(told).high.reshape(len(prompts), self.samples)


def scoring(stage: Logprobs) -> Logprobs:
    """A stage's model as it scores answers: nothing but the sums over what is answered."""
    told = {"of": "completion", "conditioned": True, "min_k": [], "quantiles": []}
    told |= {"token_logps": False, "hidden": "none", "name": None}
    return stage.model_copy(update=told)


def _scored(
    stages: Sequence[Logprobs], prompts: pa.Array, parents: Int64s, texts: pa.Array
) -> list[pa.Array]:
    """Summed log-probabilities of answers under several models; null where there are none.

    Equal answers to one prompt are scored once, and one without a word not at all.
    """
    codes = texts.dictionary_encode()
    _, first, at = np.unique(
        np.stack([parents, np.asarray(codes.indices, np.int64)], axis=1),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    said = np.asarray(pc.not_equal(pc.utf8_trim_whitespace(texts), ""), np.bool_)[first]
    asked = first[said]
    place = np.full(len(first), -1)
    place[said] = np.arange(len(asked))
    known = pa.array(place[at.ravel()], mask=place[at.ravel()] < 0)
    prompt = prompts.take(pa.array(parents[asked]))
    completion = as_answers(texts.take(pa.array(asked)), prompts.type)
    found = []
    for stage in stages:
        scored = stage.compute(pa.record_batch({"prompt": prompt, "completion": completion}))
        found.append(scored[f"{stage.stage}_logp"].take(known))
    return found


@loaded_once(1)
def _sampler(model: LanguageModel, files: ModelFiles, context: int) -> Sampler:
    """A loaded model as it answers; its weights are those that it scores with."""
    return Sampler(model.unpacked(), load_tokenizer(files), context)
