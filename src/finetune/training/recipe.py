"""The numbers that one training follows, over the parameters of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from finetune.training.optim import Schedule


@dataclass(frozen=True)
class Recipe:
    """How to train: optimiser, schedule and what weighs the loss.

    groups: of parameters, with rates and decay, as `optim.groups` makes them.
    options: of the optimiser beside those, as `optim.build` takes them.
    """

    optimizer: str
    groups: list[dict[str, Any]]
    options: dict[str, Any]
    schedule: Schedule
    label_smoothing: float
    class_weights: Tensor | None
