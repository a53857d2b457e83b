"""Static embeddings: a vector for every token of the vocabulary, and their mean for a text."""

import contextlib
import fcntl
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from tamis.scoring.embedding_models import (
    MINILM,
    STATIC,
    find_model,
    kind_of_module,
    modules_of,
    need_embed,
)
from tamis.scoring.encoders import Encoded
from tamis.scoring.hardware import loaded_once, model_threads, one_thread
from tamis.scoring.model_files import ModelFiles, read_config
from tamis.scoring.wordpiece import next_pieces, spells_special, word_pieces
from tamis.storage.errors import UserError
from tamis.storage.files import digest_of, sync
from tamis.storage.kernels import KERNEL, Int64s, even_cuts, in_threads, string_buffers
from tamis.storage.places import place_errors

#: What `model: static` is distilled with: model2vec's own defaults.
DISTILLED: dict[str, Any] = {"pca_dims": 256, "sif_coefficient": 1e-4, "quantize_to": "float16"}
#: Token vectors are added in float32 in runs of so many, the runs in float64.
_RUN = 512
#: Text given to the tokenizer in one call, and least text worth a thread of its own.
_CALL_BYTES, _THREAD_BYTES = 1 << 18, 1 << 20


def cache_folder() -> Path:
    """Where models are kept that this package made: ``TAMIS_CACHE``, else the user's cache."""
    if os.environ.get("TAMIS_CACHE"):
        return Path(os.environ["TAMIS_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "tamis"


def distilled() -> Path:
    """Folder of the static model distilled from the packaged MiniLM, made where it is missing.

    Raises:
        UserError: if a package is missing or the cache cannot be written.
    """
    source = find_model(MINILM)
    folder = cache_folder() / f"{STATIC}-{digest_of([source.digest, DISTILLED])[:16]}"
    if not folder.is_dir():
        need_embed("model2vec", f"the model {STATIC!r}")
        with place_errors(folder), _alone(folder):
            if not folder.is_dir():
                _distil(source.folder, folder)
    return folder


_DISTILLING = Lock()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other threads and processes from making the same model; sweep what one left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _DISTILLING, (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(leftover)
        yield


def _distil(source: Path, folder: Path) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from model2vec.distill import distill

    made = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    # Its threads wait for one another, for minutes on a machine that has other work too; and it
    # shows a progress bar.
    with one_thread(), contextlib.redirect_stderr(io.StringIO()):
        model = distill(str(source), device="cpu", **DISTILLED)
    model.config["tokenizer_name"] = MINILM  # not the folder it was in
    model.save_pretrained(str(made))
    for path in (*made.iterdir(), made):
        sync(path)
    made.rename(folder)
    sync(folder.parent)


@loaded_once(4)
def load_static(files: ModelFiles, max_tokens: int | None) -> "StaticEncoder":
    """An encoder, loaded once in a process."""
    return StaticEncoder(files, max_tokens)


class StaticEncoder:
    """A static model, as model2vec and sentence-transformers store it.

    The vector of a text is the mean of its tokens' vectors, brought to length one where the model
    says so; of a text without a known token it is zero. Every text is added up by itself in the
    order of its tokens: its vector does not depend on its batch.
    """

    def __init__(self, files: ModelFiles, max_tokens: int | None) -> None:
        need_embed("tokenizers", f"the model {files.name!r}")
        from tokenizers import Tokenizer

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        place = files.folder / modules_of(files.folder)[0]["path"]
        try:
            self._tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(
                f"not a tokenizer ({error})", where=str(place / "tokenizer.json")
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._vectors = np.ascontiguousarray(_matrix(place), np.float32)
        self.dimension = self._vectors.shape[1]
        self._max_tokens = max_tokens or np.iinfo(np.int64).max
        config = read_config(place / "config.json") if (place / "config.json").exists() else {}
        if "normalize" in config:  # of model2vec, which leaves unknown tokens out of the mean
            self._skipped = _unknown(self._tokenizer)
            self._length_one = bool(config["normalize"])
        else:  # of sentence-transformers, which does not
            self._skipped = -1
            modules = modules_of(files.folder)
            self._length_one = any(kind_of_module(m) == "Normalize" for m in modules)
        self._pieces = word_pieces(self._tokenizer)

    def encode(self, text: pa.Array) -> Encoded:
        """Vectors of some texts."""
        rows = len(text)
        out = Encoded(
            np.empty((rows, self.dimension), np.float32),
            np.empty(rows, np.int32),
            np.empty(rows, np.bool_),
        )
        data, offsets = string_buffers(text)
        size = int(offsets[-1] - offsets[0]) if rows else 0
        if self._pieces is None:
            slow = np.ones(rows, np.bool_)
        else:
            slow = spells_special(self._tokenizer, text)

            def run(part: tuple[int, int]) -> None:
                here = slice(*part)
                _embed(
                    data,
                    offsets[part[0] : part[1] + 1],
                    self._pieces,
                    self._vectors,
                    self._skipped,
                    self._max_tokens,
                    self._length_one,
                    *(column[here] for column in out),
                )

            parts = min(model_threads(), 1 + size // _THREAD_BYTES)
            in_threads(run, even_cuts(offsets, parts), parts)
        self._tokenise(text, np.flatnonzero(slow), out)
        return out

    def _tokenise(self, text: pa.Array, rows: Int64s, out: Encoded) -> None:
        """Vectors of some rows with the ids of the tokenizer itself."""
        _, offsets = string_buffers(text.take(pa.array(rows)))

        def run(part: tuple[int, int]) -> None:
            here = rows[slice(*part)]
            found = self._tokenizer.encode_batch_fast(
                text.take(pa.array(here)).to_pylist(), add_special_tokens=False
            )
            ids = [np.array(one.ids, np.int32) for one in found]
            ends = np.cumsum([0, *map(len, ids)]).astype(np.int64)
            made = Encoded(
                np.empty((len(here), self.dimension), np.float32),
                np.empty(len(here), np.int32),
                np.empty(len(here), np.bool_),
            )
            _embed_ids(
                np.concatenate([*ids, np.zeros(0, np.int32)]),
                ends,
                self._vectors,
                self._skipped,
                self._max_tokens,
                self._length_one,
                *made,
            )
            for column, values in zip(out, made, strict=True):
                column[here] = values

        if len(rows):
            parts = even_cuts(offsets, 1 + int(offsets[-1] - offsets[0]) // _CALL_BYTES)
            in_threads(run, parts, model_threads())


@njit(**KERNEL)
def _add(ids, count, vectors, skipped, run, in_run, total, added):  # type: ignore[no-untyped-def]
    """Add the vectors of some tokens; `run` goes to `total` whenever it is full."""
    for i in range(count):
        if ids[i] == skipped:
            continue
        vector = vectors[ids[i]]
        for k in range(run.shape[0]):
            run[k] += vector[k]
        in_run += 1
        added += 1
        if in_run == _RUN:
            for k in range(run.shape[0]):
                total[k] += run[k]
                run[k] = 0
            in_run = 0
    return in_run, added


@njit(**KERNEL)
def _mean(run, total, added, length_one, out):  # type: ignore[no-untyped-def]
    """The mean of the vectors added; both sums are set to zero for the next text."""
    square = 0.0
    for k in range(run.shape[0]):
        total[k] = (total[k] + run[k]) / max(added, 1)
        square += total[k] * total[k]
        run[k] = 0
    scale = 1 / np.sqrt(square) if length_one and square > 0 else 1.0
    for k in range(run.shape[0]):
        out[k] = total[k] * scale
        total[k] = 0


@njit(**KERNEL)
def _embed(  # type: ignore[no-untyped-def]
    data, offsets, tables, vectors, skipped, max_tokens, length_one, out, tokens, truncated
):
    codes = np.empty(tables.limit, np.int32)
    states = np.empty(tables.limit, np.uint64)
    ids = np.empty(16 * tables.limit, np.int32)
    run = np.zeros(vectors.shape[1], np.float32)
    total = np.zeros(vectors.shape[1], np.float64)
    for row in range(tokens.shape[0]):
        at, end = offsets[row], offsets[row + 1]
        read, in_run, added = 0, 0, 0
        more = False
        while at < end and not more:
            count, at = next_pieces(data, at, end, tables, codes, states, ids)
            more = read + count > max_tokens
            count = min(count, max_tokens - read)
            in_run, added = _add(ids, count, vectors, skipped, run, in_run, total, added)
            read += count
        _mean(run, total, added, length_one, out[row])
        tokens[row] = read
        truncated[row] = more


@njit(**KERNEL)
def _embed_ids(  # type: ignore[no-untyped-def]
    ids, ends, vectors, skipped, max_tokens, length_one, out, tokens, truncated
):
    run = np.zeros(vectors.shape[1], np.float32)
    total = np.zeros(vectors.shape[1], np.float64)
    for row in range(tokens.shape[0]):
        count = min(ends[row + 1] - ends[row], max_tokens)
        mine = ids[ends[row] : ends[row] + count]
        _, added = _add(mine, count, vectors, skipped, run, 0, total, 0)
        _mean(run, total, added, length_one, out[row])
        tokens[row] = count
        truncated[row] = ends[row + 1] - ends[row] > count


def _matrix(place: Path) -> npt.NDArray[Any]:
    """The token vectors of a model's folder."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = place / "model.safetensors"
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights cannot be read ({error})", where=str(path)) from error
    names = set(found)
    if names not in ({"embeddings"}, {"embedding.weight"}):
        raise UserError(
            f"expected one matrix of token vectors, found {', '.join(sorted(names))}",
            where=str(path),
            mend="use a static model without weights or mapping of tokens",
        )
    return found[names.pop()]


def _unknown(tokenizer: Any) -> int:
    model = json.loads(tokenizer.to_str())["model"]
    found = tokenizer.token_to_id(model.get("unk_token") or "")
    return -1 if found is None else int(found)
