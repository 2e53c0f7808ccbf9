"""What answers are worth: accuracy, calibration and a table per class, or average precision of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision, multiclass_confusion_matrix

Numbers = dict[str, float]
Row = dict[str, Any]

BINS = 15
TOP = 5


def one_class(answers: Tensor, classes: Tensor) -> Numbers:
    """Accuracy of answers (N,), and the mean recall and F1 over the classes (N,) that occur.

    This runs after each epoch, of each job: torchmetrics takes three times as long.
    """
    hits, counts = answers == classes, torch.bincount(classes)
    right = torch.bincount(classes[hits], minlength=len(counts))
    answered = torch.bincount(answers, minlength=len(counts))[: len(counts)]
    present = counts > 0
    return {
        "accuracy": float(hits.double().mean()),
        "balanced_accuracy": float((right[present].double() / counts[present]).mean()),
        "macro_f1": float((2 * right[present].double() / (counts + answered)[present]).mean()),
    }


def several_labels(logits: Tensor, labels: Tensor) -> Numbers:
    """Exact matches and balanced accuracy at a probability of 0.5, macro-F1, and mean average precision.

    The means are over the labels, of (N, labels), that occur. Balanced accuracy is the mean of a label's two
    shares of right answers, where it holds and where it does not.
    """
    occurs = (labels == 1).any(0)
    yes, true = (logits > 0)[:, occurs], (labels == 1)[:, occurs]
    held = (yes & true).sum(0).double() / true.sum(0)
    free = (~yes & ~true).sum(0).double() / (~true).sum(0)
    return {
        "accuracy": float(((logits > 0) == (labels == 1)).all(1).double().mean()),
        "balanced_accuracy": _mean(torch.where(free.isnan(), held, (held + free) / 2)),
        "macro_f1": _mean(_f1(yes, true)),
        "map": _mean(_average_precision(logits[:, occurs], true)),
    }


def per_label(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Numbers]:
    """F1 at a probability of 0.5, average precision and number of images of each label that occurs."""
    occurs = torch.nonzero((labels == 1).any(0)).flatten()
    logits, true = logits[:, occurs], (labels == 1)[:, occurs]
    rows = zip(_f1(logits > 0, true), _average_precision(logits, true), true.sum(0), strict=True)
    return {
        names[i]: {"f1": float(f1), "average_precision": float(precision), "pictures": int(count)}
        for i, (f1, precision, count) in zip(occurs.tolist(), rows, strict=True)
    }


def _f1(yes: Tensor, true: Tensor) -> Tensor:
    return 2 * (yes & true).sum(0).double() / (yes.sum(0) + true.sum(0))


def _average_precision(logits: Tensor, true: Tensor) -> Tensor:
    columns = zip(logits.double().sigmoid().T, true.int().T, strict=True)
    each = [binary_average_precision(one, other, validate_args=False) for one, other in columns]
    return torch.stack(each) if each else torch.zeros(0)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def measure_labels(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Measure logits (N, outputs) where images have several labels, (N, classes) of 0 and 1."""
    logits, labels = logits[:, : len(classes)].double(), labels.double()
    found = per_label(logits, labels, classes)
    absent = {"pictures": 0, "f1": None, "average_precision": None}
    return {
        "pictures": len(labels),
        **several_labels(logits, labels),
        "log_loss": float(F.binary_cross_entropy_with_logits(logits, labels)),
        "per_class": [{"name": name, **(found.get(name) or absent)} for name in classes],
    }


