"""Where files lie: this machine, an object store or a web server, each behind `pathlib`'s methods.

Remote places are reached through fsspec. Credentials come from where its libraries look for them
(environment, profile, instance), never from a path: a path is written to logs and manifests.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import available_protocols
from upath import UPath

from tamis.storage.errors import RunError, TamisError, UnreachableError, UserError

Place = Path | UPath

#: S3 throttles by design: wait and ask again, as often as the AWS tools' adaptive mode does.
_S3_RETRIES = {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 8}}}
_NOT_WRITABLE = (
    errno.EACCES,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
#: Schemes of object stores, which hold whole files only: what may be written to.
STORES = ("s3", "s3a", "gs", "gcs")
#: Schemes of web servers, which are read from only.
WEB = ("http", "https")
#: The extra of this package that brings what a scheme needs.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
#: What stores say of a version of a file, under their several names.
_VERSION_KEYS = (
    *("ETag", "etag", "generation", "Content-MD5", "Last-Modified", "LastModified"),
    *("mtime", "modified", "created", "blob_id", "xet_hash", "sha256"),
)
_REFUSED = re.compile(
    r"credential|access ?denied|forbidden|signature|access key|unauthori[sz]ed|"
    r"(expired|invalid) ?token",
    re.IGNORECASE,
)
_LIBRARIES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs", "urllib3"}


def place_of(text: str | Path) -> Place:
    """The place that a path or URL names.

    Raises:
        UserError: for a scheme that nothing here reads, or credentials in the URL.

    Example:
        >>> place_of("corpus/a.parquet"), is_remote(place_of("s3://bucket/a.parquet"))
        (PosixPath('corpus/a.parquet'), True)
    """
    scheme, separator, rest = str(text).partition("://")
    if not separator:
        return Path(text).expanduser()
    if scheme == "file":
        return Path(rest)
    if scheme not in available_protocols():
        raise UserError(f"no place of the kind {scheme!r}://", where=shown(text))
    secret = "@" in rest.split("/")[0] or (":" in rest.split("/")[0] and scheme in STORES)
    if secret or ("?" in rest and scheme in WEB):
        raise UserError(
            "the URL holds a credential or a query, which would be written to manifests",
            where=shown(text),
            mend="give credentials by the environment (for S3 AWS_ACCESS_KEY_ID and others), or "
            "download the file",
        )
    if not rest.split("/")[0]:
        raise UserError("the URL names no bucket or host", where=shown(text), mend="add it")
    options: dict[str, Any] = _S3_RETRIES if scheme in ("s3", "s3a") else {}
    try:
        return UPath(str(text), protocol=str(scheme), use_listings_cache=False, **options)
    except ImportError as error:
        raise UserError(
            f"reading {scheme}:// needs another library ({error})",
            where=shown(text),
            mend=f"pip install 'tamis[{_EXTRAS.get(scheme, 'all')}]'",
        ) from error


def is_remote(place: Place) -> bool:
    """Whether a place is not in this machine's file system."""
    return not isinstance(place, Path)


def absolute(place: Place) -> Place:
    """The place with links and relative parts resolved; remote ones are as they are."""
    return place.resolve() if isinstance(place, Path) else place


def shown(place: Place | str) -> str:
    """A place as it may be printed and stored: what could be a credential is left out.

    Example:
        >>> shown("https://me:secret@host/a.csv?X-Amz-Signature=1f")
        'https://***@host/a.csv?***'
    """
    text = str(place)
    if "://" not in text:
        return text
    text = re.sub(r"://([^/?#]*|[^/?#]*:[^?#]*)@", "://***@", text)
    return re.sub(r"\?.*", "?***", text) if text.partition("://")[0] in WEB else text


def kind_of(place: Place) -> str | None:
    """``"file"``, ``"directory"``, or None where there is nothing.

    Raises:
        UserError: if access is refused.
        UnreachableError: if the place does not answer.
    """
    if isinstance(place, Path):
        return "file" if place.is_file() else "directory" if place.is_dir() else None
    with place_errors(place):
        try:
            found = place.fs.info(place.path)
        except FileNotFoundError as error:
            if _says_why(error) or _no_bucket(error):
                raise
            return None
    return str(found["type"])


