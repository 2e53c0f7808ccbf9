"""The nodes of an autograd graph as boxes: what is written in them, and how large that makes them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from finetune.inspection.graph import Leaf, Node

# All lengths are in inches, text sizes in points.
TITLE, TEXT, SMALL = 8.5, 6.8, 6.2
LINE, LEAF_LINE, LEAF_GAP = 0.13, 0.115, 0.063
PAD = 0.055
BETWEEN = 0.14  # a node's name and its type
BESIDE = 0.24  # a node and its parameters
TIMES = "\N{MULTIPLICATION SIGN}"
NAMES = 58  # letters in a line of grad_fn names


@dataclass(frozen=True)
class Box:
    """A node as it is drawn, with its leaves to the left of it.

    beside: what stands beside its name; head: the width of both. lines: below them. leaves: boxes, each with
    its lines of text and whether they train. reach: to the left and to the right of the node's middle.
    """

    node: Node
    beside: str
    head: float
    lines: list[str]
    width: float
    height: float
    leaves: list[tuple[list[str], bool]]
    leaves_size: tuple[float, float]
    reach: tuple[float, float]


def box_of(node: Node) -> Box:
    names = ", ".join(
        f"{name}\N{NO-BREAK SPACE}{TIMES}{count}" if count > 1 else name
        for name, count in node.grad_fns.items()
    )
    lines = textwrap.wrap(names, NAMES, break_long_words=False, break_on_hyphens=False)
    if node.late and not lines:
        lines = ["detached: no grad_fn"]
    beside = shape_text(node.shape) if node.name == "image" else node.type
    head = width_of(node.name, TITLE, bold=True)
    if beside:
        head += BETWEEN + width_of(beside, TEXT)
    width = max(0.7, head, *(width_of(line, TEXT) for line in lines)) + 2 * PAD + 0.06
    height = LINE * (1 + len(lines)) + 2 * PAD
    leaves = []
    for trains in (True, False):
        if some := [leaf for leaf in node.leaves.values() if leaf.requires_grad == trains]:
            leaves.append((_leaf_lines(some, node.name), trains))
    texts = [line for some, _ in leaves for line in some]
    leaves_width = max((width_of(text, SMALL) for text in texts), default=0.0) + 0.14
    leaves_height = len(texts) * LEAF_LINE + (len(leaves) > 1) * LEAF_GAP
    return Box(
        node=node,
        beside=beside,
        head=head,
        lines=lines,
        width=width,
        height=max(height, leaves_height + 0.07 if leaves else 0.0),
        leaves=leaves,
        leaves_size=(leaves_width, leaves_height),
        reach=(width / 2 + 0.12 + (leaves_width + BESIDE if leaves else 0.0), width / 2 + 0.12),
    )


def _leaf_lines(leaves: Sequence[Leaf], node: str) -> list[str]:
    """Two parameters by their names below the node's, more by their number."""
    if len(leaves) > 2:
        return [f"{len(leaves)} parameters, {sum(prod(leaf.shape) for leaf in leaves):,}"]
    return [f"{leaf.name.removeprefix(f'{node}.')} {shape_text(leaf.shape)}".strip() for leaf in leaves]


def shape_text(shape: tuple[int, ...]) -> str:
    return TIMES.join(map(str, shape))


@cache
def width_of(text: str, size: float, bold: bool = False) -> float:
    """In inches; size: in points."""
    if not text:
        return 0.0
    font = FontProperties(family="sans-serif", weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text, size=size, prop=font).get_extents().width) / 72
