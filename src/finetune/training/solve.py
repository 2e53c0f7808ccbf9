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
WORSE = 2  # strengths in a row that end the path
# The largest entry of the gradient at which strengths are compared, in a `Head`'s coordinates: there the
# objective is above its minimum by about half the squared gradient.
COMPARED = 1e-3
VARIES = 1e-13  # of the largest variance along an axis: what less is, is rounding

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
    The path ends where two strengths in a row were worse than the best before them.

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


class Head:
    """A linear layer of features (N, D), in coordinates in which L-BFGS needs half of the steps or less.

    They are the features' principal axes, each in a unit in which the objective curves alike: by the loss's
    curvature times the features' mean square along the axis, and by the penalty's.

    values: weights (outputs, R) and biases (outputs,) in these coordinates, which an optimiser moves.
    """

    def __init__(self, features: Tensor, outputs: int, dtype: torch.dtype) -> None:
        self.axes = _principal_axes(features.double()).to(dtype)
        self.features = features.to(dtype) @ self.axes
        self.mean_squares = self.features.square().mean(0)
        self.scales = torch.ones_like(self.mean_squares), self.features.new_ones(())
        self.values = [
            self.features.new_zeros(shape, requires_grad=True)
            for shape in ((outputs, len(self.mean_squares)), (outputs,))
        ]

    @torch.no_grad()
    def place(self, weight: Tensor, bias: Tensor) -> None:
        """Move to a weight (outputs, D) and a bias (outputs,)."""
        self._set(weight.to(self.axes) @ self.axes, bias)

    @torch.no_grad()
    def suit(self, strength: float, curvature: Tensor) -> None:
        """Stay, in coordinates for that penalty and that curvature of the loss by a logit."""
        along = self._along_axes()
        curvature = curvature.to(self.mean_squares).clamp(min=1e-6)
        self.scales = (curvature * self.mean_squares + strength).rsqrt(), curvature.rsqrt()
        self._set(*along)

    def _set(self, *along: Tensor) -> None:
        for value, own, scale in zip(self.values, along, self.scales, strict=True):
            value.copy_(own / scale)

    def _along_axes(self) -> tuple[Tensor, Tensor]:
        weight, bias = map(torch.mul, self.values, self.scales)
        return weight, bias

    @torch.no_grad()
    def found(self) -> tuple[Tensor, Tensor]:
        """Weight (outputs, D) and bias (outputs,) as they are now."""
        weight, bias = self._along_axes()
        return weight @ self.axes.T, bias

    def gradient(self) -> tuple[float, float]:
        """The largest entry of the gradient by weight and bias, and its norm."""
        gradients = [value.grad for value in self.values if value.grad is not None]
        weight, bias = map(torch.div, gradients, self.scales)
        gradient = torch.cat([(weight @ self.axes.T).flatten(), bias])
        return float(gradient.abs().max()), float(gradient.norm())

    def logits_and_squares(self) -> tuple[Tensor, Tensor]:
        """Logits (N, outputs), and the sum of the squared weights."""
        weight, bias = self._along_axes()
        return torch.addmm(bias, self.features, weight.T), weight.square().sum()


def _principal_axes(features: Tensor) -> Tensor:
    """Orthonormal axes (D, R) along which features (N, D) of float64 vary, and do so uncorrelated."""
    wide = features.shape[0] < features.shape[1]
    variances, vectors = torch.linalg.eigh(features @ features.T if wide else features.T @ features)
    varies = variances > VARIES * variances[-1]
    vectors = vectors[:, varies]
    return features.T @ (vectors / variances[varies].sqrt()) if wide else vectors


class _SolvedFolds:
    """A head for each fold, all solved for at once: one product with the features serves them all."""

    def __init__(self, problem: Problem, folds: Folds) -> None:
        self.problem, self.folds = problem, folds
        self.head = Head(problem.features, len(folds) * problem.outputs, torch.float32)

    def _logits(self) -> tuple[Tensor, Tensor]:
        """Of every image by every head, (N, folds, outputs), and the sum of the squared weights."""
        logits, squares = self.head.logits_and_squares()
        return logits.unflatten(1, (len(self.folds), -1)), squares

    def solve(self, strength: float) -> None:
        """Move from where it is to the optimum."""

        def closure() -> Tensor:
            signals.check()
            optimizer.zero_grad()
            logits, squares = self._logits()
            labels = self.problem.labels
            losses = [
                self.problem.loss(logits[rows, fold], labels[rows])[0]
                for fold, (rows, _) in enumerate(self.folds)
            ]
            value = torch.stack(losses).sum() + strength / 2 * squares
            value.backward()
            return value

        with torch.no_grad():
            logits = self._logits()[0][:, 0]
        self.head.suit(strength, curvature(self.problem, logits))
        optimizer = lbfgs(self.head.values, COMPARED, rounds=500)
        optimizer.step(closure)

    @torch.no_grad()
    def measure(self, strength: float, log_loss: Loss) -> Point:
        """What the heads answer for the images that they were not solved for."""
        logits, folds = self._logits()[0], len(self.folds)
        answers = torch.cat([logits[held, fold] for fold, (_, held) in enumerate(self.folds)])
        truth = torch.cat([self.problem.labels[held] for _, held in self.folds])
        right = answers.argmax(1) == truth if truth.ndim == 1 else ((answers > 0) == (truth == 1)).all(1)
        weight, bias = self.head.found()
        return Point(
            strength,
            log_loss=float(log_loss(answers, truth)[0]),
            accuracy=float(right.double().mean()),
            weight=weight.unflatten(0, (folds, -1)).mean(0),
            bias=bias.unflatten(0, (folds, -1)).mean(0),
            logits=answers,
        )


def curvature(problem: Problem, logits: Tensor) -> Tensor:
    """About how the loss curves by an output's logit: its second derivative in one direction."""
    signs = 1.0 - 2.0 * (torch.arange(problem.outputs, device=logits.device) % 2).to(logits)
    _, product = torch.autograd.functional.vhp(
        lambda shift: problem.loss(logits + shift, problem.labels)[0], torch.zeros_like(signs), signs
    )
    return (signs * product).mean()


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
