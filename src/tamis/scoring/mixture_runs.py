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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from tamis.storage.errors import UserError
from tamis.storage.files import digest_of
from tamis.storage.mixture_plan import ROUNDING

if TYPE_CHECKING:
    from polars import DataFrame

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

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
    shares, _ = _proportions(shares, tuple(domains))
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
    """A table of runs: Parquet, CSV, or JSON lines, by the file's ending.

    Raises:
        UserError: if there is no such file, or it cannot be read as that.
    """
    import polars as pl

    place = Path(path)
    readers: dict[str, Any] = {
        ".parquet": pl.read_parquet,
        ".csv": pl.read_csv,
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


def check_table_target(path: str | Path) -> None:
    """Refuse to replace what is no table of runs or design.

    Raises:
        UserError: if there is a file without columns of proportions or losses.
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
    if not any(name.startswith((MIX, LOSS)) for name in names):
        raise UserError(
            f"the output is there already and no table of runs: no column starts with {MIX!r} or "
            f"{LOSS!r}",
            where=str(path),
            mend="name another file, or move that one away",
        )


def read_runs(path: str | Path, *, where: str | None = None, **names: Any) -> Runs:
    """Runs from a file; see `read_table` and `runs_of`.

    Args:
        where: condition in SQL on the table's columns that runs must meet.

    Raises:
        UserError: for what is wrong with the file, the condition or the numbers.
    """
    import polars as pl

    table = read_table(path)
    if where is not None:
        try:
            table = table.filter(pl.sql_expr(where))
        except pl.exceptions.PolarsError as error:
            said = str(error).splitlines()[0]
            raise UserError(f"{where!r}: {said}", where=str(path)) from error
        if not len(table):
            raise UserError(f"no run meets {where!r}", where=str(path))
    return runs_of(table, where=str(path), **names)


def runs_of(
    table: Any,
    *,
    mix: str | Sequence[str] = MIX,
    target: str | Sequence[str] = LOSS,
    covariates: Sequence[str] | None = None,
    where: str = "",
) -> Runs:
    """Check a table of runs and take its columns apart.

    Args:
        table: polars, pandas or Arrow.
        mix: prefix of the columns of proportions, which domains are called without, or the names
            of the columns; none where laws read no proportions.
        target: prefix or names of the columns of losses.
        covariates: further columns of numbers to keep; those of `steps`, `size` and `tokens` that
            are there, if not given.
        where: what to call the table in errors.

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
    try:
        return _checked(frame, mix, target, covariates)
    except UserError as error:
        if not where:
            raise
        raise UserError(error.what, where=where, mend=error.mend) from None


def _checked(
    frame: "DataFrame",
    mix: str | Sequence[str],
    target: str | Sequence[str],
    covariates: Sequence[str] | None,
) -> Runs:
    mixed = _columns(frame, mix, "proportions")
    targets = _columns(frame, target, "losses")
    if covariates is None:
        covariates = [name for name in COVARIATES if name in frame.columns]
    if not len(frame):
        raise UserError("no runs", mend="the table has columns and no rows")
    prefix = mix if isinstance(mix, str) else MIX
    domains = tuple(name.removeprefix(prefix) for name in mixed)
    shares = _numbers(frame, mixed)
    losses = _numbers(frame, targets)
    beside = {name: _numbers(frame, [name])[:, 0] for name in covariates}
    notes: list[str] = []
    if mixed:
        shares, notes = _proportions(shares, domains)
        for place in np.flatnonzero(~shares.any(axis=0)):
            raise UserError(
                f"domain {domains[place]!r} is in no run: nothing can be said of it",
                mend=f"leave out {mixed[place]!r}, or add runs that have it",
            )
    if len(frame) > 1:
        for place in np.flatnonzero(np.ptp(losses, axis=0) == 0):
            raise UserError(
                f"{targets[place]!r} is {losses[0, place]:g} in all {len(frame)} runs: nothing to "
                "explain",
                mend="leave it out of the targets",
            )
    _no_twins(np.column_stack([shares, losses, *beside.values()]))
    return Runs(domains, shares, beside, tuple(targets), losses, tuple(notes))


def _columns(frame: "DataFrame", given: str | Sequence[str], what: str) -> list[str]:
    """The columns of a prefix, or those named."""
    if isinstance(given, str):
        found = [name for name in frame.columns if name.startswith(given)]
        if not found:
            raise UserError(
                f"no column of {what} starts with {given!r}",
                mend=f"there: {', '.join(frame.columns)}",
            )
        return found
    for name in given:
        if name not in frame.columns:
            raise UserError(f"no column {name!r}", mend=f"there: {', '.join(frame.columns)}")
    return list(given)


def _numbers(frame: "DataFrame", names: Sequence[str]) -> Floats:
    """Columns as float64 [n, names]."""
    import polars as pl

    found = np.empty((len(frame), len(names)))
    for place, name in enumerate(names):
        column = frame[name]
        if not column.dtype.is_numeric():
            raise UserError(f"column {name!r} holds {column.dtype}, not numbers")
        values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for row in np.flatnonzero(~np.isfinite(values)):
            raise UserError(
                f"row {row + 1}: {name!r} is {column[int(row)]}",
                mend="remove the run, or measure it",
            )
        found[:, place] = values
    return found


def _proportions(shares: Floats, domains: tuple[str, ...]) -> tuple[Floats, list[str]]:
    """Proportions that sum to 1, and what was done to them."""
    for row, place in np.argwhere(~np.isfinite(shares) | (shares < 0)):
        raise UserError(
            f"row {row + 1}: the proportion of {domains[place]!r} is {shares[row, place]:g}",
            mend="proportions lie between 0 and 1",
        )
    total = shares.sum(axis=1)
    for row in np.flatnonzero(np.abs(total - 1) > ROUNDING):
        mend = f"expected 1 (within {ROUNDING:g})"
        if abs(total[row] - 100) <= 100 * ROUNDING:
            mend += "; divide percentages by 100"
        elif total[row] < 1:
            mend += "; is a domain's column missing?"
        raise UserError(f"row {row + 1}: the proportions sum to {total[row]:.6g}", mend=mend)
    # What is off by a rounding of the sum itself is no news.
    off = np.abs(total - 1) > 1e-9
    notes = []
    if off.any():
        low, high = total[off].min(), total[off].max()
        span = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        runs = "1 run" if off.sum() == 1 else f"{off.sum():,} runs"
        notes.append(f"proportions of {runs} sum to {span}: normalised")
    return shares / total[:, None], notes


def _no_twins(numbers: Floats) -> None:
    """Raise if two rows are the same in everything."""
    _, first, group = np.unique(numbers, axis=0, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[group.ravel()] != np.arange(len(numbers)))
    for row in again:
        twin = first[group.ravel()[row]]
        raise UserError(
            f"rows {twin + 1} and {row + 1} are the same run",
            mend="remove one; a repeat with another seed has losses of its own",
        )
