"""Does selection help? Selected subsets against random ones of equal size, on real text.

A pool of real texts of many kinds, with the repetition that real corpora have (editions of one
book, translations of one verse, variants of one licence), is cut down to a share of its bytes by
every selector and by random subsets. A language model is fitted to each subset, and asked how many
bits a byte it needs for texts held out. Held out are whole groups (a verse in all translations, a
licence in all variants, a book in all editions), so that no near-copy of them is in the pool.

The model is a proxy: an interpolated Kneser-Ney n-gram model over byte-pair tokens, which is fitted
to megabytes in seconds and so allows many seeds. It rewards covering more of the language, as a
large model does; it cannot overfit or forget, as a large model may.

A seed draws other held-out groups, another pool and other subsets; the interval is of the
difference to that seed's random subset, over seeds (Student's t, 95 %).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import tamis

Tokens = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

#: Share of the groups that is held out of every domain.
HELD_OUT = 0.1
#: Domains with fewer bytes held out say nothing by themselves.
LEAST_BYTES = 20_000
VOCABULARY = 8_192
ORDER = 4
#: Absolute discount; Ney, Essen and Kneser 1994 estimate it from counts, .75 is common.
DISCOUNT = 0.75


def pool_of(data: Path) -> pl.DataFrame:
    """Texts with a domain and the group that is held out as a whole."""
    domains = pl.read_parquet(data / "domains_text.parquet").filter(
        ~pl.col("domain").str.contains("multilingual")
    )
    parts = [
        domains.select("text", "domain", group=pl.col("id").cast(pl.String)),
        pl.read_parquet(data / "dedup_bible_nt.parquet").select(
            "text", domain=pl.lit("bible"), group="bible" + pl.col("verse_index").cast(pl.String)
        ),
        pl.read_parquet(data / "dedup_gutenberg_editions.parquet").select(
            "text", domain=pl.lit("editions"), group=pl.col("work")
        ),
        pl.read_parquet(data / "dedup_scancode_licenses.parquet").select(
            "text", domain=pl.lit("licences"), group=pl.col("license_expression")
        ),
    ]
    editions = parts[2].with_columns(pl.col("text").str.extract_all(r"(?s).{1,4000}"))
    parts[2] = editions.explode("text", empty_as_null=True)
    return pl.concat(parts).with_columns(bytes=pl.col("text").str.len_bytes().cast(pl.Int64))


def hold_out(pool: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pool and held-out texts; a group lies in one of them."""
    groups = pool.select("domain", "group").unique().sort("domain", "group")
    draw = np.random.default_rng(seed).random(len(groups))
    held = groups.with_columns(held=pl.Series(draw) < HELD_OUT)
    marked = pool.join(held, on=["domain", "group"], maintain_order="left")
    test = marked.filter("held").unique(["domain", "group"], keep="first", maintain_order=True)
    return marked.filter(~pl.col("held")).drop("held"), test.drop("held")


class NGrams:
    """Interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999, eq. 22)."""

    def __init__(self, documents: list[Tokens]) -> None:
        stream = _joined(documents)
        places = np.flatnonzero(stream[ORDER - 1 :] < VOCABULARY)
        self.levels: list[tuple[Any, ...]] = []
        for n in range(ORDER, 0, -1):
            heads, grams = _windows(stream, n)
            known, first, counts = np.unique(grams[places], return_index=True, return_counts=True)
            # Below the highest order a gram counts once for every different token before it.
            places = places[first]
            histories, place = np.unique(heads[places], return_inverse=True)
            total = np.bincount(place, counts)
            self.levels.append((known, counts, histories, total, np.bincount(place)))

    def bits(self, documents: list[Tokens]) -> Floats:
        """Bits that each document takes."""
        stream = _joined(documents)
        places = np.flatnonzero(stream[ORDER - 1 :] < VOCABULARY)
        p = np.full(len(places), 1.0 / VOCABULARY)
        for n, (known, counts, histories, total, kinds) in enumerate(reversed(self.levels), 1):
            heads, grams = (keys[places] for keys in _windows(stream, n))
            seen, head = _find(histories, heads)
            found, gram = _find(known, grams)
            here = np.where(found, counts[gram] - DISCOUNT, 0)
            p = np.where(seen, (here + DISCOUNT * kinds[head] * p) / total[head], p)
        owner = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
        return np.bincount(owner, -np.log2(p), minlength=len(documents))


