"""What a head reads of each image: from the feature store where it is there, else computed and stored."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._pytree import tree_map

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
    features: what is known of how they were computed.
    """

    values: Tensor
    dataset: Dataset
    bad: list[BadImage]
    features: dict[str, Any] | None


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

    RequestError: no image is left to train on without the broken ones.
    """
    from finetune import build  # which imports Lightning, and who predicts does without

    data = settings.data.model_copy(update={"augment": "none"})
    settings = settings.model_copy(update={**UNCHANGED, "data": data})
    device = build.build_options(settings).device
    inputs = build.load_as_planned(settings, dataset, model, device, console=console)
    rows = torch.arange(len(inputs.dataset.images))
    values, _ = head_inputs(inputs, model.head or find_head(model.network), rows, device)
    return Embeddings(values, inputs.dataset, inputs.bad, inputs.features)


@torch.no_grad()
def head_inputs(inputs: ModelInputs, head: str, rows: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """What the head of that name reads of the images by their indices (N,), (N, D) in float32; the logits."""
    read, answered = list[Tensor](), list[Tensor]()
    home = next(inputs.network.parameters()).device  # others take it to be where the rest of the model is
    network = HeadInputs(inputs.network, head).to(device)
    try:
        # What was compiled before the hook was there would not call it.
        with keep_modes(inputs.network), torch.compiler.set_stance("force_eager"):
            network.eval()
            for chosen in rows.split(BATCH):
                batch = tree_map(lambda one: one.to(device), inputs.inputs.plain(chosen))
                logits, values = network(inputs.prepare(batch, False, 0))
                read.append(values.cpu())
                answered.append(logits.cpu())
    finally:
        network.hook.remove()
        network.to(home)
    return torch.cat(read), torch.cat(answered)


class HeadInputs(nn.Module):
    """A network that gives, beside its logits, what its head reads: (B, D) in float32, pooled."""

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network = network
        self.read: dict[int, Tensor] = {}  # by thread, as several may be at work
        # Dropout before the head's first layer changes nothing in eval mode.
        layers = network.get_submodule(head).modules()
        first = next(layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d))
        self.hook = first.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, given: tuple[Tensor]) -> None:
        self.read[threading.get_ident()] = given[0]

    def forward(self, given: Any) -> tuple[Tensor, Tensor]:
        logits, read = self.network(given), self.read.pop(threading.get_ident())
        return logits, (read.flatten(2).mean(2) if read.dim() == 4 else read.flatten(1)).float()
