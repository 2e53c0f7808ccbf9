"""What each job of a group leaves while it trains, as if alone: curves, metrics.csv and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from finetune import sealed
from finetune.atomic import write_atomically
from finetune.report.folder import curves_until
from finetune.sweep.stacked import Tensors
from finetune.training import optim
from finetune.training.best import Best
from finetune.training.callbacks import LAYOUT, write_point


@dataclass(frozen=True)
class Recipe:
    """How one job trains, over the parameters of the model that all jobs share.

    groups: of parameters, with rates and decay, as `optim.groups` makes them.
    options: of the optimiser beside those, as `optim.build` takes them.
    """

    optimizer: str
    groups: list[dict[str, Any]]
    options: dict[str, Any]
    schedule: optim.Schedule
    label_smoothing: float
    class_weights: Tensor | None


class Snapshot:
    """The tensors of all jobs (J, …) at the ends of epochs that may differ from job to job.

    Keys are pairs: `state` or the name of an optimiser's state, and a parameter's or buffer's name.
    """

    def __init__(self, tensors: dict[tuple[str, str], Tensor], jobs: int) -> None:
        self.tensors = {key: value.detach().clone() for key, value in tensors.items()}
        self.epochs, self.steps = [0] * jobs, [0] * jobs

    def take(self, tensors: dict[tuple[str, str], Tensor], jobs: list[int], epoch: int, step: int) -> None:
        """Remember the present tensors of some jobs."""
        for key, value in tensors.items():
            self.tensors[key][jobs] = value.detach()[jobs]
        for job in jobs:
            self.epochs[job], self.steps[job] = epoch, step

    def of(self, job: int, kind: str) -> Tensors:
        """One job's tensors of a kind, on the CPU and with memory of their own, as torch.save needs them."""
        return {name: value[job].cpu().clone() for (k, name), value in self.tensors.items() if k == kind}


class Record:
    """One job's folder and its best epoch."""

    def __init__(
        self,
        folder: Path,
        writer: SummaryWriter,
        recipe: Recipe,
        names: dict[int, str],
        frozen_sha256: str,
        patience: int | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.writer, self.recipe = folder, writer, recipe
        self.names, self.frozen_sha256, self.patience = names, frozen_sha256, patience
        self.origin = dict(origin or {})
        self.best, self.steps = Best(), 0
        self.written: tuple[int, int] | None = None

    def epoch(self, epoch: int, step: int, metrics: dict[str, float], gradient_norm: float) -> bool:
        """Write an epoch's point; returns whether it is the best until now."""
        factor = self.recipe.schedule(self.steps)  # the rates an epoch begins with, as for a lone run
        rates = {f"lr/{group['name']}": group["lr"] * factor for group in self.recipe.groups}
        values = metrics | rates | {"gradient_norm": gradient_norm}
        if not self.best.kept:
            self.writer.add_custom_scalars(LAYOUT)
        write_point(self.writer, self.folder / "metrics.csv", epoch, step, values)
        self.best.kept, self.steps = epoch, step
        return self.best.note(epoch, metrics)

    def keep(self, job: int, best: Snapshot, last: Snapshot) -> None:
        """Write best.ckpt and last.ckpt of the job at that place, where they have changed."""
        stands = best.epochs[job], last.epochs[job]
        if not self.best.kept or stands == self.written:
            return
        folder = self.folder / "checkpoints"
        if self.written is None or self.written[0] != stands[0]:
            self._save(folder / "best.ckpt", job, best)
        if stands[0] == stands[1]:  # a file of its own: what damages the one leaves the other
            write_atomically(folder / "last.ckpt", (folder / "best.ckpt").read_bytes())
        else:
            self._save(folder / "last.ckpt", job, last)
        self.written = stands

    def _save(self, path: Path, job: int, at: Snapshot) -> None:
        checkpoint = {
            "epoch": at.epochs[job] - 1,  # as Lightning counts
            "global_step": at.steps[job],
            "pytorch-lightning_version": pl.__version__,
            "state_dict": at.of(job, "state"),
            "optimizer_states": [self._optimizer(job, at)],
            "frozen_sha256": self.frozen_sha256,
            "origin": self.origin,
            "curves": curves_until(self.folder, at.epochs[job]),
            # Trained beside others: it has no state of Lightning's loops.
            "together": self.best.state(),
        }
        sealed.write(path, checkpoint)

    def _optimizer(self, job: int, at: Snapshot) -> dict[str, Any]:
        """The state as torch's own optimiser has it."""
        groups = [dict(group) for group in self.recipe.groups]
        state = optim.build(self.recipe.optimizer, groups, **self.recipe.options).state_dict()
        names = [self.names[id(parameter)] for group in groups for parameter in group["params"]]
        kinds = {kind for kind, _ in at.tensors if kind != "state"}
        each = {kind: at.of(job, kind) for kind in kinds}
        count = {"step": torch.tensor(float(at.steps[job]))} if "exp_avg" in kinds else {}
        if self.recipe.options.get("momentum") != 0:
            state["state"] = {
                place: {**count, **{kind: each[kind][name] for kind in kinds}}
                for place, name in enumerate(names)
                if name in each[next(iter(kinds))]
            }
        return state

    def go_on(self, newest: Mapping[str, Any]) -> None:
        """Stand where an interrupted job's newest checkpoint says."""
        self.best.load(newest["together"])
        self.best.kept, self.steps = newest["epoch"] + 1, newest["global_step"]
        self.written = self.best.epoch, 0  # a process killed between the two has written best.ckpt alone

    def tensors(self, checkpoint: Mapping[str, Any]) -> dict[tuple[str, str], Tensor]:
        """A checkpoint's tensors as a Snapshot has them, of this job alone."""
        names = [self.names[id(parameter)] for group in self.recipe.groups for parameter in group["params"]]
        held = checkpoint["optimizer_states"][0]["state"]
        state = {("state", name): value for name, value in checkpoint["state_dict"].items()}
        return state | {(kind, names[place]): v for place, one in held.items() for kind, v in one.items()}
