"""A reproducible corpus with known near-duplicates, made of pseudo-words.

Documents are strings of sentences drawn from one pool, so unrelated documents share a sentence now
and then, as real ones do, but hardly a word 5-gram beyond it. A fifth of the documents are copies
of others, edited word by word at a known rate. Everything follows from the seed and the number of
documents; the file is made once per work directory.

    python benchmarks/synthetic.py --documents 20000 --work DIR

Columns: ``id`` (row number), ``text``, ``cluster`` (base document), ``source`` (row of the
original, -1 for originals), ``edit_rate`` (-1 for originals), ``jaccard`` (exact, word 5-grams, to
the original; -1 for originals). Beside it lies ``*.pairs.npz`` with the exact Jaccard of every pair
of rows within a cluster: two copies of one original are near-duplicates of each other too.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]

FORMAT = 1  # goes into file names: a changed generator must not meet an old file
SEED = 20_240_607
ROW_GROUP = 20_000
NGRAM = 5
VOCABULARY = 30_000
SENTENCES = 100_000
COPIES = 0.2
EDIT_RATES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.10)
SENTENCES_PER_LINE = 5
MEDIAN_WORDS = 440

ONSETS = (*"bcdfghklmnprstvw", "ch", "cl", "dr", "fl", "gr", "pl", "sh", "st", "th", "tr")
VOWELS = (*"aeiou", "ai", "ea", "ou")
CODAS = ("", "", "", "n", "r", "s", "t", "l", "m", "d", "ck", "ng")

# A token is `form * VOCABULARY + word`: one word with its capital, punctuation and white space.
PLAIN, CAPITAL, COMMA, STOP, STOP_LINE, QUESTION, QUOTED = range(7)


@dataclass(frozen=True)
class Corpus:
    """Where a generated corpus lies, and the exact Jaccard of all pairs within its clusters."""

    path: Path
    documents: int
    text_bytes: int
    left: Ints
    right: Ints
    jaccard: Floats


@dataclass(frozen=True)
class Language:
    """Token strings, and a pool of sentences as runs of tokens."""

    tokens: pa.Array
    zipf: Floats
    sentence_tokens: Ints
    sentence_start: Ints


@dataclass(frozen=True)
class Plan:
    """What every row is made of; `base` rows index `sentences` through `start`."""

    sentences: Ints
    start: Ints
    base: Ints
    source: Ints
    edit_rate: Floats
    typographic: Bools


def make_corpus(
    documents: int, work: Path, non_ascii: float = 0.1, words: int = MEDIAN_WORDS
) -> Corpus:
    """Make the corpus, or find it in `work`.

    `non_ascii` is the share of documents with typographic quotation marks, `words` the median
    length of an original.
    """
    work.mkdir(parents=True, exist_ok=True)
    length = "" if words == MEDIAN_WORDS else f"-{words}w"
    stem = f"synthetic-v{FORMAT}-{documents}-{round(non_ascii * 100):02d}{length}"
    path, pairs_path = work / f"{stem}.parquet", work / f"{stem}.pairs.npz"
    if not (path.exists() and pairs_path.exists()):
        write_corpus(documents, non_ascii, path, pairs_path, words)
    with np.load(pairs_path) as pairs:
        return Corpus(
            path=path,
            documents=documents,
            text_bytes=int(pairs["text_bytes"]),
            left=pairs["left"],
            right=pairs["right"],
            jaccard=pairs["jaccard"],
        )


def write_corpus(
    documents: int, non_ascii: float, path: Path, pairs_path: Path, words: int = MEDIAN_WORDS
) -> None:
    rng = np.random.default_rng(SEED)
    language = make_language(rng)
    plan = make_plan(rng, documents, non_ascii, language, words)
    left, right = cluster_pairs(plan.base)
    in_pair = np.zeros(documents, dtype=bool)
    in_pair[left] = in_pair[right] = True

    texts: list[pa.Array] = []
    shingles: dict[int, Hashes] = {}
    for first in range(0, documents, ROW_GROUP):
        rows = np.arange(first, min(first + ROW_GROUP, documents))
        tokens, ends = make_tokens(language, plan, rows)
        texts.append(join_tokens(language.tokens, tokens, ends))
        shingles.update(shingle_sets(tokens % VOCABULARY, ends, rows, in_pair))
    jaccard = pair_jaccard(shingles, left, right)
    text = pa.chunked_array(texts)
    write_table(path, text, plan, jaccard_to_source(plan.source, left, right, jaccard))
    text_bytes = pc.sum(pc.binary_length(text)).as_py()
    np.savez(pairs_path, left=left, right=right, jaccard=jaccard, text_bytes=text_bytes)


def make_language(rng: np.random.Generator) -> Language:
    words = make_words(rng)
    ranks = np.arange(1, VOCABULARY + 1)
    zipf = 1.0 / (ranks + 2.7)
    cumulative = np.cumsum(zipf / zipf.sum())

    lengths = np.clip(rng.gamma(4.0, 4.5, SENTENCES), 4, 60).astype(np.int64)
    start = np.concatenate([[0], np.cumsum(lengths)])
    words_of_pool = np.searchsorted(cumulative, rng.random(start[-1]))
    form = np.where(rng.random(start[-1]) < 0.07, COMMA, PLAIN)
    form[start[:-1]] = CAPITAL
    form[start[1:] - 1] = np.where(rng.random(SENTENCES) < 0.08, QUESTION, STOP)
    return Language(token_strings(words), cumulative, form * VOCABULARY + words_of_pool, start)


def make_words(rng: np.random.Generator) -> list[str]:
    """Pseudo-words, the frequent ones short, none twice."""
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        syllables = zip(
            rng.choice(ONSETS, 4), rng.choice(VOWELS, 4), rng.choice(CODAS, 4), strict=True
        )
        length = 2 + int(0.54 * np.log1p(len(words)) + 1.2 * rng.random())
        words["".join(itertools.chain.from_iterable(syllables))[:length]] = None
    return list(words)


def token_strings(words: list[str]) -> pa.Array:
    forms = {
        PLAIN: "{0} ",
        CAPITAL: "{1} ",
        COMMA: "{0}, ",
        STOP: "{0}. ",
        STOP_LINE: "{0}.\n",
        QUESTION: "{0}? ",
        QUOTED: "“{0}” ",
    }
    strings = [
        forms[form].format(word, word.capitalize()) for form in sorted(forms) for word in words
    ]
    return pa.array(strings, pa.large_string())


def make_plan(
    rng: np.random.Generator,
    documents: int,
    non_ascii: float,
    language: Language,
    median_words: int,
) -> Plan:
    copies = int(documents * COPIES)
    originals = documents - copies
    words = np.clip(
        rng.lognormal(np.log(median_words), 0.5, originals), min(60, median_words // 2), 3000
    )
    mean_sentence = language.sentence_start[-1] / SENTENCES
    count = np.maximum(3, np.round(words / mean_sentence)).astype(np.int64)
    start = np.concatenate([[0], np.cumsum(count)])

    base = np.concatenate([np.arange(originals), rng.integers(0, originals, copies)])
    rate = np.concatenate([np.full(originals, -1.0), rng.choice(EDIT_RATES, copies)])
    order = rng.permutation(documents)
    row_of = np.empty(documents, dtype=np.int64)
    row_of[order] = np.arange(documents)
    is_copy = order >= originals
    return Plan(
        sentences=rng.integers(0, SENTENCES, start[-1]),
        start=start,
        base=base[order],
        source=np.where(is_copy, row_of[base[order]], -1),
        edit_rate=rate[order],
        typographic=rng.random(originals) < non_ascii,
    )


def make_tokens(language: Language, plan: Plan, rows: Ints) -> tuple[Ints, Ints]:
    """Tokens of all `rows` in one array, and where each row ends."""
    base = plan.base[rows]
    sentences, per_row = gather_runs(plan.sentences, plan.start, base)
    tokens, per_sentence = gather_runs(language.sentence_tokens, language.sentence_start, sentences)
    tokens = break_lines(tokens, np.cumsum(per_sentence), per_row)
    ends_of_sentences = np.cumsum(per_sentence)
    ends = ends_of_sentences[np.cumsum(per_row) - 1]
    tokens = add_quotes(tokens, ends, plan.typographic[base])
    return edit(language, tokens, ends, plan.edit_rate[rows], seed=int(rows[0]))


def gather_runs(values: Ints, start: Ints, wanted: Ints) -> tuple[Ints, Ints]:
    """Concatenate `values[start[i]:start[i + 1]]` for each wanted `i`; also the run lengths."""
    lengths = start[wanted + 1] - start[wanted]
    shift = start[wanted] - (np.cumsum(lengths) - lengths)
    return values[np.repeat(shift, lengths) + np.arange(lengths.sum())], lengths


def break_lines(tokens: Ints, ends_of_sentences: Ints, per_row: Ints) -> Ints:
    within_row = np.arange(per_row.sum()) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    last = ends_of_sentences[within_row % SENTENCES_PER_LINE == SENTENCES_PER_LINE - 1] - 1
    full_stop = last[tokens[last] // VOCABULARY == STOP]
    tokens[full_stop] += (STOP_LINE - STOP) * VOCABULARY
    return tokens


def add_quotes(tokens: Ints, ends: Ints, typographic: Bools) -> Ints:
    """Quote about one word in a hundred, at places that an original and its copies share."""
    lengths = np.diff(ends, prepend=0)
    place = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
    chosen = np.repeat(typographic, lengths) & (place % 97 == 11) & (tokens < VOCABULARY)
    tokens[chosen] += QUOTED * VOCABULARY
    return tokens


def edit(
    language: Language, tokens: Ints, ends: Ints, rate: Floats, seed: int
) -> tuple[Ints, Ints]:
    """Substitute (60 %), delete (20 %) or follow by a new word (20 %) at each row's rate."""
    rng = np.random.default_rng((SEED, seed))
    lengths = np.diff(ends, prepend=0)
    touched = np.flatnonzero(rng.random(len(tokens)) < np.repeat(np.maximum(rate, 0), lengths))
    kind = rng.choice(3, len(touched), p=(0.6, 0.2, 0.2))
    new_words = np.searchsorted(language.zipf, rng.random(len(touched)))

    changed = touched[kind == 0]
    tokens[changed] = tokens[changed] // VOCABULARY * VOCABULARY + new_words[kind == 0]
    repeats = np.ones(len(tokens), dtype=np.int64)
    repeats[touched[kind == 1]] = 0
    repeats[touched[kind == 2]] = 2
    out_ends = np.cumsum(repeats)
    out = np.repeat(tokens, repeats)
    out[out_ends[touched[kind == 2]] - 1] = new_words[kind == 2]
    return out, out_ends[ends - 1]


