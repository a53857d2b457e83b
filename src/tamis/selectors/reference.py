"""Another corpus that the rows are held against: a benchmark, yesterday's data, a target set."""

from collections.abc import Sequence
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from tamis.scoring.evaluate import Evaluated, evaluate
from tamis.scoring.operator import Operator, RowScorer
from tamis.selectors.table import Table
from tamis.storage.corpus import Corpus, Progress
from tamis.storage.errors import RunError, UserError
from tamis.storage.files import digest_of
from tamis.storage.ingest import open_corpus
from tamis.storage.inputs import is_empty_folder
from tamis.storage.places import Place, absolute, place_of, shown
from tamis.storage.rows import Identify, Rows, bad_rows, examples_of, identify
from tamis.storage.tasks import Runner, Threads

#: Share of a reference's rows that may be bad, as a recipe's max_quarantine is for its corpus.
MAX_BAD = 0.01
#: Characters of a partner's text that the ledger shows.
EXCERPT = 200


class Reference(BaseModel):
    """Names a reference in the parameters of an operator.

    Its files are part of the operator's key by their digest, which `resolve` fills in. Its
    signals lie in the run's workspace, or in its `index`, and are computed once for every file. An
    empty folder is a reference without rows: so a history may begin.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="file, folder, glob or URL of the reference")
    format: str | None = Field(default=None, description="of its files; by their endings")
    text: str = Field(default="text", description="its column that holds the text")
    id: str | None = Field(default=None, description="its column that identifies a row")
    name: str | None = Field(
        default=None, description="what the ledger calls it; its path if not given"
    )
    digest: str | None = Field(
        default=None, description="of its files; if given, others are refused"
    )
    index: str | None = Field(
        default=None,
        description="folder of its ids and signals, for several recipes to share; the run's "
        "workspace if not given",
    )
    _rows: int = PrivateAttr(default=0)
    _bytes: int = PrivateAttr(default=0)
    _files: tuple[str, ...] = PrivateAttr(default=())

    @property
    def title(self) -> str:
        """What the ledger calls it."""
        return self.name or shown(self.path)

    def resolve(self, workspace: Place) -> Self:
        """This reference with the digest of its files.

        Raises:
            UserError: if they are not there, lack the columns, or are not those it pins.
        """
        corpus = self._open(workspace, Threads(1))
        digest = _digest(corpus)
        if self.digest not in (None, digest):
            raise UserError(
                f"the reference has the digest {digest}, the recipe pins {self.digest}",
                where=shown(self.path),
                mend="restore its files, or remove `digest` from the recipe",
            )
        for column in self._columns():
            if column is not None and column not in corpus.schema.names:
                raise UserError(
                    f"the reference has no column {column!r}",
                    where=shown(self.path),
                    mend=f"it has {', '.join(corpus.schema.names)}",
                )
        found = self.model_copy(update={"digest": digest})
        found._rows, found._bytes = corpus.rows, corpus.bytes
        found._files = tuple(one.path for one in corpus.inputs)
        return found

    @property
    def rows(self) -> int:
        """Its rows, known once it is resolved."""
        return self._rows

    @property
    def bytes(self) -> int:
        """Uncompressed bytes of its columns, known once it is resolved."""
        return self._bytes

    @property
    def files(self) -> tuple[str, ...]:
        """Its files, known once it is resolved."""
        return self._files

    def table(self, table: Table) -> Table:
        """Its rows that have a text, with the runner of a run's table and in its workspace."""
        return self.open(
            table.workspace,
            table.runner,
            table.progress,
            absolute(table.workspace) / "orders",
        )

    def open(
        self,
        workspace: Place,
        runner: Runner,
        progress: Progress,
        orders: Place | None = None,
    ) -> Table:
        """Its rows that have a text.

        Args:
            workspace: where its ids and signals go if it names no `index`.
            orders: folder of what workers are told; the workspace's own if not given.

        Raises:
            RunError: if its files are not those that were resolved, or too many rows are bad.
        """
        home = self._home(workspace)
        orders = orders or home / "orders"
        corpus = self._open(workspace, runner)
        if self.digest not in (None, _digest(corpus)):
            raise RunError(
                "the reference has changed since the run began",
                where=shown(self.path),
                mend="run the same command again: finished steps are kept",
            )
        task = Identify(
            shards=corpus.keep(orders),
            folder=str(home / "ids"),
            identity=[self.id] if self.id else corpus.schema.names,
            required=[self.text],
        )
        rows = identify(
            corpus, task, runner, explicit_id=self.id is not None, on_duplicate_id="copy"
        )
        self._check_bad(corpus, rows)
        kept = ~rows.unusable
        return Table(
            corpus=corpus,
            rows=rows,
            kept=kept,
            positions=np.flatnonzero(kept),
            columns={"text": self.text},
            rewritten={},
            scores={},
            workspace=home,
            runner=runner,
            progress=progress,
            orders=orders,
        )

    def _check_bad(self, corpus: Corpus, rows: Rows) -> None:
        bad, total = int(rows.unusable.sum()) + corpus.unread_rows, corpus.rows + corpus.unread_rows
        if bad <= MAX_BAD * total:
            return
        first: list[dict[str, Any]] = []
        for table in bad_rows(corpus, rows, [self.text]):
            first += table.slice(0, 3 - len(first)).to_pylist()
            if len(first) == 3:
                break
        raise RunError(
            f"{bad:,} of {total:,} rows of the reference are bad, more than {MAX_BAD:.0%}. "
            f"{examples_of(first)}",
            where=shown(self.path),
            mend="mend its files, or take these rows out of them",
        )

    def _home(self, workspace: Place) -> Place:
        return absolute(workspace if self.index is None else place_of(self.index))

    def _columns(self) -> list[str | None]:
        """Columns that it must have, where they are named."""
        return [self.text, self.id]

    def _open(self, workspace: Place, runner: Runner) -> Corpus:
        if is_empty_folder(self.path):
            names = [self.text, *([self.id] if self.id else [])]
            return Corpus(pa.schema([(name, pa.string()) for name in names]), (), ())
        return open_corpus(self.path, self._home(workspace), runner, format=self.format)


