"""The word n-grams of a set of items, such as a benchmark's, and finding them in texts."""

import unicodedata
from functools import lru_cache
from io import BytesIO
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import int64, njit, uint64
from pydantic import Field

from tamis.scoring.cuts import Stretches, take
from tamis.scoring.operator import Signal
from tamis.scoring.words import (
    BLOCK_BYTES,
    IGNORED,
    SEPARATOR,
    SPACE,
    STATE_SIZE,
    TOKENS_PER_BYTE,
    decode,
    is_ascii,
    next_tokens,
    unicode_tables,
)
from tamis.storage.files import whole_file
from tamis.storage.kernels import (
    KERNEL,
    Int64s,
    UInt64s,
    fmix64,
    string_buffers,
)
from tamis.storage.places import Place, place_errors, place_of

Int32s = npt.NDArray[np.int32]

#: An n-gram is shown up to so many bytes.
EXCERPT_BYTES = 1000

_MULTIPLIER = uint64(0x9E3779B97F4A7C15)
#: Told apart from whole n-grams: the key of a short item is that of its first words.
_SHORT = uint64(0xD6E8FEB86659FD93)
#: Bits of the filter for every n-gram: one look-up in 16 passes it by chance.
_FILTER_BITS = 16


class NgramIndex(NamedTuple):
    """N-grams of items, each with the items that hold it.

    An n-gram is `ngram` words, or all words of an item that has fewer.

    Attributes:
        shape: int64 ``(ngram, min_words, has_short)``.
        words: uint64, hashed words of all items; item ``i`` has ``words[starts[i]:starts[i + 1]]``.
        at, length: of every n-gram, where it stands in `words` and how many words it has.
        holder_start, holders: items that hold it: ``holders[holder_start[g]:holder_start[g + 1]]``.
        slots: int32, open-addressing table of n-grams by key; -1 is free.
        keys: uint64 by slot.
        seen: uint64, a bitmap of keys.
        item_ngrams: int64 by item, how many different n-grams of it count.
        counts: int64 ``(items, too short, without an n-gram that counts, n-grams, ignored)``.
    """

    shape: Int64s
    words: UInt64s
    starts: Int64s
    at: Int64s
    length: Int64s
    holder_start: Int64s
    holders: Int32s
    slots: Int32s
    keys: UInt64s
    seen: UInt64s
    item_ngrams: Int64s
    counts: Int64s

    @classmethod
    def of(cls, texts: pa.Array, ngram: int, min_words: int, max_items: int | None) -> "NgramIndex":
        """The index of items.

        Args:
            texts: string array, an item each.
            ngram: words of an n-gram.
            min_words: items with fewer words are left out.
            max_items: an n-gram that more items have says nothing of any of them and is left out.
        """
        words, starts = words_of(texts)
        sizes = np.diff(starts)
        usable = np.flatnonzero(sizes >= min_words)
        each = np.maximum(sizes[usable] - ngram + 1, 1)
        item = np.repeat(usable, each)
        first = np.cumsum(each) - each
        at = starts[item] + np.arange(len(item)) - np.repeat(first, each)
        length = np.minimum(sizes[item], ngram)
        key = np.empty(len(item), np.uint64)
        _keys(words, at, length, ngram, min_words, key)
        # Which occurrence is the first of an equal n-gram: those of one key compared word by word.
        name = np.empty(len(item), np.int64)
        order = np.lexsort((np.arange(len(key)), key))
        _name(words, at, length, key, order, name)
        pairs = np.unique(np.stack([name, item], axis=1), axis=0) if len(name) else np.zeros((0, 2))
        ngrams, holder_start = np.unique(pairs[:, 0].astype(np.int64), return_index=True)
        holder_count = np.diff(np.r_[holder_start, len(pairs)])
        counted = np.ones(len(ngrams), np.bool_) if max_items is None else holder_count <= max_items
        kept = np.repeat(counted, holder_count)
        holders = pairs[kept, 1].astype(np.int32)
        item_ngrams = np.bincount(holders, minlength=len(sizes)).astype(np.int64)
        ngrams = ngrams[counted]
        slots, keys = _table(key[ngrams])
        seen = np.zeros(_filter_words(len(ngrams)), np.uint64)
        _fill_filter(key[ngrams], seen)
        return cls(
            shape=np.array([ngram, min_words, bool((length[ngrams] < ngram).any())], np.int64),
            words=words,
            starts=starts,
            at=at[ngrams],
            length=length[ngrams],
            holder_start=np.r_[0, np.cumsum(holder_count[counted])].astype(np.int64),
            holders=holders,
            slots=slots,
            keys=keys,
            seen=seen,
            item_ngrams=item_ngrams,
            counts=np.array(
                [
                    len(sizes),
                    len(sizes) - len(usable),
                    int((item_ngrams[usable] == 0).sum()),
                    len(ngrams),
                    int((~counted).sum()),
                ],
                np.int64,
            ),
        )

    def write(self, path: Place) -> None:
        """Keep it in a file."""
        with whole_file(path, stands=lambda: True) as temporary, temporary.open("wb") as out:
            np.savez(out, **self._asdict())


