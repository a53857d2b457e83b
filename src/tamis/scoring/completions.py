"""Token sequences with the part that is scored: a text, or a completion after its prompt.

Prompt and completion are tokenised as TRL's DPOTrainer does it (1.16, `_prepare_dataset`), so that
log-probabilities are those that a trainer would compute:

- strings: the tokenizer's end-of-text token is put after a completion that does not end with it;
  prompt and completion are joined as they are and tokenised together, with whatever the tokenizer
  itself puts around a text. The completion begins where these tokens part from those of the prompt
  alone: where a token spans the boundary, it belongs to the completion.
- lists of messages: the model's own chat template renders the prompt (with the header of the
  answer) and prompt and completion together; nothing is added to what it gives.
- of a pair, both completions begin at the earlier of the two places.

A text is tokenised as it is, with what the tokenizer itself puts around it.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from tamis.scoring.hardware import loaded_once, model_threads
from tamis.scoring.language_files import words_of
from tamis.scoring.model_files import ModelFiles, fast_tokenizer
from tamis.storage.errors import UserError
from tamis.storage.kernels import KERNEL, Int64s, even_cuts, in_threads, string_buffers

Ids = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
OverLong = Literal["keep_start", "keep_end", "quarantine"]

#: Text tokenised in one call; see `token_count`.
_CALL_BYTES = 1 << 18
_NO_TOKEN = "no token to score"


class Ragged(NamedTuple):
    """Token ids of some rows, one after the other: row i is ``ids[offsets[i]:offsets[i + 1]]``."""

    ids: Ids
    offsets: Int64s

    @property
    def lengths(self) -> Int64s:
        return np.diff(self.offsets)

    def cut(self, first: Int64s, lengths: Int64s) -> "Ragged":
        """Of every row `lengths` ids from `first` on."""
        return Ragged(self.ids[ranges(self.offsets[:-1] + first, lengths)], offsets_of(lengths))


class Sequences(NamedTuple):
    """What a model reads of some rows, and which part of it is scored.

    Attributes:
        tokens: ids of every row, as they go into the model; none where the row is refused.
        context: int64, tokens at the beginning that are given. At least one: nothing comes before
            the first token of a row, so there is no probability of it.
        truncated: whether tokens were left out because the row is longer than the model reads.
        bytes: int64, UTF-8 bytes of the text that is scored, special tokens aside.
        refused: string, why nothing is scored; null where something is.
    """

    tokens: Ragged
    context: Int64s
    truncated: Bools
    bytes: Int64s
    refused: pa.Array


def offsets_of(lengths: Int64s) -> Int64s:
    """Where rows of some lengths begin, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def ranges(first: Int64s, lengths: Int64s) -> Int64s:
    """The runs of numbers that begin at `first`, one after the other.

    Example:
        >>> ranges(np.array([5, 0]), np.array([3, 2])).tolist()
        [5, 6, 7, 0, 1]
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(first - ends + lengths, lengths)


@loaded_once(4)
def load_sequence_tokenizer(
    files: ModelFiles, max_tokens: int, over_long: OverLong
) -> "SequenceTokenizer":
    """A tokenizer, loaded once in a process."""
    return SequenceTokenizer(files, max_tokens, over_long)


class SequenceTokenizer:
    """The tokenizer of a language model, and its chat template.

    Args:
        max_tokens: most tokens of a row.
        over_long: what becomes of a longer row: its first or its last tokens are kept, or it is
            refused.
    """

    def __init__(self, files: ModelFiles, max_tokens: int, over_long: OverLong) -> None:
        self._files = files
        self._max_tokens = max_tokens
        self._over_long = over_long
        self._hugging = load_tokenizer(files)
        self._fast = fast_tokenizer(self._hugging, files)
        self._bos = self._hugging.bos_token_id
        self._words = words_of(files.folder)

    def texts(self, text: pa.Array) -> Sequences:
        """Whole texts, each scored from its second token on (the first may be a BOS)."""
        tokens = self._tokenise(text, special=True)
        context = np.ones(len(text), np.int64)
        reasons: list[str | None] = [None] * len(text)
        return self._fitted(tokens, context, _bytes(text), reasons)

    def completions(
        self, prompt: pa.Array, completions: Sequence[pa.Array], conditioned: bool = True
    ) -> list[Sequences]:
        """Completions of the same prompts: strings, or lists of messages.

        Args:
            prompt: one for every row.
            completions: one, or several that are compared, of every row.
            conditioned: whether the prompt is read; if not, the same tokens of the completion are
                scored after nothing but the token that begins a text, where there is one.

        Raises:
            UserError: if some are strings and others messages, or the model has no chat template.
        """
        chats = [_is_chat(part) for part in (prompt, *completions)]
        if len(set(chats)) > 1:
            raise UserError(
                "prompt and completions must all be strings, or all lists of messages",
                where="roles",
            )
        reasons: list[str | None]
        if chats[0]:
            alone, wholes, reasons = self._rendered(prompt, completions)
        else:
            alone, reasons = prompt, [None] * len(prompt)
            wholes = [_joined(prompt, self._ended(part)) for part in completions]
        begun = self._tokenise(alone, special=not chats[0])
        tokens = [self._tokenise(whole, special=not chats[0]) for whole in wholes]
        context = np.min([_common(begun, one) for one in tokens], axis=0)
        found = []
        for one, part in zip(tokens, completions, strict=True):
            size = _content_bytes(part) if chats[0] else _bytes(part)
            fitted = self._fitted(one, context, size, reasons)
            found.append(fitted if conditioned else self._without_prompt(one, fitted))
        return found

    def _ended(self, part: pa.Array) -> pa.Array:
        """Completions that all end with the end-of-text token, if the tokenizer has one."""
        end = self._hugging.eos_token
        if end is None:
            return part
        part = part.cast(pa.large_string())
        ended = pc.ends_with(part, pattern=end)
        return pc.if_else(ended, part, _joined(part, pa.scalar(end, part.type)))

    def _without_prompt(self, whole: Ragged, fitted: Sequences) -> Sequences:
        """The completions alone, with the tokens that they have after their prompts.

        Where the row begins with a BOS that takes the prompt's place, and all of them are scored;
        else all but the first.
        """
        tokens, given = fitted.tokens, fitted.context
        begun = np.zeros(len(given), np.bool_)
        if self._bos is not None and len(whole.ids):
            first = np.minimum(whole.offsets[:-1], len(whole.ids) - 1)
            begun = (given > 0) & (whole.ids[first] == self._bos)
        kept = tokens.cut(given - begun, tokens.lengths - given + begun)
        kept.ids[kept.offsets[:-1][begun]] = self._bos if begun.any() else 0
        said = fitted.refused.to_pylist()
        short = (kept.lengths == 1) & (given > 0)
        refused = [_NO_TOKEN if one else reason for one, reason in zip(short, said, strict=True)]
        kept = kept.cut(np.zeros_like(given), np.where(short, 0, kept.lengths))
        context = np.minimum(given, 1) * ~short
        return fitted._replace(tokens=kept, context=context, refused=pa.array(refused, pa.string()))

    def _fitted(
        self, tokens: Ragged, context: Int64s, size: Int64s, reasons: list[str | None]
    ) -> Sequences:
        """Rows cut to what the model reads; those without a token to score are refused."""
        lengths = tokens.lengths
        over = lengths > self._max_tokens
        refused = list(reasons)
        cut = np.zeros(len(lengths), np.int64)
        if self._over_long == "keep_end":
            cut[over] = lengths[over] - self._max_tokens
        kept = np.minimum(lengths, self._max_tokens)
        given = np.maximum(context - cut, 1)
        for row in np.flatnonzero((kept <= given) | over):
            if refused[row] is not None:
                continue
            if over[row] and self._over_long == "quarantine":
                refused[row] = f"{lengths[row]} tokens, over {self._max_tokens}"
            elif over[row] and kept[row] <= given[row]:
                refused[row] = (
                    f"{_NO_TOKEN}: the prompt alone has {context[row]} tokens of at most "
                    f"{self._max_tokens}"
                )
            elif kept[row] <= given[row]:
                refused[row] = _NO_TOKEN
        if self._words is not None:
            for row in np.flatnonzero(_largest(tokens) >= self._words):
                refused[row] = refused[row] or (
                    f"a token of the tokenizer that the model lacks: it has {self._words:,}"
                )
        bad = np.array([reason is not None for reason in refused], np.bool_)
        kept[bad], given[bad] = 0, 0
        fitted = tokens.cut(cut, kept)
        size = size.copy()
        for row in np.flatnonzero(over & ~bad):
            first, last = fitted.offsets[row] + given[row], fitted.offsets[row + 1]
            spelt = self._fast.decode(fitted.ids[first:last].tolist(), skip_special_tokens=True)
            size[row] = len(spelt.encode())
        return Sequences(fitted, given, over & ~bad, size, pa.array(refused, pa.string()))

    def _rendered(
        self, prompt: pa.Array, completions: Sequence[pa.Array]
    ) -> tuple[pa.Array, list[pa.Array], list[str | None]]:
        """Prompts and whole conversations as the template writes them, and why it cannot."""
        try:
            self._hugging.get_chat_template()
        except ValueError as error:
            raise UserError(
                f"the model {self._files.name!r} has no chat template, and the corpus holds lists "
                "of messages",
                where=str(self._files.folder),
                mend="use a model that has one, or prompts and completions that are strings",
            ) from error
        prompts = prompt.to_pylist()
        parts = [part.to_pylist() for part in completions]
        reasons: list[str | None] = [None] * len(prompts)
        alone = self._render(prompts, True, reasons)
        wholes = [
            self._render([p + c for p, c in zip(prompts, part, strict=True)], False, reasons)
            for part in parts
        ]
        return alone, wholes, reasons

    def _render(
        self, chats: list[list[dict[str, Any]]], header: bool, reasons: list[str | None]
    ) -> pa.Array:
        def render(some: list[list[dict[str, Any]]]) -> list[str]:
            found: list[str] = self._hugging.apply_chat_template(
                some, tokenize=False, add_generation_prompt=header
            )
            return found

        try:
            if all(chat and None not in chat for chat in chats):
                return pa.array(render(chats) if chats else [], pa.large_string())
        except Exception:  # what a template raises: one of them, so each by itself
            pass
        texts = [""] * len(chats)
        for row, chat in enumerate(chats):
            if not chat:
                reasons[row] = reasons[row] or "a list without messages"
                continue
            if None in chat:
                reasons[row] = reasons[row] or "a message that is null"
                continue
            try:
                (texts[row],) = render([chat])
            except Exception as error:
                line = str(error).strip().splitlines() or [type(error).__name__]
                reasons[row] = reasons[row] or f"the chat template refuses it: {line[0]}"
        return pa.array(texts, pa.large_string())

    def _tokenise(self, text: pa.Array, special: bool) -> Ragged:
        _, offsets = string_buffers(text)
        size = int(offsets[-1] - offsets[0]) if len(text) else 0

        def call(rows: tuple[int, int]) -> list[Ids]:
            part = text.slice(rows[0], rows[1] - rows[0]).to_pylist()
            # What the library gives takes a hundred bytes a token.
            found = self._fast.encode_batch_fast(part, add_special_tokens=special)
            return [np.array(one.ids, np.int32) for one in found]

        parts = in_threads(call, even_cuts(offsets, 1 + size // _CALL_BYTES), model_threads())
        rows = [ids for part in parts for ids in part]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return Ragged(np.concatenate([np.zeros(0, np.int32), *rows]), offsets_of(lengths))


def load_tokenizer(files: ModelFiles) -> Any:
    """The tokenizer of a model, as transformers loads it, without code of its own.

    Raises:
        UserError: if it cannot be loaded.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(files.folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the libraries below raise whatever comes
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the tokenizer of the model {files.name!r} cannot be loaded "
            f"({type(error).__name__}: {line[0]})",
            where=str(files.folder),
            mend="give a folder as `save_pretrained` of model and tokenizer writes it",
        ) from error


