"""The corpus: what files there are, their one schema, and the shards that work is cut into.

Parquet is read in place. Every other format has a `blocks.Reader`, and its rows are
written once into Parquet shards in the workspace, so that everything above sees Parquet only.
"""

import base64
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.storage.errors import RunError, UserError
from tamis.storage.files import digest_of, keep_json, kept_json
from tamis.storage.inputs import known_digest
from tamis.storage.kernels import Int64s, in_threads
from tamis.storage.places import (
    Place,
    absolute,
    footer_of,
    parquet_file,
    place_errors,
    place_of,
    schema_of,
    shown,
    size_of,
    version_of,
)

#: A file is cut into about so many shards, of bounded uncompressed size: enough to keep the
#: cores busy to the end, few enough files. It depends on the file alone, so that new files leave
#: the shards of old ones as they are.
SHARDS_PER_FILE = 16
MIN_SHARD_BYTES, MAX_SHARD_BYTES = 32 << 20, 512 << 20
#: Bytes of columns read at a time.
BATCH_BYTES = 32 << 20
#: And at most so many rows, because what is computed for a row may be larger than the row.
BATCH_ROWS = 1 << 16
#: Column of an ingested shard that holds the line a row came from; never shown or written out.
LINE_COLUMN = "__tamis_line"


