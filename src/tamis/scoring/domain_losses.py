"""Losses of domains over the steps of a training, as group DRO and DoReMi read them.

A table has a row for every step and domain (columns ``step``, ``domain``, ``loss`` and, for DoReMi,
``reference``), a row for every step (``step``, ``loss_web``, ``reference_web``, …), or a row for
every document, which are folded to domains first.

Example:
    >>> import polars
    >>> table = polars.DataFrame({"step": [0, 1], "loss_web": [3.0, 2.5], "loss_code": [2.0, 1.5]})
    >>> found = losses_of(table)
    >>> found.domains, found.steps.tolist(), found.losses.tolist()
    (('code', 'web'), [0, 1], [[2.0, 3.0], [1.5, 2.5]])
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tamis.scoring.mixture_runs import LOSS, Floats, Ints, read_table
from tamis.storage.errors import UserError

if TYPE_CHECKING:
    import polars as pl

#: Prefix of the columns of a reference model's losses in a table with a row for every step.
REFERENCE = "reference_"
#: A loss above this is told: so many nats cost a guess among 4.9e8 tokens, more than any vocabulary
#: has (ours).
PLAUSIBLE = 20.0
#: No number above this is a loss, or the tokens of a document.
_LARGEST = 1e9
#: Losses of documents are summed as whole multiples of 2^-40 in 128 bits, so that no order of rows,
#: files or threads changes a sum.
_BITS = 40
_ENDINGS = (".parquet", ".csv", ".jsonl", ".ndjson")
_EXPECTED = "losses are nats a token, 0 or more (log-probabilities have the other sign)"

Missing = Literal["refuse", "carry"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table of losses.

    Attributes:
        step, domain, loss, reference: of step, domain, loss and the reference model's loss.
        tokens: of tokens of a document, which its loss is the mean over; None weighs documents
            alike.
    """

    step: str = "step"
    domain: str = "domain"
    loss: str = "loss"
    reference: str = "reference"
    tokens: str | None = None


@dataclass(frozen=True)
class DomainLosses:
    """Losses of d domains at s steps.

    Attributes:
        domains: names, sorted.
        steps: int64 [s], ascending.
        losses: float64 [s, d], 0 or more; nats a token where the published rates are to hold.
        references: the reference model's, float64 [s, d]; None where there are none.
        excess: mean of max(loss - reference, 0), float64 [s, d]. It is taken document by document
            where documents were given, else of the domain's mean losses.
        rows: documents by domain, where documents were given.
        notes: what a reader must know.
    """

    domains: tuple[str, ...]
    steps: Ints
    losses: Floats
    references: Floats | None = None
    excess: Floats | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def against(self, reference: "DomainLosses") -> "DomainLosses":
        """The same with the losses of a reference model from a table of its own.

        Its losses at one step hold for all steps; else it must have every step.

        Raises:
            UserError: if its domains are others, or steps are missing.
        """
        other = set(self.domains) ^ set(reference.domains)
        if other:
            raise UserError(
                f"domains that only one of the two tables has: {', '.join(sorted(other))}",
                mend="both models' losses are needed of the same domains",
            )
        if len(reference.steps) == 1:
            found = np.repeat(reference.losses, len(self.steps), axis=0)
        else:
            lacking = np.setdiff1d(self.steps, reference.steps)
            if len(lacking):
                raise UserError(
                    f"the reference has no losses at step {lacking[0]} and {len(lacking) - 1} "
                    "others",
                    mend="give them at the same steps, or at one step that holds for all",
                )
            found = reference.losses[np.searchsorted(reference.steps, self.steps)]
        return replace(
            self,
            references=found,
            excess=np.maximum(self.losses - found, 0),
            notes=self.notes + tuple(f"reference: {note}" for note in reference.notes),
        )


