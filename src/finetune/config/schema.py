"""The settings of a run, and what each may be, alone and together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, model_validator

from finetune.choices.augmentations import AUGMENTATIONS
from finetune.choices.best import BEST
from finetune.choices.fields import (
    Count,
    Fraction,
    NotNegative,
    Positive,
    Strict,
    Text,
    as_text,
    names_where,
    number_or,
)
from finetune.choices.losses import LOSSES
from finetune.choices.optimizers import OPTIMIZERS, OptimizerSettings
from finetune.choices.schedules import SCHEDULES
from finetune.config.data import AUGMENT, Data


def _as_patterns(value: Any) -> Any:
    patterns = [value] if isinstance(value, str) else value
    if not (isinstance(patterns, list) and patterns and all(isinstance(p, str) and p for p in patterns)):
        raise ValueError("all, none, through:<module> or a list as '[all,-layer4]'")
    return patterns


def _as_features(value: Any) -> Any:
    named = isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)
    if not named and value not in ("last", "all"):
        raise ValueError("last, all or a list of modules as '[layer3,layer4]'")
    return value


Patterns = Annotated[list[str], BeforeValidator(_as_patterns)]


OPTIMIZER_SETTINGS = tuple(entry.settings for entry in OPTIMIZERS.values())
# Settings whose values are names in tables.
NAMED = {
    "loss": tuple(LOSSES),
    "schedule": tuple(SCHEDULES),
    "data.augment": AUGMENT,
    "best": BEST,
}
if TYPE_CHECKING:
    Optimizer = OptimizerSettings
    Loss: TypeAlias = str
    Schedule: TypeAlias = str
    Best: TypeAlias = str
else:
    Optimizer = Annotated[Union[OPTIMIZER_SETTINGS], Discriminator("name")]  # noqa: UP007  # from a table
    Loss, Schedule, Best = (Literal[NAMED[name]] for name in ("loss", "schedule", "best"))


class Trainer(Strict):
    """The settings of `trainer`: where and in how many processes a run trains."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Annotated[int | str, number_or(1, "a number of devices, 1 or more, or auto", "auto")]
    nodes: Count
    accumulate_batches: Count
    clip_norm: Positive | None


# As configs/config.yaml has them.
STEP = {"step_epochs": 7, "step_gamma": 0.1}
MIXING = ("mixup", "cutmix", "erasing")
SCHEDULED = {
    **{"schedule": "cosine", "warmup_epochs": 0, "epochs": 20, "max_steps": None, "batch_size": 64},
    **{"ema": None, "patience": None, "monitor_gradients": False},
}


