"""A mixture as a file: proportions of domains, or of phases of a training one after the other.

Laws, weights and designs end in one; drawing a dataset and training a proxy begin with one. A file
may also hold nothing but proportions by name, as people write them by hand.

Example:
    >>> plan = MixturePlan.of({"web": 0.75, "code": 0.25})
    >>> plan.over_all()
    {'web': 0.75, 'code': 0.25}
    >>> cooled = MixturePlan.of({"web": 0.5, "code": 0.5}, {"web": 0.9, "code": 0.1}, shares=(3, 1))
    >>> cooled.over_all()["web"]
    0.6
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tamis.storage.errors import UserError
from tamis.storage.files import write_json
from tamis.storage.json_models import checked, load_model
from tamis.storage.places import place_of

#: How far from 1 proportions may sum and still be rounding; those of public tables sum to .996 to
#: 1.003. The bound itself is unconfirmed.
ROUNDING = 0.01


class Phase(BaseModel):
    """A part of a training in which the mixture stays the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(gt=0, allow_inf_nan=False, description="of the whole training")
    mixture: dict[str, float] = Field(min_length=1, description="proportion, by domain; sums to 1")


class MixturePlan(BaseModel):
    """Phases in the order of the training, all of the same domains; shares of phases sum to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["tamis mixture 1"] = "tamis mixture 1"
    phases: tuple[Phase, ...] = Field(min_length=1)
    origin: dict[str, Any] = Field(default={}, description="what it was made by, for readers")

    @model_validator(mode="before")
    @classmethod
    def _by_hand(cls, given: Any) -> Any:
        """Proportions by name are a plan of one phase."""
        if not isinstance(given, Mapping):
            return given
        if not given:
            raise ValueError("no domains; expected proportions by name, or phases of them")
        # A domain may be called as a key of the file is.
        written = isinstance(given.get("phases"), Sequence) or isinstance(given.get("format"), str)
        return given if written else {"phases": [{"share": 1.0, "mixture": given}]}

    @model_validator(mode="after")
    def _sums(self) -> Self:
        """Rounded proportions are divided by their sum; those further from 1 are an error."""
        phases = []
        total = sum(phase.share for phase in self.phases)
        for number, phase in enumerate(self.phases):
            here = f"phases[{number}]" if len(self.phases) > 1 else "the mixture"
            for name, value in phase.mixture.items():
                if not 0 <= value < float("inf"):
                    raise ValueError(f"{here}: {name!r} has {value:g}, expected 0 or more")
            found = sum(phase.mixture.values())
            if abs(found - 1) > ROUNDING:
                hint = (
                    "percentages? divide by 100"
                    if abs(found - 100) <= 1
                    else (f"divide them by {found:.6g} if they are shares of a whole")
                )
                raise ValueError(f"{here}: proportions sum to {found:.6g}, expected 1; {hint}")
            if phase.mixture.keys() != self.phases[0].mixture.keys():
                other = sorted(phase.mixture.keys() ^ self.phases[0].mixture.keys())
                raise ValueError(
                    f"{here}: domains differ from those of phases[0] ({', '.join(other)}); give "
                    "every phase all domains, 0 where there is none"
                )
            parts = {name: value / found for name, value in phase.mixture.items()}
            phases.append(phase.model_copy(update={"share": phase.share / total, "mixture": parts}))
        object.__setattr__(self, "phases", tuple(phases))
        return self

    @classmethod
    def of(
        cls,
        *mixtures: Mapping[str, float],
        shares: Sequence[float] | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> "MixturePlan":
        """A plan of mixtures one after the other, equally long if no shares are given.

        Raises:
            UserError: as `load_plan`.
        """
        lengths = [1.0] * len(mixtures) if shares is None else shares
        if len(lengths) != len(mixtures):
            raise UserError(f"{len(mixtures)} mixtures, and shares of {len(lengths)} phases")
        phases = [
            {"share": share, "mixture": dict(mixture)}
            for share, mixture in zip(lengths, mixtures, strict=True)
        ]
        if not phases:
            raise UserError("no mixture was given", mend="give one for every phase")
        return check_plan({"phases": phases, "origin": dict(origin or {})}, "mixture")

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order of the file."""
        return tuple(self.phases[0].mixture)

    def over_all(self) -> dict[str, float]:
        """Proportions over the whole training, by domain."""
        return {
            name: sum(phase.share * phase.mixture[name] for phase in self.phases)
            for name in self.domains
        }

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(place_of(str(path)), self.model_dump(mode="json"))


def load_plan(path: str | Path) -> MixturePlan:
    """A plan from a JSON file: one that tamis wrote, or proportions by name.

    Raises:
        UserError: if there is no such file, it is neither, proportions are negative or do not sum
            to 1, or phases have different domains.
    """
    return load_model(
        MixturePlan,
        path,
        "`tamis mix optimise --out` and `tamis mix weights --out` write one; or write proportions "
        'by name, {"web": 0.6, "code": 0.4}',
    )


def check_plan(given: Any, where: str) -> MixturePlan:
    """A plan from plain data, such as the content of a mixture file.

    Raises:
        UserError: as `load_plan`.
    """
    return checked(MixturePlan, given, where)
