"""What differs but by rounding agrees; what differs by more, or in how much there is, does not."""

from __future__ import annotations

import torch
from torch import nn

from finetune.model.agreement import alike, computes


def test_tensors_are_alike_to_a_thousandth_of_the_largest() -> None:
    a = torch.tensor([1.0, 1000.0, torch.nan])
    assert alike(a, a + torch.tensor([0.9, 0.9, 0.0]))
    assert not alike(a, a + torch.tensor([0.0, 3.0, 0.0]))
    assert not alike(a, torch.tensor([1.0, 1000.0, 0.0]))


def test_parts_are_compared_in_eval_mode_and_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 8, 8)
    assert computes(model, lambda batch: model[1](model[0](batch)).relu(), images)
    assert not computes(model, lambda batch: model[0](batch), images)
    assert not computes(model, lambda batch: (model(batch), batch), images)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
