"""An operator whose output changes must raise its version.

After a deliberate change: raise the version, then ``python -m tests.test_golden`` writes the new
digests.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import tamis
from tamis.recipe import operators
from tamis.scoring.operator import RowScorer
from tamis.storage.files import digest_of
from tests.conftest import make_texts, write_corpus

GOLDEN = Path(__file__).with_name("golden.json")
TEXTS = [*make_texts(200, copies=0.5), "", "!", "Straße, Ünïcode", "漢字とかな", "a\nb\na\n"]
#: What a reference holds: copies and edited copies of some of the texts.
KNOWN = [*TEXTS[:20], *(f"{text} and more" for text in TEXTS[20:60]), "漢字とかな"]
#: Text for scorers that look for what plain words do not have.
MARKED = [
    "a@b.cd, (415) 555-2671 or 8.8.8.8",
    "Sign in\nwww.a.bc\n3 likes",
    "Ein Satz auf Deutsch.",
    "AKIAABCDEFGHIJKLMNOP, GB82 WEST 1234 5698 7654 32, 4111 1111 1111 1111",
]
SCORERS: dict[str, dict[str, Any]] = {
    "pii": {"mask": True},
    "token_count": {"bytes_per_token": 4.0},
}
#: A page for the rules of web text: what each of them asks about is in one of these.
PAGE = """The weather of the week was fair, and the people of the town were out with their dogs.
- it was said that this should have been better #1 # #
• "Nobody knows," she said, "that the harbour of the old town was built twice."
Read more...
This is the end of the first part … it goes on …
We use cookies to improve your stay, see our privacy policy for that.
Enable javascript in your browser to read on.
The harbour of the old town was built twice. It was burnt down twice, too! Was it not?
"""
PAGES = [
    PAGE,
    PAGE * 3,
    PAGE.replace(".", ""),
    "Lorem ipsum dolor sit amet is said.\n" + PAGE,
    "It is written in brackets {as here} in C.\n" + PAGE,
    "one two one two one two one two one two one two one two one two.\n\n" * 4,
    "a b c d e f g h i j k l m n o p. " * 6 + "\n" + PAGE,
]
MORE: dict[str, list[str]] = {
    **dict.fromkeys(("boilerplate", "language", "pii", "token_count"), MARKED),
    **dict.fromkeys(("c4", "fineweb_quality", "gopher_quality", "gopher_repetition"), PAGES),
}
SELECTORS: dict[str, dict[str, Any]] = {
    "exact_dedup": {},
    "near_dedup": {"threshold": 0.7},
    "known_dedup": {"threshold": 0.7, "against": [{"path": "KNOWN", "id": "id", "name": "known"}]},
    "where": {"keep": {"long": "length(text) > 50", "letters": "text LIKE '%a%'"}},
    "top": {"by": "number", "rows": 50},
    "quantile": {"by": "number", "low": 0.1, "high": 0.8},
    "sample": {"fraction": 0.5},
}


def digest_of_operator(name: str) -> str:
    cls = operators()[name]
    if issubclass(cls, RowScorer):
        texts = [*TEXTS, *MORE.get(name, [])]
        found = cls(**SCORERS.get(name, {})).compute(pa.record_batch({"text": texts}))
        for column in found.schema.names:
            assert len(set(map(repr, found[column].to_pylist()))) > 1, f"{column} is not tried"
        return digest_of([repr(row) for row in found.to_pylist()])
    with tempfile.TemporaryDirectory() as folder:
        path = write_corpus(Path(folder) / "in.parquet", TEXTS)
        table = pl.read_parquet(path).with_columns(number=pl.int_range(pl.len()) * 37 % 101)
        table.write_parquet(path)
        known = write_corpus(Path(folder) / "known.parquet", KNOWN)
        stage = json.loads(json.dumps(SELECTORS[name]).replace("KNOWN", str(known)))
        result = tamis.run(
            {
                "corpus": {"path": str(path), "roles": {"text": "text", "id": "id"}},
                "stages": [{"operator": name, **stage}],
                "workspace": f"{folder}/work",
            }
        )
        rows = result.decisions.drop("shard", "row").sort("id_hi").collect().rows()
        return digest_of([repr(row) for row in rows])


@pytest.mark.parametrize("name", sorted(operators()))
def test_output_changes_only_with_the_version(name: str) -> None:
    known = json.loads(GOLDEN.read_text())
    assert name in known, "run `python -m tests.test_golden`"
    version, digest = known[name]
    assert version == operators()[name].version, "run `python -m tests.test_golden`"
    assert digest_of_operator(name) == digest, f"{name} changed: raise its version"


if __name__ == "__main__":
    found = {name: [cls.version, digest_of_operator(name)] for name, cls in operators().items()}
    GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