@lru_cache(maxsize=4)
def read_index(path: str) -> NgramIndex:
    """What `NgramIndex.write` wrote; the same object for every caller, not to be changed."""
    place = place_of(path)
    with place_errors(place), np.load(BytesIO(place.read_bytes()), allow_pickle=False) as held:
        return NgramIndex(**{name: held[name] for name in NgramIndex._fields})


class Found(NamedTuple):
    """What of the items some texts hold.

    Attributes:
        item: int64, the item of which the text holds the largest share; -1 where there is none.
        row_share: float64, share of the text's n-grams that some item has.
        item_share: float64, share of the item's n-grams that the text has.
        start, stop: int64, bytes of the first n-gram of that item in the text.
    """

    item: Int64s
    row_share: npt.NDArray[np.float64]
    item_share: npt.NDArray[np.float64]
    start: Int64s
    stop: Int64s


def find(texts: pa.Array, index: NgramIndex) -> Found:
    """Look for the n-grams of an index in texts.

    Example:
        >>> items = pa.array(["the quick brown fox jumps over the lazy dog"])
        >>> index = NgramIndex.of(items, ngram=5, min_words=3, max_items=None)
        >>> found = find(pa.array(["A Quick brown fox, jumps over it.", "nothing"]), index)
        >>> found.item.tolist(), found.item_share.tolist()
        ([0, -1], [0.2, 0.0])
    """
    data, offsets = string_buffers(texts)
    rows = len(texts)
    item = np.full(rows, -1, np.int64)
    row_share, item_share = np.zeros(rows), np.zeros(rows)
    word, length = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    start, stop = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    tables = unicode_tables()
    table = (index.slots, index.keys, index.words, index.at, index.length, index.seen)
    holders = (index.holder_start, index.holders, index.item_ngrams)
    _find(
        data,
        offsets,
        tables,
        index.shape,
        table,
        holders,
        item,
        row_share,
        item_share,
        word,
        length,
    )
    _place(data, offsets, tables, item, word, length, start, stop)
    return Found(item, row_share, item_share, start, stop)


def words_of(texts: pa.Array) -> tuple[UInt64s, Int64s]:
    """Hashed words of texts, and where those of every text begin."""
    data, offsets = string_buffers(texts)
    counts = np.zeros(len(texts), np.int64)
    tables = unicode_tables()
    _words(data, offsets, tables, counts, np.zeros(0, np.uint64))
    words = np.empty(int(counts.sum()), np.uint64)
    _words(data, offsets, tables, counts, words)
    return words, np.r_[0, np.cumsum(counts)].astype(np.int64)


def _filter_words(ngrams: int) -> int:
    """64-bit words of the bitmap, a power of two."""
    bits = max(64, ngrams * _FILTER_BITS)
    return 1 << ((bits - 1).bit_length() - 6)


