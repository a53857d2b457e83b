"""Pairs of rows in a file that may find its disk full."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamis.storage.edges import Edges
from tamis.storage.errors import RunError


def three(folder: Path) -> Edges:
    edges = Edges(folder, in_memory=1)
    edges.add(np.array([1, 2, 3]), np.array([0, 0, 1]), np.array([0.9, 0.8, 0.7]))
    return edges


def test_pairs_are_read_again_under_other_numbers(tmp_path: Path) -> None:
    edges = three(tmp_path)
    row, other, similarity = edges.among(np.array([7, 5, 6, 4])).together()
    assert (row.tolist(), other.tolist()) == ([5, 6, 4], [7, 7, 5])
    assert similarity.tolist() == [0.9, 0.8, 0.7]
    assert edges.together()[0].tolist() == [1, 2, 3]


def test_a_disk_that_is_full_when_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = three(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(edges._file, "seek", full)
    with pytest.raises(RunError, match="no space left") as error:
        edges.together()
    assert str(tmp_path) in str(error.value)
