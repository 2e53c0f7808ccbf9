"""Gradients watched while a model trains: their norm and what a step does to the weights, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.tensorboard import SummaryWriter

from finetune.model.parameters import parameters_by_layer
from finetune.say import say

VANISHING = 1e-5
EXPLODING = 0.5


class GradientMonitor(pl.Callback):
    """For each layer in which something trains, one point an epoch in TensorBoard: means over its steps.

    gradients/<layer>: the Euclidean norm of its gradient, before clipping.
    updates/<layer>: the length of a step over the length of the layer's weights; about 0.001 is usual.
    """

    def __init__(self, writer: SummaryWriter, console: Console) -> None:
        self.writer, self.console = writer, console
        self.warned: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        found = {
            layer: list(parameters.values())
            for layer, parameters in parameters_by_layer(pl_module.model).items()
        }
        self.layers = {layer: each for layer, each in found.items() if any(p.requires_grad for p in each)}

    def on_train_epoch_start(self, *args: Any) -> None:
        self.norms: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        self.ratios: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        self.before: dict[str, list[Tensor]] = {}

    def on_before_optimizer_step(self, *args: Any) -> None:
        for layer, parameters in self.layers.items():
            self.norms[layer].append(get_total_norm([p.grad for p in parameters if p.grad is not None]))
            self.before[layer] = [p.detach().clone() for p in parameters]

    def on_train_batch_end(self, *args: Any) -> None:
        for layer, before in self.before.items():  # none while batches accumulate
            step = get_total_norm([a - b for a, b in zip(self.layers[layer], before, strict=True)])
            self.ratios[layer].append((step / get_total_norm(before)).detach())
        self.before = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        norms, ratios = _means(self.norms), _means(self.ratios)
        for tag, means in (("gradients", norms), ("updates", ratios)):
            for layer, mean in means.items():
                self.writer.add_scalar(f"{tag}/{layer}", mean, trainer.global_step)
        self.writer.flush()  # before the checkpoint says that the epoch is done
        for kind, line in warnings(norms, ratios).items():
            if kind not in self.warned:
                self.warned.add(kind)
                say(self.console, "warning", f"epoch {trainer.current_epoch + 1}: {line}")


def _means(values: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """Means of what is finite: weights that are all zero have no length, and fp16 skips what overflows."""
    each = {layer: torch.stack(list(steps)) for layer, steps in values.items()}
    finite = {layer: steps[steps.isfinite()] for layer, steps in each.items()}
    return {layer: float(steps.mean()) for layer, steps in finite.items() if len(steps)}


def warnings(norms: Mapping[str, float], ratios: Mapping[str, float]) -> dict[str, str]:
    """What there is to say of an epoch's gradient norms and update-to-weight ratios by layer."""
    said = {}
    if norms:
        weakest, strongest = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
        if norms[weakest] <= VANISHING * norms[strongest]:
            said["vanishing"] = (
                f"gradients vanish: {norms[weakest]:.1e} in {weakest} against {norms[strongest]:.1e} in"
                f" {strongest}, so {weakest} learns next to nothing; try pretrained weights, or freeze it"
            )
    if ratios:
        fastest = max(ratios, key=ratios.__getitem__)
        if ratios[fastest] > EXPLODING:
            said["exploding"] = (
                f"gradients explode: a step moves {fastest} by {ratios[fastest]:.2g} times the length of its"
                " weights; try a smaller optimizer.lr or trainer.clip_norm=1"
            )
    return said
