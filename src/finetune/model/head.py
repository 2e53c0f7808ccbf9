"""Find the layer that gives the logits of any architecture, and put a new one in its place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import RequestError


def find_head(model: nn.Module) -> str:
    """The full name of the layer that computes the logits: a linear or 1x1-convolution layer.

    timm's models say which; in torchvision's, whose modules are registered in the order of the forward pass,
    it is the last. RequestError: there is none, or more than one.
    """
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    ]
    if (timms := getattr(model, "pretrained_cfg", None)) is not None:
        classifier = timms.get("classifier")
        if isinstance(classifier, (tuple, list)):
            names = ", ".join(classifier)
            raise RequestError(f"model: expected one head; this model has {len(classifier)} ({names})")
        found = [name for name in found if name == classifier]
    if not found:
        raise RequestError("model: expected a linear or 1x1-convolution layer as its head; there is none")
    return found[-1]


def as_logits(output: Any) -> Tensor:
    """What a network gave, if that is logits (B, outputs); else RequestError."""
    if not isinstance(output, Tensor) or output.ndim != 2:
        told = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise RequestError(f"model: expected a forward that returns logits (B, outputs), not {told}")
    return output


def replace_head(
    model: nn.Module,
    name: str,
    num_outputs: int | nn.Module,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
) -> nn.Module:
    """Put a new, randomly initialised head in the place of the layer `name` and return it.

    Without hidden layers and dropout the new head is one layer, so that the model's state dict is that of
    the same architecture built with `num_classes=num_outputs`. A convolutional classifier stays one.
    num_outputs: or a module, which is the head itself.
    """
    if isinstance(num_outputs, nn.Module):
        model.set_submodule(name, copy.deepcopy(num_outputs))
        return model.get_submodule(name)
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear | nn.Conv2d)
    widths = [old.weight.shape[1], *hidden, num_outputs]
    bias = old.bias is not None or bool(hidden)  # MaxViT's last layer has none
    layer: Any = partial(nn.Conv2d, kernel_size=1) if isinstance(old, nn.Conv2d) else nn.Linear
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        if layers:
            layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(layer(width, following, bias=bias))
    head = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    model.set_submodule(name, head)
    return head


def initial_head(model: nn.Module, name: str, seed: int) -> dict[str, Tensor]:
    """What the head of that name would hold had it been made with another seed; the model stays as it is."""
    head = copy.deepcopy(model.get_submodule(name)).cpu()  # where a new head is drawn, too
    torch.manual_seed(seed)
    for layer in head.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()
    return {f"{name}.{key}": value for key, value in head.state_dict().items()}
