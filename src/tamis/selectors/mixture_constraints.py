"""What a mixture must keep to: floors and ceilings, supply, repetition, and what runs have seen.

Example:
    >>> limits = MixtureLimits(floor={"code": 0.2}, supply={"web": 5e9}, tokens=1e10, epochs=1)
    >>> low, high = limits.bounds(("web", "code"))
    >>> low.tolist(), high.tolist()
    ([0.0, 0.2], [0.5, 1.0])
"""

import numba
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tamis.storage.errors import UserError
from tamis.storage.kernels import KERNEL

Floats = npt.NDArray[np.float64]

#: Sums of bounds this close to 1 are met.
_CLOSE = 1e-9
#: Sums of projections this close to 1 are 1 but for rounding.
_EXACT = 1e-15


class MixtureLimits(BaseModel):
    """Limits on the proportions of a mixture; domains that are not named are free."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    floor: dict[str, float] = Field(default={}, description="least proportion, by domain")
    ceiling: dict[str, float] = Field(default={}, description="largest proportion, by domain")
    supply: dict[str, float] = Field(default={}, description="tokens that there are, by domain")
    tokens: float | None = Field(default=None, gt=0, description="tokens wanted in all")
    epochs: float = Field(
        default=4,
        gt=0,
        description="how often a token may be seen; 4 repeats cost next to nothing (Muennighoff et "
        "al. 2023, arXiv 2305.16264); RegMix allows 15",
    )

    beyond_runs: bool = Field(
        default=False,
        description="allow proportions outside those that the runs had, of which a law knows "
        "nothing",
    )

    def bounds(
        self, domains: tuple[str, ...], seen: tuple[Floats, Floats] | None = None
    ) -> tuple[Floats, Floats]:
        """Least and largest proportion of each domain: float64 [d] each.

        Args:
            seen: the least and largest proportions that runs had. They give way where a floor or
                a ceiling asks for others.

        Raises:
            UserError: if no mixture keeps to them, or one names a domain that is not there.
        """
        for name in ("floor", "ceiling", "supply"):
            for domain, value in getattr(self, name).items():
                if domain not in domains:
                    raise UserError(
                        f"{name}: no domain {domain!r} in the runs",
                        mend=f"there: {', '.join(domains)}",
                    )
                if not 0 <= value < np.inf or (name != "supply" and value > 1):
                    span = "0 or more" if name == "supply" else "between 0 and 1"
                    raise UserError(f"{name} of {domain!r}: expected {span}, found {value:g}")
        if self.supply and self.tokens is None:
            raise UserError(
                "a supply says nothing without the tokens wanted", mend="give tokens as well"
            )
        low = np.array([self.floor.get(domain, 0.0) for domain in domains])
        high = np.array([min(self.ceiling.get(d, 1.0), self._there(d)) for d in domains])
        for place in np.flatnonzero(low > high + _CLOSE):
            self._refuse_floor(domains[place])
        if low.sum() > 1 + _CLOSE:
            raise UserError(
                f"the floors sum to {low.sum():.4g}",
                mend=f"lower some of them by {low.sum() - 1:.4g} in all",
            )
        if high.sum() < 1 - _CLOSE:
            self._refuse_ceilings(domains, high)
        high = np.maximum(low, high)
        if seen is None or self.beyond_runs:
            return low, high
        low, high = (
            np.minimum(np.maximum(low, seen[0]), high),
            np.maximum(np.minimum(high, seen[1]), low),
        )
        if low.sum() > 1 + _CLOSE or high.sum() < 1 - _CLOSE:
            raise UserError(
                "no mixture within these limits keeps to the proportions that the runs had (they "
                f"sum to {low.sum():.4g} to {high.sum():.4g})",
                mend="add runs with others, loosen the limits, or allow beyond_runs",
            )
        return low, high

    def _there(self, domain: str) -> float:
        """The largest proportion that a domain's supply allows."""
        if self.tokens is None or domain not in self.supply:
            return np.inf
        return self.epochs * self.supply[domain] / self.tokens

    def _refuse_floor(self, domain: str) -> None:
        floor, ceiling, there = (
            self.floor[domain],
            self.ceiling.get(domain, 1.0),
            self._there(domain),
        )
        if floor > ceiling:
            raise UserError(
                f"{domain!r} has a floor of {floor:g} above its ceiling of {ceiling:g}",
                mend="lower the floor or raise the ceiling",
            )
        assert self.tokens is not None
        mend = f"leave the floor out, or get data of {domain!r}"
        if there > 0:
            mend = (
                f"lower the floor to {there:.4g}, want {self.tokens * there / floor:.4g} tokens, "
                f"or allow {self.epochs * floor / there:.4g} epochs"
            )
        raise UserError(
            f"the floor of {domain!r} is {floor:g}, and {self.supply[domain]:.4g} tokens seen "
            f"{self.epochs:g} times are {there:.4g} of {self.tokens:.4g}",
            mend=mend,
        )

    def _refuse_ceilings(self, domains: tuple[str, ...], high: Floats) -> None:
        total = high.sum()
        by_supply = [d for d in domains if self._there(d) <= self.ceiling.get(d, 1.0)]
        what = f"all domains together reach {total:.4g} of the mixture"
        if not by_supply or self.tokens is None:
            raise UserError(
                f"{what}: the ceilings sum to less than 1",
                mend=f"raise some of them by {1 - total:.4g} in all",
            )
        # How far the supply carries if ceilings by hand stay as they are.
        by_hand = sum(self.ceiling.get(d, 1.0) for d in domains if d not in by_supply)
        mend = "get more data"
        if by_hand < 1:
            factor = (
                (1 - by_hand) / sum(self._there(d) for d in by_supply) if total > by_hand else 0
            )
            if factor:
                mend = f"want {self.tokens / factor:.4g} tokens, allow {self.epochs * factor:.4g} "
                mend += "epochs (if no ceiling binds then), or get more data"
        raise UserError(
            f"{what}: {', '.join(repr(d) for d in by_supply)} have too few tokens for "
            f"{self.tokens:.4g} at {self.epochs:g} epochs",
            mend=mend,
        )

    def binding(
        self, domains: tuple[str, ...], mixture: Floats, seen: tuple[Floats, Floats]
    ) -> dict[str, str]:
        """Which limit a mixture lies at, by domain: floor, ceiling, supply or runs."""
        low, high = self.bounds(domains, seen)
        found = {}
        for place, domain in enumerate(domains):
            if low[place] > 0 and mixture[place] <= low[place] + 1e-6:
                given = self.floor.get(domain, 0.0)
                found[domain] = "floor" if low[place] <= given else "runs"
            elif high[place] < 1 and mixture[place] >= high[place] - 1e-6:
                ceiling, there = self.ceiling.get(domain, 1.0), self._there(domain)
                own = "supply" if there <= ceiling else "ceiling"
                found[domain] = own if high[place] >= min(ceiling, there) else "runs"
        return found


