"""Parquet files that tamis wrote, as one lazy polars table."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from tamis.storage.places import Place


def scan(paths: Sequence[Place]) -> pl.LazyFrame:
    """Several files of one store as one table, read when it is collected."""
    local = [path for path in paths if isinstance(path, Path)]
    if len(local) == len(paths):
        return pl.scan_parquet(local, glob=False)
    import pyarrow.dataset as ds  # loads pandas, for which local files need not wait
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    remote = [path for path in paths if not isinstance(path, Path)]
    files = PyFileSystem(FSSpecHandler(remote[0].fs))
    return pl.scan_pyarrow_dataset(ds.dataset([path.path for path in remote], filesystem=files))
