"""A corpus as tokens: flat files by domain and split, as trainers read them.

A folder holds ``tokens.json`` (what is in it), ``tokenizer.json`` (of the tokenizers library),
``supply.json`` (how much there is of every domain to train on) and an ``.npy`` file of tokens a
domain and split, documents one after the other in order of row_id, each ended by the tokenizer's
end-of-text token. The files are memory-mapped, so that they may be larger than memory.
"""

import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt
from numba import njit
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tamis.storage.domain_supply import Amount, Supply
from tamis.storage.errors import UserError
from tamis.storage.files import (
    TEMPORARY,
    HeldFolder,
    digest_file,
    digest_of,
    swap_folders,
    sweep_folders,
    sync,
    write_json,
)
from tamis.storage.kernels import KERNEL, Int64s
from tamis.storage.places import Place, place_errors, place_of

MANIFEST, TOKENIZER, SUPPLY = "tokens.json", "tokenizer.json", "supply.json"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)
_FILE = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{4,}}\.npy")
Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class Part(BaseModel):
    """The tokens of a domain in a split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    rows: int = Field(ge=0, description="documents")
    tokens: int = Field(ge=0, description="one a document for its end included")
    bytes: int = Field(ge=0, description="of UTF-8 text")
    digest: str = Field(description="xxh3-128 of the file")


class TokenManifest(BaseModel):
    """What a folder of tokens holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["tamis tokens 1"] = "tamis tokens 1"
    key: str = Field(description="of corpus, tokenizer and settings: the same makes the same bytes")
    tokenizer: str = Field(description="xxh3-128 of tokenizer.json")
    vocabulary: int = Field(ge=1, description="tokens are below it")
    end_of_text: int = Field(ge=0, description="token that ends every document")
    validation: float = Field(description="share of documents that went there, by their row_id")
    seed: int
    domains: dict[str, dict[Split, Part]]
    left_out: dict[str, int] = Field(description="rows that are in no file, by reason")
    origin: dict[str, Any] = Field(default={}, description="what it was made from, for readers")


@dataclass(frozen=True)
class TokenShards:
    """A folder of tokens, opened.

    Attributes:
        folder: where it lies.
        manifest: what it holds.
    """

    folder: Path
    manifest: TokenManifest

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a folder that `tamis mix tokenise` wrote.

        Raises:
            UserError: if there is none, or a file is gone or of another length.
        """
        folder = local_folder(path)
        try:
            text = (folder / MANIFEST).read_text("utf-8")
            manifest = TokenManifest.model_validate_json(text)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                "no tokens here", where=str(path), mend="`tamis mix tokenise` writes such a folder"
            ) from None
        except (ValidationError, UnicodeDecodeError) as error:
            raise UserError(
                f"not of the format 'tamis tokens 1': {str(error).splitlines()[0]}",
                where=str(folder / MANIFEST),
                mend="write the folder anew by `tamis mix tokenise`",
            ) from None
        opened = cls(folder, manifest)
        for domain in opened.domains:
            for split in SPLITS:
                opened.read(domain, split)
        return opened

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, sorted."""
        return tuple(self.manifest.domains)

    @property
    def digest(self) -> str:
        """Of all tokens, by domain and split: 32 hex digits."""
        parts = {
            domain: {split: part.digest for split, part in splits.items()}
            for domain, splits in self.manifest.domains.items()
        }
        return digest_of([parts, self.manifest.vocabulary])

    def train_tokens(self, domain: str) -> int:
        """How many tokens of a domain there are to train on."""
        return self.manifest.domains[domain]["train"].tokens

    def read(self, domain: str, split: Split) -> Tokens:
        """The tokens of a domain, uint16 or uint32 [tokens], memory-mapped.

        Raises:
            UserError: if the file is gone or holds another number of tokens.
        """
        part = self.manifest.domains[domain][split]
        path = self.folder / part.file
        try:
            found: Tokens = np.load(path, mmap_mode="r")
            told = f"{len(found):,} tokens" if len(found) != part.tokens else ""
        except (OSError, ValueError, EOFError) as error:
            told = str(error)
        if told:
            raise UserError(
                f"expected {part.tokens:,} tokens of {domain!r}, found {told}",
                where=str(path),
                mend="write the folder anew by `tamis mix tokenise`",
            )
        return found

    def supply(self) -> Supply:
        """How much there is of every domain to train on."""
        trained = {name: splits["train"] for name, splits in self.manifest.domains.items()}
        return Supply(
            domains={
                name: Amount(rows=part.rows, bytes=part.bytes, tokens=part.tokens)
                for name, part in trained.items()
            }
        )


def local_folder(path: str | Path | Place) -> Path:
    """The folder on this machine.

    Raises:
        UserError: if it lies elsewhere: the files are memory-mapped.
    """
    place = place_of(str(path))
    if not isinstance(place, Path):
        raise UserError(
            "tokens are memory-mapped and lie on this machine only",
            where=str(path),
            mend="name a local folder; the corpus itself may lie anywhere",
        )
    return place


