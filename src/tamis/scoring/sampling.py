"""Answers drawn from a language model, each from its prompt and a seed alone.

The random numbers of an answer are a hash of its key and the token's place, not the state of a
generator: whatever else is in a batch, and on whatever thread or device, the same are drawn.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tamis.scoring.hardware import model_threads, one_thread
from tamis.storage.errors import RunError
from tamis.storage.kernels import Int64s, UInt64s, in_threads

#: Tokens of prompts and answers whose keys and values a batch holds, by device, and numbers of the
#: distributions that it draws from. Not confirmed by a measurement.
BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 17}
BATCH_CHANCES = {"cpu": 1 << 21, "cuda": 1 << 25}
#: Bytes of a number of a distribution while it is drawn from: in float64, some copies.
CHANCE_BYTES = 48

_STEP = 0x9E3779B97F4A7C15
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Answer(NamedTuple):
    """What a model says.

    Attributes:
        text: without special tokens.
        ended: whether the model ended it; else it was cut off.
    """

    text: str
    ended: bool


def uniforms(keys: UInt64s, step: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for every key at a step.

    The upper 53 bits of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
    number generators").

    Args:
        keys: of the answers.
        step: place of the token in the answer, from 0.

    Example:
        >>> uniforms(np.array([0], np.uint64), 0).round(6)
        array([0.883311])
    """
    z = keys + np.uint64(_STEP * (step + 1) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * _MIX[0]
    z = (z ^ (z >> np.uint64(27))) * _MIX[1]
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits: Any, uniform: Any, temperature: float, top_p: float) -> Any:
    """A token for every row of logits, by inverting the distribution function.

    Args:
        logits: float tensor, rows by vocabulary.
        uniform: float64 tensor, a number in [0, 1) for every row.
        temperature: that the logits are divided by.
        top_p: the most probable tokens that together have this probability are drawn from
            (nucleus sampling, Holtzman et al. 2020); the first token that reaches it is among them.

    Returns:
        int64 tensor of token ids.
    """
    import torch

    chances = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p < 1:
        ordered, tokens = torch.sort(chances, dim=-1, descending=True, stable=True)
        left_out = ordered.cumsum(-1) - ordered >= top_p
        chances = chances.masked_fill(torch.zeros_like(left_out).scatter(-1, tokens, left_out), 0)
    heaped = chances.cumsum(-1)
    drawn = torch.searchsorted(heaped, uniform.unsqueeze(-1) * heaped[:, -1:], right=True)
    # A number next to one may fall behind the last token that has any probability.
    last = heaped.shape[-1] - 1 - (chances.flip(-1) > 0).to(torch.int8).argmax(-1)
    return torch.minimum(drawn.squeeze(-1), last)


