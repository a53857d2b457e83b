"""Replay: how much of an old corpus a training on a new one goes through again.

Example:
    >>> found = replay({"web": 3000.0, "books": 1000.0}, {"german": 800.0}, "strong")
    >>> found.tokens
    {'web': 150, 'books': 50, 'german': 600}
    >>> found.seen["german"], found.plan.over_all()["german"]
    (0.75, 0.75)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tamis.selectors.domain_weights import supply_of
from tamis.storage.errors import UserError
from tamis.storage.mixture_plan import MixturePlan

#: Replay fraction by how far the new corpus is from the old one: the paper's for another English
#: corpus, and for German after English.
SHIFTS = {"weak": 0.05, "strong": 0.25}


@dataclass(frozen=True)
class Replay:
    """A mixture of old and new domains.

    Attributes:
        fraction: of the training that is replay.
        plan: one phase, over old and new domains.
        old, new: supply by domain.
        tokens: drawn of every domain, whole; they sum to the training's.
        seen: how often a token of a domain is seen in this training.
    """

    fraction: float
    plan: MixturePlan
    old: Mapping[str, float]
    new: Mapping[str, float]
    tokens: Mapping[str, int]
    seen: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        return {
            "fraction": self.fraction,
            "mixture": self.plan.over_all(),
            "tokens": dict(self.tokens),
            "seen": dict(self.seen),
            "replayed": sum(self.tokens[name] for name in self.old),
            "training": sum(self.tokens.values()),
        }


def replay(
    old: Mapping[str, float],
    new: Mapping[str, float],
    shift: str | float,
    *,
    tokens: float | None = None,
    epochs: float = 4,
) -> Replay:
    """A mixture in which tokens of an old corpus take the place of new ones.

    The length of the training stays what it would be without replay, so that compute does. Old
    domains come in the proportions that there are of them, new ones alike.

    Source: Ibrahim et al. 2024 (arXiv 2403.08763); 1, 5, 10 and 50 % were tried there, and 1 %
    helps already.

    Args:
        old, new: tokens that there are, by domain; no name may be in both.
        shift: `weak` (5 %), `strong` (25 %), or the fraction itself, at least 0 and below 1.
        tokens: length of the training; that of one pass over the new corpus if not given.
        epochs: how often a token may be seen in it.

    Raises:
        UserError: for a fraction out of range, a domain in both corpora, a supply that is not
            above 0, and one that does not suffice.
    """
    fraction = _fraction(shift)
    for name in old:
        if name in new:
            raise UserError(
                f"{name!r} is a domain of both corpora",
                mend="give them different names, as old/" + name,
            )
    for what, corpus in (("old", old), ("new", new)):
        if not corpus:
            raise UserError(f"no {what} domains")
    there = {**old, **new}
    supply = supply_of(tuple(there), there)
    length = float(sum(new.values())) if tokens is None else tokens
    if not 1 <= length < 2**53:
        raise UserError(f"tokens: expected a number from 1 to 2^53, found {length:g}")
    parts = np.concatenate(
        [
            fraction * supply[: len(old)] / supply[: len(old)].sum(),
            (1 - fraction) * supply[len(old) :] / supply[len(old) :].sum(),
        ]
    )
    _suffices("old", fraction * length, sum(old.values()), epochs, length)
    _suffices("new", (1 - fraction) * length, sum(new.values()), epochs, length)
    drawn = apportion(round(length), parts)
    origin = {"method": "replay", "fraction": fraction, "tokens": round(length), "old": list(old)}
    return Replay(
        fraction=fraction,
        plan=MixturePlan.of(dict(zip(there, parts.tolist(), strict=True)), origin=origin),
        old=old,
        new=new,
        tokens=dict(zip(there, drawn, strict=True)),
        seen=dict(zip(there, (parts * length / supply).tolist(), strict=True)),
    )


def apportion(total: int, shares: npt.ArrayLike) -> list[int]:
    """Whole numbers in given proportions that sum to a total (largest remainders).

    Example:
        >>> apportion(10, [1 / 3, 1 / 3, 1 / 3])
        [4, 3, 3]
    """
    parts = np.asarray(shares, np.float64)
    exact = total * parts / parts.sum()
    whole = np.floor(exact).astype(np.int64)
    largest = np.argsort(whole - exact, kind="stable")
    whole[largest[: total - int(whole.sum())]] += 1
    return [int(part) for part in whole]


def _fraction(shift: str | float) -> float:
    if isinstance(shift, str):
        if shift not in SHIFTS:
            raise UserError(
                f"shift: expected {' or '.join(SHIFTS)}, found {shift!r}",
                mend="or give the fraction itself",
            )
        return SHIFTS[shift]
    if not 0 <= shift < 1:
        raise UserError(
            f"replay fraction: expected at least 0 and below 1, found {shift:g}",
            mend="divide percentages by 100",
        )
    return shift


def _suffices(what: str, wanted: float, there: float, epochs: float, length: float) -> None:
    """Raise if a corpus would be seen more often than allowed."""
    if wanted <= epochs * there * (1 + 1e-9):
        return
    if what == "old":
        lower = f"replay {epochs * there / length:.4g} of the training"
    else:
        lower = f"want {length * epochs * there / wanted:.4g} tokens in all"
    raise UserError(
        f"{wanted:.4g} tokens of the {what} corpus, which has {there:.4g}: seen "
        f"{wanted / there:.4g} times, more than {epochs:g}",
        mend=f"{lower}, or allow {wanted / there:.4g} epochs",
    )
