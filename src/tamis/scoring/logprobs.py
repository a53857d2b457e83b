"""What a language model thinks of every token: the pass that losses and rewards are made from."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from tamis.scoring.completions import Ragged, Sequences, load_sequence_tokenizer, offsets_of
from tamis.scoring.hardware import Precision, device_for, precision_for
from tamis.scoring.language_files import find_language_model, locate_language_model, width_of
from tamis.scoring.language_model import (
    LanguageModel,
    Scored,
    context_length,
    load_language_model,
)
from tamis.scoring.model_files import ModelFiles, bytes_of, need_package
from tamis.scoring.operator import Signal
from tamis.storage.kernels import Int64s
from tamis.storage.places import Place

Float64s = npt.NDArray[np.float64]
Fraction = Annotated[float, Field(ge=0, le=1)]

_LIBRARIES = ("tokenizers", "torch", "transformers")
_ROLES = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "pair": ("prompt", "chosen", "rejected"),
}
_NOT_FINITE = "the model's logits are not finite"


class Logprobs(Signal):
    """Log-probabilities of a text, a completion or a pair of completions under a language model.

    One forward pass of a causal language model of transformers gives all columns. Tokens and the
    boundary of a completion are those of TRL's DPOTrainer 1.16, and so are the sums (its
    `ref_chosen_logps` and `ref_rejected_logps`). `model` names a folder or a model of the Hugging
    Face hub; weights must be safetensors.

    A row of which nothing can be scored has null in all columns but the one that says why; a run
    puts it in quarantine.

    Example:
        >>> policy = Logprobs(name="policy", model="./my-model", of="pair")
        >>> policy.used_roles()
        ('prompt', 'chosen', 'rejected')
    """

    operator: Literal["logprobs"] = "logprobs"

    model: str = Field(description="folder of a causal language model, or its name on the hub")
    revision: str | None = Field(
        default=None, description="branch, tag or commit on the hub; a run notes the commit"
    )
    digest: str | None = Field(
        default=None, description="of the model's files; if given, others are refused"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="numbers it computes in: `auto` is bfloat16 where the hardware has it",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`auto` is cuda where there is one"
    )
    of: Literal["text", "completion", "pair"] = Field(
        default="text",
        description="what is scored: the role `text`, `completion` after `prompt`, or `chosen` and "
        "`rejected` after `prompt`",
    )
    conditioned: bool = Field(
        default=True,
        description="whether the prompt is read; if not, the same tokens of the completion are "
        "scored alone, but for the first where the tokenizer puts no BOS before a text",
    )
    max_tokens: int | None = Field(
        default=None, ge=2, description="most tokens of a row; as many as the model reads"
    )
    over_long: Literal["keep_start", "keep_end", "quarantine"] = Field(
        default="keep_start",
        description="what becomes of a longer row: its first or last tokens are scored and the row "
        "is marked, or it goes to quarantine",
    )
    min_k: list[Fraction] = Field(
        default=[0.2],
        description="for each, the sum of this fraction of the tokens is given, the least likely",
    )
    quantiles: list[Fraction] = Field(
        default=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        description="quantiles that are given of the tokens' negative log-probabilities",
    )
    token_logps: bool = Field(default=False, description="give the log-probability of every token")
    hidden: Literal["none", "sum", "mean"] = Field(
        default="none",
        description="give the sum or the mean of the last hidden states that predict the scored "
        "tokens",
    )

    costly: ClassVar[bool] = True
    portion_bytes: ClassVar[int | None] = 1 << 19
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Rafailov et al. 2023 (DPO), as TRL 1.16 computes it"
    roles: ClassVar[tuple[str, ...]] = ("text", "prompt", "completion", "chosen", "rejected")

    @model_validator(mode="after")
    def _has_prompt(self) -> Self:
        if self.of == "text" and not self.conditioned:
            raise ValueError("conditioned: a text has no prompt; leave it out, or set `of`")
        return self

    def used_roles(self) -> tuple[str, ...]:
        return _ROLES[self.of]

    def refused(self) -> str:
        return f"{self.stage}_refused"

    def resolve(self, workspace: Place) -> Self:
        """With the digest of the model's files, its commit, and what it will run on."""
        for package in ("torch", "transformers"):
            need_package(package, f"the stage {self.stage!r}", "models")
        files = self._files()
        context_length(files, self.max_tokens)
        device = device_for(self.device)
        filled: dict[str, Any] = {"digest": files.digest, "revision": files.revision}
        filled |= {"device": device, "dtype": precision_for(self.dtype, device)}
        return self.model_copy(update=filled)

    def _files(self) -> ModelFiles:
        return find_language_model(self.model, self.revision).pinned(self.digest)

    def loaded(self) -> LanguageModel:
        """The model, loaded once in a process."""
        found = self if self.digest and "auto" not in (self.dtype, self.device) else None
        found = found or self.resolve(Path())
        return load_language_model(found._files(), cast(Precision, found.dtype), found.device)

    def memory(self) -> int:
        # Measured: the libraries, the weights, and what a forward of each thread takes.
        return (1200 << 20) + 2 * bytes_of(locate_language_model(self.model, self.revision)[0])

    def key_parts(self) -> dict[str, Any]:
        """With the versions of what computes; where the files lie does not count."""
        parts = super().key_parts()
        del parts["model"], parts["revision"]
        libraries = {name: version(name) for name in _LIBRARIES}
        return {**parts, "libraries": libraries}

    def fields(self) -> pa.Schema:
        """For a text or completion, each name after that of the stage and ``_``; for a pair, after
        ``chosen_`` and ``rejected_`` besides. Null where the row is refused.

        - ``logp`` (float64): sum of the natural log-probabilities of the scored tokens, at most 0.
        - ``tokens`` (int32): scored tokens, at least 1.
        - ``bytes`` (int64): UTF-8 bytes of the scored text, without special tokens; those of a
          first token that is read and not scored are among them.
        - ``top1`` (int32): scored tokens that no other token was more likely than.
        - ``entropy`` (float64): sum over the scored tokens of the entropy of what the model
          expected there, in nats.
        - ``min_k`` (fixed-size list of float64): for every k, the sum of the lowest
          max(1, floor(tokens * k)) log-probabilities (their mean is Min-K% Prob,
          Shi et al. 2024).
        - ``quantiles`` (fixed-size list of float64): of the negative log-probabilities, linear
          between tokens as numpy's (Gupta et al. 2024, Chow-Quantile).
        - ``truncated`` (bool): whether tokens were left out.
        - ``token_logps`` (list of float32), if asked for.
        - ``hidden_sum`` or ``hidden_mean`` (fixed-size list of float32) and ``hidden_tokens``
          (int32), if asked for: of the last hidden states from the last token of the prompt on,
          that of the last token left out (Razin et al. 2025, CHES).

        And once, ``refused`` (string): why the row has no scores, null where it has.
        """
        many = [
            pa.field("logp", pa.float64()),
            pa.field("tokens", pa.int32()),
            pa.field("bytes", pa.int64()),
            pa.field("top1", pa.int32()),
            pa.field("entropy", pa.float64()),
        ]
        for name, asked in (("min_k", self.min_k), ("quantiles", self.quantiles)):
            if asked:
                many.append(pa.field(name, _vectors(pa.float64(), len(asked))))
        many.append(pa.field("truncated", pa.bool_()))
        if self.token_logps:
            item = pa.field("item", pa.float32(), nullable=False)
            many.append(pa.field("token_logps", pa.list_(item)))
        if self.hidden != "none":
            width = width_of(locate_language_model(self.model, self.revision)[0], self.model)
            many.append(pa.field(f"hidden_{self.hidden}", _vectors(pa.float32(), width)))
            many.append(pa.field("hidden_tokens", pa.int32()))
        fields = [field.with_name(f"{s}_{field.name}") for s in self._prefixes() for field in many]
        return pa.schema([*fields, pa.field(self.refused(), pa.string())])

    def _prefixes(self) -> list[str]:
        ends = ("_chosen", "_rejected") if self.of == "pair" else ("",)
        return [f"{self.stage}{end}" for end in ends]

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        model = self.loaded()
        sequences = self._sequences(batch)
        tokens = Ragged(
            np.concatenate([one.tokens.ids for one in sequences]),
            offsets_of(np.concatenate([one.tokens.lengths for one in sequences])),
        )
        context = np.concatenate([one.context for one in sequences])
        found = model.score(tokens, context, self.hidden != "none")
        rows = batch.num_rows
        refused = _reasons(sequences, found, rows)
        good = np.asarray(refused.is_null())
        schema = self.fields()
        columns: list[pa.Array] = []
        for part, sequence in enumerate(sequences):
            columns += self._columns(found, slice(part * rows, (part + 1) * rows), sequence, good)
        columns.append(refused)
        made = [column.cast(kind) for column, kind in zip(columns, schema.types, strict=True)]
        return pa.record_batch(made, schema=schema)

    def _sequences(self, batch: pa.RecordBatch) -> list[Sequences]:
        files = self._files()
        most = context_length(files, self.max_tokens)
        tokenizer = load_sequence_tokenizer(files, most, self.over_long)
        if self.of == "text":
            return [tokenizer.texts(batch["text"])]
        prompt, *completions = (batch[role] for role in self.used_roles())
        return tokenizer.completions(prompt, completions, self.conditioned)

    def _columns(
        self, found: Scored, here: slice, sequence: Sequences, good: npt.NDArray[np.bool_]
    ) -> list[pa.Array]:
        """The columns of one of the sequences that every row has, null where it is not good."""
        offsets = found.offsets[here.start : here.stop + 1]
        inside = slice(int(offsets[0]), int(offsets[-1]))
        offsets = offsets - offsets[0]
        counts = np.diff(offsets)
        logps = found.logps[inside].astype(np.float64)
        top1 = found.top1[inside].astype(np.int64)
        entropy = found.entropy[inside].astype(np.float64)
        columns = [
            _array(_sums(logps, offsets), good),
            _array(counts, good),
            _array(sequence.bytes, good),
            _array(_sums(top1, offsets), good),
            _array(_sums(entropy, offsets), good),
        ]
        if self.min_k or self.quantiles:
            row = np.repeat(np.arange(len(counts)), counts)
            rising = logps[np.lexsort((logps, row))]
            if self.min_k:
                lowest = [_lowest(rising, offsets, k) for k in self.min_k]
                columns.append(_lists(np.stack(lowest, 1), good))
            if self.quantiles:
                places = [_quantile(rising, offsets, q) for q in self.quantiles]
                columns.append(_lists(np.stack(places, 1), good))
        columns.append(_array(sequence.truncated, good))
        if self.token_logps:
            values, ends = pa.array(found.logps[inside]), pa.array(offsets.astype(np.int32))
            columns.append(pa.ListArray.from_arrays(ends, values, mask=pa.array(~good)))
        if found.hidden is not None:
            hidden = found.hidden[here]
            if self.hidden == "mean":
                hidden = hidden / np.maximum(counts, 1)[:, None].astype(np.float32)
            columns += [_lists(hidden, good), _array(counts, good)]
        return columns


