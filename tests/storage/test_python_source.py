"""Source trees as corpora: `python:` and `python-pairs:`."""

import random
import re
import textwrap
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import tamis
from tamis.storage.ingest import open_corpus
from tamis.storage.places import place_of
from tamis.storage.python_pairs import ANSWER_CHARACTERS, PROMPT_CHARACTERS, PROMPT_END

MODULE = '''"""A module."""

def read(path):
    """Read a table from a file.

    Further words.
    """
    return open(path).read()


class Store:
    """No function."""

    async def write(self, table, path): "Write the table to a file."

    if True:
        def drop(self):
            """Remove everything
            that is stored."""; return 1

    def undocumented(self):
        return 2
'''


def rows(tree: Path, scheme: str = "python-pairs:") -> list[dict[str, Any]]:
    corpus = open_corpus(f"{scheme}{tree}", place_of(str(tree.parent / "workspace")))
    return [row for shard in corpus.shards for row in shard.table(corpus.schema.names).to_pylist()]


def write(tree: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(text.encode())
    return tree


def functions(count: int, seed: int = 0) -> list[str]:
    words = ["table", "column", "reader", "matrix", "vector", "socket", "thread", "digest"]
    made = random.Random(seed)
    return [
        f'def f{i}(x):\n    """{" ".join(made.choices(words, k=6)).capitalize()}."""\n'
        f"    return x + {i}\n"
        for i in range(count)
    ]


def test_a_function_its_docstring_and_a_wrong_one(tmp_path: Path) -> None:
    tree = write(tmp_path / "tree", {"package/module.py": MODULE, "package/LICENSE": "No pair."})
    found = {row["name"]: row for row in rows(tree)}
    assert {name: (row["prompt"], row["chosen"]) for name, row in found.items()} == {
        "module.read": (
            'def read(path):\n    return open(path).read()\n"""',
            "Read a table from a file.",
        ),
        "module.Store.write": (
            'async def write(self, table, path):\n"""',
            "Write the table to a file.",
        ),
        "module.Store.drop": (
            'def drop(self):\n    ; return 1\n"""',
            "Remove everything that is stored.",
        ),
    }
    answers = {row["chosen"] for row in found.values()}
    for row in found.values():
        assert row["package"] == "package"
        assert row["path"] == "package/module.py"
        if row["rejected_kind"] == "neighbour":
            assert row["rejected"] in answers - {row["chosen"]}
        else:
            assert row["rejected_kind"] == "corrupted"
            assert row["rejected"] not in answers


def test_corrupted_answers_hold_every_second_word_of_a_neighbour(tmp_path: Path) -> None:
    tree = write(tmp_path / "tree", {"m.py": "\n".join(functions(200))})
    found = rows(tree)
    corrupted = [row for row in found if row["rejected_kind"] == "corrupted"]
    assert 70 < len(corrupted) < 130
    for row in corrupted:
        own, other = row["chosen"].split(), row["rejected"].split()
        assert len(own) == len(other)
        changed = [a.casefold() != b.casefold() for a, b in zip(own, other, strict=True)]
        assert changed in ([True, False] * 3, [False, True] * 3)
        assert other[0][0].isupper()
        assert other[1].islower()
        assert other[-1].endswith(".")
        assert not {w for w, c in zip(other, changed, strict=True) if c} & set(own)


def test_neither_order_nor_other_files_change_a_pair(tmp_path: Path) -> None:
    made = functions(50)
    mixed = random.Random(1).sample(made, k=50)
    one = rows(write(tmp_path / "a" / "tree", {"m.py": "\n".join(made)}))
    two = rows(write(tmp_path / "b" / "tree", {"m.py": "\n".join(mixed), "a/x.py": MODULE}))
    assert one
    key = ("prompt", "chosen", "rejected", "rejected_kind")
    first = {tuple(row[k] for k in key) for row in one}
    assert first == {tuple(row[k] for k in key) for row in two if row["path"] == "m.py"}


def test_lengths_are_cut_at_lines_and_words(tmp_path: Path) -> None:
    long = "word " * 100
    body = "".join(f"    y = x + {i}\n" for i in range(200))
    wide = f'def wide(x="{"é" * 2000}"):\n    """Other words."""\n'
    text = f'def f(x):\n    """{long}"""\n{body}\n\n{wide}\ndef g(): "{"x" * 300}"\n'
    f, w, g = rows(write(tmp_path / "tree", {"m.py": text}))
    assert f["prompt"].endswith(PROMPT_END)
    kept = f["prompt"].removesuffix(PROMPT_END)
    assert PROMPT_CHARACTERS - 20 < len(kept) <= PROMPT_CHARACTERS
    assert re.fullmatch(r"y = x \+ \d+", kept.splitlines()[-1].strip())
    assert f["chosen"] == " ".join(["word"] * 40)
    assert len(f["chosen"]) <= ANSWER_CHARACTERS
    assert len(w["prompt"]) == PROMPT_CHARACTERS + len(PROMPT_END)
    assert g["chosen"] == "x" * ANSWER_CHARACTERS


@pytest.mark.parametrize(
    "text",
    [
        "",
        'def f(): "Alone in its file."',
        'def f(): "The same."\ndef g(): "the Same."',
        'def f(): "  "\ndef g(): "Others are empty."',
        'class C: "A class."\nclass D: "Another."',
    ],
)
def test_without_a_plausible_wrong_answer_there_is_no_pair(tmp_path: Path, text: str) -> None:
    assert rows(write(tmp_path / "tree", {"m.py": text, "n.py": MODULE}), "python-pairs:")
    assert not [r for r in rows(tmp_path / "tree") if r["path"] == "m.py"]


def test_where_no_word_can_be_replaced_the_neighbour_stands(tmp_path: Path) -> None:
    text = "\n".join(f'def f{i}(): "To {i}."' for i in range(40))
    found = rows(write(tmp_path / "tree", {"m.py": text}))
    assert len(found) == 40
    assert {row["rejected_kind"] for row in found} == {"neighbour"}


@pytest.mark.parametrize("scheme", ["python:", "python-pairs:"])
def test_form_feeds_and_line_ends_do_not_shift_sources(tmp_path: Path, scheme: str) -> None:
    text = MODULE.replace("\n\n\n", "\n\x0c\n").replace("Further", "\u2028 Further")
    plain = {r["name"]: r for r in rows(write(tmp_path / "a" / "tree", {"m.py": MODULE}), scheme)}
    fed = {r["name"]: r for r in rows(write(tmp_path / "b" / "tree", {"m.py": text}), scheme)}
    assert plain.keys() == fed.keys()
    name = "m.Store.write"
    assert plain[name] == fed[name]
    crlf = write(tmp_path / "c" / "tree", {"m.py": MODULE.replace("\n", "\r\n")})
    assert {r["name"] for r in rows(crlf, scheme)} == set(plain)


@pytest.mark.parametrize("scheme", ["python:", "python-pairs:"])
def test_what_is_no_python_source_is_quarantined(tmp_path: Path, scheme: str) -> None:
    lone = 'def f(): "\\ud800 alone"\ndef g(): "Other words."'
    tree = write(
        tmp_path / "tree", {"m.py": MODULE, "bad.py": "def", "nul.py": "\0", "lone.py": lone}
    )
    run = tamis.run(
        {
            "corpus": {"path": f"{scheme}{tree}"},
            "stages": [],
            "output": {"path": str(tmp_path / "out")},
            "max_quarantine": 0.9,
        }
    )
    assert run.manifest["rows"]["quarantined"] == 3
    bad = pl.read_parquet(tmp_path / "out.tamis" / "quarantine" / "*.parquet")
    for name in ("bad.py", "nul.py", "lone.py"):
        assert bad["reason"].str.contains(name).sum() == 1


def test_pairs_of_this_interpreter(tmp_path: Path) -> None:
    """Real sources: what is cut out is the docstring, and only that."""
    source = Path(textwrap.__file__).read_text()
    found = rows(write(tmp_path / "tree", {"textwrap.py": source}))
    assert len(found) > 5
    for row in found:
        lines = row["prompt"].removesuffix(PROMPT_END).splitlines()
        assert lines[0].startswith("def ")
        assert {line.strip() for line in lines} <= {line.strip() for line in source.splitlines()}
        assert row["chosen"].split()[0] in source
        assert row["chosen"] not in row["prompt"]
    dedent = next(row for row in found if row["name"] == "textwrap.dedent")
    assert dedent["chosen"] == "Remove any common leading whitespace from every line in `text`."
    assert dedent["prompt"].startswith(
        "def dedent(text):\n    # Look for the longest leading string"
    )
