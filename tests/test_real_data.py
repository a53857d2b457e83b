"""Near-duplicates of real corpora against exact similarity over all pairs."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from tamis.scoring.minhash import MinHashSignature
from tamis.scoring.shingles import ShingleSets, Shingling
from tamis.selectors.near_dedup import near_duplicates


def duplicate_pairs(text: pa.ChunkedArray, ngram: int, threshold: float) -> sparse.coo_matrix:
    """Exact Jaccard similarity of all pairs that reach the threshold (upper triangle)."""
    array = text.combine_chunks()
    counts = MinHashSignature(ngram=ngram).compute(pa.record_batch({"text": array}))["shingles"]
    sets = ShingleSets.room_for(counts.to_numpy())
    sets.fill(slice(0, len(array)), array, np.arange(len(array)), Shingling(ngram))
    hashes = np.concatenate(
        [sets.hashes[a : a + n] for a, n in zip(sets.start[:-1], sets.size, strict=True)]
    )
    _, columns = np.unique(hashes, return_inverse=True)
    start = np.r_[0, np.cumsum(sets.size)]
    matrix = sparse.csr_matrix((np.ones(len(columns), np.float32), columns, start))
    blocks = []
    for begin in range(0, len(array), 500):
        common = (matrix[begin : begin + 500] @ matrix.T).tocoo()
        row = common.row + begin
        union = sets.size[row] + sets.size[common.col] - common.data
        near = (common.data >= threshold * union) & (common.col > row)
        value = common.data[near] / union[near]
        blocks.append(
            sparse.coo_matrix((value, (row[near], common.col[near])), shape=(len(array),) * 2)
        )
    return sum(blocks[1:], blocks[0]).tocoo()


@pytest.mark.parametrize(
    ("name", "ngram"),
    [
        ("dedup_gutenberg_editions", 5),
        pytest.param("dedup_scancode_licenses", 5, marks=pytest.mark.slow),
        pytest.param("dedup_bible_nt", 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("threshold", [0.7, 0.8])
def test_recall_and_precision(shared_data: Path, name: str, ngram: int, threshold: float) -> None:
    text = pq.read_table(shared_data / f"{name}.parquet", columns=["text"])["text"]
    found = near_duplicates(text, threshold, ngram=ngram)
    pairs = duplicate_pairs(text, ngram, threshold)
    both_kept = found.kept[pairs.row] & found.kept[pairs.col]
    assert 1 - both_kept.mean() >= 0.995
    lost = np.flatnonzero(~found.kept)
    assert len(lost) > 0
    assert (found.similarity[lost] >= threshold).all()
    exact = (pairs + pairs.T).tocsr()
    said = np.asarray(exact[lost, found.partner[lost]]).ravel()
    assert np.allclose(said, found.similarity[lost], atol=1e-6)
