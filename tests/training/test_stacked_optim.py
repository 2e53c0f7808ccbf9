"""Losses and optimisers over stacked tensors give what torch's own give for each job alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.choices.losses import stacked_cross_entropy
from finetune.training.learner import EpochMetrics
from finetune.training.stacked_optim import StackedOptimizer

SHAPES = {"weight": (4, 3), "bias": (4,)}
SGDS = [
    {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False},
    {"lr": 0.03, "weight_decay": 0.01, "momentum": 0.9, "nesterov": False},
    {"lr": 0.2, "weight_decay": 0.1, "momentum": 0.5, "nesterov": True},
]
ADAMWS = [{"lr": 0.1, "weight_decay": 0.0}, {"lr": 0.01, "weight_decay": 0.2}]


@pytest.mark.parametrize(("name", "options"), [("sgd", SGDS), ("adamw", ADAMWS)])
def test_each_job_moves_as_with_torchs_optimiser(name: str, options: list[dict[str, float]]) -> None:
    chance = torch.Generator().manual_seed(0)

    def draw() -> dict[str, Tensor]:
        return {
            key: torch.randn(len(options), *shape, generator=chance, dtype=torch.float64)
            for key, shape in SHAPES.items()
        }

    parameters = draw()
    alone = [{key: value[job].clone() for key, value in parameters.items()} for job in range(len(options))]
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    theirs = [kind(list(one.values()), **own) for one, own in zip(alone, options, strict=True)]

    numbers = {
        key: torch.tensor([one[key] for one in options], dtype=torch.float64)
        for key in ("lr", "weight_decay")
    }
    groups = [{"params": [parameter], **numbers} for parameter in parameters.values()]
    own = [{key: value for key, value in one.items() if key not in numbers} for one in options]
    ours = StackedOptimizer(name, groups, own, [lambda step: 1 / (1 + step)] * len(options))
    for step in range(5):
        for key, gradient in draw().items():
            parameters[key].grad = gradient
        ours.step()
        for job, optimizer in enumerate(theirs):
            optimizer.param_groups[0]["lr"] = options[job]["lr"] / (1 + step)
            for key, parameter in alone[job].items():
                gradient = parameters[key].grad
                assert gradient is not None
                parameter.grad = gradient[job]
            optimizer.step()
    for job, one in enumerate(alone):
        for key, expected in one.items():
            torch.testing.assert_close(parameters[key][job], expected, rtol=0, atol=1e-12)


def test_each_job_has_torchs_cross_entropy() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, 5, generator=chance, dtype=torch.float64)
    labels = torch.randint(0, 5, (4, 7), generator=chance)
    smoothing = torch.tensor([0.0, 0.1, 0.0, 0.3], dtype=torch.float64)
    weights = torch.rand(4, 5, generator=chance, dtype=torch.float64) + 0.1
    weights[:2] = 1.0
    found, weighs = stacked_cross_entropy(logits, labels, smoothing, weights)
    tally = EpochMetrics()
    for part in (slice(0, 4), slice(4, 7)):
        batch = logits[:, part], labels[:, part]
        tally.add(*stacked_cross_entropy(*batch, smoothing, weights), *batch)
    for job in range(4):
        weight = None if job < 2 else weights[job]
        expected = F.cross_entropy(
            logits[job], labels[job], weight=weight, label_smoothing=float(smoothing[job])
        )
        torch.testing.assert_close(found[job], expected, rtol=1e-12, atol=0)
        assert weighs[job] == pytest.approx(float(weights[job][labels[job]].sum()))
        assert tally.means()[job]["loss"] == pytest.approx(float(expected), rel=1e-12)


def test_an_infinite_job_leaves_the_others_alone_to_the_bit() -> None:
    numbers = {"lr": torch.tensor([0.1, 0.1]), "weight_decay": torch.tensor([0.1, 0.1])}
    options = [{"momentum": 0.9, "nesterov": False}] * 2
    for broken in (1.0, float("nan")):
        both = torch.ones(2, 3, 3)
        both.grad = torch.full((2, 3, 3), 0.3)
        both.grad[1] = broken
        StackedOptimizer("sgd", [{"params": [both], **numbers}], options, [lambda step: 1.0] * 2).step()
        if broken == 1.0:
            expected = both[0]
    assert torch.equal(both[0], expected)
    assert both[1].isnan().all()
