"""What the signal `logprobs` leaves of rows whose token log-probs are known."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

MIN_K = (0.1, 0.2, 1.0)
QUANTILES = (0.0, 0.5, 1.0)

Tokens = list[float] | None
_FLOAT64 = pa.float64()


def least(tokens: list[float], k: float) -> list[float]:
    """The least likely share k of a row's tokens, at least one."""
    return sorted(tokens)[: max(1, math.floor(len(tokens) * k))]


def quantile(tokens: list[float], q: float) -> float:
    """Of the negative log-probs, between neighbours by a straight line."""
    ordered = sorted(-t for t in tokens)
    place = q * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def signal(name: str, rows: Sequence[Tokens], floats: pa.DataType = _FLOAT64) -> dict[str, Any]:
    """Columns of a signal; a row that is None was refused, and all of it is null.

    Top-1 hits are the tokens above log 1/2, entropies twice the negative log-probs.
    """

    def column(kind: pa.DataType, of: Any) -> pa.Array:
        return pa.array([None if row is None else of(row) for row in rows], kind)

    return {
        f"{name}_logp": column(floats, math.fsum),
        f"{name}_tokens": column(pa.int32(), len),
        f"{name}_bytes": column(pa.int64(), lambda row: 3 * len(row)),
        f"{name}_top1": column(pa.int32(), lambda row: sum(t > math.log(0.5) for t in row)),
        f"{name}_entropy": column(floats, lambda row: math.fsum(-2 * t for t in row)),
        f"{name}_min_k": column(
            pa.list_(floats, len(MIN_K)), lambda row: [math.fsum(least(row, k)) for k in MIN_K]
        ),
        f"{name}_quantiles": column(
            pa.list_(floats, len(QUANTILES)), lambda row: [quantile(row, q) for q in QUANTILES]
        ),
    }


def pair(name: str, chosen: Sequence[Tokens], rejected: Sequence[Tokens]) -> dict[str, Any]:
    """Columns of a signal of pairs."""
    return {**signal(f"{name}_chosen", chosen), **signal(f"{name}_rejected", rejected)}
