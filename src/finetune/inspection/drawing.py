"""The autograd graph of a training step as a drawing: leaves above, the loss at the bottom."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Line

from finetune.atomic import write_atomically
from finetune.inspection.boxes import (
    BESIDE,
    LEAF_GAP,
    LEAF_LINE,
    LINE,
    SMALL,
    TEXT,
    TITLE,
    Box,
    box_of,
    shape_text,
    width_of,
)
from finetune.inspection.graph import Node
from finetune.inspection.layout import lay_out

# All lengths are in inches from the top left, text sizes in points.
GAP, MARGIN, RADIUS = 0.18, 0.35, 0.045
WIDTH = 6.4  # at least, for the title and the legend
Point = tuple[float, float]


class Style(NamedTuple):
    face: str
    edge: str
    text: str


FROZEN = Style("#f1f3f5", "#c5ccd3", "#67727e")
MOVING = Style("#e4effb", "#2f74b5", "#12395e")
LOSS = Style("#1d4e80", "#1d4e80", "white")
LEAF = Style("#fff0d9", "#d9861a", "#7a4300")
FROZEN_LEAF = FROZEN._replace(face="white")
BOUNDARY, PASSES, SHAPE, PLAIN = "#b3261e", "#aab3bc", "#8a949e", "#3c4650"


def draw(nodes: Sequence[Node], file: Path, title: str, lines: Sequence[str]) -> None:
    """Draw the nodes into an SVG or PNG file; lines: below the title. RunError: it cannot be written."""
    figure = figure_of(nodes, title, lines)
    kind = file.suffix.lower().removeprefix(".")
    # Text stays text, so that it can be searched and copied; the same graph gives the same file.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "finetune", "font.family": "sans-serif"}
    content = io.BytesIO()
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure.savefig(content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(file, content.getvalue())


def figure_of(nodes: Sequence[Node], title: str, lines: Sequence[str]) -> Figure:
    """The figure of a graph whose first node is the image and whose last is the loss."""
    boxes, late = [box_of(node) for node in nodes], [node.late for node in nodes]
    layout = lay_out([node.inputs for node in nodes], late, [box.reach for box in boxes])
    first_late = min((layer for layer, one in zip(layout.layers, late, strict=True) if one), default=0)
    crossed = first_late > 1  # something but the image itself comes before
    heights = [0.0] * (max(layout.layers) + 1)
    for layer, box in zip(layout.layers, boxes, strict=True):
        heights[layer] = max(heights[layer], box.height)
    tops, y = [], MARGIN + 0.85
    for layer, tallest in enumerate(heights):
        y += 0.3 if crossed and layer == first_late else 0.0
        tops.append(y)
        y += tallest + GAP
    width, height = max(layout.width, WIDTH) + 2 * MARGIN, y + 0.35 + MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    page = _Page(axes, width)
    shift = (width - layout.width) / 2
    at = [(layout.x[number] + shift, tops[layer]) for number, layer in enumerate(layout.layers)]
    for number, node in enumerate(nodes):
        for source in node.inputs:
            points = [(at[source][0], at[source][1] + boxes[source].height)]
            for layer in range(layout.layers[source] + 1, layout.layers[number]):
                x = layout.x[source, number, layer] + shift
                points += [(x, tops[layer]), (x, tops[layer] + heights[layer])]
            page.arrow(_smooth([*points, at[number]]), MOVING.edge if late[source] else PASSES)
    for box, (x, top) in zip(boxes, at, strict=True):
        page.draw_box(box, x, top)
        page.draw_leaves(box, x - box.width / 2, top)
    title = f"{title}: the autograd graph of one training step"
    page.text((MARGIN, MARGIN + 0.06), title, 13, "#1b232b", weight="bold")
    for number, line in enumerate(lines):
        page.text((MARGIN, MARGIN + 0.32 + 0.19 * number), line, 9, PLAIN)
    if crossed:
        page.draw_boundary(tops[first_late] - 0.2, nodes)
    page.draw_legend(height - MARGIN)
    return figure


@dataclass
class _Page:
    """What is drawn on; width: of the whole."""

    axes: Axes
    width: float

    def draw_box(self, box: Box, x: float, top: float) -> None:
        """A box with its text, and below it the shape of its output; x: of its middle."""
        node = box.node
        style = MOVING if node.late else FROZEN
        if node.late and node.name == "loss":
            style = LOSS
        self.rounded((x - box.width / 2, top), (box.width, box.height), style)
        y = top + (box.height - LINE * len(box.lines)) / 2
        self.text((x - box.head / 2, y), node.name, TITLE, style.text, weight="bold")
        self.text((x + box.head / 2, y), box.beside, TEXT, style.text, ha="right")
        for number, line in enumerate(box.lines, 1):
            self.text((x, y + number * LINE), line, TEXT, style.text, ha="center")
        if node.shape and node.name != "image":
            blank = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            below = (x + 0.06, top + box.height + GAP / 2)
            self.text(below, shape_text(node.shape), 5.4, SHAPE, bbox=blank)

    def draw_leaves(self, box: Box, left: float, top: float) -> None:
        """The parameters of a box to its left, with arrows into it; left: its edge."""
        y = top + (box.height - box.leaves_size[1]) / 2
        for lines, trains in box.leaves:
            style = LEAF if trains else FROZEN_LEAF
            x, height = left - BESIDE - box.leaves_size[0], len(lines) * LEAF_LINE
            self.rounded((x, y - 0.02), (box.leaves_size[0], height + 0.04), style)
            for number, line in enumerate(lines):
                self.text((x + 0.07, y + (number + 0.5) * LEAF_LINE), line, SMALL, style.text)
            self.arrow(Line([(left - BESIDE, y + height / 2), (left, y + height / 2)]), style.edge)
            y += height + LEAF_GAP

    def draw_boundary(self, y: float, nodes: Sequence[Node]) -> None:
        crossing = {one for node in nodes if node.late for one in node.inputs if not nodes[one].late}
        shapes = " + ".join(shape_text(nodes[one].shape) for one in sorted(crossing))
        self.axes.plot(
            [MARGIN, self.width - MARGIN], [y, y], color=BOUNDARY, linewidth=1.1, dashes=(5, 3), zorder=1
        )
        label = f"gradient boundary: {shapes} numbers an image" if shapes else "gradient boundary"
        self.text((MARGIN, y - 0.09), label, 7.5, BOUNDARY, weight="bold")
        self.text((self.width - MARGIN, y - 0.09), "above: no grad_fn, frozen", 7, FROZEN.text, ha="right")
        self.text((self.width - MARGIN, y + 0.1), "below: carries a gradient", 7, MOVING.edge, ha="right")

    def draw_legend(self, y: float) -> None:
        self.axes.plot([MARGIN, self.width - MARGIN], [y - 0.24] * 2, color="#dde2e7", linewidth=0.8)
        x = MARGIN
        for style, text in (
            (FROZEN, "frozen, no grad_fn"),
            (MOVING, "carries a gradient, by its grad_fn"),
            (LEAF, "leaf that trains: AccumulateGrad"),
            (FROZEN_LEAF, "leaf that does not train"),
        ):
            self.rounded((x, y - 0.12), (0.2, 0.12), style)
            self.text((x + 0.26, y - 0.06), text, SMALL, PLAIN)
            x += 0.26 + width_of(text, SMALL) + 0.17

    def rounded(self, corner: Point, size: Point, style: Style) -> None:
        shape = f"round,pad=0,rounding_size={RADIUS}"
        patch = FancyBboxPatch(corner, *size, boxstyle=shape, linewidth=0.8, zorder=3)
        patch.set(facecolor=style.face, edgecolor=style.edge)
        self.axes.add_patch(patch)

    def text(self, at: Point, text: str, size: float, color: str, **style: Any) -> None:
        self.axes.text(*at, text, fontsize=size, color=color, va="center_baseline", zorder=4, **style)

    def arrow(self, path: Line, color: str) -> None:
        head = "-|>,head_length=2.4,head_width=1.5"
        self.axes.add_patch(
            FancyArrowPatch(path=path, arrowstyle=head, color=color, zorder=2, shrinkA=0, shrinkB=0)
        )


def _smooth(points: Sequence[Point]) -> Line:
    """A line through the points, each stretch upright at both ends."""
    vertices, codes = [points[0]], [Line.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        vertices += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Line.CURVE4] * 3
    return Line(vertices, codes)
