"""Parquet files that lie beside a shard: what was computed for its rows, and for which input.

A sidecar's footer says the step it is of, the shard it belongs to and how many rows that has;
each is checked whenever it is read, so a file can never be joined to the wrong rows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.storage.corpus import Shard
from tamis.storage.errors import RunError
from tamis.storage.files import whole_file
from tamis.storage.kernels import Int64s

_STEP, _SHARD, _ROWS = b"tamis.step", b"tamis.shard", b"tamis.shard_rows"
#: The columns that every sidecar begins with: the shard's digest and the row in the shard.
PLACE = [
    pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("row", pa.int64(), nullable=False),
]


def sidecar_path(folder: Path, shard: Shard, step: str) -> Path:
    """Where a step's sidecar of a shard lies."""
    return folder / f"{shard.digest[:16]}-{step[:16]}.parquet"


def write_sidecar(path: Path, shard: Shard, step: str, rows: Int64s, columns: pa.Table) -> None:
    """Write columns for some rows of a shard (ascending), as a whole file.

    Args:
        step: key of the step that computed them.
        rows: positions in the shard, one for each row of `columns`.
    """
    named = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int32), [shard.digest])
    place = [named, pa.array(rows)]
    schema = pa.schema(
        [*PLACE, *columns.schema],
        metadata={
            _STEP: step.encode(),
            _SHARD: shard.digest.encode(),
            _ROWS: str(shard.rows).encode(),
        },
    )
    table = pa.table([*place, *columns.columns], schema=schema)
    # Hashes and signatures are random bytes: neither a dictionary nor zstd makes them smaller.
    random = [f.name for f in schema if pa.types.is_fixed_size_binary(f.type)] + [
        f.name for f in schema if f.type == pa.uint64()
    ]
    with whole_file(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression={name: "NONE" if name in random else "ZSTD" for name in schema.names},
            compression_level={name: 1 for name in schema.names if name not in random},
            use_dictionary=["shard", *(f.name for f in schema if pa.types.is_string(f.type))],
            column_encoding={"row": "DELTA_BINARY_PACKED"},
            write_statistics=[name for name in schema.names if name not in random],
        )


def is_done(path: Path, shard: Shard, step: str) -> bool:
    """Whether a finished sidecar of this step and shard is there."""
    if not path.exists():
        return False
    try:
        return _mismatch(pq.read_schema(path), shard, step) is None
    except (pa.ArrowException, OSError):
        return False


def read_sidecar(
    path: Path, shard: Shard, step: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """A sidecar's columns (all of them if not named).

    Raises:
        RunError: if it belongs to another step or shard, or cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            wrong = _mismatch(file.schema_arrow, shard, step)
            if wrong is None:
                names = None if columns is None else list(columns)
                return file.read(columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        wrong = str(error)
    raise RunError(
        f"not the sidecar of shard {shard.digest} ({wrong})",
        where=str(path),
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
    path: Path, shard: Shard, step: str, compute: Callable[[], tuple[Int64s, pa.Table]]
) -> bool:
    """Compute and write a sidecar unless it is there; says whether it was computed."""
    if is_done(path, shard, step):
        return False
    rows, columns = compute()
    write_sidecar(path, shard, step, rows, columns)
    return True
