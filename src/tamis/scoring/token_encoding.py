"""Texts into tokens, and a byte-level tokenizer learnt from texts."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.scoring.token_count import CALL_BYTES, open_tokenizer
from tamis.storage.errors import UserError
from tamis.storage.files import digest_file
from tamis.storage.kernels import Int64s, even_cuts, string_buffers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: What ends a document in the tokenizers that are in use.
END_OF_TEXT = "<|endoftext|>"
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
#: Characters from which a text is encoded in pieces.
PIECE = 1 << 20
#: Where a text may be cut: byte-level and most other tokenizers begin a word at a blank.
_CUT = re.compile(r"\S(?=\s)")


@cache
def text_tokenizer(path: str, digest: str) -> "Tokenizer":
    """The tokenizer of a file, to which all of a text is text, also what spells a special token.

    Raises:
        UserError: if it is none of the tokenizers library.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(open_tokenizer(path, digest).to_str())
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_token(tokenizer: "Tokenizer", name: str | None, where: str) -> int:
    """Number of the token that ends a document.

    Args:
        name: how it is written; the first of `ENDS` that the vocabulary has, if not given.

    Raises:
        UserError: if the vocabulary lacks it.
    """
    for written in ENDS if name is None else (name,):
        found = tokenizer.token_to_id(written)
        if found is not None:
            return int(found)
    asked = repr(name) if name is not None else f"none of {', '.join(map(repr, ENDS))}"
    raise UserError(
        f"the vocabulary has no token that ends a text: {asked} is not in it",
        where=where,
        mend="name it by --end-of-text",
    )


def encode(
    tokenizer: "Tokenizer", texts: pa.Array, end: int, kind: np.dtype[Any]
) -> tuple[npt.NDArray[Any], Int64s]:
    """Tokens of texts, each text's followed by the token `end`.

    A text of more than `PIECE` characters is encoded in pieces that end before a blank, or after
    4 `PIECE` characters without one, so that memory stays bounded. Tokenizers that split texts at
    blanks first, as byte-level ones do, give the same tokens.

    Returns:
        Tokens of `kind` [tokens], and int64 [rows + 1], where every text's begin.
    """
    _, offsets = string_buffers(texts)
    parts: list[npt.NDArray[Any]] = []
    lengths = np.zeros(len(texts), np.int64)
    size = int(offsets[-1] - offsets[0])
    for first, after in even_cuts(offsets, 1 + size // CALL_BYTES):
        strings = texts.slice(first, after - first).to_pylist()
        if max(map(len, strings)) > PIECE:
            found = (_in_pieces(tokenizer, text, end, kind) for text in strings)
        else:
            encoded = tokenizer.encode_batch_fast(strings, add_special_tokens=False)
            found = (np.array([*one.ids, end], kind) for one in encoded)
        for row, ids in enumerate(found, first):
            parts.append(ids)
            lengths[row] = len(ids)
    values = np.concatenate(parts) if parts else np.zeros(0, kind)
    return values, np.append(0, np.cumsum(lengths))


def _in_pieces(
    tokenizer: "Tokenizer", text: str, end: int, kind: np.dtype[Any]
) -> npt.NDArray[Any]:
    found = [
        np.array(tokenizer.encode(piece, add_special_tokens=False).ids, kind)
        for piece in pieces(text, PIECE)
    ]
    return np.concatenate([*found, np.array([end], kind)])


def pieces(text: str, size: int) -> Iterator[str]:
    """A long text in parts of about `size` characters that end before a blank where there is one.

    Example:
        >>> list(pieces("ab  cd ef", size=3))
        ['ab  cd', ' ef']
    """
    begin = 0
    while len(text) - begin > size:
        found = _CUT.search(text, begin + size, begin + 4 * size)
        end = found.end() if found else begin + 4 * size
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


def learn_tokenizer(texts: Iterable[str], vocabulary: int) -> "Tokenizer":
    """A byte-level BPE tokenizer of texts, in the library's own words.

    The order of the texts does not matter, as the library counts words first.

    Args:
        vocabulary: tokens at most; the 256 bytes and the end of text are among them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_at(path: Path) -> "Tokenizer":
    """The tokenizer of a file as it is now."""
    return text_tokenizer(str(path), digest_file(path))