def _vectors(kind: pa.DataType, size: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), size)


def _reasons(sequences: list[Sequences], found: Scored, rows: int) -> pa.Array:
    """Why rows have no scores: what a tokenizer or the model says of any of their sequences."""
    finite = np.isfinite(found.logps) & np.isfinite(found.entropy)
    row = np.repeat(np.arange(len(found.offsets) - 1) % max(rows, 1), np.diff(found.offsets))
    strange = np.zeros(rows, np.bool_)
    strange[row[~finite]] = True
    reasons = pa.array([_NOT_FINITE if one else None for one in strange], pa.string())
    parts = ("chosen: ", "rejected: ") if len(sequences) > 1 else ("",)
    for part, sequence in reversed(list(zip(parts, sequences, strict=True))):
        said = [None if one is None else part + one for one in sequence.refused.to_pylist()]
        own = pa.array(said, pa.string())
        reasons = pc.coalesce(own, reasons)
    return reasons


def _array(values: npt.NDArray[Any], good: npt.NDArray[np.bool_]) -> pa.Array:
    return pa.array(values, mask=~good)


def _lists(values: npt.NDArray[Any], good: npt.NDArray[np.bool_]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).ravel())
    kind = _vectors(flat.type, values.shape[1])
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~good))


def _sums(values: npt.NDArray[Any], offsets: Int64s) -> npt.NDArray[Any]:
    """Sum of every row's values; 0 of a row without any."""
    out = np.zeros(len(offsets) - 1, values.dtype)
    some = np.diff(offsets) > 0
    if some.any():
        out[some] = np.add.reduceat(values, offsets[:-1][some])
    return out


def _lowest(rising: Float64s, offsets: Int64s, k: float) -> Float64s:
    """Sum of the lowest fraction `k` of every row's values, of one at the least."""
    counts = np.diff(offsets)
    out = np.zeros(len(counts))
    some = counts > 0
    if some.any():
        first = offsets[:-1][some]
        last = first + np.maximum(1, np.floor(counts[some] * k).astype(np.int64))
        edges = np.stack([first, last], 1).ravel()
        out[some] = np.add.reduceat(np.append(rising, 0.0), edges)[::2]
    return out


def _quantile(rising: Float64s, offsets: Int64s, q: float) -> Float64s:
    """The quantile of every row's values with their sign changed."""
    counts = np.diff(offsets)
    out = np.zeros(len(counts))
    some = counts > 0
    if some.any():
        place = (counts[some] - 1) * (1 - q)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, counts[some] - 1)
        first = offsets[:-1][some]
        out[some] = -(
            rising[first + low] * (1 - (place - low)) + rising[first + high] * (place - low)
        )
    return out
