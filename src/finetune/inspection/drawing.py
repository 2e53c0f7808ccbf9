"""The autograd graph of a training step as a drawing: leaves above, the loss at the bottom."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, DrawingArea, HPacker, OffsetBox, PaddedBox, TextArea, VPacker
from matplotlib.patches import FancyArrowPatch, Patch
from matplotlib.path import Path as Line

from finetune.atomic import write_atomically
from finetune.inspection.graph import Leaf, Node
from finetune.inspection.layout import lay_out

# Lengths on the page are in inches from the top left, those within a node and sizes of text in points.
POINTS = 72  # an inch
GAP, MARGIN, ROOM = 0.18, 0.35, 0.12
WIDTH = 6.4  # at least, for the title and the legend
TITLE, TEXT, SMALL = 8.5, 6.8, 6.2
ARROW = (17, 4)  # from a parameter to its node
NAMES = 58  # letters in a line of grad_fn names
TIMES = "\N{MULTIPLICATION SIGN}"
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
LEGEND = {
    "frozen, no grad_fn": FROZEN,
    "carries a gradient, by its grad_fn": MOVING,
    "leaf that trains: AccumulateGrad": LEAF,
    "leaf that does not train": FROZEN_LEAF,
}
BOUNDARY, PASSES, SHAPE, PLAIN = "#b3261e", "#aab3bc", "#8a949e", "#3c4650"


def draw(nodes: Sequence[Node], file: Path, title: str, lines: Sequence[str]) -> None:
    """Draw the nodes into an SVG or PNG file; lines: below the title. RunError: it cannot be written."""
    kind = file.suffix.lower().removeprefix(".")
    # Text stays text, so that it can be searched and copied; the same graph gives the same file.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "finetune", "text.hinting": "none"}
    content = io.BytesIO()
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure_of(nodes, title, lines).savefig(
            content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None
        )
    write_atomically(file, content.getvalue())


def figure_of(nodes: Sequence[Node], title: str, lines: Sequence[str]) -> Figure:
    """The figure of a graph whose first node is the image and whose last is the loss."""
    figure = Figure(dpi=POINTS, facecolor="white")
    late, boxes = [node.late for node in nodes], [framed(node) for node in nodes]
    wholes = [beside_leaves(node, box) for node, box in zip(nodes, boxes, strict=True)]
    own, outer = (np.array([size_of(one, figure) for one in some]) for some in (boxes, wholes))
    right = own[:, 0] / 2
    reach = list(zip(outer[:, 0] - right + ROOM, right + ROOM, strict=True))
    layout = lay_out([node.inputs for node in nodes], late, reach)
    layers = np.array(layout.layers)
    first_late = int(layers[late].min(initial=layers.max()))
    crossed = any(late) and first_late > 1  # something but the image itself comes before
    heights = [outer[layers == layer, 1].max() for layer in range(layers.max() + 1)]
    tops = MARGIN + 0.85 + np.cumsum([0, *heights[:-1]]) + GAP * np.arange(len(heights))
    tops[first_late:] += 0.3 * crossed
    width, height = max(layout.width, WIDTH) + 2 * MARGIN, tops[-1] + heights[-1] + 0.4 + MARGIN
    figure.set_size_inches(width, height)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    x = {key: one + (width - layout.width) / 2 for key, one in layout.x.items()}
    begins = tops[layers] + (outer[:, 1] - own[:, 1]) / 2
    ends = begins + own[:, 1]
    for number, node in enumerate(nodes):
        for source in node.inputs:
            points = [(x[source], ends[source])]
            for layer in range(layers[source] + 1, layers[number]):
                across = x[source, number, layer]
                points += [(across, tops[layer]), (across, tops[layer] + heights[layer])]
            line = _smooth([*points, (x[number], begins[number])])
            axes.add_patch(arrow(MOVING.edge if late[source] else PASSES, path=line))
        corner = (x[number] + right[number], tops[layers[number]])
        axes.add_artist(AnnotationBbox(wholes[number], corner, frameon=False, pad=0, box_alignment=(1, 1)))
        if node.shape and node.name != "image":
            blank = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            below = (x[number] + 0.06, ends[number] + GAP / 2)
            write(axes, below, shape_text(node.shape), size=5.4, color=SHAPE, bbox=blank)
    if crossed:
        draw_boundary(axes, tops[first_late] - 0.2, nodes)
    draw_text(figure, title, lines)
    return figure


def draw_text(figure: Figure, title: str, lines: Sequence[str]) -> None:
    """What stands above the graph, and the legend below it."""
    (axes,), title = figure.axes, f"{title}: the autograd graph of one training step"
    write(axes, (MARGIN, MARGIN + 0.06), title, size=13, color="#1b232b", weight="bold")
    for number, text in enumerate(lines):
        write(axes, (MARGIN, MARGIN + 0.32 + 0.19 * number), text, size=9, color=PLAIN)
    handles = [Patch(facecolor=one.face, edgecolor=one.edge, label=text) for text, one in LEGEND.items()]
    look = {"frameon": False, "fontsize": SMALL, "labelcolor": PLAIN}
    figure.legend(handles=handles, loc="lower center", ncols=len(LEGEND), **look)


def framed(node: Node) -> OffsetBox:
    """A node's own box: its name, beside it its type, and below what autograd calls it."""
    style = MOVING if node.late else FROZEN
    if node.late and node.name == "loss":
        style = LOSS
    names = ", ".join(
        f"{name}\N{NO-BREAK SPACE}{TIMES}{count}" if count > 1 else name
        for name, count in node.grad_fns.items()
    )
    lines = textwrap.wrap(names, NAMES, break_long_words=False, break_on_hyphens=False)
    if node.late and not lines:
        lines = ["detached: no grad_fn"]
    beside = shape_text(node.shape) if node.name == "image" else node.type
    head: list[Artist] = [
        words(node.name, TITLE, style, weight="bold"),
        *[words(beside, TEXT, style)] * bool(beside),
    ]
    packed = [
        HPacker(children=head, pad=0, sep=10, align="baseline"),
        *(words(one, TEXT, style) for one in lines),
    ]
    return frame(packed, 4, style, "center")


