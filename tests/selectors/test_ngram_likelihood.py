"""Likelihood under a model of a target or of the corpus, and selection towards a target."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.flows.direct import Result
from tamis.scoring.ngram_model import NgramModel
from tamis.selectors.ngram_likelihood import NgramLikelihood
from tamis.storage.catalog import query
from tamis.storage.errors import RunError, UserError
from tests.conftest import make_texts, write_corpus

MIXED = ["", "a", "漢字とかな", "👩‍👩‍👧 🏳️‍🌈", "e\u0301", "def f(x):\n    return x\n"]


def run(folder: Path, *stages: dict[str, Any], name: str = "work", **more: Any) -> Result:
    return tamis.run(
        {
            "corpus": {"path": str(folder / "in"), "roles": {"text": "text", "id": "id"}},
            "stages": list(stages),
            "workspace": str(folder / name),
            **more,
        }
    )


def write(folder: Path, texts: list[str], files: int = 1, first: int = 0) -> list[str]:
    """A corpus of several files; gives the texts."""
    for i in range(files):
        table = pa.table(
            {
                "id": [f"row-{first + k}" for k in range(i, len(texts), files)],
                "text": pa.array(texts[i::files], pa.string()),
            }
        )
        (folder / "in").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "in" / f"part-{first}-{i}.parquet", row_group_size=20)
    return texts


def target(folder: Path, texts: list[str | None]) -> dict[str, str]:
    """A reference."""
    table = pa.table({"text": pa.array(texts, pa.string())})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "target.parquet")
    return {"path": str(folder / "target.parquet")}


def scores(result: Result, *names: str) -> dict[str, tuple[Any, ...]]:
    """By text, the scores of a run."""
    columns = ", ".join(f's."{name}"' for name in names)
    _, rows = query(
        result.workspace,
        f"SELECT r.text, {columns} FROM rows r JOIN scores s USING (row_id, copy)",
    )
    return {row[0]: row[1:] for row in rows}


def test_a_target_scores_as_its_model_does(tmp_path: Path) -> None:
    texts = write(tmp_path, [*make_texts(60, copies=0), *MIXED], files=3)
    wanted = make_texts(30, seed=8)
    stage = {"operator": "ngram_likelihood", "name": "wanted", "order": 4}
    result = run(tmp_path, {**stage, "train": target(tmp_path, [*wanted, ""])})
    found = scores(result, "wanted_logp", "wanted_tokens", "wanted_bytes")
    expected = NgramModel.trained(pa.array(wanted), 4).log_likelihood(pa.array(texts))
    for text, logp in zip(texts, expected, strict=True):
        size = len(text.encode())
        assert found[text] == (logp if text else None, size, size)


def test_no_row_is_scored_by_a_model_that_saw_it(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    texts = ["".join(chr(97 + c) for c in random.integers(0, 26, 400)) for _ in range(40)]
    write(tmp_path, texts)
    result = run(tmp_path, {"operator": "ngram_likelihood", "order": 5})
    found = scores(result, "ngram_likelihood_logp")
    per_byte = [found[text][0] / 400 for text in texts]
    # Random letters: no other row tells more of one than that it is made of 26 letters.
    assert max(per_byte) < -np.log(26) * 0.99
    of_all = NgramModel.trained(pa.array(texts), 5).log_likelihood(pa.array(texts)) / 400
    assert of_all.min() > -np.log(26) * 0.7, "the test would see nothing"


@pytest.mark.parametrize("own", [True, False])
def test_order_sharding_and_workers_change_nothing(tmp_path: Path, own: bool) -> None:
    texts = [*make_texts(150, copies=0), *MIXED]
    ids = {text: f"row-{i}" for i, text in enumerate(texts)}
    train = {} if own else {"train": target(tmp_path, make_texts(40, seed=5))}
    stage = {"operator": "ngram_likelihood", "name": "s", "max_bytes": 5_000, **train}
    found = []
    for turn, (files, workers) in enumerate([(1, 1), (4, 3)]):
        folder = tmp_path / str(turn)
        (folder / "in").mkdir(parents=True)
        mixed = (
            texts if turn == 0 else [texts[i] for i in np.random.default_rng(2).permutation(156)]
        )
        for i in range(files):
            part = mixed[i::files]
            table = pa.table({"id": [ids[text] for text in part], "text": part})
            pq.write_table(table, folder / "in" / f"{i}.parquet", row_group_size=7 + 60 * turn)
        found.append(scores(run(folder, stage, workers=workers), "s_logp", "s_tokens"))
    assert found[0] == found[1]
    assert len(found[0]) == len(texts)


def test_a_model_is_trained_once_and_new_rows_only_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, scored = [], []
    real_train, real_score = NgramModel.trained.__func__, NgramModel.log_likelihood

    def train(cls: Any, texts: pa.Array, order: int) -> NgramModel:
        trained.append(len(texts))
        return real_train(cls, texts, order)

    def score(model: NgramModel, texts: pa.Array) -> Any:
        scored.append(len(texts))
        return real_score(model, texts)

    monkeypatch.setattr(NgramModel, "trained", classmethod(train))
    monkeypatch.setattr(NgramModel, "log_likelihood", score)
    texts = write(tmp_path, make_texts(50, copies=0), files=2)
    stage = {"operator": "ngram_likelihood", "name": "s", "train": target(tmp_path, texts[:9])}
    before = scores(run(tmp_path, stage), "s_logp")
    assert (trained, sum(scored)) == ([9], 50)
    run(tmp_path, stage)
    assert (trained, sum(scored)) == ([9], 50)
    write(tmp_path, make_texts(30, seed=9, copies=0), first=50)
    after = scores(run(tmp_path, stage), "s_logp")
    assert (trained, sum(scored)) == ([9], 80)
    assert after.items() >= before.items()
    # Another name is other columns of the same values, from the same signal.
    again = scores(run(tmp_path, {**stage, "name": "t"}), "t_logp")
    assert (trained, sum(scored)) == ([9], 80)
    assert again == after
    # Another target under the same name is another model.
    run(tmp_path, {**stage, "train": target(tmp_path, texts[:10])})
    assert (trained, sum(scored)) == ([9, 10], 160)


def test_max_bytes_bounds_what_is_trained_on(tmp_path: Path) -> None:
    texts = write(tmp_path, make_texts(20, copies=0))
    trained_on = target(tmp_path, ["x" * 900 + "y" * 100, None, *[""] * 150])
    stage = {"operator": "ngram_likelihood", "name": "s", "train": trained_on}
    cut = scores(run(tmp_path, {**stage, "max_bytes": 300}), "s_logp")
    model = NgramModel.trained(pa.array(["x" * 300]), 4)
    assert [cut[t][0] for t in texts] == model.log_likelihood(pa.array(texts)).tolist()
    memory = [
        NgramLikelihood(max_bytes=size, order=order).memory(0, 10**9)
        for size, order in [(10**6, 5), (10**6, 2), (10**5, 5)]
    ]
    assert memory == sorted(memory, reverse=True)


def test_targets_that_cannot_be_used(tmp_path: Path) -> None:
    write(tmp_path, ["a text"])
    stage = {"operator": "ngram_likelihood"}
    with pytest.raises(UserError, match="no text to train"):
        run(tmp_path, {**stage, "train": target(tmp_path, ["", ""])})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no text to train"):
        run(tmp_path, {**stage, "train": {"path": str(tmp_path / "empty")}})
    with pytest.raises(RunError, match="2 of 3 rows of the reference are bad"):
        run(tmp_path, {**stage, "train": target(tmp_path, [None, "b", None])})
    with pytest.raises(UserError, match="order"):
        run(tmp_path, {**stage, "order": 8})
    one = run(tmp_path, {**stage, "train": target(tmp_path, ["a text"])})
    assert scores(one, "ngram_likelihood_logp")["a text"][0] > -6 * np.log(256)


@pytest.mark.parametrize("texts", [[], ["alone"], ["", ""], ["same", "same"]])
def test_small_corpora(tmp_path: Path, texts: list[str]) -> None:
    write(tmp_path, texts)
    result = run(
        tmp_path,
        {"operator": "ngram_likelihood", "name": "target", "train": target(tmp_path, ["b"])},
        {"operator": "ngram_likelihood", "name": "general"},
        {"operator": "cross_entropy_difference"},
        {"operator": "top", "by": "cross_entropy_difference", "order": "lowest", "rows": 9},
    )
    rows = result.manifest["rows"]
    assert rows["in"] == len(texts)
    assert rows["kept"] == sum(map(bool, texts))
    assert rows["dropped"] == ({"top:no_score": 2} if texts == ["", ""] else {})
    if texts == ["alone"]:  # nothing else to learn from: all bytes are alike likely
        found = scores(result, "general_logp")
        assert found["alone"][0] == pytest.approx(-5 * np.log(256))


def test_the_rows_like_the_target_are_kept(tmp_path: Path) -> None:
    random = np.random.default_rng(3)

    def kind(letters: str, count: int) -> list[str]:
        words = ["".join(random.choice(list(letters), 4)) for _ in range(60)]
        return [" ".join(random.choice(words, random.integers(5, 60))) for _ in range(count)]

    wanted = kind("abcdef", 60)
    texts = [*wanted[:30], *kind("abcdefghij", 90), *kind("漢字かなカナ", 30)]
    write(tmp_path, texts)
    run(
        tmp_path,
        {"operator": "ngram_likelihood", "name": "wanted", "train": target(tmp_path, wanted[30:])},
        {"operator": "ngram_likelihood", "name": "all"},
        {
            "operator": "cross_entropy_difference",
            "name": "ced",
            "target": "wanted",
            "general": "all",
        },
        {"operator": "top", "by": "ced", "order": "lowest", "rows": 30},
        output={"path": str(tmp_path / "out"), "add": ["ced", "wanted_logp", "wanted_tokens"]},
    )
    kept = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert set(kept["text"]) == set(wanted[:30])
    assert (kept["wanted_tokens"] == kept["text"].str.len_bytes()).all()


def test_the_difference_by_hand() -> None:
    frame = pa.table(
        {
            "a_logp": [-6.0, None, -3.0],
            "a_tokens": pa.array([3, 0, 1], pa.int32()),
            "b_logp": [-12.0, None, -1.0],
            "b_tokens": pa.array([3, 0, 1], pa.int64()),
        }
    )
    params = {"target": "a", "general": "b"}
    found = tamis.score("cross_entropy_difference", frame, params=params)
    assert found["cross_entropy_difference"].to_list() == [2 - 4, None, 3 - 1]
    other = frame.set_column(3, "b_tokens", pa.array([3, 0, 2]))
    with pytest.raises(UserError, match="different tokens"):
        tamis.score("cross_entropy_difference", other, params=params)


def test_a_difference_needs_both_stages(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in" / "a.parquet", ["a"])
    with pytest.raises(UserError, match="reads 'general_logp'"):
        run(
            tmp_path,
            {"operator": "ngram_likelihood", "name": "target", "train": target(tmp_path, ["a"])},
            {"operator": "cross_entropy_difference"},
        )


def test_the_scores_of_one_language_model_pass_work_on_it(tmp_path: Path) -> None:
    texts = write(tmp_path, [*make_texts(20, copies=0), "漢字", ""])
    wanted = {"operator": "ngram_likelihood", "name": "n", "train": target(tmp_path, texts[:9])}
    names = ["loss", "perplexity", "bits_per_byte"]
    result = run(tmp_path, wanted, *({"operator": name, "signal": "n"} for name in names))
    for text, (logp, *found) in scores(result, "n_logp", *names).items():
        if text:
            loss = -logp / len(text.encode())
            assert found == pytest.approx([loss, np.exp(loss), loss / np.log(2)])
        else:
            assert found == [None] * 3
