"""Constant features standardised before the linear head that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product

import torch
from rich.console import Console
from torch import Tensor, nn

from finetune.config.schema import Settings
from finetune.errors import RequestError
from finetune.features.load import ModelInputs
from finetune.model.assemble import Model
from finetune.model.standardize import StandardizedLinear, direct_layer, standardized_layers, statistics
from finetune.model.tracing import keep_modes
from finetune.say import progress

ROWS = 64  # images of a batch that statistics are taken of: any number gives the same but for rounding


def standardize(
    settings: Settings, model: Model, inputs: ModelInputs, device: str, *, console: Console
) -> None:
    """Standardise what the linear layer reads that reads constant features; its names stay as they are.

    A layer that was kept computes the same as before.
    RequestError: `standardize=true`, and there is no such layer.
    """
    name = inputs.plan.split and direct_layer(inputs.plan.split)
    if settings.standardize is True and name is None:
        raise RequestError(
            "standardize=true: expected a linear layer that reads the constant features itself, with none"
            " that trains before it"
        )
    if not (settings.standardize and name):
        return
    model.network.to(device)
    layer = model.network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    made = StandardizedLinear(layer, torch.zeros(layer.in_features), torch.ones(layer.in_features))
    for network in (model.network, inputs.network):
        network.set_submodule(name, made)
    take_statistics(model, inputs, device, console=console)


@torch.no_grad()
def take_statistics(model: Model, inputs: ModelInputs, device: str, *, console: Console) -> None:
    """Standardise by these training images what a standardised layer reads, if there is one."""
    for name, layer in standardized_layers(model.network).items():
        kept = model.trained or model.head is None or not f"{name}.".startswith(f"{model.head}.")
        if kept:
            layer.fold()
        mean, scale = statistics(_training_features(inputs, device, console))
        layer.mean.copy_(mean)
        layer.scale.copy_(scale)
        if kept:
            layer.bias.add_(layer.weight @ layer.mean)
            layer.weight.copy_(torch.where(layer.scale > 0, layer.weight / layer.scale, 0))


def _training_features(inputs: ModelInputs, device: str, console: Console) -> Iterator[Tensor]:
    """What the prefix gives for each view of the training images, in batches (B, D)."""
    rows, halves = torch.from_numpy(inputs.dataset.split["train"]), inputs.plan.split
    views = [view for view in (inputs.inputs.plain, inputs.inputs.mirrored) if view]
    stored = inputs.features is not None
    shown = (
        nullcontext(lambda _: None) if stored else progress(console, "standardising", len(rows) * len(views))
    )
    assert halves
    assert halves.prefix
    with shown as advance, keep_modes(halves.prefix), torch.no_grad():
        halves.prefix.eval()
        for view, chosen in product(views, rows.split(ROWS)):
            images = view(chosen)
            assert isinstance(images, Tensor)
            yield images if stored else halves.prefix(inputs.prepare(images.to(device), False, 0)).cpu()
            advance(len(chosen))
