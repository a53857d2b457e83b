"""The files that a path, folder, glob or URL names, here or on a store, and their digests."""

from collections.abc import Callable
from glob import iglob
from pathlib import Path

from upath import UPath

from tamis.storage.errors import UserError
from tamis.storage.files import digest_file, digest_of, kept_json, write_json
from tamis.storage.places import (
    Place,
    is_remote,
    kind_of,
    place_errors,
    place_of,
    shown,
    tells_versions,
    version_of,
)

#: Name of the file beside a dataset's shards that says how it came to be.
MANIFEST = "manifest.json"


def find_files(path: str) -> list[Place]:
    """The input files that a path, folder, glob or URL names, sorted.

    This is the one place that knows where files are.

    Raises:
        UserError: if there is none, or access is refused.
    """
    place = place_of(path)
    kind = kind_of(place)
    if kind == "file":
        return [place]
    if kind == "directory":
        found = _in_folder(place)
    else:
        found = _by_glob(place)
    if not found:
        what = "the folder is empty" if kind == "directory" else "no such file, folder or glob"
        raise UserError(what, where=shown(path), mend="check the path of the corpus")
    return found


def is_empty_folder(path: str) -> bool:
    """Whether a path names a folder that holds no data."""
    place = place_of(path)
    return kind_of(place) == "directory" and not _in_folder(place)


def _in_folder(folder: Place) -> list[Place]:
    if isinstance(folder, Path):
        found = sorted(p for p in folder.rglob("*") if p.is_file())
        return [p for p in found if _is_data(str(p.relative_to(folder)))]
    with place_errors(folder):
        names = sorted(folder.fs.find(folder.path))
    root = folder.path.rstrip("/") + "/"
    return [_beside(folder, name) for name in names if _is_data(name.removeprefix(root))]


def _by_glob(pattern: Place) -> list[Place]:
    if isinstance(pattern, Path):
        # Path.glob takes relative patterns only.
        found = map(Path, iglob(str(pattern), recursive=True))  # noqa: PTH207
        return sorted(p for p in found if p.is_file())
    if not any(sign in pattern.path for sign in "*?["):
        return []
    with place_errors(pattern):
        found_remote = pattern.fs.glob(pattern.path, detail=True)
    files = sorted(name for name, info in found_remote.items() if info["type"] == "file")
    return [_beside(pattern, name) for name in files]


def _beside(place: UPath, path: str) -> UPath:
    """Another path of the same store."""
    url = path if "://" in path else f"{place.protocol}://{path.lstrip('/')}"
    found = place_of(url)
    assert isinstance(found, UPath)
    return found


def _is_data(relative: str) -> bool:
    """Hidden files are no data, nor is the manifest of a dataset that is read again."""
    parts = relative.split("/")
    return parts[-1] != MANIFEST and not any(part.startswith((".", "_")) for part in parts)


def known_digest(
    path: Place, workspace: Place, compute: Callable[[Place], str] = digest_file
) -> str:
    """Digest of a file's bytes; that of a remote one is kept with the version it is of."""
    if not is_remote(path):
        return compute(path)
    version = version_of(path)
    if not tells_versions(version):
        return compute(path)
    place = workspace / "inputs" / f"{digest_of([str(path), version])}.json"
    if kind_of(place) is None:
        write_json(place, {"file": shown(path), "digest": compute(path)})
    return str(kept_json(str(place))["digest"])
