"""`batchnorm=auto`: the statistics of frozen BatchNorm layers, chosen by cross-validated log-loss."""

from __future__ import annotations

from dataclasses import replace

import torch
from rich.console import Console
from torch import Tensor

from finetune.build import build_inputs
from finetune.choices.losses import LOSSES
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.features.batchnorm import Statistics, batchnorm_buffers
from finetune.features.load import ModelInputs
from finetune.learners import stratified_folds
from finetune.model.assemble import Model
from finetune.model.standardize import direct_layer, statistics
from finetune.say import say
from finetune.training.device import Device
from finetune.training.losses import create_loss
from finetune.training.solve import Problem, follow_path


def inputs_by_evidence(
    settings: Settings,
    dataset: Dataset,
    model: Model,
    device: Device,
    *,
    console: Console,
    known: Statistics | None,
) -> ModelInputs:
    """The inputs with the statistics asked for; for `auto` those on whose features a solved head does better.

    Labels of training images alone decide; without a linear head on features the pretrained ones are kept.

    known: the statistics of an interrupted run, which are taken as they are.
    """

    def load(batchnorm: str, known: Statistics | None = None) -> ModelInputs:
        asked = settings.model_copy(update={"batchnorm": batchnorm})
        return build_inputs(asked, dataset, model, device, console=console, statistics=known)

    if settings.batchnorm != "auto" or known:
        return load("adapt" if known else settings.batchnorm, known)
    pretrained = {name: model.network.get_buffer(name).clone() for name in batchnorm_buffers(model)}
    plain = load("pretrained")
    before = _log_loss(settings, plain) if pretrained else None
    if before is None:
        able = "only a linear head on features of several images a class can tell"
        why = able if pretrained else "no BatchNorm is frozen"
        say(console, "note", f"batchnorm=auto keeps the pretrained: {why}")
        return plain
    adapted = load("adapt")
    assert adapted.batchnorm is not None
    after = _log_loss(settings, adapted)
    assert after is not None
    tried = {"pretrained": before, "adapt": after}
    if after < before:
        return replace(adapted, batchnorm=adapted.batchnorm | {"log_loss": tried})
    for name, value in pretrained.items():
        model.network.get_buffer(name).copy_(value)
    return replace(plain, batchnorm={**adapted.batchnorm, "adapted": 0, "log_loss": tried})


def _log_loss(settings: Settings, inputs: ModelInputs) -> float | None:
    """The lowest cross-validated log-loss of a head solved on the training images' features."""
    halves = inputs.plan.split
    if inputs.features is None or not halves or not LOSSES[settings.loss].convex or not direct_layer(halves):
        return None
    rows = torch.from_numpy(inputs.dataset.split["train"])
    features = inputs.inputs.plain(rows)
    assert isinstance(features, Tensor)
    mean, scale = statistics([features])
    loss, labels = create_loss(settings.loss), torch.from_numpy(inputs.dataset.labels)[rows]
    outputs = len(inputs.dataset.classes)
    examples = Problem((features - mean) * scale, labels.to(features.device), loss, outputs)
    if not (folds := stratified_folds(inputs.dataset, settings.seed)):
        return None
    return min(point.log_loss for point in follow_path(examples, folds, loss))
