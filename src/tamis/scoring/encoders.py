"""A transformer turned loose on a batch of texts: tokens, batches by length, forward, pooling.

A text is padded to a length that follows from itself alone, and every forward runs on one thread,
several beside one another. With OpenVINO a vector then does not depend on what else is in its
batch, how many rows that has or how many threads run, to the bit; tests hold it. PyTorch picks
its kernels by the size of the batch: its vectors may vary in the last bits.
"""

import os
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tamis.scoring.embedding_models import dimension_of
from tamis.scoring.hardware import Precision, loaded_once, model_threads, one_thread
from tamis.scoring.model_files import ModelFiles, fast_tokenizer
from tamis.storage.errors import RunError, UserError
from tamis.storage.kernels import Int64s, even_cuts, in_threads, string_buffers

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

Float32s = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Backend = Literal["openvino", "torch"]

#: Tokens of one forward, padding included. Measured: more does not run faster on a processor.
CPU_TOKENS, CUDA_TOKENS = 2048, 65536
#: Lengths that texts are padded to are multiples of it.
LENGTH_STEP = 8
#: Text tokenised in one call; see `token_count`.
_CALL_BYTES = 1 << 18
#: Characters a token is first given of a text that may be longer than the model reads.
_TOKEN_CHARACTERS = 8
#: And at the least: more than the longest word that a tokenizer treats unlike longer ones.
_LEAST_CHARACTERS = 1024
_NO_IDS: Ids = np.zeros(0, np.int32)


class Encoded(NamedTuple):
    """What a batch of texts has become.

    Attributes:
        vectors: float32 ``(n, d)``.
        tokens: int32, tokens that the model read, special ones included.
        truncated: bool, whether the text goes on after them.
    """

    vectors: Float32s
    tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]


@loaded_once(4)
def load_transformer(
    files: ModelFiles,
    backend: Backend,
    precision: Precision,
    device: str,
    max_tokens: int | None,
    prompt: str | None,
) -> "TransformerEncoder":
    """An encoder, loaded once in a process."""
    return TransformerEncoder(files, backend, precision, device, max_tokens, prompt)


