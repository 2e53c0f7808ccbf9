"""What is seen of a run while it trains: the terminal, the curves in TensorBoard, metrics.csv."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from rich.console import Console
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from finetune.atomic import not_written
from finetune.errors import RunError, brief, counted
from finetune.say import Bar, say
from finetune.training.learner import CurvePoint, Job, Learner


class BoardLogger(Logger):
    """Writes for TensorBoard what callbacks log; the learner's own metrics are in the run's curves."""

    name, version = "tensorboard", ""

    def __init__(self, writer: SummaryWriter | None, learner: Learner) -> None:
        super().__init__()
        self.writer, self.learner = writer, learner  # none where another process writes

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in the run's log."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name in metrics.keys() - self.learner.logged - {"epoch"}:
            if self.writer:
                self.writer.add_scalar(name, metrics[name], step)


class EpochLines(pl.Callback):
    """A line an epoch: the losses and accuracies of the jobs that train."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.console, self.epochs = console, epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, learner: Any) -> None:
        metrics, seconds = learner.metrics(), time.perf_counter() - self.started
        shown = [metrics[job] for job in learner.live] or metrics
        line = epoch_line(learner.title(trainer.current_epoch + 1, self.epochs), shown, seconds)
        self.console.print(line, highlight=False)


class Terminal(EpochLines):
    """The same and, on a terminal, one progress bar over the whole training."""

    def __init__(self, console: Console, epochs: int, batches: int) -> None:
        super().__init__(console, epochs)
        self.batches = batches
        self.bar = Bar(console, "training", epochs * batches, unit="batches")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.start()
        self.bar.reach(trainer.current_epoch * self.batches)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, learner: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        first = learner.idle is None and learner.automatic_optimization
        if first and (names := learner.find_idle(optimizer)):
            text = f"{counted(len(names), 'tensor')} that should train: {brief(names, 3)}"
            say(self.console, "warning", f"no gradient reaches, or the optimizer leaves out, {text}")

    def on_train_batch_end(self, *args: Any) -> None:
        self.bar.add(1)

    def on_train_end(self, *args: Any) -> None:
        self.bar.stop()

    def on_exception(self, *args: Any) -> None:
        self.bar.stop()


def epoch_line(title: str, jobs: list[dict[str, float]], seconds: float) -> str:
    """What fits on a terminal's line: of one job both splits, of several the spans in validation."""
    name, key = ("mAP", "map") if "map/train" in jobs[0] else ("acc", "accuracy")
    splits = []
    for split in [one for one in ("train", "val", "ema") if f"loss/{one}" in jobs[0]][
        -2 if len(jobs) == 1 else -1 :
    ]:
        loss, score = _span(jobs, f"loss/{split}", _loss), _span(jobs, f"{key}/{split}", "{:.3f}".format)
        splits.append(f"{split} loss {loss} {name} {score}")
    return f"{title}  {' · '.join(splits)} · {seconds:.1f} s"


def _loss(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def _span(jobs: list[dict[str, float]], key: str, shown: Any) -> str:
    values = [metrics[key] for metrics in jobs]
    return shown(values[0]) if len(jobs) == 1 else f"{shown(min(values))} to {shown(max(values))}"


class Curves(pl.Callback):
    """One point an epoch for TensorBoard and the same, one row an epoch, in each job's metrics.csv."""

    STEPS = 50  # whose loss TensorBoard has, an epoch; of jobs that train together in all

    def on_train_epoch_start(self, trainer: pl.Trainer, learner: Any) -> None:
        # The rates an epoch begins with: at its end the scheduler has already moved on.
        self.rates: list[dict[str, float]] = learner.rates()
        self.norms: list[Tensor] = []
        self.losses: list[Tensor] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, learner: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        self.norms.append(learner.gradient_norms())
        self.losses.append(learner.losses)

    def on_train_epoch_end(self, trainer: pl.Trainer, learner: Any) -> None:
        epoch, step, metrics = trainer.current_epoch + 1, trainer.global_step, learner.metrics()
        norms = torch.stack(self.norms).mean(0).tolist()
        losses = torch.stack(self.losses).tolist() if learner.automatic_optimization else []
        every = max(1, len(losses) * len(learner.jobs) // self.STEPS)
        for number in learner.live:
            job = learner.jobs[number]
            values = metrics[number] | self.rates[number] | {"gradient_norm": norms[number]}
            try:
                for at, each in list(enumerate(losses, step - len(losses) + 1))[every - 1 :: every]:
                    job.writer.add_scalar("loss/step", each[number], at)
                write_points(job, learner.points_of(epoch, step, values))
            except OSError as error:
                learner.fail(number, RunError(not_written(job.folder, error)))

    def on_exception(self, trainer: pl.Trainer, learner: Any, exception: BaseException) -> None:
        for job in learner.jobs:
            with suppress(OSError):  # the disk may be what failed
                close_log(job.writer, STATUS_FAILURE)


def close_log(writer: SummaryWriter, status: int) -> None:
    """End a run's log, with the status that HPARAMS knows."""
    _, _, ended = hparams({}, {})
    content = HParamsPluginData(session_end_info=SessionEndInfo(status=status))
    ended.value[0].metadata.plugin_data.content = content.SerializeToString()
    writer._get_file_writer().add_summary(ended)
    writer.close()


def write_points(job: Job, points: Sequence[CurvePoint]) -> None:
    """Points in TensorBoard, and the same as rows in metrics.csv, which has the columns it began with."""
    assert job.writer is not None
    lines: list[str] = []
    for epoch, step, values in points:
        for name, value in {**values, "epoch": epoch}.items():
            job.writer.add_scalar(name, value, step)
        row = {"epoch": epoch, "step": step, **values}
        if not (job.curves or lines):
            lines.append(",".join(row) + "\r\n")
        columns = (job.curves or lines)[0].strip().split(",")
        lines.append(",".join(str(row[name]) for name in columns) + "\r\n")
    job.writer.flush()
    job.curves += lines
    with (job.folder / "metrics.csv").open("a", newline="", encoding="utf-8") as file:
        file.writelines(lines)
