"""Where the files of a model lie, and what identifies them.

A model is a local folder or a name on the Hugging Face hub. Only the latter may use the network,
and only where the hub's own cache lacks it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tamis.storage.errors import UserError
from tamis.storage.files import digest_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Weights without code in them, whole or in parts, and those that are pickled.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")

#: What a model is read from; README files and weights for other libraries are left out.
_READ = (".json", ".txt", ".jinja", ".safetensors", ".model", ".bin")
_IGNORED_FOLDERS = {"onnx", "openvino", ".git", ".cache"}
_IGNORED_FILES = {"data_config.json"}  # what the model was trained on


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine.

    Attributes:
        name: as the user gave it.
        folder: where its files lie.
        digest: of the files that it is loaded from.
        revision: commit on the hub, for a model from there.
    """

    name: str
    folder: Path
    digest: str
    revision: str | None = None

    def pinned(self, digest: str | None) -> Self:
        """These files, if they are those of a digest that a recipe pins, or it pins none.

        Raises:
            UserError: if they are others.
        """
        if digest not in (None, self.digest):
            raise UserError(
                f"the model {self.name!r} has the digest {self.digest}, expected {digest}",
                where=str(self.folder),
                mend="restore its files, or remove `digest` from the recipe",
            )
        return self


def need_package(package: str, what: str, extra: str) -> None:
    """Raise a `UserError` that names the extra if a package is not installed."""
    if find_spec(package) is None:
        raise UserError(
            f"{what} needs the package {package}, which is not installed",
            mend=f"pip install 'tamis[{extra}]'",
        )


def fast_tokenizer(tokenizer: Any, files: ModelFiles) -> "Tokenizer":
    """A copy of what is inside a tokenizer of transformers, that neither pads nor cuts off.

    Raises:
        UserError: if it is written in Python only.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"the model {files.name!r} has a tokenizer written in Python only",
            where=str(files.folder),
            mend="use a model with a tokenizer.json",
        )
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def locate_model(
    name: str,
    revision: str | None,
    missing: Callable[[Path], str],
    extra: str,
    instead: str = "",
) -> tuple[Path, str | None]:
    """Folder of a model, and its commit on the hub if it is from there.

    Args:
        missing: tells what a folder lacks, or nothing.
        extra: that brings the packages to fetch it.
        instead: what else to do where the hub cannot be reached.

    Raises:
        UserError: if it is neither a folder nor to be had from the hub. What a folder lacks is left
            to the caller.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve(), None
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError("no such model folder", where=name)
    return _from_hub(name, revision, missing, extra, instead)


def digest_folder(folder: Path) -> str:
    """Digest of what the files of a model say, wherever they lie; 32 hex digits."""
    return digest_of({name: _sha256(path, *_state(path)) for name, path in _files(folder)})


def bytes_of(folder: Path) -> int:
    """Bytes of a model's files."""
    return sum(path.stat().st_size for _, path in _files(folder))


def read_config(path: Path) -> Any:
    """What a JSON file of a model says.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as JSON ({error})", where=str(path)) from error


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if (
            path.suffix in _READ
            and path.is_file()
            and path.name not in _IGNORED_FILES
            and not _IGNORED_FOLDERS & set(inside.parts)
            and not (path.suffix == ".bin" and (path.parent / WEIGHTS[0]).exists())
        ):
            found.append((inside.as_posix(), path))
    return found


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(
    name: str, revision: str | None, missing: Callable[[Path], str], extra: str, instead: str
) -> tuple[Path, str]:
    """Folder and commit of a model of the hub: from its cache if it is there, else fetched."""
    need_package("huggingface_hub", f"the model {name!r}", extra)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours are on the screen
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": [f"*{suffix}" for suffix in _READ if suffix != ".bin"],
        "ignore_patterns": [f"{folder}/*" for folder in sorted(_IGNORED_FOLDERS)],
    }
    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            folder = Path(snapshot_download(name, local_files_only=True, **wanted))
            if not missing(folder):
                return folder, folder.name
        folder = Path(snapshot_download(name, **wanted))
    except HFValidationError as error:
        raise UserError(f"neither a folder nor a name on the hub: {name!r}") from error
    except GatedRepoError as error:
        raise UserError(
            f"the hub gives the model {name!r} to some accounts only",
            mend="ask for access on its page and set HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"the model {name!r} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"neither a folder nor a public model on the hub: {name!r}",
            mend="for a private one set HF_TOKEN",
        ) from error
    except Exception as error:  # no network, HF_HUB_OFFLINE, a proxy: each with an error of its own
        raise UserError(
            f"the model {name!r} is not on this machine, and the hub cannot be reached "
            f"({type(error).__name__})",
            mend=f"fetch it where there is a network and give its folder{instead}",
        ) from error
    return folder, folder.name
