"""Shingles once more, in plain Python and without hashes: what the kernels are held against.

Nothing here is shared with `words` and `shingles` but the definition that they document. It is
slow, and used for samples only.
"""

import re
import unicodedata
from functools import lru_cache

from tamis.scoring.shingles import Shingling

_ASCII_WORD = re.compile(r"[a-z0-9_]+")
#: Over classes: a word or a character that is one by itself, each with its marks.
_TOKEN = re.compile("w[wm]*|sm*")
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007"
    "\u3021-\u3029\u3040-\u30ff\u3100-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U000323af"
    "\u2600-\u27bf\U0001f000-\U0001faff]"
)
_LAST_KNOWN = 0x323FF


def plain_shingles(text: str, shingling: Shingling) -> frozenset[object]:
    """The set of a text's windows of tokens.

    Example:
        >>> sorted(plain_shingles("One two, THREE", Shingling(2)))
        [('one', 'two'), ('two', 'three')]
    """
    tokens = (_characters if shingling.unit == "character" else _words)(text, shingling)
    size = shingling.ngram
    if not tokens:
        return frozenset({("", text)})
    if len(tokens) < size:
        return frozenset({tuple(tokens)})
    return frozenset(zip(*(tokens[i:] for i in range(size)), strict=False))


def plain_jaccard(a: str, b: str, shingling: Shingling) -> float:
    """Exact Jaccard similarity of two texts' shingle sets.

    Example:
        >>> plain_jaccard("one two three", "one two four", Shingling(2))
        0.3333333333333333
    """
    left, right = plain_shingles(a, shingling), plain_shingles(b, shingling)
    common = len(left & right)
    return common / (len(left) + len(right) - common)


def _words(text: str, shingling: Shingling) -> list[str]:
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    folded = _folded(text, shingling)
    return [folded[a:b] for a, b in (m.span() for m in _TOKEN.finditer(_classes(folded)))]


def _characters(text: str, shingling: Shingling) -> list[str]:
    """Characters; white space is one space before the next that is no mark."""
    found: list[str] = []
    due = False
    for c in _folded(text, shingling):
        if c.isspace():
            due = True
            continue
        if due and _class(c) != "m":
            found += [" "] if found else []
            due = False
        found.append(c)
    return found


def _folded(text: str, shingling: Shingling) -> str:
    """Case folded and decomposed, without characters that are nothing and the dots of an i."""
    form = shingling.form
    text = "".join(c if ord(c) <= _LAST_KNOWN else "\0" for c in text)
    text = unicodedata.normalize(form, text).casefold()
    text = unicodedata.normalize(form, text).replace("\u0131", "i")
    text = "".join(c for c in text if _class(c) != "-")
    if "\u0307" not in text:
        return text
    parts: list[str] = []
    base = ""
    for c in text:
        if _class(c) != "m":
            base = c
        elif c == "\u0307" and base == "i":
            continue
        parts.append(c)
    return "".join(parts)


def _classes(text: str) -> str:
    return "".join(map(_class, text))


@lru_cache(maxsize=1 << 16)
def _class(c: str) -> str:
    """``w`` in a word, ``s`` a word by itself, ``m`` mark, ``-`` nothing, a space: separates."""
    category = unicodedata.category(c)
    if category == "Cf" or "\ufe00" <= c <= "\ufe0f" or c == "\u034f":
        return "-"
    if c.isspace():
        return " "
    if category[0] in "LNS" and _NO_SPACES.match(c):
        return "s"
    if category[0] in "LN" or c == "_":
        return "w"
    return "m" if category[0] == "M" else " "