#: Called with a step's name, work done and work in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Input:
    """One file that the user named."""

    path: str
    digest: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Shard:
    """A run of row groups of one Parquet file: the unit of work and resume.

    Attributes:
        index: place in the corpus, from 0.
        path: the Parquet file.
        groups: row groups, ``range(first, last)``.
        rows, bytes: rows, and uncompressed bytes of all columns.
        digest: identity of the content, unique in its corpus.
        source: the file the user named.
        first_row: row of `path` that the shard begins with.
        version: what its store said of the file when it was opened; the file must not change.
    """

    index: int
    path: Place
    groups: range
    rows: int
    bytes: int
    digest: str
    source: str
    first_row: int
    version: str

    @property
    def footer(self) -> pq.FileMetaData:
        """Footer of the file."""
        return footer_of(self.path, self.version)

    @property
    def schema(self) -> pa.Schema:
        """Schema of the file, columns that are not the user's included."""
        return schema_of(self.path, self.version)

    def batches(
        self, columns: Sequence[str], batch_bytes: int = BATCH_BYTES
    ) -> Iterator[pa.RecordBatch]:
        """Batches of about `batch_bytes` of some columns, in order; view types as plain ones.

        Raises:
            RunError: if the file is gone, has changed or cannot be read any more.
        """
        if not columns:
            raise ValueError("no columns asked for")
        try:
            with self._reading(), parquet_file(self.path) as file:
                rows = batch_rows(file.metadata, self.groups, columns, batch_bytes)
                names = list(columns)
                runs = [list(self.groups)]
                if any(_has_inner_dictionary(f.type) for f in file.schema_arrow):
                    runs = [[g] for g in self.groups]  # pyarrow cannot join these
                for run in runs:
                    for batch in file.iter_batches(
                        batch_size=rows, row_groups=run, columns=names, use_threads=False
                    ):
                        yield _without_views(batch.select(names))
        except (pa.ArrowException, OSError) as error:
            raise RunError(
                f"cannot read row groups {self.groups.start} to {self.groups.stop - 1} "
                f"({_first_line(error)})",
                where=shown(self.path),
                mend="restore the file and run the same command again: finished steps are kept",
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Errors of the place, and the check that the file is the one that was opened.

        A file that is gone is the run's failure, not the user's typing error: it was there.
        """
        try:
            with place_errors(self.path):
                version = version_of(self.path)
                if version == self.version:
                    yield
                    return
        except UserError as error:
            raise RunError(error.what, where=error.where, mend=error.mend) from error
        raise RunError(
            "the file has changed since this run read it first",
            where=shown(self.path),
            mend="run the same command again: it takes the file as it is now",
        )

    def may_be_null(self, column: str) -> bool:
        """Whether a column may hold nulls, as far as the file's footer tells."""
        footer = self.footer
        for g in self.groups:
            group = footer.row_group(g)
            for c in range(group.num_columns):
                found = group.column(c)
                if f"{found.path_in_schema}.".startswith(f"{column}."):
                    known = found.is_stats_set and found.statistics.has_null_count
                    if not known or found.statistics.null_count:
                        return True
        return False

    def table(self, columns: Sequence[str]) -> pa.Table:
        """The whole shard's columns."""
        fields = [self.schema.field(name) for name in columns]
        plain = pa.schema([f.with_type(_plain(f.type)) for f in fields])
        return pa.Table.from_batches(list(self.batches(columns)), schema=plain)

    def row_groups(self) -> "Iterator[Shard]":
        """The shard's row groups, each as a shard."""
        footer = self.footer
        begin = self.first_row
        for g in self.groups:
            rows = footer.row_group(g).num_rows
            yield replace(self, groups=range(g, g + 1), rows=rows, first_row=begin)
            begin += rows


@dataclass(frozen=True)
class Corpus:
    """Shards with one schema, and what could not be read into them.

    Attributes:
        schema: of the user's columns, as pyarrow's Parquet round trip gives it back.
        shards: in the order of the input files.
        inputs: the files, with digest and rows.
        unread: Parquet files (schema `ingest.UNREAD`) of lines that no shard holds.
        unread_rows: how many lines they hold.
    """

    schema: pa.Schema
    shards: tuple[Shard, ...]
    inputs: tuple[Input, ...]
    unread: tuple[Place, ...] = field(default=())
    unread_rows: int = 0

    @property
    def rows(self) -> int:
        """Rows in the shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Uncompressed bytes of the shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def sizes(self) -> list[int]:
        """Uncompressed bytes of every shard."""
        return [shard.bytes for shard in self.shards]

    def advance(self, name: str, progress: Progress) -> Callable[[int], None]:
        """What takes the number of every shard that is done, from any thread, and reports rows."""
        done, lock = 0, Lock()

        def one(item: int) -> None:
            nonlocal done
            with lock:
                done += self.shards[item].rows
                progress(name, done, self.rows)

        return one

    def keep(self, folder: Place) -> str:
        """Write the list of shards, once; gives the path, for `shards_in` in any process."""
        return keep_json(folder, {"shards": [_entry(shard) for shard in self.shards]})


def _entry(shard: Shard) -> Mapping[str, Any]:
    return {
        **vars(shard),
        "path": str(absolute(shard.path)),
        "groups": [shard.groups.start, shard.groups.stop],
    }


def shards_in(path: str) -> tuple[Shard, ...]:
    """The shards that `Corpus.keep` wrote."""
    return _listed(path)[0]


def starts_in(path: str) -> Int64s:
    """Position in the corpus of every shard's first row, and the number of rows last."""
    return _listed(path)[1]


@lru_cache(maxsize=8)
def _listed(path: str) -> tuple[tuple[Shard, ...], Int64s]:
    shards = tuple(
        Shard(**{**fields, "path": place_of(fields["path"]), "groups": range(*fields["groups"])})
        for fields in kept_json(path)["shards"]
    )
    return shards, starts_of(shards)


def starts_of(shards: Sequence[Shard]) -> Int64s:
    """Position of every shard's first row, and the number of rows last."""
    return np.cumsum([0, *(shard.rows for shard in shards)]).astype(np.int64)


def packed_schema(schema: pa.Schema) -> str:
    """A schema as text that JSON can hold."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def unpacked_schema(text: str) -> pa.Schema:
    """The schema that `packed_schema` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def open_parquet(path: Place) -> tuple[pq.FileMetaData, str]:
    """Footer of a Parquet file, and the version of the file that has it.

    Raises:
        UserError: if it is not a whole Parquet file.
    """
    try:
        with place_errors(path):
            version = version_of(path)
            return footer_of(path, version), version
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"not a complete Parquet file ({_first_line(error)})",
            where=shown(path),
            mend="restore or remove it: nothing has been read yet",
        ) from error


