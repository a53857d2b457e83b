"""Exact binomial intervals."""

import math
from typing import NamedTuple

import numpy as np

#: Coverage of every interval here.
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and the bounds that hold with probability `CONFIDENCE` at least."""

    estimate: float
    low: float
    high: float


def _at_most(successes: int, trials: int, share: float) -> float:
    """P(X <= successes) of a binomial X, summed in logarithms."""
    if successes >= trials or share <= 0:
        return 1.0
    if share >= 1:
        return 0.0
    k = np.arange(successes + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, successes + 1)))])
    falling = np.concatenate([[0.0], np.cumsum(np.log(trials - np.arange(successes)))])
    terms = falling - factorials + k * math.log(share) + (trials - k) * math.log1p(-share)
    return float(min(1.0, np.exp(terms).sum()))


def share_of(successes: int, trials: int) -> Interval:
    """A probability, from how often something came true (Clopper and Pearson 1934).

    Example:
        >>> [round(x, 4) for x in share_of(100, 100)]
        [1.0, 0.9638, 1.0]
    """
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    tail = (1 - CONFIDENCE) / 2
    low = high = 0.0
    if successes:
        low = _crossing(lambda p: _at_most(successes - 1, trials, p) - (1 - tail))
    if successes == trials:
        high = 1.0
    else:
        high = _crossing(lambda p: _at_most(successes, trials, p) - tail)
    return Interval(successes / trials, low, high)


def _crossing(falling, low: float = 0.0, high: float = 1.0) -> float:  # type: ignore[no-untyped-def]
    """Where a falling function crosses zero."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def number_of(seen: int, chance: float, most: int) -> Interval:
    """How many there are, if each is seen with this chance and so many were.

    The bounds are the numbers under which to see so few, or so many, has a probability of
    (1 - `CONFIDENCE`) / 2: Clopper and Pearson's, read for the number of trials.

    Args:
        most: there cannot be more.

    Example:
        >>> number_of(0, 0.5, 100), number_of(7, 1.0, 100)
        (Interval(estimate=0.0, low=0.0, high=5.0), Interval(estimate=7.0, low=7.0, high=7.0))
    """
    if chance >= 1:
        return Interval(float(seen), float(seen), float(seen))
    tail = (1 - CONFIDENCE) / 2
    high = _largest(lambda n: n <= most and _at_most(seen, n, chance) > tail, seen)
    low = seen
    if seen:
        # The smallest number under which to see so many is not too unlikely.
        low = (
            _largest(lambda n: n < most and 1 - _at_most(seen - 1, n, chance) <= tail, seen - 1) + 1
        )
    estimate = min(float(most), seen / chance) if seen else 0.0
    return Interval(estimate, min(float(low), estimate), float(high))


def _largest(holds, first: int) -> int:  # type: ignore[no-untyped-def]
    """The largest number from `first` on for which something holds that holds up to it only."""
    step = 1
    while holds(first + step):
        step *= 2
    low, high = first + step // 2, first + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
