"""What an epoch's answers come to: accuracy for one class a picture, average precision for several labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

Numbers = dict[str, float]


def one_class(hits: Tensor, classes: Tensor) -> Numbers:
    """Accuracy, and the mean over the classes that occur of the share of each that is right.

    hits: (N,) whether each answer is right. classes: (N,) the true ones.
    """
    counts = torch.bincount(classes)
    right = torch.bincount(classes[hits], minlength=len(counts))
    present = counts > 0
    shares = right[present].double() / counts[present]
    return {"accuracy": float(hits.double().mean()), "balanced_accuracy": float(shares.mean())}


def several_labels(logits: Tensor, labels: Tensor) -> Numbers:
    """Exact matches and balanced accuracy at a probability of 0.5, macro-F1, and mean average precision.

    The means are over the labels that occur. Balanced accuracy is the mean of a label's two shares of right
    answers, where it holds and where it does not.

    logits: (N, labels). labels: (N, labels) of 0 and 1.
    """
    occurs = (labels == 1).any(0)
    yes, true = (logits > 0)[:, occurs], (labels == 1)[:, occurs]
    held, free = _share(yes & true, true), _share(~yes & ~true, ~true)
    return {
        "accuracy": float(((logits > 0) == (labels == 1)).all(1).double().mean()),
        "balanced_accuracy": _mean(torch.where(free.isnan(), held, (held + free) / 2)),
        "macro_f1": _mean(_f1(yes, true)),
        "map": _mean(_average_precision(logits[:, occurs], true)),
    }


def per_label(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Numbers]:
    """F1 at a probability of 0.5, average precision and number of pictures of each label that occurs."""
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


def _share(right: Tensor, of: Tensor) -> Tensor:
    return right.sum(0).double() / of.sum(0)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0
