"""What a forward pass does: the calls of a model's modules, watched, and its operations, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.model.tracing import keep_modes


class ModuleCall(NamedTuple):
    """A module by its name, and which of its calls this is, from 1."""

    name: str
    number: int


@contextmanager
def watch_calls(
    model: nn.Module,
    before: Callable[[ModuleCall], None] = lambda call: None,
    after: Callable[[ModuleCall, Any], Any] = lambda call, output: None,
) -> Iterator[list[ModuleCall]]:
    """Give the calls that the forward pass is in, outermost first, without the model's own.

    before: called as each module begins. after: called with the output as it ends; what it returns, if not
    None, takes the output's place.
    """
    inside: list[ModuleCall] = []
    calls: Counter[str] = Counter()
    names = {module: name for name, module in model.named_modules() if name}

    def begin(module: nn.Module, inputs: Any) -> None:
        name = names[module]
        calls[name] += 1
        inside.append(ModuleCall(name, calls[name]))
        before(inside[-1])

    def end(module: nn.Module, inputs: Any, output: Any) -> Any:
        return after(inside.pop(), output)

    hooks = [module.register_forward_pre_hook(begin) for module in names]
    hooks += [module.register_forward_hook(end) for module in names]
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def count_flops(model: nn.Module) -> Iterator[FlopCounterMode]:
    """Count the operations of a model's forward passes, in eval mode; it is left as it was."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with keep_modes(model), torch.no_grad():
        model.eval().requires_grad_(False)  # of a module that is given a parameter the counter wants its node
        try:
            with FlopCounterMode(display=False) as counter:
                yield counter
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
