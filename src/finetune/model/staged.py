"""A network whose head reads the pooled outputs of earlier modules, too. An export holds this file's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d


class Staged(nn.Module):
    """Put before a network's own class: the head reads (B, C) of each stage, then what it reads without them.

    head_stages: names of modules whose outputs are feature maps (B, C, H, W), pooled over H and W.
    head_name: where the head is. Modules and tensors keep their names.
    """

    head_stages: tuple[str, ...]
    head_name: str

    def forward(self, images: Tensor) -> Tensor:
        """The logits; the hooks are there only meanwhile, as the modules are also used without this class."""
        pooled: dict[nn.Module, Tensor] = {}
        modules = [self.get_submodule(name) for name in self.head_stages]

        def pool(module: nn.Module, inputs: Any, output: Tensor) -> None:
            pooled[module] = adaptive_avg_pool2d(output, 1).flatten(1)

        def join(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            return torch.cat([*(pooled[one] for one in modules), *inputs], 1)

        hooks = [module.register_forward_hook(pool) for module in modules]
        head = self.get_submodule(self.head_name)
        hooks.append(head.register_forward_pre_hook(join, prepend=True))  # others see what the head reads
        try:
            return super().forward(images)
        finally:
            for hook in hooks:
                hook.remove()

    def __reduce__(self) -> Any:
        """For copies and pickles: the class was made for this network."""
        return _blank, (type(self).__bases__[1],), vars(self)


def add_stages(network: nn.Module, head: str, stages: Sequence[str]) -> None:
    """Make the head of a network, which is as wide already, read the pooled outputs of these modules, too."""
    network.__class__ = _with_stages(type(network))
    network.head_stages, network.head_name = tuple(stages), head  # type: ignore[assignment]


def _with_stages(plain: type[nn.Module]) -> Any:
    return type(plain.__name__, (Staged, plain), {"__module__": plain.__module__})


def _blank(plain: type[nn.Module]) -> nn.Module:
    made = _with_stages(plain)
    return made.__new__(made)
