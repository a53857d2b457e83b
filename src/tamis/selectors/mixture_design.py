"""Which small runs to do first: mixtures drawn around the natural one, as RegMix draws them.

Liu et al., RegMix: Data Mixture as Regression for Language Model Pre-training (2024, arXiv
2407.01492). The steps and all numbers below are those of the authors' public code
(sail-sg/regmix, mixture_config/synthesize_mixture.py): the natural mixture to the power of 0.5 and
normalised; a Dirichlet distribution of it times a strength, one of 15 from 0.1 to 5 in equal steps
of the logarithm; draws with a proportion above 15 times the natural one are rejected; proportions
below 0.0002 become 0; of 100 draws a run, those that differ by more than 0.00001 in all are kept,
and as many as wanted are taken of them at random.

Ours are four things. Floors: the draw divides what floors leave. Ceilings and supply reject as the
15 times do, after small proportions became 0. Proportions are not rounded to multiples of 0.0002,
after which they no longer sum to 1. And where too few draws lie within the limits, others are moved
to the nearest mixture that does, which `Design.notes` tells.

Example:
    >>> found = dirichlet_design({"web": 6e9, "code": 3e9, "law": 1e9}, 4)
    >>> found.domains, found.mixtures.shape, found.mixtures.sum(axis=1).round(9).tolist()
    (('web', 'code', 'law'), (4, 3), [1.0, 1.0, 1.0, 1.0])
    >>> found.mixtures[0].round(3).tolist()
    [0.6, 0.3, 0.1]
    >>> found.table().columns
    ['run', 'split', 'mix_web', 'mix_code', 'mix_law']
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tamis.scoring.mixture_runs import MIX, Floats, check_table_target
from tamis.selectors.mixture_constraints import MixtureLimits, project
from tamis.storage.errors import UserError
from tamis.storage.files import whole_file
from tamis.storage.places import place_of

if TYPE_CHECKING:
    from polars import DataFrame

#: Designs that have a domain in fewer runs than so many are drawn again at most so often: where
#: runs are held out a law still has to tell its effect from the others' (ours).
_PRESENT, _TRIES = 3, 100
#: Sums and bounds this close are met.
_CLOSE = 1e-9


class DirichletSettings(BaseModel):
    """Numbers of the design; the defaults are those of RegMix's public code unless marked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    power: float = Field(default=0.5, ge=0, description="of the natural mixture; 0 makes it even")
    strength_low: float = Field(
        default=0.1, gt=0, allow_inf_nan=False, description="least strength: nearly one domain"
    )
    strength_high: float = Field(
        default=5.0, gt=0, allow_inf_nan=False, description="largest strength: nearer the mean"
    )
    strengths: int = Field(default=15, ge=1, description="strengths, in equal steps of the log")
    times_natural: float = Field(
        default=15.0, gt=0, description="largest proportion, in natural ones; inf for any"
    )
    least: float = Field(
        default=2e-4, ge=0, lt=1, description="proportions below become 0, floors aside"
    )
    oversampling: int = Field(default=100, ge=1, description="draws a run")
    apart: float = Field(
        default=1e-5, ge=0, description="sum of differences up to which two runs are the same"
    )
    natural: bool = Field(
        default=True,
        description="the first run is the natural mixture (ours; RegMix has none of its own)",
    )
    corners: bool = Field(
        default=False,
        description="a run a domain with as much of it as may be, the rest as it is by nature "
        "(ours)",
    )
    seed: int = Field(default=42, ge=0, description="of what is drawn")


