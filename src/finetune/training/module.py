"""The LightningModule: a network, a loss, an optimiser, and what an epoch adds up to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from finetune.data.module import Batch
from finetune.data.views import Inputs
from finetune.errors import RunError, brief
from finetune.model.freeze import Frozen
from finetune.training import distributed, metrics
from finetune.training.losses import Loss
from finetune.training.optim import Schedule


def not_finite(what: str, value: float, epoch: int) -> RunError:
    """The error of a training whose numbers have left the range of floats."""
    return RunError(
        f"{what} became {value} in epoch {epoch}, expected a finite number;"
        " try a smaller optimizer.lr or trainer.clip_norm=1"
    )


class Sums:
    """Losses and answers of an epoch's batches, kept on the device until their means are asked for.

    several: pictures have several labels each, so that an answer is all of a picture's logits.
    processes: how many share each batch; `add` is given the loss and weight of all of it, answers of a part.
    """

    def __init__(self, several: bool = False, processes: int = 1) -> None:
        self.several, self.processes = several, processes
        self.losses: list[Tensor] = []
        self.weights: list[int | Tensor] = []
        self.answers: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.found: dict[str, float] = {}

    def add(self, loss: Tensor, weight: int | Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, what it weighs in the mean of all, logits (B, outputs) and labels."""
        self.losses.append(loss.detach())
        self.weights.append(weight)
        if self.several:
            self.answers.append(logits.detach())
            self.labels.append(labels)
        else:
            chosen = labels if labels.ndim == 1 else labels.argmax(1)
            self.answers.append(logits.detach().argmax(1) == chosen)
            self.labels.append(chosen)
        self.found = {}

    def all(self) -> tuple[Tensor, Tensor]:
        """The answers and labels of all batches and processes, on the CPU."""
        own = torch.cat(self.answers).cpu(), torch.cat(self.labels).cpu()
        answers, labels = zip(*distributed.gathered(own, self.processes), strict=True)
        return torch.cat(answers), torch.cat(labels)

    def means(self) -> dict[str, float]:
        """Loss, accuracy and the like per picture, whatever the batches; a loss that is a sum, per batch."""
        if not self.found:
            weights = torch.tensor([float(weight) for weight in self.weights], dtype=torch.float64)
            losses = torch.stack(self.losses).cpu().double()  # not every GPU has doubles
            judge = metrics.several_labels if self.several else metrics.one_class
            self.found = {"loss": float((losses * weights).sum() / weights.sum()), **judge(*self.all())}
        return self.found


class Classifier(pl.LightningModule):
    """Trains `network`, whose parameters belong to `model`; checkpoints hold what of the model is not frozen.

    Args:
        model: the whole model, which names the parameters.
        network: what the batches go through: the model itself or its suffix.
        frozen: what stays constant and in eval mode.
        optimizer: made once, over what trains.
        schedule: factor on the rates at each optimiser step.
        labels: names of the outputs, where a picture has any number of labels.
        class_weights: (outputs,) what the loss weighs each class by; None where all weigh the same.
    """

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        frozen: Frozen,
        loss: Loss,
        optimizer: Callable[[], torch.optim.Optimizer],
        schedule: Schedule,
        labels: Sequence[str] = (),
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.class_weights = class_weights
        self.model, self.network = model, network
        self.frozen, self.loss, self.make_optimizer, self.schedule = frozen, loss, optimizer, schedule
        self.labels = labels
        self.sums: dict[str, Sums] = {}
        self.logits: list[Tensor] = []
        self.train()

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if mode:
            self.frozen.hold(self.model)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        self.sums = {"train": self._sums()}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        try:
            backward, loss, _ = self._judge("train", batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RunError(
                "a BatchNorm that trains got a single value per channel, expected more: a larger batch_size"
                " or data.image_size, or freeze=@norm"
            ) from None
        self.check_finite(
            f"the loss of batch {index + 1}", float(loss.detach())
        )  # before the optimiser steps
        return backward

    def on_validation_epoch_start(self) -> None:
        self.sums["val"] = self._sums()
        if self._processes() > 1:  # each has running statistics of its own; the first one's are kept
            for name, buffer in self.model.named_buffers():
                if name not in self.frozen.buffers:
                    torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, index: int) -> None:
        self._judge("val", batch)

    def on_validation_epoch_end(self) -> None:
        self.check_finite("the validation loss", self.sums["val"].means()["loss"])

    def on_test_epoch_start(self) -> None:
        self.sums, self.logits = {"test": self._sums()}, []

    def test_step(self, batch: Batch, index: int) -> None:
        self.logits.append(self._judge("test", batch)[2].cpu())

    def on_test_epoch_end(self) -> None:
        self.check_finite("the test loss", self.sums["test"].means()["loss"])

    def predict_step(self, batch: Batch, index: int) -> Tensor:
        return self._answer(batch[0]).cpu()

    def _processes(self) -> int:
        return self.trainer.world_size if self._trainer else 1

    def _sums(self) -> Sums:
        return Sums(bool(self.labels), self._processes())

    def _judge(self, side: str, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The loss to go backward from, the batch's loss, and the logits."""
        inputs, labels = batch
        logits = self._answer(inputs)
        loss, processes = self.loss(logits, labels), self._processes()
        backward, weight = loss, logits.new_tensor(len(labels))
        if self.class_weights is not None:
            weight = self.class_weights.to(logits)[labels].sum()
        if processes > 1:
            backward, loss, weight = distributed.in_common(loss, weight, processes)
        self.sums[side].add(loss, weight, logits, labels)
        return backward, loss, logits

    def _answer(self, inputs: Inputs) -> Tensor:
        logits = self(inputs)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))  # half formats sum badly

    def check_finite(self, what: str, value: float) -> None:
        """Raise RunError where a number of the current epoch is infinite or none."""
        if not math.isfinite(value):
            raise not_finite(what, value, self.current_epoch + 1)

    def metrics(self) -> dict[str, float]:
        """The current epoch's means, as loss/train, accuracy/train, loss/val, accuracy/val or the test's."""
        return {
            f"{name}/{side}": mean for side, sums in self.sums.items() for name, mean in sums.means().items()
        }

    def per_label(self, side: str) -> dict[str, dict[str, float]]:
        """What the current epoch's answers come to for each label, where pictures have several."""
        return metrics.per_label(*self.sums[side].all(), self.labels)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """What of the model is not frozen, under the model's own names."""
        constant = self.frozen.parameters | self.frozen.buffers
        return {name: value for name, value in self.model.state_dict().items() if name not in constant}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Take a checkpoint's tensors; the frozen ones stay as they are.

        Raises:
            RunError: it does not hold exactly what of this model is not frozen.
        """
        if strange := state_dict.keys() ^ self.state_dict().keys():
            raise RunError(f"the checkpoint is of another model or freeze: {brief(sorted(strange))}")
        return self.model.load_state_dict(state_dict, strict=False, assign=assign)
