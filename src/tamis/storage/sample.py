"""A smaller corpus of the same kind, to measure on what a run would take."""

import lzma
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.storage.arrow_files import row_count
from tamis.storage.compressed import data_files, ending, text_chunks
from tamis.storage.corpus import open_parquet
from tamis.storage.ingest import READERS, SOURCE_SCHEMES, format_of
from tamis.storage.places import Place, parquet_file, size_of
from tamis.storage.python_source import source_files

#: Of a sample's files so many are read at most, evenly spaced.
MOST_FILES = 16
#: And of a Parquet file so many row groups.
MOST_GROUPS = 8
#: And of a row group so many runs of rows: files are often in order of something.
RUNS = 16
_CHUNK_BYTES = 1 << 18
_ARROW = ("arrow", "datasets")
_ARROW_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


@dataclass(frozen=True)
class Whole:
    """What is to be sampled.

    Attributes:
        kind: format of the files.
        bytes: of all files, as they lie.
        rows: known for Parquet and Arrow only.
    """

    path: str
    kind: str
    files: tuple[Place, ...]
    bytes: int
    rows: int | None

    @classmethod
    def of(cls, path: str, format: str | None) -> "Whole":
        """Look at a corpus without reading its rows.

        Raises:
            UserError: as opening it would.
        """
        kind = format or format_of(path)
        if kind == "parquet":
            files = data_files(path, [".parquet"])
            rows = sum(open_parquet(file)[0].num_rows for file in files)
            return cls(path, kind, tuple(files), sum(map(size_of, files)), rows)
        files = READERS[kind]().files(path)
        if kind in SOURCE_SCHEMES.values():
            sizes = [file.stat().st_size for root in files for file in source_files(root)]
            return cls(path, kind, tuple(files), sum(sizes), None)
        rows = sum(map(row_count, files)) if kind in _ARROW else None
        return cls(path, kind, tuple(files), sum(map(size_of, files)), rows)

    def sample(self, share: float, folder: Path) -> tuple[str, str, float]:
        """Write about a share of it into a folder.

        Returns:
            Path and format of the sample, and the share that it is.
        """
        folder.mkdir(parents=True)
        if self.kind in SOURCE_SCHEMES.values():
            return self._tree(share, folder)
        count = max(1, min(MOST_FILES, round(len(self.files) * share)))
        chosen = [self.files[i * len(self.files) // count] for i in range(count)]
        each = min(1.0, share * self.bytes / max(1, sum(map(size_of, chosen))))
        taken = sum(self._part(file, each, folder / str(i)) for i, file in enumerate(chosen))
        whole = self.rows if self.rows is not None else self.bytes
        kind = "arrow" if self.kind == "datasets" else self.kind
        return str(folder), kind, taken / max(1, whole)

    def _part(self, file: Place, share: float, stem: Path) -> float:
        if self.kind == "parquet":
            return _some_rows(file, share, stem.with_suffix(".parquet"))
        if self.kind in _ARROW:
            return _first_rows(self.kind, file, share, stem.with_suffix(".arrow"))
        suffix = file.suffix.lower()
        name = ending(file) + (suffix if suffix != ending(file) else "")
        return _some_text(file, share, stem.with_name(stem.name + name))

    def _tree(self, share: float, folder: Path) -> tuple[str, str, float]:
        taken = 0
        step = max(1, round(1 / share))
        for number, root in enumerate(self.files):
            for place, file in enumerate(source_files(root)):
                if place % step == number % step:
                    target = folder / str(number) / file.relative_to(str(root))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
                    taken += file.stat().st_size
        return str(folder), self.kind, taken / max(1, self.bytes)


def _some_rows(file: Place, share: float, target: Path) -> int:
    """Runs of rows, evenly spaced, of some row groups; gives how many rows."""
    rows = 0
    with parquet_file(file) as source, pq.ParquetWriter(target, source.schema_arrow) as out:
        groups = source.num_row_groups
        count = min(groups, max(MOST_GROUPS, math.ceil(groups * share)))
        for group in [i * groups // count for i in range(count)]:
            table = source.read_row_group(group)
            edges = np.unique(np.linspace(0, table.num_rows, RUNS + 1).astype(int))
            runs = [
                table.slice(first, max(1, round((last - first) * share * groups / count)))
                for first, last in pairwise(edges.tolist())
            ]
            picked = pa.concat_tables(runs or [table])
            out.write_table(picked)
            rows += picked.num_rows
    return rows


def _first_rows(kind: str, file: Place, share: float, target: Path) -> int:
    """The first rows of an Arrow file; gives how many."""
    reader = READERS[kind]()
    schema = reader.schema([file], 1)
    wanted = left = max(1, round(row_count(file) * share))
    with pa.ipc.new_stream(target, schema) as out:
        for block in reader.blocks(file, schema):
            out.write_table(block.rows.slice(0, left))
            left -= min(left, block.rows.num_rows)
            if not left:
                break
    return wanted - left


def _some_text(file: Place, share: float, target: Path) -> int:
    """The first lines of a text file, compressed as it is; gives the bytes."""
    wanted = share * size_of(file)
    with _compressing(target) as out:
        for chunk in _whole_lines(text_chunks(file, _CHUNK_BYTES)):
            out.write(chunk)
            out.flush()
            if target.stat().st_size >= wanted:
                break
    return target.stat().st_size


def _compressing(target: Path) -> Any:
    if target.suffix == ".xz":
        return lzma.open(target, "wb")
    codec = _ARROW_CODECS.get(target.suffix)
    return pa.CompressedOutputStream(str(target), codec) if codec else target.open("wb")


def _whole_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    pending = b""
    for chunk in chunks:
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield pending + chunk[:cut]
            pending = chunk[cut:]
        else:
            pending += chunk
    if pending:
        yield pending
