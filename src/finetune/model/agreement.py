"""Whether two ways to compute something agree but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from finetune.model.tracing import keep_modes, undone


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape differ by no more than a thousandth, or one of the largest entry."""
    largest = float(a.nan_to_num().abs().max())
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)


def computes(model: nn.Module, parts: Callable[[Tensor], Any], images: Tensor) -> bool:
    """Whether parts made of a model's modules compute what it does in eval mode: a graph lacks some hooks."""
    outputs = []
    with keep_modes(model):
        model.eval()
        for compute in (model, parts):  # each from the same buffers and the same random numbers
            with undone(model, images.device):
                outputs.append([*filter(torch.is_tensor, tree_leaves(compute(images.clone())))])
    return len(outputs[0]) == len(outputs[1]) and all(map(alike, *outputs))
