"""Selection towards a target by two language models: the cross-entropy difference."""

from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from tamis.scoring.operator import RowScorer
from tamis.storage.errors import UserError

_READ = ("logp", "tokens")


class CrossEntropyDifference(RowScorer):
    """Cross-entropy of a text under a model of a target, less that under a general model.

    The lower, the more a text is like the target and unlike the rest: ``top`` with ``order:
    lowest`` selects towards the target. Both models must count the same tokens; then the length of
    a text, and how hard texts of its kind are in general, cancel out.

    Example:
        >>> import tamis
        >>> frame = pa.table(
        ...     {
        ...         "target_logp": [-8.0, -8.0, None],
        ...         "target_tokens": [4, 4, 0],
        ...         "general_logp": [-12.0, -4.0, None],
        ...         "general_tokens": [4, 4, 0],
        ...     }
        ... )
        >>> found = tamis.score("cross_entropy_difference", frame)
        >>> found["cross_entropy_difference"].to_list()
        [-1.0, 1.0, None]
    """

    operator: Literal["cross_entropy_difference"] = "cross_entropy_difference"
    target: str = Field(
        default="target", description="name of the stage that scores by the target's model"
    )
    general: str = Field(
        default="general", description="name of the stage that scores by the general model"
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Moore and Lewis 2010, Intelligent selection of language model training data: H_I(s) - "
        "H_N(s), per token"
    )

    def reads(self) -> set[str]:
        return {f"{name}_{part}" for name in (self.target, self.general) for part in _READ}

    def fields(self) -> pa.Schema:
        """The name of the stage (float64, nats a token; null where a text has no token)."""
        return pa.schema([pa.field(self.stage, pa.float64())])

    def compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        target, general = (
            [batch[f"{name}_{part}"].cast(pa.float64()) for part in _READ]
            for name in (self.target, self.general)
        )
        if pc.any(pc.not_equal(target[1], general[1])).as_py():
            raise UserError(
                f"{self.target!r} and {self.general!r} do not count the same tokens",
                mend="score both with the same operator, and models of the same tokenizer",
            )
        found = pc.subtract(pc.divide(*general), pc.divide(*target))
        return pa.record_batch([found], schema=self.fields())
