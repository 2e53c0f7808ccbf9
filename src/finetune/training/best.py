"""What is best: the metric that says it of a run, a sweep or a search, and the best epoch of a training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

NAMES = {"accuracy": "accuracy", "map": "mAP"}  # as they are shown


def deciding(metrics: Collection[str]) -> str:
    """The one of a run's metrics, by its name, that is highest for the best.

    Mean average precision where an image has several labels, as all of them are seldom right; else accuracy.
    """
    return "map" if "map" in metrics else "accuracy"


def score(metrics: Mapping[str, Any]) -> float:
    """The value of that metric."""
    return metrics[deciding(metrics)]


def of_side(side: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of one side of the split, `val` or `test`, by their names without it."""
    ending = f"/{side}"
    return {name.removesuffix(ending): value for name, value in metrics.items() if name.endswith(ending)}


class Best:
    """The best epoch of a training until now.

    Best is the highest validation accuracy (with several labels an image mean average precision), ties to
    the lower loss; without validation the last epoch.

    epoch, metrics: the best one and its metrics. kept: the last one that is written, as the caller says.
    """

    def __init__(self) -> None:
        self.rank: tuple[float, float] | None = None
        self.epoch = self.kept = 0
        self.metrics: dict[str, float] = {}

    def improves(self, epoch: int, metrics: dict[str, float]) -> bool:
        """Note an epoch that has ended; returns whether it is the best."""
        val = of_side("val", metrics)
        rank = (score(val), -val["loss"]) if val else None
        better = self.rank is None or rank is None or rank > self.rank
        if better:
            self.rank, self.epoch, self.metrics = rank, epoch, metrics
        return better

    def out_of(self, patience: int | None) -> bool:
        """Whether so many epochs brought no better one that training ends."""
        return patience is not None and self.kept - self.epoch >= patience

    def __str__(self) -> str:
        """What an early end leaves, in a few words."""
        if not self.kept:
            return "no epoch was finished, so there is no checkpoint"
        return f"the checkpoint of epoch {self.kept} is kept"

    def state(self) -> dict[str, Any]:
        """What a checkpoint has of it, beside its own epoch."""
        return {"best": self.rank, "best_epoch": self.epoch, "metrics": self.metrics}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.rank, self.epoch, self.metrics = state["best"], state["best_epoch"], state["metrics"]
