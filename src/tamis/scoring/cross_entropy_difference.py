"""Selection towards a target by two language models: the cross-entropy difference."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from tamis.scoring.column_scorer import ColumnScorer, Float64s
from tamis.scoring.likelihood import loss_difference


class CrossEntropyDifference(ColumnScorer):
    """Cross-entropy of a text under a model of a target, less that under a general one, in nats.

    The lower, the more a text is like the target and unlike the rest: ``top`` with ``order:
    lowest`` selects towards the target. Both models must count the same tokens; then the length of
    a text, and how hard texts of its kind are in general, cancel out.

    Raises:
        UserError: if they do not.

    Example:
        >>> columns = {"target_logp": [-8.0, -8.0], "target_tokens": [4, 4]}
        >>> columns |= {"general_logp": [-12.0, -4.0], "general_tokens": [4, 4]}
        >>> found = CrossEntropyDifference().compute(pa.record_batch(columns))
        >>> found["cross_entropy_difference"].to_pylist()
        [-1.0, 1.0]
    """

    operator: Literal["cross_entropy_difference"] = "cross_entropy_difference"
    target: str = Field(
        default="target", description="stage whose model is of the kind of text that is wanted"
    )
    general: str = Field(default="general", description="stage whose model is of text in general")

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Moore and Lewis 2010, Intelligent selection of language model training data: "
        "H_I(s) - H_N(s), per token"
    )

    def reads(self) -> set[str]:
        stages = (self.target, self.general)
        return {f"{stage}_{part}" for stage in stages for part in ("logp", "tokens")}

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        return [loss_difference(batch, self.target, self.general)]
