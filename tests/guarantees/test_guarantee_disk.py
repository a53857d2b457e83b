"""A full disk: one line, nothing half, the earlier dataset intact, and the same command goes on."""

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from guarantee_tools import (
    Disk,
    Outcome,
    check_balance,
    digests,
    documents,
    leftovers,
    manifest_of,
    read_dataset,
    table_of,
    workspace_of,
    write_jsonl,
    write_parquet,
)

Command = Callable[..., Outcome]


def _noise(seed: int, count: int) -> list[str]:
    """Texts that do not compress, all different."""
    draw = random.Random(seed)
    return [draw.randbytes(400).hex(" ") for _ in range(count)]


@pytest.mark.parametrize("on_disk", ["output", "workspace", "both"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_full_disk_is_one_line_and_the_same_command_succeeds_with_space(
    tmp_path: Path, small_disk: Disk, command: Command, on_disk: str, kind: str
) -> None:
    write = write_parquet if kind == "parquet" else write_jsonl
    small = write(tmp_path / f"small.{kind}", table_of(documents(1, 40)))
    large = write(tmp_path / f"large.{kind}", table_of(_noise(2, 5000)))
    out = (tmp_path if on_disk == "workspace" else small_disk.place) / "out"
    work = (tmp_path if on_disk == "output" else small_disk.place) / "work"

    small_disk.resize(4000)
    arguments = ["--id", "id", "--workspace", work]
    assert command("dedup", small, out, *arguments).code == 0
    before = digests(out)

    failures = 0
    for kilobytes in range(1500, 40_000, 200):
        small_disk.resize(kilobytes)
        outcome = command("dedup", large, out, *arguments)
        if outcome.code == 0:
            break
        failures += 1
        assert "no space left" in outcome.line(1)
        assert digests(out) == before, f"with {kilobytes} kB the earlier dataset was touched"
        assert leftovers(out.parent) == []
        assert leftovers(work) == []
    assert failures > 1
    check_balance(work, out)
    assert outcome.code == 0
    assert digests(out) != before


@pytest.mark.parametrize(("number", "step"), [(errno.ENOSPC, 2), (errno.EDQUOT, 9)])
def test_no_space_at_any_write_is_one_line_and_can_be_gone_on_from(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, number: int, step: int
) -> None:
    """The n-th table to be written, or file or folder to be flushed, finds no space."""
    source = write_parquet(tmp_path / "in.parquet", table_of(documents(3, 90)), 30)
    for call in range(0, 200, step):
        home = tmp_path / str(call)
        home.mkdir()
        out = home / "out"
        arguments = ["select", source, out, "--where", "words >= 7", "--text", "text", "--id", "id"]
        with monkeypatch.context() as patch:
            left = _fail_at(patch, call, number)
            outcome = command(*arguments)
        if left() >= 0:
            assert outcome.code == 0
            assert call > 10
            return
        assert "no space left" in outcome.line(1)
        assert leftovers(home) == []
        if (out / "manifest.json").exists():  # it failed after the publication
            entries = manifest_of(out)["files"]
            assert read_dataset(out).num_rows == sum(entry["rows"] for entry in entries)
        else:
            assert not out.exists()
        again = command(*arguments)
        assert again.code == 0, again.err
        check_balance(workspace_of(out), out)
    raise AssertionError("the run did not come to an end")


def _fail_at(patch: pytest.MonkeyPatch, call: int, number: int) -> Callable[[], int]:
    """Let a later write fail; gives how many calls are left until it does, negative if it did."""
    from tamis.storage import dataset, files

    left = call

    def limited(honest: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(number, "No space left on device" if number == errno.ENOSPC else "")
            return honest(*args, **kwargs)

        return write

    sync = limited(files.sync)
    patch.setattr(files, "sync", sync)
    patch.setattr(dataset, "sync", sync)
    patch.setattr(pq, "write_table", limited(pq.write_table))
    patch.setattr(pq.ParquetWriter, "write_table", limited(pq.ParquetWriter.write_table))
    return lambda: left


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tamis.storage import files

    source = write_parquet(tmp_path / "in.parquet", table_of(documents(4, 30)))

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "sync", refused)
    assert "Permission denied" in command("dedup", source, tmp_path / "out", "--id", "id").line(2)
    assert not (tmp_path / "out").exists()
