"""The LightningModule of a linear head that is solved, by manual optimisation, in one epoch of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune import signals
from finetune.data.module import Batch
from finetune.model.standardize import StandardizedLinear
from finetune.training.classifier import Classifier
from finetune.training.learner import CurvePoint, EpochMetrics
from finetune.training.losses import Loss
from finetune.training.solve import SOLVED, Folds, Head, Point, Problem, curvature, follow_path, lbfgs

ROUNDS = 2000  # iterations at most


@dataclass(frozen=True)
class Choice:
    """The strength, or folds of the training images to choose it on; neither: the validation images."""

    strength: float | None
    folds: Folds | None
    log_loss: Loss


class SolvedClassifier(Classifier):
    """Solves for the one layer that trains, on all training images at once; when stopped, it begins again.

    points: the path, from the strongest on; none where the strength was given. gradient: its largest entry.
    """

    points: Sequence[Point] = ()

    def __init__(self, *parts: Any, layer: StandardizedLinear, choice: Choice, **others: Any) -> None:
        super().__init__(*parts, **others)
        self.automatic_optimization = False
        self.layer, self.choice = (layer,), choice  # in a tuple: it is the model's own
        self.iterations: list[dict[str, float]] = []
        self.gradient = 0.0

    def configure_optimizers(self) -> Any:
        batch, _ = self._all_views()
        train = self._examples(batch)
        self.head = Head(train.features, train.outputs, torch.float64)
        return lbfgs(self.head.values, 0, 1)

    @property
    def where(self) -> torch.device:
        """The device to solve on: the CPU where the other has no float64."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def rates(self) -> list[dict[str, float]]:
        return [{}]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        (layer,) = self.layer
        batch, views = self._all_views()  # the one given is shuffled
        train = self._examples(batch)
        val = [self._examples(one) for one in self.trainer.datamodule.val_dataloader()]  # type: ignore[attr-defined]
        if self.choice.strength is None:
            self._choose(train, val, views)
        self._solve(train, val, self.strength)
        with torch.no_grad():
            for value, solved in zip((layer.weight, layer.bias), self.head.found(), strict=True):
                value.copy_(solved)
        measured = self._step("train", batch)
        self.check_finite("the loss", measured.losses)
        return measured.backward.detach()

    def _all_views(self) -> tuple[Batch, int]:
        """The training images in their order, as folds number them, in each view that is cached; how many."""
        examples = self.trainer.datamodule.examples  # type: ignore[attr-defined]
        rows = torch.from_numpy(examples.split["train"])
        views = [view(rows) for view in (examples.inputs.plain, examples.inputs.mirrored) if view]
        labels = torch.cat([examples.labels[rows]] * len(views))
        return (torch.cat(views).to(self.device), labels.to(self.device)), len(views)

    @property
    def held_out(self) -> tuple[Tensor, Tensor] | None:
        """Rows of the training images, and what was answered for them when they were not solved for."""
        if not self.points or self.choice.folds is None:
            return None
        return torch.cat([held for _, held in self.choice.folds]), self.chosen.logits

    @property
    def strength(self) -> float:
        """The one given, or that of the lowest log-loss on the path."""
        return self.chosen.strength if self.points else self.choice.strength or 0.0

    @property
    def chosen(self) -> Point:
        return min(self.points, key=lambda point: point.log_loss)

    def _examples(self, batch: Batch) -> Problem:
        (layer,) = self.layer
        inputs, labels = batch
        assert isinstance(inputs, Tensor)
        features = (inputs.to(layer.mean) - layer.mean) * layer.scale
        return Problem(features.to(self.where), labels.to(self.where), self.loss, layer.out_features)

    def _choose(self, train: Problem, val: Sequence[Problem], views: int) -> None:
        """Try each strength and begin with what was found for the best; so many views follow each other."""
        examples, folds = train, self.choice.folds
        if folds is not None:
            images = len(train.labels) // views
            starts = range(0, images * views, images)
            folds = [(torch.cat([rows + start for start in starts]), held) for rows, held in folds]
        else:
            parts = [train, *val]
            sizes = [len(part.labels) for part in parts]
            rows = torch.arange(sum(sizes))
            folds = [(rows[: sizes[0]], rows[sizes[0] :])]
            both = (torch.cat([part.features for part in parts]), torch.cat([part.labels for part in parts]))
            examples = Problem(*both, self.loss, train.outputs)
        self.points = list(follow_path(examples, folds, self.choice.log_loss))

    def _solve(self, train: Problem, val: Sequence[Problem], strength: float) -> None:
        """Solve for all training images in float64, a point of the curves for each iteration."""
        optimizer: Any = self.optimizers()
        head = self.head
        if self.points:
            head.place(self.chosen.weight, self.chosen.bias)
        with torch.no_grad():
            head.suit(strength, curvature(train, head.logits_and_squares()[0]))
        known: list[Tensor] = []  # the value, and where it and the gradient are known from

        def closure() -> Tensor:
            if known and all(map(torch.equal, known[1:], head.values)):
                return known[0]  # an iteration begins where the line search of the one before ended
            signals.check()
            optimizer.zero_grad()
            logits, squares = head.logits_and_squares()
            value = self.loss(logits, train.labels)[0] + strength / 2 * squares
            self.manual_backward(value)
            known[:] = value.detach(), *(moved.detach().clone() for moved in head.values)
            return known[0]

        for _ in range(ROUNDS):
            before = [value.detach().clone() for value in head.values]
            optimizer.step(closure)
            self.gradient, norm = head.gradient()
            self.iterations.append(self._measure(train, val) | {"gradient_norm": norm})
            if self.gradient <= SOLVED or all(map(torch.equal, before, head.values)):
                break

    def _measure(self, train: Problem, val: Sequence[Problem]) -> dict[str, float]:
        found: dict[str, float] = {}
        weight, bias = (value.float() for value in self.head.found())
        for split, parts in (("train", [train]), ("val", val)):
            metrics = EpochMetrics(bool(self.labels))
            for part in parts:
                logits = torch.addmm(bias, part.features, weight.T)
                loss, weighs = self.loss(logits, part.labels)
                metrics.add(loss[None], weighs[None], logits=logits[None], labels=part.labels[None])
            if parts:
                found |= {f"{name}/{split}": value for name, value in metrics.means()[0].items()}
        return found

    def title(self, epoch: int, epochs: int) -> str:
        return "solved "

    def points_of(self, epoch: int, step: int, values: dict[str, float]) -> list[CurvePoint]:
        return [(number, number, point) for number, point in enumerate(self.iterations, 1)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["optimizer_states"] = []  # a solve that was stopped begins again
        checkpoint["path"] = [vars(point) for point in self.points]
        checkpoint["gradient"] = self.gradient

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.points = [Point(**point) for point in checkpoint["path"]]
        self.gradient = checkpoint["gradient"]
