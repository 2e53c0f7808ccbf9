"""The calls of a model's modules, watched during a forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn


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
