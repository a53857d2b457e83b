"""How much memory the process tree uses, sampled while a run goes on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


class MemoryWatch:
    """Peak resident bytes of this process and its children, seen so far."""

    def __init__(self, interval: float = 0.05) -> None:
        self.peak = 0
        self._interval = interval
        self._stop = threading.Event()
        self._process = psutil.Process()

    def sample(self) -> None:
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
        self.peak = max(self.peak, total)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()


@contextmanager
def watch_memory() -> Iterator[MemoryWatch]:
    """Sample the memory of the process tree in the background."""
    watch = MemoryWatch()
    watch.sample()
    thread = threading.Thread(target=watch._run, daemon=True, name="tamis-memory")
    thread.start()
    try:
        yield watch
    finally:
        watch._stop.set()
        thread.join()
        watch.sample()


def show_bytes(count: float) -> str:
    """A size for people, in powers of ten: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
