"""What a run computes once for each image: by several processes, or beforehand (`cache --fill`)."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console
from torch import Tensor

from finetune import build
from finetune.choices.losses import LOSSES
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.demands import refuse_broken, refuse_untrainable
from finetune.errors import RequestError, counted
from finetune.features.batchnorm import Statistics, batchnorm_buffers
from finetune.features.load import ModelInputs, store_share
from finetune.learners import stratified_folds
from finetune.model.assemble import Model
from finetune.model.standardize import direct_layer, statistics
from finetune.report import terminal
from finetune.runs.resume import ResumeState, adapted_before
from finetune.say import progress, say
from finetune.training import device as devices
from finetune.training import distributed
from finetune.training.device import Device
from finetune.training.fit import Options
from finetune.training.losses import create_loss
from finetune.training.solve import Problem, follow_path


def fill_store(settings: Settings, console: Console, share: tuple[int, int] | None = None) -> None:
    """Compute and store the features that a run with these settings needs, and say how many; nothing trains.

    share: which of how many parts to compute alone, for as many processes on whatever machines.
    RequestError: a run would store none, or be refused before it trains.
    """
    options = build.build_options(settings)
    device = options.device
    dataset = build.find_data(settings, partial(progress, console))
    model = build.make_model(settings, dataset)
    dataset = dataset.numbered_as(model.classes)
    refuse_untrainable(settings, model, dataset)
    plan = build.plan_inputs(settings, dataset, model, device)
    if plan.where != "disk":
        expected = "expected settings with which a run stores features"
        raise RequestError(f"--fill: {expected}; with these: {plan.why}")
    terminal.model_lines(console, model, settings, len(dataset.classes))
    if share:
        if settings.batchnorm != "pretrained":
            raise RequestError(f"--share: expected batchnorm=pretrained, not {settings.batchnorm}")
        computed = _store_share(settings, dataset, model, options, share=share, console=console)
        text = f"{counted(computed, 'feature')} computed, which the next run takes in"
        return say(console, "share", f"{share[0]} of {share[1]}: {text}")
    inputs = inputs_by_evidence(settings, dataset, model, device, console=console, known=None)
    refuse_broken(settings, inputs, dataset, None)
    terminal.input_lines(console, inputs, model, settings.class_weights)


def load_in_turn(
    settings: Settings,
    dataset: Dataset,
    model: Model,
    options: Options,
    console: Console,
    state: ResumeState | None,
) -> ModelInputs:
    """What batches are made of; several processes share the computing, then each takes it from the store.

    state: where an interrupted run goes on, with its statistics for BatchNorm, and in its order.
    """
    rank, began, computed = options.rank, time.perf_counter(), 0
    if rank.world_size > 1:
        share = rank.rank, rank.world_size
        own = _store_share(settings, dataset, model, options, share=share, console=console)
        computed = sum(distributed.gathered(own, rank.world_size))  # and so all wait for all
    seconds = time.perf_counter() - began
    with distributed.one_after_the_other(rank):
        known = adapted_before(state)
        inputs = inputs_by_evidence(settings, dataset, model, options.device, console=console, known=known)
    if blocks := inputs.inputs.blocks:  # of which all have as many, whatever memory they have
        own = max(distributed.gathered(blocks.parts, rank.world_size))
        blocks.parts = state.origin.get("parts", 1) if state else own
    if computed and (found := inputs.features):
        counts = {"computed": found["computed"] + computed, "reused": found["reused"] - computed}
        inputs = replace(inputs, features={**found, **counts, "seconds": found["seconds"] + seconds})
    return inputs


def _store_share(
    settings: Settings,
    dataset: Dataset,
    model: Model,
    options: Options,
    share: tuple[int, int],
    console: Console,
) -> int:
    """Store this process's share of the features, where a run stores them; returns how many they are."""
    plan, rank = build.plan_inputs(settings, dataset, model, options.device), options.rank
    if plan.where != "disk" or settings.batchnorm != "pretrained":
        return 0
    with devices.own_cores(rank.local_rank, rank.local_world_size):
        loading = build.load_settings(settings, console)
        return store_share(plan, model, dataset, loading, share=share)


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
        return build.build_inputs(asked, dataset, model, device, console=console, statistics=known)

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
