"""Labelled sets of texts as vectors, with wrong labels that are known: people's, or injected."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from harness import Bools, Floats, Ints

from tamis.scoring.embedding import Embedding

#: Tokens read of a text, and characters handed on of a long one.
TOKENS, CHARACTERS = 128, 800
#: A class with fewer rows is left out.
LEAST_ROWS = 30


@dataclass(frozen=True)
class Labelled:
    """A set.

    Attributes:
        vectors: float32 ``(n, d)``.
        right: the class of every row that noise is injected into.
        given: labels with errors of their own, or None.
        error: which of them are wrong.
        test: vectors and right classes of rows to judge a classifier by, or None.
    """

    name: str
    vectors: Floats
    right: Ints
    given: Ints | None = None
    error: Bools | None = None
    test: tuple[Floats, Ints] | None = None

    @property
    def classes(self) -> int:
        return int(self.right.max()) + 1


@dataclass(frozen=True)
class Cell:
    """Rows of a set with wrong labels."""

    vectors: Floats
    label: Ints
    error: Bools
    right: Ints


def draw(found: Labelled, noise: str, rate: float, seed: int, rows: int) -> Cell:
    """Some rows of a set, drawn by seed, with its own wrong labels or injected ones.

    Args:
        noise: `natural`; `symmetric`, to any other class; or `pair`, to the next class.
        rate: share of the rows whose label is changed, to a row.
    """
    random = np.random.default_rng([seed, zlib.crc32(f"{found.name} {noise} {rate}".encode())])
    some = np.sort(random.permutation(len(found.right))[:rows])
    vectors, right = found.vectors[some], found.right[some]
    if noise == "natural":
        assert found.given is not None
        assert found.error is not None
        return Cell(vectors, found.given[some], found.error[some], right)
    error = np.zeros(len(some), np.bool_)
    error[random.permutation(len(some))[: round(rate * len(some))]] = True
    step = random.integers(1, found.classes, len(some)) if noise == "symmetric" else 1
    return Cell(vectors, np.where(error, (right + step) % found.classes, right), error, right)


def embedded(texts: pl.Series, cache: Path) -> Floats:
    """MiniLM vectors of texts, kept in a file."""
    if not cache.exists():
        cut = texts.str.slice(0, CHARACTERS).to_arrow().cast(pa.string())
        operator = Embedding(max_tokens=TOKENS).resolve(cache.parent)
        found = operator.compute(pa.record_batch({"text": cut}))["embedding"]
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, np.asarray(found.flatten()).reshape(len(cut), -1))
    vectors: Floats = np.load(cache)
    return vectors


def codes_of(*labels: pl.Series) -> list[Ints]:
    """Numbers of the classes of several columns, in order of their text."""
    names = pl.concat([column.cast(pl.String) for column in labels]).unique().sort()
    return [
        names.search_sorted(column.cast(pl.String)).to_numpy().astype(np.int64) for column in labels
    ]


def bundle(data: Path, work: Path) -> dict[str, Labelled]:
    """The sets of the data bundle."""

    def vectors(rows: pl.DataFrame, column: str, name: str) -> Floats:
        return embedded(rows[column], work / "vectors" / f"{name}.npy")

    found: dict[str, Labelled] = {}

    news = pl.read_parquet(data / "labels_noisyag_news.parquet")
    noisy, clean = news.filter(split="noisy"), news.filter(split="clean_test")
    right, given, test = codes_of(noisy["true_label"], noisy["human_label"], clean["true_label"])
    found["NoisyAG-News"] = Labelled(
        "NoisyAG-News",
        vectors(noisy, "text", "noisyag_noisy"),
        right,
        given,
        noisy["is_error"].to_numpy(),
        (vectors(clean, "text", "noisyag_test"), test),
    )

    bank = pl.read_parquet(data / "labels_banking77.parquet")
    train, clean = bank.filter(split="train"), bank.filter(split="test")
    given, test = codes_of(train["given_label"], clean["given_label"])
    found["Banking77"] = Labelled(
        "Banking77",
        vectors(train, "text", "banking77_train"),
        given,
        given,
        train["label_changed"].to_numpy(),
        (vectors(clean, "text", "banking77_test"), test),
    )

    intents = pl.read_parquet(data / "labels_clinc150.parquet")
    train, clean = intents.filter(split="train"), intents.filter(split="test")
    right, test = codes_of(train["label"], clean["label"])
    found["CLINC150"] = Labelled(
        "CLINC150",
        vectors(train, "text", "clinc150_train"),
        right,
        test=(vectors(clean, "text", "clinc150_test"), test),
    )

    others = {
        "MedQuAD types": ("sft_medquad", "output", "question_type", 6000),
        "Dolly categories": ("sft_dolly_3k", "instruction", "category", 6000),
        "persona": ("dedup_scale_persona", "statement", "behaviour", 6000),
        "licence categories": ("dedup_scancode_licenses", "text", "category", 2400),
    }
    for name, (file, column, label, most) in others.items():
        rows = pl.read_parquet(data / f"{file}.parquet").drop_nulls(label)
        if name == "persona":  # every third behaviour
            kept = rows[label].unique().sort().gather_every(3)
            rows = rows.filter(pl.col(label).is_in(kept.implode()))
        rows = rows.filter(pl.len().over(label) >= LEAST_ROWS).sample(
            fraction=1.0, shuffle=True, seed=0
        )[:most]
        (right,) = codes_of(rows[label])
        found[name] = Labelled(name, vectors(rows, column, f"{file}_{column}"), right)
    return found


def synthetic(rows: int = 240, classes: int = 4) -> dict[str, Labelled]:
    """A small set of our own: directions with noise around them."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, 24))

    def some(count: int) -> tuple[Floats, Ints]:
        right = random.integers(0, classes, count)
        found = centres[right] + 1.4 * random.normal(size=(count, 24))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), right

    vectors, right = some(rows)
    return {"synthetic": Labelled("synthetic", vectors, right, test=some(rows))}
