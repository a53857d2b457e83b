"""A causal language model that tells the log-probability of every token that is asked for.

One forward reads a pack (see `packing`); the head of the model is applied where a token is scored
and nowhere else, some positions and some of the vocabulary at a time. What comes out equals the
model's own forward within rounding: that is tried on random tokens when a model is loaded, and one
that fails (for what its attention or its head does besides) is run as it is, with padding.
"""

import copy
import gc
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tamis.scoring.completions import Ragged, offsets_of, ranges
from tamis.scoring.hardware import Precision, loaded_once, model_threads, one_thread
from tamis.scoring.language_files import context_of
from tamis.scoring.model_files import ModelFiles
from tamis.scoring.onednn import convert_inside, converted, is_converted
from tamis.scoring.packed_attention import PACKED, attending, register
from tamis.scoring.packing import Items, Pack, distinct, pack, plan
from tamis.scoring.token_stats import HEAD_WORDS, head_blocks, token_stats
from tamis.storage.errors import RunError, UserError
from tamis.storage.kernels import Int64s, in_threads

Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

#: Tokens of one forward. Measured on a processor: more do not fit into its cache.
CPU_TOKENS, CUDA_TOKENS = 512, 16384
#: Tokens of the completions that share a prompt in one forward.
_GROUP_TOKENS = 4096
#: Positions that the head is applied to at once: with `HEAD_WORDS` what a processor's cache holds.
#: On CUDA they are more.
_HEAD_POSITIONS, _CUDA_POSITIONS = 256, 4096
#: Bytes of logits that a model's own forward may give at once.
_OWN_LOGITS = 1 << 28
#: By how much log-probabilities may differ from the model's own forward, by the numbers it uses.
_TOLERANCE = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.3}
#: What configurations call a change of the logits that the head alone does not make.
_SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
#: Positions that depend on the longest sequence of a forward, and change the model as they do.
_MOVING_ROPE = {"dynamic", "longrope"}

log = logging.getLogger("tamis")


class Scored(NamedTuple):
    """What a model says of the scored tokens of some rows, one row after the other.

    Attributes:
        offsets: where the tokens of each row begin, and where the last ends.
        logps: float32, natural log-probability of each token.
        entropy: float32, of the distribution that the token is from, in nats.
        top1: whether no other token was more likely.
        hidden: float32 ``(rows, width)``, sum of the last hidden states at the positions that
            predict the scored tokens, that is from the last token of the context to the last but
            one of the row; None if not asked for.
    """

    offsets: Int64s
    logps: Float32s
    entropy: Float32s
    top1: Bools
    hidden: Float32s | None


@loaded_once(2)
def load_language_model(files: ModelFiles, precision: Precision, device: str) -> "LanguageModel":
    """A model, loaded once in a process."""
    return LanguageModel(files, precision, device)


def context_length(files: ModelFiles, max_tokens: int | None) -> int:
    """Most tokens of a row: what is asked for, else what the model reads.

    Raises:
        UserError: if the model reads fewer, or does not tell how many.
    """
    context = context_of(files.folder, files.name)
    if max_tokens is None:
        if context is None:
            raise UserError(
                f"the model {files.name!r} does not tell how many tokens it reads",
                where=str(files.folder / "config.json"),
                mend="set `max_tokens`",
            )
        return context
    if context is not None and max_tokens > context:
        raise UserError(
            f"max_tokens: the model {files.name!r} reads {context} tokens, found {max_tokens}",
            where="recipe",
        )
    return max_tokens