class Sampler:
    """Draws answers from a model.

    What the model's own generation settings say beside the tokens that end an answer is not used.

    Args:
        model: causal language model of transformers, in evaluation mode; its generation settings
            are replaced.
        tokenizer: its own.
        context: tokens that it reads at once, or None.
    """

    def __init__(self, model: Any, tokenizer: Any, context: int | None) -> None:
        from transformers import GenerationConfig

        self._model = model
        self._tokenizer = tokenizer
        self._context = context
        self._words = int(model.get_output_embeddings().weight.shape[0])
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self._ends = sorted({*ends, tokenizer.eos_token_id} - {None})
        fills = [tokenizer.pad_token_id, *self._ends, 0]
        self._fill = next(token for token in fills if token is not None)
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=self._ends or None, pad_token_id=self._fill
        )

    def read(self, prompts: Sequence[Any], longest: int) -> list[list[int] | str]:
        """Token ids of prompts, which are strings or lists of messages; or why there are none.

        Args:
            longest: tokens of an answer at the most.
        """
        return [self._read(prompt, longest) for prompt in prompts]

    def _read(self, prompt: Any, longest: int) -> list[int] | str:
        if isinstance(prompt, str):
            ids = self._tokenizer(prompt)["input_ids"]
        elif not prompt:
            return "a list without messages"
        else:
            try:
                text = self._tokenizer.apply_chat_template(
                    prompt, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # whatever a template raises
                line = str(error).strip().splitlines() or [type(error).__name__]
                return f"the chat template refuses it: {line[0]}"
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            return "a prompt without tokens"
        if self._context is not None and len(ids) + longest > self._context:
            return f"prompt and answer of {longest} tokens are over {self._context} tokens"
        return list(ids)

    def answers(
        self,
        prompts: Sequence[list[int]],
        keys: UInt64s,
        longest: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[Answer]:
        """An answer to every prompt; one that comes several times is given with other keys.

        Where a device's memory does not hold a batch, half of it is tried.

        Args:
            prompts: token ids, at least one of each.
            keys: that the random numbers are made from.
            longest: tokens of an answer at the most.
            temperature, top_p: see `draw`.
        """
        import torch

        order = np.argsort([-len(ids) for ids in prompts], kind="stable")
        device = self._model.device.type
        most = max(1, BATCH_CHANCES[device] // self._words)
        batches: list[Int64s] = []
        at = 0
        while at < len(order):
            # The longest prompt of a batch comes first.
            fitting = BATCH_TOKENS[device] // (len(prompts[order[at]]) + longest)
            batches.append(order[at : at + max(1, min(fitting, most))])
            at += len(batches[-1])
        found: dict[int, Answer] = {}

        def run(rows: Int64s) -> None:
            chooser = _Chooser(keys[rows], temperature, top_p)
            try:
                made = self._batch([prompts[row] for row in rows], chooser, longest)
            except torch.OutOfMemoryError as error:
                if len(rows) == 1:
                    raise RunError(
                        f"there is no memory for a prompt of {len(prompts[rows[0]]):,} tokens and "
                        f"its answer of {longest:,}",
                        mend="set a lower `max_new_tokens`, or use a device with more memory",
                    ) from error
                torch.cuda.empty_cache()
                half = len(rows) // 2
                run(rows[:half])
                run(rows[half:])
                return
            found.update(zip(rows.tolist(), made, strict=True))

        in_threads(run, batches, 1 if device == "cuda" else model_threads())
        return [found[row] for row in range(len(prompts))]

    def _batch(self, prompts: list[list[int]], chooser: "_Chooser", longest: int) -> list[Answer]:
        import torch
        from transformers import LogitsProcessorList

        width = max(map(len, prompts))
        ids = np.full((len(prompts), width), self._fill, np.int64)
        mask = np.zeros((len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        device = self._model.device
        # Threads within a forward wait for one another at every token.
        with torch.inference_mode(), one_thread():
            made = self._model.generate(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(mask).to(device),
                logits_processor=LogitsProcessorList([chooser]),
                max_new_tokens=longest,
                do_sample=False,
            )
        drawn = made[:, width:].tolist()
        return [self._told(prompt, row) for prompt, row in zip(prompts, drawn, strict=True)]

    def _told(self, prompt: list[int], drawn: list[int]) -> Answer:
        end = next((at for at, token in enumerate(drawn) if token in self._ends), None)
        # Some tokenizers leave out the space that a text begins with, so the prompt comes before.
        before, whole = (
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for ids in (prompt, prompt + drawn[:end])
        )
        if not whole.startswith(before):  # it ends within a character
            before, whole = "", self._tokenizer.decode(drawn[:end], skip_special_tokens=True)
        return Answer(whole[len(before) :], end is not None)


class _Chooser:
    """Leaves of every row's scores the one token that is drawn: a processor for `generate`."""

    def __init__(self, keys: UInt64s, temperature: float, top_p: float) -> None:
        self._keys = keys
        self._temperature = temperature
        self._top_p = top_p
        self._step = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        uniform = torch.from_numpy(uniforms(self._keys, self._step)).to(scores.device)
        self._step += 1
        token = draw(scores, uniform, self._temperature, self._top_p)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(-1, token.unsqueeze(-1), 0.0)
