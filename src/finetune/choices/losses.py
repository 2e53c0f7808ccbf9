"""The losses, an entry each; whatever else asks for a property of a loss finds it here.

torch is imported where a loss is computed: a wrong setting is refused before that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.choices.given import Table, lacking

if TYPE_CHECKING:
    from torch import Tensor

# Of logits (J, B, outputs), labels (J, B), label_smoothing (J,) and class_weights (J, outputs) of J jobs: the
# losses (J,) and what the images weigh in their means (J,).
StackedLoss = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], tuple["Tensor", "Tensor"]]


@dataclass(frozen=True)
class LossEntry:
    """A loss, and what it can do.

    function: of a batch's logits (B, outputs) and labels, class indices (B,) or vectors (B, outputs).
    stacked: the same for many jobs at once; without it each job of a sweep trains alone.
    softmax: whether the classes exclude each other, so that softmax gives the probabilities; else a sigmoid
        of each output does.
    calibrates: whether these are probabilities that a temperature can be fitted to.
    weighs_classes: whether the function takes `label_smoothing` and `class_weights`, (outputs,) or None.
    several_labels: whether an image may have several labels.
    is_mean: whether it is a mean over the batch, so that processes can share a batch.
    convex: whether it is convex in the logits, a mean, and bounded below: a linear head can be solved for it.
    """

    function: Callable[..., Tensor]
    stacked: StackedLoss | None = None
    softmax: bool = True
    calibrates: bool = False
    weighs_classes: bool = False
    several_labels: bool = False
    is_mean: bool = True
    convex: bool = False


def cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Softmax cross-entropy, the mean over the batch; labels are class indices or probabilities."""
    from torch.nn import functional

    return functional.cross_entropy(logits, labels, class_weights, label_smoothing=label_smoothing)


def stacked_cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: Tensor, class_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The same of each job, as a `StackedLoss`."""
    minus = -logits.log_softmax(2)
    weight = class_weights.gather(1, labels)
    plain = (minus.gather(2, labels.unsqueeze(2)).squeeze(2) * weight).sum(1)
    smooth = (minus * class_weights.unsqueeze(1)).sum((1, 2)) / logits.shape[2]
    total = weight.sum(1)
    return ((1 - label_smoothing) * plain + label_smoothing * smooth) / total, total


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy with logits, the mean over all outputs; class indices become one-hot."""
    from torch.nn import functional

    return functional.binary_cross_entropy_with_logits(logits, as_vectors(labels, logits))


def sum_squares(logits: Tensor, labels: Tensor) -> Tensor:
    """((logits - labels)²) summed over the batch, as PyTorch's introduction to autograd has it."""
    return (logits - as_vectors(labels, logits)).square().sum()


def sum_difference(logits: Tensor, labels: Tensor) -> Tensor:
    """(logits - labels) summed over the batch; unbounded below, it only shows where gradients flow."""
    return (logits - as_vectors(labels, logits)).sum()


def as_vectors(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels (B,) or (B, outputs) as (B, outputs) of the logits' type."""
    from torch.nn import functional

    if labels.ndim == 1:
        labels = functional.one_hot(labels, logits.shape[1])
    return labels.to(logits)


LOSSES: Table[LossEntry] = Table(
    cross_entropy=LossEntry(
        cross_entropy, stacked_cross_entropy, calibrates=True, weighs_classes=True, convex=True
    ),
    bce=LossEntry(bce, softmax=False, several_labels=True, convex=True),
    sum_squares=LossEntry(sum_squares, several_labels=True, is_mean=False),
    sum_difference=LossEntry(sum_difference, several_labels=True, is_mean=False),
)
LOSSES.absent = LossEntry(lacking, calibrates=True)
