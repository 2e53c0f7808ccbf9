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
LINE, PAD = 0.13, 0.055
BESIDE = 0.24  # between a node and its parameters
TIMES = "\N{MULTIPLICATION SIGN}"
NAMES = 58  # letters in a line of grad_fn names


@dataclass(frozen=True)
class Box:
    """A node as it is drawn: its lines of text and its size, and its leaves to the left of it."""

    node: Node
    names: list[str]
    leaves: list[tuple[list[str], bool]]  # lines, and whether they train
    width: float
    height: float
    leaves_width: float

    @property
    def left(self) -> float:
        """How far it reaches to the left of its middle, with its leaves; in inches."""
        return self.width / 2 + (self.leaves_width + BESIDE if self.leaves else 0.0) + 0.12

    @property
    def right(self) -> float:
        """How far it reaches to the right of its middle, in inches."""
        return self.width / 2 + 0.12


def box_of(node: Node) -> Box:
    """The box of a node, as large as its text and its leaves need."""
    names = ", ".join(name + f" {TIMES}{count}" * (count > 1) for name, count in node.grad_fns.items())
    lines = _wrapped(names)
    if node.late and not node.grad_fns:
        lines = ["detached: no grad_fn"]
    head = width_of(node.name, TITLE, True) + (0.14 + width_of(node.type, TEXT) if node.type else 0)
    if not node.late and node.name == "image":
        head += 0.14 + width_of(shape_of(node.shape), TEXT)
    width = max([0.7, head, *(width_of(line, TEXT) for line in lines)]) + 2 * PAD + 0.06
    leaves = [
        (_told(some, node.name), trains)
        for trains in (True, False)
        if (some := [leaf for leaf in node.leaves.values() if leaf.requires_grad == trains])
    ]
    rows = sum(len(text) for text, _ in leaves) + 0.55 * max(0, len(leaves) - 1)
    height = max(LINE * (1 + len(lines)) + 2 * PAD, rows * 0.115 + (0.07 if rows else 0))
    leaves_width = max((width_of(line, SMALL) for text, _ in leaves for line in text), default=0.0) + 0.14
    return Box(node, lines, leaves, width, height, leaves_width)


def _wrapped(names: str) -> list[str]:
    glued = names.replace(f" {TIMES}", f"\N{NO-BREAK SPACE}{TIMES}")
    return textwrap.wrap(glued, NAMES, break_long_words=False, break_on_hyphens=False)


def _told(leaves: Sequence[Leaf], node: str) -> list[str]:
    """Two parameters by their names below the node's, more by their number."""
    if len(leaves) > 2:
        numbers = sum(prod(leaf.shape) for leaf in leaves)
        return [f"{len(leaves)} parameters, {numbers:,}"]
    return [f"{leaf.name.removeprefix(f'{node}.')} {shape_of(leaf.shape)}".strip() for leaf in leaves]


def shape_of(shape: tuple[int, ...]) -> str:
    """A shape as it is written in the picture."""
    return TIMES.join(map(str, shape))


@cache
def width_of(text: str, size: float, bold: bool = False) -> float:
    """How wide a text of so many points is, in inches."""
    if not text:
        return 0.0
    font = FontProperties(family="sans-serif", weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text, size=size, prop=font).get_extents().width) / 72
