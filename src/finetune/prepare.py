"""From settings to all that a training needs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from finetune import resuming
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.data.digests import forget
from finetune.data.images import ChangedImage
from finetune.data.module import Batches
from finetune.data.reader import NAMED, refuse_bad_images
from finetune.errors import RequestError
from finetune.features.load import LoadSettings, ModelInputs, load_inputs
from finetune.features.plan import FeaturePlan, FeatureSettings, plan_features
from finetune.model.assemble import Model
from finetune.model.hashing import Proof
from finetune.parts import cache_dir, find_data, make_classifier, make_model, memo
from finetune.report import folder as folders
from finetune.report import terminal
from finetune.resuming import GoingOn
from finetune.say import progress, say
from finetune.training import device as devices
from finetune.training.classifier import Classifier
from finetune.training.distributed import ALONE, Place


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
    ready: ModelInputs
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
    dataset = find_data(settings, partial(progress, console))
    model = make_model(settings, dataset)
    dataset = dataset.numbered_as(going_on.origin["classes"] if going_on else model.classes)
    if dataset.multi_label and model.outputs != len(dataset.classes):
        raise RequestError(
            f"head={settings.head}: expected auto or {len(dataset.classes)}, one output for each label"
        )
    if not any(p.requires_grad for p in model.network.parameters()):
        raise RequestError(
            "freeze: nothing is left to train, so the loss carries no gradient; expected head=auto or a"
            " number of outputs for a new head, or a freeze that leaves something trainable"
        )
    origin = resuming.found(model, dataset)
    if going_on:
        resuming.check(going_on, origin)
    elif place.leads:
        folders.begin(folder, asked.model_dump())
    terminal.model_lines(console, model, settings.freeze, len(dataset.classes))
    for line in settings.idle():
        say(console, "note", line)
    ready = read_pictures(settings, dataset, model, console, folder if place.leads else None)
    dataset = ready.dataset
    check_shares(settings.batch_size, dataset, place)
    terminal.data_lines(console, dataset, ready.bad, model.preprocessing.crop_size, ready.plan.augment)
    terminal.balance_lines(console, dataset, settings.class_weights)
    terminal.feature_line(console, ready)
    compiled = devices.compiles(settings.compile, device, settings.epochs * len(dataset.split["train"]))
    light = ready.features is not None and ready.plan.suffix_macs * settings.batch_size < devices.LIGHT_MACS
    precision = devices.precision(
        "32" if light and settings.precision == "auto" else settings.precision, device
    )
    proof = Proof(model.network, model.frozen)
    origin |= resuming.asked(folder, asked, going_on)
    origin |= resuming.chosen(ready, proof.sha256, device, precision, compiled, place.size)
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


def look_ahead(settings: Settings, dataset: Dataset, model: Model) -> FeaturePlan:
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


def read_pictures(
    settings: Settings,
    dataset: Dataset,
    model: Model,
    console: Console,
    folder: Path | None,
) -> ModelInputs:
    """Every picture, decoded once or as features of the frozen prefix.

    folder: gets the list of those that are broken, where they are too many for a line.

    Raises:
        RequestError: pictures are broken and `data.bad_images=error`, or too few are left.
    """
    try:
        plan = look_ahead(settings, dataset, model)
        loading = LoadSettings(
            workers=settings.data.workers,
            seed=settings.seed,
            memo=memo(settings),
            progress=partial(progress, console),
            on_wait=partial(
                say, console, "note", "another run is computing the same features; waiting for it"
            ),
        )
        ready = load_inputs(plan, model, dataset, loading)
    except ChangedImage as error:
        if isinstance(error.image, Path):
            forget(error.image, memo(settings))
        raise
    for line in ready.notes:
        say(console, "note", line)
    if settings.data.bad_images == "error":
        if folder is not None and len(ready.bad) > NAMED:
            folders.list_bad(folder, ready.bad)
        listed = None if folder is None else folder / "skipped.csv"
        refuse_bad_images(ready.bad, len(dataset.images), listed)
    if settings.patience is not None and not len(ready.dataset.split["val"]):
        raise RequestError(
            f"patience={settings.patience}: expected pictures to validate with; there are none"
            " (data.val_fraction)"
        )
    return ready