def parquet_corpus(
    paths: Sequence[Place], workspace: Place, shard_bytes: int | None = None, workers: int = 1
) -> Corpus:
    """A corpus of Parquet files read in place.

    Raises:
        UserError: if a file is not whole or the schemas differ, before any work.
    """
    opened = in_threads(open_parquet, paths, workers)
    schema = same_schema(
        [(shown(p), f.schema.to_arrow_schema()) for p, (f, _) in zip(paths, opened, strict=True)]
    )
    digests = in_threads(lambda path: known_digest(path, workspace), paths, workers)
    shards: list[Shard] = []
    inputs = []
    for path, (footer, version), digest in zip(paths, opened, digests, strict=True):
        shards += shards_of(path, footer, version, digest, shown(path), len(shards), shard_bytes)
        inputs.append(Input(shown(path), digest, footer.num_rows, size_of(path)))
    return Corpus(schema, distinct(shards), tuple(inputs))


def distinct(shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """Shards with a digest each of its own: the same file twice is two shards."""
    seen: Counter[str] = Counter()
    named = []
    for shard in shards:
        again = seen[shard.digest]
        seen[shard.digest] += 1
        named.append(replace(shard, digest=digest_of([shard.digest, again])) if again else shard)
    return tuple(named)


def shards_of(
    path: Place,
    footer: pq.FileMetaData,
    version: str,
    digest: str,
    source: str,
    index: int,
    shard_bytes: int | None = None,
) -> list[Shard]:
    """Cut a Parquet file into runs of row groups of about `shard_bytes`."""
    sizes = [footer.row_group(g) for g in range(footer.num_row_groups)]
    if shard_bytes is None:
        total = sum(group.total_byte_size for group in sizes)
        shard_bytes = min(max(total // SHARDS_PER_FILE, MIN_SHARD_BYTES), MAX_SHARD_BYTES)
    shards: list[Shard] = []
    first = first_row = 0
    while first < len(sizes):
        last, rows, used = first, 0, 0
        while last < len(sizes) and (
            last == first or used + sizes[last].total_byte_size <= shard_bytes
        ):
            rows += sizes[last].num_rows
            used += sizes[last].total_byte_size
            last += 1
        groups = range(first, last)
        whole = len(groups) == len(sizes)
        key = digest if whole else digest_of([digest, groups.start, groups.stop])
        place = index + len(shards)
        shards.append(Shard(place, path, groups, rows, used, key, source, first_row, version))
        first, first_row = last, first_row + rows
    return [shard for shard in shards if shard.rows]


def same_schema(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """The schema that all files share; the order of columns may differ.

    Raises:
        UserError: naming the first column that differs, as expected against found.
    """
    first_path, first = schemas[0]
    optional = set()
    for path, schema in schemas:
        duplicate = [name for name, times in Counter(schema.names).items() if times > 1]
        if duplicate:
            raise UserError(f"two columns are named {duplicate[0]!r}", where=path)
    for path, schema in schemas[1:]:
        for name in [*first.names, *(n for n in schema.names if n not in first.names)]:
            expected = str(first.field(name).type) if name in first.names else "no such column"
            found = str(schema.field(name).type) if name in schema.names else "no such column"
            if name in schema.names and schema.field(name).nullable:
                optional.add(name)
            if expected != found:
                raise UserError(
                    f"column {name!r}: expected {expected} (as in {first_path}), found {found}",
                    where=path,
                    mend="all files of a corpus share one schema: convert or leave out this file",
                )
    fields = [f.with_nullable(True) if f.name in optional else f for f in first]
    return pa.schema(fields, metadata=first.metadata)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type with offsets in place of views, for which pyarrow has no filter."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_plain(f.type)) for f in kind.fields])
    return kind


def _has_inner_dictionary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind)) and "dictionary<" in str(kind)


def _without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = pa.schema([f.with_type(_plain(f.type)) for f in batch.schema])
    return batch if schema == batch.schema else batch.cast(schema)


def batch_rows(
    footer: pq.FileMetaData,
    groups: Sequence[int],
    columns: Sequence[str],
    batch_bytes: int = BATCH_BYTES,
) -> int:
    """How many rows to read at a time so that their columns take about `batch_bytes`."""
    wanted = set(columns)
    rows = total = 0
    for g in groups:
        group = footer.row_group(g)
        rows += group.num_rows
        for c in range(group.num_columns):
            column = group.column(c)
            if column.path_in_schema.split(".")[0] in wanted:
                total += column.total_uncompressed_size
    return max(1, min(batch_bytes // max(1, total // max(1, rows)), BATCH_ROWS))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
