"""Positions on the page for the nodes of a graph, in layers from top to bottom.

The method is that of Sugiyama, Tagawa and Toda (1981): layers by the longest path, an order within each layer
that leaves few edges crossing, then positions near the neighbours'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from sklearn.isotonic import isotonic_regression

SWEEPS = 24
BEND = 0.125  # room on either side of an edge that passes a layer


class Layout(NamedTuple):
    """layers: of each node, from 0 at the top. x: the middle of each node, by its number, and of each edge
    where it passes a layer, by (from, to, layer). width: of the whole, which begins at x = 0.
    """

    layers: list[int]
    x: dict[Any, float]
    width: float


def lay_out(
    inputs: Sequence[Sequence[int]], late: Sequence[bool], reach: Sequence[tuple[float, float]]
) -> Layout:
    """Lay out the nodes of a graph; inputs: of each node, the nodes that it comes from.

    late: below the boundary, where no other node may be. reach: to the left and the right of a node's middle.
    """
    layers = _layers(inputs, late)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(inputs)))
    for node, sources in enumerate(inputs):
        for source in sources:
            passed = [(source, node, layer) for layer in range(layers[source] + 1, layers[node])]
            nx.add_path(graph, [source, *passed, node])
    rows: list[list[Any]] = [[] for _ in range(max(layers) + 1)]
    reaches: dict[Any, tuple[float, float]] = {}
    for one in graph:
        is_node = isinstance(one, int)
        rows[layers[one] if is_node else one[2]].append(one)
        reaches[one] = reach[one] if is_node else (BEND, BEND)
    x = _positions(graph, rows, reaches)
    start = min(x[one] - reaches[one][0] for one in graph)
    width = max(x[one] + reaches[one][1] for one in graph) - start
    return Layout(layers, {one: x[one] - start for one in graph}, width)


def _layers(inputs: Sequence[Sequence[int]], late: Sequence[bool]) -> list[int]:
    """The longest path to each node, those below the boundary under all others; sources are drawn down."""
    graph = nx.DiGraph((source, node) for node, sources in enumerate(inputs) for source in sources)
    graph.add_nodes_from(range(len(inputs)))
    for node, below in enumerate(late):
        graph.add_edge(*(("boundary", node) if below else (node, "boundary")))
    layers: dict[Any, int] = {}
    for layer, nodes in enumerate(nx.topological_generations(graph)):
        layers |= dict.fromkeys(nodes, layer)
    for node, sources in enumerate(inputs):
        if node and not sources:
            layers[node] = min((layers[one] - 1 for one in graph.successors(node)), default=layers[node])
    return [layers[node] - late[node] for node in range(len(inputs))]  # the boundary takes a layer of its own


def _positions(
    graph: nx.DiGraph, rows: list[list[Any]], reach: Mapping[Any, tuple[float, float]]
) -> dict[Any, float]:
    """The middle of each node: near its neighbours above and below in turns, with few edges crossing."""
    x = dict.fromkeys(graph, 0.0)
    for row in rows:
        x |= _spread(row, x, reach)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = graph.predecessors if down else graph.successors
        for row in rows if down else reversed(rows):
            wanted = {one: _middle(neighbours(one), x, x[one]) for one in row}
            if sweep < SWEEPS // 2:
                row.sort(key=wanted.__getitem__)
            x |= _spread(row, wanted, reach)
    return x


def _middle(neighbours: Iterable[Any], x: Mapping[Any, float], otherwise: float) -> float:
    """The mean of the neighbours' positions; edges that only pass do not pull where there are boxes."""
    near = list(neighbours)
    near = [one for one in near if isinstance(one, int)] or near
    return sum(x[one] for one in near) / len(near) if near else otherwise


def _spread(
    row: Sequence[Any], wanted: Mapping[Any, float], reach: Mapping[Any, tuple[float, float]]
) -> dict[Any, float]:
    """The nodes of a row in their order, without overlaps, as near to the wanted positions as can be."""
    if not row:
        return {}
    gaps = [reach[a][1] + reach[b][0] for a, b in pairwise(row)]
    offsets = np.cumsum([0.0, *gaps])
    weights = [1.0 if isinstance(one, int) else 0.01 for one in row]  # a line makes way for a box
    middles = isotonic_regression([wanted[one] for one in row] - offsets, sample_weight=weights) + offsets
    return dict(zip(row, map(float, middles), strict=True))
