"""How deep each parameter lies, for rates that grow from the image to the head."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from torch import nn

from finetune.model.parameters import NORMS, is_below

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # themselves: what is derived from them is a layer


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
    found = {name: _layer(network, name, head, half) for name, _ in network.named_parameters()}
    layers = [(layer, [*names]) for layer, names in groupby(found, found.__getitem__)]
    in_sequence = [type(modules[layer.rpartition(".")[0]]) in CONTAINERS for layer, _ in layers]
    stem = max(1, in_sequence.index(True)) if any(in_sequence) else 1
    depths: dict[str, int] = {}
    depth = 0
    for number, (layer, names) in enumerate(layers):
        depth += number >= stem and not isinstance(modules.get(layer), NORMS)
        depths |= dict.fromkeys(names, depth)
    return depths


def _layer(network: nn.Module, name: str, head: str, half: float) -> str:
    """The layer that a parameter is of: the head, an item of a sequence, or a module beside sequences."""
    if is_below(name, head):
        return head
    module = network
    path: list[str] = []
    for part in name.split(".")[:-1]:
        item = type(module) in CONTAINERS
        module, path = module.get_submodule(part), [*path, part]
        if type(module) not in CONTAINERS and (item or _size(module) < half):  # an encoder is gone into
            return ".".join(path)
    return name if [*module.children()] else ".".join(path)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