def measure_classes(
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    softmax: bool = True,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Measure logits (N, outputs) against classes (N,); outputs beyond the classes can never be right.

    softmax: whether it makes the probabilities, or a sigmoid. Returns: what `measure_answers` and
    `calibration` do, and `top5_accuracy`, None for five outputs or fewer, which would always be right.
    """
    outputs, top5 = logits.shape[1], None
    if outputs > TOP:
        top5 = float((logits.topk(TOP).indices == labels[:, None]).any(1).double().mean())
    return {
        **measure_answers(labels, logits.argmax(1), classes, outputs),
        "top5_accuracy": top5,
        **calibration(logits, labels, softmax, temperature),
    }


def measure_answers(labels: Tensor, answers: Tensor, classes: Sequence[str], outputs: int) -> dict[str, Any]:
    """Answers (N,) against the true classes (N,): `one_class`, `per_class` and the confusion matrix."""
    matrix = confusion_matrix(labels, answers, len(classes), outputs)
    return {
        "pictures": len(labels),
        **one_class(answers, labels),
        "per_class": per_class(matrix, classes),
        "confusion": matrix.tolist(),
    }


def confusion_matrix(labels: Tensor, answers: Tensor, classes: int, outputs: int) -> np.ndarray:
    """Counts by true class (rows) and answer (columns), a last one for outputs of a larger head."""
    columns = classes + (outputs > classes)
    matrix = multiclass_confusion_matrix(
        answers.clamp(max=columns - 1), labels, num_classes=columns, validate_args=False
    )
    return matrix[:classes].numpy()


def per_class(matrix: np.ndarray, classes: Sequence[str]) -> list[Row]:
    """Precision, recall and F1 of each class from the confusion matrix; None for a quotient by zero."""
    hits, images, answers = (part.tolist() for part in (matrix.diagonal(), matrix.sum(1), matrix.sum(0)))
    return [
        {
            "name": name,
            "pictures": images[i],
            "precision": _ratio(hits[i], answers[i]),
            "recall": _ratio(hits[i], images[i]),
            "f1": _ratio(2 * hits[i], images[i] + answers[i]),
        }
        for i, name in enumerate(classes)
    ]


def _ratio(part: int, of: int) -> float | None:
    return part / of if of else None


def probabilities(logits: Tensor, softmax: bool = True, temperature: float = 1.0) -> Tensor:
    """Logits (N, outputs) as float64 probabilities, by softmax or by a sigmoid of each output."""
    scaled = logits.double() / temperature
    return scaled.softmax(1) if softmax else scaled.sigmoid()


def calibration(
    logits: Tensor, labels: Tensor, softmax: bool = True, temperature: float = 1.0
) -> dict[str, Any]:
    """How far probabilities are to be believed: log-loss in nats, calibration error, and its bins."""
    scaled = logits.double() / temperature
    if softmax:
        log_loss = F.cross_entropy(scaled, labels)
    else:
        targets = F.one_hot(labels, scaled.shape[1]).double()
        log_loss = F.binary_cross_entropy_with_logits(scaled, targets)
    bins = calibration_bins(probabilities(logits, softmax, temperature).amax(1), logits.argmax(1) == labels)
    return {"log_loss": float(log_loss), "calibration_error": calibration_error(bins), "bins": bins}


def calibration_bins(confidence: Tensor, right: Tensor) -> list[Row]:
    """Answers (N,) in 15 equal bins of confidence (Guo et al. 2017, section 2).

    Returns: of each bin (lower, upper] the number of answers, their mean confidence and their accuracy, None
    where it is empty. torchmetrics and scikit-learn do not give the numbers of the answers.
    """
    places = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    counts, sure, hits = (
        torch.bincount(places, weights, BINS).tolist()
        for weights in (None, confidence.double(), right.double())
    )
    return [
        {
            "lower": place / BINS,
            "upper": (place + 1) / BINS,
            "pictures": counts[place],
            "confidence": _ratio(sure[place], counts[place]),
            "accuracy": _ratio(hits[place], counts[place]),
        }
        for place in range(BINS)
    ]


def calibration_error(bins: Sequence[Row]) -> float:
    """The mean distance of accuracy and confidence over the answers: Guo et al. 2017, equation 3."""
    held = [one for one in bins if one["pictures"]]
    gaps = [one["pictures"] * abs(one["accuracy"] - one["confidence"]) for one in held]
    return sum(gaps) / sum(one["pictures"] for one in held)
