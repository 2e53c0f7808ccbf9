"""The losses: each says a batch's mean and what it weighs in the mean of an epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.errors import RequestError

# Of logits (B, outputs) and labels: the batch's loss and what it weighs in the mean over batches.
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def cross_entropy(label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Loss:
    """Softmax cross-entropy, the mean over the batch; labels are class indices or probabilities."""

    def loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        weights = None if class_weights is None else class_weights.to(logits)
        weight = logits.new_tensor(len(labels)) if weights is None else weights[labels].sum()
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=label_smoothing), weight

    return loss


def per_image(function: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A function of logits and labels as a loss in which every image weighs the same."""

    def loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        weight = logits.new_tensor(len(labels))
        return function(logits, labels), weight

    return loss


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy with logits, the mean over all outputs; class indices become one-hot."""
    return F.binary_cross_entropy_with_logits(logits, as_vectors(labels, logits))


def sum_squares(logits: Tensor, labels: Tensor) -> Tensor:
    """((logits - labels)²) summed over the batch, as PyTorch's introduction to autograd has it."""
    return (logits - as_vectors(labels, logits)).square().sum()


def sum_difference(logits: Tensor, labels: Tensor) -> Tensor:
    """(logits - labels) summed over the batch; unbounded below, it only shows where gradients flow."""
    return (logits - as_vectors(labels, logits)).sum()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": bce,
    "sum_squares": sum_squares,
    "sum_difference": sum_difference,
}


def build(name: str, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Loss:
    """The loss of that name; the two options concern cross-entropy."""
    if name == "cross_entropy":
        return cross_entropy(label_smoothing, class_weights)
    return per_image(LOSSES[name])


def as_vectors(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels (B,) or (B, outputs) as (B, outputs) of the logits' type."""
    if labels.ndim == 1:
        labels = F.one_hot(labels, logits.shape[1])
    return labels.to(logits)


def balanced_weights(labels: Tensor, num_outputs: int) -> Tensor:
    """One weight per output, N / (classes present * count): a class weighs what it lacks in pictures.

    A class without pictures weighs 1, so that a batch of nothing else still has a mean.

    Raises:
        RequestError: the labels are vectors, so no picture belongs to one class.
    """
    if labels.ndim != 1:
        raise RequestError("class_weights=balanced: expected pictures of one class each, not label vectors")
    counts = torch.bincount(labels, minlength=num_outputs).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 1.0)
