"""The autograd graph of a training step as a drawing: leaves above, the loss at the bottom."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from finetune.atomic import write_atomically
from finetune.inspection.graph import Leaf, Node

# Lengths are in inches from the top left, sizes of text in points. Nodes stand in one column, in the order in
# which they run; those of a node's parameters to the left of it, and edges that pass others to the right.
MARGIN, GAP, LINE, PAD = 0.35, 0.2, 0.125, 0.06
LEAVES, WIDTH, BEND = 2.1, 3.5, 1.1  # how wide: leaves, a node, the longest edge to the right
TOP, BOTTOM, BOUNDARY_ROOM = 0.85, 0.4, 0.3
NAME, TEXT, SMALL = 8.5, 6.8, 6.2
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
    order = sorted(range(len(nodes)), key=lambda number: nodes[number].late)  # what is late is below the rest
    first_late = sum(not node.late for node in nodes)
    crossed = 1 < first_late < len(nodes)  # something but the image itself comes before
    tops, y = dict[int, float](), MARGIN + TOP
    for place, number in enumerate(order):
        y += BOUNDARY_ROOM * (crossed and place == first_late)
        tops[number] = y
        y += _height(nodes[number]) + GAP
    width, height = 2 * MARGIN + LEAVES + WIDTH + BEND, y - GAP + BOTTOM + MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for place, number in enumerate(order):
        node, top = nodes[number], tops[number]
        for source in node.inputs:
            begin, passed = (tops[source], _height(nodes[source])), place - order.index(source) - 1
            color = MOVING.edge if nodes[source].late else PASSES
            draw_edge(axes, begin, (top, _height(node)), passed, color=color)
        draw_node(axes, node, top)
        draw_leaves(axes, node, top + _height(node) / 2)
    if crossed:
        draw_boundary(axes, tops[order[first_late]] - BOUNDARY_ROOM / 2 - GAP / 4, nodes)
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


def draw_node(axes: Axes, node: Node, top: float) -> None:
    """A node's box: its name, to the right its type, and below what autograd calls it."""
    style = (LOSS if node.name == "loss" else MOVING) if node.late else FROZEN
    left, height = MARGIN + LEAVES, _height(node)
    box = f"round,pad=0,rounding_size={PAD}"
    frame = FancyBboxPatch((left, top), WIDTH, height, boxstyle=box, facecolor=style.face, zorder=3)
    frame.set(edgecolor=style.edge, linewidth=0.8)
    axes.add_patch(frame)
    y = top + PAD + LINE / 2
    beside = shape_text(node.shape) if node.name == "image" else node.type
    write(axes, (left + PAD, y), node.name, size=NAME, color=style.text, weight="bold")
    write(axes, (left + WIDTH - PAD, y), beside, size=TEXT, color=style.text, ha="right")
    for number, line in enumerate(grad_fn_lines(node), 1):
        write(axes, (left + PAD, y + number * LINE), line, size=TEXT, color=style.text)
    if node.shape and node.name not in ("image", "loss"):
        below = (left + WIDTH / 2 + PAD, top + height + GAP / 2)
        write(axes, below, shape_text(node.shape), size=5.4, color=SHAPE)


def draw_leaves(axes: Axes, node: Node, middle: float) -> None:
    """A node's parameters, those that train above the others, with arrows to it."""
    groups = leaf_groups(node)
    right, y = MARGIN + LEAVES - 0.25, middle - sum(_box(len(lines)) for lines, _ in groups) / 2
    for lines, style in groups:
        y += _box(len(lines)) / 2
        frame = {"boxstyle": "round,pad=0.3", "facecolor": style.face, "edgecolor": style.edge}
        look = {"ha": "right", "bbox": {**frame, "linewidth": 0.8}}
        write(axes, (right, y), "\n".join(lines), size=SMALL, color=style.text, **look)
        axes.add_patch(arrow(style.edge, posA=(right + 0.03, y), posB=(MARGIN + LEAVES, y)))
        y += _box(len(lines)) / 2


def draw_edge(axes: Axes, source: Point, target: Point, passed: int, color: str) -> None:
    """From one node's box to another's, each (top, height); to the right of the nodes that it passes."""
    if not passed:
        middle = MARGIN + LEAVES + WIDTH / 2
        axes.add_patch(arrow(color, posA=(middle, sum(source)), posB=(middle, target[0])))
        return
    side, begin, end = MARGIN + LEAVES + WIDTH, source[0] + source[1] * 0.7, target[0] + target[1] * 0.3
    bend = min(0.3 + 0.1 * passed, BEND)
    curve = f"arc3,rad={-2 * bend / (end - begin)}"  # whose middle is half of rad times its length away
    axes.add_patch(arrow(color, posA=(side, begin), posB=(side, end), connectionstyle=curve))


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
    axes.text(*at, text, fontsize=size, color=color, va="center", zorder=4, **style)


def arrow(color: str, **ends: Any) -> FancyArrowPatch:
    head = "-|>,head_length=2.4,head_width=1.5"
    return FancyArrowPatch(**ends, arrowstyle=head, color=color, zorder=2, shrinkA=0, shrinkB=0)


def grad_fn_lines(node: Node) -> list[str]:
    names = ", ".join(
        f"{name}\N{NO-BREAK SPACE}{TIMES}{count}" if count > 1 else name
        for name, count in node.grad_fns.items()
    )
    if node.late and not names:
        return ["detached: no grad_fn"]
    return textwrap.wrap(names, NAMES, break_long_words=False, break_on_hyphens=False)


def leaf_groups(node: Node) -> list[tuple[list[str], Style]]:
    """The lines of a node's leaves that train, and of those that do not."""
    groups = []
    for trains, style in ((True, LEAF), (False, FROZEN_LEAF)):
        if some := [leaf for leaf in node.leaves.values() if leaf.requires_grad == trains]:
            groups.append((leaf_lines(some, node.name), style))
    return groups


def leaf_lines(leaves: Sequence[Leaf], node: str) -> list[str]:
    """Two parameters by their names below the node's, more by their number."""
    if len(leaves) > 2:
        return [f"{len(leaves)} parameters, {sum(prod(leaf.shape) for leaf in leaves):,}"]
    return [f"{leaf.name.removeprefix(f'{node}.')} {shape_text(leaf.shape)}".strip() for leaf in leaves]


def shape_text(shape: tuple[int, ...]) -> str:
    return TIMES.join(map(str, shape))


def _height(node: Node) -> float:
    """Of a node's row: its own box, or what stands beside it."""
    return max(_box(1 + len(grad_fn_lines(node))), sum(_box(len(lines)) for lines, _ in leaf_groups(node)))


def _box(lines: int) -> float:
    return 2 * PAD + lines * LINE
