"""A linear head solved on constant features: penalised, convex, by L-BFGS.

The objective is the loss's mean over the images plus half the strength times the squared weights, those of
standardised features; biases are not penalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune import signals
from finetune.training.losses import Loss

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(4, -9, -1))
HISTORY = 30  # pairs of steps and gradients: with ten it takes half as many steps more
SOLVED = 5e-6  # the largest entry of the gradient at which to stop
WORSE = 3  # strengths in a row that end the path

Folds = Sequence[tuple[Tensor, Tensor]]  # of each the rows to solve for and those to measure on


@dataclass(frozen=True)
class Point:
    """What a strength is worth on images that were not solved for: log-loss in nats, accuracy, and logits.

    weight, bias: where to begin when all images are solved for.
    """

    strength: float
    log_loss: float
    accuracy: float
    weight: Tensor
    bias: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Problem:
    """Standardised features (N, D) with labels (N,) or (N, outputs), and the loss of so many outputs."""

    features: Tensor
    labels: Tensor
    loss: Loss
    outputs: int


def follow_path(
    problem: Problem,
    folds: Folds,
    log_loss: Loss,
    strengths: Sequence[float] = STRENGTHS,
) -> Iterator[Point]:
    """Solve for each strength, from the strongest on, and measure it on the images that each fold holds out.

    Each strength begins where the one before ended; float32 is enough to know the log-loss within 1 % or so.
    The path ends where three strengths in a row were worse than the best before them.

    log_loss: what is measured, as `loss` without weights and smoothing.
    """
    solved, lowest, worse = _SolvedFolds(problem, folds), math.inf, 0
    for strength in strengths:
        solved.solve(strength)
        point = solved.measure(strength, log_loss)
        yield point
        worse, lowest = (0, point.log_loss) if point.log_loss < lowest else (worse + 1, lowest)
        if worse == WORSE:
            return


class _SolvedFolds:
    """A head for each fold, all solved for at once: one product with the features serves them all."""

    def __init__(self, problem: Problem, folds: Folds) -> None:
        self.problem, self.folds = problem, folds
        self.features = problem.features.float()
        width = len(folds) * problem.outputs
        self.weight = self.features.new_zeros(width, self.features.shape[1], requires_grad=True)
        self.bias = self.features.new_zeros(width, requires_grad=True)

    def logits(self) -> Tensor:
        """Of every image by every head, (N, folds, outputs)."""
        flat = torch.addmm(self.bias, self.features, self.weight.T)
        return flat.unflatten(1, (len(self.folds), -1))

    def solve(self, strength: float) -> None:
        """Move to the optimum; a weak penalty leaves flat directions, so its gradient must be smaller."""

        def closure() -> Tensor:
            signals.check()
            optimizer.zero_grad()
            logits, labels = self.logits(), self.problem.labels
            losses = [
                self.problem.loss(logits[rows, fold], labels[rows])[0]
                for fold, (rows, _) in enumerate(self.folds)
            ]
            value = torch.stack(losses).sum() + strength / 2 * self.weight.square().sum()
            value.backward()
            return value

        optimizer = lbfgs([self.weight, self.bias], 2e-3 * min(1.0, (10 * strength) ** 0.5), rounds=500)
        optimizer.step(closure)

    @torch.no_grad()
    def measure(self, strength: float, log_loss: Loss) -> Point:
        """What the heads answer for the images that they were not solved for."""
        logits, folds = self.logits(), len(self.folds)
        answers = torch.cat([logits[held, fold] for fold, (_, held) in enumerate(self.folds)])
        truth = torch.cat([self.problem.labels[held] for _, held in self.folds])
        right = answers.argmax(1) == truth if truth.ndim == 1 else ((answers > 0) == (truth == 1)).all(1)
        return Point(
            strength,
            log_loss=float(log_loss(answers, truth)[0]),
            accuracy=float(right.double().mean()),
            weight=self.weight.unflatten(0, (folds, -1)).mean(0),
            bias=self.bias.unflatten(0, (folds, -1)).mean(0),
            logits=answers,
        )


def lbfgs(values: list[Tensor], gradient: float, rounds: int) -> torch.optim.LBFGS:
    """L-BFGS with a strong-Wolfe line search (Nocedal & Wright 2006), until no gradient's entry is larger."""
    return torch.optim.LBFGS(
        values,
        max_iter=rounds,
        max_eval=2 * rounds,
        history_size=HISTORY,
        tolerance_grad=gradient,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