def read_losses(
    path: str | Path,
    *,
    columns: Columns | None = None,
    missing: Missing = "refuse",
    documents: bool = False,
) -> DomainLosses:
    """Losses from Parquet, CSV or JSON lines; of documents also from a folder or glob.

    Raises:
        UserError: for a file that is not there or cannot be read, and as `losses_of`.
    """
    import polars as pl

    columns = columns or Columns()
    table = _scan(str(path)) if documents else read_table(path).lazy()
    try:
        return _losses_of(table, columns, missing, documents)
    except pl.exceptions.PolarsError as error:
        raise UserError(str(error).splitlines()[0], where=str(path)) from error
    except UserError as error:
        if error.where:
            raise
        raise UserError(error.what, where=str(path), mend=error.mend) from None


def losses_of(
    table: Any,
    *,
    columns: Columns | None = None,
    missing: Missing = "refuse",
    documents: bool = False,
) -> DomainLosses:
    """Losses from a table: polars, pandas or Arrow.

    Args:
        missing: a domain without loss at a step is an error, or its last one is carried on, as
            DoReMi's public code does for a domain that a batch does not hold.
        documents: rows are documents, whose mean is taken by step and domain; without a column of
            steps they all are of one. Rows without loss are left out and told.

    Raises:
        UserError: if a column is not there or no number; for NaN, infinities, losses below 0 and
            steps that are not whole; for a loss that is there twice, and one that is missing.
    """
    import polars as pl

    frame = table if isinstance(table, pl.LazyFrame | pl.DataFrame) else pl.DataFrame(table)
    return _losses_of(frame.lazy(), columns or Columns(), missing, documents)


def _losses_of(
    table: "pl.LazyFrame", columns: Columns, missing: Missing, documents: bool
) -> DomainLosses:
    if documents:
        cells = _folded(table, columns)
    elif columns.domain in table.collect_schema():
        cells = _long(table, columns)
    else:
        cells = _wide(table, columns)
    return _grid(cells, missing)


def _scan(path: str) -> "pl.LazyFrame":
    """Files of one format as one table."""
    import polars as pl

    from tamis.storage.inputs import find_files
    from tamis.storage.tables import scan

    # A dataset's folder holds a card beside its data.
    files = [file for file in find_files(path) if file.suffix in _ENDINGS]
    endings = sorted({file.suffix for file in files})
    if not files or len(endings) > 1:
        raise UserError(
            f"files that end in {', '.join(endings)}" if files else "no table among the files",
            where=path,
            mend=f"give files of one kind of {', '.join(_ENDINGS)}",
        )
    if endings == [".parquet"]:
        return scan(files)
    local = [str(file) for file in files]
    return pl.scan_csv(local) if endings == [".csv"] else pl.scan_ndjson(local)


def _long(table: "pl.LazyFrame", columns: Columns) -> "pl.DataFrame":
    """Cells of a table with a row for every step and domain."""
    schema = _having(table, columns.step, columns.domain, columns.loss)
    wanted = [_step(columns, schema), _domain(columns), _number(columns.loss, schema, "loss")]
    if columns.reference in schema:
        wanted.append(_number(columns.reference, schema, "reference"))
    return table.select(wanted).collect()


def _wide(table: "pl.LazyFrame", columns: Columns) -> "pl.DataFrame":
    """Cells of a table with a row for every step and a column for every domain."""
    import polars as pl

    schema = table.collect_schema()
    domains = [name.removeprefix(LOSS) for name in schema.names() if name.startswith(LOSS)]
    if not domains:
        raise UserError(
            f"no column {columns.domain!r}, and none that starts with {LOSS!r}",
            mend=f"there: {', '.join(schema.names())}",
        )
    _having(table, columns.step)
    referred = {n.removeprefix(REFERENCE) for n in schema.names() if n.startswith(REFERENCE)}
    for other in sorted(referred ^ set(domains)) if referred else ():
        lacking = (REFERENCE if other in domains else LOSS) + other
        raise UserError(f"no column {lacking!r}", mend="both models' losses are needed")
    frame = table.with_columns(_step(columns, schema)).collect()
    parts = []
    for domain in domains:
        wanted = ["step", pl.lit(domain).alias("domain"), _number(LOSS + domain, schema, "loss")]
        if referred:
            wanted.append(_number(REFERENCE + domain, schema, "reference"))
        parts.append(frame.select(wanted))
    return pl.concat(parts)


