"""How familiar an image is to a run, beside known images that were held out.

Two things speak for it: how near what the head reads lies to that of a training image (Sun et al. 2022,
"Out-of-Distribution Detection with Deep Nearest Neighbors"), and how sure the answer is. Roots are taken
before features are normalised, so that no large one decides alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize

from finetune.atomic import write_atomically
from finetune.evaluation.embeddings import head_inputs
from finetune.features.load import ModelInputs
from finetune.report.predictions import FILE, Prediction, name_of, read_predictions
from finetune.runs.folder import REFERENCE, check_tables
from finetune.runs.open import Saved

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


def write_reference(folder: Path, inputs: ModelInputs, head: str, device: str) -> tuple[Tensor, np.ndarray]:
    """Keep what the head reads of some training images, and how near to them validation images are.

    Without validation images each is compared with those of other folds, or of other groups.
    Returns: what it reads (N, D), and of which images of the data set (N,).
    """
    data, (train, val) = inputs.dataset, (inputs.dataset.split[side] for side in ("train", "val"))
    places, held = _drawn(data.labels[train]), _drawn(data.labels[val])
    rows = train[places]
    both = np.concatenate([rows, val[held]])
    values = head_inputs(inputs, head, torch.from_numpy(both), device)
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
    return values, both


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
