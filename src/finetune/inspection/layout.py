"""A place on the page for every node of a graph, in layers from top to bottom.

The method is that of Sugiyama, Tagawa and Toda (1981): layers by the longest path, an order within each layer
that leaves few edges crossing, then places near the neighbours'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise

import numpy as np

SWEEPS = 24
BEND_WIDTH = 0.25  # room for an edge that passes a layer


@dataclass(frozen=True)
class Layout:
    """layers: of each node, from 0 at the top. x: of each node's middle. bends: of each edge (from, to), the
    x at which it passes the layers between. width: of the whole, which begins at x = 0.
    """

    layers: list[int]
    x: list[float]
    bends: dict[tuple[int, int], list[float]]
    width: float


def lay_out(
    inputs: Sequence[Sequence[int]], late: Sequence[bool], left: Sequence[float], right: Sequence[float]
) -> Layout:
    """Lay out the nodes of a graph.

    Args:
        inputs: of each node, the nodes that it comes from.
        late: whether a node lies below the boundary, to which no other node may be below.
        left, right: how far each node reaches from its middle.
    """
    layers = _layers(inputs, late)
    chains: dict[tuple[int, int], list[int]] = {}
    depth, lefts, rights = list(layers), list(left), list(right)
    for node, sources in enumerate(inputs):
        for source in sources:
            chain = list(range(len(depth), len(depth) + layers[node] - layers[source] - 1))
            depth += range(layers[source] + 1, layers[node])
            lefts += [BEND_WIDTH / 2] * len(chain)
            rights += [BEND_WIDTH / 2] * len(chain)
            chains[source, node] = chain
    above: list[list[int]] = [[] for _ in depth]
    below: list[list[int]] = [[] for _ in depth]
    for (source, node), chain in chains.items():
        for upper, lower in zip([source, *chain], [*chain, node], strict=True):
            below[upper].append(lower)
            above[lower].append(upper)
    rows = [[n for n in range(len(depth)) if depth[n] == level] for level in range(max(depth) + 1)]
    x = np.zeros(len(depth))
    for row in rows:
        _spread(row, x, x.__getitem__, lefts, rights, np.ones(len(depth)))
    weight = np.array([1.0] * len(inputs) + [0.01] * (len(depth) - len(inputs)))  # a line makes way
    for sweep in range(SWEEPS):
        near = above if sweep % 2 == 0 else below

        def wanted(node: int, near: list[list[int]] = near) -> float:
            nodes = [one for one in near[node] if one < len(inputs)] or near[node]  # lines do not pull
            return float(np.mean(x[nodes])) if nodes else float(x[node])

        for row in rows if sweep % 2 == 0 else rows[::-1]:
            if sweep < SWEEPS // 2:
                row.sort(key=wanted)
            _spread(row, x, wanted, lefts, rights, weight)
    start = min(x[n] - lefts[n] for n in range(len(depth)))
    width = max(x[n] + rights[n] for n in range(len(depth))) - start
    places = [float(one - start) for one in x]
    bends = {edge: [places[n] for n in chain] for edge, chain in chains.items()}
    return Layout(layers, places[: len(inputs)], bends, float(width))


def _layers(inputs: Sequence[Sequence[int]], late: Sequence[bool]) -> list[int]:
    """The longest path to each node, those below the boundary under all others; sources are drawn down."""
    order = list(TopologicalSorter(dict(enumerate(inputs))).static_order())
    layers = [0] * len(inputs)
    floor = 0
    for below in (False, True):
        for node in order:
            if late[node] == below:
                layers[node] = max([floor, *(layers[one] + 1 for one in inputs[node])])
        floor = max([0, *(layers[node] + 1 for node in order if not late[node])])
    outputs = [[node for node, sources in enumerate(inputs) if one in sources] for one in range(len(inputs))]
    for node in order[::-1]:
        if not inputs[node] and node and outputs[node]:
            layers[node] = min(layers[one] for one in outputs[node]) - 1
            if not late[node]:
                layers[node] = min(layers[node], max(floor - 1, 0))
    return layers


def _spread(
    row: list[int],
    x: np.ndarray,
    wanted: Callable[[int], float],
    left: Sequence[float],
    right: Sequence[float],
    weight: np.ndarray,
) -> None:
    """Set the nodes of a row in their order, without overlaps, as near to the wanted places as can be.

    Least squares under a fixed order: isotonic regression by pooling neighbours that violate it.
    """
    offsets = np.cumsum([0.0, *(right[a] + left[b] for a, b in pairwise(row))])
    pools: list[list[float]] = []  # mean, weight, count
    for node, offset in zip(row, offsets, strict=True):
        pools.append([wanted(node) - offset, weight[node], 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m, i), (b, n, j) = pools[-2:]
            pools[-2:] = [[(a * m + b * n) / (m + n), m + n, i + j]]
    places = [mean for mean, _, count in pools for _ in range(int(count))]
    for node, place, offset in zip(row, places, offsets, strict=True):
        x[node] = place + offset
