"""What a training is made of, each part built from the settings."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

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
from finetune.data.module import Batches, Examples
from finetune.data.sources import Progress
from finetune.errors import RequestError
from finetune.features.load import LoadSettings, ModelInputs, load_inputs
from finetune.features.plan import FeaturePlan, FeatureSettings, plan_features
from finetune.model.assemble import Model, ModelConfig, assemble
from finetune.say import progress, say
from finetune.training import device as devices
from finetune.training.classifier import Classifier
from finetune.training.device import Device
from finetune.training.distributed import SINGLE, Rank
from finetune.training.fit import Options
from finetune.training.losses import balanced_weights
from finetune.training.optim import create_schedule, parameter_groups
from finetune.training.stacked import JobConfig


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
        memo=memo(settings),
        progress=progress,
        name=data.name,
        nested=data.nested,
        image_column=data.image_column,
        label_column=data.label_column,
    )
    if dataset.multi_label and not LOSSES[settings.loss].several_labels:
        fit = names_where(LOSSES, lambda entry: not entry.softmax)
        raise RequestError(f"loss={settings.loss}: expected loss={fit}, as images have several labels each")
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


def build_options(settings: Settings, rank: Rank = SINGLE) -> Options:
    """How long and on what to train, decided once; rank: of this process among those that train together.

    Raises:
        RequestError: the device asked for is not to be had, or not the precision on it.
    """
    device = devices.accelerator(settings.trainer.accelerator)
    return Options(
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        accumulate_batches=settings.trainer.accumulate_batches,
        clip_norm=settings.trainer.clip_norm,
        device=device,
        precision=devices.precision(settings.precision, device),
        rank=rank,
    )


def plan_inputs(settings: Settings, dataset: Dataset, model: Model, device: Device) -> FeaturePlan:
    """Where the model splits and what would be cached of the images; nothing is decoded.

    Raises:
        RequestError: the cache asked for is not to be had.
    """
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


def build_inputs(
    settings: Settings, dataset: Dataset, model: Model, device: Device, *, console: Console
) -> ModelInputs:
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
        plan = plan_inputs(settings, dataset, model, device)
        inputs = load_inputs(plan, model, dataset, loading)
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
    examples = Examples(inputs.inputs, labels, dataset.split, inputs.prepare)
    return Batches(examples, settings.batch_size, settings.seed, processes)


def adapt_options(options: Options, settings: Settings, inputs: ModelInputs) -> Options:
    """The same for these inputs: a step that is so small needs no other precision than 32.

    Raises:
        RequestError: compiling was asked for and there is no compiler.
    """
    images = settings.epochs * len(inputs.dataset.split["train"])
    options = replace(options, compiled=devices.compiles(settings.compile, options.device, images))
    if settings.precision == "auto" and is_light(settings, inputs):
        return replace(options, precision="32-true")
    return options


def is_light(settings: Settings, inputs: ModelInputs, jobs: int = 1) -> bool:
    """Whether a step of so many jobs is so small that one thread is quickest."""
    macs = inputs.plan.suffix_macs * settings.batch_size * jobs
    return inputs.features is not None and macs < devices.LIGHT_MACS


def build_classifier(
    settings: Settings, model: Model, inputs: ModelInputs, batches: Batches, compiled: bool
) -> Classifier:
    """The network, compiled or not, with its loss, optimiser and schedule."""
    if compiled:
        inputs.network.compile()
    config = build_job_config(settings, model, batches.train_labels, len(batches.train_dataloader()))
    return Classifier(
        model.network,
        inputs.network,
        model.frozen,
        config.create_loss(),
        optimizer=lambda: (config.create_optimizer(), config.schedule),
        labels=inputs.dataset.classes if inputs.dataset.multi_label else (),
    )


def build_job_config(settings: Settings, model: Model, train_labels: Tensor, batches: int) -> JobConfig:
    """The loss, the optimiser over what trains, and its schedule over so many batches an epoch."""
    steps_per_epoch = -(-batches // settings.trainer.accumulate_batches)
    steps = min(settings.epochs * steps_per_epoch, settings.max_steps or 2**62)
    span = Span(steps, steps_per_epoch, settings.step_epochs, settings.step_gamma)
    options = settings.optimizer.model_dump()
    grouping = {key: options.pop(key) for key in OptimizerSettings.model_fields}
    balanced = settings.class_weights == "balanced"
    return JobConfig(
        loss=settings.loss,
        optimizer=grouping.pop("name"),
        groups=parameter_groups(model.network, model.head, **grouping),
        options=options,
        schedule=create_schedule(settings.schedule, span, settings.warmup_epochs),
        label_smoothing=settings.label_smoothing,
        class_weights=balanced_weights(train_labels, model.outputs) if balanced else None,
    )