def _is_chat(part: pa.Array) -> bool:
    kind = part.type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _joined(first: pa.Array, second: Any) -> pa.Array:
    wide = pa.large_string()
    parts = (first.cast(wide), second.cast(wide), pa.scalar("", wide))
    return pc.binary_join_element_wise(*parts)


def _bytes(text: pa.Array) -> Int64s:
    return np.diff(string_buffers(text)[1])


def _content_bytes(chats: pa.Array) -> Int64s:
    """Bytes of what the messages of every list say."""
    contents = [
        sum(len(str((message or {}).get("content") or "").encode()) for message in chat)
        for chat in chats.to_pylist()
    ]
    return np.array(contents, np.int64)


def _largest(tokens: Ragged) -> Int64s:
    """The largest id of every row, -1 where it has none."""
    found = np.full(len(tokens.offsets) - 1, -1, np.int64)
    some = tokens.lengths > 0
    if some.any():
        found[some] = np.maximum.reduceat(tokens.ids, tokens.offsets[:-1][some])
    return found


def _common(first: Ragged, second: Ragged) -> Int64s:
    """How many ids every row of the one begins with as that of the other does."""
    found = np.empty(len(first.offsets) - 1, np.int64)
    _count_common(*first, *second, found)
    return found


@njit(**KERNEL)
def _count_common(first, first_at, second, second_at, found):  # type: ignore[no-untyped-def]
    for row in range(found.shape[0]):
        a, b = first_at[row], second_at[row]
        most = min(first_at[row + 1] - a, second_at[row + 1] - b)
        same = 0
        while same < most and first[a + same] == second[b + same]:
            same += 1
        found[row] = same