def join_tokens(strings: pa.Array, tokens: Ints, ends: Ints) -> pa.Array:
    """Documents as slices of the bytes of all tokens in a row: no string is built twice."""
    flat = strings.take(pa.array(tokens))
    _, offsets, data = flat.buffers()
    token_offsets = np.frombuffer(offsets, dtype=np.int64, count=len(tokens) + 1)
    text_offsets = np.concatenate([[0], token_offsets[ends]])
    return pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(text_offsets), data)


def cluster_pairs(cluster: Ints) -> tuple[Ints, Ints]:
    """Row pairs (left < right) of one cluster."""
    order = np.argsort(cluster, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1)
    pairs = [pair for group in groups for pair in itertools.combinations(group.tolist(), 2)]
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def shingle_sets(words: Ints, ends: Ints, rows: Ints, wanted: Bools) -> dict[int, Hashes]:
    """Sorted distinct hashes of the word 5-grams of the wanted rows."""
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    mixed = mix((words.astype(np.uint64) + np.uint64(1)) * multiplier)
    grams = np.zeros(len(words) - NGRAM + 1, dtype=np.uint64)
    for place in range(NGRAM):
        grams = grams * multiplier + mixed[place : place + len(grams)]
    grams = mix(grams)
    starts = np.concatenate([[0], ends[:-1]])
    return {
        int(row): np.unique(grams[start : end - NGRAM + 1])
        for row, start, end in zip(rows, starts, ends, strict=True)
        if wanted[row]
    }


