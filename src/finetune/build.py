"""What a training is made of, each part built from the settings."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from finetune import private
from finetune.choices.fields import names_where
from finetune.choices.losses import LOSSES
from finetune.choices.optimizers import OptimizerSettings
from finetune.choices.schedules import Span
from finetune.config.schema import Settings
from finetune.data import sources
from finetune.data.dataset import Dataset
from finetune.data.digests import forget
from finetune.data.images import ChangedImage
from finetune.data.module import Batches
from finetune.data.sources import Progress
from finetune.errors import RequestError
from finetune.features.load import LoadSettings, ModelInputs, load_inputs
from finetune.features.plan import FeaturePlan, FeatureSettings, plan_features
from finetune.model.assemble import Model, ModelConfig, assemble
from finetune.say import progress, say
from finetune.training import device as devices
from finetune.training import losses, optim
from finetune.training.classifier import Classifier
from finetune.training.distributed import SINGLE, Rank
from finetune.training.fit import Options


def find_data(settings: Settings, progress: Progress = sources.silent) -> Dataset:
    """The images and labels that the settings name; nothing is decoded yet.

    Raises:
        RequestError: they are not there, or not as the settings need them.
    """
    data = settings.data
    dataset = sources.load_dataset(
        data.source,
        data.root,
        data.val_fraction,
        data.test_fraction,
        memo(settings),
        progress,
        name=data.name,
        nested=data.nested,
        image_column=data.image_column,
        label_column=data.label_column,
    )
    if dataset.multi_label and not LOSSES[settings.loss].several_labels:
        one_each = names_where(LOSSES, lambda entry: not entry.softmax)
        raise RequestError(
            f"loss={settings.loss}: expected loss={one_each}, as images have several labels each"
        )
    return dataset


def memo(settings: Settings) -> Path:
    """The file that remembers what is known of image files."""
    return cache_dir(settings) / "digests.sqlite"


def cache_dir(settings: Settings) -> Path:
    """The folder of features and digests, made where it is missing; `~` is the user's own.

    Raises:
        RequestError: others could have filled it, and `cache_shared` does not say that they may.
    """
    folder = Path(os.path.expanduser(settings.cache_dir))
    private.check_folder(folder, settings.cache_shared)
    return folder


def make_model(settings: Settings, dataset: Dataset) -> Model:
    """The model that the settings describe, for the classes of a data set."""
    config = ModelConfig(
        settings.model,
        weights=settings.weights,
        freeze=settings.freeze,
        head=settings.head,
        hidden=settings.head_hidden,
        dropout=settings.head_dropout,
        image_size=settings.data.image_size,
        seed=settings.seed,
    )
    return assemble(config, dataset.classes)


def refuse_untrainable(settings: Settings, model: Model, dataset: Dataset) -> None:
    """Raise RequestError where a model has nothing to learn, or its outputs are not the data set's labels."""
    if dataset.multi_label and model.outputs != len(dataset.classes):
        raise RequestError(
            f"head={settings.head}: expected auto or {len(dataset.classes)}, one output for each label"
        )
    if not any(p.requires_grad for p in model.network.parameters()):
        raise RequestError(
            "freeze: nothing is left to train, so the loss carries no gradient; expected head=auto or a"
            " number of outputs for a new head, or a freeze that leaves something trainable"
        )


def plan_inputs(settings: Settings, dataset: Dataset, model: Model) -> FeaturePlan:
    """Where the model splits and what would be cached of the images; nothing is decoded.

    Raises:
        RequestError: the device, the precision or the cache asked for is not to be had.
    """
    device = devices.accelerator(settings.trainer.accelerator)
    devices.precision(settings.precision, device)
    wanted = FeatureSettings(
        cache=settings.cache,
        cache_dir=cache_dir(settings),
        cache_max_gb=settings.cache_max_gb,
        augment=settings.data.augment,
        precision=settings.precision,
        compile=settings.compile,
        device=device,
        multiplies_bf16=devices.multiplies_bf16(device),
    )
    return plan_features(model, dataset, wanted)


