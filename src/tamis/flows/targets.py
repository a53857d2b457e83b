"""Answers to what-if, also to the question which parameter meets a budget."""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import annotated_types

from tamis.flows.differences import Difference, Sizes, difference
from tamis.flows.what_if import (
    Alternative,
    Past,
    alternative,
    changed_recipe,
    look_back,
    value_of,
)
from tamis.storage.catalog import WORKSPACE_MANIFEST
from tamis.storage.corpus import Progress
from tamis.storage.errors import UserError
from tamis.storage.files import locked, read_json
from tamis.storage.places import Place, kind_of, shown
from tamis.storage.tasks import Threads

#: Times that a parameter is tried at most.
TRIES = 30
#: Steps that the range of a parameter is looked at in, and how finely it is told in the end.
STEPS, FINEST = 20, 1e-4

Number = int | float
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")


@dataclass(frozen=True)
class Target:
    """A parameter to move until a budget is met.

    Attributes:
        move: ``STAGE.PARAM``: a number, or a condition with one number in it.
        amount: ``rows``, ``characters`` or ``tokens`` that are kept.
        wanted: how many of them.
    """

    move: str
    amount: str
    wanted: int

    @classmethod
    def given(cls, move: str | None, wanted: Mapping[str, int | None]) -> Self | None:
        """The target that options name, if they name one.

        Raises:
            UserError: for a target without a parameter to move, the reverse, or several targets.
        """
        targets = [(amount, number) for amount, number in wanted.items() if number is not None]
        if move is None and not targets:
            return None
        if move is None or len(targets) != 1:
            raise UserError(
                "a budget is one target and the parameter to move",
                mend="as in --target-rows 1000000 --move near_dedup.threshold",
            )
        ((amount, number),) = targets
        if number < 0:
            raise UserError(f"expected a number of {amount}, found {number}")
        return cls(move, amount, number)

    def reach(self, past: Past, changes: Mapping[str, Any], evaluate_more: bool) -> Difference:
        """The outcome that comes nearest to the target, and the parameter's value for it.

        Of two that are equally near the one within the budget is taken.
        """
        start, write = _movable(past, self.move, changes)
        tried: dict[Number, int] = {}
        best: list[tuple[Alternative, Mapping[str, Any]]] = []

        def keeps(value: Number) -> int:
            if value in tried:
                return tried[value]
            now = {**changes, self.move: write(value)}
            found = alternative(past, now, evaluate_more)
            amount = self._amount(past, found)
            if not tried or self._off(amount) < min(map(self._off, tried.values())):
                best[:] = [(found, now)]
            tried[value] = amount
            return amount

        def fits(value: Number) -> bool:
            try:
                changed_recipe(past.recipe, {**changes, self.move: write(value)})
            except UserError:
                return False
            return True

        _search(keeps, fits, self.wanted, start, *_range(past, self.move, start))
        found, now = best[0]
        amount = self._amount(past, found)
        note = f"{self.amount} kept: {amount:,}, the target {self.wanted:,}"
        if amount != self.wanted:
            note += " is not reached"
            for side, word in ((-1, "fewer"), (1, "more")):
                others = [t for t in tried.items() if (t[1] - self.wanted) * side > 0]
                if others:
                    value, kept = min(others, key=lambda other: self._off(other[1]))
                    note += f"; the nearest with {word} is {write(value)} with {kept:,}"
        return replace(difference(past, found, now), notes=[note])

    def _off(self, amount: int) -> tuple[int, bool]:
        return abs(amount - self.wanted), amount > self.wanted

    def _amount(self, past: Past, found: Alternative) -> int:
        if self.amount == "rows":
            return int(found.run.kept.sum())
        sums = Sizes.of(past, found.run).sums(found.run.kept)
        if self.amount not in sums:
            raise UserError(
                f"the run does not know how many {self.amount} a row has",
                mend="put `- operator: token_count` into the recipe and run it"
                if self.amount == "tokens"
                else "set corpus.roles.text",
            )
        return sums[self.amount]


