"""How familiar an image is to a run, beside known images held out, and what else `predict` says of it.

Two things speak for it: how near what the head reads lies to that of a training image (Sun et al. 2022,
"Out-of-Distribution Detection with Deep Nearest Neighbors"), and how sure the answer is. Roots are taken
before features are normalised, so that no large one decides alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize

from finetune.atomic import write_atomically
from finetune.errors import RequestError
from finetune.evaluation.calibration import temperature_of
from finetune.evaluation.embeddings import head_inputs
from finetune.evaluation.forward import Answer, Predictor
from finetune.features.load import ModelInputs
from finetune.report.predictions import FILE, Prediction, name_of, read_predictions
from finetune.runs.folder import REFERENCE, check_tables
from finetune.runs.open import Saved
from finetune.say import Screen, say
from finetune.training.metrics import probabilities

MOST = 2000  # training images that are kept, and images held out that are compared with them


@dataclass(frozen=True)
class Reference:
    """Training images of a run: directions (M, D), names and classes.

    weights: of the similarity to the nearest of them and of the largest probability, in an image's score.
    known: the scores of the images held out, ascending (H,).
    """

    features: Tensor
    names: list[str]
    labels: list[str]
    weights: Tensor
    known: Tensor

    def familiar(self, similarity: Tensor, probability: Tensor) -> float:
        """The share of images held out that are less familiar than one with these."""
        score = torch.stack([similarity.double(), probability]) @ self.weights
        return int(torch.searchsorted(self.known, score)) / len(self.known)


def directions(values: Tensor) -> Tensor:
    """Head inputs (N, D), as they are compared."""
    return normalize(values.sign() * values.abs().sqrt())


def write_reference(
    folder: Path, inputs: ModelInputs, head: str, device: str
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Keep what the head reads of some training images, and how near to them validation images are.

    Without validation images each is compared with those of other folds, or of other groups.
    Returns: what it reads (N, D), the logits, and of which images of the data set (N,).
    """
    data, (train, val) = inputs.dataset, (inputs.dataset.split[side] for side in ("train", "val"))
    places, held = _drawn(data.labels[train]), _drawn(data.labels[val])
    rows = train[places]
    both = np.concatenate([rows, val[held]])
    values, logits = head_inputs(inputs, head, torch.from_numpy(both), device)
    known, others = directions(values).split([len(rows), len(held)])
    similar = others @ normalize(known.half().float()).T
    if not len(held):
        part = np.asarray(data.units or data.digests if data.folds is None else data.folds)[rows]
        similar, held = (known @ known.T).masked_fill(torch.from_numpy(part[:, None] == part), -1), places
    tensors = {"features": known.half(), "held_out": torch.from_numpy(held), "similar": similar.amax(1)}
    labels = [data.classes[one] for one in data.labels[rows]] if data.labels.ndim == 1 else [""] * len(rows)
    names = [name_of(data.images[row], int(row)) for row in rows]
    content = save(tensors, {"names": json.dumps(names), "labels": json.dumps(labels)})
    write_atomically(folder / REFERENCE, content)
    return values, logits, both


def _drawn(labels: np.ndarray) -> np.ndarray:
    """The places of at most 2,000 labels, evenly from each class in its order."""
    order = np.argsort(labels if labels.ndim == 1 else np.arange(len(labels)), kind="stable")
    return order[np.linspace(0, len(order) - 1, min(len(order), MOST)).astype(int)]


def read_reference(saved: Saved) -> Reference | None:
    """What a run has kept; None where an older version has not. RequestError: it has been changed."""
    if not _kept(saved, REFERENCE):
        return None
    tensors, answers = load_file(saved.folder / REFERENCE), held_out(saved)
    with safe_open(saved.folder / REFERENCE, "pt") as opened:
        names, labels = (json.loads(opened.metadata()[key]) for key in ("names", "labels"))
    held = tensors["held_out"].tolist() if answers else []
    largest = [answers[row].probability for row in held] or [0.0] * len(tensors["similar"])
    both = torch.stack([tensors["similar"].double(), torch.tensor(largest).double()], 1)
    weights = both.any(0) / both.std(0, correction=0).clamp(min=1e-3)
    features, known = normalize(tensors["features"].float()), (both @ weights).sort().values
    return Reference(features, names, labels, weights=weights, known=known)


def held_out(saved: Saved) -> list[Prediction]:
    """What a run answered for its validation images, or out of folds; RequestError: it has been changed."""
    answers = read_predictions(saved.folder) if _kept(saved, FILE) else []
    return [one for one in answers if one.split == "val" or one.fold]


