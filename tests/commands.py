"""The commands of ``tamis``, in this process or in one of their own."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock


def tamis(*arguments: object, code: int = 0, cwd: Path | None = None) -> tuple[str, str]:
    """What a command prints and complains of, without the second that a new process takes."""
    from tamis.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        contextlib.chdir(cwd or "."),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["tamis", *map(str, arguments)]),
    ):
        try:
            main()
            ended = 0
        except SystemExit as end:
            ended = int(end.code or 0)
    said, complained = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    assert ended == code, complained + said
    return said, complained


def tamis_process(*arguments: object, code: int = 0, cwd: Path | None = None) -> tuple[str, str]:
    """The same from a process of its own: also what is said while an interpreter ends."""
    done = subprocess.run(
        [sys.executable, "-m", "tamis.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout, done.stderr
