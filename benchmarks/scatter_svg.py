"""Scatter plots of predicted against observed values with error bars, written as SVG by hand.

Colours follow the reader's light or dark mode; the file names no font that must be there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

#: Sides of a panel's square, and what surrounds it, in pixels.
SIDE, LEFT, TOP, GAP = 260, 62, 34, 58
STYLE = """
text { font: 12px sans-serif; fill: #24292f }
.title { font-weight: bold; font-size: 13px }
.axis, .tick { stroke: #57606a; fill: none }
.equal { stroke: #8c959f; stroke-dasharray: 4 4 }
.grey { fill: #8c959f; stroke: #8c959f; opacity: 0.55 }
.green { fill: #2da44e; stroke: #2da44e }
.blue { fill: #0969da; stroke: #0969da }
.violet { fill: #8250df; stroke: #8250df }
.red { fill: #cf222e; stroke: #cf222e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .axis, .tick { stroke: #9198a1 }
  .equal, .grey { stroke: #6e7681 }
  .grey { fill: #6e7681; opacity: 0.8 }
  .green { fill: #3fb950; stroke: #3fb950 }
  .blue { fill: #58a6ff; stroke: #58a6ff }
  .violet { fill: #bc8cff; stroke: #bc8cff }
  .red { fill: #ff7b72; stroke: #ff7b72 }
}
""".strip()


@dataclass(frozen=True)
class Point:
    """A dot: where it lies, and half the length of its bars (0 for none)."""

    kind: str
    predicted: float
    observed: float
    predicted_half: float = 0.0
    observed_half: float = 0.0


@dataclass(frozen=True)
class Panel:
    """A square of dots, both axes alike."""

    title: str
    points: Sequence[Point]


def write_scatter(
    path: Path,
    panels: Sequence[Panel],
    colours: dict[str, str],
    axes: tuple[str, str],
    columns: int = 2,
) -> None:
    """Write panels row by row; `colours` gives kinds of points a colour, in order of the legend."""
    rows = math.ceil(len(panels) / columns)
    width = LEFT + columns * (SIDE + GAP)
    height = TOP + rows * (SIDE + TOP + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{escape(axes[1])} against {escape(axes[0])}</title>",
        f"<style>{STYLE}</style>",
    ]
    at = LEFT
    for kind, colour in colours.items():
        parts.append(f'<circle class="{colour}" cx="{at}" cy="14" r="4"/>')
        parts.append(f'<text x="{at + 9}" y="18">{escape(kind)}</text>')
        at += 26 + 7 * len(kind)
    for number, panel in enumerate(panels):
        x = LEFT + (number % columns) * (SIDE + GAP)
        y = TOP + TOP + (number // columns) * (SIDE + TOP + GAP)
        parts += _drawn(panel, x, y, colours, axes)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _drawn(
    panel: Panel, x: float, y: float, colours: dict[str, str], axes: tuple[str, str]
) -> list[str]:
    ends = [
        value + sign * half
        for point in panel.points
        for value, half in (
            (point.predicted, point.predicted_half),
            (point.observed, point.observed_half),
        )
        for sign in (-1, 1)
    ]
    margin = 0.03 * (max(ends) - min(ends))
    low, high = min(ends) - margin, max(ends) + margin

    def across(value: float) -> float:
        return round(x + SIDE * (value - low) / (high - low), 1)

    def up(value: float) -> float:
        return round(y + SIDE * (high - value) / (high - low), 1)

    parts = [
        f'<text class="title" x="{x}" y="{y - 8}">{escape(panel.title)}</text>',
        f'<rect class="axis" x="{x}" y="{y}" width="{SIDE}" height="{SIDE}"/>',
        _line("equal", x, y + SIDE, x + SIDE, y),
        f'<text x="{x + SIDE / 2}" y="{y + SIDE + 34}" text-anchor="middle">'
        f"{escape(axes[0])}</text>",
        f'<text transform="translate({x - 44},{y + SIDE / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(axes[1])}</text>",
    ]
    for tick in _ticks(low, high):
        label = f"{tick:g}"
        parts.append(_line("tick", across(tick), y + SIDE, across(tick), y + SIDE + 4))
        parts.append(
            f'<text x="{across(tick)}" y="{y + SIDE + 17}" text-anchor="middle">{label}</text>'
        )
        parts.append(_line("tick", x - 4, up(tick), x, up(tick)))
        parts.append(f'<text x="{x - 7}" y="{up(tick) + 4}" text-anchor="end">{label}</text>')
    for kind, colour in colours.items():
        for point in (p for p in panel.points if p.kind == kind):
            there, height = across(point.predicted), up(point.observed)
            if point.predicted_half:
                ends_at = [across(point.predicted + s * point.predicted_half) for s in (-1, 1)]
                parts.append(_line(colour, ends_at[0], height, ends_at[1], height))
            if point.observed_half:
                ends_at = [up(point.observed + s * point.observed_half) for s in (-1, 1)]
                parts.append(_line(colour, there, ends_at[0], there, ends_at[1]))
            radius = 2.5 if colour == "grey" else 4
            parts.append(f'<circle class="{colour}" cx="{there}" cy="{height}" r="{radius}"/>')
    return parts


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within a span: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
    first = math.ceil(low / step)
    return [round(n * step, 10) for n in range(first, math.floor(high / step) + 1)]
