"""A linear head solved on constant features: penalised, convex, by L-BFGS.

The objective is the loss's mean over the images plus half the strength times the squared weights, those of
standardised features; biases are not penalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.training.losses import Loss

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(4, -9, -1))
HISTORY = 30  # pairs of steps and gradients: with ten it takes half as many steps more
SOLVED = 5e-6  # the largest entry of the gradient at which to stop
ROUNDS = 500, 2000  # at most, to choose and to solve
WORSE = 3  # strengths in a row that end the path


@dataclass(frozen=True)
class Point:
    """What a strength is worth on images that were not solved for: log-loss in nats, and accuracy.

    bias, weight: where to begin when all images are solved for. logits: of those images, in their order.
    """

    strength: float
    log_loss: float
    accuracy: float
    weight: Tensor
    bias: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Examples:
    """Standardised features (N, D) with labels (N,) or (N, outputs), and the loss of so many outputs."""

    features: Tensor
    labels: Tensor
    loss: Loss
    outputs: int

    def chosen(self, rows: Tensor) -> Examples:
        """Some of them."""
        return Examples(self.features[rows], self.labels[rows], self.loss, self.outputs)


def follow_path(
    examples: Examples,
    folds: Sequence[tuple[Tensor, Tensor]],
    log_loss: Loss,
    strengths: Sequence[float] = STRENGTHS,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Point]:
    """Solve for each strength, from the strongest on, and measure it on the images that each fold holds out.

    The folds are solved at once, each strength from where the one before ended, in float32 until the log-loss
    is within 1 % or so. The path ends where three strengths in a row were worse than the best before them.

    folds: of each the rows to solve for and those to measure on.
    log_loss: what is measured, as `loss` without weights and smoothing. check: called at each evaluation.
    """
    features, width = examples.features.float(), len(folds) * examples.outputs
    weight = features.new_zeros(width, features.shape[1], requires_grad=True)
    bias = features.new_zeros(width, requires_grad=True)
    truth = torch.cat([examples.labels[held] for _, held in folds])

    def logits() -> Tensor:
        return torch.addmm(bias, features, weight.T).unflatten(1, (len(folds), -1))

    lowest, worse = math.inf, 0
    for strength in strengths:

        def objective(strength: float = strength) -> Tensor:
            check()
            found = logits()
            losses = [
                examples.loss(found[rows, fold], examples.labels[rows])[0]
                for fold, (rows, _) in enumerate(folds)
            ]
            return torch.stack(losses).sum() + strength / 2 * weight.square().sum()

        minimise(objective, [weight, bias], _enough(strength), ROUNDS[0])
        with torch.no_grad():
            found = logits()
            answers = torch.cat([found[held, fold] for fold, (_, held) in enumerate(folds)])
            right, measured = _right(answers, truth), float(log_loss(answers, truth)[0])
            yield Point(
                strength,
                measured,
                float(right.double().mean()),
                weight=weight.detach().unflatten(0, (len(folds), -1)).mean(0),
                bias=bias.detach().unflatten(0, (len(folds), -1)).mean(0),
                logits=answers,
            )
        worse, lowest = (0, measured) if measured < lowest else (worse + 1, lowest)
        if worse == WORSE:
            return


def _enough(strength: float) -> float:
    """The gradient at which the log-loss is known well enough; a weak penalty leaves flat directions."""
    return 2e-3 * min(1.0, (10 * strength) ** 0.5)


def _right(answers: Tensor, truth: Tensor) -> Tensor:
    if truth.ndim == 1:
        return answers.argmax(1) == truth
    return ((answers > 0) == (truth == 1)).all(1)


def minimise(objective: Callable[[], Tensor], values: list[Tensor], gradient: float, rounds: int) -> None:
    """Minimise a function of some tensors in place, until no entry of its gradient is larger than that."""
    optimizer = lbfgs(values, gradient, rounds)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)


def lbfgs(values: list[Tensor], gradient: float, rounds: int) -> torch.optim.LBFGS:
    """L-BFGS with a strong-Wolfe line search (Nocedal & Wright 2006, algorithms 7.5 and 3.5)."""
    return torch.optim.LBFGS(
        values,
        max_iter=rounds,
        max_eval=2 * rounds,
        history_size=HISTORY,
        tolerance_grad=gradient,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
