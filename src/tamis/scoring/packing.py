"""Which tokens go through a language model together.

Rows that share their prompt become one group ``[prompt | completion 1 | completion 2 | ...]`` in
which the prompt is read once; equal rows are read once. Groups lie one after the other in a pack,
without padding between them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tamis.scoring.completions import Ragged, offsets_of, ranges
from tamis.storage.hashing import hash_batch
from tamis.storage.kernels import Int64s

#: Tokens that a prompt must have to be shared: below it, reading it again is cheaper.
LEAST_SHARED = 8
#: Completions of a group attend in one call while they have together at most as many tokens as the
#: prompt, within these bounds: blocks between them are computed for nothing, and masks take room.
LEAST_RUN, LARGEST_RUN = 256, 1024


class Items(NamedTuple):
    """Distinct sequences, those with one prompt beside one another.

    Attributes:
        row: a row that holds each.
        of_row: the item of every row, -1 of a row without tokens.
        prompt: number of each one's prompt, ascending.
    """

    row: Int64s
    of_row: Int64s
    prompt: Int64s


class Group(NamedTuple):
    """Where a group lies in its pack.

    Attributes:
        start: first token.
        prompt: tokens of the prompt, none where a single sequence is read as it stands.
        ends: where each completion ends; the first begins after the prompt.
    """

    start: int
    prompt: int
    ends: tuple[int, ...]

    def runs(self) -> Iterator[tuple[int, ...]]:
        """Where runs of completions that attend together begin, and where each of them ends."""
        most = min(max(self.prompt, LEAST_RUN), LARGEST_RUN)
        edges = [self.start + self.prompt]
        for end in self.ends:
            if len(edges) > 1 and end - edges[0] > most:
                yield tuple(edges)
                edges = edges[-1:]
            edges.append(end)
        if edges[-1] > edges[0]:
            yield tuple(edges)


@dataclass
class Pack:
    """Tokens of some items, as they go into a model.

    Attributes:
        items: the items, in order.
        ids, positions: int64, of every token; the last token of an item predicts nothing and is
            left out.
        groups: what attends to what.
        at: for every scored token the place in the pack that predicts it.
        targets: for every scored token its id.
        counts: scored tokens of every item.
        masks: for whoever attends to keep what is the same in all layers.
    """

    items: Int64s
    ids: Int64s
    positions: Int64s
    groups: list[Group]
    at: Int64s
    targets: Int64s
    counts: Int64s
    masks: dict[Any, Any] = field(default_factory=dict)


def distinct(tokens: Ragged, context: Int64s) -> Items:
    """The distinct sequences among rows, in an order that follows from what they hold."""
    lengths = tokens.lengths
    rows = np.flatnonzero(lengths)
    prompts, wholes = (_keys(tokens, rows, size[rows]) for size in (context, lengths))
    order = np.lexsort((wholes[1], wholes[0], prompts[1], prompts[0]))
    new_prompt = _changes(prompts, order)
    new = new_prompt | _changes(wholes, order)
    of_row = np.full(len(lengths), -1)
    of_row[rows[order]] = np.cumsum(new) - 1
    return Items(rows[order[new]], of_row, np.cumsum(new_prompt)[new])


def _keys(tokens: Ragged, rows: Int64s, lengths: Int64s) -> tuple[Any, Any]:
    ids = tokens.ids[ranges(tokens.offsets[rows], lengths)]
    buffers = [None, pa.py_buffer(offsets_of(4 * lengths)), pa.py_buffer(ids)]
    column = pa.Array.from_buffers(pa.large_binary(), len(rows), buffers)
    found = hash_batch(pa.record_batch({"ids": column}))
    return found.high, found.low


def _changes(keys: tuple[Any, Any], order: Int64s) -> Any:
    new = np.ones(len(order), np.bool_)
    new[1:] = False
    for half in keys:
        new[1:] |= half[order][1:] != half[order][:-1]
    return new


def plan(tokens: Ragged, context: Int64s, items: Items, budget: int, largest: int) -> list[Int64s]:
    """Items of every pack, the largest groups first; those of one group beside one another.

    Args:
        budget: tokens of a pack. Only a single group may have more.
        largest: tokens of a group beside its prompt. Only a single item may have more.
    """
    lengths = tokens.lengths[items.row] - 1
    given = context[items.row]
    groups: list[tuple[int, Int64s]] = []
    edges = np.flatnonzero(np.diff(items.prompt, prepend=-1, append=-1))
    for first, last in pairwise(edges.tolist()):
        prompt = int(given[first])
        if last - first == 1 or prompt < LEAST_SHARED:
            groups += [(int(lengths[i]), np.arange(i, i + 1)) for i in range(first, last)]
            continue
        begin, total = first, 0
        for item in range(first, last):
            more = int(lengths[item]) - prompt
            if item > begin and total + more > largest:
                groups.append((prompt + total, np.arange(begin, item)))
                begin, total = item, 0
            total += more
        groups.append((prompt + total, np.arange(begin, last)))
    order = np.argsort([-size for size, _ in groups], kind="stable")
    packs: list[Int64s] = []
    mine: list[Int64s] = []
    total = 0
    for size, found in (groups[i] for i in order):
        if mine and total + size > budget:
            packs.append(np.concatenate(mine))
            mine, total = [], 0
        mine.append(found)
        total += size
    return [*packs, np.concatenate(mine)] if mine else packs


def pack(tokens: Ragged, context: Int64s, items: Items, chosen: Int64s) -> Pack:
    """The tokens of some items; those of one prompt beside one another share it."""
    rows = items.row[chosen]
    first, lengths, given = tokens.offsets[rows], tokens.lengths[rows] - 1, context[rows]
    prompts = items.prompt[chosen]
    new = np.ones(len(chosen), np.bool_)
    new[1:] = (prompts[1:] != prompts[:-1]) | (given[1:] < LEAST_SHARED)
    # An item that opens a group brings the prompt, the others what comes after it.
    skipped = np.where(new, 0, given)
    sizes = lengths - skipped
    ends = np.cumsum(sizes)
    starts = ends - sizes
    taken = ranges(first + skipped, sizes)
    positions = ranges(skipped, sizes)
    opened = np.flatnonzero(new)
    groups = []
    for begin, end in pairwise([*opened.tolist(), len(chosen)]):
        alone = end - begin == 1
        prompt = 0 if alone else int(given[begin])
        groups.append(Group(int(starts[begin]), prompt, tuple(ends[begin:end].tolist())))
    # The first scored token is predicted by the last of the prompt, the others by the one before.
    counts = lengths - given + 1
    prompt_end = (starts[opened] + given[opened] - 1)[np.cumsum(new) - 1]
    at = ranges(starts + given - skipped - 1, counts)
    at[offsets_of(counts)[:-1]] = prompt_end
    targets = tokens.ids[ranges(first + given, counts)]
    return Pack(
        chosen,
        tokens.ids[taken].astype(np.int64),
        positions,
        groups,
        at,
        targets.astype(np.int64),
        counts,
    )