def token_type(vocabulary: int) -> np.dtype[Any]:
    """The smallest type that holds every token of a vocabulary."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)


class Layout(NamedTuple):
    """Where the documents lie in the files.

    Attributes:
        file: int32 [rows], ``2 * domain + split``; -1 for rows that are in none.
        start: int64 [rows], first token in its file.
        tokens, rows: int64 [files].
    """

    file: npt.NDArray[np.int32]
    start: Int64s
    tokens: Int64s
    rows: Int64s


def lay_out(
    file: npt.NDArray[np.int32],
    lengths: Int64s,
    files: int,
    order_by: Sequence[npt.NDArray[Any]],
) -> Layout:
    """Put the documents of every file in order of their ids.

    Args:
        file: as in `Layout`.
        lengths: int64 [rows], tokens of every document.
        files: how many files there are.
        order_by: keys of the rows, the first of them first.

    Example:
        >>> ids = np.array([9, 2, 5])
        >>> lay_out(np.zeros(3, np.int32), np.array([4, 1, 2]), 1, [ids]).start.tolist()
        [3, 0, 1]
    """
    order = np.lexsort((*reversed(order_by), file))
    order = order[file[order] >= 0]
    sizes = lengths[order]
    begins = np.cumsum(sizes) - sizes
    mine = file[order]
    rows = np.bincount(mine, minlength=files)
    tokens = np.bincount(mine, weights=sizes, minlength=files).astype(np.int64)
    start = np.zeros(len(file), np.int64)
    start[order] = begins - (np.cumsum(tokens) - tokens)[mine]
    return Layout(file, start, tokens, rows)


@njit(**KERNEL)
def _scatter(values, offsets, rows, start, out):  # type: ignore[no-untyped-def]
    """Copy documents ``values[offsets[r]:offsets[r + 1]]`` of some rows to their places."""
    for row in rows:
        at = start[row]
        for place in range(offsets[row], offsets[row + 1]):
            out[at] = values[place]
            at += 1


class TokenFiles:
    """The files of tokens while they are written; use it in `token_files`."""

    def __init__(self, folder: Path, layout: Layout, kind: np.dtype[Any]) -> None:
        self.folder = folder
        self.layout = layout
        self.names = [f"{SPLITS[f % 2]}-{f // 2:04d}.npy" for f in range(len(layout.tokens))]
        self._files = [
            np.lib.format.open_memmap(folder / name, mode="w+", dtype=kind, shape=(int(size),))
            for name, size in zip(self.names, layout.tokens, strict=True)
        ]

    def put(self, rows: Int64s, values: Tokens, offsets: Int64s) -> None:
        """Write some documents, those of positions `rows` in the corpus, to their places."""
        file, start = self.layout.file[rows], self.layout.start[rows]
        for number in np.unique(file):
            mine = np.flatnonzero(file == number)
            _scatter(values, offsets, mine, start, self._files[number])

    def publish(self, out: Path, manifest: TokenManifest, tokenizer: str) -> TokenShards:
        """Add manifest, tokenizer and supply, and take the folder's place."""
        for opened in self._files:
            opened.flush()
        (self.folder / TOKENIZER).write_text(tokenizer, "utf-8")
        shards = TokenShards(self.folder, manifest)
        shards.supply().save(self.folder / SUPPLY)
        write_json(self.folder / MANIFEST, manifest.model_dump(mode="json"))
        for path in self.folder.iterdir():
            sync(path)
        check_target(out)
        swap_folders(self.folder, out)
        return TokenShards.open(out)

    def parts(self, domains: Sequence[str], sizes: Int64s) -> dict[str, dict[Split, Part]]:
        """What the manifest says of the files.

        Args:
            sizes: int64 [files], bytes of text.
        """
        found: dict[str, dict[Split, Part]] = {}
        for file, name in enumerate(self.names):
            self._files[file].flush()
            part = Part(
                file=name,
                rows=int(self.layout.rows[file]),
                tokens=int(self.layout.tokens[file]),
                bytes=int(sizes[file]),
                digest=digest_file(self.folder / name),
            )
            found.setdefault(domains[file // 2], {})[SPLITS[file % 2]] = part
        return found


@contextmanager
def token_files(out: Path, layout: Layout, kind: np.dtype[Any]) -> Iterator[TokenFiles]:
    """Files in a folder beside `out`, which is gone afterwards if it was not published."""
    with place_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep_folders(out.parent, out.name)
        held = HeldFolder(out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"))
    try:
        yield TokenFiles(held.path, layout, kind)
    finally:
        held.release()
        shutil.rmtree(held.path, ignore_errors=True)


def check_target(out: Path) -> None:
    """Refuse to replace what is no folder of tokens.

    Raises:
        UserError: if there is a file, or a folder that holds anything else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError("the output is a file", where=str(out), mend="name a folder")
    names = {path.name for path in out.iterdir()}
    # By their names, as a manifest that is broken lists none. A folder without one is not ours.
    ours = {MANIFEST, TOKENIZER, SUPPLY, *filter(_FILE.fullmatch, names)}
    foreign = names - ours if MANIFEST in names else names
    if foreign:
        raise UserError(
            f"the output folder holds {min(foreign)!r}, which is no file of tokens",
            where=str(out),
            mend="name another folder, or move that file away: the folder is replaced as a whole",
        )
