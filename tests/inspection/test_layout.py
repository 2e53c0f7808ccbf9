"""Places on the page: nothing overlaps, everything flows downwards, the boundary is one line."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.inspection.layout import Layout, lay_out

# A residual block: 0 image, 1 to 3 in a row, 4 the sum of 3 and 0.
RESIDUAL = [[], [0], [1], [2], [3, 0]]


def laid(inputs: list[list[int]], late: list[bool]) -> Layout:
    return lay_out(inputs, late, [(0.8, 0.5)] * len(inputs))


def test_a_chain_is_straight_and_a_skip_passes_beside_it() -> None:
    found = laid(RESIDUAL, [False] * 5)
    assert found.layers == [0, 1, 2, 3, 4]
    assert np.ptp([found.x[node] for node in range(5)]) < 0.05
    assert all(abs(found.x[0, 4, layer] - found.x[1]) > 0.5 for layer in (1, 2, 3))
    assert len(found.x) == 5 + 3


def test_what_is_late_lies_below_all_that_is_not() -> None:
    found = laid([[], [0], [1], [0], [2, 3]], [False, False, False, True, True])
    assert found.layers[3] > found.layers[2]


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_any_graph(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 14))
    inputs = [
        sorted(data.draw(st.sets(st.integers(0, node - 1), min_size=1, max_size=3))) if node else []
        for node in range(size)
    ]
    late = [False] * size
    for node in range(1, size):
        late[node] = any(late[one] for one in inputs[node]) or data.draw(st.booleans())
    found = laid(inputs, late)
    for node, sources in enumerate(inputs):
        assert all(found.layers[one] < found.layers[node] for one in sources)
        for one in sources:
            assert all(
                (one, node, layer) in found.x for layer in range(found.layers[one] + 1, found.layers[node])
            )
    above = [found.layers[node] for node in range(size) if not late[node]]
    assert all(found.layers[node] > max(above) for node in range(size) if late[node])
    for layer in set(found.layers):
        row = sorted(found.x[node] for node in range(size) if found.layers[node] == layer)
        assert all(b - a >= 1.3 - 1e-6 for a, b in itertools.pairwise(row))
    assert all(
        0.8 - 1e-6 <= one <= found.width - 0.5 + 1e-6 for one in [found.x[node] for node in range(size)]
    )
