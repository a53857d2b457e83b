"""Opening a corpus of any format: Parquet in place, everything else through a `Reader` once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tamis.storage import arrow_files, delimited, jsonl
from tamis.storage.blocks import Block, Reader
from tamis.storage.compressed import CODECS, data_files, ending
from tamis.storage.corpus import (
    LINE_COLUMN,
    Corpus,
    Input,
    Shard,
    distinct,
    open_parquet,
    packed_schema,
    parquet_corpus,
    shards_of,
    unpacked_schema,
)
from tamis.storage.errors import RunError, UserError
from tamis.storage.files import digest_of, keep_json, kept_json, whole_file
from tamis.storage.inputs import find_files, known_digest
from tamis.storage.kernels import Int64s, in_threads
from tamis.storage.places import Place, absolute, kind_of, place_of, shown, size_of, version_of
from tamis.storage.python_pairs import PythonPairs
from tamis.storage.python_source import PythonSource
from tamis.storage.saved_datasets import SavedDatasets, is_saved
from tamis.storage.tasks import Runner, Task, Threads

#: What quarantine holds: where a row stood, why it was put aside, and its bytes where no shard
#: has it.
UNREAD = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64()),
        pa.field("row_id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("raw", pa.binary()),
    ]
)

READERS: dict[str, Callable[[], Reader]] = {
    "jsonl": jsonl.JsonLines,
    "csv": delimited.Delimited,
    "arrow": arrow_files.ArrowFiles,
    "datasets": SavedDatasets,
    "python": PythonSource,
    "python-pairs": PythonPairs,
}
FORMATS = ("parquet", *READERS)
#: Formats of source trees, by the prefix of a path that names one; the prefix alone is this
#: interpreter's own library.
SOURCE_SCHEMES = {PythonSource.scheme: "python", PythonPairs.scheme: "python-pairs"}

_ENDINGS = {
    ".parquet": "parquet",
    **dict.fromkeys(jsonl.ENDINGS, "jsonl"),
    **dict.fromkeys(delimited.ENDINGS, "csv"),
    **dict.fromkeys(arrow_files.ENDINGS, "arrow"),
}
_INGEST_VERSION = 3


def format_of(path: str) -> str:
    """The format that a corpus path is in, by its scheme or by the endings of its files.

    Raises:
        UserError: for endings that are not known, or several formats in one folder.
    """
    for scheme, name in SOURCE_SCHEMES.items():
        if path.startswith(scheme):
            return name
    if is_saved(path):
        return "datasets"
    found: dict[str, Place] = {}
    for file in find_files(path):
        if ending(file) in _ENDINGS:
            found.setdefault(_ENDINGS[ending(file)], file)
    if not found:
        raise UserError(
            "no file with a known ending",
            where=path,
            mend=f"known: {', '.join(sorted(_ENDINGS))}, text also with {', '.join(CODECS)}; "
            "or give `format`",
        )
    if len(found) > 1:
        raise UserError(
            f"several formats in one corpus: {', '.join(str(p) for p in found.values())}",
            where=path,
            mend="name one format with a glob such as folder/*.parquet",
        )
    return next(iter(found))


_ALONE = Threads(1)


def open_corpus(
    path: str,
    workspace: Place,
    runner: Runner = _ALONE,
    *,
    format: str | None = None,
    shard_bytes: int | None = None,
) -> Corpus:
    """Find a corpus, check its schema, and bring it into Parquet where it is not.

    Raises:
        UserError: no files, unknown format, unreadable file, schemas that differ.
    """
    kind = format or format_of(path)
    workspace = absolute(workspace)
    if kind == "parquet":
        files = data_files(path, [".parquet"])
        return parquet_corpus(files, workspace, shard_bytes, runner.workers)
    if kind not in READERS:
        raise UserError(f"no format {kind!r}", mend=f"known: {', '.join(FORMATS)}")
    return _ingest(kind, path, workspace, shard_bytes, runner)


class Ingest(Task):
    """Bring a file's rows into Parquet, and what is no row beside them.

    Attributes:
        plan: file (of `keep_json`) with ``kind``, packed ``schema``, and by item ``files``, the
            ``names`` that the user knows them by, their ``versions``, and ``keys``.
        folder: where the Parquet files lie.
    """

    task: Literal["ingest"] = "ingest"
    label: ClassVar[str] = "reading the corpus"
    plan: str
    folder: str

    def run(self, item: int) -> None:
        plan = kept_json(self.plan)
        reader, schema = READERS[plan["kind"]](), unpacked_schema(plan["schema"])
        file, name = place_of(plan["files"][item]), plan["names"][item]
        data, bad = _places(place_of(self.folder), name, plan["keys"][item])
        if kind_of(data) is None or kind_of(bad) is None:
            blocks = _unchanged(reader.blocks(file, schema), file, plan["versions"][item])
            _ingest_file(blocks, name, schema, data, bad)


def _ingest(
    kind: str, path: str, workspace: Place, shard_bytes: int | None, runner: Runner
) -> Corpus:
    reader, folder = READERS[kind](), workspace / "ingest"
    files = reader.files(path)
    versions = [_version(file) for file in files]
    names = [shown(file) for file in files]
    digests = in_threads(
        lambda file: known_digest(file, workspace, reader.digest), files, runner.workers
    )
    together = digest_of([_INGEST_VERSION, pa.__version__, kind, digests])
    schema = _schema_once(reader, files, versions, folder / f"{together}.schema", runner.workers)
    shared = [_INGEST_VERSION, pa.__version__, kind, packed_schema(schema)]
    keys = [digest_of([*shared, digest]) for digest in digests]
    plan = {
        "kind": kind,
        "schema": packed_schema(schema),
        "files": [str(absolute(file)) for file in files],
        "names": names,
        "versions": versions,
        "keys": keys,
    }
    task = Ingest(plan=keep_json(workspace / "orders", plan), folder=str(folder))
    runner.map(task, [size_of(file) for file in files])

    shards: list[Shard] = []
    inputs: list[Input] = []
    unread: list[Place] = []
    unread_rows = 0
    for file, name, digest, key in zip(files, names, digests, keys, strict=True):
        data, bad = _places(folder, name, key)
        footer, version = open_parquet(data)
        shards += shards_of(data, footer, version, key, name, len(shards), shard_bytes)
        lost = open_parquet(bad)[0].num_rows
        inputs.append(Input(name, digest, footer.num_rows + lost, size_of(file)))
        if lost:
            unread.append(bad)
            unread_rows += lost
    return Corpus(schema, distinct(shards), tuple(inputs), tuple(unread), unread_rows)


def _version(file: Place) -> str:
    """Version of a file; a source tree's digest tells its versions itself."""
    return "" if kind_of(file) == "directory" else version_of(file)


