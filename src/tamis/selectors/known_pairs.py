"""Similarities that were computed before, so that a rule can be tried again without the texts.

A selector that compares pairs asks here first. What it still lacks it would ask for in rounds, and
every round reads texts. So the rounds are gone through once with guesses from the sketches, which
tells nearly all the pairs that will be asked for; these are compared together.
"""

from collections.abc import Callable
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

from tamis.storage.grouping import Int32s
from tamis.storage.kernels import KERNEL, Bytes, Int64s, UInt64s

T = TypeVar("T")
Float64s = npt.NDArray[np.float64]
#: Exact similarity of pairs of rows, sorted by the first.
Verify = Callable[[Int32s, Int32s], Float64s]

#: A guess stays so many standard deviations below the estimate, so that a row that may stay is
#: taken to stay and asks for all that it may need.
CAUTION = 2.5
#: Guesses that are made with caution, for each row and at least; clusters just above the
#: threshold would else ask for all their pairs.
CAUTIOUS_PER_ROW, MIN_CAUTIOUS = 1, 1 << 16


class KnownPairs:
    """Exact similarities by pair of positions in the corpus (below 2**32), in either order.

    Several threads may ask and add at once.

    Example:
        >>> import numpy as np
        >>> known = KnownPairs()
        >>> known.add(np.array([7, 3]), np.array([2, 9]), np.array([0.8, 0.75]))
        >>> known.find(np.array([2, 2]), np.array([7, 8])).tolist()
        [0.8, nan]
    """

    def __init__(self) -> None:
        self._stored: tuple[UInt64s, Float64s] = (np.zeros(0, np.uint64), np.zeros(0))
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._stored[0])

    def find(self, left: Int64s, right: Int64s) -> Float64s:
        """Similarity of every pair, nan where it is not known."""
        found = np.full(len(left), np.nan)
        keys, values = self._stored
        if len(keys):
            wanted = _keys(left, right)
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            there = keys[at] == wanted
            found[there] = values[at[there]]
        return found

    def add(self, left: Int64s, right: Int64s, value: Float64s) -> None:
        """Remember more pairs; one that is known already keeps its value."""
        with self._lock:
            keys = np.concatenate([self._stored[0], _keys(left, right)])
            values = np.concatenate([self._stored[1], value])
            keys, first = np.unique(keys, return_index=True)
            self._stored = keys, values[first]


def _keys(left: Int64s, right: Int64s) -> UInt64s:
    low, high = np.minimum(left, right), np.maximum(left, right)
    return (low.astype(np.uint64) << np.uint64(32)) | high.astype(np.uint64)


class Known(NamedTuple):
    """What is known of a table's pairs.

    ``position`` (int64) is where in the corpus each of its rows is.
    """

    pairs: KnownPairs
    position: Int64s

    def of(self, rows: Int64s) -> "Known":
        """The same for some rows, numbered anew."""
        return self._replace(position=self.position[rows])

    def find(self, left: Int32s, right: Int32s) -> Float64s:
        """See `KnownPairs.find`; for rows of the table."""
        return self.pairs.find(self.position[left], self.position[right])


def remembering(verify: Verify, known: Known) -> Verify:
    """The same as `verify`, which is called for what is not known only."""

    def find(left: Int32s, right: Int32s) -> Float64s:
        value = known.find(left, right)
        new = np.flatnonzero(np.isnan(value))
        if len(new):
            a, b = left[new], right[new]
            value[new] = verify(a, b)
            known.pairs.add(known.position[a], known.position[b], value[new])
        return value

    return find


@njit(**KERNEL)
def _equal_places(sketch, left, right, result):  # type: ignore[no-untyped-def]
    for p in range(left.shape[0]):
        a, b = sketch[left[p]], sketch[right[p]]
        equal = 0
        for k in range(sketch.shape[1]):
            equal += a[k] == b[k]
        result[p] = equal


def foresee(
    decide: Callable[[Verify], T],
    sketch: Bytes,
    known: Known,
    threshold: float,
) -> tuple[T, Int32s, Int32s]:
    """The pairs that are not known and that `decide` will, most likely, ask for; sorted.

    Also what it found with guesses in their place: if there are none, that is the truth.

    Args:
        decide: goes through its rounds with the similarities it is given.
        sketch: ``(rows, num_perm)`` uint8, as `survivors` takes it.
    """
    asked: list[UInt64s] = []
    places = sketch.shape[1]
    unsure = CAUTION * np.sqrt(threshold * (1 - threshold) / places)
    room = max(CAUTIOUS_PER_ROW * len(sketch), MIN_CAUTIOUS)

    def guess(left: Int32s, right: Int32s) -> Float64s:
        nonlocal room
        value = known.find(left, right)
        new = np.flatnonzero(np.isnan(value))
        equal = np.empty(len(new), np.int64)
        _equal_places(sketch, left[new], right[new], equal)
        value[new] = equal / places - (unsure if room > 0 else 0.0)
        room -= len(new)
        asked.append(left[new].astype(np.uint64) << np.uint64(32) | right[new].astype(np.uint64))
        return value

    found = decide(guess)
    pairs = np.unique(np.concatenate([np.zeros(0, np.uint64), *asked]))
    left, right = pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)
    return found, left.astype(np.int32), right.astype(np.int32)
