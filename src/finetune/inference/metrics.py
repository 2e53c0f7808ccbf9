"""What a model's answers are worth: from logits and labels to accuracy, calibration and a table per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

BINS = 15
TOP = 5


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence, in (lower, upper]; means are None where it is empty."""

    lower: float
    upper: float
    pictures: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class PerClass:
    """One class: precision is None where it was never answered, recall where it has no pictures."""

    name: str
    pictures: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Measures:
    """How good answers are.

    top5_accuracy: None for five outputs or fewer, of which every answer would be right.
    balanced_accuracy, macro_f1: means over the classes that have pictures.
    log_loss: in nats; for `bce` the mean over the outputs, as in training.
    calibration_error: expected calibration error, from `bins`.
    confusion: counts by true class (rows) and predicted class (columns), see `confusion`.
    """

    pictures: int
    accuracy: float
    top5_accuracy: float | None
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    calibration_error: float
    bins: list[Bin]
    per_class: list[PerClass]
    confusion: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "confusion": self.confusion.tolist()}


def measure(
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    loss: str = "cross_entropy",
    temperature: float = 1.0,
) -> Measures:
    """Measure logits (N, outputs) against labels (N,); outputs beyond the classes can never be right."""
    p = probabilities(logits, loss, temperature)
    right = logits.argmax(1) == labels
    matrix = confusion(logits, labels, len(classes))
    table = per_class(matrix, classes)
    reliability = bins(p.amax(1), right)
    present = [row for row in table if row.pictures]
    outputs = logits.shape[1]
    return Measures(
        len(labels),
        float(right.double().mean()),
        float((logits.topk(TOP).indices == labels[:, None]).any(1).double().mean())
        if outputs > TOP
        else None,
        float(np.mean([row.recall for row in present])),
        float(np.mean([row.f1 for row in present])),
        _log_loss(logits.double() / temperature, labels, loss),
        calibration_error(reliability),
        reliability,
        table,
        matrix,
    )


def probabilities(logits: Tensor, loss: str = "cross_entropy", temperature: float = 1.0) -> Tensor:
    """Logits (N, outputs) as float64 probabilities, which add up to 1 unless the loss is `bce`."""
    scaled = logits.double() / temperature
    return scaled.sigmoid() if loss == "bce" else scaled.softmax(1)


def confusion(logits: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    """Counts by true class (rows) and predicted class (columns).

    A head of more outputs than classes brings a last column more, for answers that are no class.
    """
    columns = num_classes + (logits.shape[1] > num_classes)
    predicted = logits.argmax(1).clamp(max=columns - 1)
    matrix = np.zeros((num_classes, columns), dtype=np.int64)
    np.add.at(matrix, (labels.numpy(), predicted.numpy()), 1)
    return matrix


def per_class(matrix: np.ndarray, classes: Sequence[str]) -> list[PerClass]:
    """Precision, recall and F1 of each class from the confusion matrix."""
    rows = []
    for i, name in enumerate(classes):
        hits, pictures, answers = int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum())
        rows.append(
            PerClass(
                name,
                pictures,
                hits / answers if answers else None,
                hits / pictures if pictures else None,
                2 * hits / (pictures + answers) if pictures + answers else None,
            )
        )
    return rows


def bins(confidence: Tensor, right: Tensor) -> list[Bin]:
    """Answers (N,) sorted by confidence into 15 equal bins (Guo et al. 2017, section 2)."""
    places = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    found = []
    for place in range(BINS):
        inside = places == place
        number = int(inside.sum())
        means = [float(values[inside].double().mean()) if number else None for values in (confidence, right)]
        found.append(Bin(place / BINS, (place + 1) / BINS, number, *means))
    return found


def calibration_error(reliability: Sequence[Bin]) -> float:
    """Expected calibration error: the mean distance of accuracy and confidence over the answers.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    total = sum(one.pictures for one in reliability)
    gaps = [
        one.pictures * abs(one.accuracy - one.confidence)
        for one in reliability
        if one.accuracy is not None and one.confidence is not None
    ]
    return sum(gaps) / total


def _log_loss(scaled: Tensor, labels: Tensor, loss: str) -> float:
    if loss == "bce":
        targets = F.one_hot(labels, scaled.shape[1]).double()
        return float(F.binary_cross_entropy_with_logits(scaled, targets))
    return float(F.cross_entropy(scaled, labels))
