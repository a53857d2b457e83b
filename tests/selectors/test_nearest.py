"""The exact nearest neighbour against float64 brute force."""

import numpy as np
import numpy.typing as npt
import pytest

from tamis.selectors import nearest as module
from tamis.selectors.nearest import nearest


def unit_rows(rows: int, width: int, seed: int) -> npt.NDArray[np.float32]:
    found = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [1, 3, 16, 387])
def test_the_nearest_row_is_found(width: int) -> None:
    queries, reference = unit_rows(1300, width, 0), unit_rows(2100, width, 1)
    found = nearest(queries, reference, workers=2)
    exact = queries.astype(np.float64) @ reference.astype(np.float64).T
    assert np.abs(found.similarity - exact.max(axis=1)).max() < 1e-12
    chosen = exact[np.arange(len(queries)), found.row]
    assert np.abs(chosen - exact.max(axis=1)).max() < 1e-12


def test_of_equal_rows_the_first_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFERENCES", 700)
    reference = np.tile(unit_rows(300, 32, 2), (8, 1))
    found = nearest(reference, reference, workers=2)
    assert found.row.tolist() == [i % 300 for i in range(2400)]


def test_blocks_and_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = unit_rows(1000, 64, 3)
    near = np.repeat(queries, 3, axis=0) + 1e-4 * unit_rows(3000, 64, 5)  # nearly equal answers
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    first = nearest(queries, near)
    for references, workers in ((100, 2), (1, 1)):
        monkeypatch.setattr(module, "REFERENCES", references)
        if references == 1:  # the answers to the first 50 lie among the first 150
            queries, near = queries[:50], near[:200]
        found = nearest(queries, near, workers)
        assert np.array_equal(found.row, first.row[: len(found.row)])
        assert np.array_equal(found.similarity, first.similarity[: len(found.row)])


def test_empty_sets_and_rows_without_a_direction() -> None:
    some = unit_rows(5, 8, 6)
    assert len(nearest(some[:0], some).row) == 0
    none = nearest(some, some[:0])
    assert none.row.tolist() == [-1] * 5
    assert np.isnan(none.similarity).all()
    odd = some.copy()
    odd[1], odd[2, 3] = 0, np.nan
    found = nearest(odd, some)
    assert found.row[[0, 3, 4]].tolist() == [0, 3, 4]
    assert found.similarity[1] == 0
    assert np.isnan(found.similarity[2])
