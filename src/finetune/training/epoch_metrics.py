"""What the batches of an epoch add up to, for every job that trains."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.training import distributed, metrics
from finetune.training.several import several_labels


class EpochMetrics:
    """Losses and answers of an epoch's batches, kept on the device until their means are asked for.

    Every tensor has the jobs (J) as its first dimension. multi_label: an answer is all of an image's logits.
    processes: how many share each batch; `add` is given loss and weight of all of it, answers of a part.
    """

    def __init__(self, multi_label: bool = False, processes: int = 1) -> None:
        self.multi_label, self.processes = multi_label, processes
        self.losses: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.labels: list[Tensor] = []
        self._means: list[dict[str, float]] = []

    def add(self, losses: Tensor, weights: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: losses and their weights (J,), logits (J, B, outputs), labels (J, B) or vectors."""
        self.losses.append(losses.detach())
        self.weights.append(weights)
        if not self.multi_label:
            labels = labels if labels.ndim == 2 else labels.argmax(2)
        self.answers.append(logits.detach() if self.multi_label else logits.detach().argmax(2))
        self.labels.append(labels)
        self._means = []

    def means(self) -> list[dict[str, float]]:
        """Of each job: loss, accuracy and the like per image; a loss that is a sum, per batch."""
        if not self._means:
            # On the CPU: not every GPU has doubles.
            losses, weights = (torch.stack(each).cpu().double() for each in (self.losses, self.weights))
            measure = several_labels if self.multi_label else metrics.one_class
            means = (losses * weights).sum(0) / weights.sum(0)
            own = torch.cat(self.answers, 1).cpu(), torch.cat(self.labels, 1).cpu()
            every = zip(*distributed.gathered(own, self.processes), strict=True)
            answers, labels = (torch.cat(parts, 1) for parts in every)
            self._means = [
                {"loss": float(mean), **metrics.as_floats(measure(chosen, true, metrics.once(true)))}
                for mean, chosen, true in zip(means, answers, labels, strict=True)
            ]
        return self._means
