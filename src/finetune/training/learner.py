"""What Lightning drives: one run or many jobs at once, and what an epoch of them adds up to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from finetune import signals
from finetune.data.module import Batch
from finetune.errors import RequestError, RunError
from finetune.model.freeze import Frozen
from finetune.training import distributed, metrics
from finetune.training.best import Best
from finetune.training.several import several_labels

# A point of the curves: the epoch, the optimiser's step, and the values by name.
CurvePoint = tuple[int, int, dict[str, float]]


@dataclass
class Job:
    """One training of those that advance together, and its folder.

    writer: of TensorBoard's log; None: no curves are written. patience: epochs without a better one after
    which it ends. origin: what its checkpoints say of where they came from. curves: the lines of metrics.csv.
    steps: of the optimiser, at the last epoch that was kept. checkpoints: their folder within `folder`.
    """

    folder: Path
    writer: SummaryWriter | None = None
    frozen_sha256: str = ""
    patience: int | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    curves: list[str] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    steps: int = 0
    error: RunError | None = None
    checkpoints: str = "checkpoints"

    @property
    def trains(self) -> bool:
        return self.error is None and not self.best.out_of(self.patience)


@dataclass(frozen=True)
class Measured:
    """What the jobs made of a batch (J: jobs); backward: the scalar that gradients are taken of."""

    backward: Tensor
    losses: Tensor
    weights: Tensor
    logits: Tensor
    labels: Tensor


class EpochMetrics:
    """Losses and answers of an epoch's batches, kept on the device until their means are asked for.

    Every tensor has the jobs (J) as its first dimension. multi_label: an answer is all of an image's logits.
    processes: how many share each batch; `add` is given loss and weight of all of it, answers of a part.
    """

    def __init__(self, multi_label: bool = False, processes: int = 1) -> None:
        self.multi_label, self.processes = multi_label, processes
        self.losses: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.labels: list[Tensor] = []
        self._means: list[dict[str, float]] = []

    def add(self, losses: Tensor, weights: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: losses and their weights (J,), logits (J, B, outputs), labels (J, B) or vectors."""
        self.losses.append(losses.detach())
        self.weights.append(weights)
        if not self.multi_label:
            labels = labels if labels.ndim == 2 else labels.argmax(2)
        self.answers.append(logits.detach() if self.multi_label else logits.detach().argmax(2))
        self.labels.append(labels)
        self._means = []

    def means(self) -> list[dict[str, float]]:
        """Of each job: loss, accuracy and the like per image; a loss that is a sum, per batch."""
        if not self._means:
            # On the CPU: not every GPU has doubles.
            losses, weights = (torch.stack(each).cpu().double() for each in (self.losses, self.weights))
            measure = several_labels if self.multi_label else metrics.one_class
            means = (losses * weights).sum(0) / weights.sum(0)
            own = torch.cat(self.answers, 1).cpu(), torch.cat(self.labels, 1).cpu()
            every = zip(*distributed.gathered(own, self.processes), strict=True)
            answers, labels = (torch.cat(parts, 1) for parts in every)
            self._means = [
                {"loss": float(mean), **metrics.as_floats(measure(chosen, true, metrics.once(true)))}
                for mean, chosen, true in zip(means, answers, labels, strict=True)
            ]
        return self._means