def _movable(
    past: Past, move: str, changes: Mapping[str, Any]
) -> tuple[Number, Callable[[Number], Any]]:
    """The number that a parameter is or holds, and how to write another in its place."""
    value = changes.get(move, value_of(past.recipe, move))
    if value is None:
        raise UserError(
            f"{move} has no value in the recipe to start from", mend=f"give one: {move}=VALUE"
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value, lambda number: number
    numbers = _NUMBER.findall(value) if isinstance(value, str) else []
    if len(numbers) != 1:
        raise UserError(f"{move}: expected a number, or a text with one in it, found {value!r}")
    start = float(numbers[0])
    whole = start.is_integer() and "." not in numbers[0]
    return (
        int(start) if whole else start,
        lambda number: _NUMBER.sub(f"{number}", value),
    )


def _range(past: Past, move: str, start: Number) -> tuple[Number | None, Number | None]:
    """Bounds of a parameter, as its operator declares them; for an open one the next inside."""
    stage, *path = move.split(".")
    operator = next(s for s in past.recipe.stages if s.stage == stage)
    low: Number | None = None
    high: Number | None = None
    known = type(operator).model_fields.get(path[0])
    for bound in known.metadata if known is not None and len(path) == 1 else ():
        inside = 1 if isinstance(start, int) else FINEST
        if isinstance(bound, annotated_types.Ge):
            low = cast(Number, bound.ge)
        elif isinstance(bound, annotated_types.Gt):
            low = cast(Number, bound.gt) + inside
        elif isinstance(bound, annotated_types.Le):
            high = cast(Number, bound.le)
        elif isinstance(bound, annotated_types.Lt):
            high = cast(Number, bound.lt) - inside
    return low, high


def _search(
    keeps: Callable[[Number], int],
    fits: Callable[[Number], bool],
    wanted: int,
    start: Number,
    low: Number | None,
    high: Number | None,
) -> None:
    """Try values until one keeps as many as are wanted, or none in between is left to try.

    More may be kept as the value rises or as it falls. Where that changes within the range, what
    is found is one place of several.
    """
    whole = isinstance(start, int)
    span = (high - low) if low is not None and high is not None else None
    finest = 1 if whole else FINEST * (span or max(1.0, abs(start)))
    left = TRIES

    def tidy(value: Number) -> Number:
        value = value if low is None else max(low, value)
        value = value if high is None else min(high, value)
        return round(value) if whole else float(f"{value:.6g}")

    def off(value: Number) -> int:
        nonlocal left
        left -= 1
        return keeps(value) - wanted

    first = off(start)
    for direction in (1, -1):
        near, off_near = start, first
        step = (span or max(10.0, abs(start))) / STEPS
        step = max(1, round(step)) if whole else step
        while off_near and left > 0:
            far = tidy(near + direction * step)
            while abs(far - near) > finest and not fits(far):  # other parameters bound this one
                far = tidy((near + far) / 2)
            if far == near or not fits(far):
                break
            off_far = off(far)
            if (off_far > 0) != (off_near > 0) or off_far == 0:
                _narrow(off, tidy, (near, off_near), (far, off_far), finest, lambda: left > 0)
                return
            if abs(off_far) > abs(off_near):
                break  # the wrong way
            near, off_near = far, off_far
            step *= 2


def _narrow(
    off: Callable[[Number], int],
    tidy: Callable[[Number], Number],
    a: tuple[Number, int],
    b: tuple[Number, int],
    finest: Number,
    more: Callable[[], bool],
) -> None:
    """Halve, or cut where a straight line would hit, between two values that lie on two sides."""
    halve = False
    while a[1] and b[1] and abs(a[0] - b[0]) > finest and more():
        share = 0.5 if halve else min(0.9, max(0.1, a[1] / (a[1] - b[1])))
        value = tidy(a[0] + share * (b[0] - a[0]))
        if value in (a[0], b[0]):
            value = tidy((a[0] + b[0]) / 2)
            if value in (a[0], b[0]):
                return
        found = (value, off(value))
        if found[1] == 0:
            return
        before = abs(a[0] - b[0])
        a, b = (found, b) if (found[1] > 0) == (a[1] > 0) else (a, found)
        halve = abs(a[0] - b[0]) > before / 2


def answer(
    workspace: Place,
    changes: Mapping[str, Any],
    *,
    target: Target | None = None,
    evaluate_more: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Difference:
    """What the last run of a workspace would have kept under other rules.

    Args:
        changes: parameters of its selectors, by ``STAGE.PARAM``.
        target: a budget, and the parameter to move for it.
        evaluate_more: compute missing scores and signals in place of leaving rows out.

    Raises:
        UserError: no run here; the corpus has changed; a stage, parameter or value that does not
            fit; nothing to change.
    """
    if not changes and target is None:
        raise UserError("nothing to change", mend="as in near_dedup.threshold=0.7")
    place = workspace / WORKSPACE_MANIFEST
    if kind_of(place) is None or "shards" not in read_json(place):
        raise UserError(
            "no finished run here", where=shown(workspace), mend="name the workspace of a run"
        )
    runner = Threads(workers or len(os.sched_getaffinity(0)))
    with locked(workspace):
        past = look_back(workspace, runner, progress or (lambda name, done, total: None))
        if target is not None:
            found = target.reach(past, changes, evaluate_more)
        else:
            found = difference(past, alternative(past, changes, evaluate_more), changes)
        if isinstance(workspace, Path):
            shutil.rmtree(workspace / "orders", ignore_errors=True)
    return found
