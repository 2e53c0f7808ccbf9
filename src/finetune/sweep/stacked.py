"""Losses and optimisers of many networks at once: every tensor has the jobs (J) as its first dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finetune.training import metrics

Tensors = dict[str, Tensor]


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of each job (J,), as torch.nn.functional.cross_entropy has it with `reduction="mean"`.

    logits (J, B, C); labels (J, B) class indices; smoothing (J,); weights (J, C) of the classes.
    Returns also what the pictures weigh in that mean, (J,).
    """
    minus = -logits.log_softmax(2)
    weight = weights.gather(1, labels)
    plain = (minus.gather(2, labels.unsqueeze(2)).squeeze(2) * weight).sum(1)
    smooth = (minus * weights.unsqueeze(1)).sum((1, 2)) / logits.shape[2]
    return ((1 - smoothing) * plain + smoothing * smooth) / weight.sum(1), weight.sum(1)


def broadcast(values: Tensor, like: Tensor) -> Tensor:
    """Numbers (J,) in the shape in which they multiply (J, …)."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))


class SGD:
    """torch.optim.SGD, each job with its own decay, momentum and nesterov.

    decay: (J,) for each parameter. options: of each job, as torch.optim.SGD takes them.
    """

    def __init__(self, parameters: Tensors, decay: Tensors, options: list[dict[str, Any]]) -> None:
        self.decay = decay
        self.momentum = torch.tensor([one["momentum"] for one in options], dtype=torch.float64)
        self.nesterov = torch.tensor([one["nesterov"] for one in options])
        self.state = {"momentum_buffer": {name: torch.zeros_like(p) for name, p in parameters.items()}}

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, rates: Tensors) -> None:
        """Move the parameters in place, by rates (J,) for each of them."""
        for name, p in parameters.items():
            gradient, buffer = gradients[name], self.state["momentum_buffer"][name]
            if self.decay[name].any():
                gradient = gradient + broadcast(self.decay[name], p) * p
            momentum = broadcast(self.momentum, p)
            buffer.mul_(momentum).add_(gradient)  # it begins with zeros, so the first step sets it
            move = buffer
            if self.nesterov.any():
                ahead = gradient + momentum * buffer
                move = torch.where(broadcast(self.nesterov, p).bool(), ahead, buffer)
            p.sub_(broadcast(rates[name], p) * move)


class AdamW:
    """torch.optim.AdamW with its default betas and epsilon, each job with its own decay."""

    betas, epsilon = (0.9, 0.999), 1e-8

    def __init__(self, parameters: Tensors, decay: Tensors, options: list[dict[str, Any]]) -> None:
        self.decay, self.steps = decay, 0
        self.state = {
            moment: {name: torch.zeros_like(p) for name, p in parameters.items()}
            for moment in ("exp_avg", "exp_avg_sq")
        }

    @torch.no_grad()
    def step(self, parameters: Tensors, gradients: Tensors, rates: Tensors) -> None:
        """Move the parameters in place, by rates (J,) for each of them."""
        self.steps += 1
        first, second = self.betas
        unbias = 1 - first**self.steps, (1 - second**self.steps) ** 0.5
        for name, p in parameters.items():
            gradient, rate = gradients[name], rates[name]
            mean, square = self.state["exp_avg"][name], self.state["exp_avg_sq"][name]
            p.mul_(broadcast(1 - rate * self.decay[name], p))
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            p.sub_(broadcast(rate / unbias[0], p) * mean / (square.sqrt() / unbias[1] + self.epsilon))


OPTIMIZERS: dict[str, type[SGD | AdamW]] = {"sgd": SGD, "adamw": AdamW}


class Tally:
    """Losses and answers of an epoch's batches, for every job."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def add(self, losses: Tensor, weights: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Losses and weights (J,), logits (J, B, outputs) and labels (J, B) of a batch."""
        self.losses.append(losses.detach())
        self.weights.append(weights)
        self.hits.append(logits.detach().argmax(2) == labels)
        self.labels.append(labels)

    def means(self) -> list[dict[str, float]]:
        """Loss, accuracy and the like per picture, of each job."""
        losses, weights = (torch.stack(each).cpu().double() for each in (self.losses, self.weights))
        means = (losses * weights).sum(0) / weights.sum(0)  # on the CPU: not every GPU has doubles
        answers = zip(means, torch.cat(self.hits, 1).cpu(), torch.cat(self.labels, 1).cpu(), strict=True)
        return [{"loss": float(mean), **metrics.one_class(*each)} for mean, *each in answers]
