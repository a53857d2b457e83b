"""The dataset: Parquet shards with the corpus's own schema, a manifest and a card."""

import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from tamis.storage.columns import Beside, Source
from tamis.storage.corpus import Corpus, packed_schema
from tamis.storage.errors import RunError, UserError
from tamis.storage.files import (
    TEMPORARY,
    HeldFolder,
    digest_of,
    keep_json,
    read_json,
    swap_folders,
    sweep,
    sweep_folders,
    sync,
    whole_file,
    write_json,
)
from tamis.storage.inputs import MANIFEST
from tamis.storage.places import Place, absolute, kind_of, place_errors, shown
from tamis.storage.tasks import Done, Runner
from tamis.storage.write import OutputFile, Write, file_name, write_file

CARD = "README.md"
#: Which rows of which file belong to which phase of a training, where a dataset has several.
SCHEDULE = "schedule.json"
#: On a store, says that a run of tamis has begun to put files beside it.
BEGUN = "_begun.json"
_PART = re.compile(r"part-\d{5,}-[0-9a-f]{8}\.parquet")


def check_output(folder: Place) -> None:
    """Refuse to replace what tamis did not write.

    Raises:
        UserError: if the folder holds anything but a dataset of tamis.
    """
    kind = kind_of(folder)
    if kind is None:
        return
    if kind == "file":
        raise UserError("the output is a file", where=shown(folder), mend="name a folder")
    previous = _previous(folder)
    ours = {MANIFEST, CARD, *(entry["name"] for entry in (previous or {}).get("files", ()))}
    ours |= {SCHEDULE} if "schedule" in (previous or {}) else set()
    names = _names(folder)
    begun = BEGUN in names  # on a store, by a run that has not come to its end
    foreign = [
        name
        for name in names
        if not (begun and (name in (BEGUN, SCHEDULE) or _PART.fullmatch(name)))
        and (name not in ours or (previous is None and not (begun and name == CARD)))
    ]
    if foreign:
        raise UserError(
            f"the output folder holds {foreign[0]!r}, which is not part of a dataset of tamis",
            where=shown(folder),
            mend="name another folder, or move that file away: a dataset is replaced as a whole",
        )


def _names(folder: Place) -> list[str]:
    """What a folder holds, by name."""
    if isinstance(folder, Path):
        return sorted(path.name for path in folder.iterdir())
    with place_errors(folder):
        found = folder.fs.find(folder.path)
    root = folder.path.rstrip("/") + "/"
    return sorted(name.removeprefix(root) for name in found if name.rstrip("/") + "/" != root)


def _previous(folder: Place) -> dict[str, Any] | None:
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError, RunError):
        return None
    return manifest if "tamis" in manifest.get("versions", {}) else None


