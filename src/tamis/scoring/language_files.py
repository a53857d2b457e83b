"""Where the files of a causal language model lie, and what its configuration tells."""

from pathlib import Path
from typing import Any

from tamis.scoring.model_files import (
    PICKLED,
    TOKENIZERS,
    WEIGHTS,
    ModelFiles,
    digest_folder,
    locate_model,
    read_config,
)
from tamis.storage.errors import UserError

_SAVED = "give a folder as `save_pretrained` of model and tokenizer writes it"
#: By what name configurations give the tokens a model reads at once, and the width of its states.
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")


def find_language_model(name: str, revision: str | None = None) -> ModelFiles:
    """The files of a causal language model, checked.

    Args:
        name: a local folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit there.

    Raises:
        UserError: if they are not there and cannot be had, or are incomplete.
    """
    folder, commit = locate_language_model(name, revision)
    return ModelFiles(name, folder, digest_folder(folder), commit)


def locate_language_model(name: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Folder of a model, and its commit on the hub; errors as in `find_language_model`."""
    folder, commit = locate_model(name, revision, _missing, "models")
    missing = _missing(folder)
    if missing:
        pickled = [file for file in PICKLED if (folder / file).exists()]
        if pickled and missing.startswith("its weights"):
            raise UserError(
                f"the weights of the model {name!r} are pickled ({pickled[0]}), which may run code",
                where=str(folder),
                mend="convert them: save_pretrained of transformers writes safetensors",
            )
        raise UserError(f"the folder of the model lacks {missing}", where=str(folder), mend=_SAVED)
    return folder, commit


def context_of(folder: Path, name: str) -> int | None:
    """Tokens that a model reads at once, as its configuration tells; None if it does not."""
    return _integer(folder, _CONTEXT)


def width_of(folder: Path, name: str) -> int:
    """Numbers of a hidden state of a model, as its configuration tells.

    Raises:
        UserError: if it does not.
    """
    found = _integer(folder, _WIDTH)
    if found is None:
        raise UserError(
            f"the model {name!r} does not tell the width of its hidden states",
            where=str(folder / "config.json"),
            mend="set `hidden: none`",
        )
    return found


def state_bytes(folder: Path, name: str) -> int:
    """Most bytes of keys and values that a model keeps of a token it has read, in float32.

    Raises:
        UserError: if its configuration does not tell the width of its states.
    """
    layers = _integer(folder, _LAYERS)
    return 8 * (layers or 1) * width_of(folder, name)


def words_of(folder: Path) -> int | None:
    """Tokens that a model can say, as its configuration tells; None if it does not."""
    return _integer(folder, ("vocab_size",))


def _integer(folder: Path, names: tuple[str, ...]) -> int | None:
    config: Any = read_config(folder / "config.json")
    # Of a model for more than text, the part that is for text.
    for part in (config, config.get("text_config")):
        for name in names:
            if isinstance(part, dict) and isinstance(part.get(name), int):
                return int(part[name])
    return None


def _missing(folder: Path) -> str:
    """What a folder lacks to be a model, or nothing."""
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            return "config.json: it is an adapter, which must be merged into its model first"
        return "config.json"
    weights = [folder / file for file in WEIGHTS if (folder / file).exists()]
    if not weights:
        return f"its weights ({WEIGHTS[0]})"
    if weights[0].name == WEIGHTS[1]:
        parts = read_config(weights[0]).get("weight_map", {}).values()
        for part in sorted(set(parts)):
            if Path(part).name != part:
                return f"a part of its weights that lies elsewhere ({part})"
            if not (folder / part).exists():
                return f"a part of its weights ({part})"
    if not any((folder / file).exists() for file in TOKENIZERS):
        return f"its tokenizer ({TOKENIZERS[0]})"
    return ""
