"""`finetune evaluate`: what a run's model is worth on labelled images, class by class and by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from finetune.atomic import read_json
from finetune.choices.losses import LOSSES
from finetune.data.images import BadImage
from finetune.data.reader import refuse_bad_images
from finetune.data.sources import SPLITS, Dataset
from finetune.errors import RequestError, brief
from finetune.evaluation.forward import Answer, Predictor
from finetune.runs.open import SEEN, Saved
from finetune.training.several import measure

PARTS = {"train": "trained on", "val": "chosen by", "other": "not seen"}


@dataclass(frozen=True)
class Chosen:
    """The images of a data set that a run is measured on.

    split: its name, or `all`. own: whether these are the data that the run was trained on, unchanged.
    labels: the run's own class indices (N,), matched by name, or vectors (N, classes) of 0 and 1.
    unknown: how many images there are of each class that the run does not know.
    parts: what the run has done with each image (N,): a key of PARTS; None where that is not known.
    """

    dataset: Dataset
    split: str
    own: bool
    rows: np.ndarray
    labels: np.ndarray
    unknown: dict[str, int]
    parts: np.ndarray | None = None


@dataclass(frozen=True)
class Evaluation:
    """What `training.several.measure` gives, of each part, too, and the images that could not be read."""

    measures: dict[str, Any]
    broken: list[BadImage]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def without_images(self) -> list[str]:
        return [row["name"] for row in self.measures["per_class"] if not row["pictures"]]


def choose_images(dataset: Dataset, saved: Saved, split: str | None, named_alike: bool) -> Chosen:
    """The test split of the data that the run was trained on, all of any other, or the split asked for.

    named_alike: whether the run names these data, perhaps changed since: then it was trained on most of them.
    RequestError: no such split, an empty one, or one without images of the run's classes.
    """
    several = dataset.multi_label and not LOSSES[saved.settings.loss].softmax
    if dataset.labels.ndim != 1 and not several:
        raise RequestError(
            f"data={dataset.name}: expected images of one class each for a run with"
            f" loss={saved.settings.loss}, not label vectors"
        )
    if split not in (None, "all", *SPLITS):
        raise RequestError(f"--split={split}: expected {', '.join(SPLITS)} or all")
    own = dataset.fingerprint() == saved.trained_on
    split = split or ("test" if own or named_alike else "all")
    rows = np.arange(len(dataset.images)) if split == "all" else dataset.split[split]
    if not len(rows):
        told = (
            ", as the run was tested in folds, by other models than this" if dataset.folds is not None else ""
        )
        raise RequestError(f"--split={split}: expected images in it; {dataset.name} has none there{told}")
    labels, known, unknown = _by_name(dataset, saved.classes, rows)
    if not known.any():
        raise RequestError(
            f"{dataset.name}: expected images of the run's classes ({brief(list(saved.classes))}); the"
            f" classes there are {brief(list(dataset.classes))}"
        )
    rows, parts = rows[known], _learned(dataset, saved, own)
    parts = parts if parts is None else parts[rows]
    return Chosen(dataset, split, own, rows=rows, labels=labels[known], unknown=unknown, parts=parts)


def _learned(dataset: Dataset, saved: Saved, same: bool) -> np.ndarray | None:
    """What the run has done with each image (N,), by the digests it keeps; an older one's by the split."""
    digests, parts = np.array([one[:16] for one in dataset.digests]), np.full(len(dataset.digests), "other")
    refitted = bool((saved.summary or {}).get("refit"))
    kept = saved.folder / SEEN
    if not (kept.exists() or same):
        return None
    told = read_json(kept, "the images of a run") if kept.exists() else {}
    for side in ("val", "train"):  # what is on both has been trained on
        own = str(told.get(side)).split() if told else digests[dataset.split[side]]
        parts[np.isin(digests, own)] = "train" if refitted else side
    return parts


def _by_name(
    dataset: Dataset, classes: tuple[str, ...], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Labels by the run's numbers, which rows can be measured, and how many images each other class has."""
    index = np.array([classes.index(name) if name in classes else -1 for name in dataset.classes])
    held = dataset.labels[rows]
    several = held.ndim == 2
    counts = held.sum(0) if several else np.bincount(held, minlength=len(index))
    unknown = {dataset.classes[i]: int(counts[i]) for i in np.flatnonzero((index < 0) & (counts > 0))}
    if not several:
        return index[held], index[held] >= 0, unknown
    labels = np.zeros((len(rows), len(classes)), dtype=np.float32)
    labels[:, index[index >= 0]] = held[:, index >= 0]
    return labels, np.full(len(rows), labels.any()), unknown


def evaluate_images(
    predictor: Predictor, chosen: Chosen, bad_images: str, advance: Callable[[int], None]
) -> Evaluation:
    """Measure a model on the chosen images; RequestError for broken ones that `bad_images` does not allow."""
    answers: list[Answer] = []
    for some in predictor(chosen.dataset.images[row] for row in chosen.rows):
        answers += [replace(one, features=None) for one in some]  # they may be many
        advance(len(some))
    kept = [place for place, one in enumerate(answers) if one.logits is not None]
    broken = [
        BadImage(int(row), str(one.image), one.reason)
        for row, one in zip(chosen.rows, answers, strict=True)
        if one.logits is None
    ]
    if bad_images == "error":
        refuse_bad_images(broken, len(chosen.rows))
    if not kept:
        raise RequestError(f"{chosen.dataset.name}: expected images that can be read; {broken[0].reason}")
    found = torch.stack([one.logits for one in answers if one.logits is not None])
    true, names, how = torch.from_numpy(chosen.labels[kept]), predictor.saved.classes, predictor.how
    parts = np.full(len(chosen.rows), "other") if chosen.parts is None else chosen.parts
    rows, read, data = {part: parts[kept] == part for part in PARTS}, chosen.rows[kept], chosen.dataset
    apart = {
        part: measure(found[own], true[own], names, groups=data.together(read[own]), **how)
        for part, own in rows.items()
        if 0 < own.sum() < len(own)
    }
    return Evaluation(measure(found, true, names, groups=data.together(read), **how), broken, apart)
