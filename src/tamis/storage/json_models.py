"""JSON files that a person may have written, read into pydantic models, with errors to mend them.

Example:
    >>> class Point(BaseModel):
    ...     x: float
    >>> checked(Point, {"x": "much"}, "point.json")
    Traceback (most recent call last):
    tamis.storage.errors.UserError: point.json: x: expected a valid number, found 'much'
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tamis.storage.errors import UserError
from tamis.storage.places import kind_of, place_errors, place_of, shown

T = TypeVar("T", bound=BaseModel)


def load_model(kind: type[T], path: str | Path, mend: str) -> T:
    """A model from a JSON file, here or on a store.

    Args:
        mend: what writes such a file, for the error.

    Raises:
        UserError: if there is no such file, it is no JSON object, a name stands in it twice, or
            its values do not fit.
    """
    place = place_of(str(path))
    where = shown(place)
    found = kind_of(place)
    if found is None:
        raise UserError("no such file", where=where, mend=mend)
    if found == "directory":
        raise UserError("a folder, expected a JSON file", where=where, mend=mend)
    try:
        with place_errors(place):
            # Editors on Windows begin a file with a byte order mark.
            given = json.loads(place.read_text("utf-8-sig"), object_pairs_hook=_distinct)
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=where, mend=mend) from None
    if not isinstance(given, dict):
        raise UserError(
            f"expected a JSON object in braces, found {_shown(given)}", where=where, mend=mend
        )
    return checked(kind, given, where)


def checked(kind: type[T], given: Any, where: str) -> T:
    """A model of values that were read from somewhere.

    Raises:
        UserError: if they do not fit; tells the first that does not, and how many more there are.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problems = error.errors()
        first = problems[0]
        place = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        if message.startswith("Input should be "):
            wanted = message.removeprefix("Input should be ").split(", unable to parse")[0]
            message = f"expected {wanted}, found {_shown(first['input'])}"
        elif first["type"] == "too_short":
            message = "expected at least one, found none"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        what = f"{place}: {message}{more}" if place else message + more
        raise UserError(what, where=where) from None


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands there twice")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
