"""An n-gram language model over bytes: trained in seconds, and a probability for any text.

The model is interpolated modified Kneser-Ney (Chen and Goodman 1999). Its symbols are the bytes of
UTF-8, so that there is no vocabulary and no unknown word: code, Chinese and emoji have an honest
probability, and bits per byte are those of a code that could be written.

An n-gram of up to seven symbols is one 64-bit integer, the last symbol highest: once sorted, the
n-grams of every order lie next to those with the same ending, which is what Kneser-Ney counts.
Nothing is hashed while counting, so no two n-grams are ever taken for one.

For scoring the model is a table of moves: a state is the longest ending of what was read that the
model knows as a context, and a byte leads from it to a probability and the next state.
"""

from io import BytesIO
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from llvmlite import ir
from numba import njit, types, uint64
from numba.extending import intrinsic
from pydantic import Field

from tamis.scoring.hardware import loaded_once
from tamis.scoring.operator import Signal
from tamis.storage.errors import RunError
from tamis.storage.files import whole_file
from tamis.storage.kernels import INLINE, KERNEL, Int64s, UInt64s, string_buffers
from tamis.storage.places import Place, place_errors, place_of

Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]

PAPER = (
    "Chen and Goodman 1999, An empirical study of smoothing techniques for language modeling "
    "(interpolated modified Kneser-Ney, equations 22 to 26)"
)
#: Raised when training or the file changes.
MODEL_VERSION = 1
#: Seven symbols of 9 bits fill a 64-bit integer.
HIGHEST_ORDER = 7
#: Discounts of n-grams seen once, twice, and more often, where the counts of counts allow no
#: estimate; the fallback of KenLM's `lmplz` (Heafield 2013).
FALLBACK = (0.5, 1.0, 1.5)

_BYTES = 256
_BITS = 9
_SYMBOL = (1 << _BITS) - 1
#: Before the first byte; nothing is before it. A byte's symbol is the byte + 1, and 0 is none.
_START = 257
#: Low bits of a state's number, the words of labels; states that would need more have none.
_KIND_BITS = 2
_MOST_WORDS = 3
_KIND = uint64(3)
#: A text is walked in so many parts at once if each has so many bytes.
_PARTS, _SHORTEST_PART = 8, 16
_EACH, _HIGHEST = uint64(0x0101010101010101), uint64(0x8080808080808080)


def _lowest_bit(typing, word):  # type: ignore[no-untyped-def]

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


#: In a kernel, the number of the lowest bit that is set in a word; 64 if it is 0.
lowest_bit: Any = intrinsic(_lowest_bit)


class NgramModel(NamedTuple):
    """A trained model, as a table of moves.

    A state stands for the longest ending of what was read that the model knows as a context. Its
    number says where its record begins in `records`, and in the low bits how many words of labels
    it has; 0 stands for a value for every byte. Other records hold what holds for bytes that are
    not among the labels, the labels (eight bytes a word), and a value for each. A value is the
    natural logarithm of a probability (float32, low half) and the next state (high half).

    Attributes:
        order: int64 ``(1,)``, longest n-gram.
        begin: int64 ``(1,)``, the state at the beginning of a text.
        records: uint64, of all states.
        counts: int64, n-grams of every order from 1 on.
    """

    order: Int64s
    begin: Int64s
    records: UInt64s
    counts: Int64s

    @classmethod
    def trained(cls, texts: pa.Array, order: int) -> "NgramModel":
        """The model of some texts; their order does not matter.

        Args:
            texts: string or binary array. Where none has a byte, all bytes are alike likely.
            order: longest n-gram, 1 to `HIGHEST_ORDER`.
        """
        return _assembled(_levels(texts, order))

    def write(self, path: Place) -> None:
        """Keep it in a file of plain arrays."""
        with whole_file(path, stands=lambda: True) as temporary, temporary.open("wb") as out:
            np.savez(out, **self._asdict())

    def log_likelihood(self, texts: pa.Array) -> Float64s:
        """Natural logarithm of every text's probability among texts of its length; 0 if empty.

        Example:
            >>> model = NgramModel.trained(pa.array(["abab"]), 2)
            >>> model.log_likelihood(pa.array(["abab", "zzzz"])).round(3).tolist()
            [-1.883, -25.646]
        """
        data, offsets = string_buffers(texts)
        found = np.empty(len(texts), np.float64)
        _score(
            data,
            offsets,
            self.order[0],
            self.begin[0],
            self.records,
            self.records.view(np.float32),
            found,
        )
        return found

    def distribution(self, context: bytes) -> Float64s:
        """Probability of every byte after some bytes from the beginning of a text."""
        texts = pa.array([context, *(context + bytes([b]) for b in range(_BYTES))], pa.binary())
        found = self.log_likelihood(texts)
        p: Float64s = np.exp(found[1:] - found[0])
        return p


