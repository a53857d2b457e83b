"""Writing a shard's kept rows as one Parquet file of the dataset."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from tamis.storage.columns import (
    Beside,
    Cursor,
    Mask,
    Source,
    kept_mask,
    read_columns,
    source_key,
)
from tamis.storage.corpus import Shard, shards_in, starts_in, unpacked_schema
from tamis.storage.errors import RunError
from tamis.storage.files import digest_file, digest_of, kept_json, sync, whole_file
from tamis.storage.places import Place, kind_of, place_of, shown, size_of
from tamis.storage.tasks import Task

#: Uncompressed bytes of a row group written.
GROUP_BYTES = 64 << 20

_WRITER_VERSION = 1

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class OutputFile:
    """One Parquet file of a dataset and what it was made from.

    Attributes:
        phases: rows of every phase, in order, where rows are written as often as they were drawn.
    """

    name: str
    rows: int
    bytes: int
    digest: str
    key: str
    phases: tuple[int, ...] | None = None


class Write(Task):
    """Write the kept rows of a shard, unless the dataset of the last run has that very file.

    Attributes:
        shards: list of shards, see `Corpus.keep`.
        kept: mask of all rows, see `keep_mask`.
        columns: packed schema of the dataset.
        sources: columns of the dataset whose values lie in sidecars, or in a column of the corpus
            that has another name.
        target: where the file goes.
        previous: file (of `keep_json`) with the ``folder`` of the dataset that is replaced and
            its ``files`` by key.
        first: number of the first file.
        passes: for every row how often it is written in each phase; once, in one phase, if None.
        phase: column of the dataset for the number of the phase.
    """

    task: Literal["write"] = "write"
    label: ClassVar[str] = "writing the dataset"
    shards: str
    kept: str
    columns: str
    sources: dict[str, Source]
    target: str
    previous: str
    first: int = 0
    passes: Beside | None = None
    phase: str | None = None

    def run(self, item: int) -> dict[str, Any] | None:
        """The file's `OutputFile`, or None where nothing of the shard is kept."""
        shard, start = shards_in(self.shards)[item], starts_in(self.shards)
        inside = kept_mask(self.kept)[start[item] : start[item + 1]]
        if not inside.any():
            return None
        schema = unpacked_schema(self.columns)
        parts: list[Any] = [
            _WRITER_VERSION,
            pa.__version__,
            shard.digest,
            xxhash.xxh3_128_hexdigest(schema.serialize()),
            np.packbits(inside).tobytes().hex() if not inside.all() else "all",
        ]
        if self.sources:
            parts.append({name: source_key(one, shard) for name, one in self.sources.items()})
        times = None
        if self.passes is not None:
            times = _times(shard, self.passes, inside)
            parts.append([times.shape[1], xxhash.xxh3_128_hexdigest(times.data), self.phase])
        key = digest_of(parts)
        path = place_of(self.target) / file_name(self.first + item, key)
        previous = kept_json(self.previous)
        old = previous["files"].get(key)
        if old is not None and _reuse(place_of(previous["folder"]) / old["name"], old, path):
            return {**old, "name": path.name}

        phases: list[int] = []

        def write(temporary: Path) -> int:
            rounds = [[inside]] if times is None else rounds_of(inside, times)
            phases.extend(_write_shard(schema, shard, rounds, self.sources, self.phase, temporary))
            return sum(phases)

        entry = asdict(write_file(path, key, write))
        return entry if times is None else {**entry, "phases": phases}


def passes_of(lists: pa.Array) -> Int32s:
    """How often rows are written, [rows, phases], from a column of lists of one length."""
    length = int(pc.list_value_length(lists[:1])[0].as_py()) if len(lists) else 1
    return np.asarray(lists.flatten(), np.int32).reshape(len(lists), length)


def _times(shard: Shard, passes: Beside, inside: Mask) -> Int32s:
    """How often each of the rows that are `inside` is written in each phase: [rows, phases]."""
    parts = [passes_of(batch[""]) for _, batch in read_columns(shard, {"": passes}, inside)]
    return np.ascontiguousarray(np.concatenate(parts))


def rounds_of(inside: Mask, times: Int32s) -> Iterator[Iterator[Mask]]:
    """For every phase the rows of each time that it goes through a shard, as masks.

    Copies of a row so come in different rounds, and lie apart where a round has more rows.

    Example:
        >>> inside, times = np.array([True, False, True]), np.array([[2, 0], [1, 1]], np.int32)
        >>> [[mask.tolist() for mask in phase] for phase in rounds_of(inside, times)]
        [[[True, False, True], [True, False, False]], [[False, False, True]]]
    """
    rows = np.flatnonzero(inside)

    def of_phase(count: Int32s) -> Iterator[Mask]:
        for done in range(count.max(initial=0)):
            mask = np.zeros(len(inside), np.bool_)
            mask[rows[count > done]] = True
            yield mask

    for phase in range(times.shape[1]):
        yield of_phase(times[:, phase])


def file_name(item: int, key: str) -> str:
    """Name of a dataset's file: its place, and what tells it from the one that it replaces."""
    return f"part-{item:05d}-{key[:8]}.parquet"


