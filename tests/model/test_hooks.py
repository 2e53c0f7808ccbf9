"""Module calls watched from outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetune.model.hooks import ModuleCall, watch_calls


class Twice(nn.Module):
    """Calls a block two times, the second time on what the first one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


def test_calls_are_numbered_and_nested() -> None:
    model, seen = Twice(), []
    with watch_calls(model, lambda call: seen.append([*inside])) as inside:
        model(torch.ones(1, 2))
    block = ModuleCall("block", 1)
    assert seen[:3] == [[block], [block, ModuleCall("block.0", 1)], [block, ModuleCall("block.1", 1)]]
    assert seen[5] == [ModuleCall("block", 2), ModuleCall("block.1", 2)]
    assert not inside


def test_an_output_can_be_replaced() -> None:
    model = Twice()
    with watch_calls(model, after=lambda call, output: output + 1 if call == ("block", 2) else None):
        changed = model(torch.ones(1, 2))
    torch.testing.assert_close(changed, model(torch.ones(1, 2)) + 1)


def test_the_hooks_are_removed_whatever_happens() -> None:
    model = Twice()
    with pytest.raises(RuntimeError), watch_calls(model):
        model(torch.ones(1, 3))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
