"""CHES: pairs whose completions a model represents alike, so that training lowers both."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numba import njit
from pydantic import Field

from tamis.scoring.column_scorer import ColumnScorer, Float64s, numbers, ratio, vectors
from tamis.storage.errors import UserError
from tamis.storage.kernels import KERNEL


@njit(**KERNEL)
def _products(chosen, rejected, cross, own):  # type: ignore[no-untyped-def]
    """Of every row chosen . rejected and chosen . chosen, summed in order."""
    for row in range(chosen.shape[0]):
        mixed = 0.0
        square = 0.0
        for i in range(chosen.shape[1]):
            mixed += chosen[row, i] * rejected[row, i]
            square += chosen[row, i] * chosen[row, i]
        cross[row] = mixed
        own[row] = square


class Ches(ColumnScorer):
    """Centred hidden embedding similarity of a pair; high where likelihood displacement threatens.

    S+ . S- - |S+|^2 of the sums of last-layer hidden states over each completion, from the last
    token of the prompt to the one before the end, padding left out. ``_per_token`` has means in
    place of sums: S+ . S- / (n+ n-) - |S+|^2 / n+^2; it is the one to filter by. Pairs with the
    highest scores are those to drop (the share is unconfirmed).

    Example:
        >>> columns = {
        ...     "policy_chosen_hidden_sum": [[3.0, 2.0]],
        ...     "policy_rejected_hidden_sum": [[2.0, 1.0]],
        ...     "policy_chosen_hidden_tokens": [3],
        ...     "policy_rejected_hidden_tokens": [2],
        ... }
        >>> found = Ches().compute(pa.record_batch(columns)).to_pylist()[0]
        >>> [round(value, 6) for value in found.values()]
        [-5.0, -0.111111]
    """

    operator: Literal["ches"] = "ches"
    signal: str = Field(
        default="policy",
        description="stage of `logprobs` with `hidden: sum` under the model that will be trained",
    )

    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Razin et al. 2025, Unintentional unalignment: likelihood displacement in direct "
        "preference optimization (CHES)"
    )

    def reads(self) -> set[str]:
        return {
            f"{self.signal}_{side}_hidden_{part}"
            for side in ("chosen", "rejected")
            for part in ("sum", "tokens")
        }

    def numbers(self) -> set[str]:
        return {name for name in self.reads() if name.endswith("_tokens")}

    def columns(self) -> tuple[str, ...]:
        return (self.stage, f"{self.stage}_per_token")

    def values(self, batch: pa.RecordBatch) -> Sequence[Float64s]:
        names = [f"{self.signal}_{side}_hidden_sum" for side in ("chosen", "rejected")]
        chosen, rejected = (vectors(batch, name) for name in names)
        empty = [name for name in names if batch[name].null_count == batch.num_rows]
        if empty:  # lists of which none is there have no length
            chosen = rejected = np.full((batch.num_rows, 1), np.nan)
        if chosen.shape != rejected.shape:
            raise UserError(
                f"{names[0]} has {chosen.shape[1]} numbers a row, {names[1]} {rejected.shape[1]}",
                mend="take both from one stage",
            )
        cross, own = np.empty(batch.num_rows), np.empty(batch.num_rows)
        _products(chosen, rejected, cross, own)
        n, m = (
            numbers(batch, f"{self.signal}_{side}_hidden_tokens") for side in ("chosen", "rejected")
        )
        return [cross - own, ratio(cross, n * m) - ratio(own, n * n)]
