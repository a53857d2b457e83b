"""What weights of domains come to under a supply: loss weights, and how often tokens are seen.

Example:
    >>> plan = MixturePlan.of({"web": 0.6, "code": 0.4})
    >>> found = Weighed(plan, {"web": 900.0, "code": 100.0}, tokens=2000, epochs=4)
    >>> found.natural["code"], round(found.loss_weights["code"], 6), round(found.seen["code"], 6)
    (0.1, 4.0, 8.0)
    >>> found.notes()
    ("'code' is seen 8 times, more than 4",)
    >>> {name: round(share, 6) for name, share in found.capped().plan.over_all().items()}
    {'web': 0.8, 'code': 0.2}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tamis.scoring.mixture_runs import Floats
from tamis.selectors.mixture_constraints import MixtureLimits
from tamis.storage.errors import UserError
from tamis.storage.mixture_plan import MixturePlan

#: Rounds in which levels are lowered, and how far off a sum may be.
_ROUNDS, _CLOSE = 10_000, 1e-10


@dataclass(frozen=True)
class Weighed:
    """A plan and what there is of its domains.

    Attributes:
        plan: the mixture, in one phase or several.
        supply: what there is, by domain, in any unit.
        tokens: length of the training in that unit; None if nobody said.
        epochs: how often a token may be seen.
        cap: whether the plan has been bent to that.
    """

    plan: MixturePlan
    supply: Mapping[str, float]
    tokens: float | None = None
    epochs: float = 4
    cap: bool = False

    def __post_init__(self) -> None:
        supply_of(self.plan.domains, self.supply)
        for name in ("tokens", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise UserError(f"{name}: expected more than 0, found {value:g}")

    @cached_property
    def natural(self) -> dict[str, float]:
        """Proportions of the supply."""
        total = sum(self.supply.values())
        return {name: self.supply[name] / total for name in self.plan.domains}

    @cached_property
    def loss_weights(self) -> dict[str, float]:
        """Factor of a domain's loss, w = p / (n / N), that weighs a natural sample like the plan.

        Its mean over the natural mixture is 1. It is also how often a token is seen in a training
        as long as one pass over everything.
        """
        return _loss_weights(self.plan.over_all(), self.natural)

    @cached_property
    def seen(self) -> dict[str, float]:
        """How often a token of a domain is seen, for all that tokens were given."""
        shares = self.plan.over_all()
        tokens = self.tokens or sum(self.supply.values())
        return {name: shares[name] * tokens / self.supply[name] for name in self.plan.domains}

    def capped(self) -> "Weighed":
        """The plan with no token seen more often than `epochs`; the others take what is too much.

        Within a phase they keep their ratios; see `cap_phases`.

        Raises:
            UserError: without tokens, or if all domains together do not suffice.
        """
        if self.tokens is None:
            raise UserError(
                "a cap says nothing without the length of the training", mend="give tokens as well"
            )
        domains = self.plan.domains
        limits = MixtureLimits(supply=dict(self.supply), tokens=self.tokens, epochs=self.epochs)
        _, caps = limits.bounds(domains)
        shares = np.array([phase.share for phase in self.plan.phases])
        mixtures = np.array([[p.mixture[name] for name in domains] for p in self.plan.phases])
        found = cap_phases(mixtures, shares, caps)
        plan = MixturePlan.of(
            *(dict(zip(domains, row.tolist(), strict=True)) for row in found),
            shares=shares.tolist(),
            origin={**self.plan.origin, "epochs": self.epochs, "tokens": self.tokens},
        )
        return replace(self, plan=plan, cap=True)

    def notes(self) -> tuple[str, ...]:
        """Domains that are seen too often, or have been held back from that."""
        if self.tokens is None:
            return ()
        found = []
        for name, times in self.seen.items():
            if self.cap and times > self.epochs * (1 - 1e-6):
                found.append(f"{name!r} is held at {self.epochs:g} times")
            elif times > self.epochs * (1 + 1e-6):
                found.append(f"{name!r} is seen {times:.4g} times, more than {self.epochs:g}")
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        phases = [
            {
                "share": phase.share,
                "mixture": phase.mixture,
                "loss_weights": _loss_weights(phase.mixture, self.natural),
            }
            for phase in self.plan.phases
        ]
        return {
            "mixture": self.plan.over_all(),
            "phases": phases,
            "natural": self.natural,
            "loss_weights": self.loss_weights,
            "seen": None if self.tokens is None else self.seen,
            "notes": list(self.notes()),
        }


def supply_of(domains: Sequence[str], supply: Mapping[str, float]) -> Floats:
    """What there is of some domains, in their order: float64 [d], all above 0.

    Raises:
        UserError: if one is missing, unknown, or no number above 0.
    """
    for name in supply:
        if name not in domains:
            raise UserError(f"supply: no domain {name!r}", mend=f"there: {', '.join(domains)}")
    for name in domains:
        if name not in supply:
            raise UserError(f"supply: nothing is said of {name!r}", mend="give every domain")
        if not 0 < supply[name] < np.inf:
            raise UserError(
                f"supply of {name!r}: expected more than 0, found {supply[name]:g}",
                mend="leave out a domain that there is nothing of",
            )
    return np.array([supply[name] for name in domains], np.float64)


def softmax(logarithms: Floats) -> Floats:
    """exp of each, divided by the sum over the last axis."""
    parts = np.exp(logarithms - logarithms.max(axis=-1, keepdims=True))
    return np.asarray(parts / parts.sum(axis=-1, keepdims=True))


def cap_phases(mixtures: Floats, shares: Floats, caps: Floats) -> Floats:
    """Proportions whose mean over the phases is at most `caps`: float64 [f, d].

    They are filled up like vessels with water: min(a_f p_fi, c_i). The level c_i holds domain i at
    its cap, so that the phases which have most of it give first, and below their levels the domains
    of a phase keep their ratios. Levels are lowered until all caps hold; of one phase c_i is cap_i.

    Args:
        mixtures: p, float64 [f, d], rows sum to 1.
        shares: of the phases, float64 [f], sum to 1.
        caps: float64 [d], sum to at least 1.

    Raises:
        UserError: if a phase lacks the domains that could take what is too much.

    Example:
        >>> p = np.array([[0.6, 0.3, 0.1]])
        >>> cap_phases(p, np.ones(1), np.array([0.4, 1.0, 1.0])).round(9).tolist()
        [[0.4, 0.45, 0.15]]
    """
    levels = np.ones(len(caps))
    for _ in range(_ROUNDS):
        found = np.array([_filled(row, levels) for row in mixtures])
        if not np.allclose(found.sum(axis=1), 1, rtol=0, atol=_CLOSE):
            break
        over = np.flatnonzero(shares @ found > caps * (1 + _CLOSE))
        if not len(over):
            return np.asarray(found / found.sum(axis=1, keepdims=True))
        for place in over:
            levels[place] = _level(found[:, place], shares, caps[place])
    raise UserError(
        "no plan near this one keeps to the supply",
        mend="want fewer tokens, or allow more epochs",
    )


def _filled(parts: Floats, levels: Floats) -> Floats:
    """min(a * parts, levels) with the factor a that makes it sum to 1, or as near as levels let."""
    with np.errstate(divide="ignore", invalid="ignore"):
        full = np.where(parts > 0, levels / parts, np.inf)  # the factor at which each is full
    order = np.argsort(full, kind="stable")
    held = np.concatenate([[0.0], np.cumsum(levels[order])[:-1]])
    free = np.cumsum(parts[order][::-1])[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(free > 0, (1 - held) / free, np.inf)
    for place in np.flatnonzero((factor <= full[order]) & (free > 0))[:1]:
        return np.asarray(np.minimum(factor[place] * parts, levels))
    return np.where(parts > 0, levels, 0.0)


def _level(parts: Floats, shares: Floats, cap: float) -> float:
    """The level with which shares @ min(parts, level) is `cap`."""
    order = np.argsort(parts, kind="stable")
    below = np.concatenate([[0.0], np.cumsum((shares * parts)[order])[:-1]])
    above = np.cumsum(shares[order][::-1])[::-1]
    level = (cap - below) / above
    return float(level[np.flatnonzero(level <= parts[order])[0]])


def _loss_weights(mixture: Mapping[str, float], natural: Mapping[str, float]) -> dict[str, float]:
    return {name: share / natural[name] for name, share in mixture.items()}
