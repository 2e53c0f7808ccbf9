"""`finetune evaluate`: what a run's model is worth on pictures with labels, class by class and by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from finetune.data.images import BadImage
from finetune.data.sources import SPLITS, Dataset
from finetune.errors import RequestError, brief
from finetune.inference.forward import Predictor
from finetune.inference.metrics import Measures, measure
from finetune.inference.several import SeveralMeasures, measure_several


@dataclass(frozen=True)
class Chosen:
    """The pictures of a data set that a run is measured on.

    own: whether these are the data that the run was trained on, unchanged.
    labels: the run's own class indices (N,), matched by name, or vectors (N, classes) of 0 and 1.
    unknown: pictures of classes that the run does not know.
    """

    dataset: Dataset
    side: str
    own: bool
    rows: np.ndarray
    labels: np.ndarray
    unknown: dict[str, int]


@dataclass(frozen=True)
class Evaluation:
    """The measures, and the pictures that could not be read."""

    measures: Measures | SeveralMeasures
    broken: list[BadImage]


def choose(
    dataset: Dataset,
    trained_on: str | None,
    named_alike: bool,
    classes: tuple[str, ...],
    loss: str,
    side: str | None,
) -> Chosen:
    """The test split of the data that the run was trained on, all of any other, or the side asked for.

    trained_on: the fingerprint of the run's data. named_alike: whether the data are those that the run names,
    perhaps changed since: then most of them were trained on. classes, loss: the run's.

    Raises:
        RequestError: there is no such side, it is empty, or holds no picture of a class that the run knows.
    """
    several = dataset.multi_label and loss == "bce"
    if dataset.labels.ndim != 1 and not several:
        raise RequestError(
            f"data={dataset.name}: expected pictures of one class each for a run with loss={loss}, not label"
            " vectors"
        )
    if side not in (None, "all", *SPLITS):
        raise RequestError(f"--split={side}: expected {', '.join(SPLITS)} or all")
    own = dataset.fingerprint() == trained_on
    side = side or ("test" if own or named_alike else "all")
    rows = np.arange(len(dataset.images)) if side == "all" else dataset.split[side]
    if not len(rows):
        raise RequestError(f"--split={side}: expected pictures in it; {dataset.name} has none there")
    index = np.array([classes.index(name) if name in classes else -1 for name in dataset.classes])
    held = dataset.labels[rows]
    counts = held.sum(0) if several else np.bincount(held, minlength=len(index))
    unknown = {dataset.classes[i]: int(counts[i]) for i in np.flatnonzero((index < 0) & (counts > 0))}
    if not counts[index >= 0].any():
        raise RequestError(
            f"{dataset.name}: expected pictures of the run's classes ({brief(list(classes))}); the classes"
            f" there are {brief(list(dataset.classes))}"
        )
    if several:
        labels = np.zeros((len(rows), len(classes)), dtype=np.float32)
        labels[:, index[index >= 0]] = held[:, index >= 0]
    else:
        labels = index[held]
        rows, labels = rows[labels >= 0], labels[labels >= 0]
    return Chosen(dataset, side, own, rows, labels, unknown)


def evaluate(
    predictor: Predictor,
    chosen: Chosen,
    bad_images: str,
    loss: str,
    temperature: float,
    advance: Callable[[int], None],
) -> Evaluation:
    """Measure a model on the chosen pictures.

    Raises:
        RequestError: pictures cannot be read and `bad_images` is `error`, or none can.
    """
    logits, labels, broken = [], [], []
    pictures = (chosen.dataset.images[row] for row in chosen.rows)
    numbered = iter(zip(chosen.rows.tolist(), chosen.labels.tolist(), strict=True))
    for answers in predictor(pictures):
        for answer, (row, label) in zip(answers, numbered, strict=False):
            if answer.logits is None:
                broken.append(BadImage(row, str(answer.picture), answer.reason))
            else:
                logits.append(answer.logits)
                labels.append(label)
        advance(len(answers))
    if broken and bad_images == "error":
        shown = brief([f"{one.path} ({one.reason})" for one in broken])
        raise RequestError(
            f"data.bad_images=error: {len(broken)} of {len(chosen.rows)} pictures cannot be used: {shown};"
            " data.bad_images=skip leaves them out"
        )
    if not logits:
        raise RequestError(f"{chosen.dataset.name}: expected pictures that can be read; {broken[0].reason}")
    found, true, classes = torch.stack(logits), torch.tensor(labels), predictor.saved.classes
    if true.ndim == 2:
        return Evaluation(measure_several(found, true, classes), broken)
    return Evaluation(measure(found, true, classes, loss, temperature), broken)