@loaded_once(4)
def read_model(path: str) -> NgramModel:
    """What `NgramModel.write` wrote; the same object for every caller, not to be changed."""
    place = place_of(path)
    with place_errors(place), np.load(BytesIO(place.read_bytes()), allow_pickle=False) as held:
        return NgramModel(**{name: held[name] for name in NgramModel._fields})


class _Level(NamedTuple):
    """The n-grams of one order, sorted, and where they hang.

    Attributes:
        keys: symbols, the last one highest.
        counts: how often each was seen; below the highest order, after how many different symbols
            (at the beginning of a text, where nothing is before it, how often).
        ending: by n-gram, the place of its last n - 1 symbols in the level below.
        context: by n-gram, the place of its first n - 1 symbols in the level below, whose length
            stands for the beginning of a text.
    """

    keys: UInt64s
    counts: Int32s
    ending: Int32s
    context: Int32s


def _levels(texts: pa.Array, order: int) -> list[_Level]:
    """The n-grams of texts, from order 1 to the highest."""
    data, offsets = string_buffers(texts)
    keys = np.empty(int(offsets[-1] - offsets[0]), np.uint64)
    _pack(data, offsets, order, keys)
    keys.sort()
    size = _distinct(keys)
    counts = np.empty(size, np.int32)
    _count(keys, counts)
    keys = keys[:size].copy()
    found: list[_Level] = []
    for n in range(order, 0, -1):
        whole = _is_whole(keys)  # others are shorter, and begin with the beginning of a text
        shorter = keys >> np.uint64(_BITS)
        first = _starts(shorter)
        sizes = np.diff(first, append=len(keys)).astype(np.int32)
        shorter = shorter[first]
        place = np.cumsum(_is_whole(shorter), dtype=np.int32) - np.int32(n > 1)
        ending = np.repeat(place, sizes)[whole]
        found.append(_Level(keys[whole], counts[whole], ending, ending))
        counts = np.where(whole[first], sizes, counts[first])
        keys = shorter
    found.reverse()
    for n, below in enumerate(found[:-1], 2):
        heads = found[n - 1].keys & np.uint64((1 << _BITS * (n - 1)) - 1)
        context = np.searchsorted(below.keys, heads).astype(np.int32)
        if n == 2:
            context[heads == _START] = len(below.keys)
        found[n - 1] = found[n - 1]._replace(context=context)
    return found


def _starts(keys: UInt64s) -> Int64s:
    """Where runs of equal keys begin."""
    return np.flatnonzero(np.diff(keys, prepend=~keys[:1]))


def _is_whole(keys: UInt64s) -> npt.NDArray[np.bool_]:
    """Whether an n-gram has as many symbols as there is room for."""
    whole: npt.NDArray[np.bool_] = (keys & np.uint64(_SYMBOL)) != 0
    return whole


def _discounts(counts: Int32s) -> Float64s:
    """What is taken off a count of 0, 1, 2, and of 3 or more (Chen and Goodman 1999, eq. 26)."""
    one, two, three, four = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if one and two and three:
        y = one / (one + 2 * two)
        found = [1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three]
        # Nothing off leaves nothing for what was not seen, more than all leaves less than nothing.
        if all(0 < d <= c for c, d in enumerate(found, 1)):
            return np.array([0.0, *found])
    return np.array([0.0, *FALLBACK])


def _assembled(levels: list[_Level]) -> NgramModel:
    """Probabilities from counts, and the records of states."""
    states, room = _places(levels)
    records = np.zeros(room, np.uint64)
    # Of the order below, by place: the probability, and the state that the n-gram leads to.
    p, leads = np.full(1, 1 / _BYTES), np.zeros(1, np.int64)
    behind = np.zeros(1, np.int64)  # by context, the state of its ending
    for n, level in enumerate(levels, 1):
        contexts = len(states[n - 1])
        off = _discounts(level.counts)[np.minimum(level.counts, 3)]
        total = np.bincount(level.context, level.counts, contexts)
        left = np.bincount(level.context, off, contexts)
        # What is left for what was not seen: all, where nothing was.
        share = np.divide(left, total, out=np.ones(contexts), where=total > 0)
        p = (level.counts - off) / total[level.context] + share[level.context] * p[level.ending]
        back = leads = leads[level.ending]
        if n < len(levels):
            own = states[n][: len(p)]
            leads = np.where(own >= 0, own, back)
        byte = (level.keys >> np.uint64(_BITS * (n - 1))) - np.uint64(1)
        if n == 1:  # in the empty context all bytes are alike likely, but for what was seen
            records[:_BYTES] = _pair(np.log(share / _BYTES), behind)
        else:
            _begin(records, records.view(np.float32), states[n - 1], _pair(np.log(share), behind))
        _follow(records, states[n - 1], level.context, byte, _pair(np.log(p), leads))
        behind = np.append(back, 0) if n == 1 else back
    begin = states[1][-1:] if len(levels) > 1 else states[0]
    counts = np.array([len(level.keys) for level in levels], np.int64)
    return NgramModel(np.array([len(levels)], np.int64), np.maximum(begin, 0), records, counts)