class DatasetWriter:
    """Writes a dataset so that it takes its place as a whole; use it in a ``with``.

    On this machine it is made in a folder beside its place, and the two are exchanged. On an
    object store every file is put under a name of its own, then the manifest that names them,
    then what the manifest before it named is removed.
    """

    def __init__(self, folder: Place, workspace: Place) -> None:
        self.folder = folder = absolute(folder)
        self._workspace = absolute(workspace)
        self._held: HeldFolder | None = None
        previous = _previous(folder) or {}
        files = {entry["key"]: entry for entry in previous.get("files", [])}
        self._replaced = keep_json(
            self._workspace / "orders", {"folder": str(folder), "files": files}
        )
        if not isinstance(folder, Path):
            self.target: Place = folder
            write_json(folder / BEGUN, {"tamis": "puts a dataset here"})
            return
        with place_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            sweep_folders(folder.parent, folder.name)
            name = f".{folder.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
            self._held = HeldFolder(folder.with_name(name))
        self.target = self._held.path

    def write(
        self,
        corpus: Corpus,
        kept: str,
        schema: pa.Schema,
        sources: Mapping[str, Source],
        runner: Runner,
        done: Done,
        first: int = 0,
        passes: Beside | None = None,
        phase: str | None = None,
    ) -> list[OutputFile]:
        """Write the kept rows of every shard; a file that is there already is linked, not written.

        A shard of which nothing is kept gets no file.

        Args:
            kept: mask of all rows, see `keep_mask`.
            schema: columns of the dataset.
            sources: of those of them that are no column of the corpus by this name.
            first: number that the files begin with.
            passes: how often each row is written in each phase, see `Write`.
            phase: column for the number of the phase.
        """
        task = Write(
            shards=corpus.keep(self._workspace / "orders"),
            kept=kept,
            columns=packed_schema(schema),
            sources=dict(sources),
            target=str(self.target),
            previous=self._replaced,
            first=first,
            passes=passes,
            phase=phase,
        )
        found = runner.map(task, corpus.sizes, done)
        return [OutputFile(**entry) for entry in found if entry is not None]

    def write_nothing(self, schema: pa.Schema) -> OutputFile:
        """The one empty file of a dataset without rows."""
        key = digest_of(["empty", packed_schema(schema)])

        def nothing(path: Path) -> int:
            pq.write_table(schema.empty_table(), path, compression="zstd")
            return 0

        return write_file(self.target / file_name(0, key), key, nothing)

    def publish(self, manifest: dict[str, Any], entries: Sequence[OutputFile], text: str) -> None:
        """Check what was written, add card and manifest, and take the dataset's place.

        Raises:
            UserError: if somebody has put a file there since the run began.
        """
        check_output(self.folder)
        for entry in entries:
            path = self.target / entry.name
            with place_errors(path):
                size = path.stat().st_size
            if size != entry.bytes:
                raise RunError(
                    f"{entry.bytes} bytes were written, the file holds {size}",
                    where=shown(self.folder / entry.name),
                )
        with whole_file(self.target / CARD) as temporary:
            temporary.write_text(text, "utf-8")
        if "schedule" in manifest:
            write_json(self.target / SCHEDULE, manifest["schedule"])
        write_json(self.target / MANIFEST, manifest)
        if isinstance(self.target, Path) and isinstance(self.folder, Path):
            sweep(self.target)
            with place_errors(self.folder):
                sync(self.target)
            swap_folders(self.target, self.folder)
            return
        standing = {entry.name for entry in entries}
        standing |= {SCHEDULE} if "schedule" in manifest else set()
        for name in _names(self.folder):
            ours = name == SCHEDULE or _PART.fullmatch(name)
            if name == BEGUN or (ours and name not in standing):
                stale = self.folder / name
                assert not isinstance(stale, Path)
                with place_errors(stale):
                    stale.fs.rm_file(stale.path)  # not `unlink`, which takes a name for a pattern

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Remove what was not published."""
        if self._held is not None:
            shutil.rmtree(self._held.path, ignore_errors=True)
            self._held.release()


def card(manifest: dict[str, Any]) -> str:
    """A dataset card that the Hub and ``datasets.load_dataset`` read."""
    rows = manifest["rows"]
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        '    path: "*.parquet"',
        "tags:",
        "- tamis",
        "---",
        "",
        "# Dataset",
        "",
        f"{rows['written']:,} rows, selected from {rows['in']:,} by "
        f"tamis {manifest['versions']['tamis']}. Every row that is not here has a reason"
        f"{', every generated row a parent' if rows['generated'] else ''}:",
        "",
        "| | rows |",
        "|---|---:|",
        f"| in | {rows['in']:,} |",
        *(f"| dropped: {reason} | {count:,} |" for reason, count in rows["dropped"].items()),
        f"| quarantined | {rows['quarantined']:,} |",
        f"| kept | {rows['kept']:,} |",
        *(f"| of these {name} | {count:,} |" for name, count in marked_rows(rows).items()),
        *([f"| generated | {rows['generated']:,} |"] if rows["generated"] else []),
        *([f"| written, repeats counted | {rows['written']:,} |"] if has_repeats(rows) else []),
        "",
        *(f"{line}\n" for line in draws_told(manifest)),
        *(f"{line}\n" for line in certificates(manifest)),
        "`manifest.json` holds the recipe, the versions and the digests of inputs and files.",
        "",
    ]
    return "\n".join(lines)


def marked_rows(rows: Mapping[str, Any]) -> dict[str, int]:
    """Of the rows that a manifest counts as kept, those with a mark, where there are any."""
    names = {"relabelled": "relabelled", "in_review": "in review"}
    return {name: rows[key] for key, name in names.items() if rows.get(key)}


def has_repeats(rows: Mapping[str, Any]) -> bool:
    """Whether rows of a dataset stand in it several times, by what a manifest counts."""
    return bool(rows["written"] > rows["kept"] + rows["generated"])


def draws_told(manifest: dict[str, Any]) -> list[str]:
    """Of a dataset drawn by a mixture, where less was there than was asked, and its phases."""
    lines = []
    for stage in manifest["stages"]:
        for name in stage.get("report", {}).get("short", ()):
            of = stage["report"]["domains"][name]
            unit = stage["report"]["unit"]
            found = of.get("drawn", of["there"])
            lines.append(
                f"{stage['stage']}: of {name} {of['asked']:,.0f} {unit} were asked, "
                f"{of['there']:,.0f} were there and {found:,.0f} were drawn"
            )
    if "schedule" in manifest:
        count = len(manifest["schedule"]["phases"])
        lines.append(f"`{SCHEDULE}` tells the {count} phases of the mixture.")
    return lines


def certificates(manifest: dict[str, Any], texts: bool = False) -> list[str]:
    """What the stages that remove duplicates certify of themselves, a line each.

    Args:
        texts: with the beginnings of two texts of every giant group.
    """
    lines = []
    for stage in manifest["stages"]:
        found = stage.get("report", {}).get("certificate")
        if found is None:
            continue
        precision, recall = found["precision"], found["recall"]
        line = f"{stage['stage']}: precision {_bounds(precision)}"
        if precision["checked"]:
            line += f" ({precision['checked']:,} pairs compared anew)"
        lines.append(f"{line}, recall {_bounds(recall)}, at {found['confidence']:.0%} confidence")
        for group in found["giant_groups"]:
            least = group["least_similar"]
            line = f"{stage['stage']}: a group of {group['rows']:,} rows ({group['share']:.1%})"
            if texts:
                line += (
                    f"; {group['row_id'][:12]} stays: “{group['text']}”; the least similar "
                    f"({least['similarity']:.3f}) is {least['row_id'][:12]}: “{least['text']}”"
                )
            lines.append(line)
    return lines


def _bounds(share: dict[str, Any]) -> str:
    if share["estimate"] is None:
        return "not known (nothing was dropped)"
    return f"{share['estimate']:.4f} ({share['low']:.4f} to {share['high']:.4f})"


def file_entries(entries: list[OutputFile]) -> list[dict[str, Any]]:
    """Output files as the manifest lists them."""
    return [
        {name: value for name, value in asdict(entry).items() if value is not None}
        for entry in entries
    ]
