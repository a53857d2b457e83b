"""Fixtures of the guarantees' tests: the command line in this process, and a disk that fills."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from guarantee_tools import Disk, Outcome, recipe, table_of, write_parquet

Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Calls ``tamis`` with arguments, in this process; gives exit code, output and errors."""
    from tamis.cli import main

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tamis", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        written = capfd.readouterr()
        return Outcome(code, written.out, written.err)

    return call


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of a few megabytes, in memory; skipped where mounting is not permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.fixture(scope="session", autouse=True)
def _kernels_are_compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One small run before the first test, so that no test's time is that of a compiler."""
    import tamis

    home = tmp_path_factory.mktemp("warm")
    write_parquet(home / "in.parquet", table_of(["one two three four five six", "né au été"]))
    with contextlib.suppress(tamis.RunError):
        tamis.run(recipe(home / "in.parquet", home / "out"))
