"""Folders of tokens for tests of proxies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tamis.storage.token_shards import TokenManifest, TokenShards, lay_out, token_files, token_type


def write_tokens(
    out: Path,
    train: Mapping[str, npt.NDArray[Any]],
    validation: Mapping[str, npt.NDArray[Any]] | None = None,
    vocabulary: int = 16,
) -> TokenShards:
    """A folder of one document a domain and split; the same for both if only one is given."""
    names = sorted(train)
    held_out = train if validation is None else validation
    documents = [split[name] for name in names for split in (train, held_out)]
    lengths = np.array([len(found) for found in documents])
    rows = np.arange(len(documents))
    layout = lay_out(rows.astype(np.int32), lengths, len(documents), [rows])
    kind = token_type(vocabulary)
    with token_files(out, layout, kind) as files:
        offsets = np.append(0, np.cumsum(lengths))
        files.put(rows, np.concatenate(documents).astype(kind), offsets)
        manifest = TokenManifest(
            key="made for a test",
            tokenizer="",
            vocabulary=vocabulary,
            end_of_text=0,
            validation=0.5,
            seed=0,
            domains=files.parts(names, lengths),
            left_out={},
        )
        return files.publish(out, manifest, "{}")
