"""`finetune evaluate`: what a run's model is worth on pictures with labels, class by class and by name."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.images import BadImage
from finetune.data.sources import SPLITS, Dataset
from finetune.errors import RequestError, brief
from finetune.inference.forward import Predictor
from finetune.inference.metrics import Measures, measure


@dataclass(frozen=True)
class Chosen:
    """The pictures of a data set that a run is measured on.

    own: whether these are the data that the run was trained on, unchanged.
    labels: the run's own class indices, matched by name. unknown: pictures of classes it does not know.
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

    measures: Measures
    broken: list[BadImage]


def choose(
    dataset: Dataset, folder: Path, summary: dict[str, Any] | None, classes: tuple[str, ...], side: str | None
) -> Chosen:
    """The test split of the data that the run was trained on, all of any other, or the side asked for.

    folder, summary, classes: the run's.

    Raises:
        RequestError: there is no such side, it is empty, or holds no picture of a class that the run knows.
    """
    if dataset.labels.ndim != 1:
        raise RequestError(f"data={dataset.name}: expected pictures of one class each, not label vectors")
    if side not in (None, "all", *SPLITS):
        raise RequestError(f"--split={side}: expected {', '.join(SPLITS)} or all")
    own = _as_trained(dataset, folder).fingerprint() == ((summary or {}).get("data") or {}).get("fingerprint")
    side = side or ("test" if own else "all")
    rows = np.arange(len(dataset.images)) if side == "all" else dataset.split[side]
    if not len(rows):
        raise RequestError(f"--split={side}: expected pictures in it; {dataset.name} has none there")
    index = np.array([classes.index(name) if name in classes else -1 for name in dataset.classes])
    labels = index[dataset.labels[rows]]
    strange, counts = np.unique(dataset.labels[rows][labels < 0], return_counts=True)
    unknown = {dataset.classes[label]: int(count) for label, count in zip(strange, counts, strict=True)}
    if not (labels >= 0).any():
        raise RequestError(
            f"{dataset.name}: expected pictures of the run's classes ({brief(list(classes))}); the classes"
            f" there are {brief(list(dataset.classes))}"
        )
    return Chosen(dataset, side, own, rows[labels >= 0], labels[labels >= 0], unknown)


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
    measures = measure(torch.stack(logits), torch.tensor(labels), predictor.saved.classes, loss, temperature)
    return Evaluation(measures, broken)


def _as_trained(dataset: Dataset, folder: Path) -> Dataset:
    """The data without the pictures that the run left out."""
    skipped = folder / "skipped.csv"
    if not skipped.exists():
        return dataset
    with skipped.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        left_out = {row["path"] for row in csv.DictReader(file)}
    bad = [index for index, picture in enumerate(dataset.images) if str(picture) in left_out]
    return dataset.without(bad) if bad else dataset