@dataclass(frozen=True)
class Design:
    """Mixtures of runs to do.

    Attributes:
        domains: names of the d domains.
        mixtures: float64 [n, d], each row of which sums to 1.
        validation: how many of the last runs are for validation and not to be fitted to.
        notes: what a reader must know.
    """

    domains: tuple[str, ...]
    mixtures: Floats
    validation: int = 0
    notes: tuple[str, ...] = ()

    def table(self) -> "DataFrame":
        """Columns ``run`` (int64, from 0), ``split`` (train or validation), ``mix_<domain>``."""
        import polars as pl

        number = len(self.mixtures)
        split = ["train"] * (number - self.validation) + ["validation"] * self.validation
        shares = {
            f"{MIX}{name}": self.mixtures[:, place] for place, name in enumerate(self.domains)
        }
        return pl.DataFrame({"run": np.arange(number), "split": split, **shares})

    def save(self, path: str | Path) -> None:
        """Write the table as Parquet, CSV or JSON lines, by the file's ending.

        Raises:
            UserError: for another ending, or if what is there is no table of runs.
        """
        import polars as pl

        writers: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
            ".parquet": pl.DataFrame.write_parquet,
            ".csv": pl.DataFrame.write_csv,
            ".jsonl": pl.DataFrame.write_ndjson,
        }
        place = place_of(str(path))
        if place.suffix not in writers:
            raise UserError(
                f"cannot tell the format of {place.suffix or 'a file without ending'!r}",
                where=str(path),
                mend=f"one of {', '.join(writers)}",
            )
        if isinstance(place, Path):
            check_table_target(place, design=True)
        with whole_file(place) as temporary:
            writers[place.suffix](self.table(), temporary)

    def summary(self, limits: MixtureLimits | None = None) -> list[dict[str, Any]]:
        """Of every domain the least, mean and largest proportion, and in how many runs it is.

        Where its supply is known also the most ``epochs`` that a run of the tokens wanted would
        see of it, and in how many runs (``repeated``) that is more than one.
        """
        limits = limits or MixtureLimits()
        found = []
        for place, domain in enumerate(self.domains):
            share = self.mixtures[:, place]
            row: dict[str, Any] = {
                "domain": domain,
                "least": float(share.min()),
                "mean": float(share.mean()),
                "most": float(share.max()),
                "runs": int((share > 0).sum()),
            }
            there = limits.supply.get(domain)
            if there and limits.tokens is not None:
                epochs = share * limits.tokens / there
                row["epochs"] = float(epochs.max())
                row["repeated"] = int((epochs > 1 + _CLOSE).sum())
            found.append(row)
        return found


def dirichlet_design(
    natural: Mapping[str, float],
    runs: int,
    *,
    validation: int = 0,
    limits: MixtureLimits | None = None,
    settings: DirichletSettings | None = None,
) -> Design:
    """RegMix's design: different mixtures around the natural one, within limits.

    The same seed gives the same runs, whichever order the domains are named in.

    Args:
        natural: how much there is of every domain, in any unit. Domains of which there is nothing,
            or that a ceiling or the supply keeps at 0, are left out, which a note tells.
        runs: how many to fit to, the natural mixture and corners among them. Where draws allow
            every domain is in at least three that were drawn.
        validation: how many further ones, drawn alike, to judge the fit by.
        limits: floors, ceilings, supply and repetition of every run.

    Raises:
        UserError: if no mixture keeps to the limits, or fewer different ones than wanted; for
            amounts that are negative, no numbers, or all 0.
    """
    limits, settings = limits or MixtureLimits(), settings or DirichletSettings()
    if settings.strength_low > settings.strength_high:
        raise UserError(
            f"the least strength is {settings.strength_low:g} and the largest "
            f"{settings.strength_high:g}",
            mend="exchange them",
        )
    if runs < 1 or validation < 0:
        raise UserError(
            f"expected at least 1 run and 0 for validation, found {runs} and {validation}"
        )
    space, notes = design_space(natural, limits, settings.times_natural)
    draws = np.random.default_rng(settings.seed)
    fixed = space.fixed(settings)
    if len(fixed) > runs:
        raise UserError(
            f"the natural mixture and corners alone are {len(fixed)} runs, and {runs} were asked",
            mend=f"ask for {len(fixed)} or more, or leave them out",
        )
    wanted = runs + validation - len(fixed)
    drawn, outside = space.drawn((runs + validation) * settings.oversampling, settings, draws)
    drawn = different(drawn, fixed, settings.apart)
    if len(drawn) < wanted:
        moved = different(
            space.moved(outside, settings.least), np.vstack([fixed, drawn]), settings.apart
        )
        needed = wanted - len(drawn)
        if len(moved) < needed:
            raise _too_few(len(fixed) + len(drawn) + len(moved), runs + validation, space)
        drawn = np.vstack([drawn, moved[draws.permutation(len(moved))[:needed]]])
        notes.append(
            f"{needed} of {runs + validation} runs were drawn outside the limits and moved to the "
            "nearest mixture within them"
        )
    chosen = _covering(drawn, wanted, runs - len(fixed), draws)
    mixtures = np.vstack([fixed, chosen])
    missing = np.flatnonzero(~(mixtures[:runs] > 0).any(axis=0))
    if len(missing):
        names = ", ".join(repr(space.domains[place]) for place in missing)
        notes.append(
            f"no run has {names}: a law cannot be fitted to these columns; ask for more runs, a "
            "larger least strength or a floor"
        )
    order = [space.domains.index(name) for name in natural if name in space.domains]
    return Design(
        tuple(space.domains[place] for place in order), mixtures[:, order], validation, tuple(notes)
    )


