"""From settings to all that a training needs; with `run`, the only reader of settings."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from finetune import resuming
from finetune.data import sources
from finetune.data.dataset import Dataset
from finetune.data.module import Batches
from finetune.data.sources import Progress
from finetune.errors import RequestError
from finetune.features.inputs import Prospect, Ready, foresee, read
from finetune.model.assemble import Model, assemble
from finetune.model.proof import Proof
from finetune.report import folder as folders
from finetune.report import terminal
from finetune.resuming import GoingOn
from finetune.settings import Settings
from finetune.training import device as devices
from finetune.training import losses, optim
from finetune.training.distributed import ALONE, Place
from finetune.training.module import Classifier


@dataclass(frozen=True)
class Prepared:
    """A run that stands ready to train; its folder has been begun.

    light: a step is so small that one thread is quickest. started: by `time.perf_counter()`.
    origin: what a checkpoint must know to be gone on from. going_on: where an interrupted run goes on.
    place: of this process among those that train together.
    """

    settings: Settings
    folder: Path
    model: Model
    ready: Ready
    batches: Batches
    classifier: Classifier
    proof: Proof
    device: devices.Device
    precision: devices.Precision
    light: bool
    started: float
    origin: dict[str, Any] = field(default_factory=dict)
    going_on: GoingOn | None = None
    place: Place = ALONE

    @property
    def dataset(self) -> Dataset:
        """The pictures in use: without those that were left out."""
        return self.ready.dataset


def prepare(
    settings: Settings,
    folder: Path,
    console: Console,
    place: Place = ALONE,
    going_on: GoingOn | None = None,
) -> Prepared:
    """Find data and model, compute what is constant, and begin the run's folder.

    place: among processes that train together; only the one that leads writes.
    going_on: where a job that trained together with others goes on.

    Raises:
        RequestError: the request was wrong.
    """
    started = time.perf_counter()
    going_on = resuming.find(settings, folder) if settings.resume else going_on
    if going_on is None and place.leads:
        folders.refuse_used(folder)
    asked, settings = settings, resuming.decided(settings, going_on)
    device = devices.accelerator(settings.trainer.accelerator)
    devices.precision(settings.precision, device)
    dataset = find_data(settings, partial(terminal.progress, console))
    model = make_model(settings, dataset)
    if dataset.multi_label and model.outputs != len(dataset.classes):
        raise RequestError(
            f"head={settings.head}: expected auto or {len(dataset.classes)}, one output for each label"
        )
    if not any(p.requires_grad for p in model.network.parameters()):
        raise RequestError(
            "freeze: nothing is left to train, so the loss carries no gradient; expected head=auto or a"
            " number of outputs for a new head, or a freeze that leaves something trainable"
        )
    origin = resuming.found(model, dataset.classes, dataset.fingerprint())
    if going_on:
        resuming.check(going_on, origin)
    elif place.leads:
        folders.begin(folder, asked.model_dump())
    terminal.model_lines(console, model, settings.freeze, len(dataset.classes))
    ready = read_pictures(settings, dataset, model, device, console, folder if place.leads else None)
    dataset = ready.dataset
    check_shares(settings.batch_size, dataset, place)
    terminal.data_lines(console, dataset, ready.bad, model.preprocessing.crop_size, ready.augment)
    terminal.balance_lines(console, dataset, settings.class_weights)
    terminal.feature_line(console, ready)
    compiled = devices.compiles(settings.compile, device, settings.epochs * len(dataset.split["train"]))
    light = (
        ready.features is not None and ready.boundary.suffix_macs * settings.batch_size < devices.LIGHT_MACS
    )
    precision = devices.precision(
        "32" if light and settings.precision == "auto" else settings.precision, device
    )
    proof = Proof(model.network, model.frozen)
    origin |= resuming.chosen(ready, proof.sha256, device, precision, compiled)
    if going_on:
        resuming.check(going_on, origin)
    if place.leads:
        folders.start(folder, None if going_on else asked.model_dump(), ready.bad)
    batches = Batches(
        ready.inputs,
        torch.from_numpy(dataset.labels),
        dataset.split,
        settings.batch_size,
        settings.seed,
        ready.prepare,
        place.size,
    )
    classifier = make_classifier(settings, model, ready, batches)
    if compiled:
        classifier.network.compile()
    return Prepared(
        settings,
        folder,
        model,
        ready,
        batches,
        classifier,
        proof,
        device,
        precision,
        light,
        started,
        origin,
        going_on,
        place,
    )


def check_shares(batch_size: int, dataset: Dataset, place: Place) -> None:
    """Raise RequestError where a batch is too small for every process to get a part of it."""
    train, val = len(dataset.split["train"]), len(dataset.split["val"])
    for name, number in (
        ("batch_size", batch_size),
        ("training pictures", train),
        ("validation", val or 999),
    ):
        if number < place.size:
            raise RequestError(
                f"{name}={number}: expected at least {place.size}, one for each process (trainer.devices)"
            )


def find_data(settings: Settings, progress: Progress = sources.silent) -> Dataset:
    """The pictures and labels that the settings name; nothing is decoded yet.

    Raises:
        RequestError: they are not there, or not as the settings need them.
    """
    knobs = settings.data
    dataset = sources.load(
        knobs.source,
        knobs.root,
        knobs.val_fraction,
        knobs.test_fraction,
        memo(settings),
        progress,
        name=knobs.name,
        nested=knobs.nested,
        image_column=knobs.image_column,
        label_column=knobs.label_column,
    )
    if dataset.multi_label and settings.loss == "cross_entropy":
        raise RequestError("loss=cross_entropy: expected loss=bce, as pictures have several labels each")
    return dataset


def memo(settings: Settings) -> Path:
    """The file that remembers what is known of picture files."""
    return cache_dir(settings) / "digests.sqlite"


def cache_dir(settings: Settings) -> Path:
    """The folder of features and digests; `~` is the user's own."""
    return Path(os.path.expanduser(settings.cache_dir))


