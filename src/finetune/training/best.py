"""The best epoch of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.choices.best import LAST, score


def of_side(side: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of one side of the split, `val` or `test`, by their names without it."""
    ending = f"/{side}"
    return {name.removesuffix(ending): value for name, value in metrics.items() if name.endswith(ending)}


class Best:
    """The best epoch until now, by a metric in validation, ties to the lower loss; without one the last.

    by: the metric, or `last`. until: the epoch after which none is better, where that is known beforehand.
    epoch, metrics: the best one and its metrics. averaged: whether these are of the averages of its weights.
    kept: the last one that is written, as the caller says.
    """

    def __init__(self, by: str = "accuracy", until: int | None = None) -> None:
        self.by, self.until = by, until
        self.rank: tuple[float, float] | None = None
        self.epoch = self.kept = 0
        self.metrics: dict[str, float] = {}
        self.averaged = False

    def of_averages(self, metrics: dict[str, float]) -> dict[str, float] | None:
        """An epoch's metrics with those of the averages for validation, where these are better or alone."""
        own, averaged = of_side("val", metrics), of_side("ema", metrics)
        if own and self._rank(averaged) <= self._rank(own):
            return None
        return metrics | {f"{name}/val": value for name, value in averaged.items()}

    def _rank(self, val: dict[str, float]) -> tuple[float, float]:
        return score(self.by, val), -val["loss"]

    def improves(self, epoch: int, metrics: dict[str, float], averaged: bool = False) -> bool:
        """Note an epoch that has ended, measured with averages or not; returns whether it is the best."""
        val = of_side("val", metrics)
        rank = self._rank(val) if val else None
        better = self.rank is None or rank is None or rank > self.rank or self.by == LAST
        better = better and (self.until is None or epoch <= self.until)
        if better:
            self.rank, self.epoch, self.metrics, self.averaged = rank, epoch, metrics, averaged
        return better

    def out_of(self, patience: int | None) -> bool:
        """Whether so many epochs brought no better one that training ends."""
        return patience is not None and self.kept - self.epoch >= patience

    def __str__(self) -> str:
        """What an early end leaves, in a few words."""
        kept = self.kept if self.until is None else self.until  # which the training before a refit came to
        if not kept:
            return "no epoch was finished, so there is no checkpoint"
        return f"the checkpoint of epoch {kept} is kept"

    def state(self) -> dict[str, Any]:
        """What a checkpoint has of it, beside its own epoch."""
        return {
            "best": self.rank,
            "best_epoch": self.epoch,
            "metrics": self.metrics,
            "averaged": self.averaged,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.rank, self.epoch, self.metrics = state["best"], state["best_epoch"], state["metrics"]
        self.averaged = state.get("averaged", False)  # of older versions