def _joined(documents: list[Tokens]) -> Tokens:
    """Documents one after the other, with padding before each."""
    gap = np.full(ORDER - 1, VOCABULARY, np.int64)
    return np.concatenate([part for document in documents for part in (gap, document)])


def _windows(stream: Tokens, n: int) -> tuple[Keys, Keys]:
    """At every place from ORDER - 1 on: hashes of the n - 1 tokens before, and with it."""
    size = len(stream) - ORDER + 1
    keys = np.full(size, n, np.uint64)
    heads = keys
    for j in range(ORDER - n, ORDER):
        heads = keys
        keys = (keys ^ (stream[j : j + size].astype(np.uint64) + np.uint64(1))) * _MULTIPLIER
        keys ^= keys >> np.uint64(29)
    return heads, keys


def _find(known: Keys, wanted: Keys) -> tuple[npt.NDArray[np.bool_], Tokens]:
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return known[at] == wanted, at


def tokenizer_of(texts: pl.Series) -> Tokenizer:
    """Byte-pair tokens of a sample of the texts; without it no subset could be compared."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokens_of(tokenizer: Tokenizer, texts: list[str]) -> list[Tokens]:
    """Token ids of every text."""
    return [np.array(found.ids, np.int64) for found in tokenizer.encode_batch_fast(texts)]


def methods(share: float, k: int | None) -> dict[str, list[dict[str, Any]]]:
    """Stages by the name of the method; each leaves about `share` of the rows."""
    clusters = {"k": k}
    return {
        "near_dedup": [{"operator": "near_dedup"}],
        "semdedup": [{"operator": "semdedup", "fraction": share, "greedy": False, **clusters}],
        "prototype_pruning": [{"operator": "prototype_pruning", "fraction": share, **clusters}],
        "d4": [{"operator": "d4", "fraction": share, **clusters}],
        "representative_sample": [
            {"operator": "representative_sample", "fraction": share, **clusters}
        ],
    }


@dataclass(frozen=True)
class Outcome:
    """Bits a byte that a subset's model needs, and those of random subsets.

    `random` ones are of its size, `matched` ones of its size in every domain: the difference to
    them is not due to the domains that a selector prefers.
    """

    method: str
    seed: int
    size: int
    selected: dict[str, float]
    random: dict[str, float]
    matched: dict[str, float]


def bits_per_byte(model: NGrams, test: pl.DataFrame, tokens: list[Tokens]) -> dict[str, float]:
    """By domain, and their mean, in which every domain counts alike."""
    found = (
        test.with_columns(bits=pl.Series(model.bits(tokens)))
        .group_by("domain")
        .agg(pl.col("bits").sum(), pl.col("bytes").sum())
        .filter(pl.col("bytes") >= LEAST_BYTES)
        .sort("domain")
    )
    by_domain = dict(zip(found["domain"], found["bits"] / found["bytes"], strict=True))
    return {**by_domain, "mean": float(np.mean(list(by_domain.values())))}


def kept_rows(folder: Path, stages: list[dict[str, Any]], model: str) -> npt.NDArray[np.int64]:
    """Rows of ``pool.parquet`` that the stages keep."""
    needs_vectors = any(stage["operator"] != "near_dedup" for stage in stages)
    embedding = [{"operator": "embedding", "model": model}] if needs_vectors else []
    result = tamis.run(
        {
            "corpus": {
                "path": str(folder / "pool.parquet"),
                "roles": {"text": "text", "id": "row", "domain": "domain"},
            },
            "stages": [*embedding, *stages],
            "output": {"path": str(folder / "out")},
            "workspace": str(folder / "work"),
        }
    )
    assert result.output is not None
    return np.sort(pl.read_parquet(Path(str(result.output)) / "*.parquet")["row"].to_numpy())


def measure(arguments: argparse.Namespace) -> list[Outcome]:
    whole = pool_of(arguments.data)
    # Licences are half of all bytes: a quarter of their groups stays.
    names = whole.filter(pl.col("domain") == "licences")["group"].unique().sort()
    whole = whole.filter(
        (pl.col("domain") != "licences") | pl.col("group").is_in(names.gather_every(4).to_list())
    )
    outcomes = []
    for seed in range(arguments.seeds):
        pool, test = hold_out(whole, seed)
        pool = pool.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
        random = np.random.default_rng(seed + 1000)
        sample = pool.sample(5_000, seed=seed)
        tokenizer = tokenizer_of(sample["text"])
        tokens = tokens_of(tokenizer, pool["text"].to_list())
        held = tokens_of(tokenizer, test["text"].to_list())
        sizes, domains = pool["bytes"].to_numpy(), pool["domain"].to_numpy()

        def fit(rows: npt.NDArray[np.int64]) -> dict[str, float]:
            fitted = NGrams([tokens[row] for row in rows])  # noqa: B023 (of this round)
            return bits_per_byte(fitted, test, held)  # noqa: B023 (of this round)

        def cut(rows: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
            """Random ones of these rows that together have so many bytes."""
            mixed = random.permutation(rows)  # noqa: B023 (of this round)
            return mixed[np.cumsum(sizes[mixed]) <= size]  # noqa: B023 (of this round)

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pool.drop("group").write_parquet(folder / "pool.parquet")
            for share in arguments.shares:
                for method, stages in methods(share, arguments.clusters).items():
                    kept = kept_rows(folder, stages, arguments.model)
                    limit = int(share * sizes.sum())
                    kept = cut(kept, limit) if sizes[kept].sum() > limit else kept
                    size = int(sizes[kept].sum())
                    selected = fit(kept)
                    everything = np.arange(len(sizes))
                    drawn = fit(cut(everything, size))
                    alike = fit(
                        np.concatenate(
                            [
                                cut(np.flatnonzero(domains == name), int(sizes[kept[here]].sum()))
                                for name in np.unique(domains[kept])
                                for here in [domains[kept] == name]
                            ]
                        )
                    )
                    outcome = Outcome(
                        f"{method} {share:g}",
                        seed,
                        size,
                        selected,
                        drawn,
                        alike,
                    )
                    outcomes.append(outcome)
                    print(
                        f"seed {seed} {outcome.method}: {size / 1e6:.1f} MB, "
                        f"{selected['mean']:.4f} bits a byte, random {drawn['mean']:.4f}, "
                        f"random of the same domains {alike['mean']:.4f}",
                        flush=True,
                    )
    return outcomes


def report(outcomes: list[Outcome]) -> None:
    """A Markdown table: the differences to random subsets, and their intervals over seeds."""
    print("\n| method | MB | bits/byte | less random | less random of the same domains |")
    print("|---|---:|---:|---:|---:|")
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.method == method]
        print(
            f"| {method} | {np.mean([o.size for o in mine]) / 1e6:.1f} "
            f"| {np.mean([o.selected['mean'] for o in mine]):.4f} "
            f"| {interval([o.selected['mean'] - o.random['mean'] for o in mine])} "
            f"| {interval([o.selected['mean'] - o.matched['mean'] for o in mine])} |"
        )


def interval(values: list[float]) -> str:
    """Mean and 95 % interval by Student's t."""
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return f"{mean:+.4f}"
    half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the shared data sets")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--clusters", type=int, default=None)
    parser.add_argument("--model", default="static", help="embedder of the selectors")
    parser.add_argument("--json", type=Path, help="where all figures go")
    arguments = parser.parse_args()
    outcomes = measure(arguments)
    report(outcomes)
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1))


if __name__ == "__main__":
    main()