def mix(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return values ^ (values >> np.uint64(29))


def pair_jaccard(sets: dict[int, Hashes], left: Ints, right: Ints) -> Floats:
    result = np.empty(len(left))
    for place, (a, b) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        shared = len(np.intersect1d(sets[a], sets[b], assume_unique=True))
        result[place] = shared / (len(sets[a]) + len(sets[b]) - shared)
    return result


def jaccard_to_source(source: Ints, left: Ints, right: Ints, jaccard: Floats) -> Floats:
    result = np.full(len(source), -1.0)
    for copy, original in ((left, right), (right, left)):
        known = source[copy] == original
        result[copy[known]] = jaccard[known]
    return result


def write_table(path: Path, text: pa.ChunkedArray, plan: Plan, jaccard: Floats) -> None:
    table = pa.table(
        {
            "id": pa.array(np.arange(len(text)), pa.int64()),
            "text": text,
            "cluster": pa.array(plan.base, pa.int64()),
            "source": pa.array(plan.source, pa.int64()),
            "edit_rate": pa.array(plan.edit_rate, pa.float64()),
            "jaccard": pa.array(jaccard, pa.float64()),
        }
    )
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(table, unfinished, compression="zstd", row_group_size=ROW_GROUP)
    unfinished.rename(path)


def describe(corpus: Corpus) -> str:
    near = int((corpus.jaccard >= 0.8).sum())
    return (
        f"{corpus.documents:,} documents, {corpus.text_bytes / 1e6:,.1f} MB of text, "
        f"{len(corpus.jaccard):,} pairs within clusters, {near:,} of them with Jaccard >= 0.8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--non-ascii", type=float, default=0.1)
    parser.add_argument("--words", type=int, default=MEDIAN_WORDS, help="of a median original")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    corpus = make_corpus(arguments.documents, arguments.work, arguments.non_ascii, arguments.words)
    print(f"{corpus.path}: {describe(corpus)} ({time.perf_counter() - begin:.1f} s)")


if __name__ == "__main__":
    main()
