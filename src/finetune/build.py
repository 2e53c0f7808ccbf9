"""What a training is made of, each part built from the settings."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from finetune import private
from finetune.choices.optimizers import OPTIMIZERS
from finetune.config.schema import MIXING, Settings
from finetune.data import sources
from finetune.data.augment import Mix
from finetune.data.dataset import Dataset
from finetune.data.digests import forget
from finetune.data.images import ChangedImage
from finetune.data.module import Batches, Examples
from finetune.data.sources import Progress
from finetune.demands import refuse_labels, refuse_unsolvable, refuse_validating
from finetune.errors import RequestError
from finetune.features.batchnorm import Statistics, find_statistics
from finetune.features.load import LoadSettings, ModelInputs, load_inputs
from finetune.features.plan import FeaturePlan, FeatureSettings, plan_features
from finetune.model.assemble import Model, ModelConfig, assemble
from finetune.model.build import brought
from finetune.say import progress, say
from finetune.training import device as devices
from finetune.training.device import Device
from finetune.training.distributed import SINGLE, Rank
from finetune.training.fit import Options


def find_data(settings: Settings, progress: Progress = sources.silent, *, measured: bool = False) -> Dataset:
    """The images and labels that the settings name; nothing is decoded yet.

    measured: they are for measuring alone, so that it does not matter whether a model could learn from them.
    RequestError: they are not there, or not as the settings need them.
    """
    data = settings.data
    dataset = sources.load_dataset(
        data.source,
        data.root,
        data.val_fraction,
        data.test_fraction,
        measured=measured,
        memo=memo(settings),
        progress=progress,
        **data.model_dump(include=sources.SETTINGS),
    )
    if measured:
        return dataset
    if settings.best == "map" and not dataset.multi_label:
        raise RequestError("best=map: expected images with several labels each, or best=macro_f1")
    refuse_labels(settings, dataset)
    if settings.fast_dev_run:
        order = np.random.default_rng(settings.seed).permutation(len(dataset.images))
        sides = [order[np.isin(order, dataset.split[side])] for side in sources.SPLITS]
        dataset = dataset.without(np.concatenate([rows[settings.batch_size :] for rows in sides]).tolist())
    return dataset


def memo(settings: Settings) -> Path:
    """The file that remembers what is known of image files."""
    return cache_dir(settings) / "digests.sqlite"


def cache_dir(settings: Settings) -> Path:
    """The folder of features and digests, made if missing; raises RequestError where others could fill it."""
    folder = Path(os.path.expanduser(settings.cache_dir))
    private.check_folder(folder, settings.cache_shared)
    return folder


def make_model(settings: Settings, dataset: Dataset, start: Path | None = None) -> Model:
    """The model that the settings describe, for the classes of a data set; start: a run to go on from."""
    if settings.phased:
        several = "phases" if settings.phases else "freeze=auto"
        raise RequestError(f"{several}: expected in training alone; here say what is frozen")
    if start and settings.refit and not (chosen := start / "checkpoints" / "chosen.ckpt").exists():
        raise RequestError(f"{chosen}: expected the model before it was refitted, from which the next starts")
    config = ModelConfig(
        settings.model,
        weights=settings.weights,
        freeze=settings.freeze,
        head=settings.head,
        hidden=settings.head_hidden,
        dropout=settings.head_dropout,
        head_features=settings.stages,
        image_size=settings.data.image_size,
        seed=settings.seed,
        start=start,
    )
    model = assemble(config, dataset.classes)
    repair = settings.data.bad_images == "repair"
    how = replace(model.preprocessing, brightness=dataset.brightness, repair=repair, fit=settings.data.crop)
    return replace(model, preprocessing=how)


def build_options(settings: Settings, rank: Rank = SINGLE) -> Options:
    """How long and on what to train, decided once; rank: of this process among those that train together.

    RequestError: the device asked for is not to be had, or not the precision on it.
    """
    device = devices.accelerator(settings.trainer.accelerator)
    steps, precision = not solves(settings), devices.precision(settings.precision, device)
    return Options(
        epochs=settings.epochs if steps else 1,
        max_steps=settings.max_steps if steps else None,
        accumulate_batches=settings.trainer.accumulate_batches if steps else 1,
        clip_norm=settings.trainer.clip_norm if steps else None,
        device=device,
        precision=precision if steps else "32-true",  # features may have been computed in half
        rank=rank,
        checkpoint_every=settings.trainer.checkpoint_every,
        profiler=settings.trainer.profiler,
    )


def solves(settings: Settings) -> bool:
    """Whether the optimiser finds the best head itself, in one epoch of one batch."""
    return OPTIMIZERS[settings.optimizer.name].solves


def plan_inputs(settings: Settings, dataset: Dataset, model: Model, device: Device) -> FeaturePlan:
    """Where the model splits and what is cached, nothing decoded; raises RequestError of no such cache."""
    wanted = FeatureSettings(
        cache=settings.cache,
        cache_dir=cache_dir(settings),
        cache_max_gb=settings.cache_max_gb,
        augment=settings.data.augment,
        fresh=settings.fresh,
        precision=settings.precision,
        compile=settings.compile,
        device=device,
        multiplies_bf16=devices.multiplies_bf16(device),
    )
    return plan_features(model, dataset, wanted)


def build_inputs(
    settings: Settings,
    dataset: Dataset,
    model: Model,
    device: Device,
    *,
    console: Console,
    statistics: Statistics | None = None,
) -> ModelInputs:
    """Every image, decoded once or as features of the frozen prefix, whose BatchNorm is adapted before.

    statistics: for this, where an interrupted run had them.
    RequestError: too few images are left without those that are broken.
    ChangedImage: an image is not what it was when it was hashed.
    """
    loading, batchnorm = load_settings(settings, console), None
    if solves(settings):
        refuse_unsolvable(settings, model, plan_inputs(settings, dataset, model, device))
    try:
        if settings.batchnorm == "adapt":
            folder = cache_dir(settings)  # where it cannot be made, cache=disk is refused for the features
            kept = settings.cache in ("auto", "disk") and os.path.isdir(folder)
            cache = folder if kept and not brought(settings.model) else None  # whose code may change
            statistics = statistics or find_statistics(model, dataset, device, cache=cache, loading=loading)
            batchnorm = statistics.put_into(model)
        inputs = load_as_planned(settings, dataset, model, device, console=console)
    except ChangedImage as error:
        if isinstance(error.image, Path):
            forget(error.image, memo(settings))
        raise
    if not (settings.folded or len(inputs.dataset.split["val"])):
        refuse_validating(settings)
    return replace(inputs, batchnorm=batchnorm)


def load_as_planned(
    settings: Settings, dataset: Dataset, model: Model, device: Device, *, console: Console
) -> ModelInputs:
    """Every image, as `build_inputs` gives them, by a model whose BatchNorm stays as it is."""
    plan = plan_inputs(settings, dataset, model, device)
    return load_inputs(plan, model, dataset, load_settings(settings, console))


def load_settings(settings: Settings, console: Console) -> LoadSettings:
    """How images are read, and what is said meanwhile."""
    waiting = "another run is computing the same features; waiting for it"
    return LoadSettings(
        workers=settings.data.workers,
        seed=settings.seed,
        memo=memo(settings),
        progress=partial(progress, console),
        on_wait=partial(say, console, "note", waiting),
    )


def build_batches(settings: Settings, inputs: ModelInputs, outputs: int, processes: int = 1) -> Batches:
    """The splits in batches, each shared by so many processes; raises RequestError of one with too few.

    outputs: of the model, the width of mixed labels.
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
    mixing = {key: getattr(settings, key) for key in MIXING}
    mix = Mix(**mixing, outputs=outputs, seed=settings.seed) if any(mixing.values()) else None
    examples = Examples(inputs.inputs, labels, dataset.split, inputs.prepare, mix=mix)
    whole = solves(settings)
    return Batches(examples, max(train, val) if whole else settings.batch_size, settings.seed, processes)


def adapt_options(
    options: Options, settings: Settings, inputs: ModelInputs, compiled: bool | None = None
) -> Options:
    """The same for these inputs: a step that is so small needs no other precision than 32.

    compiled: whether an interrupted run was.
    RequestError: compiling was asked for and there is no compiler.
    """
    images = settings.epochs * len(inputs.dataset.split["train"])
    wanted = settings.compile if compiled is None else compiled
    options = replace(options, compiled=devices.compiles(wanted, options.device, images))
    if settings.precision == "auto" and is_light(settings, inputs):
        return replace(options, precision="32-true")
    return options


def is_light(settings: Settings, inputs: ModelInputs, jobs: int = 1) -> bool:
    """Whether a step of so many jobs is so small that one thread is quickest."""
    images = settings.batch_size
    if solves(settings):
        images = 5 * len(inputs.dataset.split["train"])  # of so many folds
    macs = inputs.plan.suffix_macs * images * jobs
    return inputs.features is not None and macs < devices.LIGHT_MACS
