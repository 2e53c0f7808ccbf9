"""A model's parameters: how many, which train, to which layer they belong, and how deep that lies."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase as BatchOrInstanceNorm

NORMS = (BatchOrInstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # themselves: what is derived from them is a layer


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


def find_depths(network: nn.Module, head: str) -> dict[str, int]:
    """The layer of each parameter, from 0 for the stem to that of the head, as timm counts for layer decay.

    A timm model says itself what its layers are. In another each item of a sequence is one, a norm belongs to
    the layer before it, and what comes before the first sequence is the stem.
    """
    if hasattr(network, "group_matcher"):
        from timm.models import group_parameters

        timms: Any = network
        return dict(group_parameters(timms, timms.group_matcher(coarse=False), reverse=True))
    modules, half = dict(network.named_modules()), _size(network) / 2
    found = {name: _layer(modules, name, head, half) for name, _ in network.named_parameters()}
    layers = [(layer, [*names]) for layer, names in groupby(found, found.__getitem__)]
    in_sequence = [type(modules[layer.rpartition(".")[0]]) in CONTAINERS for layer, _ in layers]
    stem = max(1, in_sequence.index(True)) if any(in_sequence) else 1
    depths: dict[str, int] = {}
    depth = 0
    for number, (layer, names) in enumerate(layers):
        depth += number >= stem and not isinstance(modules.get(layer), NORMS)
        depths |= dict.fromkeys(names, depth)
    return depths


def _layer(modules: Mapping[str, nn.Module], name: str, head: str, half: float) -> str:
    """The layer that a parameter is of: the head, an item of a sequence, or a module beside sequences."""
    if is_below(name, head):
        return head
    for owner in owners(name)[1:]:
        module, around = modules[owner], modules[owner.rpartition(".")[0]]
        item = type(around) in CONTAINERS
        if type(module) not in CONTAINERS and (item or _size(module) < half):  # an encoder is gone into
            return owner
    innermost = name.rpartition(".")[0]
    return name if any(modules[innermost].children()) else innermost


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
