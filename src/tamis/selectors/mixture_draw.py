"""Drawing a dataset in given proportions of domains."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BeforeValidator, Field, model_validator

from tamis.selectors.budgets import draws, numbers_of
from tamis.selectors.drawing import Float64s, Int32s, Line, domain_order
from tamis.selectors.marker import Marker
from tamis.selectors.table import Table, as_floats, is_number
from tamis.selectors.table_scorer import Scores
from tamis.storage.corpus import BATCH_ROWS
from tamis.storage.errors import RunError, UserError
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import DROPPED
from tamis.storage.mixture_plan import MixturePlan, check_plan, load_plan
from tamis.storage.places import Place

#: Why rows are not drawn: their domain's amount was reached before them, they have no domain or no
#: size, or their domain has no share.
REACHED, NO_DOMAIN, NO_SIZE, LEFT_OUT = REASONS = ("", "no_domain", "no_size", "left_out")
_DRAWN = -1
#: What of an amount may be the rounding of floats, by its own share.
_CLOSE = 1e-9
#: Domains that a message names, and characters of a name: a wrong column may hold whole texts.
_NAMED = 5
_SHOWN = 40
#: How less is drawn than is asked, said so that it helps in a recipe and on the command line.
_FEWER = "draw what there is (`shortfall: fewer` in a recipe, `--shortfall fewer` of a command)"


def _inline(value: Any) -> Any:
    """Proportions written in the recipe itself."""
    if isinstance(value, Mapping):
        try:
            return check_plan(dict(value), "")
        except UserError as error:
            raise ValueError(error.what) from None
    return value


@dataclass(frozen=True)
class _Stock:
    """What there is of the domains of a mixture.

    Attributes:
        names: domains of the mixture.
        size: float64 [rows], how much each row of the table counts; nan where it is not known.
        order: rows that can be drawn, by domain and then as they are drawn.
        begin: int64 [domains + 1], where in `order` each domain begins.
        reason: int8 [rows], why a row cannot be drawn: place in `REASONS`, `_DRAWN` for none.
    """

    names: tuple[str, ...]
    size: Float64s
    order: Int64s
    begin: Int64s
    reason: npt.NDArray[np.int8]

    def rows(self, domain: int) -> Int64s:
        """Rows of a domain, as they are drawn."""
        return self.order[self.begin[domain] : self.begin[domain + 1]]

    def line(self, domain: int) -> Line:
        return Line(np.cumsum(self.size[self.rows(domain)]))

    @cached_property
    def counts(self) -> Int64s:
        """int64 [domains], rows that can be drawn."""
        return np.diff(self.begin)

    @cached_property
    def there(self) -> Float64s:
        """float64 [domains], the sizes of these rows together, summed in their order."""
        return np.array([self.line(d).there for d in range(len(self.names))])


@dataclass(frozen=True)
class _Asked:
    """What is to be drawn.

    Attributes:
        total: over all domains.
        in_all: float64 [domains], what the mixture asks of each.
        amounts: float64 [phases, domains], what is drawn of it: less where the epochs allow less.
        short: bool [domains], where they do.
    """

    total: float
    in_all: Float64s
    amounts: Float64s
    short: npt.NDArray[np.bool_]


class MixtureDraw(Marker):
    """Draw so much of every domain that the dataset has the proportions of a mixture.

    Rows of a domain are taken in the order of a hash of row_id and seed, whatever their place in
    the corpus, until the amount is reached: of the last row and the one before it the one that
    comes nearer, so that what is drawn of a domain is within one row of what is asked. Where more
    is asked than there is the line begins anew, and rows are written several times, as far as
    `epochs` allow. A larger total contains a smaller one.

    A mixture of several phases is drawn phase after phase along the same line: the dataset has a
    column `phase` and its files hold one phase after the other, as `schedule.json` tells.

    With `write_as: weight` no row is repeated, and none is left out for its domain: each weighs
    what is asked of its domain over what is there, on a scale on which the mean is 1 (by size). The
    two are equal for full gradient descent; sampling converges faster (Li et al.).

    Rows without domain or size are dropped as ``no_domain`` and ``no_size``, those of a domain that
    has no share as ``left_out``. It comes last in a recipe, as what is drawn has to add up.
    """

    operator: Literal["mixture_draw"] = "mixture_draw"
    mixture: Annotated[
        str | MixturePlan,
        BeforeValidator(_inline, json_schema_input_type=str | dict[str, float] | MixturePlan),
    ] = Field(
        description="path of a mixture file, or proportions by domain; every domain of the corpus "
        "has one, 0 to leave it out"
    )
    by: str | None = Field(
        default=None,
        description="numeric score or column that says how much a row counts, such as `tokens`; "
        "rows count alike if not given",
    )
    tokens: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="amount to draw in all, in the unit of `by`; with neither this nor `rows` as "
        "much as `epochs` allow",
    )
    rows: float | None = Field(
        default=None, gt=0, multiple_of=1, allow_inf_nan=False, description="rows to draw in all"
    )
    epochs: float = Field(
        default=4,
        gt=0,
        allow_inf_nan=False,
        description="how much of a domain may be drawn, as a multiple of what there is; a row "
        "comes so often at most, rounded up. 4 repeats cost next to nothing (Muennighoff et al. "
        "2023, arXiv 2305.16264)",
    )
    write_as: Literal["repeat", "weight"] = Field(
        default="repeat", description="write rows as often as they are drawn, or weigh them"
    )
    shortfall: Literal["error", "fewer"] = Field(
        default="error",
        description="where the epochs allow less of a domain than is asked: stop, or draw what "
        "they allow and say so",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the order of rows")
    column: str | None = Field(
        default=None,
        description="column of the dataset for weights, or for the number of the phase where there "
        "are several; `weight` and `phase` if not given",
    )

    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("domain",)
    paper: ClassVar[str] = (
        "repeats: Muennighoff et al. 2023, Scaling data-constrained language models; weights: Li "
        "et al. 2024, Upsample or upweight? Balanced training on heavily imbalanced datasets"
    )

    @model_validator(mode="after")
    def _one_total(self) -> Self:
        if self.rows is not None and (self.tokens is not None or self.by is not None):
            raise ValueError("with `rows` every row counts alike: give neither `tokens` nor `by`")
        if self.tokens is not None and self.by is None:
            raise ValueError("`tokens` needs `by`: the score or column that counts them")
        return self

    @cached_property
    def plan(self) -> MixturePlan:
        """The mixture, whichever way it was given."""
        return load_plan(self.mixture) if isinstance(self.mixture, str) else self.mixture

    @property
    def phases(self) -> int:
        """Phases that the rows of the dataset are told apart by; 1 where they are not."""
        return len(self.plan.phases) if self.write_as == "repeat" else 1

    def resolve(self, workspace: Place) -> Self:
        return self.model_copy(update={"mixture": self.plan})

    def key_parts(self) -> dict[str, Any]:
        return {**super().key_parts(), "mixture": self.plan.model_dump(exclude={"origin"})}

    def reads(self) -> set[str]:
        return set() if self.by is None else {self.by}

    def numbers(self) -> set[str]:
        return self.reads()

    def memory(self, rows: int, text_bytes: int) -> int:
        return rows * (200 + 16 * self.phases)

    def fields(self) -> pa.Schema:
        """``<stage>_passes`` (list of int32, how often the row is drawn in each phase) or
        ``<stage>_weight`` (float64, 0 or more); and of rows that are not drawn ``_action``,
        ``_reason``, ``_value`` (amount of the domain up to and with this row) and ``_threshold``
        (amount asked of the domain)."""
        names = {
            "passes": pa.list_(pa.int32()),
            "weight": pa.float64(),
            "action": pa.string(),
            "reason": pa.string(),
            "value": pa.float64(),
            "threshold": pa.float64(),
        }
        del names["weight" if self.write_as == "repeat" else "passes"]
        return pa.schema([pa.field(f"{self.stage}_{name}", kind) for name, kind in names.items()])

    def weight_as(self) -> str | None:
        return None if self.write_as == "repeat" else self.column or "weight"

    def phase_as(self) -> str | None:
        return (self.column or "phase") if self.phases > 1 else None

    def evaluate(self, table: Table) -> Scores:
        """How rows are drawn; what there was of every domain, what was asked and what was drawn.

        Raises:
            RunError: if what was drawn is not within a row of what was asked.
        """
        stock = self._stock(table)
        asked = self._asked(stock)
        count = len(table)
        reason = stock.reason.copy()
        value, threshold = np.full(count, np.nan), np.full(count, np.nan)
        passes = np.zeros((count, self.phases), np.int32)
        weight = np.full(count, np.nan)
        weights = self._weights(stock, asked.amounts.sum(axis=0))
        for domain in range(len(stock.names)):
            rows, line = stock.rows(domain), stock.line(domain)
            amounts = asked.amounts[:, domain].cumsum()
            weight[rows] = weights[domain]
            if self.write_as == "weight":
                continue
            found = line.passes(amounts)
            passes[rows] = found
            none = ~found.any(axis=1)
            left = rows[none]
            reason[left] = REASONS.index(REACHED if amounts[-1] > 0 else LEFT_OUT)
            value[left], threshold[left] = line.ends[none], amounts[-1]

        def batches() -> Iterator[pa.RecordBatch]:
            for begin in range(0, count, BATCH_ROWS):
                some = slice(begin, begin + BATCH_ROWS)
                told = (passes[some], weight[some], reason[some], value[some], threshold[some])
                yield pa.record_batch(self._columns(*told), schema=self.fields())

        return Scores(batches(), self._report(stock, asked, weights, passes))

    def _columns(
        self,
        passes: Int32s,
        weight: Float64s,
        reason: npt.NDArray[np.int8],
        value: Float64s,
        threshold: Float64s,
    ) -> list[pa.Array]:
        """The fields of some rows."""
        count, phases = passes.shape
        offsets = np.arange(0, (count + 1) * phases, phases, dtype=np.int32)
        dropped = reason != _DRAWN
        place = pa.array(np.where(dropped, reason, 0), mask=~dropped)
        columns = {
            "passes": pa.ListArray.from_arrays(pa.array(offsets), pa.array(passes.ravel())),
            "weight": pa.array(weight, from_pandas=True),
            "action": pa.array([DROPPED] * len(REASONS)).take(place),
            "reason": pa.array(REASONS).take(place),
            "value": pa.array(value, from_pandas=True),
            "threshold": pa.array(threshold, from_pandas=True),
        }
        del columns["weight" if self.write_as == "repeat" else "passes"]
        return list(columns.values())

    def _stock(self, table: Table) -> _Stock:
        """What there is of every domain.

        Raises:
            UserError: for a domain that the mixture does not name, and a size that is none.
        """
        names = self.plan.domains
        codes, values = numbers_of(table.role("domain"))
        known = {name: place for place, name in enumerate(names)}
        found = values.cast(pa.string()).to_pylist()
        self._check_names([name for name in found if name is not None])
        domain = np.array([known.get(name, -1) for name in found], np.int64)[codes]
        size = self._sizes(table)
        reason = np.full(len(table), _DRAWN, np.int8)
        reason[np.isnan(size)] = REASONS.index(NO_SIZE)
        reason[domain < 0] = REASONS.index(NO_DOMAIN)
        rows = np.flatnonzero(reason == _DRAWN)
        hi, lo, copy = table.id_hi[rows], table.id_lo[rows], table.copy[rows]
        domain = domain[rows]
        order = rows[domain_order(domain, draws(hi, lo, copy, self.seed), hi, lo, copy)]
        begin = np.r_[0, np.cumsum(np.bincount(domain, minlength=len(names)))]
        return _Stock(names, size, order, begin, reason)

    def _check_names(self, found: list[str]) -> None:
        share = self.plan.over_all()
        lacking = [name for name in share if share[name] and name not in found]
        unknown = [name for name in found if name not in share]
        if lacking and (unknown or self.shortfall == "error"):
            raise UserError(
                f"{self.stage}: the mixture asks for {_listed(lacking)}, of which the corpus has "
                f"no row at this stage; its domains: {_listed(sorted(found))}",
                mend=f"give both the same names, or {_FEWER}"
                if unknown
                else f"{_FEWER}, or take a mixture without",
            )
        if unknown:
            raise UserError(
                f"{self.stage}: the corpus has {_listed(unknown)}, which the mixture does not "
                f"name; it names {_listed(list(share))}",
                mend="give it a share, 0 to leave it out",
            )

    def _sizes(self, table: Table) -> Float64s:
        """How much every row counts, nan where it is not known."""
        if self.by is None:
            return np.ones(len(table))
        column = table.column(self.by)
        if not is_number(column.type):
            raise UserError(f"{self.stage}: expected numbers, found {self.by!r} of {column.type}")
        size = as_floats(column)
        wrong = np.flatnonzero((size < 0) | np.isinf(size))
        if len(wrong):
            (row,) = hex_ids(table.id_hi[wrong[:1]], table.id_lo[wrong[:1]])
            raise UserError(
                f"{self.stage}: {self.by!r} of row {row} is {size[wrong[0]]:g}, expected 0 or more"
                f" ({len(wrong):,} such rows)",
                mend="mend them, or leave these rows out of the corpus",
            )
        return size

    def _asked(self, stock: _Stock) -> _Asked:
        """What is to be drawn.

        Raises:
            UserError: if the epochs allow less.
        """
        share = np.array([phase.share for phase in self.plan.phases])
        mixture = np.array([[phase.mixture[d] for d in stock.names] for phase in self.plan.phases])
        wanted = share[:, None] * mixture
        in_all = wanted.sum(axis=0)
        most = self.epochs * stock.there
        bounded = (in_all > 0) & (most > 0)
        total = self.tokens or self.rows
        if total is None:
            total = float((most[bounded] / in_all[bounded]).min()) if bounded.any() else 0.0
        short = (total * in_all > most * (1 + _CLOSE)) | ((in_all > 0) & ~bounded)
        if short.any() and self.shortfall == "error":
            self._refuse(stock, np.flatnonzero(short), total, in_all, most)
        drawn = np.minimum((total * wanted).cumsum(axis=0), most)
        return _Asked(total, total * in_all, np.diff(drawn, axis=0, prepend=0), short)

    def _refuse(
        self, stock: _Stock, short: Int64s, total: float, in_all: Float64s, most: Float64s
    ) -> None:
        """Tell which domains are short of what is asked, and what would mend it."""
        unit = self.by or "rows"
        if not stock.there.any():
            raise UserError(
                f"{self.stage}: nothing can be drawn, as {unit!r} is 0 or missing in every row",
                mend="name the score or column that says how much a row counts by `by`",
            )
        told = [
            f"{_listed([stock.names[d]])}: {_figure(stock.there[d])} {unit} there, "
            f"{self.epochs:g} times are {_figure(most[d])}, asked {_figure(total * in_all[d])}"
            for d in short[:_NAMED]
        ]
        more = f" and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
        least = math.floor((most[short] / in_all[short]).min())
        mends = [f"draw at most {least:,} in all"] if least else []
        if stock.there[short].all():
            times = (total * in_all[short] / stock.there[short]).max()
            mends.append(f"allow {math.ceil(times * 100) / 100:g} epochs")
        if total:
            shares = ", ".join(
                f"{stock.names[d]} at most {math.floor(1e4 * most[d] / total) / 1e4:g}"
                for d in short[:_NAMED]
            )
            mends.append(f"take another mixture ({shares})")
        mends.append(_FEWER)
        raise UserError(f"{self.stage}: {'; '.join(told)}{more}", mend=", or ".join(mends))

    def _weights(self, stock: _Stock, asked: Float64s) -> Float64s:
        """The weight of the rows of every domain: float64 [domains], 1 on average by size."""
        there = stock.there
        if not asked.sum():
            return np.ones(len(there))
        of_natural = np.divide(asked, there, out=np.zeros(len(there)), where=there > 0)
        return np.asarray(of_natural * there.sum() / asked.sum())

    def _report(
        self, stock: _Stock, asked: _Asked, weights: Float64s, passes: Int32s
    ) -> dict[str, Any]:
        """What there was of every domain, what was asked and what was drawn; by phase too."""
        drawn, written = self._drawn(stock, asked, passes)
        in_all = drawn.sum(axis=0)
        domains = {
            name: {
                "rows": int(stock.counts[d]),
                "there": float(stock.there[d]),
                "asked": float(asked.in_all[d]),
                **(
                    {"weight": float(weights[d])}
                    if self.write_as == "weight"
                    else {
                        "drawn": float(in_all[d]),
                        "times": float(in_all[d] / stock.there[d]) if stock.there[d] else 0.0,
                        "rows_written": int(written[:, d].sum()),
                    }
                ),
            }
            for d, name in enumerate(stock.names)
        }
        phases = [
            {
                "share": phase.share,
                "mixture": phase.mixture,
                **(
                    {"weights": _named(stock, self._weights(stock, asked.amounts[p]))}
                    if self.write_as == "weight"
                    else {"drawn": _named(stock, drawn[p]), "rows": int(written[p].sum())}
                ),
            }
            for p, phase in enumerate(self.plan.phases)
        ]
        return {
            "unit": self.by or "rows",
            "asked": asked.total,
            **({"drawn": float(in_all.sum())} if self.write_as == "repeat" else {}),
            "short": [stock.names[d] for d in np.flatnonzero(asked.short)],
            "domains": domains,
            **({"phases": phases} if len(phases) > 1 else {}),
        }

    def _drawn(self, stock: _Stock, asked: _Asked, passes: Int32s) -> tuple[Float64s, Int64s]:
        """What was drawn, and the rows of it, as the passes tell: [phases, domains]."""
        shape = (self.phases, len(stock.names))
        drawn, written = np.zeros(shape), np.zeros(shape, np.int64)
        if self.write_as == "weight":
            return drawn, written
        for d, name in enumerate(stock.names):
            rows = stock.rows(d)
            size = stock.size[rows]
            # Summed in order: BLAS sums as its threads divide the rows.
            drawn[:, d] = (size[:, None] * passes[rows]).cumsum(axis=0)[-1:].sum(axis=0)
            written[:, d] = passes[rows].sum(axis=0)
            off = np.abs(drawn[:, d] - asked.amounts[:, d]).max()
            if off > size.max(initial=0.0) + _CLOSE * asked.in_all[d]:
                raise RunError(
                    f"{self.stage}: what was drawn of {name!r} is {off:g} from what was "
                    "asked, more than a row",
                    mend="this is a defect of tamis: nothing was published",
                )
        return drawn, written


def _named(stock: _Stock, values: Float64s) -> dict[str, float]:
    return {name: float(value) for name, value in zip(stock.names, values, strict=True)}


def _figure(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.4g}"


def _listed(names: list[str]) -> str:
    some = (n if len(n) <= _SHOWN else f"{n[: _SHOWN - 1]}…" for n in names[:_NAMED])
    shown = ", ".join(map(repr, some)) or "none"
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
