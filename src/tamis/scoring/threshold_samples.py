"""Threshold samples: rows trained as a class that does not exist, to see what wrong labels do."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.scoring.batch_records import ids_on_host, row_ids_of
from tamis.storage.errors import UserError
from tamis.storage.hashing import hash_columns


def threshold_samples(
    row_ids: Any, classes: int, runs: int = 2, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """The rows that each run trains as an extra class, number `classes`.

    Their area under the margin is that of rows whose label is wrong (Pleiss et al. 2020, section
    4): a row whose own lies below most of theirs is likely mislabelled. No row is one of them in
    two runs, so that with two runs every row is scored at least once as itself.

    The rows are drawn by a hash of their id and the seed: the same ones in any order. Rows that
    share an id are drawn together.

    Args:
        row_ids: ids of all n rows, integers or strings; or n, for rows numbered from 0.
        classes: C, without the extra one.
        runs: how many trainings there will be.
        seed: of the draw.

    Returns:
        bool ``(runs, n)``; each run has N // (C + 1) of N distinct ids, so that the extra class is
        as large as a class of balanced data.

    Raises:
        UserError: if there are too few rows.

    Example:
        >>> masks = threshold_samples(["a", "b", "c", "d", "e", "f"], classes=2)
        >>> masks.sum(1), (masks[0] & masks[1]).any()
        (array([2, 2]), np.False_)
    """
    if isinstance(row_ids, int | np.integer):
        row_ids = np.arange(row_ids)
    ids = ids_on_host(row_ids_of(row_ids)).dictionary_encode()
    distinct, number = ids.dictionary, np.asarray(ids.indices)
    size = len(distinct) // (classes + 1) if classes > 0 else 0
    if size < 1 or runs < 1 or size * runs > len(distinct):
        raise UserError(
            f"threshold samples: {len(distinct)} distinct rows of {classes} classes do not give "
            f"{runs} disjoint sets of one part in {max(classes, 0) + 1}",
            mend="give more rows or fewer runs",
        )
    seeds = pa.array(np.full(len(distinct), seed, np.int64))
    draw = hash_columns(["id", "seed"], [distinct, seeds], len(distinct))
    rank = np.empty(len(distinct), np.int64)
    rank[np.lexsort((draw.low, draw.high))] = np.arange(len(distinct))
    found: npt.NDArray[np.bool_] = rank[number] // size == np.arange(runs)[:, None]
    return found
