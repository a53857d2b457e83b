"""Temperature: proportions between those that there are and even ones, cooled down or not.

Example:
    >>> plan = tempered({"web": 900.0, "code": 100.0}, [2.0])
    >>> round(plan.over_all()["code"], 12)
    0.25
    >>> [round(tau, 6) for tau in cooling(5, 1, 3)]
    [5.0, 1.666667, 1.0]
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tamis.selectors.domain_weights import softmax, supply_of
from tamis.storage.errors import UserError
from tamis.storage.mixture_plan import MixturePlan


def tempered(
    supply: Mapping[str, float],
    temperatures: Sequence[float],
    shares: Sequence[float] | None = None,
) -> MixturePlan:
    """Proportions p ∝ n^(1/τ), in a phase for every temperature.

    Source: Li et al. 2025, Upsample or Upweight? (arXiv 2410.04579).

    Args:
        supply: n, what there is of every domain, above 0; its unit does not matter.
        temperatures: τ of the phases, above 0: 1 is the natural mixture, infinity an even one.
        shares: of the training that each phase takes, on any scale; equally long if not given.

    Raises:
        UserError: for a temperature or a supply that is not above 0, or shares of other phases.
    """
    for tau in temperatures:
        if not tau > 0:
            raise UserError(
                f"temperature: expected more than 0, found {tau:g}",
                mend="1 is the natural mixture, inf an even one",
            )
    logarithms = np.log(supply_of(tuple(supply), supply))
    mixtures = [
        dict(zip(supply, softmax(logarithms / tau).tolist(), strict=True)) for tau in temperatures
    ]
    # JSON has no infinity.
    told = [float(tau) if tau < np.inf else "inf" for tau in temperatures]
    origin = {"method": "temperature", "temperatures": told}
    return MixturePlan.of(*mixtures, shares=shares, origin=origin)


def cooling(hot: float, cold: float, phases: int) -> list[float]:
    """Temperatures from the first phase's to the last one's.

    The exponent 1/τ moves in equal steps, so that infinity can be one end. The paper cools down
    in one step; more of them are ours.

    Raises:
        UserError: for fewer than two phases, or temperatures not above 0 or not falling.
    """
    if phases < 2:
        raise UserError(f"phases: expected 2 or more to cool down over, found {phases}")
    if not hot > cold > 0:
        raise UserError(
            f"cool-down: expected temperatures above 0 that fall, found {hot:g} to {cold:g}"
        )
    exponents = np.linspace(1 / hot, 1 / cold, phases)
    with np.errstate(divide="ignore"):
        middle = (1 / exponents[1:-1]).tolist()
    return [float(hot), *middle, float(cold)]