@njit(**KERNEL)
def _words(data, offsets, tables, counts, words):  # type: ignore[no-untyped-def]
    """Count the words of every text; where there is room for them, fill them in too."""
    room = np.empty(BLOCK_BYTES * TOKENS_PER_BYTE + 64, np.uint64)
    state = np.zeros(STATE_SIZE, np.uint64)
    size = 0
    for row in range(counts.shape[0]):
        position, end = offsets[row], offsets[row + 1]
        ascii_row = is_ascii(data, position, end)
        state[:] = uint64(0)
        total = 0
        while position < end:
            found, position = next_tokens(
                data, position, end, ascii_row, False, tables, state, room, 0
            )
            if words.shape[0]:
                words[size : size + found] = room[:found]
            size += found
            total += found
        counts[row] = total


@njit(**KERNEL)
def _key(words, at, count, salt):  # type: ignore[no-untyped-def]
    h = uint64(0)
    for i in range(uint64(at), uint64(at + count)):
        h = h * _MULTIPLIER + words[i]
    return fmix64(h ^ salt)


@njit(**KERNEL)
def _keys(words, at, length, ngram, min_words, key):  # type: ignore[no-untyped-def]
    for i in range(key.shape[0]):
        if length[i] == ngram:
            key[i] = _key(words, at[i], ngram, uint64(0))
        else:
            key[i] = _key(words, at[i], min_words, _SHORT)


@njit(**KERNEL)
def _same(words, a, others, b, count):  # type: ignore[no-untyped-def]
    i, end = uint64(0), uint64(count)
    while i < end and words[uint64(a) + i] == others[uint64(b) + i]:
        i += uint64(1)
    return i == end


@njit(**KERNEL)
def _name(words, at, length, key, order, name):  # type: ignore[no-untyped-def]
    """Name every n-gram by the first occurrence of an equal one; `order` sorts by key."""
    begin = 0
    while begin < order.shape[0]:
        stop = begin
        while stop < order.shape[0] and key[order[stop]] == key[order[begin]]:
            i = order[stop]
            name[i] = i
            for k in range(begin, stop):
                j = order[k]
                equal = name[j] == j and length[i] == length[j]
                if equal and _same(words, at[i], words, at[j], length[i]):
                    name[i] = j
                    break
            stop += 1
        begin = stop


def _table(key: UInt64s) -> tuple[Int32s, UInt64s]:
    """Open-addressing table of n-grams; several may share a key."""
    size = 8
    while size < 2 * len(key):
        size *= 2
    slots, keys = np.full(size, -1, np.int32), np.zeros(size, np.uint64)
    _fill_table(key, slots, keys)
    return slots, keys


@njit(**KERNEL)
def _fill_table(key, slots, keys):  # type: ignore[no-untyped-def]
    mask = uint64(slots.shape[0] - 1)
    for i in range(key.shape[0]):
        slot = key[i] & mask
        while slots[slot] >= 0:
            slot = (slot + uint64(1)) & mask
        slots[slot], keys[slot] = i, key[i]


@njit(**KERNEL)
def _fill_filter(key, seen):  # type: ignore[no-untyped-def]
    mask = uint64(seen.shape[0] * 64 - 1)
    for i in range(key.shape[0]):
        bit = key[i] >> uint64(20) & mask
        seen[bit >> uint64(6)] |= uint64(1) << (bit & uint64(63))


@njit(**KERNEL)
def _look_up(key, words, at, room, table):  # type: ignore[no-untyped-def]
    """The n-gram at ``words[at]`` with this key, of at most `room` words; -1 if there is none."""
    slots, keys, others, other_at, length, _ = table
    mask = uint64(slots.shape[0] - 1)
    slot = key & mask
    while slots[slot] >= 0:
        if keys[slot] == key:
            ngram = int64(slots[slot])
            count = length[ngram]
            if count <= room and _same(words, at, others, other_at[ngram], count):
                return ngram
        slot = (slot + uint64(1)) & mask
    return int64(-1)


@njit(**KERNEL)
def _windows(words, count, size, salt, keys):  # type: ignore[no-untyped-def]
    """Keys of all windows of `size` words; loops run over arrays so that they vectorise."""
    windows = max(0, count - size + 1)
    for i in range(windows):
        keys[i] = words[i]
    for j in range(1, size):
        shifted = words[j : j + windows]
        for i in range(windows):
            keys[i] = keys[i] * _MULTIPLIER + shifted[i]
    for i in range(windows):
        keys[i] = fmix64(keys[i] ^ salt)
    return windows


