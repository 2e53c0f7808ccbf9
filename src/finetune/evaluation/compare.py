"""`finetune compare`: which backbone, by one pass of each over the images and a head solved on features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError  # type: ignore[import-untyped]

from finetune.build import find_data, make_model
from finetune.config.compose import compose
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.errors import RequestError, counted
from finetune.evaluation.embeddings import embed
from finetune.evaluation.findings import held_out_answers
from finetune.learners import stratified_folds
from finetune.model.assemble import Model
from finetune.model.parameters import count_parameters
from finetune.model.standardize import statistics
from finetune.report.terminal import balance_lines
from finetune.say import Screen, columns, say
from finetune.training.intervals import of_share, told_apart

TITLES = ("model", "accuracy", "95 % interval", "images/s", "parameters", "MB")
WANTED = "models: expected a list of them, as 'models=[resnet18,efficientnet_b0]'"


class Compared(NamedTuple):
    """A model's answers: which of the images that were held out it has right (M,), and what it costs.

    groups: of these images. speed: images a second for features, None where all were stored. size: in MB.
    """

    name: str
    right: np.ndarray
    groups: np.ndarray | None
    speed: float | None
    parameters: int
    size: float


def compare_models(given: Sequence[str]) -> None:
    """Measure frozen models by cross-validation on the images that overrides name but those of test.

    given: `models=[…]`, and overrides. RequestError where the models are no list, or one cannot be had.
    """
    listed = [one for one in given if one.startswith("models=")]
    names = None
    with suppress(YAMLError, OmegaConfBaseException):
        names = OmegaConf.from_dotlist(listed).get("models")
    if not (OmegaConf.is_list(names) and names and all(isinstance(name, str) for name in names)):
        raise RequestError(WANTED)
    overrides, console = [one for one in given if one not in listed], Screen()
    each = [compose([*overrides, f"model={name}"]).model_copy(update={"freeze": ["all"]}) for name in names]
    data = find_data(each[0].model_copy(update={"loss": "bce"}))  # which takes several labels, to say so
    if data.labels.ndim != 1:
        raise RequestError(f"data={data.name}: expected images of one class each, not of several labels")
    data = data.without(data.split["test"].tolist()).whole()  # test images are for the model that is chosen
    models = [make_model(settings, data) for settings in each]  # before minutes are spent on any
    say(console, "data", f"{data.name}: {len(data.images):,} images of {counted(len(data.classes), 'class')}")
    balance_lines(console, data, each[0].class_weights)
    found = [_measure(one, settings, data, console) for one, settings in zip(models, each, strict=True)]
    _show(sorted(found, key=lambda one: -one.right.mean()), console)


def _measure(model: Model, settings: Settings, data: Dataset, console: Console) -> Compared:
    say(console, "model", f"{model.name}, weights: {model.weights.used}")
    found = embed(model, settings, data, console)
    mean, scale = statistics([found.values])
    if not (folds := stratified_folds(found.dataset, settings.seed)):
        raise RequestError(f"{data.name}: expected two different images of a class or more")
    rows, logits = held_out_answers(found.dataset, ((found.values - mean) * scale).float(), folds)
    timing, tensors = found.features, model.network.state_dict().values()
    return Compared(
        model.name,
        right=(logits.argmax(1).numpy() == found.dataset.labels[rows]).astype(float),
        groups=found.dataset.together(rows),
        speed=timing["computed"] / timing["seconds"] if timing and timing["computed"] else None,
        parameters=count_parameters(model.network)["total"],
        size=sum(tensor.nbytes for tensor in tensors) / 1e6,
    )


def _show(ranked: Sequence[Compared], console: Console) -> None:
    """A line each, the best first; = for those that cannot be told from it on the same images."""
    table = columns("", *TITLES, numbers=TITLES[1:])
    for place, one in enumerate(ranked):
        share = float(one.right.mean())
        interval = "{:.3f} to {:.3f}".format(*of_share(one.right, one.groups))
        mark = "=" if place and not told_apart(ranked[0].right, one.right, one.groups) else ""
        speed = "stored" if one.speed is None else f"{one.speed:.0f}"
        numbers = (f"{share:.3f}", interval, speed, f"{one.parameters:,}", f"{one.size:.0f}")
        table.add_row(mark, one.name, *numbers)
    console.print()
    console.print(table)
    say(console, "best", f"model={ranked[0].name}, head solved: optimizer=lbfgs refit=true")
