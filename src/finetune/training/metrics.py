"""What answers are worth: accuracy, calibration and a table per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.training.intervals import bootstrap, of_share

Numbers = dict[str, float]
Row = dict[str, Any]

BINS = 15
TOP = 5


def as_floats(values: Mapping[str, Tensor]) -> Numbers:
    return {name: float(value) for name, value in values.items()}


def once(labels: Tensor) -> Tensor:
    """Weights (N, 1) that count each image once."""
    return torch.ones(len(labels), 1, dtype=torch.float64)


def one_class(answers: Tensor, classes: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Accuracy of answers (N,), and the mean recall and F1 over the classes (N,) that occur: each (draws,).

    weights: how often each image counts, (N, draws). This runs after each epoch, of each job: torchmetrics
    takes three times as long.
    """
    size, hits = int(classes.max()) + 1, answers == classes
    counts, right, answered = (
        weights.new_zeros(size, weights.shape[1]).index_add_(0, places[rows], weights[rows])
        for places, rows in ((classes, slice(None)), (classes, hits), (answers, answers < size))
    )
    return {
        "accuracy": right.sum(0) / counts.sum(0),
        "balanced_accuracy": mean_of(right / counts, counts),
        "macro_f1": mean_of(2 * right / (counts + answered), counts),
    }


def mean_of(values: Tensor, counts: Tensor) -> Tensor:
    """The mean (draws,) of values (L, draws) over those of which there are images; 0 of none."""
    return torch.where(counts > 0, values, torch.nan).nanmean(0).nan_to_num()


def measure_classes(
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    softmax: bool = True,
    temperature: float = 1.0,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Measure logits (N, outputs) against classes (N,); outputs beyond the classes can never be right.

    softmax: whether it makes the probabilities, or a sigmoid. Returns: what `measure_answers` and
    `calibration` do, `top5_accuracy`, None for five outputs or fewer, which would always be right, and
    `intervals` of what is a mean. groups: as of `training.intervals`.
    """
    (images, outputs), answers = logits.shape, logits.argmax(1)
    hits, found = answers == labels, measure_answers(labels, answers, classes, outputs)
    found |= {"top5_accuracy": None, **calibration(logits, labels, softmax, temperature)}
    shares = {"accuracy": of_share(hits, groups)}
    if outputs > TOP:
        among = (logits.topk(TOP).indices == labels[:, None]).any(1)
        found["top5_accuracy"] = float(among.double().mean())
        shares["top5_accuracy"] = of_share(among, groups)
    losses, confidence = _sureness(logits, labels, softmax, temperature)
    gaps, places = (confidence - hits.double())[:, None], _bins_of(confidence)

    def draw(drawn: Tensor) -> dict[str, Tensor]:
        binned = drawn.new_zeros(BINS, drawn.shape[1]).index_add_(0, places, gaps * drawn)
        sureness = {"log_loss": losses @ drawn / images, "calibration_error": binned.abs().sum(0) / images}
        return {**one_class(answers, labels, drawn), **sureness}

    return found | {"intervals": bootstrap(draw, images, groups) | shares}


def measure_answers(labels: Tensor, answers: Tensor, classes: Sequence[str], outputs: int) -> dict[str, Any]:
    """Answers (N,) against the true classes (N,): `one_class`, `per_class` and the confusion matrix."""
    matrix = confusion_matrix(labels, answers, len(classes), outputs)
    return {
        "pictures": len(labels),
        **as_floats(one_class(answers, labels, once(labels))),
        "per_class": per_class(matrix, classes),
        "confusion": matrix.tolist(),
    }


def confusion_matrix(labels: Tensor, answers: Tensor, classes: int, outputs: int) -> np.ndarray:
    """Counts by true class (rows) and answer (columns), a last one for outputs of a larger head."""
    columns = classes + (outputs > classes)
    cells = labels * columns + answers.clamp(max=columns - 1)
    return cells.bincount(minlength=columns**2).reshape(columns, columns)[:classes].numpy()


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
    losses, confidence = _sureness(logits, labels, softmax, temperature)
    bins = calibration_bins(confidence, logits.argmax(1) == labels)
    return {"log_loss": float(losses.mean()), "calibration_error": calibration_error(bins), "bins": bins}


def _sureness(logits: Tensor, labels: Tensor, softmax: bool, temperature: float) -> tuple[Tensor, Tensor]:
    """The log-loss of each image in nats, the mean over its outputs without softmax, and its confidence."""
    scaled, confidence = logits.double() / temperature, probabilities(logits, softmax, temperature).amax(1)
    if softmax:
        return F.cross_entropy(scaled, labels, reduction="none"), confidence
    targets = F.one_hot(labels, scaled.shape[1]).double()
    return F.binary_cross_entropy_with_logits(scaled, targets, reduction="none").mean(1), confidence


def _bins_of(confidence: Tensor) -> Tensor:
    return (confidence * BINS).ceil().long().clamp(1, BINS) - 1


def calibration_bins(confidence: Tensor, right: Tensor) -> list[Row]:
    """Answers (N,) in 15 equal bins of confidence (Guo et al. 2017, section 2).

    Returns: of each bin (lower, upper] the number of answers, their mean confidence and their accuracy, None
    where it is empty. torchmetrics and scikit-learn do not give the numbers of the answers.
    """
    places = _bins_of(confidence)
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
