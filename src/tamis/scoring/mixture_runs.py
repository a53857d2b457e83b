"""Tables of runs: what was mixed in which proportions, and the losses that came of it.

Example:
    >>> import polars
    >>> table = polars.DataFrame(
    ...     {
    ...         "mix_web": [0.5, 0.25, 0.998],
    ...         "mix_code": [0.5, 0.75, 0.0],
    ...         "loss_web": [3.1, 3.4, 2.9],
    ...     }
    ... )
    >>> runs = runs_of(table)
    >>> runs.domains, runs.targets, runs.notes
    (('web', 'code'), ('loss_web',), ('proportions of 1 run sum to 0.998: normalised',))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from tamis.scoring.run_join import joined, listed
from tamis.storage.errors import UserError
from tamis.storage.files import digest_of
from tamis.storage.mixture_plan import ROUNDING

if TYPE_CHECKING:
    from polars import DataFrame

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: A prefix or a pattern of columns' names, or several names and patterns; ``*`` stands for any.
Columns = str | Sequence[str]

#: Prefix of the columns that hold proportions, and of those that hold losses.
MIX, LOSS = "mix_", "loss_"
#: Columns besides proportions that a law may read.
COVARIATES = ("steps", "size", "tokens")


@dataclass(frozen=True)
class Inputs:
    """What a law predicts from.

    Attributes:
        domains: names of the d domains.
        mixtures: float64 [n, d], proportions, each row of which sums to 1.
        covariates: further numbers a run, such as steps or size; float64 [n] each.
    """

    domains: tuple[str, ...]
    mixtures: Floats
    covariates: Mapping[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mixtures)

    def covariate(self, name: str) -> Floats:
        """A column besides the proportions.

        Raises:
            UserError: if there is none of that name.
        """
        try:
            return self.covariates[name]
        except KeyError:
            raise UserError(
                f"the law reads {name!r}, and the runs have no such column",
                mend=f"name it; there: {', '.join(self.covariates) or 'none'}",
            ) from None

    def take(self, rows: npt.ArrayLike) -> Self:
        """Some of the runs, by number or by mask."""
        kept = np.asarray(rows)
        return replace(
            self,
            mixtures=self.mixtures[kept],
            covariates={name: values[kept] for name, values in self.covariates.items()},
        )


@dataclass(frozen=True)
class Runs(Inputs):
    """Inputs together with the losses that were measured.

    Attributes:
        targets: names of the k losses (or accuracies).
        losses: float64 [n, k].
        notes: what was mended when the table was read.
    """

    targets: tuple[str, ...] = ()
    losses: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    notes: tuple[str, ...] = ()

    def take(self, rows: npt.ArrayLike) -> Self:
        kept = np.asarray(rows)
        return replace(super().take(kept), losses=self.losses[kept])

    def only(self, targets: Sequence[str]) -> Self:
        """The same runs with some of the targets.

        Raises:
            UserError: if one is not there.
        """
        for name in targets:
            if name not in self.targets:
                raise UserError(
                    f"no target {name!r} in the runs", mend=f"there: {', '.join(self.targets)}"
                )
        places = [self.targets.index(name) for name in targets]
        return replace(self, targets=tuple(targets), losses=self.losses[:, places])

    def groups(self) -> Ints:
        """Number of the distinct mixture a run has, in order of first appearance: int64 [n].

        Runs of one mixture, at other steps, sizes or seeds, say the same of it, so that they are
        held out together. Without domains every run is a group.
        """
        if not self.domains:
            return np.arange(len(self))
        _, first, group = np.unique(self.mixtures, axis=0, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[group.ravel()]

    def digest(self) -> str:
        """Digest of names and numbers, 32 hex digits."""
        columns = {name: values.tolist() for name, values in self.covariates.items()}
        return digest_of(
            [self.domains, self.targets, self.mixtures.tolist(), self.losses.tolist(), columns]
        )


def inputs_of(domains: Sequence[str], mixtures: npt.ArrayLike, **covariates: float) -> Inputs:
    """Mixtures to predict for, all at the same steps or size.

    Raises:
        UserError: for proportions that are negative, no numbers, or do not sum to 1.
    """
    shares = np.atleast_2d(np.asarray(mixtures, np.float64))
    if shares.shape[1] != len(domains):
        raise UserError(
            f"expected {len(domains)} proportions a mixture, found {shares.shape[1]}",
            mend=f"in the order of the domains: {', '.join(domains)}",
        )
    shares, _ = _proportions(shares, tuple(domains), np.arange(1, len(shares) + 1))
    columns = {name: np.full(len(shares), float(value)) for name, value in covariates.items()}
    return Inputs(tuple(domains), shares, columns)


def covariate_inputs(**columns: npt.ArrayLike) -> Inputs:
    """Inputs of a law that reads no proportions, such as a ladder's sizes and tokens.

    Example:
        >>> len(covariate_inputs(size=[1e8, 1e9], tokens=[2e9, 2e10]))
        2
    """
    values = {name: np.atleast_1d(np.asarray(v, np.float64)) for name, v in columns.items()}
    rows = {len(v) for v in values.values()}
    if len(rows) != 1:
        raise UserError(f"columns of one length are expected, found {sorted(rows)}")
    return Inputs((), np.zeros((rows.pop(), 0)), values)


def read_table(path: str | Path) -> "DataFrame":
    """A table of runs: Parquet, CSV, TSV, or JSON lines, by the file's ending.

    Raises:
        UserError: if there is no such file, or it cannot be read as that.
    """
    import polars as pl

    place = Path(path)
    readers: dict[str, Any] = {
        ".parquet": pl.read_parquet,
        # All rows tell a column's type: the first hundred proportions may well be 0.
        ".csv": partial(pl.read_csv, infer_schema_length=None),
        ".tsv": partial(pl.read_csv, infer_schema_length=None, separator="\t"),
        ".jsonl": pl.read_ndjson,
        ".ndjson": pl.read_ndjson,
    }
    if not place.is_file():
        raise UserError("no such file", where=str(path), mend="check the path of the runs")
    if place.suffix not in readers:
        raise UserError(
            f"cannot tell the format of {place.suffix or 'a file without ending'!r}",
            where=str(path),
            mend=f"one of {', '.join(readers)}",
        )
    try:
        table: pl.DataFrame = readers[place.suffix](place)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(str(error).splitlines()[0], where=str(path)) from error
    return table


def check_table_target(path: str | Path, *, design: bool = False) -> None:
    """Refuse to replace what is no table of runs, or for a design what runs have gone into.

    Raises:
        UserError: if there is a file without columns of proportions or losses; for a design also
            if it has losses.
    """
    import polars as pl

    place = Path(path)
    if not place.exists():
        return
    scans: dict[str, Any] = {".parquet": pl.scan_parquet, ".csv": pl.scan_csv}
    try:
        names = scans.get(place.suffix, pl.scan_ndjson)(place).collect_schema().names()
    except (pl.exceptions.PolarsError, OSError):
        names = []
    mend = "name another file, or move that one away"
    if not any(name.startswith((MIX, LOSS)) for name in names):
        raise UserError(
            f"the output is there already and no table of runs: no column starts with {MIX!r} or "
            f"{LOSS!r}",
            where=str(path),
            mend=mend,
        )
    losses = [name for name in names if name.startswith(LOSS)]
    if design and losses:
        raise UserError(
            f"the output is there already and holds the results of runs ({losses[0]!r})",
            where=str(path),
            mend=mend,
        )


def read_runs(
    path: str | Path,
    *,
    join: Sequence[str | Path] = (),
    where: str | None = None,
    mix: Columns = MIX,
    target: Columns = LOSS,
    covariates: Sequence[str] | None = None,
) -> Runs:
    """Runs from a file, or from several of the same runs; see `read_table` and `runs_of`.

    Args:
        join: further tables, joined by all columns that they share with those before. Proportions
            are then looked for in the first table only, and neither they nor losses among the
            columns joined by.
        where: condition in SQL on the table's columns that runs must meet.

    Raises:
        UserError: for what is wrong with a file, the condition or the numbers.
    """
    import polars as pl

    tables = [(Path(place).name, read_table(place)) for place in (path, *join)]
    table, keys = joined(tables)
    row = np.arange(1, len(table) + 1)
    if where is not None:
        try:
            kept = table.select(pl.sql_expr(where)).to_series().fill_null(False)
            table, row = table.filter(kept), row[kept.to_numpy()]
        except pl.exceptions.PolarsError as error:
            said = str(error).splitlines()[0]
            raise UserError(f"{where!r}: {said}", where=str(path)) from error
        if not len(table):
            raise UserError(f"no run meets {where!r}", where=str(path))
    try:
        own = [name for name in tables[0][1].columns if name in table.columns and name not in keys]
        mixed = _columns(own, mix, "proportions", short=True)
        other = [name for name in table.columns if name not in (*keys, *mixed)]
        losses = _columns(other, target, "losses")
        found = _checked(table, mixed, losses, covariates, row)
    except UserError as error:
        raise UserError(error.what, where=str(path), mend=error.mend) from None
    if not join:
        return found
    others = " and ".join(name for name, _ in tables[1:])
    note = f"{len(row):,} runs of {tables[0][0]}, joined with {others} by {', '.join(keys)}"
    return replace(found, notes=(note, *found.notes))


def runs_of(
    table: Any,
    *,
    mix: Columns = MIX,
    target: Columns = LOSS,
    covariates: Sequence[str] | None = None,
) -> Runs:
    """Check a table of runs and take its columns apart.

    Args:
        table: polars, pandas or Arrow.
        mix: the columns of proportions: a prefix, which domains are called without; a pattern, of
            whose columns domains are called as what its ``*`` stands for; or names and patterns.
            None where laws read no proportions.
        target: prefix, pattern, or names of columns of losses, which keep their prefix.
        covariates: further columns of numbers to keep; those of `steps`, `size` and `tokens` that
            are there, if not given.

    Returns:
        The runs, their proportions divided by their sums where these were 1 but for rounding,
        which `notes` tells.

    Raises:
        UserError: if a column is not there or no number; for nulls, NaN, infinities and negative
            proportions; for proportions far from 1; for a domain or a loss that never changes; for
            a run that is there twice. It says which row, counted from 1.
    """
    import polars as pl

    frame = table if isinstance(table, pl.DataFrame) else pl.DataFrame(table)
    mixed = _columns(frame.columns, mix, "proportions", short=True)
    losses = _columns([c for c in frame.columns if c not in mixed], target, "losses")
    return _checked(frame, mixed, losses, covariates, np.arange(1, len(frame) + 1))


def _columns(
    there: Sequence[str], given: Columns, what: str, *, short: bool = False
) -> dict[str, str]:
    """Columns of a prefix, a pattern, or several names and patterns; with what they are called.

    Args:
        short: prefixes, and `MIX`, are no part of it.
    """
    found: dict[str, str] = {}
    for entry in [given] if isinstance(given, str) else given:
        if entry in there:
            found[entry] = entry.removeprefix(MIX) if short else entry
            continue
        mend = f"there: {listed(there)}"
        head, star, tail = entry.partition("*")
        if not star and not isinstance(given, str):
            raise UserError(f"no column {entry!r}", mend=mend)
        hits = [
            name
            for name in there
            if len(name) > len(head) + len(tail) and name.startswith(head) and name.endswith(tail)
        ]
        if not hits:
            like = "is like" if star else "is or starts with"
            raise UserError(f"no column of {what} {like} {entry!r}", mend=mend)
        for name in hits:
            found[name] = name[len(head) : len(name) - len(tail)] if star or short else name
    called = list(found.values())
    for name, own in found.items():
        if called.count(own) > 1:
            raise UserError(
                f"{name!r} would be called {own!r}, as another column of {what} is",
                mend="give a pattern that keeps them apart, or the columns' names",
            )
    return found


def _checked(
    frame: "DataFrame",
    mixed: Mapping[str, str],
    losses: Mapping[str, str],
    covariates: Sequence[str] | None,
    row: Ints,
) -> Runs:
    """The runs of some columns; `row` is what number errors call each by."""
    if covariates is None:
        covariates = [name for name in COVARIATES if name in frame.columns]
    for name in covariates:
        if name not in frame.columns:
            raise UserError(f"no column {name!r}", mend=f"there: {listed(frame.columns)}")
    if not len(frame):
        raise UserError("no runs", mend="the table has columns and no rows")
    domains, targets = tuple(mixed.values()), tuple(losses.values())
    shares = _numbers(frame, list(mixed), row)
    measured = _numbers(frame, list(losses), row)
    beside = {name: _numbers(frame, [name], row)[:, 0] for name in covariates}
    notes: list[str] = []
    if mixed:
        shares, notes = _proportions(shares, domains, row)
        some = np.flatnonzero(shares.any(axis=0))
        if len(some) < len(domains):
            absent = [domains[place] for place in np.flatnonzero(~shares.any(axis=0))]
            notes.append(f"left out, as no run has any of them: {listed(absent)}")
            shares, domains = shares[:, some], tuple(domains[place] for place in some)
    if len(frame) > 1:
        for place in np.flatnonzero(np.ptp(measured, axis=0) == 0):
            raise UserError(
                f"{targets[place]!r} is {measured[0, place]:g} in all {len(frame)} runs: nothing "
                "to explain",
                mend="leave it out of the targets",
            )
    _no_twins(np.column_stack([shares, measured, *beside.values()]), row)
    return Runs(domains, shares, beside, targets, measured, tuple(notes))


def _numbers(frame: "DataFrame", names: Sequence[str], row: Ints) -> Floats:
    """Columns as float64 [n, names]."""
    import polars as pl

    found = np.empty((len(frame), len(names)))
    for place, name in enumerate(names):
        column = frame[name]
        if not column.dtype.is_numeric():
            words = (
                column.is_not_null()
                & column.cast(pl.String, strict=False).cast(pl.Float64, strict=False).is_null()
            )
            for at in np.flatnonzero(words.to_numpy()):
                raise UserError(
                    f"row {row[at]}: {name!r} is {column[int(at)]!r}, which is no number",
                    mend="remove the run, or measure it",
                )
            raise UserError(f"column {name!r} holds {column.dtype}, not numbers")
        numbers = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for at in np.flatnonzero(~np.isfinite(numbers)):
            value = column[int(at)]
            raise UserError(
                f"row {row[at]}: {name!r} is {'missing' if value is None else value}",
                mend="remove the run, or measure it",
            )
        found[:, place] = numbers
    return found


def _proportions(shares: Floats, domains: tuple[str, ...], row: Ints) -> tuple[Floats, list[str]]:
    """Proportions that sum to 1, and what was done to them."""
    for at, place in np.argwhere(~np.isfinite(shares) | (shares < 0)):
        raise UserError(
            f"row {row[at]}: the proportion of {domains[place]!r} is {shares[at, place]:g}",
            mend="proportions lie between 0 and 1",
        )
    total = shares.sum(axis=1)
    off = np.abs(total - 1) > ROUNDING
    for at in np.flatnonzero(off):
        mend = f"expected 1 (within {ROUNDING:g})"
        if abs(total[at] - 100) <= 100 * ROUNDING:
            mend += "; divide percentages by 100"
        elif total[at] < 1:
            mend += "; is a domain's column missing?"
        mend += "; `--where` leaves runs out"
        others = f", and those of {off.sum() - 1:,} more runs not to 1" if off.sum() > 1 else ""
        raise UserError(f"row {row[at]}: the proportions sum to {total[at]:.6g}{others}", mend=mend)
    # What is off by a rounding of the sum itself is no news.
    off = np.abs(total - 1) > 1e-9
    notes = []
    if off.any():
        low, high = total[off].min(), total[off].max()
        span = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        runs = "1 run" if off.sum() == 1 else f"{off.sum():,} runs"
        notes.append(f"proportions of {runs} sum to {span}: normalised")
    return shares / total[:, None], notes


def _no_twins(numbers: Floats, row: Ints) -> None:
    """Raise if two rows are the same in everything."""
    _, first, group = np.unique(numbers, axis=0, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[group.ravel()] != np.arange(len(numbers)))
    for at in again:
        twin = first[group.ravel()[at]]
        raise UserError(
            f"rows {row[twin]} and {row[at]} are the same run",
            mend="remove one; a repeat with another seed has losses of its own",
        )