class LanguageModel:
    """A causal language model of transformers.

    Attributes:
        forwarded: tokens that went through the model so far, padding included.
        way: how it is run: ``packed``, or ``own`` for the model's own forward with padding.
    """

    def __init__(self, files: ModelFiles, precision: Precision, device: str) -> None:
        import torch

        self._model = _load(files, precision, device)
        self._name = files.name
        self._device = device
        self._base = self._model.base_model
        self._head = self._model.get_output_embeddings()
        self._head_blocks: list[Any] = []
        self._workers = 1 if device == "cuda" else model_threads()
        self._budget = CUDA_TOKENS if device == "cuda" else CPU_TOKENS
        self._largest = _GROUP_TOKENS
        self._counting = threading.Lock()
        self.forwarded = 0
        with torch.inference_mode():
            reason = self._try_packing(precision)
            if not reason and precision == "float32" and device == "cpu":
                self._convert(files)
        self.forwarded = 0
        self.way = "own" if reason else "packed"
        if reason:
            log.info("%s: run by its own forward, with padding (%s)", files.name, reason)

    def score(self, tokens: Ragged, context: Int64s, hidden: bool = False) -> Scored:
        """Log-probabilities of all tokens of each row that come after its context.

        Args:
            tokens: what the model reads; a row without tokens gives none.
            context: tokens of each row that are given, at least one, and fewer than it has.
            hidden: whether sums of hidden states are wanted.

        Raises:
            RunError: if a single row does not fit into memory.
        """
        items = distinct(tokens, context)
        counts = (tokens.lengths - context)[items.row]
        offsets = offsets_of(counts)
        total = int(offsets[-1])
        out = _Out(
            offsets,
            np.empty(total, np.float32),
            np.empty(total, np.float32),
            np.empty(total, np.bool_),
            np.empty((len(counts), self._width), np.float32) if hidden else None,
        )

        def run(chosen: Int64s) -> None:
            self._run(tokens, context, items, chosen, out)

        if self.way == "packed":
            packs = plan(tokens, context, items, self._budget, self._largest)
        else:
            packs = _padded_batches(tokens.lengths[items.row], self._budget, self._own_rows)
        in_threads(run, packs, self._workers)
        return _by_row(items, out, len(context))

    def unpacked(self) -> Any:
        """The model as transformers runs it, which may generate; the weights are the same."""
        shared = [*self._model.parameters(), *self._model.buffers()]
        shared += [part for part in self._model.modules() if is_converted(part)]
        plain = copy.deepcopy(self._model, memo={id(part): part for part in shared})
        if self.way == "packed":
            plain.set_attn_implementation("sdpa")
        return plain

    @property
    def _width(self) -> int:
        return int(self._head.weight.shape[1])

    def _own_rows(self, length: int) -> int:
        """Rows of some length whose logits may be held at once."""
        return max(1, _OWN_LOGITS // (4 * int(self._head.weight.shape[0]) * length))

    def _run(
        self, tokens: Ragged, context: Int64s, items: Items, chosen: Int64s, out: "_Out"
    ) -> None:
        """Compute some items, in halves where they do not fit into memory."""
        import torch

        forward = self._packed if self.way == "packed" else self._own
        hidden = out.hidden is not None
        try:
            with torch.inference_mode(), one_thread():
                out.put(chosen, *forward(tokens, context, items, chosen, hidden))
                # What is not finite spreads through the masks of a group: whose is it?
                for item in out.strange(chosen) if len(chosen) > 1 else ():
                    alone = np.array([item])
                    out.put(alone, *forward(tokens, context, items, alone, hidden))
            return
        except RuntimeError as error:  # among them torch.OutOfMemoryError
            if not _is_memory(error):
                raise
            if len(chosen) == 1:
                length = int(tokens.lengths[items.row[chosen[0]]])
                raise RunError(
                    f"the model {self._name!r} has no memory for a row of {length:,} tokens",
                    mend="set a lower `max_tokens`, or use a device with more memory",
                ) from error
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()
        with self._counting:
            size = int((tokens.lengths[items.row[chosen]]).sum())
            self._budget = max(1, min(self._budget, size // 2))
            self._largest = max(1, min(self._largest, size // 2))
        log.info("%s: out of memory, going on with half of %d rows", self._name, len(chosen))
        half = len(chosen) // 2
        for part in (chosen[:half], chosen[half:]):
            self._run(tokens, context, items, part, out)

    def _count(self, tokens: int) -> None:
        with self._counting:
            self.forwarded += tokens

    def _packed(
        self, tokens: Ragged, context: Int64s, items: Items, chosen: Int64s, hidden: bool
    ) -> "_Made":
        return self._forward_pack(pack(tokens, context, items, chosen), hidden)[0]

    def _forward_pack(self, made: Pack, hidden: bool) -> tuple["_Made", set[int]]:
        """What the head says of a pack, and the sliding windows that the model has."""
        import torch

        ids, positions, at, targets = (
            torch.from_numpy(column).to(self._device)
            for column in (made.ids, made.positions, made.at, made.targets)
        )
        with attending(made) as windows:
            states = self._base(
                input_ids=ids[None], position_ids=positions[None], use_cache=False
            ).last_hidden_state[0, at]
        self._count(len(ids))
        chunk = _CUDA_POSITIONS if self._device == "cuda" else _HEAD_POSITIONS

        def logits(first: int, last: int) -> Iterator[tuple[int, Any]]:
            for part, block in enumerate(self._head_blocks):
                yield part * HEAD_WORDS, block(states[first:last])

        stats = token_stats(logits, targets, chunk)
        sums = _sums(states, made.counts) if hidden else None
        return _Made(*stats, sums), windows

    def _own(
        self, tokens: Ragged, context: Int64s, items: Items, chosen: Int64s, hidden: bool
    ) -> "_Made":
        import torch

        rows = items.row[chosen]
        lengths, given = tokens.lengths[rows], context[rows]
        # The last token predicts nothing that is asked for.
        longest = max(1, int(lengths.max()) - 1)
        padded = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        sizes = lengths - 1
        place = np.repeat(np.arange(len(rows)) * longest, sizes) + ranges(0 * sizes, sizes)
        padded.ravel()[place] = tokens.ids[ranges(tokens.offsets[rows], sizes)]
        mask.ravel()[place] = 1
        from_, kept = 0, {}
        if "logits_to_keep" in inspect.signature(self._model.forward).parameters:
            from_ = int(given.min()) - 1
            kept = {"logits_to_keep": longest - from_}
        found = self._model(
            input_ids=torch.from_numpy(padded).to(self._device),
            attention_mask=torch.from_numpy(mask).to(self._device),
            use_cache=False,
            output_hidden_states=hidden,
            **kept,
        )
        self._count(padded.size)
        counts = lengths - given
        row = torch.from_numpy(np.repeat(np.arange(len(rows)), counts)).to(self._device)
        at = torch.from_numpy(ranges(given - 1, counts)).to(self._device)
        targets = torch.from_numpy(
            tokens.ids[ranges(tokens.offsets[rows] + given, counts)].astype(np.int64)
        ).to(self._device)

        def logits(first: int, last: int) -> Iterator[tuple[int, Any]]:
            yield 0, found.logits[row[first:last], at[first:last] - from_]

        stats = token_stats(logits, targets, _HEAD_POSITIONS)
        sums = _sums(found.hidden_states[-1][row, at], counts) if hidden else None
        return _Made(*stats, sums)

    def _try_packing(self, precision: str) -> str:
        """Switch to packs and compare with the model's own forward; why not, if it fails."""
        config = self._model.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        if isinstance(rope, dict) and rope.get("rope_type") in _MOVING_ROPE:
            self._workers, self._own_rows = 1, lambda length: 1  # type: ignore[method-assign]
            return f"positions of the kind {rope['rope_type']}"
        scaled = [name for name in _SCALED_LOGITS if getattr(config, name, None) not in (None, 1)]
        if scaled:  # in bfloat16 the trial would not tell slight ones from rounding
            return f"logits that are changed after the head ({scaled[0]})"
        if self._base is self._model or getattr(self._head, "weight", None) is None:
            return "no head apart from the model"
        trial = _trial(int(self._head.weight.shape[0]))
        expected = self._own(*trial, False)
        before = self._model.config._attn_implementation
        self._head_blocks = list(head_blocks(self._head))
        register()
        try:
            self._model.set_attn_implementation(PACKED)
            if self._model.config._attn_implementation != PACKED:
                return "an attention of its own"
            made, windows = self._forward_pack(pack(*trial), False)
            reason = _unlike(made, expected, _TOLERANCE[precision])
            reason = reason or _unseen_limit(config, windows)
        except Exception as error:  # whatever a model does with what it does not expect
            reason = f"{type(error).__name__}: {_first_line(error)}"
        if reason:
            self._model.set_attn_implementation(before)
        return reason

    def _convert(self, files: ModelFiles) -> None:
        """Let oneDNN multiply; as before for a model that looks into its matrices itself."""
        trial = pack(*_trial(int(self._head.weight.shape[0])))
        expected = self._forward_pack(trial, False)[0]
        try:
            convert_inside(self._base)
            self._head_blocks = [converted(block) for block in self._head_blocks]
            reason = _unlike(self._forward_pack(trial, False)[0], expected, _TOLERANCE["float32"])
        except Exception as error:
            reason = _first_line(error)
        if reason:
            log.info("%s: multiplied by PyTorch itself (%s)", files.name, reason)
            self._model = _load(files, "float32", "cpu")
            self._model.set_attn_implementation(PACKED)
            self._base, self._head = self._model.base_model, self._model.get_output_embeddings()
            self._head_blocks = list(head_blocks(self._head))


class _Made(NamedTuple):
    """Results of some items, in their order."""

    logps: Float32s
    entropy: Float32s
    top1: Bools
    hidden: Float32s | None


class _Out(NamedTuple):
    """Room for the results of all items."""

    offsets: Int64s
    logps: Float32s
    entropy: Float32s
    top1: Bools
    hidden: Float32s | None

    def put(
        self,
        chosen: Int64s,
        logps: Float32s,
        entropy: Float32s,
        top1: Bools,
        hidden: Float32s | None,
    ) -> None:
        place = ranges(self.offsets[chosen], np.diff(self.offsets)[chosen])
        self.logps[place], self.entropy[place], self.top1[place] = logps, entropy, top1
        if self.hidden is not None:
            self.hidden[chosen] = hidden

    def strange(self, chosen: Int64s) -> Int64s:
        """Those of some items of which a log-probability is not finite."""
        sizes = np.diff(self.offsets)[chosen]
        finite = np.isfinite(self.logps[ranges(self.offsets[chosen], sizes)])
        return np.unique(np.repeat(chosen, sizes)[~finite])


def _by_row(items: Items, out: _Out, rows: int) -> Scored:
    """Results of items, given to every row that holds them."""
    there = items.of_row >= 0
    first, sizes = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    first[there] = out.offsets[items.of_row[there]]
    sizes[there] = np.diff(out.offsets)[items.of_row[there]]
    place = ranges(first, sizes)
    hidden = None
    if out.hidden is not None:
        hidden = np.full((rows, out.hidden.shape[1]), np.nan, np.float32)
        hidden[there] = out.hidden[items.of_row[there]]
    return Scored(offsets_of(sizes), out.logps[place], out.entropy[place], out.top1[place], hidden)


def _load(files: ModelFiles, precision: str, device: str) -> Any:
    """A model in its folder's own code of transformers, ready to be asked.

    Raises:
        UserError: if it cannot be loaded, or its files lack weights.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as chatter

    chatter.disable_progress_bar()  # type: ignore[no-untyped-call]
    mend = "give a folder as `save_pretrained` of a causal language model writes it"
    before = chatter.get_verbosity()
    chatter.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(files.folder),
            dtype=getattr(torch, precision),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # the libraries below raise whatever comes
        raise UserError(
            f"the model {files.name!r} cannot be loaded "
            f"({type(error).__name__}: {_first_line(error)})",
            where=str(files.folder),
            mend=mend,
        ) from error
    finally:
        chatter.set_verbosity(before)
    model, said = loaded
    if said["missing_keys"]:
        lacking = sorted(said["missing_keys"])
        raise UserError(
            f"the weights of the model {files.name!r} lack {len(lacking)} of its parameters "
            f"({lacking[0]})",
            where=str(files.folder),
            mend=mend,
        )
    return model.to(device).eval()


def _trial(words: int) -> tuple[Ragged, Int64s, Items, Int64s]:
    """Random tokens of several lengths: two rows that share a prompt, one that shares nothing."""
    generator = np.random.default_rng(0)
    prompt = generator.integers(0, words, 12)
    rows = [
        np.concatenate([prompt, generator.integers(0, words, 9)]),
        np.concatenate([prompt, generator.integers(0, words, 5)]),
        generator.integers(0, words, 17),
    ]
    lengths = np.array([len(row) for row in rows])
    tokens = Ragged(np.concatenate(rows).astype(np.int32), offsets_of(lengths))
    context = np.array([12, 12, 1])
    items = distinct(tokens, context)
    return tokens, context, items, np.arange(len(items.row))


def _unlike(made: _Made, expected: _Made, tolerance: float) -> str:
    """How results differ from those of the model's own forward, if by more than rounding."""
    finite = np.isfinite(expected.logps)
    if not finite.all():
        return "" if np.array_equal(finite, np.isfinite(made.logps)) else "other logits"
    apart = float(np.abs(made.logps - expected.logps).max())
    return "" if apart <= tolerance else f"log-probabilities differ by {apart:.2g}"


def _unseen_limit(config: Any, windows: set[int]) -> str:
    """A limit of attention that the model has and a short trial does not show."""
    if getattr(config, "attention_chunk_size", None):
        return "attention in chunks"
    kinds = set(getattr(config, "layer_types", None) or ())
    slides = "sliding_attention" in kinds or (
        not kinds
        and getattr(config, "sliding_window", None) is not None
        and getattr(config, "use_sliding_window", True)
    )
    return "a sliding window that attention is not told of" if slides and not windows else ""


def _padded_batches(lengths: Int64s, budget: int, most: Callable[[int], int]) -> list[Int64s]:
    """Items of about one length, longest first."""
    order = np.argsort(-lengths, kind="stable")
    found, at = [], 0
    while at < len(order):
        length = int(lengths[order[at]])
        size = max(1, min(budget // length, most(length)))
        found.append(order[at : at + size])
        at += size
    return found


def _sums(states: Any, counts: Int64s) -> Float32s:
    """Sum of the states of every item."""
    found: Float32s = np.add.reduceat(states.float().cpu().numpy(), offsets_of(counts)[:-1], axis=0)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
