"""What Lightning drives, built from the settings: a network with its loss, and how it learns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.choices.given import is_given
from finetune.choices.optimizers import LBFGS, SteppedSettings
from finetune.choices.schedules import Span
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.data.module import Batches
from finetune.errors import RequestError
from finetune.features.load import ModelInputs
from finetune.model.assemble import Model
from finetune.model.standardize import standardized_layers
from finetune.training.classifier import Classifier
from finetune.training.losses import balanced_weights, create_loss
from finetune.training.optim import create_schedule, parameter_groups
from finetune.training.solved import Choice, SolvedClassifier
from finetune.training.stacked import JobConfig

FOLDS = 5


def build_classifier(
    settings: Settings, model: Model, inputs: ModelInputs, batches: Batches, compiled: bool
) -> Classifier:
    """The network, compiled or not, with its loss, optimiser and schedule."""
    if compiled:
        inputs.network.compile()
    config = build_job_config(settings, model, batches.train_labels, len(batches.train_dataloader()))
    kind: Callable[..., Classifier] = Classifier
    if isinstance(settings.optimizer, LBFGS):
        (layer,) = standardized_layers(model.network).values()
        kind = partial(SolvedClassifier, layer=layer, choice=_choice(settings, inputs.dataset))
    return kind(
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
    options, groups = settings.optimizer.model_dump(), list[dict[str, Any]]()
    name = options.pop("name")
    if isinstance(settings.optimizer, SteppedSettings):
        groups = parameter_groups(model.network, model.head, settings.optimizer)
        options = {key: options[key] for key in options.keys() - SteppedSettings.model_fields.keys()}
    elif is_given(name):
        groups = [{"params": [p for p in model.network.parameters() if p.requires_grad]}]
    balanced = settings.class_weights == "balanced"
    return JobConfig(
        loss=settings.loss,
        optimizer=name,
        groups=groups,
        options=options,
        schedule=create_schedule(settings.schedule, span, settings.warmup_epochs),
        label_smoothing=settings.label_smoothing,
        class_weights=balanced_weights(train_labels, model.outputs) if balanced else None,
    )


def _choice(settings: Settings, dataset: Dataset) -> Choice:
    """How `optimizer=lbfgs` finds the strength of the penalty; raises RequestError of too few images."""
    optimizer, folds = settings.optimizer, None
    assert isinstance(optimizer, LBFGS)
    if optimizer.chooses_by == "cv" and not (folds := stratified_folds(dataset, settings.seed)):
        raise RequestError(
            "optimizer.select=cv: expected two different images of a class to train on, or a number for"
            " optimizer.weight_decay"
        )
    strength = None if optimizer.chooses_by else float(optimizer.weight_decay)
    return Choice(strength, folds, create_loss(settings.loss))


def stratified_folds(dataset: Dataset, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Five stratified folds of the training images, those of a unit in the same: rows to fit and to measure.

    None where no class has two different images.
    """
    from sklearn.model_selection import KFold, StratifiedKFold  # half a second that few runs need

    rows = dataset.split["train"]
    contents, first, content = np.unique(
        np.asarray(dataset.units or dataset.digests)[rows], return_index=True, return_inverse=True
    )
    number = min(FOLDS, len(contents))
    if number < 2:
        return []
    labels = dataset.labels[rows][first]
    kind = KFold if labels.ndim == 2 or np.bincount(labels).max() < number else StratifiedKFold
    with warnings.catch_warnings():  # of classes of fewer images than folds: they are in some folds only
        warnings.filterwarnings("ignore", "The least populated class")
        parts = list(kind(number, shuffle=True, random_state=seed).split(contents, labels))
    every, folds = dataset.labels[rows], []
    for _, part in parts:
        held = np.isin(content, part)
        # A class of which nothing is left to solve for says nothing of the strength.
        known = held if every.ndim == 2 else held & np.isin(every, every[~held])
        folds.append((torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(known))))
    return folds if any(len(held) for _, held in folds) else []
