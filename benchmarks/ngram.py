"""The n-gram likelihood: how fast it is, and whether its difference finds a target's rows.

Speed. MB of text a second on one core (time of the processor, which other work on the machine
changes less) to train a model and to score with it, by order. The floor of scoring is one look-up a
byte, at a place that only the look-up before it tells, in as much memory as the model takes; as
many chains of them at once as the kernel has parts. With --peer-python (an interpreter with the
package kenlm) KenLM scores the same texts with the same model, written as an ARPA file whose words
are bytes; the log-probabilities must agree. Splitting its sentences into words is part of KenLM's
time, spelling bytes as words is not.

Quality. From a pool of real texts of many kinds a few are the target; how well are the others of
their kind found? AUROC of every method's score, and the share of the kind among as many of the best
rows as the kind has (R-precision). Within `medical` the kinds are the sources, which is harder.
The methods: the cross-entropy difference by order, and with a general model that is trained on no
more bytes than the target has; the target's model alone; the difference of word bigrams as Moore
and Lewis 2010 have them (words seen twice in the target, the rest one unknown word; the
Kneser-Ney model of `selection.py`); `importance_weight`, which goes by clusters of embeddings.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import selection
from numba import njit

import tamis
from tamis.scoring import ngram_model
from tamis.scoring.ngram_model import NgramModel
from tamis.storage.catalog import query
from tamis.storage.kernels import KERNEL

Floats = npt.NDArray[np.float64]

DOMAINS = [
    *("medical", "law", "code_python", "code_java", "science_abstracts", "books", "cli_docs"),
    *("web_reviews", "web_newsgroup"),
]
#: Rows of a target set; of other kinds in the pool, and a quarter of that of the kind, at most.
TARGET, POOL = 50, 2_000


def texts_of(data: Path) -> pl.DataFrame:
    """Texts in English and code, each once, with domain and source."""
    table = pl.read_parquet(data / "domains_text.parquet")
    table = table.filter(~pl.col("domain").str.contains("multilingual"))
    return table.unique("text", maintain_order=True).select("id", "text", "domain", "source")


@njit(**KERNEL)
def chase(places, steps, states):
    """Follow several chains of places."""
    for _ in range(steps):
        for k in range(states.shape[0]):
            states[k] = places[states[k]]


def chased(model: NgramModel, megabytes: float) -> float:
    """Look-ups a microsecond in as much memory as a model takes."""
    order = np.random.default_rng(1).permutation(len(model.records))
    places = np.empty(len(order), np.int64)
    places[order] = np.roll(order, -1)
    states = order[:: max(1, len(order) // ngram_model._PARTS)][: ngram_model._PARTS].copy()
    steps = int(megabytes * 1e6 / len(states))
    begin = time.thread_time()
    chase(places, steps, states)
    return steps * len(states) / 1e6 / (time.thread_time() - begin)


def speed(table: pl.DataFrame, repeats: int, peer: Path | None) -> None:
    texts = pa.array(table.sample(fraction=1, shuffle=True, seed=1)["text"].to_list())
    sizes = np.cumsum([len(text.as_py().encode()) for text in texts])
    cut = int(np.searchsorted(sizes, sizes[-1] - 10_000_000))
    scored, size = texts.slice(cut), (sizes[-1] - sizes[cut - 1]) / 1e6
    NgramModel.trained(texts.slice(0, 9), 5).log_likelihood(texts.slice(0, 9))
    print(
        "| order | trained on, MB | model, MB | bits/byte | train, MB/s | score, MB/s | of floor |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for megabytes in (0.1, 1, 4, 16):
        rows = int(np.searchsorted(sizes, megabytes * 1e6))
        trained_on = texts.slice(0, max(1, rows))
        given = sizes[max(1, rows) - 1] / 1e6
        rates: dict[int, list[tuple[float, float, float]]] = {}
        models: dict[int, tuple[NgramModel, float]] = {}
        for _ in range(repeats):
            for order in (3, 4, 5, 6, 7):
                begin = time.thread_time()
                model = NgramModel.trained(trained_on, order)
                middle = time.thread_time()
                found = model.log_likelihood(scored)
                end = time.thread_time()
                rate = size / (end - middle)
                figures = given / (middle - begin), rate, rate / chased(model, size)
                rates.setdefault(order, []).append(figures)
                models[order] = model, -found.sum() / np.log(2) / size / 1e6
        for order, (model, bits) in models.items():
            train, score, share = (statistics.median(r) for r in zip(*rates[order], strict=True))
            print(
                f"| {order} | {given:.1f} | {model.records.nbytes / 1e6:.1f} | {bits:.3f} "
                f"| {train:.0f} | {score:.0f} | {share:.2f} |",
                flush=True,
            )
    if peer is not None:
        rows = int(np.searchsorted(sizes, 1e6))
        compare(peer, texts.slice(0, rows), scored.slice(0, len(scored) // 4), repeats)


def compare(peer: Path, trained_on: pa.Array, scored: pa.Array, repeats: int) -> None:
    """KenLM with the same model over the same texts, in turns."""
    names = [f"x{byte:02x}" for byte in range(256)]
    data = [text.as_py().encode() for text in scored]
    size = sum(map(len, data)) / 1e6
    model = NgramModel.trained(trained_on, 5)
    with tempfile.TemporaryDirectory() as folder:
        arpa, source, out = (Path(folder, name) for name in ("m.arpa", "in.json", "out.json"))
        write_arpa(arpa, trained_on, 5, names)
        source.write_text(json.dumps([" ".join(names[b] for b in text) for text in data]))
        ratios, rates = [], []
        for _ in range(repeats):
            runner = Path(__file__).parent / "peers" / "run_kenlm.py"
            subprocess.run([peer, runner, arpa, source, out], check=True, stderr=-3)
            theirs = json.loads(out.read_text())
            begin = time.thread_time()
            ours = model.log_likelihood(scored)
            seconds = time.thread_time() - begin
            ratios.append(theirs["seconds"] / seconds)
            rates.append(size / theirs["seconds"])
    apart = np.abs(ours / np.log(10) - theirs["scores"]) / np.maximum(1, np.abs(ours))
    print(
        f"\nKenLM, order 5, {len(data):,} texts of {size:.1f} MB: {statistics.median(rates):.1f} "
        f"MB/s, {statistics.median(ratios):.1f} times our seconds ({min(ratios):.1f} to "
        f"{max(ratios):.1f}); log-probabilities apart by {apart.max():.1e} at most"
    )


def write_arpa(path: Path, texts: pa.Array, order: int, names: list[str]) -> None:
    """The model in the format of other tools, from its counts."""
    levels = ngram_model._levels(texts, order)
    spelled = ["", *names, "<s>"]
    p: list[Floats] = [np.full(1, 1 / 256)]
    back: list[Floats] = []
    for n, level in enumerate(levels, 1):
        contexts = 1 if n == 1 else len(levels[n - 2].keys) + (n == 2)
        off = ngram_model._discounts(level.counts)[np.minimum(level.counts, 3)]
        total = np.bincount(level.context, level.counts, contexts)
        share = np.bincount(level.context, off, contexts) / np.maximum(total, 1)
        back.append(np.where(total > 0, share, 1))
        ending = p[-1][level.ending]
        p.append((level.counts - off) / total[level.context] + share[level.context] * ending)
    with path.open("w") as out:
        out.write("\\data\\\n")
        for n, level in enumerate(levels, 1):
            out.write(f"ngram {n}={len(level.keys) + 3 * (n == 1)}\n")
        for n, level in enumerate(levels, 1):
            out.write(f"\n\\{n}-grams:\n")
            if n == 1:
                unseen = np.log10(back[0][0] / 256)
                out.write(f"{unseen}\t<unk>\t0\n-99\t</s>\t0\n")
                out.write(f"-99\t<s>\t{np.log10(back[1][-1])}\n")
            for place, key in enumerate(level.keys.tolist()):
                symbols = [spelled[key >> 9 * i & 511] for i in range(n)]
                line = f"{np.log10(p[n][place])}\t{' '.join(symbols)}"
                if n < order:
                    line += f"\t{np.log10(back[n][place])}"
                out.write(line + "\n")
        out.write("\n\\end\\\n")


def auroc(score: Floats, wanted: npt.NDArray[np.bool_]) -> float:
    """Chance that a wanted row has a lower score than another; ties count half."""
    ranks = pl.Series(score).rank("average").to_numpy()
    count = int(wanted.sum())
    above = ranks[wanted].sum() - count * (count + 1) / 2
    return 1 - float(above / (count * (len(wanted) - count)))


def found_by(score: Floats, wanted: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """AUROC and R-precision; the lowest scores are the best."""
    best = np.argsort(score, kind="stable")[: wanted.sum()]
    return auroc(score, wanted), float(wanted[best].mean())


def scores(folder: Path, target: pl.DataFrame, model: str) -> dict[str, Floats]:
    """Every method's score of the pool, in the order of row ids; low is good."""
    target.write_parquet(folder / "target.parquet")
    reference = {"path": str(folder / "target.parquet")}
    size = int(target["text"].str.len_bytes().sum())
    variants = {f"difference, order {order}": {"order": order} for order in range(3, 7)}
    variants["difference, order 5, general on 1 MB"] = {"order": 5, "max_bytes": 1_000_000}
    for order in (4, 5):
        variants[f"difference, order {order}, general as small"] = {
            "order": order,
            "max_bytes": size,
        }
    stages: list[dict[str, Any]] = []
    for i, more in enumerate(variants.values()):
        names = f"target{i}", f"general{i}"
        order = {"order": more["order"]}
        stages += [
            {"operator": "ngram_likelihood", "name": names[0], "train": reference, **order},
            {"operator": "ngram_likelihood", "name": names[1], **more},
            {
                "operator": "cross_entropy_difference",
                "name": f"difference{i}",
                **dict(zip(("target", "general"), names, strict=True)),
            },
        ]
    stages += [
        {"operator": "bits_per_byte", "signal": "target2"},
        {"operator": "embedding", "model": model},
        {"operator": "importance_weight", "target": reference},
    ]
    workspace = tamis.run(
        {
            "corpus": {"path": str(folder / "pool.parquet"), "roles": {"text": "text", "id": "id"}},
            "stages": stages,
            "workspace": str(folder / "work"),
        }
    ).workspace
    columns = [*(f"difference{i}" for i in range(len(variants))), "bits_per_byte"]
    _, rows = query(
        workspace,
        f"SELECT {', '.join(columns)}, -importance_weight FROM scores "
        "JOIN rows USING (row_id, copy) ORDER BY id",
    )
    values = np.array(rows, np.float64).T
    return dict(zip([*variants, "target's model alone", "importance_weight"], values, strict=True))


