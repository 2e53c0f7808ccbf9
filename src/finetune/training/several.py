"""What answers are worth where an image may have several labels, and how well each label is set apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.training.intervals import bootstrap, of_share
from finetune.training.metrics import Numbers, as_floats, mean_of, measure_classes, once

BESIDE = ("log_loss", "roc_auc", "at_thresholds", "intervals", "curves")  # what training itself lacks
ABSENT = {"pictures": 0, "f1": None, "average_precision": None, "roc_auc": None}
POINTS = 51  # of a curve, at most


def ranked(scores: Tensor, true: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """True and false positives (M, draws) from a threshold above all scores (N,) down to the lowest.

    true: (N,) of bool. weights: how often each image counts, (N, draws).
    """
    scores, order = scores.sort(descending=True)
    last = torch.cat([scores.diff() != 0, torch.ones(1, dtype=torch.bool)])
    parts = torch.stack([weights * true[:, None], weights * ~true[:, None]])[:, order].cumsum(1)[:, last]
    hits, alarms = torch.cat([torch.zeros_like(parts[:, :1]), parts], 1)
    return hits, alarms


def average_precision(hits: Tensor, alarms: Tensor) -> Tensor:
    """The area under precision over recall in steps, (draws,), as scikit-learn has it."""
    return (hits.diff(dim=0) * (hits / (hits + alarms))[1:].nan_to_num()).sum(0) / hits[-1]


def separation(scores: Tensor, true: Tensor) -> dict[str, Any]:
    """The area under the ROC, and points of both curves; None and none where all images are alike."""
    hits, alarms = (counts[:, 0] for counts in ranked(scores, true, once(true)))
    if not hits[-1] or not alarms[-1]:
        return {"roc_auc": None, "curves": {}}
    recall, others = hits / hits[-1], alarms / alarms[-1]
    curves = {
        "recall": recall,
        "false_positives": others,
        "precision": (hits / (hits + alarms)).nan_to_num(1),
    }
    places = torch.linspace(0, len(hits) - 1, min(POINTS, len(hits))).round().long()
    drawn = {name: values[places].tolist() for name, values in curves.items()}
    return {"roc_auc": float(torch.trapezoid(recall, others)), "curves": drawn}


def several_labels(logits: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Exact matches and balanced accuracy at a probability of 0.5, macro-F1, and mean average precision.

    The means are over the labels, of (N, labels), that occur. Balanced accuracy is the mean of a label's two
    shares of right answers, where it holds and where it does not. weights: as of `one_class`.
    """
    has = labels > 0.5  # of a mixed image what the larger share has
    exact, occurs = ((logits > 0) == has).all(1), has.any(0)
    logits, true = logits[:, occurs], has[:, occurs]
    yes, columns = logits > 0, zip(logits.T, true.T, strict=True)
    hits, rightly_not, held, free, named = (
        rows.T.to(weights) @ weights for rows in (yes & true, ~yes & ~true, true, ~true, yes)
    )
    recall = hits / held
    precisions = [average_precision(*ranked(*column, weights)) for column in columns]
    return {
        "accuracy": exact.to(weights) @ weights / weights.sum(0),
        "balanced_accuracy": mean_of(torch.where(free > 0, (recall + rightly_not / free) / 2, recall), held),
        "macro_f1": mean_of(2 * hits / (named + held), held),
        "map": mean_of(torch.stack(precisions) if precisions else held, held),
    }


def per_label(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Numbers]:
    """F1 at a probability of 0.5, average precision and number of images of each label that occurs."""
    found = {}
    for name, scores, true in zip(names, logits.T, labels.T, strict=False):
        if images := int((true == 1).sum()):
            alone = as_floats(several_labels(scores[:, None], true[:, None], once(true)))
            found[name] = {"f1": alone["macro_f1"], "average_precision": alone["map"], "pictures": images}
    return found


def measure_labels(
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    thresholds: Mapping[str, float] | None,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Measure logits (N, outputs) where images have several labels, (N, classes) of 0 and 1.

    thresholds: of each label's probability; what answers by them are worth is `at_thresholds`.
    """
    logits, labels, images = logits[:, : len(classes)].double(), labels.double(), once(labels)
    found, levels = per_label(logits, labels, classes), thresholds or dict.fromkeys(classes, 0.5)
    areas = [separation(*one)["roc_auc"] for one in zip(logits.T, labels.T == 1, strict=True)]
    known, measures = [area for area in areas if area is not None], several_labels(logits, labels, images)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    moved = logits - torch.tensor([levels[name] for name in classes]).double().logit()
    intervals = bootstrap(
        lambda drawn: {**several_labels(logits, labels, drawn), "log_loss": losses @ drawn / len(losses)},
        len(labels),
        groups,
    )
    exact = ((logits > 0) == (labels > 0.5)).all(1)
    return {
        "pictures": len(labels),
        **as_floats(measures),
        **(separation(logits.flatten(), labels.flatten() == 1) if known else {}),
        "roc_auc": sum(known) / len(known) if known else None,
        "log_loss": float(losses.mean()),
        "at_thresholds": as_floats(several_labels(moved, labels, images)) if thresholds else None,
        "intervals": intervals | {"accuracy": of_share(exact, groups)},
        "per_class": [
            {"name": name, **ABSENT, **found.get(name, {}), "roc_auc": area, "threshold": levels[name]}
            for name, area in zip(classes, areas, strict=True)
        ],
    }


def measure(logits: Tensor, labels: Tensor, classes: Sequence[str], **how: Any) -> dict[str, Any]:
    """Measure logits against label vectors (N, classes), or as `measure_classes`; two classes as labels, too.

    how: softmax and temperature, which only classes have, the labels' thresholds or None, and groups.
    """
    thresholds = how.pop("thresholds")
    if labels.ndim == 2:
        return measure_labels(logits, labels, classes, thresholds, groups=how.get("groups"))
    two = logits.shape[1] == len(classes) == 2
    apart = separation(logits.diff(dim=1)[:, 0], labels == 1) if two else {}
    return measure_classes(logits, labels, classes, **how) | apart