@njit(**KERNEL)
def _scan(words, count, windows, size, salt, base, table, keys, hits, found):  # type: ignore[no-untyped-def]
    """Note the n-grams at the first windows: first word's number, and which; -1 without room."""
    seen = table[5]
    _windows(words, min(count, windows + size - 1), size, salt, keys)
    mask = uint64(seen.shape[0] * 64 - 1)
    for i in range(uint64(windows)):
        key = keys[i]
        bit = key >> uint64(20) & mask
        if seen[bit >> uint64(6)] >> (bit & uint64(63)) & uint64(1):
            at = int64(i)
            ngram = _look_up(key, words, at, count - at, table)
            if ngram >= 0:
                if found == hits.shape[0]:
                    return -1
                hits[found, 0], hits[found, 1] = base + at, ngram
                found += 1
    return found


@njit(**KERNEL)
def _best_item(hits, found, holders, counts, stamp, now):  # type: ignore[no-untyped-def]
    """The item of which the largest share was found, that share, and its first n-gram's hit.

    `counts` (by item) is zero before and after; no `stamp` (by n-gram) is `now` before.
    """
    start, who, total = holders
    for i in range(found):
        ngram = hits[i, 1]
        if stamp[ngram] != now:
            stamp[ngram] = now
            for k in range(start[ngram], start[ngram + 1]):
                counts[who[k]] += 1
    best, share, first = int64(-1), 0.0, 0
    for i in range(found):
        ngram = hits[i, 1]
        for k in range(start[ngram], start[ngram + 1]):
            item = int64(who[k])
            here = counts[item] / total[item]
            before = item == best and hits[i, 0] < hits[first, 0]
            if here > share or (here == share and item < best) or before:
                best, share, first = item, here, i
    for i in range(found):
        ngram = hits[i, 1]
        for k in range(start[ngram], start[ngram + 1]):
            counts[who[k]] = 0
    return best, share, first


@njit(**KERNEL)
def _distinct(values):  # type: ignore[no-untyped-def]
    """How many different values there are."""
    ordered = np.sort(values)
    found = 1
    for i in range(1, ordered.shape[0]):
        found += ordered[i] != ordered[i - 1]
    return found


@njit(**KERNEL)
def _find(  # type: ignore[no-untyped-def]
    data, offsets, tables, shape, table, holders, item, row_share, item_share, word, length
):
    ngram, fewest, short = shape[0], shape[1], shape[2]
    room = BLOCK_BYTES * TOKENS_PER_BYTE + ngram + 64
    words, keys = np.empty(room, np.uint64), np.empty(room, np.uint64)
    state = np.zeros(STATE_SIZE, np.uint64)
    hits = np.empty((256, 2), np.int64)
    counts = np.zeros(holders[2].shape[0], np.int32)
    stamp = np.zeros(holders[0].shape[0], np.int32)
    for row in range(item.shape[0]):
        position, end = offsets[row], offsets[row + 1]
        ascii_row = is_ascii(data, position, end)
        state[:] = uint64(0)
        count = base = found = 0
        while position < end:
            count, position = next_tokens(
                data, position, end, ascii_row, False, tables, state, words, count
            )
            # A window is looked at when the longest n-gram that may begin with it is there.
            windows = max(0, count - ngram + 1)
            last = count if position >= end else windows
            while True:
                now = _scan(words, count, windows, ngram, uint64(0), base, table, keys, hits, found)
                if now >= 0 and short:
                    stop = max(0, min(last, count - fewest + 1))
                    now = _scan(words, count, stop, fewest, _SHORT, base, table, keys, hits, now)
                if now >= 0:
                    break
                more = np.empty((hits.shape[0] * 2, 2), np.int64)
                more[:found] = hits[:found]
                hits = more
            found = now
            if position < end:
                for i in range(count - windows):
                    words[i] = words[windows + i]
                base += windows
                count -= windows
        if found:
            windows = max(1, base + count - ngram + 1)
            best, share, hit = _best_item(hits, found, holders, counts, stamp, row + 1)
            item[row], item_share[row] = best, share
            row_share[row] = min(1.0, _distinct(hits[:found, 0].copy()) / windows)
            word[row], length[row] = hits[hit, 0], table[4][hits[hit, 1]]


