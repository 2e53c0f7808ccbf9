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
    """Whether parts made of a model's modules compute what it does in eval mode, and its gradients.

    A graph lacks some hooks, and the `no_grad` and the functions with a backward of their own in a forward.
    """
    outputs, gradients = [], []
    with keep_modes(model):
        model.eval()
        for compute in (model, parts):  # each from the same buffers and the same random numbers
            with undone(model, images.device), torch.enable_grad():
                given = [*filter(torch.is_tensor, tree_leaves(compute(images.clone())))]
                gradients.append(_gradients(model, given))
            outputs.append([one.detach() for one in given])
    if len(outputs[0]) != len(outputs[1]) or not all(map(alike, *outputs)):
        return False
    largest = max((float(one.abs().max()) for one in gradients[0] if one is not None), default=0.0)
    return all(_same_gradient(a, b, largest) for a, b in zip(*gradients, strict=True))


def _gradients(model: nn.Module, outputs: list[Tensor]) -> list[Tensor | None]:
    """Of what trains, for changes of the outputs that have no symmetry."""
    trained = [one for one in model.parameters() if one.requires_grad]
    varying = [one for one in outputs if one.requires_grad]
    if not (varying and trained):
        return [None] * len(trained)
    changes = [torch.arange(one.numel(), device=one.device).cos().view(one.shape).to(one) for one in varying]
    return list(torch.autograd.grad(varying, trained, changes, allow_unused=True))


def _same_gradient(a: Tensor | None, b: Tensor | None, largest: float) -> bool:
    """Some are zero but for rounding, as those of the biases of attention's keys; largest: of all."""
    if a is None or b is None:
        return a is b
    return alike(a, b) or float((a - b).abs().max()) <= 1e-6 * largest