def load_model(files: ModelFiles, device: str) -> "SentenceTransformer":
    """A model of sentence-transformers, from local files and without code of its own.

    Raises:
        UserError: if it cannot be loaded.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = SentenceTransformer(
            str(files.folder), device=device, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the libraries below raise whatever comes
        raise UserError(
            f"the model {files.name!r} cannot be loaded "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]})",
            where=str(files.folder),
            mend="give a folder as `SentenceTransformer.save` writes it",
        ) from error
    return model.eval()


class TransformerEncoder:
    """A sentence-transformers model whose first module is a transformer."""

    def __init__(
        self,
        files: ModelFiles,
        backend: Backend,
        precision: Precision,
        device: str,
        max_tokens: int | None,
        prompt: str | None,
    ) -> None:
        model = load_model(files, device)
        self.dimension = dimension_of(files.folder, files.name)
        self.prompt = _prompt(model) if prompt is None else prompt
        context = int(model.max_seq_length or 512)
        if max_tokens is not None and max_tokens > context:
            raise UserError(
                f"max_tokens: the model {files.name!r} reads {context} tokens, found {max_tokens}",
                where="recipe",
            )
        self.max_tokens = max_tokens or context
        self._tokenizer = _tokenizer(model, files, self.max_tokens)
        self._pad_id = int(model.tokenizer.pad_token_id or 0)
        self._workers = 1 if device == "cuda" else model_threads()
        self._budget = CUDA_TOKENS if device == "cuda" else CPU_TOKENS
        self._extra = _prompt_features(model, self.prompt)
        forward: Callable[..., Any]
        if backend == "openvino":
            forward = _OpenVino(model, files, precision, self._workers)
        else:
            forward = _Torch(model, precision, device)
        self._forward = forward

    def encode(self, text: pa.Array) -> Encoded:
        """Vectors of some texts, as `SentenceTransformer.encode` gives them."""
        ids, truncated = self._tokens(text)
        tokens = np.fromiter(map(len, ids), np.int64, len(ids))
        vectors = np.empty((len(ids), self.dimension), np.float32)

        def run(rows: Int64s) -> None:
            padded, mask = self._padded([ids[row] for row in rows])
            vectors[rows] = self._forward(padded, mask, self._extra)

        in_threads(run, batches(tokens, self._budget), self._workers)
        return Encoded(vectors, tokens.astype(np.int32), truncated)

    def _tokens(self, text: pa.Array) -> tuple[list[Ids], npt.NDArray[np.bool_]]:
        """Every text's tokens; of a long text only as much is read as the model does."""
        ids: list[Ids] = [_NO_IDS] * len(text)
        truncated = np.zeros(len(text), np.bool_)
        todo = np.arange(len(text))
        limit = max(self.max_tokens * _TOKEN_CHARACTERS, _LEAST_CHARACTERS)
        while len(todo):
            part, cut = beginnings(text.take(pa.array(todo)), limit)
            found = self._encode(part)
            for row, (mine, more) in zip(todo, found, strict=True):
                ids[row], truncated[row] = mine, more
            todo = todo[cut & ~truncated[todo]]
            limit *= 4
        return ids, truncated

    def _encode(self, text: pa.Array) -> list[tuple[Ids, bool]]:
        """Ids of every text, and whether there are more than the model reads."""
        _, offsets = string_buffers(text)
        size = int(offsets[-1] - offsets[0]) if len(text) else 0

        def call(rows: tuple[int, int]) -> list[tuple[Ids, bool]]:
            part = text.slice(rows[0], rows[1] - rows[0]).to_pylist()
            if self.prompt:
                part = [self.prompt + one for one in part]
            # What the library gives takes a hundred bytes a token.
            found = self._tokenizer.encode_batch_fast(part)
            return [(np.array(one.ids, np.int32), bool(one.overflowing)) for one in found]

        parts = in_threads(call, even_cuts(offsets, 1 + size // _CALL_BYTES), self._workers)
        return [found for part in parts for found in part]

    def _padded(self, ids: list[Ids]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Token ids of texts of one padded length, and where they are not padding."""
        length = int(_padded_lengths(np.array([len(ids[0])]))[0])
        padded = np.full((len(ids), length), self._pad_id, np.int64)
        mask = np.zeros((len(ids), length), np.int64)
        for row, mine in enumerate(ids):
            # On the right whatever the tokenizer does: positions stay those of the text alone.
            padded[row, : len(mine)] = mine
            mask[row, : len(mine)] = 1
        return padded, mask


def _padded_lengths(tokens: Int64s) -> Int64s:
    return np.maximum(-(-tokens // LENGTH_STEP), 1) * LENGTH_STEP


def batches(tokens: Int64s, budget: int) -> list[Int64s]:
    """Rows that are padded to one length, longest first, as many as the budget of tokens allows.

    Example:
        >>> [rows.tolist() for rows in batches(np.array([3, 20, 8, 22]), budget=48)]
        [[1, 3], [0, 2]]
    """
    lengths = _padded_lengths(tokens)
    order = np.argsort(-lengths, kind="stable")
    found = []
    for rows in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        if len(rows):
            size = max(1, budget // int(lengths[rows[0]]))
            found += [rows[i : i + size] for i in range(0, len(rows), size)]
    return found


def beginnings(text: pa.Array, limit: int) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Texts cut to at most `limit` characters, before a blank if there is one, and which were.

    A tokenizer parts words at blanks first: the tokens of what is left are those of the whole.
    """
    part = pc.utf8_slice_codeunits(text, 0, limit)
    cut = pc.less(pc.binary_length(part), pc.binary_length(text))
    if pc.any(cut).as_py():
        before = pc.replace_substring_regex(part, r"\s\S*\z", "", max_replacements=1)
        part = pc.if_else(cut, before, part)
    return part, np.asarray(cut, np.bool_)


def _tokenizer(model: "SentenceTransformer", files: ModelFiles, max_tokens: int) -> "Tokenizer":
    """The model's tokenizer, told to cut off what the model does not read, and not to pad."""
    tokenizer = fast_tokenizer(model.tokenizer, files)
    tokenizer.enable_truncation(max_tokens, direction=model.tokenizer.truncation_side)
    return tokenizer


def _prompt(model: "SentenceTransformer") -> str:
    """What the model itself puts before every text."""
    name = model.default_prompt_name
    return str((model.prompts or {}).get(name, "")) if name is not None else ""


def _prompt_features(model: "SentenceTransformer", prompt: str) -> dict[str, Any]:
    """How many tokens of the prompt are left out of the pooling, where the model wants that."""
    if not prompt:
        return {}
    found = model.preprocess(["a"], prompt=prompt)
    return {"prompt_length": found["prompt_length"]} if "prompt_length" in found else {}


class _Torch:
    """The whole model in PyTorch."""

    def __init__(self, model: "SentenceTransformer", precision: Precision, device: str) -> None:
        import torch

        self._model = model.to(getattr(torch, precision))
        self._device = device

    def __call__(
        self, ids: npt.NDArray[Any], mask: npt.NDArray[Any], extra: dict[str, Any]
    ) -> Float32s:
        import torch

        features = {
            "input_ids": torch.from_numpy(ids).to(self._device),
            "attention_mask": torch.from_numpy(mask).to(self._device),
            **extra,
        }
        with torch.inference_mode(), one_thread():
            return _vectors(self._model(features))


class _OpenVino:
    """The transformer in OpenVINO, what comes after it (pooling and the like) in PyTorch."""

    def __init__(
        self, model: "SentenceTransformer", files: ModelFiles, precision: Precision, workers: int
    ) -> None:
        self._after = list(model)[1:]
        try:
            self._compiled = _compiled(model[0].model, precision, workers)
        except Exception as error:  # the converter raises whatever comes
            raise RunError(
                f"OpenVINO cannot convert the model {files.name!r} "
                f"({str(error).strip().splitlines()[0]})",
                where=str(files.folder),
                mend="set `backend: torch`",
            ) from error
        self._requests = threading.local()

    def __call__(
        self, ids: npt.NDArray[Any], mask: npt.NDArray[Any], extra: dict[str, Any]
    ) -> Float32s:
        import torch

        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._compiled.create_infer_request()
        hidden = request.infer([ids, mask], share_inputs=True, share_outputs=True)[0]
        features: dict[str, Any] = {
            "token_embeddings": torch.from_numpy(hidden),
            "attention_mask": torch.from_numpy(mask),
            **extra,
        }
        with torch.inference_mode(), one_thread():
            for module in self._after:
                features = module(features)
            return _vectors(features)


def _compiled(transformer: Any, precision: Precision, workers: int) -> Any:
    """An OpenVINO model of token ids and mask that gives the last hidden states."""
    import openvino
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    from transformers.utils import logging

    class LastHidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.transformer(
                input_ids=input_ids, attention_mask=attention_mask
            ).last_hidden_state

    example = torch.ones(2, 2 * LENGTH_STEP, dtype=torch.long)
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Not `openvino.convert_model`: that sends the maker word of every call.
            decoder = TorchScriptPythonDecoder(
                LastHidden().eval(),
                example_input={"input_ids": example, "attention_mask": example},
            )
            frontend = FrontEndManager().load_by_framework("pytorch")
            found = frontend.convert(frontend.load(decoder))
    finally:
        logging.set_verbosity(before)
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": workers,
        "NUM_STREAMS": workers,
    }
    return openvino.Core().compile_model(found, "CPU", options)


def _vectors(features: dict[str, Any]) -> Float32s:
    found: Float32s = features["sentence_embedding"].float().cpu().numpy()
    return found
