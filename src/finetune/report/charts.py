"""The report's diagrams as SVG: crisp at any size, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

FEW = 10  # answers that say little
Points = Sequence[tuple[float, float]]


def curve_chart(
    title: str, series: Mapping[str, Points], best: float | None, top: float | None = None
) -> Markup:
    """Lines over epochs by name, their CSS class; best: an epoch to mark; top: the scale's end, if known."""
    width, height, left, right, above, below = 380, 220, 40, 10, 12, 26
    values = [y for points in series.values() for _, y in points]
    epochs = [x for points in series.values() for x, _ in points]
    ticks = nice_ticks(min(0.0, *values), top or max(*values, 1e-9))
    low, high = ticks[0], ticks[-1]
    first, last = min(epochs), max(max(epochs), min(epochs) + 1)

    def x(epoch: float) -> float:
        return left + (epoch - first) / (last - first) * (width - left - right)

    def y(value: float) -> float:
        return height - below - (value - low) / (high - low) * (height - above - below)

    parts = []
    for tick in ticks:
        parts.append(_line("grid", (left, y(tick)), (width - right, y(tick))))
        parts.append(_text(f"{tick:g}", left - 6, y(tick) + 4, "end"))
    for tick in epoch_ticks(int(first), int(last)):
        middle = min(x(tick), width - 3.5 * len(f"{tick:,}"))  # the last one is not clipped
        parts.append(_text(f"{tick:,}", middle, height - below + 16, "middle"))
    if best is not None:
        parts.append(_line("mark", (x(best), above), (x(best), height - below)))
    for name, points in series.items():
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        parts.append(f'<polyline class="line {escape(name)}" points="{path}"/>')
        a, b = points[-1]
        parts.append(f'<circle class="dot {escape(name)}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5"/>')
    return _svg(title, width, height, parts)


def reliability_chart(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """Accuracy over confidence, a dot a bin of `calibration_bins`, as large as its share of the answers."""
    size, left, above = 308, 40, 18  # room for the largest dot
    edge = size - left - above

    def x(value: float) -> float:
        return left + value * edge

    def y(value: float) -> float:
        return above + (1 - value) * edge

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line("grid", (x(0), y(tick)), (x(1), y(tick))))
        parts.append(_text(f"{tick:g}", left - 6, y(tick) + 4, "end"))
        parts.append(_text(f"{tick:g}", x(tick), y(0) + 16, "middle"))
    parts.append(_text("confidence", x(0.5), y(0) + 31, "middle"))
    parts.append(_line("mark", (x(0), y(0)), (x(1), y(1))))
    for name, bins in series.items():
        total = sum(one["pictures"] for one in bins)
        found = [(one["confidence"], one["accuracy"], one["pictures"]) for one in bins if one["pictures"]]
        path = " ".join(f"{x(confidence):.1f},{y(accuracy):.1f}" for confidence, accuracy, _ in found)
        parts.append(f'<polyline class="line {escape(name)}" points="{path}"/>')
        for confidence, accuracy, count in found:
            few = " few" if count < FEW else ""
            radius = 2 + 14 * math.sqrt(count / total)
            hint = f"{count} answers of confidence {confidence:.0%}: {accuracy:.0%} right"
            parts.append(
                f'<circle class="dot {escape(name)}{few}" cx="{x(confidence):.1f}" cy="{y(accuracy):.1f}"'
                f' r="{radius:.1f}"><title>{hint}</title></circle>'
            )
    return _svg("accuracy over confidence", size, size + 4, parts)


def confusion_chart(matrix: np.ndarray, classes: Sequence[str], totals: np.ndarray) -> Markup:
    """Counts by true class (rows) and answer (columns), coloured by their share of the class's total."""
    rows, columns = matrix.shape
    names = [*classes, "no class"][:columns]
    cell = 30
    margin = 12 + 6.9 * min(max(map(len, names)), 16)
    parts = [
        _text(shortened(name), margin - 6, margin + (i + 0.5) * cell + 4, "end")
        for i, name in enumerate(classes)
    ]
    for i, name in enumerate(names):
        across = margin + (i + 0.5) * cell + 4
        turn = f"rotate(-90 {across} {margin - 6})"
        parts.append(_text(shortened(name), across, margin - 6, "start", transform=turn))
    shares = matrix / np.maximum(totals, 1)[:, None]
    for (row, column), count in np.ndenumerate(matrix):
        left, top, share = margin + column * cell, margin + row * cell, float(shares[row, column])
        kind, over = "right" if row == column else "wrong", " over" if share > 0.5 else ""
        hint = escape(f"{count} of {classes[row]} answered as {names[column]}")
        place = f'x="{left}" y="{top}" width="{cell - 1}" height="{cell - 1}"'
        parts.append(f'<rect class="cell" {place}/>')
        if count:
            opacity = f'fill-opacity="{0.12 + 0.88 * share:.3f}"'
            parts.append(f'<rect class="{kind}" {place} {opacity}><title>{hint}</title></rect>')
            middle = f'x="{left + cell / 2}" y="{top + cell / 2 + 4}" text-anchor="middle"'
            parts.append(f'<text class="count{over}" {middle}>{count}</text>')
    width, height = math.ceil(margin + columns * cell), math.ceil(margin + rows * cell)
    return _svg("confusion matrix", width, height, parts, least=round(0.65 * width))


def nice_ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Some round numbers from `low` or below to `high` or above."""
    locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole)
    return [round(float(tick), 12) for tick in locator.tick_values(low, max(high, low + 1e-9))]


def epoch_ticks(first: int, last: int) -> list[int]:
    """Whole epochs to write below an axis: both ends and some between, not too near to them."""
    between = [int(tick) for tick in nice_ticks(first, last, whole=True)]
    near = 0.6 * (between[1] - between[0])
    return [first, *(tick for tick in between if first + near <= tick <= last - near), last]


def shortened(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(text: str, x: float, y: float, anchor: str, transform: str = "") -> str:
    turned = f' transform="{transform}"' if transform else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{escape(text)}</text>'


def _svg(title: str, width: int, height: int, parts: Sequence[str], least: int = 0) -> Markup:
    """least: pixels below which the page scrolls the diagram, where it would become too small to read."""
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" style="--width:{width}px;--least:{least}px" role="img"'
        f' aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