class Learner(pl.LightningModule):
    """The steps that a run and stacked jobs have in common; labels: of outputs, where images have several."""

    model: nn.Module
    frozen: Frozen

    def __init__(self, labels: Sequence[str] = ()) -> None:
        super().__init__()
        self.labels = labels
        self.jobs: Sequence[Job] = ()
        self.epoch_metrics: dict[str, EpochMetrics] = {}
        self.logits: list[Tensor] = []
        self.logged: set[str] = set()  # names of metrics, that they are not logged twice
        self.losses = torch.empty(0)  # of each job in the newest training batch

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode:
            self.frozen.hold(self.model)
        return self

    def measure(self, batch: Batch) -> Measured:
        raise NotImplementedError

    def rates(self) -> list[dict[str, float]]:
        """The learning rates of each job's groups, as they are now."""
        raise NotImplementedError

    def gradient_norms(self) -> Tensor:
        """The Euclidean norm of each job's gradient, (J,)."""
        raise NotImplementedError

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Of each tensor that is not frozen the name and the largest magnitude in each job, (J,)."""
        raise NotImplementedError

    def title(self, epoch: int, epochs: int) -> str:
        return f"epoch {epoch:>{len(str(epochs))}}/{epochs}"

    def points_of(self, epoch: int, step: int, values: dict[str, float]) -> list[CurvePoint]:
        """What an epoch that ended with these values adds to a job's curves."""
        return [(epoch, step, values)]

    def fail(self, job: int, error: RunError) -> None:
        """End a job whose numbers or files have failed; a run by itself ends with it."""
        raise error

    @property
    def live(self) -> list[int]:
        return [number for number, job in enumerate(self.jobs) if job.trains]

    @property
    def processes(self) -> int:
        """How many processes share every batch."""
        return self.trainer.world_size if self._trainer else 1

    def check_finite(self, what: str, values: Tensor) -> None:
        """End the jobs whose value, of (J,), is infinite or none."""
        tested = [number for number, job in enumerate(self.jobs) if job.error is None]
        numbers = values.detach().tolist()
        for job in tested if self.trainer.testing else self.live:
            if not math.isfinite(numbers[job]):
                error = f"{what} became {numbers[job]} in epoch {self.current_epoch + 1},"
                hint = "expected a finite number; try a smaller optimizer.lr or trainer.clip_norm=1"
                if self.trainer.precision == "16-mixed":
                    hint += "; or precision=bf16 or 32, as precision=16 ends at 65,504"
                self.fail(job, RunError(f"{error} {hint}"))

    def _step(self, split: str, batch: Batch) -> Measured:
        measured = self.measure(batch)
        if split not in self.epoch_metrics:
            self.epoch_metrics[split] = EpochMetrics(bool(self.labels), self.processes)
        self.epoch_metrics[split].add(
            measured.losses, measured.weights, logits=measured.logits, labels=measured.labels
        )
        return measured

    def on_train_epoch_start(self) -> None:
        self.epoch_metrics = {}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        try:
            measured = self._step("train", batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RequestError(
                "a BatchNorm that trains got a single value per channel, expected more: a larger batch_size"
                " or data.image_size, or freeze=@norm"
            ) from None
        self.losses = measured.losses.detach()
        self.check_finite(f"the loss of batch {index + 1}", self.losses)  # before the optimiser steps
        full, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        left = batches % full  # of the epoch's last step, for which Lightning divides by a full one's, too
        return measured.backward * (full / left) if index >= batches - left else measured.backward

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        """The second pass is of the averages, see `averages`."""
        signals.check()
        self._step("ema" if dataloader_idx else "val", batch)

    def on_validation_epoch_end(self) -> None:
        self._end("val", "the validation loss")
        if "ema" in self.epoch_metrics:
            self._end("ema", "the averages' validation loss")

    def on_test_epoch_start(self) -> None:
        self.epoch_metrics, self.logits = {}, []

    def test_step(self, batch: Batch, index: int) -> None:
        signals.check()
        self.logits.append(self._step("test", batch).logits.cpu())

    def on_test_epoch_end(self) -> None:
        self._end("test", "the test loss")

    def predict_step(self, batch: Batch, index: int) -> Tensor:
        """Logits (J, B, outputs) on the CPU."""
        signals.check()
        return self.measure(batch).logits.cpu()

    def on_train_epoch_end(self) -> None:
        self._log("train")

    def _end(self, split: str, name: str) -> None:
        losses = [mean["loss"] for mean in self.epoch_metrics[split].means()]
        self.check_finite(name, torch.tensor(losses, dtype=torch.float64))
        self._log(split)

    def _log(self, split: str) -> None:
        """For Lightning's own callbacks, which a run alone has: train/loss, val/accuracy …"""
        run = self.epoch_metrics[split].means()[0]
        named = {f"{split}/{name}": value for name, value in run.items()}
        self.logged |= named.keys()
        self.log_dict(named)

    def metrics(self) -> list[dict[str, float]]:
        """The epoch's means of each job, as loss/train, accuracy/train, loss/val … or the test's."""
        found: list[dict[str, float]] = [{} for _ in self.jobs]
        for split, epoch in self.epoch_metrics.items():
            for job, means in zip(found, epoch.means(), strict=True):
                job |= {f"{name}/{split}": mean for name, mean in means.items()}
        return found
