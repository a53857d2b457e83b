"""datatrove: its n-gram decontamination filter called directly, in one process.

The index holds the n-grams of every item's text, as its indexer computes them. Building it,
reading and the first call are not timed. Reads Parquet with a column `text` of rows and of items;
writes for every row the n-gram found, or an empty string.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import common
import numpy as np
from datatrove.data import Document
from datatrove.pipeline.decont import NGramsDecontFilter
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontIndexer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--items", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--ngram", type=int, default=12)
    options = parser.parse_args()
    config = NGramsDecontConfig(n_grams=options.ngram)
    texts = common.read_texts(options.input)
    with tempfile.TemporaryDirectory() as folder:
        indexer = object.__new__(NGramsDecontIndexer)  # its own checks ask for lighteval
        one = NGramsDecontFilter(folder, config=config)
        indexer.config, indexer.tokenizer = config, one.tokenizer
        indexer.hash_func = one.hash_func
        hashes = {
            h for item in common.read_texts(options.items) for h in indexer.compute_hashes(item)
        }
        np.array(sorted(hashes), config.hash_config.np_descr).tofile(
            str(Path(folder) / "items.index.hashes")
        )
        one.filter(Document(text="The first call reads the index.", id=""))
        found = []
        begin = time.perf_counter()
        for text in texts:
            document = Document(text=text, id="")
            kept = one.filter(document) is True
            found.append("" if kept else document.metadata["contaminated_ngram"])
        seconds = time.perf_counter() - begin
    options.output.write_text(json.dumps(found), "utf-8")
    print(json.dumps({"version": f"datatrove {version('datatrove')}", "seconds": seconds}))


if __name__ == "__main__":
    main()