def _folded(table: "pl.LazyFrame", columns: Columns) -> "pl.DataFrame":
    """Cells of a table with a row for every document, in one pass over them."""
    import polars as pl

    schema = _having(table, columns.domain, columns.loss)
    wanted = {"loss": columns.loss}
    if columns.reference in schema:
        wanted["reference"] = columns.reference
    if columns.tokens is not None:
        _having(table, columns.tokens)
        wanted["tokens"] = columns.tokens
    given = [_number(column, schema, name) for name, column in wanted.items()]
    given.append(_step(columns, schema) if columns.step in schema else pl.lit(0.0).alias("step"))
    rows = table.select(_domain(columns), *given)
    losses = [name for name in wanted if name != "tokens"]
    scored = pl.col("loss").is_not_null()
    sound = [pl.col(*losses).is_between(0, _LARGEST)]
    sums = {name: pl.col(name) for name in losses}
    if "reference" in wanted:
        sums["excess"] = (pl.col("loss") - pl.col("reference")).clip(0)
    if "tokens" in wanted:
        sound.append(pl.col("tokens").is_between(1, _LARGEST))
        sums = {name: value * pl.col("tokens") for name, value in sums.items()}
        sums["tokens"] = pl.col("tokens")
    usable = scored & pl.all_horizontal(sound).fill_null(False)
    found = (
        rows.select(
            *("step", "domain", scored.alias("rows"), usable.alias("usable")),
            *(
                pl.when(usable)
                .then(value * 2.0**_BITS)
                .otherwise(0.0)
                .round()
                .cast(pl.Int128)
                .alias(name)
                for name, value in sums.items()
            ),
        )
        .group_by("step", "domain")
        .agg(pl.len().alias("all"), pl.col("rows", "usable", *sums).sum())
        .with_columns(unscored=pl.col("all") - pl.col("rows"))
        .sort("step", "domain")
        .collect(engine="streaming")
    )
    if unsound := int(found.select(pl.col("rows").sum() - pl.col("usable").sum()).item()):
        row = rows.filter(scored & ~usable).sort("domain", *wanted).head(1).collect()
        said = ", ".join(f"{column} {row[name][0]}" for name, column in wanted.items())
        raise UserError(
            f"{unsound:,} documents cannot be used; one of {row['domain'][0]!r} has {said}",
            mend=f"{_EXPECTED}; a document has 1 token or more",
        )
    if "tokens" in wanted:
        weights = found["tokens"].to_list()
    else:
        weights = [count << _BITS for count in found["rows"].to_list()]
    # The quotient of whole numbers is the nearest float; a cell without any is missing.
    means = {
        name: [s / w if w else None for s, w in zip(found[name].to_list(), weights, strict=True)]
        for name in sums
        if name != "tokens"
    }
    return found.select("step", "domain", "rows", "unscored").with_columns(
        *(pl.Series(name, values, pl.Float64) for name, values in means.items())
    )


