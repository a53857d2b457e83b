"""What an operator is, and the registry that recipe, commands, docs and Python API read.

An operator is one class: its fields are its parameters, its class variables say what it reads,
which version of its code speaks, and where it was published. Importing the module registers it.
"""

from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from tamis.storage.errors import UserError
from tamis.storage.places import Place

#: What a score says of labels: P(label is wrong), from 0 to 1, or only an order of the rows, those
#: last whose label is most probably wrong.
Judgement = Literal["probability", "order"]


class Operator(BaseModel):
    """Base of every operator; one that can be used sets ``operator: Literal["its_name"]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator: str = ""
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z][A-Za-z0-9_]*$",
        description="name of the stage, under which drops are counted; the operator's own if not "
        "given",
    )

    kind: ClassVar[str]
    #: Raised whenever the output for the same input changes; part of every step key.
    version: ClassVar[int]
    #: Where the method is published; empty for plain bookkeeping.
    paper: ClassVar[str] = ""
    #: Roles whose columns it reads; in a batch they carry the role's name.
    roles: ClassVar[tuple[str, ...]] = ()

    @property
    def stage(self) -> str:
        """The name its results and drops go under."""
        return self.name or self.operator

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        field = cls.model_fields.get("operator")
        if field is not None and field.default:
            REGISTRY[field.default] = cls

    def used_roles(self) -> tuple[str, ...]:
        """Those of `roles` that it reads with these parameters."""
        return self.roles

    def reads(self) -> set[str]:
        """Names of the scores and columns that it reads beside its roles."""
        return set()

    def numbers(self) -> set[str]:
        """Those of `reads` that must be numbers or times."""
        return set()

    def resolve(self, workspace: Place) -> Self:
        """This operator with what decides its output and lies outside its parameters filled in.

        That is the digest of a model's or a reference's files. Called before any work.

        Raises:
            UserError: if they are not there, or not what the recipe pins.
        """
        return self

    def key_parts(self) -> dict[str, Any]:
        """What of this operator decides its output: name, version and parameters."""
        return {"version": self.version, **self.model_dump(mode="json", exclude={"name"})}


class Scorer(Operator):
    """Gives columns for the rows still kept."""

    def fields(self) -> pa.Schema:
        """Columns that `compute` returns."""
        raise NotImplementedError

    def rewrites(self) -> dict[str, str]:
        """Role to the field that holds its new text for later stages and the dataset."""
        return {}

    def judges(self) -> dict[str, Judgement]:
        """Those of its fields by which rows may be dropped, weighed or relabelled for their label,
        and what each says of it."""
        return {}

    def refused(self) -> str | None:
        """The field, of strings, that says of a row why it cannot be scored; null where it can.

        A run puts such rows in quarantine.
        """
        return None


class RowScorer(Scorer):
    """One Arrow batch in, one batch of score columns out; no state between batches."""

    kind: ClassVar[str] = "row scorer"
    #: Whether results are found again by content rather than computed twice; see `reuse`.
    costly: ClassVar[bool] = False
    #: Bytes of input after which the results of a costly operator are stored, whatever is left of
    #: the shard; None stores shards whole.
    portion_bytes: ClassVar[int | None] = None

    def memory(self) -> int:
        """Resident bytes of what it loads, such as a model, once for all workers."""
        return 0

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Scores of a batch: as many rows, in the same order.

        Its columns are the roles of `used_roles`, and what `reads` names.
        """
        raise NotImplementedError


class Signal(RowScorer):
    """A row scorer whose result is an intermediate for other operators, not a score to read."""

    kind: ClassVar[str] = "signal"


REGISTRY: dict[str, type[Operator]] = {}


def operator_class(name: str) -> type[Operator]:
    """The operator registered under a name."""
    try:
        return REGISTRY[name]
    except KeyError:
        known = ", ".join(sorted(REGISTRY))
        raise UserError(f"no operator named {name!r}", mend=f"known: {known}") from None
