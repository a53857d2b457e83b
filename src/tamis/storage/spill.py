"""Large arrays that lie in memory while there is room, and in files without a name beyond it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from tamis.storage.places import place_errors

#: Bytes of a file that are read at a time where not all of it is wanted.
BLOCK_BYTES = 16 << 20


class Spill:
    """An array of records, written and read in runs; threads may share it.

    A file has no name: when its process ends, in whatever way, nothing is left of it.

    Args:
        shape: records, or records and the values of each.
        room: what it takes its bytes from.

    Example:
        >>> with spill_room() as room:
        ...     numbers = room.array((4,), np.int32)
        ...     numbers.put(1, np.array([7, 8], np.int32))
        ...     numbers.get(1, 3).tolist()
        [7, 8]
    """

    def __init__(self, shape: tuple[int, ...], kind: npt.DTypeLike, room: "SpillRoom") -> None:
        self.shape = shape
        self.kind = np.dtype(kind)
        self._width = self.kind.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        self._room = room
        self._bytes = shape[0] * self._width
        self._array: npt.NDArray[Any] | None = None
        self._file = -1
        if room.take(self._bytes):
            self._array = np.empty(shape, self.kind)
        else:
            with place_errors(room.folder), tempfile.TemporaryFile(dir=room.folder) as file:
                self._file = os.dup(file.fileno())

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def block(self) -> int:
        """Records that make up a block to read."""
        return max(1, BLOCK_BYTES // max(1, self._width))

    def put(self, at: int, values: npt.NDArray[Any]) -> None:
        """Write records, beginning with record `at`."""
        if self._array is not None:
            self._array[at : at + len(values)] = values
            return
        left = _bytes_of(values, self.kind)
        place = at * self._width
        with place_errors(self._room.folder):
            while len(left):
                written = os.pwrite(self._file, left, place)
                left, place = left[written:], place + written

    @contextmanager
    def filling(self, first: int, last: int) -> Iterator[npt.NDArray[Any]]:
        """The records from `first` up to `last`, which the block is to give values."""
        if self._array is not None:
            yield self._array[first:last]
            return
        values = np.empty((last - first, *self.shape[1:]), self.kind)
        yield values
        self.put(first, values)

    def get(self, first: int, last: int) -> npt.NDArray[Any]:
        """The records from `first` up to `last`; not to be changed."""
        if self._array is not None:
            return self._array[first:last]
        values = np.empty((last - first, *self.shape[1:]), self.kind)
        left, place = _bytes_of(values, self.kind), first * self._width
        with place_errors(self._room.folder):
            while len(left):
                found = os.preadv(self._file, [left], place)
                if not found:
                    raise EOFError(f"record {place // max(1, self._width)} was never written")
                left, place = left[found:], place + found
        return values

    def close(self) -> None:
        """Give its bytes back."""
        if self._array is not None:
            self._array = None
            self._room.give(self._bytes)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _bytes_of(values: npt.NDArray[Any], kind: np.dtype[Any]) -> memoryview:
    return memoryview(np.ascontiguousarray(values, kind).reshape(-1).view(np.uint8).data)


class SpillRoom:
    """How many bytes spills may hold in memory together, and where those beyond lie."""

    def __init__(self, folder: Path, in_memory: int) -> None:
        self.folder = folder
        self._left = in_memory
        self._lock = Lock()
        self._spills: list[Spill] = []

    def array(self, shape: tuple[int, ...], kind: npt.DTypeLike) -> Spill:
        """A new array whose records have no values yet."""
        spill = Spill(shape, kind, self)
        self._spills.append(spill)
        return spill

    def take(self, count: int) -> bool:
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give(self, count: int) -> None:
        with self._lock:
            self._left += count

    def close(self) -> None:
        for spill in self._spills:
            spill.close()


#: Bytes that the spills of one step hold in memory.
IN_MEMORY = 512 << 20


@contextmanager
def spill_room(folder: Path | None = None) -> Iterator[SpillRoom]:
    """Room for spills, all of which are gone at the end.

    Args:
        folder: where files may lie; the system's folder for temporary files if not given.
    """
    room = SpillRoom(folder or Path(tempfile.gettempdir()), IN_MEMORY)
    try:
        yield room
    finally:
        room.close()
