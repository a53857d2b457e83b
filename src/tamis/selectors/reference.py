"""Another corpus that the rows are held against: a benchmark, yesterday's data, a target set."""

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tamis.scoring.evaluate import Evaluated, evaluate
from tamis.scoring.operator import RowScorer
from tamis.selectors.table import Table
from tamis.storage.corpus import Corpus
from tamis.storage.errors import UserError
from tamis.storage.files import digest_of
from tamis.storage.ingest import open_corpus
from tamis.storage.places import Place, shown
from tamis.storage.rows import Identify, identify
from tamis.storage.tasks import Runner, Threads


class Reference(BaseModel):
    """Names a reference in the parameters of an operator.

    Its files are part of the operator's key by their digest, which `resolve` fills in. Its
    signals lie in the run's workspace and are computed once for every file.
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
        digest = digest_of([found.digest for found in corpus.inputs])
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
        return self.model_copy(update={"digest": digest})

    def table(self, table: Table) -> Table:
        """Its rows that have a text, in the workspace and with the runner of a run's table."""
        corpus = self._open(table.workspace, table.runner)
        task = Identify(
            shards=corpus.keep(table.workspace / "orders"),
            folder=str(table.workspace / "ids"),
            identity=[self.id] if self.id else corpus.schema.names,
            required=[self.text],
        )
        rows = identify(
            corpus, task, table.runner, explicit_id=self.id is not None, on_duplicate_id="copy"
        )
        kept = ~rows.unusable
        return Table(
            corpus=corpus,
            rows=rows,
            kept=kept,
            positions=np.flatnonzero(kept),
            columns={"text": self.text},
            rewritten={},
            scores={},
            workspace=table.workspace,
            runner=table.runner,
            progress=table.progress,
        )

    def _columns(self) -> list[str | None]:
        """Columns that it must have, where they are named."""
        return [self.text, self.id]

    def _open(self, workspace: Place, runner: Runner) -> Corpus:
        return open_corpus(self.path, workspace, runner, format=self.format)


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
    )
    scores: dict[str, Evaluated] = {
        **table.scores,
        **dict.fromkeys(found.operator.fields().names, found),
    }
    return Table(**{**vars(table), "scores": scores})