def _grid(cells: "pl.DataFrame", missing: Missing) -> DomainLosses:
    """Cells as losses by step and domain."""
    import polars as pl

    if not len(cells):
        raise UserError("no losses", mend="the table has no rows")
    counts = [name for name in ("rows", "unscored") if name in cells.columns]
    without = cells.filter(pl.col("domain").is_null())
    if nameless := int(sum(without[name].sum() for name in counts) if counts else len(without)):
        raise UserError(f"{nameless:,} rows have no domain", mend="name it, or leave them out")
    whole = (pl.col("step") == pl.col("step").round()) & (pl.col("step").abs() < 2**53)
    for step in cells.filter(~whole.fill_null(False))["step"].head(1):
        raise UserError(f"step {step}: expected a whole number")
    cells = cells.sort("step", "domain")
    double = cells.select(pl.struct("step", "domain").is_duplicated()).to_series()
    for name, step in cells.filter(double).select("domain", "step").head(1).iter_rows():
        raise UserError(
            f"step {step:g} has more than one loss of {name!r}",
            mend="remove what is double; if rows are documents, say so (--documents)",
        )
    steps, row = np.unique(cells["step"].cast(pl.Int64).to_numpy(), return_inverse=True)
    names, column = np.unique(cells["domain"].to_numpy().astype(str), return_inverse=True)
    domains = tuple(map(str, names))
    grids = {}
    for name in ("loss", "reference", "excess"):
        if name in cells.columns:
            values = cells[name].to_numpy()
            wrong = ~cells[name].is_null().to_numpy() & ~((values >= 0) & (values <= _LARGEST))
            for place in np.flatnonzero(wrong)[:1]:
                where = f"step {steps[row[place]]}: the {name} of {domains[column[place]]!r}"
                raise UserError(f"{where} is {values[place]:g}", mend=_EXPECTED)
            grids[name] = np.full((len(steps), len(domains)), np.nan)
            grids[name][row, column] = values
    notes = []
    for name, grid in grids.items():
        for at, place in np.argwhere(np.isnan(grid))[: missing == "refuse"]:
            others = int(np.isnan(grid).sum()) - 1
            raise UserError(
                f"step {steps[at]} has no {name} of {domains[place]!r}"
                + (f" ({others:,} more are missing)" if others else ""),
                mend="measure it, or carry the last one on (--missing carry)",
            )
    gaps = np.any([np.isnan(grid) for grid in grids.values()], axis=0)
    if gaps.any():
        for place in np.flatnonzero(gaps[0])[:1]:
            raise UserError(
                f"the first step, {steps[0]}, has no loss of {domains[place]!r} to carry on",
                mend="measure it, or begin where all domains have been seen",
            )
        last = np.maximum.accumulate(np.where(gaps, 0, np.arange(len(steps))[:, None]), axis=0)
        grids = {name: np.take_along_axis(grid, last, axis=0) for name, grid in grids.items()}
        notes.append(
            f"{int(gaps.sum()):,} of {gaps.size:,} losses are missing: the last is carried on"
        )
    if (highest := float(grids["loss"].max())) > PLAUSIBLE:
        notes.append(
            f"a loss of {highest:.4g}: more than a guess among all tokens costs. Nats a token are "
            "expected: divide sums over tokens by their number, multiply bits by 0.6931"
        )
    rows: dict[str, int] = {}
    if counts:
        by_domain = cells.group_by("domain").agg(pl.col(counts).sum()).sort("domain")
        rows = dict(zip(by_domain["domain"].to_list(), by_domain["rows"].to_list(), strict=True))
        if unscored := int(by_domain["unscored"].sum()):
            share = unscored / (unscored + sum(rows.values()))
            notes.append(f"{unscored:,} documents without loss are left out ({share:.1%})")
    found = DomainLosses(domains, steps, grids["loss"], rows=rows, notes=tuple(notes))
    if "reference" not in grids:
        return found
    excess = grids.get("excess", np.maximum(grids["loss"] - grids["reference"], 0))
    return replace(found, references=grids["reference"], excess=excess)


def _having(table: "pl.LazyFrame", *names: str) -> "pl.Schema":
    """The table's columns, after a check that some are there."""
    schema = table.collect_schema()
    for name in names:
        if name not in schema:
            raise UserError(f"no column {name!r}", mend=f"there: {', '.join(schema.names())}")
    return schema


def _number(column: str, schema: "pl.Schema", name: str) -> "pl.Expr":
    """A column as float64, under another name."""
    import polars as pl

    if not schema[column].is_numeric():
        raise UserError(f"column {column!r} holds {schema[column]}, not numbers")
    return pl.col(column).cast(pl.Float64).alias(name)


def _step(columns: Columns, schema: "pl.Schema") -> "pl.Expr":
    return _number(columns.step, schema, "step")


def _domain(columns: Columns) -> "pl.Expr":
    import polars as pl

    return pl.col(columns.domain).cast(pl.String).alias("domain")
