"""A model's parameters: how many, which train, and to which layer they belong."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase as BatchOrInstanceNorm

NORMS = (BatchOrInstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def is_below(name: str, head: str | None) -> bool:
    """Whether a name is that of the head or of something in it."""
    return head is not None and (name == head or name.startswith(f"{head}."))


def owners(name: str) -> list[str]:
    """The modules that a name lies in, outermost first: the model itself (''), a and a.b of a.b.c."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]


def count_parameters(model: nn.Module, idle: Collection[str] = ()) -> dict[str, int]:
    """The number of values in all parameters (`total`), and in those that train (`trainable`).

    idle: names of such as should train, and do not.
    """
    trained = [p for name, p in model.named_parameters() if p.requires_grad and name not in idle]
    return {
        "total": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in trained),
    }


def list_parameters(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": "x".join(map(str, parameter.shape)) or "scalar",
            "values": parameter.numel(),
            "requires_grad": parameter.requires_grad,
        }
        for name, parameter in model.named_parameters()
    ]


def parameters_by_layer(model: nn.Module, least: int = 7) -> dict[str, dict[str, nn.Parameter]]:
    """A model's parameters by layer, in the model's order.

    The layers are its modules at the smallest depth that tells `least` or more apart: conv1, bn1, layer1 to
    layer4 and fc of resnet18, features.0 to features.8 and classifier.1 of EfficientNet.
    """
    # A parameter of a module that has modules below it, such as class_token, is a layer of its own.
    innermost = {name for name, module in model.named_modules() if not any(module.children())}
    parameters = dict(model.named_parameters())
    owners = {}
    for name in parameters:
        owner = name.rpartition(".")[0]
        owners[name] = (owner if owner in innermost else name).split(".")
    depth, deepest = 1, max(map(len, owners.values()), default=1)
    while depth < deepest and len({tuple(owner[:depth]) for owner in owners.values()}) < least:
        depth += 1
    layers: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        layers.setdefault(".".join(owners[name][:depth]), {})[name] = parameter
    return layers