def _digest(corpus: Corpus) -> str:
    return digest_of([found.digest for found in corpus.inputs])


def left_out(references: Sequence[Reference], tables: Sequence[Table]) -> dict[str, dict[str, int]]:
    """By reference, the lines that could not be read and the rows without a text.

    Args:
        tables: of each, as `Reference.open` gives it.
    """
    found: dict[str, dict[str, int]] = {}
    for reference, table in zip(references, tables, strict=True):
        counts = found.setdefault(reference.title, {"unread": 0, "without_text": 0})
        counts["unread"] += table.corpus.unread_rows
        counts["without_text"] += int(table.rows.unusable.sum())
    return found


def told_references(stage: dict[str, Any]) -> list[dict[str, Any]]:
    """The references in a stage's parameters as JSON."""
    flat = [one for v in stage.values() for one in (v if isinstance(v, list) else [v])]
    names = {"path", "text", "digest", "index"}
    return [one for one in flat if isinstance(one, dict) and names <= one.keys()]


R = TypeVar("R", bound=Reference)


def told_apart(references: list[R]) -> list[R]:
    """The references, which must have names of their own: the ledger names them.

    Raises:
        ValueError: if two are called the same.
    """
    names = [reference.title for reference in references]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two references are called {name!r}: give each a `name` of its own")
    return references


def references_of(stage: Operator) -> list[Reference]:
    """The references among a stage's parameters."""
    values = [v for v in vars(stage).values() if v is not None]
    flat = [one for v in values for one in (v if isinstance(v, list | tuple) else [v])]
    return [one for one in flat if isinstance(one, Reference)]


def scored(table: Table, operator: RowScorer) -> Table:
    """A reference's table with the columns of an operator, computed where missing."""
    found = evaluate(
        operator,
        table.corpus,
        table.kept,
        table.columns,
        table.workspace,
        "signals",
        table.runner,
        orders=table.orders,
    )
    scores: dict[str, Evaluated] = {
        **table.scores,
        **dict.fromkeys(found.operator.fields().names, found),
    }
    return Table(**{**vars(table), "scores": scores})