def write_file(path: Place, key: str, write: Callable[[Path], int]) -> OutputFile:
    """Write one file of a dataset with `write`, which gives its rows, and look at it again.

    Raises:
        RunError: if the file does not hold the rows that were written.
    """
    entry = None

    def stands() -> bool:
        return entry is not None and size_of(path) == entry.bytes

    with whole_file(path, stands) as temporary:
        rows = write(temporary)
        found = pq.read_metadata(temporary).num_rows
        if found != rows:
            raise RunError(f"{rows} rows were written, the file holds {found}", where=shown(path))
        size = temporary.stat().st_size
        entry = OutputFile(path.name, rows, size, digest_file(temporary), key)
    return entry


def _reuse(source: Place, entry: Mapping[str, Any], target: Place) -> bool:
    """Whether the file of the last run could be put in its new place."""
    if not isinstance(source, Path) or not isinstance(target, Path):
        # A name tells what the file was made from, and a store holds whole files only.
        return source == target and kind_of(source) == "file" and size_of(source) == entry["bytes"]
    if not source.is_file() or digest_file(source) != entry["digest"]:
        return False
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)
    return True


def dataset_schema(
    schema: pa.Schema, added: Mapping[str, pa.Field], copied: Mapping[str, str]
) -> pa.Schema:
    """The corpus's schema with more columns, also for the `datasets` library's own metadata.

    Args:
        added: by name, what is not in the corpus.
        copied: by name, the column of the corpus that it is another copy of.
    """
    added = {**{name: schema.field(column) for name, column in copied.items()}, **added}
    for name, field in added.items():
        schema = schema.append(field.with_name(name))
    metadata = dict(schema.metadata or {})
    if added and b"huggingface" in metadata:
        notes = json.loads(metadata[b"huggingface"])
        features = notes.get("info", {}).get("features")
        if features is not None:
            for name, field in added.items():
                kind = {"double": "float64", "float": "float32"}.get(str(field.type))
                features[name] = features.get(copied.get(name)) or {
                    "dtype": kind or str(field.type),
                    "_type": "Value",
                }
            metadata[b"huggingface"] = json.dumps(notes).encode()
    return schema.with_metadata(metadata or None)


def _write_shard(
    schema: pa.Schema,
    shard: Shard,
    phases: Iterable[Iterable[Mask]],
    sources: Mapping[str, Source],
    phase_column: str | None,
    path: Path,
) -> list[int]:
    """Write the rows of every round of every phase; gives the rows of each phase.

    A row group holds rows of one phase only.
    """
    pending: list[pa.Table] = []
    pending_bytes = 0
    counts = []
    # Each row group has dictionaries of its own; joined, they might outgrow their indices.
    dictionaries = any("dictionary<" in str(field.type) for field in schema)
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) as out:

        def flush() -> int:
            nonlocal pending_bytes
            if not pending:
                return 0
            table = pa.concat_tables(pending).cast(schema)
            out.write_table(table, row_group_size=max(1, table.num_rows))
            pending.clear()
            pending_bytes = 0
            return int(table.num_rows)

        for number, rounds in enumerate(phases):
            written = 0
            fixed = {} if phase_column is None else {phase_column: pa.scalar(number, pa.int32())}
            for inside in rounds:
                for tables in _by_group(schema, shard, inside, sources, fixed):
                    for table in tables:
                        pending.append(table)
                        pending_bytes += table.nbytes
                        if pending_bytes >= GROUP_BYTES:
                            written += flush()
                    if dictionaries:
                        written += flush()
            counts.append(written + flush())
    return counts


def _by_group(
    schema: pa.Schema,
    shard: Shard,
    inside: Mask,
    sources: Mapping[str, Source],
    fixed: Mapping[str, pa.Scalar],
) -> Iterator[Iterator[pa.Table]]:
    """The rows of a shard that are `inside`, for every row group that has any in batches.

    Args:
        fixed: columns that hold the same value in all rows.
    """
    places = {name: sources.get(name, name) for name in schema.names if name not in fixed}
    cursors = {name: Cursor(s, shard) for name, s in places.items() if isinstance(s, Beside)}
    own = list(dict.fromkeys(s for s in places.values() if isinstance(s, str)))

    def of_group(group: Shard, begin: int) -> Iterator[pa.Table]:
        for batch in group.batches(own or shard.schema.names[:1]):
            here = inside[begin : begin + batch.num_rows]
            rows = begin + np.flatnonzero(here)
            begin += batch.num_rows
            if not len(rows):
                continue
            found = batch if here.all() else batch.filter(pa.array(here))
            columns = {
                name: found[source] if isinstance(source, str) else cursors[name].take(rows)
                for name, source in places.items()
            }
            columns |= {name: pa.repeat(value, len(rows)) for name, value in fixed.items()}
            yield pa.table([columns[name] for name in schema.names], names=schema.names)

    for group in shard.row_groups():
        begin = group.first_row - shard.first_row
        if inside[begin : begin + group.rows].any():
            yield of_group(group, begin)