def _places(levels: list[_Level]) -> tuple[list[Int64s], int]:
    """By order, the state of every context (-1 where nothing follows it); words of all records.

    A context of one order is an n-gram of the order below. Beside those of one byte stands the
    beginning of a text, and the context of none is the empty one.
    """
    states: list[Int64s] = []
    end, contexts = 0, 1
    for n, level in enumerate(levels, 1):
        followers = np.bincount(level.context, minlength=contexts)
        if n == 1:
            followers[0] = _BYTES  # the empty context has a probability for every byte
        words = -(-followers // 8)
        kind = np.where(words > _MOST_WORDS, 0, words)
        room = np.where(kind == 0, _BYTES, 1 + words + followers) * (followers > 0)
        at = end + np.cumsum(room) - room
        states.append(np.where(followers > 0, at << _KIND_BITS | kind, -1))
        end += int(room.sum())
        contexts = len(level.keys) + (n == 1)
    if end >= 1 << (32 - _KIND_BITS):
        raise RunError(
            f"the n-gram model would take {end * 8 >> 30} GiB",
            mend="train it on fewer bytes, or with a lower order",
        )
    return states, end


def _pair(logarithm: Float64s, state: Int64s) -> UInt64s:
    """Both in 64 bits."""
    low = logarithm.astype(np.float32).view(np.uint32).astype(np.uint64)
    return low | state.astype(np.uint64) << np.uint64(32)


@njit(**KERNEL)
def _pack(data, offsets, order, keys):  # type: ignore[no-untyped-def]
    """The n-gram that ends at every byte, of the highest order or from the beginning of a text."""
    top = uint64(_BITS * (order - 1))
    at = uint64(0)
    for row in range(offsets.shape[0] - 1):
        key = uint64(_START) << top
        for i in range(uint64(offsets[row]), uint64(offsets[row + 1])):
            key = key >> uint64(_BITS) | (uint64(data[i]) + uint64(1)) << top
            keys[at] = key
            at += uint64(1)


@njit(**KERNEL)
def _distinct(keys):  # type: ignore[no-untyped-def]
    """How many different ones of sorted keys there are."""
    found = 0
    for i in range(keys.shape[0]):
        found += i == 0 or keys[i] != keys[i - 1]
    return found


@njit(**KERNEL)
def _count(keys, counts):  # type: ignore[no-untyped-def]
    """Bring the different ones of sorted keys to the front, and count each.

    In place: fresh memory for every byte of text costs more than counting.
    """
    found = -1
    for i in range(keys.shape[0]):
        if found < 0 or keys[i] != keys[found]:
            found += 1
            keys[found] = keys[i]
            counts[found] = 0
        counts[found] += 1


@njit(**KERNEL)
def _begin(records, floats, states, back):  # type: ignore[no-untyped-def]
    """Begin the records of some contexts with what holds for bytes that do not follow them."""
    for i in range(states.shape[0]):
        if states[i] < 0:
            continue
        kind, at = uint64(states[i]) & _KIND, uint64(states[i]) >> uint64(_KIND_BITS)
        if kind:
            records[at] = back[i]
            for j in range(uint64(1), kind + uint64(1)):
                records[at + j] = uint64(0)
            continue
        records[at] = back[i]  # for a moment: its logarithm
        share = floats[at * uint64(2)]
        state = back[i] >> uint64(32)
        for byte in range(_BYTES):
            place, more = _find(records, floats, state, uint64(byte))
            records[at + uint64(byte)] = records[place]
            floats[(at + uint64(byte)) * uint64(2)] = share + more


@njit(**KERNEL)
def _follow(records, states, context, byte, values):  # type: ignore[no-untyped-def]
    """Put what follows every context into its record; bytes come in ascending order."""
    filled = np.zeros(states.shape[0], np.uint16)
    for i in range(context.shape[0]):
        state = uint64(states[context[i]])
        kind, at = state & _KIND, state >> uint64(_KIND_BITS)
        if kind == uint64(0):
            records[at + byte[i]] = values[i]
            continue
        n = uint64(filled[context[i]])
        filled[context[i]] += np.uint16(1)
        label = at + uint64(1) + (n >> uint64(3))
        if n & uint64(7):
            # What is left of the word repeats the byte; of equal ones the lowest counts.
            keep = (uint64(1) << (n & uint64(7)) * uint64(8)) - uint64(1)
            records[label] = records[label] & keep | byte[i] * _EACH & ~keep
        else:
            records[label] = byte[i] * _EACH
        records[at + uint64(1) + kind + n] = values[i]


@njit(**INLINE)
def _probe(records, state, byte):  # type: ignore[no-untyped-def]
    """Where the value of a byte stands in the record of a state, and 1 if the byte is there."""
    kind, at = state & _KIND, state >> uint64(_KIND_BITS)
    if kind == uint64(0):
        place, known = at + byte, uint64(1)
    else:
        wanted = byte * _EACH
        values = at + uint64(1) + kind
        word = uint64(1)
        x = records[at + word] ^ wanted
        zero = (x - _EACH) & ~x & _HIGHEST
        while zero == uint64(0) and word < kind:
            word += uint64(1)
            values += uint64(8)
            x = records[at + word] ^ wanted
            zero = (x - _EACH) & ~x & _HIGHEST
        known = uint64(zero != uint64(0))
        place = values + (lowest_bit(zero) >> uint64(3)) if known else at
    return place, known


@njit(**KERNEL)
def _find(records, floats, state, byte):  # type: ignore[no-untyped-def]
    """Where the value of a byte stands, in a state or one of those behind it; its logarithm."""
    total = np.float32(0)
    while True:
        place, known = _probe(records, state, byte)
        total += floats[place * uint64(2)]
        if known:
            return place, total
        state = records[place] >> uint64(32)


@njit(**INLINE)
def _step(data, i, state, total, records, floats):  # type: ignore[no-untyped-def]
    """Look in one state for the next byte; where it is not there, go to the state behind."""
    place, known = _probe(records, state, uint64(data[i]))
    return i + known, records[place] >> uint64(32), total + floats[place * uint64(2)]


@njit(**KERNEL)
def _run(data, i, end, state, total, records, floats):  # type: ignore[no-untyped-def]
    """Go on to the end; gives the state and the total."""
    while i < end:
        i, state, total = _step(data, i, state, total, records, floats)
    return state, total


@njit(**KERNEL)
def _score(data, offsets, order, begin, records, floats, found):  # type: ignore[no-untyped-def]
    """Log-likelihood of every text.

    A step has to wait for the memory that the last one asked for, so several parts of a text are
    walked at once, all but the first after a run-up, and their sums are added in order.
    """
    at, ends = np.empty(_PARTS, np.uint64), np.empty(_PARTS, np.uint64)
    states, totals = np.empty(_PARTS, np.uint64), np.empty(_PARTS, np.float64)
    up = uint64(order - 1)
    for row in range(found.shape[0]):
        start, end = uint64(offsets[row]), uint64(offsets[row + 1])
        part = (end - start) // uint64(_PARTS)
        if part < uint64(_SHORTEST_PART):
            _, found[row] = _run(data, start, end, uint64(begin), 0.0, records, floats)
            continue
        for k in range(_PARTS):
            at[k], totals[k] = start + part * uint64(k), 0.0
            ends[k] = at[k] + part
            states[k] = begin
            if k:
                states[k], _ = _run(data, at[k] - up, at[k], uint64(0), 0.0, records, floats)
        ends[_PARTS - 1] = end
        going = True
        while going:
            for k in range(_PARTS):
                at[k], states[k], totals[k] = _step(
                    data, at[k], states[k], totals[k], records, floats
                )
                going &= at[k] < ends[k]
        total = 0.0
        for k in range(_PARTS):
            total += _run(data, at[k], ends[k], states[k], totals[k], records, floats)[1]
        found[row] = total


class NgramLogp(Signal):
    """Log-likelihood of every text under a trained n-gram model.

    The model is a file of `NgramModel.write`; `ngram_likelihood` trains it and keeps it in the
    workspace, under ``models``.
    """

    operator: Literal["ngram_logp"] = "ngram_logp"
    model: str = Field(description="path of the model's file")
    digest: str = Field(default="", description="of what the model was trained on, and how")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    roles: ClassVar[tuple[str, ...]] = ("text",)

    def key_parts(self) -> dict[str, Any]:
        parts = super().key_parts()
        if self.digest:
            parts.pop("model")  # where it lies decides nothing
        return parts

    def fields(self) -> pa.Schema:
        """``ngram_logp`` (float64, nats; null where the text is empty) and ``ngram_bytes``
        (int64, of UTF-8)."""
        return pa.schema(
            [pa.field("ngram_logp", pa.float64()), pa.field("ngram_bytes", pa.int64(), False)]
        )

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        found = read_model(self.model).log_likelihood(batch["text"])
        _, offsets = string_buffers(batch["text"])
        sizes = np.diff(offsets)
        columns = [pa.array(found, mask=sizes == 0), pa.array(sizes)]
        return pa.record_batch(columns, schema=self.fields())