def word_difference(target: list[str], general: list[str], pool: list[str]) -> Floats:
    """Moore and Lewis 2010 over word bigrams."""
    words = re.compile(r"\w+|[^\w\s]")
    split = [[words.findall(text.lower()) for text in part] for part in (target, general, pool)]
    counts = Counter(word for text in split[0] for word in text)
    twice = (word for word, count in counts.items() if count > 1)
    known = {word: number for number, word in enumerate(twice, 1)}
    numbered = [
        [np.array([known.get(word, 0) for word in text], np.int64) for text in part]
        for part in split
    ]
    selection.ORDER, selection.VOCABULARY = 2, len(known) + 1
    models = [selection.NGrams(part) for part in numbered[:2]]
    lengths = np.maximum(1, [len(text) for text in numbered[2]])
    bits = [model.bits(numbered[2]) for model in models]
    return (bits[0] - bits[1]) / lengths


def quality(table: pl.DataFrame, seeds: int, model: str) -> list[dict[str, Any]]:
    """AUROC and R-precision by method and target."""
    medical = table.filter(pl.col("domain") == "medical").with_columns(
        kind=pl.col("source")  # MedQuAD's parts differ in who wrote them
    )
    whole = table.with_columns(kind=pl.col("domain"))
    sources = medical["kind"].value_counts().filter(pl.col("count") >= 3 * TARGET)["kind"].sort()
    print(f"sources of medical texts: {sources.to_list()}")
    tasks = [(whole, name, name) for name in DOMAINS]
    tasks += [(medical, name, f"medical: {name}") for name in sources]
    found = []
    for seed in range(seeds):
        for source, kind, title in tasks:
            mixed = source.sample(fraction=1, shuffle=True, seed=seed)
            mine = mixed.filter(pl.col("kind") == kind)
            target = mine[: min(TARGET, len(mine) // 2)]
            others = mixed.filter(pl.col("kind") != kind)[:POOL]
            pool = pl.concat([mine[len(target) : len(target) + POOL // 4], others]).sort("id")
            wanted = (pool["kind"] == kind).to_numpy()
            with tempfile.TemporaryDirectory() as name:
                pool.select("id", "text").write_parquet(Path(name) / "pool.parquet")
                by_method = scores(Path(name), target.select("id", "text"), model)
            general = pool.sample(len(target) * 4, seed=seed)["text"].to_list()
            by_method["words, order 2"] = word_difference(
                target["text"].to_list(), general, pool["text"].to_list()
            )
            for method, score in by_method.items():
                area, precision = found_by(np.nan_to_num(score, nan=np.inf), wanted)
                found.append(
                    {
                        "seed": seed,
                        "target": title,
                        "rows": int(wanted.sum()),
                        "method": method,
                        "auroc": area,
                        "precision": precision,
                    }
                )
                print(json.dumps(found[-1]), flush=True)
    return found


def report(found: list[dict[str, Any]]) -> None:
    """Markdown tables: means over targets and seeds, and AUROC by target."""
    table = pl.DataFrame(found).with_columns(
        group=pl.when(pl.col("target").str.contains(":"))
        .then(pl.lit("sources"))
        .otherwise(pl.lit("domains"))
    )
    print("\n| method | domains: AUROC | R-precision | medical sources: AUROC | R-precision |")
    print("|---|---:|---:|---:|---:|")
    for method in dict.fromkeys(table["method"]):
        cells = []
        for group in ("domains", "sources"):
            mine = table.filter((pl.col("method") == method) & (pl.col("group") == group))
            cells += [f"{mine['auroc'].mean():.4f}", f"{mine['precision'].mean():.3f}"]
        print(f"| {method} | {' | '.join(cells)} |")
    print("\n| target | rows | " + " | ".join(dict.fromkeys(table["method"])) + " |")
    for target in dict.fromkeys(table["target"]):
        mine = table.filter(pl.col("target") == target)
        means = [
            f"{mine.filter(pl.col('method') == method)['auroc'].mean():.4f}"
            for method in dict.fromkeys(table["method"])
        ]
        print(f"| {target} | {mine['rows'][0]} | {' | '.join(means)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the shared data sets")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the speed part; 0: none")
    parser.add_argument("--seeds", type=int, default=3, help="of the quality part; 0: none")
    parser.add_argument("--model", default="static", help="embedder of importance_weight")
    parser.add_argument("--peer-python", type=Path, help="interpreter with kenlm")
    parser.add_argument("--json", type=Path, help="where all figures of the quality part go")
    arguments = parser.parse_args()
    table = texts_of(arguments.data)
    if arguments.repeats:
        speed(table, arguments.repeats, arguments.peer_python)
    if arguments.seeds:
        found = quality(table, arguments.seeds, arguments.model)
        report(found)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