def _check_version(file: Place, version: str) -> None:
    if _version(file) != version:
        raise RunError(
            "the file has changed since this run read it first",
            where=shown(file),
            mend="run the same command again: it takes the file as it is now",
        )


def _unchanged(blocks: Iterable[Block], file: Place, version: str) -> Iterator[Block]:
    """Blocks of a file, which is still the one whose digest was taken when they end."""
    yield from blocks
    _check_version(file, version)


def _places(folder: Place, name: str, key: str) -> tuple[Place, Place]:
    """Where rows and bad lines of a file go; the latter name the file, so its name counts too."""
    unread = digest_of([key, name])
    return folder / f"{key}.parquet", folder / f"{unread}.unread.parquet"


def _schema_once(
    reader: Reader, files: Sequence[Place], versions: Sequence[str], place: Place, workers: int
) -> pa.Schema:
    if kind_of(place) is not None:
        return pa.ipc.read_schema(pa.py_buffer(place.read_bytes()))
    schema = reader.schema(files, workers)
    for file, version in zip(files, versions, strict=True):
        _check_version(file, version)
    if LINE_COLUMN in schema.names:
        raise UserError(f"column {LINE_COLUMN!r} is reserved", where=shown(files[0]))
    with whole_file(place) as temporary:
        temporary.write_bytes(schema.serialize().to_pybytes())
    return schema


def _ingest_file(
    blocks: Iterable[Block], name: str, schema: pa.Schema, data: Place, bad: Place
) -> None:
    stored = schema.append(pa.field(LINE_COLUMN, pa.int64(), nullable=False))
    with (
        whole_file(data) as temporary,
        whole_file(bad) as other,
        pq.ParquetWriter(temporary, stored, compression="zstd", compression_level=1) as out,
        pq.ParquetWriter(other, UNREAD, compression="zstd") as unread,
    ):
        for block in blocks:
            if block.rows.num_rows:
                out.write_table(
                    block.rows.append_column(stored.field(LINE_COLUMN), block.lines),
                    row_group_size=block.rows.num_rows,
                )
            if block.bad:
                lost = [
                    {"file": name, "line": b.line, "reason": b.reason, "raw": b.raw}
                    for b in block.bad
                ]
                unread.write_table(pa.Table.from_pylist(lost, UNREAD))


def lines_of(shard: Shard, rows: Int64s) -> Int64s:
    """The lines (from 1) of the user's file that rows of a shard came from; of Parquet the row."""
    if LINE_COLUMN not in shard.schema.names:
        return shard.first_row + rows
    column = shard.table([LINE_COLUMN])[LINE_COLUMN].to_numpy()
    lines: Int64s = column[rows]
    return lines
