"""Which metric says what is best: the epoch of a run, the run of a sweep, the trial of a search."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

NAMES = {"accuracy": "accuracy", "map": "mAP"}  # as they are shown


def deciding(metrics: Collection[str]) -> str:
    """The one of a run's metrics, by its name, that is highest for the best.

    Mean average precision where a picture has several labels, as all of them are seldom right; else accuracy.
    """
    return "map" if "map" in metrics else "accuracy"


def score(metrics: Mapping[str, Any]) -> float:
    """The value of that metric."""
    return metrics[deciding(metrics)]
