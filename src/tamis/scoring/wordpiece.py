"""BERT's tokens without its tokenizer: the same ids, many times as fast.

The tokenizer's normaliser works on one character at a time, and so does the rule that parts words.
So both become a table by code point, filled by asking the tokenizer itself. What is left is the
search for the longest piece of the vocabulary, over hashes. A text that spells a special token,
such as ``[UNK]``, is the tokenizer's own.
"""

import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import int64, njit, uint64

from tamis.scoring.english import find_word, finish_word, push_code
from tamis.scoring.shingles import table_size
from tamis.scoring.words import decode
from tamis.storage.kernels import KERNEL, Bytes, UInt64s

Int32s = npt.NDArray[np.int32]

_CODES = 0x110000
#: What a character becomes: part of a word, nothing, an end of words, a word, or several.
_WORD, _NOTHING, _BLANK, _ALONE, _SEVERAL = range(5)
#: Stands between characters while the tokenizer is asked about all of them: a letter that it
#: leaves as it is and makes of no other.
_BETWEEN = "\ua66e"
_PLANE = 1 << 16
#: Planes of Unicode that hold characters of several sorts. In the others one speaks for all but
#: the last two, which are no characters.
_ASSIGNED = (0, 1, 2, 14)


class WordPieces(NamedTuple):
    """All that `next_pieces` needs of a tokenizer.

    Character `c` is of ``kind[c]``. It becomes the code point ``becomes[c]``, or, if several,
    those in ``parts`` from ``becomes[c]`` on; ``part_kinds`` ends each run by `_NOTHING`.
    """

    kind: Bytes
    becomes: Int32s
    parts: Int32s
    part_kinds: Bytes
    keys: UInt64s
    ids: Int32s
    inner: np.uint64
    longest: int
    limit: int
    unknown: int


def word_pieces(tokenizer: Any) -> WordPieces | None:
    """Tables of a tokenizer of the tokenizers library, or None if it is not of BERT's kind."""
    form = json.loads(tokenizer.to_str())
    model = form["model"]
    if (
        model["type"] != "WordPiece"
        or (form["normalizer"] or {}).get("type") != "BertNormalizer"
        or (form["pre_tokenizer"] or {}).get("type") != "BertPreTokenizer"
        or any(token["normalized"] for token in form["added_tokens"])
    ):
        return None
    vocabulary: dict[str, int] = model["vocab"]
    keys = np.zeros(table_size(len(vocabulary)), np.uint64)
    ids = np.zeros(len(keys), np.int32)
    for piece, number in vocabulary.items():
        slot = _free_slot(keys, _codes(piece))
        ids[slot] = number
    return WordPieces(
        *_characters(tokenizer),
        keys,
        ids,
        np.uint64(_pushed(_codes(model["continuing_subword_prefix"]))),
        max(map(len, vocabulary)),
        int(model["max_input_chars_per_word"]),
        vocabulary[model["unk_token"]],
    )


def spells_special(tokenizer: Any, text: pa.Array) -> npt.NDArray[np.bool_]:
    """Texts that hold a special token as such."""
    found = np.zeros(len(text), np.bool_)
    for token in tokenizer.get_added_tokens_decoder().values():
        found |= np.asarray(pc.match_substring(text, token.content), np.bool_)
    return found


def _codes(text: str) -> Int32s:
    return np.frombuffer(text.encode("utf-32-le"), np.int32)


def _characters(tokenizer: Any) -> tuple[Bytes, Int32s, Int32s, Bytes]:
    """``kind``, ``becomes``, ``parts`` and ``part_kinds`` of `WordPieces`."""
    kind = np.full(_CODES, _NOTHING, np.uint8)
    becomes = np.zeros(_CODES, np.int32)
    parts: list[int] = []
    part_kinds: list[int] = []
    for begin in range(0, _CODES, _PLANE):
        end = begin + _PLANE
        mixed = begin // _PLANE in _ASSIGNED
        codes = [c for c in range(begin, end) if not 0xD800 <= c < 0xE000]
        codes = codes if mixed else [begin, end - 2, end - 1]
        joined = _BETWEEN.join(map(chr, codes))
        found = tokenizer.normalizer.normalize_str(joined).split(_BETWEEN)
        if chr(codes[0]) <= _BETWEEN <= chr(codes[-1]):  # it has parted itself
            at = codes.index(ord(_BETWEEN))
            found[at : at + 2] = [_BETWEEN]
        kinds = _kinds(tokenizer, sorted(set("".join(found))))
        for code, text in zip(codes, found, strict=True):
            here = [(ord(c), kinds[c]) for c in text]
            solid = [part for part in here if part[1] != _BLANK]
            if not here:
                continue
            if len(here) == 1:
                becomes[code], kind[code] = here[0]
            elif not solid:
                kind[code] = _BLANK
            elif len(solid) == 1 and here[0][1] == here[-1][1] == _BLANK:
                becomes[code], kind[code] = solid[0][0], _ALONE
            else:
                becomes[code], kind[code] = len(parts), _SEVERAL
                parts += [*(part[0] for part in here), 0]
                part_kinds += [*(part[1] for part in here), _NOTHING]
        if not mixed:
            kind[begin : end - 2] = kind[begin]
            becomes[begin : end - 2] = np.arange(begin, end - 2)
    return kind, becomes, np.array([*parts, 0], np.int32), np.array([*part_kinds, 1], np.uint8)


