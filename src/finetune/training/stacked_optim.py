"""Losses and optimisers of many networks at once: every tensor has the jobs (J) as its first dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.training.optim import Schedule

Tensors = dict[str, Tensor]


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of each job (J,), as torch.nn.functional.cross_entropy has it with `reduction="mean"`.

    logits (J, B, C); labels (J, B) class indices; smoothing (J,); weights (J, C) of the classes.
    Returns also what the images weigh in that mean, (J,).
    """
    minus = -logits.log_softmax(2)
    weight = weights.gather(1, labels)
    plain = (minus.gather(2, labels.unsqueeze(2)).squeeze(2) * weight).sum(1)
    smooth = (minus * weights.unsqueeze(1)).sum((1, 2)) / logits.shape[2]
    return ((1 - smoothing) * plain + smoothing * smooth) / weight.sum(1), weight.sum(1)


def broadcast(values: Tensor, like: Tensor) -> Tensor:
    """Numbers (J,) in the shape in which they multiply (J, …)."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))


class StackedOptimizer(torch.optim.Optimizer):
    """An optimiser whose numbers differ from job to job.

    groups: of one parameter (J, …) each, with its `lr` and `weight_decay` (J,).
    schedules: each job's factor on its rates, by the optimiser step.
    """

    def __init__(self, groups: list[dict[str, Any]], schedules: Sequence[Schedule]) -> None:
        super().__init__(groups, {})
        self.schedules, self.steps = schedules, 0
        for group in groups:
            for p in group["params"]:
                self.state[p] = {name: torch.zeros_like(p) for name in self.buffers}

    buffers: tuple[str, ...]

    def factors(self) -> Tensor:
        """What the schedules multiply each job's rates by in the next step, (J,)."""
        return torch.tensor([schedule(self.steps) for schedule in self.schedules], dtype=torch.float64)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        factors = self.factors()
        self.steps += 1
        for group in self.param_groups:
            (p,) = group["params"]
            if p.grad is not None:
                self.move(p, p.grad, group["lr"] * factors, group["weight_decay"])
        return loss

    def move(self, p: Tensor, gradient: Tensor, rate: Tensor, decay: Tensor) -> None:
        """Move a parameter (J, …) in place, by its gradient, rate (J,) and decay (J,)."""
        raise NotImplementedError


class SGD(StackedOptimizer):
    """torch.optim.SGD, each job with its own rate, decay, momentum and nesterov.

    options: of each job, as torch.optim.SGD takes them.
    """

    buffers = ("momentum_buffer",)

    def __init__(
        self, groups: list[dict[str, Any]], schedules: Sequence[Schedule], options: list[dict[str, Any]]
    ) -> None:
        super().__init__(groups, schedules)
        self.momentum = torch.tensor([one["momentum"] for one in options], dtype=torch.float64)
        self.nesterov = torch.tensor([one["nesterov"] for one in options])

    def move(self, p: Tensor, gradient: Tensor, rate: Tensor, decay: Tensor) -> None:
        buffer = self.state[p]["momentum_buffer"]
        if decay.any():
            gradient = gradient + broadcast(decay, p) * p
        momentum = broadcast(self.momentum, p)
        buffer.mul_(momentum).add_(gradient)  # it begins with zeros, so the first step sets it
        step = buffer
        if self.nesterov.any():
            ahead = gradient + momentum * buffer
            step = torch.where(broadcast(self.nesterov, p).bool(), ahead, buffer)
        p.sub_(broadcast(rate, p) * step)


class AdamW(StackedOptimizer):
    """torch.optim.AdamW with its default betas and epsilon, each job with its own rate and decay."""

    buffers = ("exp_avg", "exp_avg_sq")
    betas, epsilon = (0.9, 0.999), 1e-8

    def __init__(
        self, groups: list[dict[str, Any]], schedules: Sequence[Schedule], options: list[dict[str, Any]]
    ) -> None:
        super().__init__(groups, schedules)

    def move(self, p: Tensor, gradient: Tensor, rate: Tensor, decay: Tensor) -> None:
        first, second = self.betas
        unbias = 1 - first**self.steps, (1 - second**self.steps) ** 0.5
        mean, square = self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]
        p.mul_(broadcast(1 - rate * decay, p))
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        p.sub_(broadcast(rate / unbias[0], p) * mean / (square.sqrt() / unbias[1] + self.epsilon))


OPTIMIZERS: dict[str, type[SGD | AdamW]] = {"sgd": SGD, "adamw": AdamW}