def project(points: Floats, low: Floats, high: Floats) -> Floats:
    """The nearest mixtures within bounds: float64 [n, d].

    A mixture is clip(x - s, low, high) with the shift s that makes it sum to 1 (as for the simplex:
    Held, Wolfe and Crowder 1974), found by Newton's steps within a bracket: the sum is a line
    between bends.

    Example:
        >>> project(np.array([[0.9, 0.5]]), np.zeros(2), np.ones(2)).round(6).tolist()
        [[0.7, 0.3]]
    """
    return np.asarray(_project(np.ascontiguousarray(points, np.float64), low, high))


@numba.njit(**KERNEL)
def _project(points, low, high):  # type: ignore[no-untyped-def]
    found = np.empty_like(points)
    for row in range(len(points)):
        point, nearest = points[row], found[row]
        below, above = (point - high).min() - 1.0, (point - low).max() + 1.0
        shift = (point.sum() - 1) / len(point)
        for _ in range(100):
            if not below < shift < above:
                shift = (below + above) / 2
            over, free = -1.0, 0
            for place in range(len(point)):
                value = point[place] - shift
                if value <= low[place]:
                    value = low[place]
                elif value >= high[place]:
                    value = high[place]
                else:
                    free += 1
                nearest[place] = value
                over += value
            if abs(over) < _EXACT:
                break
            if over > 0:
                below = shift
            else:
                above = shift
            shift = shift + over / free if free else above
    return found
