"""The loss of a run: a batch's loss and what it weighs in the mean of an epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finetune.choices.losses import LOSSES
from finetune.errors import RequestError

# Of logits (B, outputs) and labels: the batch's loss and what it weighs in the mean over batches.
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def create_loss(name: str, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Loss:
    """The loss of that name, with both options where it takes them; class_weights: (outputs,)."""
    entry = LOSSES[name]

    def loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # The loss is computed last: that is where an autograd graph ends.
        weights = None if class_weights is None else class_weights.to(logits)
        weight = logits.new_tensor(len(labels)) if weights is None else weights[labels].sum()
        if entry.weighs_classes:
            return entry.function(logits, labels, label_smoothing, weights), weight
        return entry.function(logits, labels), weight

    return loss


def balanced_weights(labels: Tensor, num_outputs: int) -> Tensor:
    """One weight per output, N / (classes present * count): a class weighs what it lacks in images.

    A class without images weighs 1, so that a batch of nothing else still has a mean.
    RequestError: the labels are vectors, so no image belongs to one class.
    """
    if labels.ndim != 1:
        raise RequestError("class_weights=balanced: expected images of one class each, not label vectors")
    counts = torch.bincount(labels, minlength=num_outputs).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 1.0)