@njit(**KERNEL)
def _word_start(data, start, end, ascii_row, tables, number, words, state, saved):  # type: ignore[no-untyped-def]
    """Byte at which a word of a text begins; its end if it has fewer words."""
    state[:] = uint64(0)
    position, count = start, 0
    while position < end:
        saved[:] = state
        block, before = position, count
        found, position = next_tokens(
            data, position, end, ascii_row, False, tables, state, words, 0
        )
        count += found
        if count + (position < end and state[1] != uint64(0)) <= number:
            continue
        # It begins in this block: at the last byte before which it has not begun yet.
        low, high = block, position
        while True:
            middle = (low + high) // 2
            while middle > low and (data[middle] & 0xC0) == 0x80:
                middle -= 1
            if middle == low:
                middle = low + 1
                while middle < high and (data[middle] & 0xC0) == 0x80:
                    middle += 1
                if middle >= high:
                    return low
            state[:] = saved
            found, _ = next_tokens(data, block, middle, ascii_row, False, tables, state, words, 0)
            if before + found <= number:
                low = middle
            else:
                high = middle
    return end


@njit(**KERNEL)
def _place(data, offsets, tables, item, word, length, start, stop):  # type: ignore[no-untyped-def]
    """Bytes of an n-gram of some rows, from its first word's number and how many it has."""
    words = np.empty(BLOCK_BYTES * TOKENS_PER_BYTE + 64, np.uint64)
    state, saved = np.zeros(STATE_SIZE, np.uint64), np.zeros(STATE_SIZE, np.uint64)
    classes = tables[0]
    for row in range(item.shape[0]):
        if item[row] < 0:
            continue
        first, end = offsets[row], offsets[row + 1]
        ascii_row = is_ascii(data, first, end)
        a = _word_start(data, first, end, ascii_row, tables, word[row], words, state, saved)
        after = word[row] + length[row]
        b = _word_start(data, first, end, ascii_row, tables, after, words, state, saved)
        while b > a:
            before = b - 1
            while before > a and (data[before] & 0xC0) == 0x80:
                before -= 1
            code, _ = decode(data, before, end)
            kind = classes[code] if code < classes.shape[0] else SEPARATOR
            if kind not in (SEPARATOR, SPACE, IGNORED):
                break
            b = before
        start[row], stop[row] = a - first, b - first


class ContaminationHits(Signal):
    """Which item of an index a text holds most of, and where.

    The index is a file of `NgramIndex.write`; `contamination` and `decontaminate` make it.
    """

    operator: Literal["contamination_hits"] = "contamination_hits"
    index: str = Field(description="path of the index")
    digest: str = Field(description="of what the index was made from")

    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def key_parts(self) -> dict[str, Any]:
        parts = {**super().key_parts(), "unicode": unicodedata.unidata_version}
        parts.pop("index")  # where it lies decides nothing
        return parts

    def fields(self) -> pa.Schema:
        """``hit_item`` (number of the item, null where there is none), ``hit_row_share`` and
        ``hit_item_share`` (0 to 1), ``hit_ngram`` (of the text, first of the item's)."""
        return pa.schema(
            [
                pa.field("hit_item", pa.int64()),
                pa.field("hit_row_share", pa.float64(), nullable=False),
                pa.field("hit_item_share", pa.float64(), nullable=False),
                pa.field("hit_ngram", pa.large_string()),
            ]
        )

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        text = batch["text"]
        found = find(text, read_index(self.index))
        hit = np.flatnonzero(found.item >= 0)
        spans = Stretches(hit, found.start[hit], found.stop[hit])
        none = found.item < 0
        at = pa.array(np.cumsum(~none) - 1, mask=none)
        columns = [
            pa.array(found.item, mask=none),
            pa.array(found.row_share),
            pa.array(found.item_share),
            take(text, spans, EXCERPT_BYTES).take(at),
        ]
        return pa.record_batch(columns, schema=self.fields())
