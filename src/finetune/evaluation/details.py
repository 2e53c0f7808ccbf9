"""What `predict` says of an image beside its likeliest classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from finetune.errors import RequestError
from finetune.evaluation.calibration import temperature_of
from finetune.evaluation.familiar import REFERENCE, directions, held_out, read_reference
from finetune.evaluation.forward import Answer, Predictor
from finetune.training.metrics import probabilities


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
        self.reference, self.neighbours = read_reference(saved), neighbours
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
        if answer.logits is None:
            return found
        if self.predictor.thresholds:
            found["labels"] = self.predictor.labels_of(answer)
        if answer.features is None:
            return found
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