def version_of(place: Place) -> str:
    """What changes whenever a file does, as far as its store tells without reading it.

    A store that tells the size only is not to be trusted with it: see `tells_versions`.

    Raises:
        RunError: if the file is gone.
    """
    if isinstance(place, Path):
        found = place.stat()
        return f"{found.st_size}-{found.st_mtime_ns}"
    with place_errors(place):
        info = place.fs.info(place.path)
    return "-".join(str(info[key]) for key in ("size", *_VERSION_KEYS) if info.get(key))


def tells_versions(version: str) -> bool:
    """Whether a version is more than a size."""
    return "-" in version


def size_of(place: Place) -> int:
    """Bytes of a file."""
    return int(place.stat().st_size)


def parquet_file(place: Place, buffer: int = 0) -> pq.ParquetFile:
    """A Parquet file to read from in place; of a remote one only the ranges asked for.

    Args:
        buffer: bytes of a column that are read at a time; 0 reads those of a row group at once.
    """
    if isinstance(place, Path):
        return pq.ParquetFile(place, memory_map=False, buffer_size=buffer)
    source = pa.PythonFile(place.open("rb", cache_type="none"), mode="r")
    return pq.ParquetFile(source, buffer_size=buffer)


@lru_cache(maxsize=4096)
def _footer(place: Place, version: str) -> tuple[pq.FileMetaData, pa.Schema]:
    with parquet_file(place) as file:
        return file.metadata, file.schema_arrow


def footer_of(place: Place, version: str) -> pq.FileMetaData:
    """Footer of a version of a Parquet file; read once."""
    return _footer(place, version)[0]


def schema_of(place: Place, version: str) -> pa.Schema:
    """Schema of a version of a Parquet file; read once."""
    return _footer(place, version)[1]


@contextlib.contextmanager
def place_errors(place: Place) -> Iterator[None]:
    """Say in one line what a disk, a store or a network refuses; everything else passes."""
    try:
        yield
    except TamisError:
        raise
    except Exception as error:
        found = _remote_error(error, place) if is_remote(place) else _local_error(error, place)
        if found is None:
            raise
        raise found from error


def _local_error(error: Exception, place: Place) -> TamisError | None:
    number = getattr(error, "errno", None)
    if not isinstance(error, OSError | pa.ArrowException):
        return None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return RunError(
            "no space left on the disk",
            where=str(place),
            mend="free some space and run the same command again: finished steps are kept",
        )
    if number in _NOT_WRITABLE:
        return UserError(f"cannot be read or written ({os.strerror(number)})", where=str(place))
    return None


def _remote_error(error: Exception, place: Place) -> TamisError | None:
    cause = _says_why(error) or error
    kind = type(cause)
    said = f"{kind.__name__}: {_plain(str(cause))}" if str(cause).strip() else kind.__name__
    where = shown(place)
    if kind.__name__ == "FileExpired":
        return RunError(
            "the file changed while it was read", where=where, mend="run the same command again"
        )
    if isinstance(cause, FileNotFoundError):
        if _no_bucket(cause):
            return UserError("there is no such bucket", where=where, mend="check its name")
        return UserError("there is no such file", where=where, mend="check the path")
    if _refuses(cause, place):
        return UserError(
            f"access refused ({said})",
            where=where,
            mend="check the credentials in the environment and what they allow",
        )
    if isinstance(cause, ValueError) and "range requests" in str(cause):
        return UserError("the server gives no parts of a file", where=where, mend="download it")
    if isinstance(cause, OSError | TimeoutError) or _of_library(kind):
        return UnreachableError(
            f"the place does not answer as it should ({said})",
            where=where,
            mend="run the same command again: finished steps are kept",
        )
    return None


def _refuses(error: BaseException, place: Place) -> bool:
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return True
    if status is not None or isinstance(error, ConnectionError | TimeoutError):
        return False
    known = isinstance(error, OSError) or _of_library(type(error))
    text = f"{type(error).__name__} {error}".replace(
        str(place).partition("://")[2], ""
    )  # whose words say nothing
    return known and _REFUSED.search(text) is not None


def _no_bucket(error: FileNotFoundError) -> bool:
    return "bucket does not exist" in str(error)


def _says_why(error: BaseException) -> BaseException | None:
    """fsspec reports every failure over HTTP as a missing file, with the true one as its cause."""
    cause = error.__cause__
    over_http = cause is not None and type(cause).__module__.startswith("aiohttp")
    return cause if over_http and getattr(cause, "status", None) != 404 else None


def _of_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES


def _plain(text: str) -> str:
    """First line of a message without the query of a URL in it."""
    return re.sub(r"\?[^\s\"']*", "?***", text.strip().splitlines()[0])
