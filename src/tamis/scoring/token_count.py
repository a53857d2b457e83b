"""Tokens of a text: counted by a tokenizer, or estimated from its bytes."""

import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, FilePath, model_validator

from tamis.scoring.operator import RowScorer
from tamis.storage.errors import UserError
from tamis.storage.files import digest_file
from tamis.storage.kernels import Int64s, even_cuts, string_buffers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Text encoded in one call: the library holds about a hundred bytes for a token until it returns.
CALL_BYTES = 1 << 18


@cache
def open_tokenizer(path: str, digest: str) -> "Tokenizer":
    """The tokenizer of a file, told to give every token of every text and no padding."""
    from tokenizers import Tokenizer

    # Shards are spread over our own threads, as many as the user allows; the library's would come
    # on top of them, and count no faster (docs/quality-scores.md). Who sets it is heard.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"not a tokenizer of the tokenizers library ({error})",
            where=path,
            mend="give the tokenizer.json of a model",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class TokenCount(RowScorer):
    """Tokens of a text under a tokenizer, or an estimate of them from its bytes.

    The tokenizer is a ``tokenizer.json`` of Hugging Face's tokenizers library; special tokens
    are not added, nothing is cut off or padded, and text that spells a special token counts as
    the tokenizer says. The estimate has a column of its own, so that nobody takes it for a
    count; the bytes a token has on average depend on tokenizer and language: measure yours.

    Example:
        >>> import pyarrow as pa
        >>> batch = pa.record_batch({"text": pa.array(["a sieve", ""])})
        >>> TokenCount(bytes_per_token=4.0).compute(batch).to_pydict()
        {'tokens_estimated': [2, 0]}
    """

    operator: Literal["token_count"] = "token_count"

    tokenizer: FilePath | None = Field(
        default=None, description="tokenizer.json to count with; needs `pip install tamis[tokens]`"
    )
    bytes_per_token: float | None = Field(
        default=None, gt=0, description="estimate: UTF-8 bytes over this, rounded up; no default"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Hugging Face tokenizers"
    roles: ClassVar[tuple[str, ...]] = ("text",)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.tokenizer is None) == (self.bytes_per_token is None):
            raise ValueError("give either `tokenizer` or `bytes_per_token`")
        if self.tokenizer is not None and find_spec("tokenizers") is None:
            raise ValueError(
                "a tokenizer needs the package tokenizers: pip install 'tamis[tokens]'"
            )
        return self

    def memory(self) -> int:
        # Measured: 9 bytes for one of a file of 32,000 tokens, doubled, and what calls hold.
        return 0 if self.tokenizer is None else 20 * self.tokenizer.stat().st_size + (128 << 20)

    def key_parts(self) -> dict[str, Any]:
        parts = super().key_parts()
        if self.tokenizer is None:
            return parts
        from tokenizers import __version__

        # What the file says counts, not where it lies.
        return {**parts, "tokenizer": digest_file(self.tokenizer), "tokenizers": __version__}

    def fields(self) -> pa.Schema:
        """``tokens`` (counted by the tokenizer) or ``tokens_estimated``; int64, 0 for no text."""
        name = "tokens_estimated" if self.tokenizer is None else "tokens"
        return pa.schema([pa.field(name, pa.int64(), nullable=False)])

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        _, offsets = string_buffers(batch["text"])
        if self.bytes_per_token is not None:
            counts = np.ceil(np.diff(offsets) / self.bytes_per_token).astype(np.int64)
        else:
            counts = self._counted(batch["text"], offsets)
        return pa.record_batch([pa.array(counts)], schema=self.fields())

    def _counted(self, text: pa.Array, offsets: Int64s) -> Int64s:
        assert self.tokenizer is not None
        tokenizer = open_tokenizer(str(self.tokenizer), digest_file(self.tokenizer))
        counts = np.zeros(len(text), np.int64)
        size = int(offsets[-1] - offsets[0])
        for first, last in even_cuts(offsets, 1 + size // CALL_BYTES):
            part = text.slice(first, last - first).to_pylist()
            found = tokenizer.encode_batch_fast(part, add_special_tokens=False)
            counts[first:last] = np.fromiter(map(len, found), np.int64, last - first)
        return counts
