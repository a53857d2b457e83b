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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", range(0, 40, 3))
def test_no_space_at_any_write_is_one_line_and_can_be_gone_on_from(
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    number: int,
) -> None:
    """The n-th Parquet file to be closed, folder or file to be flushed, finds no space."""
    from tamis.storage import dataset, files

    source = write_parquet(tmp_path / "in.parquet", table_of(documents(3, 90)), 30)
    out = tmp_path / "out"
    arguments = ("select", source, out, "--where", "words >= 7", "--text", "text", "--id", "id")
    left = call

    def limited(honest: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(number, "No space left on device" if number == errno.ENOSPC else "")
            return honest(*args, **kwargs)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", limited(files.sync))
        patch.setattr(dataset, "sync", limited(dataset.sync))
        patch.setattr(pq, "write_table", limited(pq.write_table))
        patch.setattr(pq.ParquetWriter, "write_table", limited(pq.ParquetWriter.write_table))
        outcome = command(*arguments)
    if left >= 0:
        assert outcome.code == 0
        pytest.skip("the run writes fewer times than that")
    assert "no space left" in outcome.line(1)
    assert leftovers(tmp_path) == []
    if out.exists():  # what failed came after the publication: the dataset is whole
        assert sum(pq.read_metadata(f).num_rows for f in out.glob("*.parquet")) > 0
        assert (out / "manifest.json").exists()
    again = command(*arguments)
    assert again.code == 0, again.err
    check_balance(workspace_of(out), out)


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
