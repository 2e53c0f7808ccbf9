"""Constant features standardised before the linear head that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn

from finetune.config.schema import Settings
from finetune.errors import RequestError
from finetune.features.load import ModelInputs
from finetune.model.assemble import Model
from finetune.model.standardize import StandardizedLinear, direct_layer, statistics
from finetune.model.tracing import keep_modes

ROWS = 64  # images of a batch that statistics are taken of: any number gives the same but for rounding


def standardize(settings: Settings, model: Model, inputs: ModelInputs, device: str) -> None:
    """Standardise what the linear layer reads that reads constant features; its names stay as they are.

    A layer that was kept computes the same as before.

    Raises:
        RequestError: `standardize=true` or an optimiser that solves asks for it, and there is no such layer.
    """
    name = inputs.plan.split and direct_layer(inputs.plan.split)
    if settings.standardize is False:
        return
    if name is None:
        if settings.standardize is True:
            raise RequestError(
                "standardize=true: expected a linear layer that reads the constant features itself, with none"
                " that trains before it"
            )
        return
    model.network.to(device)
    layer = model.network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    mean, scale = statistics(_training_features(inputs, device))
    made = StandardizedLinear(layer, mean, scale)
    if model.head is None:
        with torch.no_grad():
            made.bias.add_(made.weight @ made.mean)
            made.weight.copy_(torch.where(made.scale > 0, made.weight / made.scale, 0))
    for network in (model.network, inputs.network):
        network.set_submodule(name, made)


def _training_features(inputs: ModelInputs, device: str) -> Iterator[Tensor]:
    """What the prefix gives for each view of the training images, in batches (B, D)."""
    views, rows_of = inputs.inputs, torch.from_numpy(inputs.dataset.split["train"]).split(ROWS)
    for view, chosen in product(filter(None, (views.plain, views.mirrored)), rows_of):
        rows = view(chosen)
        if inputs.features is not None:
            assert isinstance(rows, Tensor)
            yield rows
            continue
        assert isinstance(rows, Tensor)
        assert inputs.plan.split
        assert inputs.plan.split.prefix
        prefix = inputs.plan.split.prefix
        with keep_modes(prefix), torch.no_grad():
            yield prefix.eval()(inputs.prepare(rows.to(device), False, 0)).cpu()