class Settings(Strict):
    """One run as asked for; every field is a key of configs/config.yaml."""

    model: Text
    weights: Text
    freeze: Patterns
    head: Annotated[int | str, number_or(1, "a number of outputs, 1 or more, auto or keep", "auto", "keep")]
    head_hidden: list[Count]
    head_dropout: Fraction
    standardize: Literal["auto", True, False]
    batchnorm: Literal["pretrained", "adapt", "auto"]
    head_features: Annotated[str | list[str], BeforeValidator(_as_features)]
    loss: Loss
    label_smoothing: Fraction
    class_weights: Literal["none", "balanced"]
    mixup: NotNegative
    cutmix: NotNegative
    erasing: Fraction
    optimizer: Optimizer
    schedule: Schedule
    warmup_epochs: Annotated[int, Field(ge=0)]
    step_epochs: Count
    step_gamma: Positive
    epochs: Count
    max_steps: Count | None
    batch_size: Count
    best: Best
    refit: bool
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    patience: Count | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    monitor_gradients: bool
    data: Data
    cache: Literal["auto", "memory", "disk", "none"]
    cache_dir: Text
    cache_max_gb: Positive
    cache_shared: bool
    precision: Annotated[Literal["auto", "32", "bf16", "16"], BeforeValidator(as_text)]
    compile: Literal["auto", True, False]
    trainer: Trainer
    resume: Literal["auto"] | None

    @property
    def folded(self) -> bool:
        """Whether a model is trained for every fold of the images, and then one on all of them."""
        return self.data.folds is not None and self.data.fold is None

    @property
    def fresh(self) -> str | None:
        """The setting on account of which every epoch shows other images; None where all show the same."""
        augment = AUGMENTATIONS.get(self.data.augment)
        if augment and augment.is_random:
            return f"data.augment={self.data.augment}"
        return next((f"{key}={value:g}" for key in MIXING if (value := getattr(self, key))), None)

    @model_validator(mode="after")
    def _go_together(self) -> Settings:
        for line in self._conflicts():
            raise ValueError(line)
        return self

    def _conflicts(self) -> Iterator[str]:
        """What does not go together, one line each."""
        loss, schedule = LOSSES[self.loss], SCHEDULES[self.schedule]
        one_process = (self.trainer.devices, self.trainer.nodes) == (1, 1)
        if not loss.weighs_classes:
            expected = f"expected loss={names_where(LOSSES, lambda one: one.weighs_classes)} with it"
            if self.label_smoothing:
                yield f"label_smoothing: {expected}"
            if self.class_weights == "balanced":
                yield f"class_weights=balanced: {expected}"
        if self.class_weights == "balanced" and (self.mixup or self.cutmix):
            yield "class_weights=balanced: expected mixup=0 and cutmix=0, as mixed images have no one class"
        if self.data.source == "random":
            if self.class_weights == "balanced":
                yield "class_weights=balanced: expected classes; data=random has label vectors"
            if self.head not in ("auto", "keep", 1000):
                yield f"head={self.head}: expected auto, keep or 1000 with data=random, a vector of 1,000"
        for key in ("head_hidden", "head_dropout"):
            if self.head == "keep" and getattr(self, key):
                yield f"{key}: expected a new head with it; head=keep has its own layers"
        if self.head == "keep" and self.head_features != "last":
            yield "head_features: expected last with head=keep, which reads what it was trained on"
        if not loss.is_mean and not one_process:
            yield f"loss={self.loss}: expected trainer.devices=1 with it, as it is no mean over a batch"
        if self.fresh and self.cache in ("memory", "disk"):
            expected = "expected cache=auto or none with it, as it shows other images in every epoch"
            yield f"{self.fresh}: {expected}, which cache={self.cache} cannot keep"
        if self.folded and not (one_process and self.batchnorm == "pretrained"):
            expected = "expected batchnorm=pretrained and trainer.devices=1 with it, or a data.fold a run"
            yield f"data.folds={self.data.folds}: {expected}"
        if self.ema and (self.refit or self.folded):
            yield f"ema={self.ema:g}: expected refit=false and no data.folds with it"
        if self.patience and self.best == "last":
            yield f"patience={self.patience}: expected another best with it; with best=last none is better"
        if OPTIMIZERS[self.optimizer.name].solves:
            yield from self.conflicts_of_solving()
        if self.warmup_epochs > self.epochs:
            yield f"warmup_epochs={self.warmup_epochs}: expected at most epochs={self.epochs}"
        if self.warmup_epochs and schedule.own_warmup:
            expected = f"expected 0 with schedule={self.schedule}, which has its own"
            yield f"warmup_epochs={self.warmup_epochs}: {expected}"

    def conflicts_of_solving(self) -> Iterator[str]:
        """What must be so for a linear head to have one best solution that can be found in one process."""
        chosen = f"with optimizer={self.optimizer.name}, which solves for a linear head"
        if not LOSSES[self.loss].convex:
            yield f"loss={self.loss}: expected {names_where(LOSSES, lambda one: one.convex)} {chosen}"
        for wrong, line in (
            (self.head_hidden, f"head_hidden: expected [] {chosen}"),
            (self.head_dropout, f"head_dropout={self.head_dropout:g}: expected 0 {chosen}"),
            (self.standardize is False, f"standardize=false: expected auto or true {chosen}"),
            (self.fresh, f"{self.fresh}: expected the same images in every epoch {chosen}"),
            (self.cache == "none", f"cache=none: expected another {chosen} on features"),
            ((self.trainer.devices, self.trainer.nodes) != (1, 1), f"trainer: expected one process {chosen}"),
        ):
            if wrong:
                yield line

    def idle(self) -> list[str]:
        """What was asked for that has no effect; no error, as a sweep may go over what it depends on."""
        steps = [
            f"{key}={getattr(self, key):g} has no effect with schedule={self.schedule}"
            for key, usual in STEP.items()
            if key not in SCHEDULES[self.schedule].settings and getattr(self, key) != usual
        ]
        solved = [
            f"{key}={getattr(self, key)} has no effect with optimizer={self.optimizer.name}"
            for key, usual in SCHEDULED.items()
            if OPTIMIZERS[self.optimizer.name].solves and getattr(self, key) != usual
        ]
        return [*solved, *steps]


SECTIONS: dict[str, tuple[type[BaseModel], ...]] = {
    "optimizer": OPTIMIZER_SETTINGS,
    "data": (Data,),
    "trainer": (Trainer,),
}


def configs_folder() -> Path:
    """The shipped configs: inside the package when installed from a wheel, else the checkout's."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parents[1] / "configs"


def flat(settings: dict[str, Any], above: str = "") -> dict[str, float | str]:
    """Settings by dotted names, what is no number as on the command line."""
    found: dict[str, float | str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{key}.")
        elif isinstance(value, list):
            found[above + key] = f"[{','.join(map(str, value))}]"
        elif value is None or isinstance(value, bool):
            found[above + key] = json.dumps(value)
        else:
            found[above + key] = value
    return found
