"""Checkpoints that are whole or absent: what trains, again and again; what is frozen, once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors.torch import save
from torch import Tensor

from finetune import sealed, signals
from finetune.atomic import write_atomically
from finetune.errors import RunError
from finetune.training import distributed
from finetune.training.averages import Averages
from finetune.training.best import Best
from finetune.training.learner import Job, Learner


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written atomically and read as plain data only, as they were written."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # of a callback's checkpoint
        sealed.write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        try:
            return sealed.read_checkpoint(Path(path))
        except Exception as error:  # there is no telling what damaged bytes make an unpickler raise
            raise RunError(f"{path}: is missing or damaged ({type(error).__name__})") from None


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint of a run's last whole epoch, and its content; None where no epoch was finished.

    A run that was killed between writing best.ckpt and last.ckpt has it in best.ckpt; of a refitted one that
    is chosen.ckpt until `forget_refitted`. RunError: damage.
    """
    found = list[tuple[Path, dict[str, Any]]]()
    for path in (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "best")):
        if not (path.exists() or found):  # last.ckpt is never there without best.ckpt
            continue
        try:
            chosen = path.with_name("chosen.ckpt")
            refitted = path.stem == "best" and chosen.exists()
            content = AtomicCheckpointIO().load_checkpoint(chosen if refitted else path)
        except RunError as error:
            way = "; without it the run goes on from best.ckpt, if that is whole" * (path.stem == "last")
            raise RunError(f"{error}{way}") from None
        if not (isinstance(content, dict) and isinstance(content.get("epoch"), int)):
            raise RunError(f"{path}: is no checkpoint of a run")
        found.append((path, content))
    return max(found, key=lambda one: one[1]["epoch"], default=None)


def save_frozen(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomically(path, save(contiguous, metadata))


def copy_best(folder: Path) -> None:
    """Write last.ckpt as a file of its own, equal to best.ckpt: what damages the one leaves the other."""
    write_atomically(folder / "last.ckpt", (folder / "best.ckpt").read_bytes())


REFIT = "checkpoints/refit"  # where what is trained on train and validation images has its checkpoints


def take_refitted(folder: Path) -> None:
    """Put a run's refitted model in the place of its best epoch's, which becomes chosen.ckpt."""
    best = folder / "checkpoints" / "best.ckpt"
    write_atomically(best.with_name("chosen.ckpt"), best.read_bytes())
    os.replace(folder / REFIT / "best.ckpt", best)
    shutil.rmtree(folder / REFIT)


def forget_refitted(folder: Path) -> None:
    """Undo that, and remove what a refit that was stopped has left: it begins again."""
    best = folder / "checkpoints" / "best.ckpt"
    with suppress(FileNotFoundError):
        os.replace(best.with_name("chosen.ckpt"), best)
    shutil.rmtree(folder / REFIT, ignore_errors=True)


class Checkpoints(pl.Callback):
    """best.ckpt and last.ckpt after each epoch, and the end of training where it comes before `epochs`.

    Training ends when `patience` epochs brought no better one, or after `max_steps` optimiser steps: the
    epoch is then cut short, validated and kept like any other.
    """

    def __init__(self, jobs: Sequence[Job], max_steps: int | None = None) -> None:
        self.jobs, self.max_steps = jobs, max_steps

    def on_fit_start(self, trainer: pl.Trainer, *args: Any) -> None:
        # A run that had ended but for its last words has nothing left to train.
        trainer.should_stop = not any(job.trains for job in self.jobs) or self._out_of_steps(
            self.jobs[0].steps
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        signals.check()
        if self._out_of_steps(trainer.global_step):
            trainer.should_stop = True

    def _out_of_steps(self, steps: int) -> bool:
        return self.max_steps is not None and steps >= self.max_steps

    def on_train_epoch_end(self, trainer: pl.Trainer, learner: Any) -> None:
        for name, values in learner.values():
            learner.check_finite(f"a value of {name}", values)
        epoch, metrics, live = trainer.current_epoch + 1, learner.metrics(), learner.live
        better = [job for job in live if self.improves(trainer, self.jobs[job].best, metrics[job])]
        self.keep(trainer, learner, live, better)
        for job in live:
            self.jobs[job].best.kept, self.jobs[job].steps = epoch, trainer.global_step
        if not any(job.trains for job in self.jobs):
            trainer.should_stop = True

    def improves(self, trainer: pl.Trainer, best: Best, metrics: dict[str, float]) -> bool:
        """Note a job's epoch that has ended; returns whether it is its best."""
        return best.improves(trainer.current_epoch + 1, metrics)

    def keep(self, trainer: pl.Trainer, learner: Learner, live: list[int], better: list[int]) -> None:
        """Write or remember the checkpoints of an epoch that has ended."""
        raise NotImplementedError

    def load_best(self, learner: Any) -> None:
        """Put the weights of each job's best epoch back."""
        raise NotImplementedError

    def write(self) -> None:
        """Write what is remembered only."""


class RunCheckpoints(Checkpoints):
    """Those of one run, written after each epoch by Lightning; every: so many epochs one that stays."""

    def __init__(
        self,
        jobs: Sequence[Job],
        max_steps: int | None = None,
        every: int | None = None,
        averages: Averages | None = None,
    ) -> None:
        super().__init__(jobs, max_steps)
        (self.job,), self.every = jobs, every
        self.averages = averages
        self.rng: dict[str, Tensor] | list[dict[str, Tensor]] = {}

    @property
    def state_key(self) -> str:
        return "Checkpoints"

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        own = self.rng[trainer.global_rank] if isinstance(self.rng, list) else self.rng
        for device, state in own.items():
            module = torch if device == "cpu" else torch.get_device_module(device)
            module.set_rng_state(state)

    def improves(self, trainer: pl.Trainer, best: Best, metrics: dict[str, float]) -> bool:
        averaged = best.of_averages(metrics) if self.averages else None
        return best.improves(trainer.current_epoch + 1, averaged or metrics, averaged is not None)

    def keep(self, trainer: pl.Trainer, learner: Learner, live: list[int], better: list[int]) -> None:
        folder = self.job.folder / self.job.checkpoints
        averages = self.averages if better and self.job.best.averaged else None
        if averages:
            averages.swap(learner)
        trainer.save_checkpoint(folder / ("best.ckpt" if better else "last.ckpt"))
        if averages:
            averages.swap(learner)
        if better and trainer.is_global_zero:
            copy_best(folder)
        if self.every and not (trainer.current_epoch + 1) % self.every:
            trainer.save_checkpoint(folder / f"epoch={trainer.current_epoch:03d}.ckpt")

    def load_best(self, learner: Any) -> None:
        best = AtomicCheckpointIO().load_checkpoint(self.job.folder / self.job.checkpoints / "best.ckpt")
        learner.load_state_dict(best["state_dict"])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        device = pl_module.device.type
        checkpoint["frozen_sha256"] = self.job.frozen_sha256
        checkpoint["curves"] = "".join(self.job.curves)
        checkpoint["origin"] = dict(self.job.origin)
        # Nothing but dropout draws from these: order and augmentation follow from seed and epoch.
        own = {"cpu": torch.get_rng_state()}
        if device != "cpu":
            own[device] = torch.get_device_module(device).get_rng_state()
        each = distributed.gathered(own, trainer.world_size)
        checkpoint["rng"] = each if trainer.world_size > 1 else own

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.job.best.kept, self.job.steps = checkpoint["epoch"] + 1, checkpoint["global_step"]
        self.rng = checkpoint["rng"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.job.best.load(state_dict)

    def state_dict(self) -> dict[str, Any]:
        return self.job.best.state()