@dataclass(frozen=True)
class DesignSpace:
    """Mixtures that a design may have.

    Attributes:
        domains: names, sorted, so that their order in the input is nothing to a draw.
        natural: the natural mixture of these domains: float64 [d], sums to 1, none is 0.
        low, high: least and largest proportions: float64 [d].
    """

    domains: tuple[str, ...]
    natural: Floats
    low: Floats
    high: Floats

    def fixed(self, settings: DirichletSettings) -> Floats:
        """The natural mixture and the corners, where wanted: float64 [m, d], all different."""
        found = np.zeros((0, len(self.domains)))
        if settings.natural:
            found = project(self.natural[None], self.low, self.high)
        if settings.corners:
            found = np.vstack([found, *(self.corner(place) for place in range(len(self.low)))])
        kept = found[:1]
        for point in found[1:]:
            kept = np.vstack([kept, different(point[None], kept, settings.apart)])
        return kept

    def corner(self, place: int) -> Floats:
        """As much of a domain as may be, the others as near as may be to nature: [1, d]."""
        others = np.arange(len(self.low)) != place
        most = min(self.high[place], 1 - self.low[others].sum())
        point = self.natural * others
        if rest := point.sum():
            point *= (1 - most) / rest
        point[place] = most
        return project(
            point[None], np.where(others, self.low, most), np.where(others, self.high, most)
        )

    def drawn(
        self, count: int, settings: DirichletSettings, draws: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Draws within the limits, and those outside: float64 [a, d] and [count - a, d]."""
        base = self.natural**settings.power
        base /= base.sum()
        strengths = np.geomspace(settings.strength_low, settings.strength_high, settings.strengths)
        each = np.bincount(
            draws.integers(settings.strengths, size=count), minlength=settings.strengths
        )
        parts = np.vstack(
            [
                draws.dirichlet(base * strength, number)
                for strength, number in zip(strengths, each, strict=True)
            ]
        )
        free = 1 - self.low.sum()
        parts[(self.low == 0) & (parts * free < settings.least)] = 0
        total = parts.sum(axis=1, keepdims=True)
        parts = parts[total[:, 0] > 0] / total[total[:, 0] > 0]
        points = self.low + free * parts
        inside = (points <= self.high + 1e-12).all(axis=1)
        return points[inside], points[~inside]

    def candidates(
        self, count: int, settings: DirichletSettings, draws: np.random.Generator
    ) -> Floats:
        """Different mixtures to choose from, as many as there are: float64 [at most n, d].

        The natural mixture and the corners are among them.
        """
        fixed = self.fixed(settings.model_copy(update={"natural": True, "corners": True}))
        inside, outside = self.drawn(10 * count, settings, draws)
        found = different(inside, fixed, settings.apart)
        if len(found) < count:
            moved = self.moved(outside, settings.least)
            found = np.vstack([found, different(moved, np.vstack([fixed, found]), settings.apart)])
        return np.vstack([fixed, found[draws.permutation(len(found))[:count]]])

    def moved(self, points: Floats, least: float) -> Floats:
        """The nearest mixtures within the limits, proportions below `least` being 0."""
        points = project(points, self.low, self.high)
        small = (points < least) & (self.low == 0)
        taken = np.where(small, points, 0).sum(axis=1, keepdims=True)
        # The others take what is left, by how much more each of them may have.
        room = np.where(small, 0, self.high - points)
        total = room.sum(axis=1, keepdims=True)
        able = total[:, 0] >= taken[:, 0]
        part = np.divide(taken, total, out=np.zeros_like(total), where=total > 0)
        return np.asarray((np.where(small, 0, points) + room * part)[able])


def design_space(
    natural: Mapping[str, float], limits: MixtureLimits, times_natural: float
) -> tuple[DesignSpace, list[str]]:
    """Domains that a design can mix, their bounds, and notes on those that are left out.

    Raises:
        UserError: as `dirichlet_design`.
    """
    if not natural:
        raise UserError("no domains", mend="name the natural mixture")
    names = tuple(sorted(natural))
    for name in names:
        if not 0 <= natural[name] < np.inf:
            raise UserError(
                f"natural mixture: {name!r} has {natural[name]:g}, expected a number, 0 or more"
            )
    shares = np.array([float(natural[name]) for name in names])
    if not shares.sum():
        raise UserError("natural mixture: all shares are 0")
    shares /= shares.sum()
    low, high = limits.bounds(names)
    for place in np.flatnonzero((low > 0) & (shares == 0)):
        raise UserError(
            f"{names[place]!r} has a floor, and its natural share is 0",
            mend="give it a natural share above 0, or no floor",
        )
    there = (shares > 0) & (high > 0)
    notes = []
    for place in np.flatnonzero(~there):
        why = "its natural share is 0" if not shares[place] else "the limits keep it at 0"
        notes.append(f"{names[place]} is left out: {why}")
    if high[there].sum() < 1 - _CLOSE:
        raise UserError(
            f"the domains that have a natural share reach {high[there].sum():.4g} of the mixture",
            mend="give the others a natural share above 0, or raise ceilings",
        )
    low, high, shares = low[there], high[there], shares[there] / shares[there].sum()
    high = np.maximum(low, np.minimum(high, times_natural * shares))
    if high.sum() < 1 - _CLOSE:
        raise UserError(
            f"{times_natural:g} times the natural shares, within the limits, reach "
            f"{high.sum():.4g} of the mixture",
            mend="allow more times the natural share, or raise ceilings",
        )
    return DesignSpace(tuple(np.array(names)[there].tolist()), shares, low, high), notes


def different(points: Floats, others: Floats, apart: float) -> Floats:
    """Points further than `apart` (sum of differences) from the one kept before them, and others.

    As in the public code points are sorted first, so that equal ones follow each other.
    """
    # Sums end in digits that differ by rounding: these shall not part two that are equal.
    points = points[np.lexsort(points.round(9).T)]
    keep = np.zeros(len(points), bool)
    last: Floats | None = None
    for place, point in enumerate(points):
        if last is None or np.abs(point - last).sum() > apart:
            keep[place], last = True, point
    for other in others:
        keep &= np.abs(points - other).sum(axis=1) > apart
    return np.asarray(points[keep])


def _covering(drawn: Floats, wanted: int, fitted: int, draws: np.random.Generator) -> Floats:
    """Some of the draws at random; if they can, the first `fitted` of them have all domains."""
    best, most = drawn[:wanted], -1
    for _ in range(_TRIES):
        chosen = drawn[draws.permutation(len(drawn))[:wanted]]
        runs = np.minimum((chosen[:fitted] > 0).sum(axis=0), _PRESENT)
        if runs.sum() > most:
            best, most = chosen, int(runs.sum())
        if runs.min(initial=_PRESENT) >= min(_PRESENT, fitted):
            break
    return best


def _too_few(found: int, wanted: int, space: DesignSpace) -> UserError:
    if len(space.domains) == 1:
        return UserError(
            f"{space.domains[0]!r} alone makes 1 mixture, and {wanted} runs were asked",
            mend="ask for 1 run, or name further domains",
        )
    room = ", ".join(
        f"{name} {low:.4g} to {high:.4g}"
        for name, low, high in zip(space.domains, space.low, space.high, strict=True)
    )
    return UserError(
        f"only {found} different mixtures were found within the limits ({room}), and {wanted} runs "
        "were asked",
        mend=f"ask for at most {found}, loosen floors and ceilings, or want fewer tokens of the "
        "supply",
    )
