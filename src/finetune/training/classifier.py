"""The LightningModule of one run: a network, a loss, an optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.module import Batch
from finetune.data.views import Inputs
from finetune.errors import RunError, brief
from finetune.model.freeze import Frozen
from finetune.model.head import as_logits
from finetune.model.standardize import Raw, folded_state, raw_tensors, standardized_layers, take_raw
from finetune.training import distributed
from finetune.training.learner import Learner, Measured
from finetune.training.losses import Loss
from finetune.training.optim import Schedule


class Classifier(Learner):
    """Trains `network`, the model itself or its suffix; checkpoints hold what of the model is not frozen.

    optimizer: called once, with what the schedule multiplies: an optimiser over what trains.
    """

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        frozen: Frozen,
        loss: Loss,
        optimizer: Callable[[], tuple[torch.optim.Optimizer, Schedule]],
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__(labels)
        self.model, self.network = model, network
        self.frozen, self.loss, self.make_optimizer = frozen, loss, optimizer
        self.standardized: Raw = {}  # of the checkpoint that training resumes from
        self.idle: list[str] | None = None  # what should train and does not
        self.train()

    def forward(self, inputs: Inputs) -> Tensor:
        logits = as_logits(self.network(inputs))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))  # half formats sum badly

    def measure(self, batch: Batch) -> Measured:
        inputs, labels = batch
        logits = self(inputs)
        backward, weight = self.loss(logits, labels)
        loss = backward
        if self.processes > 1:
            backward, loss, weight = distributed.in_common(loss, weight, self.processes)
        return Measured(backward, loss[None], weight[None], logits=logits[None], labels=labels[None])

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.make_optimizer()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def find_idle(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Note what should train and does not; after a backward pass."""
        moved = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        asked = {name: id(p) for name, p in self.model.named_parameters() if p.requires_grad}
        self.idle = [name for name, place in asked.items() if place not in moved]
        return self.idle

    def on_validation_epoch_start(self) -> None:
        if self.processes > 1:  # each has running statistics of its own; the first one's are kept
            for name, buffer in self.model.named_buffers():
                if name not in self.frozen.buffers:
                    torch.distributed.broadcast(buffer, 0)

    def rates(self) -> list[dict[str, float]]:
        return [{f"lr/{group['name']}": group["lr"] for group in self.trainer.optimizers[0].param_groups}]

    def gradient_norms(self) -> Tensor:
        groups = self.trainer.optimizers[0].param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)[None]

    def values(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.state_dict().items():
            yield name, value.abs().max()[None]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """What of the model is not frozen, under the model's own names, as a plain model has it."""
        return folded_state(self.model, self.frozen.others(self.model))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["standardized"] = raw_tensors(self.model, self.frozen.others(self.model))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.standardized = checkpoint.get("standardized", {})

    def on_train_start(self) -> None:
        take_raw(self.model, self.standardized)
        for one in self.trainer.lr_scheduler_configs:  # a checkpoint of fewer epochs has other rates
            scheduler: Any = one.scheduler
            for group, factor in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Take a checkpoint's tensors; RunError unless they are just what of this model is not frozen."""
        if strange := state_dict.keys() ^ self.state_dict().keys():
            raise RunError(f"the checkpoint is of another model or freeze: {brief(sorted(strange))}")
        for layer in standardized_layers(self.model).values():
            layer.fold()  # what is loaded is of a plain layer
        return self.model.load_state_dict(state_dict, strict=False, assign=assign)