def _kept(saved: Saved, name: str) -> bool:
    """Whether a run has such a file; RequestError where it has been changed."""
    files = (saved.summary or {}).get("files", {})
    if name not in files or not (saved.folder / name).exists():
        return False
    check_tables(saved.folder, {name: files[name]})
    return True


class Details:
    """How familiar an image is, its nearest training images, and a set that holds its class so often.

    Sets are those of split conformal prediction by a threshold (Sadinle et al. 2019), the smallest there are.
    neighbours: how many. reject: what is less familiar is none of the classes. coverage: how often.
    RequestError: something was asked for that the run has not kept enough for.
    """

    def __init__(
        self,
        predictor: Predictor,
        neighbours: int = 0,
        reject: float | None = None,
        coverage: float | None = None,
    ) -> None:
        self.predictor, self.reject, saved = predictor, reject or 0.0, predictor.saved
        self.reference, self.neighbours = None, neighbours
        try:
            self.reference = read_reference(saved)
        except RequestError as changed:
            if neighbours or reject is not None or coverage is not None:
                raise
            say(Screen(stderr=True), "note", f"without `familiar`: {changed}")
        self.least: float | None = None
        self.columns = ["labels"] if predictor.thresholds else []
        if self.reference is None and (neighbours or reject is not None):
            told = f"expected a run with {REFERENCE}, which older ones lack; {saved.folder} has none"
            raise RequestError(f"--{'neighbours' if neighbours else 'reject'}: {told}")
        if self.reference:
            self.columns.append("familiar")
            self.neighbours = min(neighbours, len(self.reference.names))
            if reject is not None:
                _place(f"--reject={reject:g}", reject, len(self.reference.known))
        if coverage is not None:
            kept = sorted(one.of_label for one in held_out(saved) if one.of_label is not None)
            place = _place(f"--coverage={coverage:g}", 1 - coverage, len(kept))
            self.least = kept[place - 1] - 1e-6  # they are kept with six digits
            self.columns.append("set")
        self.columns += numbered(("neighbour", "neighbour_class", "similarity"), self.neighbours)

    def __call__(self, answer: Answer) -> dict[str, Any]:
        """Of an image, in the order of the columns; nothing where it cannot be read."""
        found: dict[str, Any] = {}
        if answer.logits is None or answer.features is None:
            return found
        if thresholds := self.predictor.thresholds:
            each = self.predictor.probabilities(answer.logits[None])[0].tolist()
            above = zip(thresholds.items(), each, strict=False)
            found["labels"] = [name for (name, least), value in above if value > least]
        saved, reference = self.predictor.saved, self.reference
        temperature = temperature_of(saved.summary)
        values = probabilities(answer.logits[None], self.predictor.softmax, temperature)[0]
        if reference:
            similar = reference.features @ directions(answer.features[None])[0]
            found["familiar"] = round(reference.familiar(similar.amax(), values.amax()), 6)
        if self.least is not None:
            order = values.argsort(descending=True)[: max(1, int((values >= self.least).sum()))]
            found["set"] = [saved.names[place] for place in order]
        if reference and self.neighbours:
            nearest = zip(*(one.tolist() for one in similar.topk(self.neighbours)), strict=True)
            found["neighbours"] = [
                {"path": reference.names[row], "class": reference.labels[row], "similarity": round(value, 6)}
                for value, row in nearest
            ]
        return found


def numbered(names: Sequence[str], count: int) -> list[str]:
    """Columns of so many: `class`, `class_2`, …"""
    return [f"{name}{f'_{number}' * (number > 1)}" for number in range(1, count + 1) for name in names]


def cells_of(found: dict[str, Any]) -> list[str]:
    """What was found of an image, as a table has it."""
    nearest = [cell for one in found.get("neighbours", ()) for cell in one.values()]
    values = [value for name, value in found.items() if name != "neighbours"]
    return ["|".join(one) if isinstance(one, list) else str(one) for one in [*values, *nearest]]


def _place(option: str, share: float, number: int) -> int:
    """How many of so many images held out, and the next, are at most this share; RequestError: none is."""
    if not 0 < share < 1:
        raise RequestError(f"{option}: expected a number between 0 and 1")
    if not (place := math.floor((number + 1) * share + 1e-9)):
        told = f"expected a run with answers to {math.ceil(1 / share - 1e-9) - 1} or more images held out"
        raise RequestError(f"{option}: {told}, of one class each; this one has {number}")
    return place
