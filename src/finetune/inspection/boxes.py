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
    """A node as it is drawn: its name, what stands beside that, its lines of text, and its size.

    head: the width of the name with what stands beside it. leaves: boxes to the left, each with its lines of
    text and whether they train.
    """

    node: Node
    beside: str
    head: float
    lines: list[str]
    leaves: list[tuple[list[str], bool]]

    @property
    def width(self) -> float:
        """Without its leaves, in inches."""
        return max(0.7, self.head, *(width_of(line, TEXT) for line in self.lines)) + 2 * PAD + 0.06

    @property
    def height(self) -> float:
        """As its text or its leaves need, in inches."""
        leaves = self.leaves_height + 0.07 if self.leaves else 0
        return max(LINE * (1 + len(self.lines)) + 2 * PAD, leaves)

    @property
    def leaves_width(self) -> float:
        """Of the boxes of its leaves, in inches."""
        return max((width_of(line, SMALL) for text, _ in self.leaves for line in text), default=0.0) + 0.14

    @property
    def leaves_height(self) -> float:
        """Of the leaves' text with the gap between two boxes, in inches."""
        return sum(len(text) for text, _ in self.leaves) * LEAF_LINE + (len(self.leaves) > 1) * LEAF_GAP

    @property
    def left(self) -> float:
        """How far it reaches to the left of its middle, with its leaves; in inches."""
        return self.width / 2 + (self.leaves_width + BESIDE if self.leaves else 0.0) + 0.12

    @property
    def right(self) -> float:
        """How far it reaches to the right of its middle, in inches."""
        return self.width / 2 + 0.12


def box_of(node: Node) -> Box:
    """The box of a node."""
    glued = ", ".join(
        f"{name}\N{NO-BREAK SPACE}{TIMES}{count}" if count > 1 else name
        for name, count in node.grad_fns.items()
    )
    lines = textwrap.wrap(glued, NAMES, break_long_words=False, break_on_hyphens=False)
    if node.late and not node.grad_fns:
        lines = ["detached: no grad_fn"]
    beside = shape_of(node.shape) if node.name == "image" else node.type
    head = width_of(node.name, TITLE, bold=True)
    if beside:
        head += BETWEEN + width_of(beside, TEXT)
    leaves = []
    for trains in (True, False):
        if some := [leaf for leaf in node.leaves.values() if leaf.requires_grad == trains]:
            leaves.append((_leaf_lines(some, node.name), trains))
    return Box(node, beside, head, lines, leaves=leaves)


def _leaf_lines(leaves: Sequence[Leaf], node: str) -> list[str]:
    """Two parameters by their names below the node's, more by their number."""
    if len(leaves) > 2:
        return [f"{len(leaves)} parameters, {sum(prod(leaf.shape) for leaf in leaves):,}"]
    return [f"{leaf.name.removeprefix(f'{node}.')} {shape_of(leaf.shape)}".strip() for leaf in leaves]


def shape_of(shape: tuple[int, ...]) -> str:
    """A shape as it is written in the drawing."""
    return TIMES.join(map(str, shape))


@cache
def width_of(text: str, size: float, bold: bool = False) -> float:
    """How wide a text of so many points is, in inches."""
    if not text:
        return 0.0
    font = FontProperties(family="sans-serif", weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text, size=size, prop=font).get_extents().width) / 72
