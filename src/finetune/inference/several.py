"""Measures where a picture may have several labels, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from finetune.training.metrics import per_label, several_labels


@dataclass(frozen=True)
class PerLabel:
    """One label, at a probability of 0.5; None where no picture has it."""

    name: str
    pictures: int
    f1: float | None
    average_precision: float | None


@dataclass(frozen=True)
class SeveralMeasures:
    """How good answers are, as `training.metrics.several_labels` has it.

    accuracy: the share of pictures whose labels are all right. log_loss: the mean over pictures and outputs.
    """

    pictures: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    map: float
    log_loss: float
    per_class: list[PerLabel]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def measure_several(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> SeveralMeasures:
    """Measure logits (N, outputs) against labels (N, classes) of 0 and 1."""
    logits, labels = logits[:, : len(classes)].double(), labels.double()
    found = per_label(logits, labels, classes)
    nothing = {"f1": None, "average_precision": None, "pictures": 0}
    rows = [PerLabel(name=name, **{**nothing, **found.get(name, {})}) for name in classes]  # type: ignore[arg-type]
    loss = float(F.binary_cross_entropy_with_logits(logits, labels))
    return SeveralMeasures(len(labels), **several_labels(logits, labels), log_loss=loss, per_class=rows)
