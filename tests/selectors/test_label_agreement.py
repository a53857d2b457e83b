"""Agreement with the labels of the nearest rows, against scikit-learn's exact search."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from tamis.selectors import nearest
from tamis.selectors.nearest import nearest_others
from tests.selectors.sample_tools import Ran, run, shuffled, table_of
from tests.selectors.test_nearest import unit_rows

STAGE: dict[str, Any] = {
    "operator": "label_agreement",
    "embedding": "vector",
    "k": 7,
    "weights": "uniform",
}
ADD = ["label_agreement", "label_agreement_class"]
Matrix = npt.NDArray[Any]


def scored(folder: Path, table: pa.Table, /, workers: int = 2, **params: Any) -> Ran:
    stage = {**STAGE, **params}
    return run(folder, table, stage, add=ADD, workers=workers, roles={"label": "label"})


def labelled(rows: int, classes: int = 4, width: int = 16) -> pa.Table:
    """Rows around a direction for every class; every fifth label is another's."""
    random = np.random.default_rng(rows)
    code = random.integers(0, classes, rows)
    vectors = unit_rows(classes, width, 3)[code] + 0.8 * unit_rows(rows, width, 4)
    label = np.where(np.arange(rows) % 5 == 0, (code + 1) % classes, code)
    return table_of(vectors, label=pa.array([f"c{c}" for c in label]))


def matrix_of(table: pa.Table) -> tuple[Matrix, Matrix]:
    """Unit rows in float64, and labels, in order of id as `Ran` gives rows."""
    order = np.argsort(table["id"].to_pylist())
    vectors = np.stack(table["vector"].to_numpy())[order].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, np.array(table["label"].to_pylist())[order]


@pytest.mark.parametrize("k", [1, 7])
def test_shares_and_classes_are_scikit_learns(tmp_path: Path, k: int) -> None:
    table = labelled(300)
    vectors, label = matrix_of(table)
    rows = scored(tmp_path, table, k=k).rows
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(vectors)
    near = search.kneighbors(return_distance=False)  # of the rows themselves, each left out
    expected = (label[near] == label[:, None]).mean(axis=1)
    assert rows["label_agreement"].to_list() == pytest.approx(expected.tolist())
    vote = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    for row in (0, 5, 17, 120, 299):
        others = np.arange(300) != row
        theirs = vote.fit(vectors[others], label[others]).predict(vectors[row : row + 1])
        assert rows["label_agreement_class"][row] == theirs[0]
    wrong = np.array([int(i[1:]) % 5 == 0 for i in rows["id"]])
    shares = rows["label_agreement"].to_numpy()
    assert shares[wrong].mean() < shares[~wrong].mean() - 0.3


def test_neighbours_weigh_by_similarity(tmp_path: Path) -> None:
    table = labelled(200)
    vectors, label = matrix_of(table)
    rows = scored(tmp_path, table, weights="similarity").rows
    search = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(vectors)
    distance, near = search.kneighbors()
    weight = np.maximum(1 - distance, 0)
    expected = ((label[near] == label[:, None]) * weight).sum(axis=1) / weight.sum(axis=1)
    assert rows["label_agreement"].to_list() == pytest.approx(expected.tolist(), abs=1e-6)


def test_order_sharding_and_workers_do_not_matter(tmp_path: Path) -> None:
    table = pa.concat_tables([labelled(90), labelled(40).slice(0, 3)])
    # Many rows of one vector: which of them are a row's nearest is decided by row_id.
    vectors = np.stack(table["vector"].to_numpy())
    vectors[:40] = vectors[0]
    table = table_of(vectors, label=table["label"])
    first = scored(tmp_path / "a", table, workers=1).rows
    again = scored(tmp_path / "b", shuffled(table, 3)).rows
    assert again.equals(first)


def slow(matrix: Matrix, k: int) -> list[list[int]]:
    found = []
    for row in range(len(matrix)):
        others = [j for j in range(len(matrix)) if j != row and matrix[j].any()]
        if not matrix[row].any():
            others = []
        cosine = matrix.astype(np.float64) @ matrix[row].astype(np.float64)
        best = sorted(others, key=lambda j: (-round(float(cosine[j]), 6), j))[:k]
        found.append([*best, *[-1] * (k - len(best))])
    return found


@pytest.mark.parametrize("k", [1, 3, 30])
@pytest.mark.parametrize("block", [7, 1 << 11])
def test_nearest_others(monkeypatch: pytest.MonkeyPatch, k: int, block: int) -> None:
    """With rows that are equal, rows of zeros, and references in several blocks."""
    monkeypatch.setattr(nearest, "BLOCK_ROWS", block)
    matrix = unit_rows(25, 8, 1)
    matrix[[3, 9, 10, 11, 20, 24]] = matrix[3]
    matrix[[5, 21]] = 0
    found = nearest_others(matrix, k, 2)
    assert found.row.tolist() == slow(matrix, k)
    there = found.row >= 0
    assert (np.isnan(found.similarity) == ~there).all()
    exact = np.einsum("nd,nkd->nk", matrix, matrix[found.row], dtype=np.float64)
    assert found.similarity[there] == pytest.approx(exact[there], abs=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(tmp_path: Path, rows: int) -> None:
    found = scored(tmp_path, labelled(5).slice(0, rows)).rows
    if rows == 2:
        assert found["label_agreement"].null_count() == 0
    elif rows == 1:
        assert found.select(ADD).row(0) == (None, None)


def test_one_class_and_a_class_of_one_row(tmp_path: Path) -> None:
    vectors = unit_rows(6, 4, 1)
    vectors[5] = 0
    table = table_of(vectors, label=pa.array([1, 1, 1, 1, 2, 1]))
    rows = scored(tmp_path, table, k=3).rows
    assert rows["label_agreement"].to_list()[4:] == [0.0, None]
    assert rows["label_agreement_class"].to_list() == ["1", "1", "1", "1", "1", None]


def test_ties_go_to_the_class_that_comes_first(tmp_path: Path) -> None:
    vectors = np.tile([1.0, 0.0], (5, 1))
    table = table_of(vectors, label=pa.array(["z", "b", "a", "a", "b"]))
    rows = scored(tmp_path, table, k=4).rows
    assert rows["label_agreement"].to_list() == [0, 0.25, 0.25, 0.25, 0.25]
    assert rows["label_agreement_class"][0] == "a"
