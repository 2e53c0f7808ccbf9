"""Checkpoints that are whole or absent: what trains, again and again; what is frozen, once."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors.torch import save
from torch import Tensor

from finetune.atomic import linked, write_atomically
from finetune.errors import RunError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written atomically and read as plain data only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise RunError(f"{path}: is missing or damaged ({type(error).__name__})") from None


def save_frozen(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Store what is frozen once a run, as safetensors."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomically(path, lambda file: file.write(save(contiguous, metadata)))


class Checkpoints(pl.Callback):
    """best.ckpt and last.ckpt after each epoch, and the end of training where it comes before `epochs`.

    Best is the highest validation accuracy (with several labels a picture the highest mean average precision,
    as all labels of a picture are seldom right), ties to the lower loss; without validation the last epoch.
    Training ends when `patience` epochs brought no better one, or after `max_steps` optimiser steps: the
    epoch is then cut short, validated and kept like any other.
    """

    def __init__(
        self, folder: Path, frozen_sha256: str, patience: int | None = None, max_steps: int | None = None
    ) -> None:
        self.folder, self.frozen_sha256 = folder, frozen_sha256
        self.patience, self.max_steps = patience, max_steps
        self.best: tuple[float, float] | None = None
        self.best_epoch = 0
        self.metrics: dict[str, float] = {}
        self.saved = 0

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.max_steps is not None and trainer.global_step >= self.max_steps:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for name, value in pl_module.state_dict().items():
            pl_module.check_finite(f"a value of {name}", float(value.abs().max()))
        metrics = pl_module.metrics()
        epoch = trainer.current_epoch + 1
        highest = metrics.get("map/val", metrics.get("accuracy/val"))
        score = None if highest is None else (highest, -metrics["loss/val"])
        if self.best is None or score is None or score > self.best:
            self.best, self.best_epoch, self.metrics = score, epoch, metrics
            trainer.save_checkpoint(self.folder / "best.ckpt")
        if epoch != self.best_epoch or not linked(self.folder / "best.ckpt", self.folder / "last.ckpt"):
            trainer.save_checkpoint(self.folder / "last.ckpt")
        self.saved = epoch
        if self.patience is not None and epoch - self.best_epoch >= self.patience:
            trainer.should_stop = True

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        device = pl_module.device.type
        checkpoint["frozen_sha256"] = self.frozen_sha256
        # Nothing but dropout draws from these: order and augmentation follow from seed and epoch.
        checkpoint["rng"] = {"cpu": torch.get_rng_state()}
        if device != "cpu":
            checkpoint["rng"][device] = torch.get_device_module(device).get_rng_state()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "metrics": self.metrics}

    def kept(self) -> str:
        """What an early end leaves, in a few words."""
        if not self.saved:
            return "no epoch was finished, so there is no checkpoint"
        return f"the checkpoint of epoch {self.saved} is kept"
