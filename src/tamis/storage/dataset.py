"""The dataset: Parquet shards with the corpus's own schema, a manifest and a card."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tamis.storage.corpus import MANIFEST, Corpus, Shard
from tamis.storage.errors import RunError, UserError
from tamis.storage.files import (
    TEMPORARY,
    HeldFolder,
    digest_file,
    digest_of,
    disk_errors,
    read_json,
    swap_folders,
    sweep_folders,
    sync,
)
from tamis.storage.kernels import in_threads
from tamis.storage.rows import Rows

CARD = "README.md"
#: Uncompressed bytes of a row group written.
GROUP_BYTES = 64 << 20

_WRITER_VERSION = 1


@dataclass(frozen=True)
class OutputFile:
    """One Parquet file of a dataset and what it was made from."""

    name: str
    rows: int
    bytes: int
    digest: str
    key: str


def check_output(folder: Path) -> None:
    """Refuse to replace what tamis did not write.

    Raises:
        UserError: if the folder holds anything but a dataset of tamis.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError("the output is a file", where=str(folder), mend="name a folder")
    previous = _previous(folder)
    ours = {MANIFEST, CARD, *(entry["name"] for entry in (previous or {}).get("files", ()))}
    foreign = sorted(p.name for p in folder.iterdir() if previous is None or p.name not in ours)
    if foreign:
        raise UserError(
            f"the output folder holds {foreign[0]!r}, which is not part of a dataset of tamis",
            where=str(folder),
            mend="name another folder, or move that file away: a dataset is replaced as a whole",
        )


def _previous(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError, RunError):
        return None
    return manifest if "tamis" in manifest.get("versions", {}) else None


class DatasetWriter:
    """Writes a dataset beside its place and puts it there as a whole; use it in a ``with``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder = folder.resolve()
        previous = _previous(folder) or {}
        self._reusable = {entry["key"]: entry for entry in previous.get("files", [])}
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            sweep_folders(folder.parent, folder.name)
            name = f".{folder.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
            self._held = HeldFolder(folder.with_name(name))
        self.partial = self._held.path

    def write(
        self,
        corpus: Corpus,
        rows: Rows,
        kept: npt.NDArray[np.bool_],
        workers: int,
        progress: Callable[[int], None],
    ) -> list[OutputFile]:
        """Write the kept rows of every shard; a file that is there already is linked, not written.

        A shard of which nothing is kept gets no file; an empty dataset gets one empty file.
        """

        def work(shard: Shard) -> OutputFile | None:
            inside = kept[rows.of(shard)]
            entry = self._file(corpus, shard, inside) if inside.any() else None
            progress(shard.rows)
            return entry

        with disk_errors(self.folder):
            entries = [e for e in in_threads(work, corpus.shards, workers) if e is not None]
            if not entries:
                path = self.partial / "part-00000.parquet"
                pq.write_table(corpus.schema.empty_table(), path, compression="zstd")
                entries = [self._entry(path, 0, "")]
        return entries

    def _file(self, corpus: Corpus, shard: Shard, inside: npt.NDArray[np.bool_]) -> OutputFile:
        key = digest_of(
            [
                _WRITER_VERSION,
                pa.__version__,
                shard.digest,
                xxhash.xxh3_128_hexdigest(corpus.schema.serialize()),
                np.packbits(inside).tobytes().hex() if not inside.all() else "all",
            ]
        )
        path = self.partial / f"part-{shard.index:05d}.parquet"
        old = self._reusable.get(key)
        if old is not None and self._link(self.folder / old["name"], old["digest"], path):
            return OutputFile(path.name, old["rows"], old["bytes"], old["digest"], key)
        rows = _write_shard(corpus.schema, shard, inside, path)
        sync(path)
        return self._entry(path, rows, key)

    def _entry(self, path: Path, rows: int, key: str) -> OutputFile:
        return OutputFile(path.name, rows, path.stat().st_size, digest_file(path), key)

    def _link(self, source: Path, digest: str, target: Path) -> bool:
        if not source.is_file() or digest_file(source) != digest:
            return False
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
            sync(target)
        return True

    def publish(self, manifest: dict[str, Any], entries: list[OutputFile], text: str) -> None:
        """Check what was written, add card and manifest, and take the dataset's place."""
        with disk_errors(self.folder):
            for entry in entries:
                found = pq.read_metadata(self.partial / entry.name).num_rows
                if found != entry.rows:
                    raise RunError(
                        f"{entry.rows} rows were written, the file holds {found}",
                        where=str(self.folder / entry.name),
                    )
            (self.partial / CARD).write_text(text, "utf-8")
            body = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            (self.partial / MANIFEST).write_text(body, "utf-8")
            sync(self.partial / CARD)
            sync(self.partial / MANIFEST)
            swap_folders(self.partial, self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Remove what was not published."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self._held.release()


def _write_shard(schema: pa.Schema, shard: Shard, inside: npt.NDArray[np.bool_], path: Path) -> int:
    begin = written = pending_bytes = 0
    pending: list[pa.RecordBatch] = []
    # Each row group has dictionaries of its own; joined, they might outgrow their indices.
    dictionaries = any("dictionary<" in str(field.type) for field in schema)
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) as out:

        def flush() -> None:
            nonlocal written, pending_bytes
            if pending:
                table = pa.Table.from_batches(pending).cast(schema)
                out.write_table(table, row_group_size=max(1, table.num_rows))
                written += table.num_rows
                pending.clear()
                pending_bytes = 0

        for group in shard.row_groups():
            for batch in group.batches(schema.names):
                here = inside[begin : begin + batch.num_rows]
                begin += batch.num_rows
                found = batch if here.all() else batch.filter(pa.array(here))
                if found.num_rows:
                    pending.append(found)
                    pending_bytes += found.nbytes
                if pending_bytes >= GROUP_BYTES:
                    flush()
            if dictionaries:
                flush()
        flush()
    return written


def card(manifest: dict[str, Any]) -> str:
    """A dataset card that the Hub and ``datasets.load_dataset`` read."""
    rows = manifest["rows"]
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        '    path: "*.parquet"',
        "tags:",
        "- tamis",
        "---",
        "",
        "# Dataset",
        "",
        f"{rows['written']:,} rows, selected from {rows['in']:,} by "
        f"tamis {manifest['versions']['tamis']}. Every row that is not here has a reason:",
        "",
        "| | rows |",
        "|---|---:|",
        f"| in | {rows['in']:,} |",
        *(f"| dropped: {reason} | {count:,} |" for reason, count in rows["dropped"].items()),
        f"| quarantined | {rows['quarantined']:,} |",
        f"| kept | {rows['kept']:,} |",
        "",
        "`manifest.json` holds the recipe, the versions and the digests of inputs and files.",
        "",
    ]
    return "\n".join(lines)


def file_entries(entries: list[OutputFile]) -> list[dict[str, Any]]:
    """Output files as the manifest lists them."""
    return [asdict(entry) for entry in entries]