def build_inputs(settings: Settings, dataset: Dataset, model: Model, console: Console) -> ModelInputs:
    """Every image, decoded once or as features of the frozen prefix.

    Raises:
        RequestError: too few images are left without those that are broken.
        ChangedImage: an image is not what it was when it was hashed.
    """
    waiting = "another run is computing the same features; waiting for it"
    loading = LoadSettings(
        workers=settings.data.workers,
        seed=settings.seed,
        memo=memo(settings),
        progress=partial(progress, console),
        on_wait=partial(say, console, "note", waiting),
    )
    try:
        inputs = load_inputs(plan_inputs(settings, dataset, model), model, dataset, loading)
    except ChangedImage as error:
        if isinstance(error.image, Path):
            forget(error.image, memo(settings))
        raise
    if settings.patience is not None and not len(inputs.dataset.split["val"]):
        raise RequestError(
            f"patience={settings.patience}: expected images to validate with; there are none"
            " (data.val_fraction)"
        )
    return inputs


def build_batches(settings: Settings, inputs: ModelInputs, processes: int = 1) -> Batches:
    """The three splits in batches, each shared by so many processes.

    Raises:
        RequestError: a batch is too small for every process to get a part of it.
    """
    dataset = inputs.dataset
    train, val = len(dataset.split["train"]), len(dataset.split["val"])
    sizes = {"batch_size": settings.batch_size, "training images": train, "validation": val or processes}
    for name, number in sizes.items():
        if number < processes:
            raise RequestError(
                f"{name}={number}: expected at least {processes}, one for each process (trainer.devices)"
            )
    labels = torch.from_numpy(dataset.labels)
    return Batches(
        inputs.inputs,
        labels,
        dataset.split,
        batch_size=settings.batch_size,
        seed=settings.seed,
        prepare=inputs.prepare,
        processes=processes,
    )


def build_options(settings: Settings, inputs: ModelInputs, rank: Rank = SINGLE) -> Options:
    """How long and on what to train; a step that is so small needs no other precision than 32.

    Raises:
        RequestError: the device or the precision asked for is not to be had.
    """
    device, train = devices.accelerator(settings.trainer.accelerator), len(inputs.dataset.split["train"])
    precision = "32" if settings.precision == "auto" and is_light(settings, inputs) else settings.precision
    return Options(
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        accumulate_batches=settings.trainer.accumulate_batches,
        clip_norm=settings.trainer.clip_norm,
        device=device,
        precision=devices.precision(precision, device),
        compiled=devices.compiles(settings.compile, device, settings.epochs * train),
        rank=rank,
    )


def is_light(settings: Settings, inputs: ModelInputs, jobs: int = 1) -> bool:
    """Whether a step of so many jobs is so small that one thread is quickest."""
    macs = inputs.plan.suffix_macs * settings.batch_size * jobs
    return inputs.features is not None and macs < devices.LIGHT_MACS


def build_loss(settings: Settings, train_labels: Tensor, outputs: int) -> losses.Loss:
    """The loss; `class_weights=balanced` weighs it by the labels that are trained on."""
    weights = build_class_weights(settings, train_labels, outputs)
    return losses.create_loss(settings.loss, settings.label_smoothing, weights)


def build_classifier(
    settings: Settings, model: Model, inputs: ModelInputs, batches: Batches, compiled: bool
) -> Classifier:
    """The network, compiled or not, with its loss, optimiser and schedule."""
    if compiled:
        inputs.network.compile()
    name, options, groups = optimizer_groups(settings, model)
    schedule = build_schedule(settings, len(batches.train_dataloader()))
    return Classifier(
        model.network,
        inputs.network,
        model.frozen,
        build_loss(settings, batches.labels[batches.split["train"]], model.outputs),
        optimizer=lambda: (optim.create_optimizer(name, groups, **options), schedule),
        labels=inputs.dataset.classes if inputs.dataset.multi_label else (),
    )


def build_schedule(settings: Settings, batches: int) -> optim.Schedule:
    """The schedule over epochs of so many batches."""
    steps_per_epoch = -(-batches // settings.trainer.accumulate_batches)
    steps = min(settings.epochs * steps_per_epoch, settings.max_steps or 2**62)
    span = Span(steps, steps_per_epoch, settings.step_epochs, settings.step_gamma)
    return optim.create_schedule(settings.schedule, span, settings.warmup_epochs)


def build_class_weights(settings: Settings, train_labels: Tensor, outputs: int) -> Tensor | None:
    """What each class weighs in the loss, (outputs,); None where all weigh the same."""
    balanced = settings.class_weights == "balanced"
    return losses.balanced_weights(train_labels, outputs) if balanced else None


def optimizer_groups(settings: Settings, model: Model) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The optimiser's name and options, and its groups of what trains."""
    options = settings.optimizer.model_dump()
    grouping = {key: options.pop(key) for key in OptimizerSettings.model_fields}
    name = grouping.pop("name")
    return name, options, optim.parameter_groups(model.network, model.head, **grouping)
