"""How much there is of every domain, as a file that `tamis mix count` writes."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tamis.storage.errors import UserError
from tamis.storage.files import write_json
from tamis.storage.json_models import load_model
from tamis.storage.places import place_of

Unit = Literal["tokens", "bytes", "rows"]


class Amount(BaseModel):
    """What there is of a domain."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(ge=0)
    bytes: int | None = Field(default=None, ge=0, description="of UTF-8 text")
    tokens: int | None = Field(default=None, ge=0)


class Supply(BaseModel):
    """Amounts by domain.

    Example:
        >>> there = Supply(domains={"web": Amount(rows=2, tokens=90)})
        >>> there.of("rows"), there.unit
        ({'web': 2.0}, 'tokens')
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["tamis supply 1"] = "tamis supply 1"
    domains: dict[str, Amount] = Field(min_length=1)

    @property
    def unit(self) -> Unit:
        """The finest unit that was counted: tokens, else bytes, else rows."""
        units: tuple[Unit, ...] = ("tokens", "bytes", "rows")
        amounts = self.domains.values()
        return next(u for u in units if all(getattr(a, u) is not None for a in amounts))

    def of(self, unit: Unit | None = None) -> dict[str, float]:
        """The amount of every domain, in the finest unit if none is given.

        Raises:
            UserError: if that was not counted.
        """
        unit = unit or self.unit
        found = {name: getattr(amount, unit) for name, amount in self.domains.items()}
        for name, value in found.items():
            if value is None:
                raise UserError(
                    f"the {unit} of {name!r} were not counted", mend=f"counted: {self.unit}"
                )
        return {name: float(value) for name, value in found.items()}

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(place_of(str(path)), self.model_dump(mode="json"))


def load_supply(path: str | Path) -> Supply:
    """A supply that was saved.

    Raises:
        UserError: if there is no such file, or it is none.
    """
    return load_model(Supply, path, "`tamis mix count` and `tamis mix tokenise` write one")
