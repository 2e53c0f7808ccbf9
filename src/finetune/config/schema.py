"""The settings of a run, and what each may be, alone and together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, model_validator


def _number_or(least: int, expected: str, *words: str) -> BeforeValidator:
    """A whole number from `least` on, or one of a few words."""

    def check(value: Any) -> Any:
        if type(value) is int and value >= least:  # true is an int, too
            return value
        if value not in words:
            raise ValueError(expected)
        return value

    return BeforeValidator(check)


def _as_patterns(value: Any) -> Any:
    patterns = [value] if isinstance(value, str) else value
    if not (isinstance(patterns, list) and patterns and all(isinstance(p, str) and p for p in patterns)):
        raise ValueError("all, none, through:<module> or a list as '[all,-layer4]'")
    return patterns


def _as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value  # a folder named 2026, precision=32


Text = Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]
Patterns = Annotated[list[str], BeforeValidator(_as_patterns)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SGD(_Strict):
    """The settings of optimizer=sgd."""

    name: Literal["sgd"]
    lr: Positive
    momentum: Fraction
    weight_decay: NotNegative
    nesterov: bool
    backbone_lr_factor: Positive
    decay_norm_and_bias: bool

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov=true: expected optimizer.momentum above 0 with it")
        return self


class AdamW(_Strict):
    """The settings of optimizer=adamw."""

    name: Literal["adamw"]
    lr: Positive
    weight_decay: NotNegative
    backbone_lr_factor: Positive
    decay_norm_and_bias: bool


class Data(_Strict):
    """The settings of `data`, of whatever source."""

    source: Text  # of the table in data/sources
    root: Text | None
    name: Text | None
    nested: bool
    image_column: Text | None
    label_column: Text | None
    image_size: Annotated[int | str, _number_or(8, "pixels, 8 or more, or auto", "auto")]
    augment: Literal["auto", "none", "flip", "standard"]
    val_fraction: Fraction
    test_fraction: Fraction
    bad_images: Literal["error", "skip"]
    workers: Annotated[int | str, _number_or(1, "a number of threads, 1 or more, or auto", "auto")]

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> Data:
        total = self.val_fraction + self.test_fraction
        if total >= 1:
            raise ValueError(
                f"data.val_fraction and data.test_fraction: expected a sum below 1, so that images are left"
                f" to train on, not {total:g}"
            )
        return self


class Trainer(_Strict):
    """The settings of `trainer`: where and in how many processes a run trains."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Annotated[int | str, _number_or(1, "a number of devices, 1 or more, or auto", "auto")]
    nodes: Count
    accumulate_batches: Count
    clip_norm: Positive | None


STEP = {"step_epochs": 7, "step_gamma": 0.1}  # as configs/config.yaml has them


class Settings(_Strict):
    """One run as asked for; every field is a key of configs/config.yaml."""

    model: Text
    weights: Text
    freeze: Patterns
    head: Annotated[int | str, _number_or(1, "a number of outputs, 1 or more, auto or keep", "auto", "keep")]
    head_hidden: list[Count]
    head_dropout: Fraction
    loss: Literal["cross_entropy", "bce", "sum_squares", "sum_difference"]
    label_smoothing: Fraction
    class_weights: Literal["none", "balanced"]
    optimizer: Annotated[SGD | AdamW, Discriminator("name")]
    schedule: Literal["constant", "cosine", "onecycle", "step"]
    warmup_epochs: Annotated[int, Field(ge=0)]
    step_epochs: Count
    step_gamma: Positive
    epochs: Count
    max_steps: Count | None
    batch_size: Count
    patience: Count | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    monitor_gradients: bool
    data: Data
    cache: Literal["auto", "memory", "disk", "none"]
    cache_dir: Text
    cache_max_gb: Positive
    cache_shared: bool
    precision: Annotated[Literal["auto", "32", "bf16", "16"], BeforeValidator(_as_text)]
    compile: Literal["auto", True, False]
    trainer: Trainer
    resume: Literal["auto"] | None

    @model_validator(mode="after")
    def _go_together(self) -> Settings:
        for line in self._conflicts():
            raise ValueError(line)
        return self

    def _conflicts(self) -> Iterator[str]:
        """What does not go together, one line each."""
        if self.loss != "cross_entropy":
            if self.label_smoothing:
                yield "label_smoothing: expected loss=cross_entropy with it"
            if self.class_weights == "balanced":
                yield "class_weights=balanced: expected loss=cross_entropy with it"
        if self.data.source == "random":
            if self.class_weights == "balanced":
                yield "class_weights=balanced: expected classes; data=random has label vectors"
            if self.head not in ("auto", "keep", 1000):
                yield f"head={self.head}: expected auto, keep or 1000 with data=random, a vector of 1,000"
        for key in ("head_hidden", "head_dropout"):
            if self.head == "keep" and getattr(self, key):
                yield f"{key}: expected a new head with it; head=keep has its own layers"
        if self.loss.startswith("sum_") and (self.trainer.devices, self.trainer.nodes) != (1, 1):
            yield f"loss={self.loss}: expected trainer.devices=1 with it, as it is no mean over a batch"
        if self.warmup_epochs > self.epochs:
            yield f"warmup_epochs={self.warmup_epochs}: expected at most epochs={self.epochs}"
        if self.warmup_epochs and self.schedule == "onecycle":
            yield f"warmup_epochs={self.warmup_epochs}: expected 0 with schedule=onecycle, which has its own"

    def idle(self) -> list[str]:
        """What was asked for that has no effect; no error, as a sweep may go over what it depends on."""
        return [
            f"{key}={getattr(self, key):g} has no effect with schedule={self.schedule}"
            for key, usual in STEP.items()
            if self.schedule != "step" and getattr(self, key) != usual
        ]


SECTIONS: dict[str, tuple[type[BaseModel], ...]] = {
    "optimizer": (SGD, AdamW),
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
