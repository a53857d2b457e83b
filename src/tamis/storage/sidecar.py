"""Parquet files that lie beside a shard: what was computed for its rows, and for which input.

A sidecar's footer says the step it is of, the shard it belongs to and how many rows that has;
each is checked whenever it is read, so a file can never be joined to the wrong rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.storage.corpus import Shard, batch_rows
from tamis.storage.errors import RunError
from tamis.storage.files import whole_file
from tamis.storage.kernels import Int64s
from tamis.storage.places import Place, kind_of, parquet_file, place_errors, shown

_STEP, _SHARD, _ROWS = b"tamis.step", b"tamis.shard", b"tamis.shard_rows"
#: The columns that every sidecar begins with: the shard's digest and the row in the shard.
PLACE = [
    pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("row", pa.int64(), nullable=False),
]


def sidecar_path(folder: Place, shard: Shard, step: str) -> Place:
    """Where a step's sidecar of a shard lies."""
    return folder / f"{shard.digest[:16]}-{step[:16]}.parquet"


#: Some rows of a shard (ascending positions), and a column value for each.
Part = tuple[Int64s, pa.RecordBatch]


def _write(path: Place, shard: Shard, step: str, columns: pa.Schema, parts: Iterable[Part]) -> None:
    schema = pa.schema(
        [*PLACE, *columns],
        metadata={
            _STEP: step.encode(),
            _SHARD: shard.digest.encode(),
            _ROWS: str(shard.rows).encode(),
        },
    )
    # Hashes and signatures are random bytes: neither a dictionary nor zstd makes them smaller.
    random = [
        f.name for f in schema if pa.types.is_fixed_size_binary(f.type) or f.type == pa.uint64()
    ]
    options = {
        "compression": {name: "NONE" if name in random else "ZSTD" for name in schema.names},
        "compression_level": {name: 1 for name in schema.names if name not in random},
        "use_dictionary": ["shard", *(f.name for f in schema if pa.types.is_string(f.type))],
        "column_encoding": {"row": "DELTA_BINARY_PACKED"},
        "write_statistics": [name for name in schema.names if name not in random],
    }
    stands = partial(is_done, path, shard, step)
    with (
        whole_file(path, stands) as temporary,
        pq.ParquetWriter(temporary, schema, **options) as out,
    ):
        for rows, batch in parts:
            named = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int32), [shard.digest])
            values = [named, pa.array(rows), *batch.columns]
            out.write_table(pa.table(values, schema=schema), row_group_size=max(1, len(rows)))


def is_done(path: Place, shard: Shard, step: str) -> bool:
    """Whether a finished sidecar of this step and shard is there."""
    if kind_of(path) is None:
        return False
    try:
        with place_errors(path), parquet_file(path) as file:
            return _mismatch(file.schema_arrow, shard, step) is None
    except (pa.ArrowException, OSError):
        return False


def sidecar_batches(
    path: Place, shard: Shard, step: str, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """A sidecar's columns in bounded batches.

    Raises:
        RunError: if it belongs to another step or shard, or cannot be read.
    """
    try:
        with place_errors(path), parquet_file(path) as file:
            wrong = _mismatch(file.schema_arrow, shard, step)
            if wrong is None:
                names = list(columns)
                size = batch_rows(file.metadata, range(file.num_row_groups), names)
                for batch in file.iter_batches(batch_size=size, columns=names, use_threads=False):
                    yield batch.select(names)
                return
    except (pa.ArrowException, OSError) as error:
        wrong = str(error)
    raise RunError(
        f"not the sidecar of shard {shard.digest} ({wrong})",
        where=shown(path),
        mend="remove the file and run again: it will be computed anew",
    )


def _mismatch(schema: pa.Schema, shard: Shard, step: str) -> str | None:
    found = schema.metadata or {}
    expected = {_STEP: step, _SHARD: shard.digest, _ROWS: str(shard.rows)}
    for key, value in expected.items():
        if found.get(key, b"").decode() != value:
            return f"{key.decode()}: expected {value}, found {found.get(key, b'').decode()!r}"
    return None


def sidecar_once(
    path: Place,
    shard: Shard,
    step: str,
    columns: pa.Schema,
    compute: Callable[[], Iterable[Part]],
) -> None:
    """Compute and write a sidecar, part by part and as a whole file, unless it is there.

    Args:
        step: key of the step that computes it.
        columns: what it holds beside shard and row.
        compute: gives its parts in ascending order of rows.
    """
    if not is_done(path, shard, step):
        _write(path, shard, step, columns, compute())
