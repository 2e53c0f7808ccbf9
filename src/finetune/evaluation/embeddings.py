"""What a head reads of each image: from the feature store where it is there, else computed and stored."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from finetune import build
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.data.images import BadImage
from finetune.features.load import ModelInputs
from finetune.model.assemble import Model
from finetune.model.freeze import freeze
from finetune.model.head import find_head
from finetune.model.tracing import keep_modes
from finetune.model.weights import Weights
from finetune.runs.open import Saved

BATCH = 64
UNCHANGED = {"cache": "auto", "batchnorm": "pretrained"}  # a run's statistics are in its weights


@dataclass(frozen=True)
class Embeddings:
    """What the head reads of each image of a data set.

    values: (N, D) in float32, pooled where the head is a convolution. dataset: without the broken images.
    """

    values: Tensor
    dataset: Dataset
    bad: list[BadImage]


def model_of(saved: Saved) -> Model:
    """A run's model with all but its head frozen."""
    network, size = copy.deepcopy(saved.network), saved.preprocessing.crop_size
    example = torch.zeros(1, 3, size, size)
    name = str(saved.folder)
    return Model(
        name=saved.settings.model,
        network=network,
        weights=Weights(name, name, saved.preprocessing),
        preprocessing=saved.preprocessing,
        head=saved.head,
        outputs=saved.outputs,
        frozen=freeze(network, ["all"], saved.head, example),
        example=example,
        classes=saved.classes,
    )


def embed(model: Model, settings: Settings, dataset: Dataset, console: Console) -> Embeddings:
    """What the head of a model reads of each image; all but the head must be frozen.

    Raises:
        RequestError: no image is left to train on without the broken ones.
    """
    data = settings.data.model_copy(update={"augment": "none"})
    settings = settings.model_copy(update={**UNCHANGED, "data": data})
    device = build.build_options(settings).device
    inputs = build.load(settings, dataset, model, device, console=console)
    rows = torch.arange(len(inputs.dataset.images))
    values = head_inputs(inputs, model.head or find_head(model.network), rows, device)
    return Embeddings(values, inputs.dataset, inputs.bad)


@torch.no_grad()
def head_inputs(inputs: ModelInputs, head: str, rows: Tensor, device: str) -> Tensor:
    """What the head of that name reads of the images by their indices (N,): (N, D) in float32."""
    network = inputs.network.to(device)
    found: list[Tensor] = []
    first = _first_layer(network.get_submodule(head))
    hook = first.register_forward_pre_hook(lambda module, given: found.append(_pooled(given[0])))
    try:
        with keep_modes(network):
            network.eval()
            for chosen in rows.split(BATCH):
                network(
                    inputs.prepare(
                        tree_map(lambda one: one.to(device), inputs.inputs.plain(chosen)), False, 0
                    )
                )
    finally:
        hook.remove()
    return torch.cat(found)


def _first_layer(head: nn.Module) -> nn.Module:
    """The layer of the head that reads first: dropout before it changes nothing in eval mode."""
    return next(layer for layer in head.modules() if isinstance(layer, nn.Linear | nn.Conv2d))


def _pooled(given: Tensor) -> Tensor:
    return given.flatten(2).mean(2).float().cpu() if given.dim() == 4 else given.flatten(1).float().cpu()
