"""What is best: the metric that says it of an epoch, a run, a sweep or a search."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# The metrics that can say it, as they are shown.
NAMES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "map": "mAP",
}
LAST = "last"
BEST = (*NAMES, LAST)


def deciding(best: str, metrics: Collection[str]) -> str:
    """The one of a run's metrics, by its name, that ranks it as `best` says.

    Where an image has several labels, accuracy means mean average precision: all labels are seldom right.
    With `last`, which chooses no epoch, runs are ranked by the loss.
    """
    if best == "accuracy" and "map" in metrics:
        return "map"
    return "loss" if best == LAST else best


def score(best: str, metrics: Mapping[str, Any]) -> float:
    """The value of that metric, larger where it is better."""
    name = deciding(best, metrics)
    return -metrics[name] if name == "loss" else metrics[name]