def _kinds(tokenizer: Any, characters: list[str]) -> dict[str, int]:
    """Whether normalised characters are blanks, words of their own, or parts of words."""
    text = _BETWEEN + "".join(c + _BETWEEN for c in characters)
    kinds = dict.fromkeys(characters, _WORD)
    after = 0
    for piece, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text):
        for place in range(after, start):
            kinds[text[place]] = _BLANK
        if end - start == 1 and piece != _BETWEEN:
            kinds[piece] = _ALONE
        after = end
    return kinds


@njit(**KERNEL)
def _pushed(codes):  # type: ignore[no-untyped-def]
    h = uint64(0)
    for code in codes:
        h = push_code(h, code)
    return h


@njit(**KERNEL)
def _free_slot(keys, codes):  # type: ignore[no-untyped-def]
    """Enter a piece that is not in the table; gives its slot."""
    key = finish_word(_pushed(codes))
    mask = uint64(keys.shape[0] - 1)
    slot = key & mask
    while keys[slot] != uint64(0):
        slot = (slot + uint64(1)) & mask
    keys[slot] = key
    return slot


@njit(**KERNEL)
def _cut_word(codes, size, states, ids, count, tables):  # type: ignore[no-untyped-def]
    """Add the longest pieces that make up a word; a word that has none is unknown as a whole."""
    if size > tables.limit:
        ids[count] = tables.unknown
        return count + 1
    mask = uint64(tables.keys.shape[0] - 1)
    begin = 0
    at = count
    while begin < size:
        h = uint64(0) if begin == 0 else tables.inner
        stop = min(size, begin + tables.longest)
        for k in range(begin, stop):
            h = push_code(h, codes[k])
            states[k] = h
        slot = -1
        while stop > begin:
            slot = find_word(tables.keys, mask, finish_word(states[stop - 1]))
            if slot >= 0:
                break
            stop -= 1
        if slot < 0:
            ids[count] = tables.unknown
            return count + 1
        ids[at] = tables.ids[slot]
        at += 1
        begin = stop
    return at


@njit(**KERNEL)
def next_pieces(data, position, end, tables, codes, states, ids):  # type: ignore[no-untyped-def]
    """Ids of a text from `position` on, as many as there is room for.

    Args:
        codes, states: int32 and uint64 scratch, ``tables.limit`` long.
        ids: int32, filled from the beginning; longer than four times ``tables.limit``.

    Returns:
        How many ids, and the position to go on from.
    """
    room = ids.shape[0] - 2 * tables.limit
    count = 0
    size = 0
    while position < end and (count < room or size):
        code = int64(data[position])
        after = position + 1
        if code >= 128:
            code, after = decode(data, position, end)
            if code >= _CODES:
                code = int64(0)
        kind = tables.kind[code]
        if kind == _WORD:
            if size < tables.limit:
                codes[size] = tables.becomes[code]
            size += 1
        elif kind in (_BLANK, _ALONE):
            if size:
                count = _cut_word(codes, size, states, ids, count, tables)
            size = 0
            if kind == _ALONE:
                codes[0] = tables.becomes[code]
                count = _cut_word(codes, 1, states, ids, count, tables)
        elif kind == _SEVERAL:
            part = tables.becomes[code]
            while tables.part_kinds[part] != _NOTHING:
                if tables.part_kinds[part] == _WORD:
                    if size < tables.limit:
                        codes[size] = tables.parts[part]
                    size += 1
                else:
                    if size:
                        count = _cut_word(codes, size, states, ids, count, tables)
                    size = 0
                    if tables.part_kinds[part] == _ALONE:
                        codes[0] = tables.parts[part]
                        count = _cut_word(codes, 1, states, ids, count, tables)
                part += 1
        position = after
    if size:
        count = _cut_word(codes, size, states, ids, count, tables)
    return count, position


@njit(**KERNEL)
def _piece_ids(data, start, end, tables, ids):  # type: ignore[no-untyped-def]
    codes = np.empty(tables.limit, np.int32)
    states = np.empty(tables.limit, np.uint64)
    some = np.empty(8 * tables.limit, np.int32)
    total = 0
    while start < end:
        count, start = next_pieces(data, start, end, tables, codes, states, some)
        ids[total : total + count] = some[:count]
        total += count
    return total


def piece_ids(text: str, tables: WordPieces) -> list[int]:
    """Ids of one text, for those who compare."""
    data = np.frombuffer(text.encode(), np.uint8)
    ids = np.empty(len(data) + 8, np.int32)
    count = int(_piece_ids(data, 0, len(data), tables, ids))
    return [int(i) for i in ids[:count]]
