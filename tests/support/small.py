"""A small network and everything that `fit` takes with it."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from finetune.choices.optimizers import SGD, SteppedSettings
from finetune.data.module import Batches, Examples
from finetune.data.views import views
from finetune.model.freeze import freeze
from finetune.training import optim
from finetune.training.callbacks import Terminal
from finetune.training.classifier import Classifier
from finetune.training.fit import Fitted, Options, fit
from finetune.training.learner import Job
from finetune.training.losses import Loss, create_loss
from finetune.training.monitor import GradientMonitor


def stepped(lr: float = 0.01, **changes: float) -> SteppedSettings:
    """The settings of an optimiser, at the defaults of SGD."""
    usual = {"momentum": 0.9, "nesterov": False, "weight_decay": 0, "decay_norm_and_bias": False}
    return SGD(name="sgd", lr=lr, **{**usual, "backbone_lr_factor": 1, "layer_decay": 1, **changes})


EXAMPLE = torch.zeros(2, 3, 6, 6, dtype=torch.float64)


class Small(nn.Module):
    """Two convolutions with BatchNorm, dropout after each, a linear head: each kind of mode occurs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.2), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late(self.early(x)).mean((2, 3)))


def pictures(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures of noise whose class is the brightest channel's."""
    x = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, x.mean((2, 3)).argmax(1)


def per_image(function: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A function of logits and labels as a loss in which every image weighs the same."""
    return lambda logits, labels: (function(logits, labels), logits.new_tensor(len(labels)))


class Training:
    """A small network with everything that `fit` takes; `fit` may be called once."""

    def __init__(
        self,
        folder: Path,
        freeze_: tuple[str, ...] = ("early",),
        lr: float = 0.1,
        momentum: float = 0.9,
        batch_size: int = 8,
        sides: tuple[int, int, int] = (32, 16, 16),
        schedule: optim.Schedule = lambda step: 1.0,
        loss: Loss | None = None,
        optimizer: str = "sgd",
    ) -> None:
        torch.manual_seed(0)
        self.folder, self.net = folder, Small().double()
        self.frozen = freeze(self.net, freeze_, "head", EXAMPLE)
        self.x, self.y = pictures(sum(sides))
        ends = np.cumsum(sides)
        split = {
            name: np.arange(end - size, end)
            for name, size, end in zip(("train", "val", "test"), sides, ends, strict=True)
        }
        inputs = views(lambda chosen: self.x[chosen], None, len(self.x), 0)
        examples = Examples(inputs, self.y, split, lambda x, *_: x)
        self.batches = Batches(examples, batch_size, seed=0)
        groups = optim.parameter_groups(self.net, "head", stepped(lr))
        options = {"momentum": momentum} if optimizer == "sgd" else {}
        self.classifier = Classifier(
            self.net,
            self.net,
            self.frozen,
            loss or create_loss("cross_entropy"),
            lambda: (optim.create_optimizer(optimizer, groups, **options), schedule),
        )
        self.text = io.StringIO()

    def fit(
        self,
        epochs: int = 3,
        patience: int | None = None,
        monitor_gradients: bool = False,
        resume_state: Path | None = None,
        also: Sequence[Any] = (),
        **options: Any,
    ) -> Fitted:
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        writer, console = SummaryWriter(str(self.folder / "tensorboard")), Console(file=self.text, width=200)
        callbacks: list[Any] = [Terminal(console, epochs, len(self.batches.train_dataloader()))]
        callbacks += [GradientMonitor(writer, console)] if monitor_gradients else []
        callbacks += also
        curves = torch.load(resume_state, weights_only=True)["curves"] if resume_state else ""
        job = Job(self.folder, writer, "abc", patience, curves=curves.splitlines(keepends=True))
        with writer:
            (fitted,) = fit(
                self.classifier,
                self.batches,
                [job],
                Options(epochs, **options),
                callbacks,
                resume=[resume_state] if resume_state else [],
            )
        assert isinstance(fitted, Fitted)
        return fitted

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        return torch.load(self.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)

    def rows(self) -> list[dict[str, float]]:
        with (self.folder / "metrics.csv").open(newline="") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
