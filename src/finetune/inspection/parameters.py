"""Tables of what trains and what does not."""

from __future__ import annotations

import math

from torch import nn


def counts(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: in all, and of those that train."""
    return {
        "total": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def table(model: nn.Module) -> list[tuple[str, str, int, bool]]:
    """Every parameter in order: name, shape, number of values, requires_grad."""
    return [
        (name, "x".join(map(str, p.shape)) or "scalar", math.prod(p.shape), p.requires_grad)
        for name, p in model.named_parameters()
    ]


def markdown(model: nn.Module) -> str:
    """The table for TensorBoard's text page."""
    rows = [f"| {name} | {shape} | {number:,} | {trains} |" for name, shape, number, trains in table(model)]
    return "\n".join(["| parameter | shape | values | requires_grad |", "|---|---|---:|---|", *rows])