def beside_leaves(node: Node, box: OffsetBox) -> OffsetBox:
    """A node's box, and to the left of it those of its parameters, with arrows."""
    rows: list[Artist] = []
    for trains, style in ((True, LEAF), (False, FROZEN_LEAF)):
        if some := [leaf for leaf in node.leaves.values() if leaf.requires_grad == trains]:
            leaf = frame(
                [words(line, SMALL, style) for line in leaf_lines(some, node.name)], 2, style, "left"
            )
            area = DrawingArea(*ARROW)
            area.add_artist(arrow(style.edge, posA=(0, ARROW[1] / 2), posB=(ARROW[0], ARROW[1] / 2)))
            rows.append(HPacker(children=[leaf, area], pad=0, sep=0, align="center"))
    leaves = [VPacker(children=rows, pad=0, sep=4, align="right")] if rows else []
    return HPacker(children=[*leaves, box], pad=0, sep=0, align="center")


def frame(children: Sequence[OffsetBox], pad: float, style: Style, align: Any) -> OffsetBox:
    """What stands below each other, in a box."""
    shape = {"boxstyle": "round,pad=0,rounding_size=3", "facecolor": style.face, "edgecolor": style.edge}
    packed = VPacker(children=list(children), pad=0, sep=2, align=align)
    return PaddedBox(packed, pad, draw_frame=True, patch_attrs={**shape, "linewidth": 0.8})


def words(text: str, size: float, style: Style, **more: Any) -> TextArea:
    return TextArea(text, textprops={"fontsize": size, "color": style.text, **more})


def size_of(box: OffsetBox, figure: Figure) -> Point:
    """Width and height in inches."""
    box.set_figure(figure)
    extent = box.get_bbox(FigureCanvasAgg(figure).get_renderer())
    return extent.width / POINTS, extent.height / POINTS


def draw_boundary(axes: Axes, y: float, nodes: Sequence[Node]) -> None:
    crossing = {one for node in nodes if node.late for one in node.inputs if not nodes[one].late}
    shapes = " + ".join(shape_text(nodes[one].shape) for one in sorted(crossing))
    right = axes.get_xlim()[1] - MARGIN
    axes.plot([MARGIN, right], [y, y], color=BOUNDARY, linewidth=1.1, dashes=(5, 3), zorder=1)
    label = f"gradient boundary: {shapes} numbers an image" if shapes else "gradient boundary"
    write(axes, (MARGIN, y - 0.09), label, size=7.5, color=BOUNDARY, weight="bold")
    write(axes, (right, y - 0.09), "above: no grad_fn, frozen", size=7, color=FROZEN.text, ha="right")
    write(axes, (right, y + 0.1), "below: carries a gradient", size=7, color=MOVING.edge, ha="right")


def write(axes: Axes, at: Point, text: str, size: float, color: str, **style: Any) -> None:
    axes.text(*at, text, fontsize=size, color=color, va="center_baseline", zorder=4, **style)


def arrow(color: str, **ends: Any) -> FancyArrowPatch:
    head = "-|>,head_length=2.4,head_width=1.5"
    return FancyArrowPatch(**ends, arrowstyle=head, color=color, zorder=2, shrinkA=0, shrinkB=0)


def leaf_lines(leaves: Sequence[Leaf], node: str) -> list[str]:
    """Two parameters by their names below the node's, more by their number."""
    if len(leaves) > 2:
        return [f"{len(leaves)} parameters, {sum(prod(leaf.shape) for leaf in leaves):,}"]
    return [f"{leaf.name.removeprefix(f'{node}.')} {shape_text(leaf.shape)}".strip() for leaf in leaves]


def shape_text(shape: tuple[int, ...]) -> str:
    return TIMES.join(map(str, shape))


def _smooth(points: Sequence[Point]) -> Line:
    """A line through the points, each stretch upright at both ends."""
    vertices, codes = [points[0]], [Line.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        vertices += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Line.CURVE4] * 3
    return Line(vertices, codes)
