"""What training demands that only the model and the data can tell."""

from __future__ import annotations

from pathlib import Path

from rich.filesize import decimal

from finetune.choices.fields import names_where
from finetune.choices.losses import LOSSES
from finetune.choices.optimizers import LBFGS
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.data.reader import NAMED, refuse_bad_images
from finetune.errors import RequestError, brief
from finetune.features.load import ModelInputs
from finetune.features.plan import FeaturePlan
from finetune.machine import ram
from finetune.model.assemble import Model
from finetune.model.standardize import direct_layer
from finetune.runs import folder as folders

# How many times the features optimizer=lbfgs holds: the folds' in float32, all of them in float64.
SOLVING = 7


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


def refuse_labels(settings: Settings, dataset: Dataset) -> None:
    """Raise RequestError where the loss takes no labels of the data's kind."""
    labels, entry = dataset.labels, LOSSES[settings.loss]
    if dataset.multi_label and not entry.several_labels:
        fit, why = names_where(LOSSES, lambda entry: not entry.softmax), "images have several labels each"
        if (labels.sum(1) == 1).all():
            why = "labels are vectors of 0 and 1; or class numbers, which labels.argmax(1) gives"
        raise RequestError(f"loss={settings.loss}: expected loss={fit}, as {why}")
    if labels.ndim == 2 and entry.convex:  # a user's loss may be one for numbers
        outside = labels[(labels < 0) | (labels > 1)]
        if outside.size or (entry.softmax and labels.shape[1] < 2):
            wrong = f"not {outside[0]:g}" if outside.size else "not one fraction each"
            wanted = "expected labels that are class numbers, or vectors of 0 to 1"
            raise RequestError(f"loss={settings.loss}: {wanted}, {wrong}")


def refuse_validating(settings: Settings) -> None:
    """Raise RequestError where a setting needs images to validate with."""
    chooses = isinstance(settings.optimizer, LBFGS) and settings.optimizer.chooses_by == "val"
    for needs, setting in (
        (settings.patience is not None, f"patience={settings.patience}"),
        (settings.refit, "refit=true"),
        (chooses, "optimizer.select=val"),
    ):
        if needs:
            raise RequestError(
                f"{setting}: expected images to validate with; there are none (data.val_fraction)"
            )


def refuse_unsolvable(settings: Settings, model: Model, plan: FeaturePlan) -> None:
    """Raise RequestError unless a linear layer on features, which memory holds, is all that trains."""
    layer = plan.split and direct_layer(plan.split)
    trained = [name for name, p in model.network.named_parameters() if p.requires_grad]
    others = [name for name in trained if name.rpartition(".")[0] != layer]
    if others or plan.where == "none":
        why = f"{brief(others, 3)} would train, too"
        if plan.split is None or not others:
            why = f"there are no features: {plan.why}"
        elif len(layers := {name.rpartition(".")[0] for name in trained}) == 1:
            why = f"{layers.pop()} has no bias that trains with it, or is not alone to read them"
        raise RequestError(
            f"optimizer={settings.optimizer.name}: expected a linear layer on constant features as all that"
            f" trains; {why}"
        )
    row_bytes = sum(one.size for one in plan.split.crossings) if plan.split else 0  # in float32
    if (size := SOLVING * row_bytes * plan.images * len(plan.views)) > ram():
        raise RequestError(
            f"optimizer={settings.optimizer.name}: expected {decimal(size)} of memory, {SOLVING} times the"
            f" features, as it solves for all at once; there are {decimal(ram())}, and optimizer=sgd can do"
            " with less"
        )


def refuse_broken(settings: Settings, inputs: ModelInputs, dataset: Dataset, folder: Path | None) -> None:
    """Raise RequestError for broken images unless they may be skipped; folder: gets the list of many."""
    listed = folder / "skipped.csv" if folder else None
    if folder and len(inputs.bad) > NAMED:
        folders.list_bad(folder, inputs.bad)
    if settings.data.bad_images == "error":
        refuse_bad_images(inputs.bad, len(dataset.images), listed)


def refuse_folds(settings: Settings, dataset: Dataset) -> None:
    """Raise RequestError where a fold has no images, or none to validate with that a setting needs."""
    for fold in range(settings.data.folds or 0) if settings.folded else ():
        split = dataset.in_fold(fold, settings.data.val_fraction).split
        if not len(split["test"]):
            raise RequestError(f"data.folds: expected fewer, or more images, as fold {fold} has none")
        if not len(split["val"]):
            refuse_validating(settings)
