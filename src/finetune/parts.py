"""The parts of a training, each made from the settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune import private
from finetune.config.schema import Settings
from finetune.data import sources
from finetune.data.dataset import Dataset
from finetune.data.module import Batches
from finetune.data.sources import Progress
from finetune.errors import RequestError
from finetune.features.load import ModelInputs
from finetune.model.assemble import Model, ModelConfig, assemble
from finetune.training import losses, optim
from finetune.training.classifier import Classifier


def find_data(settings: Settings, progress: Progress = sources.silent) -> Dataset:
    """The pictures and labels that the settings name; nothing is decoded yet.

    Raises:
        RequestError: they are not there, or not as the settings need them.
    """
    knobs = settings.data
    dataset = sources.load_dataset(
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


def make_loss(settings: Settings, train_labels: Tensor, outputs: int) -> losses.Loss:
    """The loss; `class_weights=balanced` weighs it by the labels that are trained on."""
    weights = make_class_weights(settings, train_labels, outputs)
    return losses.build(settings.loss, settings.label_smoothing, weights)


def make_classifier(settings: Settings, model: Model, ready: ModelInputs, batches: Batches) -> Classifier:
    """The network with its loss, optimiser and schedule."""
    name, options, groups = optimizer_groups(settings, model)
    schedule = make_schedule(settings, len(batches.train_dataloader()))
    return Classifier(
        model.network,
        ready.network,
        model.frozen,
        make_loss(settings, batches.labels[batches.split["train"]], model.outputs),
        optimizer=lambda: (optim.build(name, groups, **options), schedule),
        labels=ready.dataset.classes if ready.dataset.multi_label else (),
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
