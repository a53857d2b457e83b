"""Python sources as a corpus: docstrings beside their code, licences, readmes, metadata.

Every machine that runs tamis has such a corpus: the interpreter's own library and the installed
distributions. It is real text with real near-duplicates (licences, vendored copies), and it can
be pointed at any source tree.
"""

import ast
import io
import re
import sysconfig
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import xxhash

from tamis.storage.blocks import BadLine, Block
from tamis.storage.errors import UserError
from tamis.storage.places import Place

SCHEMA = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("package", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("source", pa.string()),
    ]
)

#: Files whose docstrings are gathered may be this large; larger ones are tables or generated.
MAX_SOURCE_BYTES = 1 << 20
#: Rows are handed on about this many characters at a time.
BLOCK_CHARACTERS = 8 << 20

_NOTICE = re.compile(r"(licen[cs]e|copying|notice|authors|copyright)", re.IGNORECASE)
_README = re.compile(r"(readme|changelog|changes|history|news|contributing)", re.IGNORECASE)
_TEXT_ENDINGS = {"", ".txt", ".md", ".rst", ".apache", ".bsd", ".mit", ".apache2", ".psf"}
_SKIPPED = {"__pycache__", "test", "tests", "node_modules", "lib2to3"}

Row = dict[str, str | None]


class SourceTree(ABC):
    """What the readers of Python source trees share: the scheme alone names this interpreter."""

    scheme: ClassVar[str]
    columns: ClassVar[pa.Schema]

    @abstractmethod
    def rows_of(self, path: Path, root: Path) -> Iterator[Row]:
        """The rows of one file of a tree.

        Raises:
            SyntaxError, ValueError, RecursionError: if it is not Python source.
        """

    def files(self, path: str) -> list[Place]:
        if path == self.scheme:
            places = sysconfig.get_paths()
            roots = {Path(places[key]) for key in ("stdlib", "purelib", "platlib")}
            return sorted(root for root in roots if root.is_dir())
        root = Path(path.removeprefix(self.scheme)).expanduser()
        if not root.is_dir():
            raise UserError("not a folder", where=str(root), mend="give the root of a source tree")
        return [root]

    def schema(self, files: Sequence[Place], workers: int) -> pa.Schema:
        return self.columns

    def digest(self, root: Place) -> str:
        """Names, sizes and times of the files that would be gathered."""
        state = xxhash.xxh3_128()
        for file in _walk(_local(root)):
            found = file.stat()
            line = f"{file.relative_to(_local(root))}\0{found.st_size}\0{found.st_mtime_ns}\n"
            state.update(line.encode("utf-8", "surrogateescape"))
        return state.hexdigest()

    def blocks(self, file: Place, schema: pa.Schema) -> Iterator[Block]:
        rows: list[Row] = []
        bad: list[BadLine] = []
        size = total = 0
        root = _local(file)
        for path in _walk(root):
            try:
                found = list(self.rows_of(path, root))
            except (SyntaxError, ValueError, RecursionError) as error:
                reason = f"{path}: not Python source ({error})"
                bad.append(BadLine(getattr(error, "lineno", None) or 1, reason, b""))
                continue
            rows += found
            size += sum(len(value or "") for row in found for value in row.values())
            if size > BLOCK_CHARACTERS:
                yield self._block(rows, bad, total)
                total += len(rows)
                rows, bad, size = [], [], 0
        yield self._block(rows, bad, total)

    def _block(self, rows: list[Row], bad: list[BadLine], before: int) -> Block:
        numbers = pa.array(range(before + 1, before + len(rows) + 1), pa.int64())
        return Block(pa.Table.from_pylist(rows, self.columns), numbers, bad)


class PythonSource(SourceTree):
    """Reader of Python source trees.

    ``python:`` gathers from the interpreter that runs tamis, ``python:FOLDER`` (or a folder with
    ``format: python``) from a tree. A row is a docstring (``kind`` module, class or function,
    the latter two with ``source``), a notice, a readme, or a distribution's metadata; ``package``
    is the top-level folder it is in.
    """

    scheme = "python:"
    columns = SCHEMA

    def rows_of(self, path: Path, root: Path) -> Iterator[Row]:
        shared = shared_columns(path, root)
        kind = _kind(path)
        if kind != "source":
            text = path.read_bytes().decode("utf-8", "replace").strip()
            if text:
                yield {"text": text, "kind": kind, "name": path.name, "source": None, **shared}
            return
        for node, name, doc, lines in documented(path):
            source = None
            if not isinstance(node, ast.Module):
                source = "".join(lines[node.lineno - 1 : node.end_lineno])
            found: Row = {"text": doc, "kind": _NODE_KIND[type(node)], "name": name}
            yield found | {"source": source} | shared


def source_files(root: Place) -> Iterator[Path]:
    """The files of a tree that rows come from, in the order they are read."""
    return _walk(_local(root))


def _local(root: Place) -> Path:
    assert isinstance(root, Path), "source trees are read on this machine only"
    return root


def _walk(root: Path) -> Iterator[Path]:
    """Files to look at, in a fixed order; installed packages below a library are left to them."""
    for entry in sorted(root.iterdir()):
        if entry.is_symlink() or entry.name in _SKIPPED or entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name != "site-packages":
                yield from _walk(entry)
        elif _kind(entry) is not None and entry.stat().st_size <= MAX_SOURCE_BYTES:
            yield entry


def _kind(path: Path) -> str | None:
    if path.suffix == ".py":
        return "source"
    if path.name in ("METADATA", "PKG-INFO"):
        return "metadata"
    if path.suffix.lower() not in _TEXT_ENDINGS:
        return None
    if _NOTICE.match(path.name):
        return "notice"
    return "readme" if _README.match(path.name) else None


def shared_columns(path: Path, root: Path) -> Row:
    """Where a row of a file of a tree is from: ``package`` and ``path``."""
    relative = path.relative_to(root)
    package = relative.parts[0].removesuffix(".py").split("-")[0]
    return {"package": package, "path": str(relative)}


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_NODE_KIND = {
    ast.Module: "module",
    ast.ClassDef: "class",
    ast.FunctionDef: "function",
    ast.AsyncFunctionDef: "function",
}


def documented(path: Path) -> Iterator[tuple[Documented, str, str, list[str]]]:
    """What has a docstring in a source file: the node, its dotted name, the docstring with its
    indentation removed, and the lines of the file (with their ends).

    Raises:
        SyntaxError, ValueError, RecursionError: if it is not Python source.
    """
    text = path.read_bytes().decode("utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in other people's strings
        tree = ast.parse(text)
    lines = list(io.StringIO(text, newline=""))  # as the parser counts: a form feed ends none
    for node, name in _documentable(tree, path.stem):
        doc = ast.get_docstring(node)
        if doc and doc.strip():
            doc.encode()  # an escape in it may be half a character, which no text is
            yield node, name, doc, lines


def _documentable(node: ast.AST, name: str) -> Iterator[tuple[Documented, str]]:
    """The node and the classes and functions inside it, with dotted names, in source order."""
    if isinstance(node, Documented):
        yield node, name
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documentable(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _documentable(child, name)
