"""Topics from keywords: against a slow version, on planted topics, and what does not matter."""

from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.recipe import check_recipe
from tamis.scoring.operator import REGISTRY, Signal
from tamis.selectors.topics import Topics

# A recipe's own union of stages, which the embedder here is no part of, warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


class Letters(Signal):
    """Counts of the letters a to z: an embedder that can be followed by eye."""

    operator: Literal["test_letters"] = "test_letters"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def fields(self) -> pa.Schema:
        return pa.schema([pa.field("letters", pa.list_(pa.float32(), 26), nullable=False)])

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        found = np.array(
            [[text.count(chr(97 + c)) for c in range(26)] for text in batch["text"].to_pylist()],
            np.float32,
        ).reshape(-1, 26)
        column = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), 26)
        return pa.record_batch([column.cast(self.fields().field(0).type)], schema=self.fields())


del REGISTRY["test_letters"]


@pytest.fixture(autouse=True)
def _embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "test_letters", Letters)


def run(folder: Path, texts: list[str], order: int | None = None, **params: Any) -> pl.DataFrame:
    folder.mkdir(parents=True, exist_ok=True)
    places = np.arange(len(texts))
    if order is not None:
        np.random.default_rng(order).shuffle(places)
    kinds = pa.schema([("id", pa.string()), ("text", pa.string())])
    table = pa.table([[f"r{i}" for i in places], [texts[i] for i in places]], schema=kinds)
    pq.write_table(table, folder / "in.parquet", row_group_size=7)
    recipe = check_recipe(
        {
            "corpus": {
                "path": str(folder / "in.parquet"),
                "roles": {"text": "text", "id": "id"},
                "shard_bytes": 1,
            },
            "stages": [{"operator": "topics", "embedding": "letters", **params}],
            "output": {
                "path": str(folder / "out"),
                "add": ["topic", "topic_similarity", "topic_similarities"],
            },
        }
    )
    tamis.run(recipe.model_copy(update={"stages": [Letters(), *recipe.stages]}))
    files = sorted((folder / "out").glob("*.parquet"))
    return pl.concat([pl.read_parquet(f) for f in files]).sort("id")


def texts_of_topics(rows: int = 120) -> tuple[list[str], list[str]]:
    """Texts whose letters come mostly from ``abcde``, ``klmno`` or ``uvwxyz``; and which."""
    random = np.random.default_rng(0)
    alphabets = {"first": "abcde", "middle": "klmno", "last": "uvwxyz"}
    names = random.choice(list(alphabets), rows).tolist()
    texts = []
    for name in names:
        mostly = random.choice(list(alphabets[name]), 30).tolist()
        texts.append(
            "".join(mostly + random.choice(list("abcdefghijklmnopqrstuvwxyz"), 10).tolist())
        )
    return texts, names


TOPICS = {"first": ["a", "ab"], "middle": ["m"], "last": ["z", "y"]}


def unit(rows: Any) -> npt.NDArray[np.float64]:
    found = np.asarray(rows, np.float64)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)  # type: ignore[no-any-return]


def slowly(texts: list[str], topics: dict[str, list[str]], offset: float) -> Any:
    """Cosines of every text to every topic, as the paper describes it."""

    def embed(words: list[str]) -> npt.NDArray[np.float64]:
        return unit([[word.count(chr(97 + c)) for c in range(26)] for word in words])

    documents = embed(texts)
    columns = []
    for words in topics.values():
        near = documents @ unit(embed(words).mean(axis=0))
        own = documents[near >= near.max() - offset]
        columns.append(documents @ unit(own.mean(axis=0)))
    return np.stack(columns, axis=1)


def test_scores_are_cosines_to_the_mean_of_a_topics_documents(tmp_path: Path) -> None:
    texts, _ = texts_of_topics()
    rows = run(tmp_path, texts, topics=TOPICS, offset=0.15)
    expected = slowly(rows["text"].to_list(), TOPICS, 0.15)
    found = np.array(rows["topic_similarities"].to_list())
    assert np.abs(found - expected).max() < 1e-6
    names = list(TOPICS)
    assert rows["topic"].to_list() == [names[best] for best in expected.argmax(axis=1)]
    assert rows["topic_similarity"].to_list() == found.max(axis=1).tolist()


