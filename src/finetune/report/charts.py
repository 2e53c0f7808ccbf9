"""What the report's diagrams show and where; charts.html draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from finetune.report.templates import template

FEW = 10  # answers that say little
Points = Sequence[tuple[float, float]]


def curve_chart(
    title: str, series: Mapping[str, Points], best: float | None, top: float | None = None
) -> Markup:
    """Lines over epochs by name, their CSS class; best: an epoch to mark; top: the scale's end, if known."""
    values = [y for points in series.values() for _, y in points]
    epochs = [x for points in series.values() for x, _ in points]
    ticks = nice_ticks(min(0.0, *values), top or max(*values, 1e-9))
    first, last = min(epochs), max(max(epochs), min(epochs) + 1)
    x = partial(np.interp, xp=(first, last), fp=(40, 370))
    y = partial(np.interp, xp=(ticks[0], ticks[-1]), fp=(194, 12))
    below = [tick for tick in nice_ticks(first, last, whole=True) if first <= tick <= last]
    return template("charts.html").module.curves(  # type: ignore[attr-defined]
        title,
        ticks=[(f"{tick:g}", y(tick)) for tick in ticks],
        epochs=[(f"{tick:,.0f}", x(tick)) for tick in below],
        mark=None if best is None else x(best),
        series={name: [(x(a), y(b)) for a, b in points] for name, points in series.items()},
    )


def reliability_chart(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """Accuracy over confidence, a dot a bin of `calibration_bins`, as large as its share of the answers."""
    x, y = (partial(np.interp, xp=(0, 1), fp=ends) for ends in ((40, 290), (268, 18)))

    def dot(one: Mapping[str, Any], total: int) -> dict[str, Any]:
        sure, right, count = one["confidence"], one["accuracy"], one["pictures"]
        return {
            "place": (x(sure), y(right)),
            "radius": 2 + 14 * math.sqrt(count / total),
            "few": count < FEW,
            "hint": f"{count} answers of confidence {sure:.0%}: {right:.0%} right",
        }

    totals = {name: sum(one["pictures"] for one in bins) for name, bins in series.items()}
    return template("charts.html").module.reliability(  # type: ignore[attr-defined]
        ticks=[(f"{tick:g}", x(tick), y(tick)) for tick in (0, 0.25, 0.5, 0.75, 1)],
        series={
            name: [dot(one, totals[name]) for one in bins if one["pictures"]] for name, bins in series.items()
        },
    )


def confusion_chart(matrix: np.ndarray, classes: Sequence[str], totals: np.ndarray) -> Markup:
    """Counts by true class (rows) and answer (columns), coloured by their share of the class's total."""
    names = [*classes, "no class"][: matrix.shape[1]]
    return template("charts.html").module.confusion(  # type: ignore[attr-defined]
        matrix.tolist(),
        shares=(matrix / np.maximum(totals, 1)[:, None]).tolist(),
        classes=classes,
        names=names,
        shortened=shortened,
        margin=12 + 6.9 * min(max(map(len, names)), 16),
        cell=30,
    )


def nice_ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Some round numbers from `low` or below to `high` or above."""
    locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole)
    return [round(float(tick), 12) for tick in locator.tick_values(low, max(high, low + 1e-9))]


def shortened(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
