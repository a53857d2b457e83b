"""Pairs of rows and how similar they are, collected while there may be more than memory holds."""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tamis.storage.kernels import Int64s
from tamis.storage.places import place_errors

Float64s = npt.NDArray[np.float64]
#: Two rows and the similarity of each pair.
Pairs = tuple[Int64s, Int64s, Float64s]

_NAMES = ("row", "other", "similarity")
_PAIR = np.dtype(list(zip(_NAMES, (np.int64, np.int64, np.float64), strict=True)))
#: Bytes held in memory; more lie in a file without a name.
IN_MEMORY = 64 << 20
#: Pairs that are read at a time.
AT_ONCE = 1 << 20


class Edges:
    """Pairs of row positions with their similarity, in the order in which they were added.

    Example:
        >>> edges = Edges()
        >>> edges.add(np.array([3]), np.array([1]), np.array([0.9]))
        >>> len(edges), [row.tolist() for row, other, similarity in edges.batches()]
        (1, [[3]])
    """

    def __init__(self, folder: Path | None = None, in_memory: int = IN_MEMORY) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._file = tempfile.SpooledTemporaryFile(in_memory, dir=str(self._folder))  # noqa: SIM115
        self._count = 0
        self._rows: Int64s | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, row: Int64s, other: Int64s, similarity: Float64s) -> None:
        """Add pairs; `row` and `other` are of equal length."""
        for begin in range(0, len(row), AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            pairs = np.empty(len(row[some]), _PAIR)
            pairs["row"], pairs["other"] = row[some], other[some]
            pairs["similarity"] = similarity[some]
            with place_errors(self._folder):
                self._file.write(pairs.tobytes())
            self._count += len(pairs)

    def batches(self) -> Iterator[Pairs]:
        """All pairs, some at a time; nothing may be added any more."""
        with place_errors(self._folder):
            self._file.seek(0)  # what was added last is only written here
        while block := self._read():
            pairs = np.frombuffer(block, _PAIR)
            row, other, similarity = map(np.ascontiguousarray, (pairs[n] for n in _NAMES))
            if self._rows is not None:
                row, other = self._rows[row], self._rows[other]
            yield row, other, similarity

    def _read(self) -> bytes:
        with place_errors(self._folder):
            return self._file.read(AT_ONCE * _PAIR.itemsize)

    def among(self, rows: Int64s) -> "Edges":
        """The same pairs, not stored again, with every row as its entry in `rows`."""
        other = copy.copy(self)
        other._rows = rows
        return other

    def together(self) -> Pairs:
        """All pairs at once."""
        parts = list(self.batches()) or [(np.zeros(0, np.int64),) * 2 + (np.zeros(0),)]
        row, other, similarity = (np.concatenate(part) for part in zip(*parts, strict=True))
        return row, other, similarity