def test_documents_find_what_one_keyword_does_not(tmp_path: Path) -> None:
    texts, names = texts_of_topics()
    truth = dict(zip([f"r{i}" for i in range(len(texts))], names, strict=True))
    words = {"first": ["a"], "middle": ["k"], "last": ["u"]}
    accuracy = {}
    for offset in (0.0, 0.2):
        rows = run(tmp_path / str(offset), texts, topics=words, offset=offset)
        found = [topic == truth[i] for i, topic in rows.select("id", "topic").iter_rows()]
        accuracy[offset] = np.mean(found)
    documents = unit([[text.count(chr(97 + c)) for c in range(26)] for text in texts])
    by_keyword = documents[:, [ord(w[0]) - 97 for w in ("a", "k", "u")]].argmax(axis=1)
    pairs = zip(by_keyword, names, strict=True)
    keywords_only = np.mean([list(words)[best] == name for best, name in pairs])
    assert accuracy[0.2] > 0.95
    assert accuracy[0.2] > keywords_only


def test_how_many_documents_a_topic_has(tmp_path: Path) -> None:
    texts = ["aaab", "aabb", "abbb", "zzz"]
    words = {"a": ["a"], "z": ["z"]}

    def first(**params: Any) -> list[float]:
        rows = run(tmp_path / "-".join(params), texts, topics=words, **params)
        return [similar[0] for similar in rows["topic_similarities"].to_list()]

    def to(*own: str) -> Any:
        label = unit(np.mean(unit([[t.count("a"), t.count("b"), t.count("z")] for t in own]), 0))
        return pytest.approx(
            [float(unit([t.count("a"), t.count("b"), t.count("z")]) @ label) for t in texts],
            abs=1e-6,
        )

    assert first(offset=0) == to("aaab")
    assert first(offset=0, min_documents=2) == to("aaab", "aabb")
    assert first(similarity_threshold=0.3) == to("aaab", "aabb", "abbb")
    assert first(similarity_threshold=0.3, max_documents=2) == to("aaab", "aabb")
    assert first(similarity_threshold=1) == to("aaab")  # none is so near: the nearest


def test_an_outlier_is_left_out(tmp_path: Path) -> None:
    texts = ["a" * (20 + i) + "b" * (1 + i % 4) for i in range(40)] + ["aaaa" + "q" * 6]
    inside = {"topics": {"a": ["a"]}, "similarity_threshold": 0.5}
    plain = run(tmp_path / "a", texts, **inside)
    clean = run(tmp_path / "b", texts, clean_outliers=True, **inside)
    last = pl.col("text").str.contains("q")
    assert (
        clean.filter(last)["topic_similarity"].item()
        < plain.filter(last)["topic_similarity"].item()
    )


def test_order_sharding_and_workers_do_not_matter(tmp_path: Path) -> None:
    texts, _ = texts_of_topics()
    first = run(tmp_path / "0", texts, topics=TOPICS)
    assert run(tmp_path / "1", texts, order=3, topics=TOPICS).equals(first)


def test_texts_without_a_direction_and_without_rows(tmp_path: Path) -> None:
    rows = run(tmp_path / "a", ["", "漢字", "a"], topics=TOPICS)
    assert rows.filter(pl.col("text") == "")["topic_similarity"].item() == 0
    assert rows["topic"].to_list().count("first") == 3  # of equal ones the first
    alone = run(tmp_path / "b", ["a"], topics={"x": ["b"]})
    assert alone["topic_similarity"].to_list() == pytest.approx([1])


def test_vectors_that_no_stage_made_have_no_keywords(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "text": ["t"], "letters": [[1.0, 0.0]]})
    pq.write_table(table, tmp_path / "in.parquet")
    recipe = {
        "corpus": {"path": str(tmp_path / "in.parquet"), "roles": {"text": "text"}},
        "stages": [{"operator": "topics", "embedding": "letters", "topics": {"a": ["a"]}}],
        "workspace": str(tmp_path / "work"),
    }
    with pytest.raises(tamis.UserError, match="no stage makes 'letters'"):
        tamis.run(recipe)
    assert Topics(topics={"a": ["x"]}).fields().names[0] == "topic"


def test_the_library_that_finds_outliers_is_part_of_the_key() -> None:
    plain, clean = (Topics(topics={"a": ["x"]}, clean_outliers=clean) for clean in (False, True))
    assert clean.key_parts()["scikit-learn"] == version("scikit-learn")
    assert "scikit-learn" not in plain.key_parts()