def make_model(settings: Settings, dataset: Dataset) -> Model:
    """The model that the settings describe, for the classes of a data set."""
    return assemble(
        settings.model,
        settings.weights,
        settings.freeze,
        settings.head,
        dataset.classes,
        seed=settings.seed,
        hidden=settings.head_hidden,
        dropout=settings.head_dropout,
        image_size=settings.data.image_size,
    )


def look_ahead(settings: Settings, dataset: Dataset, model: Model) -> Prospect:
    """Where the model splits and what would be kept of the pictures; nothing is decoded.

    Raises:
        RequestError: the device, the precision or the cache asked for is not to be had.
    """
    device = devices.accelerator(settings.trainer.accelerator)
    devices.precision(settings.precision, device)
    return foresee(model, dataset, **_kept(settings, device), device=device)


def _kept(settings: Settings, device: devices.Device) -> dict[str, Any]:
    """The knobs that decide what is kept, and whether the device multiplies bf16."""
    return {
        "augment": settings.data.augment,
        "cache": settings.cache,
        "cache_dir": cache_dir(settings),
        "cache_max_gb": settings.cache_max_gb,
        "precision": settings.precision,
        "compile": settings.compile,
        "bf16": devices.multiplies_bf16(device),
    }


def read_pictures(
    settings: Settings,
    dataset: Dataset,
    model: Model,
    device: devices.Device,
    console: Console,
    folder: Path | None = None,
) -> Ready:
    """Every picture, decoded once or as features of the frozen prefix.

    folder: gets the list of those that are broken, where they are too many for a line.

    Raises:
        RequestError: pictures are broken and `data.bad_images=error`, or too few are left.
    """
    ready = read(
        model,
        dataset,
        **_kept(settings, device),
        device=device,
        workers=settings.data.workers,
        seed=settings.seed,
        memo=memo(settings),
        progress=partial(terminal.progress, console),
        say=partial(terminal.say, console, "note"),
    )
    if ready.bad and settings.data.bad_images == "error":
        shown = "; ".join(f"{one.path} ({one.reason})" for one in ready.bad[:10])
        if folder is not None and len(ready.bad) > 10:
            folders.list_bad(folder, ready.bad)
            shown += f"; all are listed in {folder / 'skipped.csv'}"
        raise RequestError(
            f"data.bad_images=error: {len(ready.bad)} of {len(dataset.images)} pictures cannot be used:"
            f" {shown}; mend them, or data.bad_images=skip leaves them out"
        )
    if settings.patience is not None and not len(ready.dataset.split["val"]):
        raise RequestError(
            f"patience={settings.patience}: expected pictures to validate with; there are none"
            " (data.val_fraction)"
        )
    return ready


def make_classifier(settings: Settings, model: Model, ready: Ready, batches: Batches) -> Classifier:
    """The network with its loss, optimiser and schedule."""
    name, options, groups = optimizer_groups(settings, model)
    return Classifier(
        model.network,
        ready.network,
        model.frozen,
        make_loss(settings, batches.labels[batches.split["train"]], model.outputs),
        lambda: optim.build(name, groups, **options),
        make_schedule(settings, len(batches.train_dataloader())),
        ready.dataset.classes if ready.dataset.multi_label else (),
        make_class_weights(settings, batches.labels[batches.split["train"]], model.outputs),
    )


def make_schedule(settings: Settings, batches: int) -> optim.Schedule:
    """The schedule over epochs of so many batches."""
    steps_per_epoch = -(-batches // settings.trainer.accumulate_batches)
    return optim.schedule(
        settings.schedule,
        min(settings.epochs * steps_per_epoch, settings.max_steps or 2**62),
        steps_per_epoch,
        settings.warmup_epochs,
        settings.step_epochs,
        settings.step_gamma,
    )


def make_loss(settings: Settings, train_labels: Tensor, outputs: int) -> losses.Loss:
    """The loss; `class_weights=balanced` weighs it by the labels that are trained on."""
    weights = make_class_weights(settings, train_labels, outputs)
    return losses.build(settings.loss, settings.label_smoothing, weights)


def make_class_weights(settings: Settings, train_labels: Tensor, outputs: int) -> Tensor | None:
    """What each class weighs in the loss, (outputs,); None where all weigh the same."""
    balanced = settings.class_weights == "balanced"
    return losses.balanced_weights(train_labels, outputs) if balanced else None


def optimizer_groups(settings: Settings, model: Model) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The optimiser's name and options, and its groups of what trains."""
    options = settings.optimizer.model_dump()
    name, grouping = options.pop("name"), ("lr", "weight_decay", "backbone_lr_factor", "decay_norm_and_bias")
    groups = optim.groups(model.network, model.head, **{key: options.pop(key) for key in grouping})
    return name, options, groups
