"""How commands show the figures of scores."""

from typing import Any

from tamis.console import figure, table

_FIGURES = ("score", "rows", "min", "mean", "p5", "median", "p95", "max")


def told_figures(figures: list[list[Any]]) -> list[dict[str, Any]]:
    """What `catalog.figures_of` gives, for ``--json``."""
    return [dict(zip(_FIGURES, f, strict=True)) for f in figures]


def tell_figures(figures: list[list[Any]]) -> None:
    """What `catalog.figures_of` gives, as a table."""
    table(
        ("score", "rows", "min", "mean", "5 %", "median", "95 %", "max"),
        [[str(f[0]), f"{f[1]:,}", *(figure(v) for v in f[2:])] for f in figures],
    )
