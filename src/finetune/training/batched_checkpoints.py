"""Checkpoints of batched jobs: remembered after each epoch, written as each job's own files now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from finetune import sealed
from finetune.choices.optimizers import OPTIMIZERS
from finetune.errors import RunError
from finetune.model.standardize import folded_state, raw_tensors, take_raw
from finetune.training.checkpoint import AtomicCheckpointIO, Checkpoints, copy_best
from finetune.training.learner import Job
from finetune.training.stacked import JobConfig, Snapshot, StackedClassifier
from finetune.training.stacked_optim import Tensors

WRITE_EVERY = 10.0  # seconds: a process that is killed loses so much of its checkpoints at most


class BatchedCheckpoints(Checkpoints):
    """best.ckpt and last.ckpt of batched jobs, written every ten seconds and in the end.

    best, last: the tensors of all jobs after these epochs.
    resume: the newest checkpoint of each, all after the same epoch.
    """

    def __init__(
        self, learner: StackedClassifier, max_steps: int | None = None, resume: Sequence[Path] = ()
    ) -> None:
        super().__init__(learner.jobs, max_steps)
        self.learner, load = learner, AtomicCheckpointIO().load_checkpoint
        self.resume = [(load(path), load(path.with_name("best.ckpt"))) for path in resume]
        self.best_steps = [best["global_step"] for _, best in self.resume] or [0] * len(self.jobs)
        for job, (newest, _) in zip(self.jobs, self.resume, strict=False):
            job.best.load(newest["together"])
            job.best.kept, job.steps = newest["epoch"] + 1, newest["global_step"]
        # A process that was killed between the two files has written best.ckpt alone.
        self.written = [(job.best.epoch, 0) for job in self.jobs]
        self.wrote = time.perf_counter()

    def on_fit_start(self, trainer: pl.Trainer, *args: Any) -> None:
        present = self.learner.snapshot()
        self._fill(present, [newest for newest, _ in self.resume])
        self.best, self.last = ({k: v.clone() for k, v in present.items()} for _ in range(2))
        self._fill(self.best, [best for _, best in self.resume])
        if self.resume:
            self.learner.optimizer.steps = self.jobs[0].steps
            _set_progress(trainer, self.jobs[0].best.kept, self.jobs[0].steps)
        super().on_fit_start(trainer)

    def keep(self, trainer: pl.Trainer, learner: Any, live: list[int], better: list[int]) -> None:
        for key, value in self.learner.snapshot().items():
            self.best[key][better], self.last[key][live] = value[better], value[live]
        for job in better:
            self.best_steps[job] = trainer.global_step

    def load_best(self, learner: Any) -> None:
        self.write()
        for name, value in self.learner.state.items():
            value.data.copy_(self.best["state", name])

    def on_train_epoch_end(self, trainer: pl.Trainer, learner: Any) -> None:
        super().on_train_epoch_end(trainer, learner)
        if time.perf_counter() - self.wrote > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Bring every job's checkpoints up to date, where they have changed."""
        for number, job in enumerate(self.jobs):
            stands = job.best.epoch, job.best.kept
            if job.best.kept and stands != self.written[number]:
                try:
                    self._write(number, job, self.written[number][0] != stands[0])
                    self.written[number] = stands
                except RunError as error:
                    if job.error is None:
                        self.learner.fail(number, error)
        self.wrote = time.perf_counter()

    def _write(self, number: int, job: Job, new_best: bool) -> None:
        folder = job.folder / job.checkpoints
        if new_best:
            best = self._content(number, self.best, job.best.epoch, self.best_steps[number])
            sealed.write_checkpoint(folder / "best.ckpt", best)
        if job.best.epoch == job.best.kept:
            copy_best(folder)
        else:
            sealed.write_checkpoint(
                folder / "last.ckpt", self._content(number, self.last, job.best.kept, job.steps)
            )

    def _content(self, number: int, tensors: Snapshot, epoch: int, steps: int) -> dict[str, Any]:
        job, state = self.jobs[number], _of_job(tensors, number, "state")
        model = self.learner.model
        return {
            "epoch": epoch - 1,  # as Lightning counts
            "global_step": steps,
            "pytorch-lightning_version": pl.__version__,
            "state_dict": folded_state(model, state),
            "standardized": raw_tensors(model, state),
            "optimizer_states": [self._optimizer_state(number, tensors, steps)],
            "frozen_sha256": job.frozen_sha256,
            "origin": dict(job.origin),
            "curves": "".join(job.curves[: epoch + 1]),
            # Trained beside others: it has no state of Lightning's loops.
            "together": job.best.state(),
        }

    def _optimizer_state(self, number: int, tensors: Snapshot, steps: int) -> dict[str, Any]:
        """A job's state as torch's own optimiser has it."""
        config = self.learner.configs[number]
        state = config.create_optimizer().state_dict()
        buffers = sorted({kind for kind, _ in tensors} - {"state"})
        each = {buffer: _of_job(tensors, number, buffer) for buffer in buffers}
        if config.options.get("momentum") != 0:
            count = {"step": torch.tensor(float(steps))} if OPTIMIZERS[config.optimizer].counts_steps else {}
            state["state"] = {
                place: count | {buffer: each[buffer][name] for buffer in buffers}
                for place, name in enumerate(self._names(config))
                if name in each[buffers[0]]
            }
        return state

    def _names(self, config: JobConfig) -> list[str]:
        names = {id(p): name for name, p in self.learner.model.named_parameters()}
        return [names[id(p)] for group in config.groups for p in group["params"]]

    def _fill(self, tensors: Snapshot, checkpoints: Sequence[Mapping[str, Any]]) -> None:
        """Put each job's checkpoint into its place."""
        for number, content in enumerate(checkpoints):
            names = self._names(self.learner.configs[number])
            found: Snapshot = {("state", name): value for name, value in content["state_dict"].items()}
            for layer, raw in content.get("standardized", {}).items():
                found |= {("state", f"{layer}.{key}"): raw[key] for key in ("weight", "bias")}
                take_raw(self.learner.model, {layer: {key: raw[key] for key in ("mean", "scale")}})
            for place, buffers in content["optimizer_states"][0]["state"].items():
                found |= {(buffer, names[place]): value for buffer, value in buffers.items()}
            for key in tensors.keys() & found.keys():  # without momentum there is no buffer
                tensors[key][number] = found[key].to(tensors[key].device)


def _of_job(tensors: Snapshot, number: int, kind: str) -> Tensors:
    """One job's tensors, on the CPU and with memory of their own, as torch.save needs them."""
    return {name: value[number].cpu().clone() for (k, name), value in tensors.items() if k == kind}


def _set_progress(trainer: pl.Trainer, epochs: int, steps: int) -> None:
    """Have Lightning's loops stand after so many epochs and optimiser steps."""
    loop = trainer.fit_loop
    counts = {"ready": epochs, "started": epochs, "processed": epochs, "completed": epochs}
    loop.epoch_progress.load_state_dict({"total": counts, "current": counts})
    optimizer = loop.epoch_loop.automatic_optimization.optim_progress.optimizer
    optimizer.step.total.ready = optimizer.step.total.completed = steps
    loop.epoch_loop._batches_that_stepped = steps
