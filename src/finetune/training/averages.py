"""Exponential moving averages of what trains, measured beside it and kept where they are better."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class Averages(pl.Callback):
    """The averages of all that is not frozen, after each step, with warm-up as timm's ModelEmaV3 has it.

    decay: what the averages keep of themselves in a step, once warmed up.
    values: the averages by name; those of the model while `in_place`, when the model has the averages.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values: dict[str, Tensor] = {}
        self.in_place = False

    def setup(self, trainer: Any, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            trainer.datamodule.val_passes = 2

    def on_train_epoch_start(self, trainer: pl.Trainer, learner: Any) -> None:
        self.steps, current = trainer.global_step, learner.frozen.others(learner.model)
        if not self.values:
            self.values = {name: value.detach().clone() for name, value in current.items()}
        self.values = {name: value.to(current[name].device) for name, value in self.values.items()}
        if self.in_place:  # a checkpoint of the averages was loaded
            self.swap(learner)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, learner: Any, *args: Any) -> None:
        if trainer.global_step == self.steps:  # batches are accumulated
            return
        self.steps = trainer.global_step
        weight = 1 - decay_at(self.steps, self.decay)
        for name, value in learner.frozen.others(learner.model).items():
            average = self.values[name]
            if value.is_floating_point():
                average.lerp_(value, weight)
            else:
                average.copy_(value)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, learner: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx and not self.in_place:
            self.swap(learner)

    def on_validation_end(self, trainer: pl.Trainer, learner: Any) -> None:
        if self.in_place:
            self.swap(learner)

    @torch.no_grad()
    def swap(self, learner: Any) -> None:
        """Give the model the averages, or its own values back."""
        for name, value in learner.frozen.others(learner.model).items():
            own = value.clone()
            value.copy_(self.values[name])
            self.values[name].copy_(own)
        self.in_place = not self.in_place

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "in_place": self.in_place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values, self.in_place = state_dict["values"], state_dict["in_place"]


def decay_at(step: int, decay: float) -> float:
    """The decay in the step of that number, from 1 on: 0 in the first, then 1 - step^(-2/3) up to `decay`."""
    return min(1 - max(step, 1) ** (-2 / 3), decay)
