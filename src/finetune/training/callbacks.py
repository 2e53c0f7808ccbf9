"""What is seen of a run while it trains: the terminal, the curves in TensorBoard, metrics.csv."""

from __future__ import annotations

import csv
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from finetune.report.say import bar

# Train and val on one chart: TensorBoard draws them together only where a layout says so.
LAYOUT = {
    "curves": {
        "loss": ["Multiline", ["loss/train", "loss/val"]],
        "accuracy": ["Multiline", ["accuracy/train", "accuracy/val"]],
        "balanced accuracy": ["Multiline", ["balanced_accuracy/train", "balanced_accuracy/val"]],
    }
}


class Terminal(pl.Callback):
    """A line an epoch and, on a terminal, one progress bar over the whole training."""

    def __init__(self, console: Console, epochs: int, batches: int) -> None:
        self.console, self.epochs, self.batches = console, epochs, batches
        what, unit = TextColumn("training"), TextColumn("batches")
        self.bar = bar(console, what, BarColumn(), MofNCompleteColumn(), unit, TimeRemainingColumn())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done = trainer.current_epoch * self.batches
        self.task = self.bar.add_task("", total=self.epochs * self.batches, completed=done)
        self.bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.bar.update(self.task, advance=1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        seconds = time.perf_counter() - self.started
        line = epoch_line(trainer.current_epoch + 1, self.epochs, pl_module.metrics(), seconds)
        self.console.print(line, highlight=False)

    def on_train_end(self, *args: Any) -> None:
        self.bar.stop()

    def on_exception(self, *args: Any) -> None:
        self.bar.stop()


def _loss(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def epoch_line(epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> str:
    """epoch  3/20  train loss 1.2034 accuracy 0.613 · val loss 1.3011 accuracy 0.575 · 0.4 s"""
    name, key = ("mAP", "map") if "map/train" in metrics else ("accuracy", "accuracy")
    sides = [
        f"{side} loss {_loss(metrics[f'loss/{side}'])} {name} {metrics[f'{key}/{side}']:.3f}"
        for side in ("train", "val")
        if f"loss/{side}" in metrics
    ]
    return f"epoch {epoch:>{len(str(epochs))}}/{epochs}  {' · '.join(sides)} · {seconds:.1f} s"


class Curves(pl.Callback):
    """One point an epoch for TensorBoard and the same, one row an epoch, in metrics.csv."""

    def __init__(self, writer: SummaryWriter, table: Path) -> None:
        self.writer, self.table = writer, table
        self.norms: list[Tensor] = []
        self.rates: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.global_step:
            self.writer.add_custom_scalars(LAYOUT)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The rates an epoch begins with: at its end the scheduler has already moved on.
        self.rates = {f"lr/{group['name']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        self.norms = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.norms.append(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        norm = float(torch.stack(self.norms).mean())
        values = pl_module.metrics() | self.rates | {"gradient_norm": norm}
        write_point(self.writer, self.table, epoch, step, values)

    def on_exception(self, *args: Any) -> None:
        with suppress(OSError):  # the disk may be what failed
            self.writer.close()


def write_point(writer: SummaryWriter, table: Path, epoch: int, step: int, values: dict[str, float]) -> None:
    """An epoch's values as points in TensorBoard and as a row in metrics.csv."""
    for name, value in {**values, "epoch": epoch}.items():
        writer.add_scalar(name, value, step)
    writer.flush()
    row = {"epoch": epoch, "step": step, **values}
    new = not table.exists()
    with table.open("a", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, list(row))
        if new:
            rows.writeheader()
        rows.writerow(row)
