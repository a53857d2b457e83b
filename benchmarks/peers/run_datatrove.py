"""datatrove: its four MinHash stages with LocalPipelineExecutor, file to file.

Words come from a regular expression and the text is only lower-cased, both faster than datatrove's
defaults (spaCy words, diacritics, numbers) and the same shingles as everyone else. The input is
split into one file per worker beforehand, without being timed: datatrove's unit of parallel work is
the file. The mask is known after the third stage; the fourth filters and writes Parquet. Reading
Parquet cannot be taken out of the first stage.
"""

from __future__ import annotations

from pathlib import Path

import common
import datatrove.pipeline.dedup.minhash as minhash
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer
from loguru import logger


class RegexTokenizer(WordTokenizer):
    def word_tokenize(self, text: str) -> list[str]:
        return common.find_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def load_regex_tokenizer(_language: str) -> WordTokenizer:
    return RegexTokenizer()


def split_input(source: Path, folder: Path, parts: int) -> int:
    """Equal files of `id` (as text, which datatrove requires) and `text`."""
    table = pq.read_table(source, columns=["id", "text"])
    table = table.set_column(0, "id", table.column("id").cast(pa.string()))
    folder.mkdir(parents=True)
    size = -(-table.num_rows // parts)
    for part in range(parts):
        piece = table.slice(part * size, size)
        pq.write_table(piece, folder / f"{part:03d}.parquet", compression="zstd")
    return table.num_rows


def configuration(bands: int, rows: int, ngram: int) -> minhash.MinhashConfig:
    return minhash.MinhashConfig(
        n_grams=ngram,
        num_buckets=bands,
        hashes_per_bucket=rows,
        hash_config=HashConfig(precision=64, hash_fc="xxhash"),
        norm_config=TextNormConfig(
            lowercase=True,
            norm_whitespace=False,
            remove_punctuation=False,
            norm_unicode_diacritics=False,
            norm_numbers=False,
        ),
    )


def stages(
    work: Path, config: minhash.MinhashConfig, workers: int
) -> dict[str, tuple[list[PipelineStep], int]]:
    """Steps and number of tasks of each stage."""

    def reader() -> ParquetReader:
        return ParquetReader(str(work / "in"), text_key="text", id_key="id")

    sign = minhash.MinhashDedupSignature(str(work / "signatures"), config=config)
    match = minhash.MinhashDedupBuckets(
        str(work / "signatures"), str(work / "pairs"), config=config
    )
    cluster = minhash.MinhashDedupCluster(str(work / "pairs"), str(work / "remove"), config=config)
    drop = minhash.MinhashDedupFilter(str(work / "remove"))
    return {
        "signatures": ([reader(), sign], workers),
        "buckets": ([match], config.num_buckets),
        "cluster": ([cluster], 1),
        "filter": ([reader(), drop, ParquetWriter(str(work / "out"))], workers),
    }


def kept_mask(folder: Path, documents: int) -> common.Bools:
    ids = [
        pq.read_table(path, columns=["id"]).column("id").cast(pa.int64()).to_numpy()
        for path in sorted(folder.rglob("*.parquet"))
    ]
    return common.mask_of([row for part in ids for row in part], documents)


def main() -> None:
    logger.remove()
    options = common.arguments(__doc__)
    minhash.load_word_tokenizer = load_regex_tokenizer
    documents = split_input(options.input, options.work / "in", options.workers)
    config = configuration(options.bands, options.rows, options.ngram)
    watch = common.Stopwatch()
    for name, (steps, tasks) in stages(options.work, config, options.workers).items():
        LocalPipelineExecutor(
            pipeline=steps,
            tasks=tasks,
            workers=min(tasks, options.workers),
            logging_dir=str(options.work / "logs" / name),
            start_method="fork",
        ).run()
        watch.lap(name)
    kept = kept_mask(options.work / "out", documents)
    common.report(
        "datatrove", kept, options.kept, watch, watch.total("filter"), end_to_end=watch.total()
    )


if __name__ == "__main__":
    main()
