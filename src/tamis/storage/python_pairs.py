"""Python sources as preference pairs: a function, its docstring, and a plausible wrong one."""

import ast
import re
import textwrap
from bisect import bisect
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import xxhash

from tamis.storage.python_source import Row, SourceTree, documented, shared_columns

SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in (
            "prompt",
            "chosen",
            "rejected",
            "rejected_kind",
            "package",
            "path",
            "name",
        )
    ]
)

#: A prompt holds this many characters of source, in whole lines, before what ends it.
PROMPT_CHARACTERS = 400
#: An answer holds this many characters, in whole words.
ANSWER_CHARACTERS = 200
#: What ends a prompt: the docstring is to follow.
PROMPT_END = '\n"""'

_WORD = re.compile(r"[^\W\d_]{4,}")


class PythonPairs(SourceTree):
    """Reader of preference pairs from Python source trees.

    ``python-pairs:`` gathers from the interpreter that runs tamis, ``python-pairs:FOLDER`` (or a
    folder with ``format: python-pairs``) from a tree. A row is a function:

    - ``prompt``: its source from ``def`` on, without its docstring, dedented, of at most
      `PROMPT_CHARACTERS` characters, and `PROMPT_END`;
    - ``chosen``: the first paragraph of its docstring on one line, of at most `ANSWER_CHARACTERS`;
    - ``rejected``: an answer that is wrong, ``rejected_kind`` says how. ``neighbour``: the answer
      of another function of the same file. ``corrupted``: the own answer, of whose words (of four
      letters or more) every second is replaced by words of the neighbour's that it does not have.

    Which kind, which neighbour and which words is decided by a hash of prompt and chosen and of
    the neighbours' answers, so by the content of the file alone. About half of the rows are of
    each kind; where nothing can be replaced, the neighbour's answer stands. A function whose file
    has no other answer gives no row: nothing there is a plausible wrong one.
    """

    scheme = "python-pairs:"
    columns = SCHEMA

    def rows_of(self, path: Path, root: Path) -> Iterator[Row]:
        if path.suffix != ".py":
            return
        shared = shared_columns(path, root)
        functions = [
            (_prompt(node, lines), _answer(doc), name)
            for node, name, doc, lines in documented(path)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        ring = sorted({(_hash(answer), answer) for _, answer, _ in functions})
        for prompt, chosen, name in functions:
            key = _hash(f"{prompt}\0{chosen}")
            other = _neighbour(key, chosen, ring)
            if other is None:
                continue
            corrupted = _corrupted(key, chosen, other) if key & 1 else None
            found: Row = {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": corrupted or other,
                "rejected_kind": "corrupted" if corrupted else "neighbour",
                "name": name,
            }
            yield found | shared


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _prompt(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    doc = node.body[0]
    assert doc.end_lineno is not None
    assert doc.end_col_offset is not None
    before = lines[doc.lineno - 1].encode()[: doc.col_offset].decode()
    after = lines[doc.end_lineno - 1].encode()[doc.end_col_offset :].decode()
    between = before + after if before.strip() or after.strip() else ""
    source = [*lines[node.lineno - 1 : doc.lineno - 1], between]
    source += lines[doc.end_lineno : node.end_lineno]
    text = textwrap.dedent("".join(source)).rstrip()
    if len(text) > PROMPT_CHARACTERS:
        cut = text[:PROMPT_CHARACTERS]
        text = cut[: cut.rfind("\n")] if "\n" in cut else cut
    return text + PROMPT_END


def _answer(doc: str) -> str:
    """The first paragraph on one line, cut before the word that is too much."""
    first = " ".join(re.split(r"\n\s*\n", doc.strip(), maxsplit=1)[0].split())
    if len(first) <= ANSWER_CHARACTERS:
        return first
    cut = first[: ANSWER_CHARACTERS + 1]
    return cut[: cut.rfind(" ")] if " " in cut else cut[:ANSWER_CHARACTERS]


def _neighbour(key: int, chosen: str, ring: list[tuple[int, str]]) -> str | None:
    """The first answer after the key, on the ring of the hashes of a file's answers, that differs
    by more than case."""
    start = bisect(ring, (key,))
    for _, answer in ring[start:] + ring[:start]:
        if answer.casefold() != chosen.casefold():
            return answer
    return None


def _corrupted(key: int, chosen: str, other: str) -> str | None:
    """`chosen` with every second word (of four letters or more; whether the odd or the even ones
    says the key) replaced by the words of `other` that it lacks, in turn."""
    own = {word.casefold() for word in _WORD.findall(chosen)}
    donors = [word for word in _WORD.findall(other) if word.casefold() not in own]
    places = list(_WORD.finditer(chosen))
    places = places[(key >> 1) % min(2, len(places)) :: 2] if places else []
    if not donors or not places:
        return None
    parts, end = [], 0
    for number, place in enumerate(places):
        word = donors[number % len(donors)]
        if place.group()[0].isupper():
            word = word[0].upper() + word[1:]
        elif word[1:].islower():
            word = word.lower()
        parts += [chosen[end : place.start()], word]
        end = place.end()
    return "".join([*parts, chosen[end:]])
