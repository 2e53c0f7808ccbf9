"""Models and their state dicts, as several tests compare them."""

import torch
from torch import nn

from finetune.model.build import build_model
from finetune.model.parts import State


def state_of(model: nn.Module) -> State:
    return dict(model.state_dict())


def untrained(name: str) -> nn.Module:
    torch.manual_seed(2)
    return build_model(name)


def same_outputs(model: nn.Module, other: nn.Module, size: int = 64) -> None:
    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pictures), other.eval()(pictures), rtol=1e-4, atol=1e-4)
