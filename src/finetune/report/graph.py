"""The autograd graph of a training step as a picture: leaves above, the loss at the bottom."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Line

from finetune.atomic import write_atomically
from finetune.inspection.graph import Node
from finetune.inspection.layout import lay_out
from finetune.report.boxes import BESIDE, LINE, SMALL, TEXT, TITLE, Box, box_of, shape_of, width_of

# All lengths are in inches, text sizes in points.
GAP, MARGIN, RADIUS = 0.18, 0.35, 0.045
WIDTH = 6.4  # at least, for the title and the legend
FROZEN, FROZEN_EDGE, FROZEN_TEXT = "#f1f3f5", "#c5ccd3", "#67727e"
MOVING, MOVING_EDGE, MOVING_TEXT = "#e4effb", "#2f74b5", "#12395e"
ROOT, LEAF, LEAF_EDGE, LEAF_TEXT = "#1d4e80", "#fff0d9", "#d9861a", "#7a4300"
BOUNDARY = "#b3261e"
BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}


def draw(nodes: Sequence[Node], file: Path, title: str, subtitle: str, total: int, trainable: int) -> None:
    """Draw the nodes into a file, SVG or PNG by its ending.

    total, trainable: how many parameters there are, and how many of them train.

    Raises:
        RunError: the file cannot be written.
    """
    figure = figure_of(nodes, title, subtitle, f"{trainable:,} of {total:,} parameters train")
    kind = file.suffix.lower().removeprefix(".")
    # Text stays text, so that it can be searched and copied; the same graph gives the same file.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "finetune", "font.family": "sans-serif"}
    content = io.BytesIO()
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure.savefig(content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(file, content.getvalue())


def figure_of(nodes: Sequence[Node], title: str, subtitle: str, note: str) -> Figure:
    """The figure of a graph whose first node is the picture and whose last is the loss."""
    boxes = [box_of(node) for node in nodes]
    late = [node.late for node in nodes]
    place = lay_out([n.inputs for n in nodes], late, [b.left for b in boxes], [b.right for b in boxes])
    heights = [0.0] * (max(place.layers) + 1)
    for layer, box in zip(place.layers, boxes, strict=True):
        heights[layer] = max(heights[layer], box.height)
    first_late = min((layer for layer, one in zip(place.layers, late, strict=True) if one), default=0)
    crossed = first_late > 1  # something but the picture itself comes before
    tops, y = [], MARGIN + 0.85
    for layer, height in enumerate(heights):
        y += 0.3 if crossed and layer == first_late else 0.0
        tops.append(y)
        y += height + GAP
    width = max(place.width, WIDTH) + 2 * MARGIN
    height = y + 0.35 + MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    shift = (width - place.width) / 2
    x = [one + shift for one in place.x]
    for (source, node), bends in place.bends.items():
        between = range(place.layers[source] + 1, place.layers[node])
        points = [(x[source], tops[place.layers[source]] + boxes[source].height)]
        for bend, layer in zip(bends, between, strict=True):
            points += [(bend + shift, tops[layer]), (bend + shift, tops[layer] + heights[layer])]
        points.append((x[node], tops[place.layers[node]]))
        _edge(axes, points, late[source])
    for index, box in enumerate(boxes):
        _draw_box(axes, box, x[index], tops[place.layers[index]], index == len(boxes) - 1)
    _draw_title(axes, width, title, subtitle, note)
    if crossed:
        _draw_boundary(axes, width, tops[first_late] - 0.2, nodes)
    _draw_legend(axes, width, height - MARGIN, nodes)
    return figure


def _draw_box(axes: Axes, box: Box, x: float, top: float, root: bool) -> None:
    node, left = box.node, x - box.width / 2
    face, edge, text = (
        (ROOT, ROOT, "white")
        if root and node.late
        else (MOVING, MOVING_EDGE, MOVING_TEXT)
        if node.late
        else (FROZEN, FROZEN_EDGE, FROZEN_TEXT)
    )
    _rounded(axes, left, top, box.width, box.height, face, edge)
    y = top + (box.height - LINE * (1 + len(box.names))) / 2 + LINE / 2
    beside = node.type or (shape_of(node.shape) if node.name == "image" else "")
    head = width_of(node.name, TITLE, True)
    whole = head + (0.14 + width_of(beside, TEXT) if beside else 0)
    _text(axes, x - whole / 2, y, node.name, TITLE, text, weight="bold")
    if beside:
        _text(axes, x + whole / 2, y, beside, TEXT, text, ha="right")
    for number, line in enumerate(box.names, 1):
        _text(axes, x, y + number * LINE, line, TEXT, text, ha="center")
    if not root and node.shape and node.name != "image":
        _text(axes, x + 0.06, top + box.height + GAP / 2, shape_of(node.shape), 5.4, "#8a949e", bbox=BLANK)
    rows = sum(len(lines) for lines, _ in box.leaves) * 0.115 + 0.063 * max(0, len(box.leaves) - 1)
    y = top + (box.height - rows) / 2
    for lines, trains in box.leaves:
        tall = len(lines) * 0.115
        far = left - BESIDE - box.leaves_width
        face, edge, text = (LEAF, LEAF_EDGE, LEAF_TEXT) if trains else ("white", FROZEN_EDGE, FROZEN_TEXT)
        _rounded(axes, far, y - 0.02, box.leaves_width, tall + 0.04, face, edge)
        for number, line in enumerate(lines):
            _text(axes, far + 0.07, y + (number + 0.5) * 0.115, line, SMALL, text)
        _arrow(
            axes, [(left - BESIDE, y + tall / 2), (left, y + tall / 2)], LEAF_EDGE if trains else FROZEN_EDGE
        )
        y += tall + 0.063


def _draw_title(axes: Axes, width: float, title: str, subtitle: str, note: str) -> None:
    _text(
        axes,
        MARGIN,
        MARGIN + 0.06,
        f"{title}: the autograd graph of one training step",
        13,
        "#1b232b",
        weight="bold",
    )
    _text(axes, MARGIN, MARGIN + 0.32, subtitle, 9, "#3c4650")
    _text(axes, MARGIN, MARGIN + 0.51, note, 9, "#3c4650")


def _draw_boundary(axes: Axes, width: float, y: float, nodes: Sequence[Node]) -> None:
    crossing = {one for node in nodes if node.late for one in node.inputs if not nodes[one].late}
    shapes = " + ".join(shape_of(nodes[one].shape) for one in sorted(crossing))
    axes.plot([MARGIN, width - MARGIN], [y, y], color=BOUNDARY, linewidth=1.1, dashes=(5, 3), zorder=1)
    label = f"gradient boundary: {shapes} numbers a picture" if shapes else "gradient boundary"
    _text(axes, MARGIN, y - 0.09, label, 7.5, BOUNDARY, weight="bold")
    _text(axes, width - MARGIN, y - 0.09, "above: no grad_fn, frozen", 7, FROZEN_TEXT, ha="right")
    _text(axes, width - MARGIN, y + 0.1, "below: carries a gradient", 7, MOVING_EDGE, ha="right")


def _draw_legend(axes: Axes, width: float, y: float, nodes: Sequence[Node]) -> None:
    axes.plot([MARGIN, width - MARGIN], [y - 0.24] * 2, color="#dde2e7", linewidth=0.8)
    x = MARGIN
    for face, edge, text in (
        (FROZEN, FROZEN_EDGE, "frozen, no grad_fn"),
        (MOVING, MOVING_EDGE, "carries a gradient, by its grad_fn"),
        (LEAF, LEAF_EDGE, "leaf that trains: AccumulateGrad"),
        ("white", FROZEN_EDGE, "leaf that does not train"),
    ):
        _rounded(axes, x, y - 0.12, 0.2, 0.12, face, edge)
        _text(axes, x + 0.26, y - 0.06, text, SMALL, "#3c4650")
        x += 0.26 + width_of(text, SMALL) + 0.17


def _rounded(axes: Axes, x: float, y: float, width: float, height: float, face: str, edge: str) -> None:
    style = f"round,pad=0,rounding_size={RADIUS}"
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=0.8, zorder=3
        )
    )


def _text(axes: Axes, x: float, y: float, text: str, size: float, color: str, **style: Any) -> None:
    axes.text(x, y, text, fontsize=size, color=color, va="center_baseline", zorder=4, **style)


def _edge(axes: Axes, points: list[tuple[float, float]], gradient: bool) -> None:
    """A smooth line downwards through the points."""
    vertices, codes = [points[0]], [Line.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        vertices += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Line.CURVE4] * 3
    color = MOVING_EDGE if gradient else "#aab3bc"
    axes.add_patch(
        FancyArrowPatch(
            path=Line(vertices, codes),
            arrowstyle="-|>,head_length=2.4,head_width=1.5",
            color=color,
            linewidth=1.0,
            zorder=2,
            shrinkA=0,
            shrinkB=0,
        )
    )


def _arrow(axes: Axes, points: list[tuple[float, float]], color: str) -> None:
    axes.add_patch(
        FancyArrowPatch(
            *points,
            arrowstyle="-|>,head_length=2.4,head_width=1.5",
            color=color,
            linewidth=0.8,
            zorder=2,
            shrinkA=0,
            shrinkB=0,
        )
    )
