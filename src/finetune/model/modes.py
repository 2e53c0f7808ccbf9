"""Train and eval mode, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Whatever happens meanwhile, every module of a model is afterwards in the mode that it was in.

    Module by module: `model.train(mode)` would put all of them into one, also those that were not.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
