"""The settings of a run, and what each may be, alone and together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError

from finetune.choices.augmentations import AUGMENTATIONS
from finetune.choices.best import BEST
from finetune.choices.callbacks import CALLBACKS, LOGGERS
from finetune.choices.fields import (
    Count,
    Fraction,
    NotNegative,
    Positive,
    Strict,
    Text,
    alternatives,
    as_text,
    number_or,
    one_of,
)
from finetune.choices.given import PYTHON, is_given
from finetune.choices.losses import LOSSES
from finetune.choices.optimizers import OPTIMIZERS, OptimizerSettings
from finetune.choices.schedules import SCHEDULES
from finetune.config.conflicts import conflicts


def _as_patterns(value: Any) -> Any:
    patterns = [value] if isinstance(value, str) else value
    if not (isinstance(patterns, list) and patterns and all(isinstance(p, str) and p for p in patterns)):
        raise ValueError("all, none, through:<module> or a list as '[all,-layer4]'")
    return patterns


def _as_features(value: Any) -> Any:
    named = isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)
    if not named and value not in ("last", "all", "auto"):
        raise ValueError("last, all, auto or a list of modules as '[layer3,layer4]'")
    return value


def _as_duration(value: Any) -> Any:
    if not (isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?(s|min|h)", value)):
        raise ValueError("a time such as 90s, 10min or 1.5h")
    return value


def _as_optimizer(value: Any) -> Any:
    name = str(value.get("name")) if isinstance(value, dict) else ""
    if not is_given(name) and name not in [*OPTIMIZERS]:
        raise PydanticCustomError("union_tag_invalid", "", {"names": alternatives([*OPTIMIZERS])})
    return OPTIMIZERS[name].settings.model_validate(value)


Patterns = Annotated[list[str], BeforeValidator(_as_patterns)]
AS_LIST = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
HEAD = "a number of outputs, 1 or more, auto or keep"
# Settings whose values are names in tables, and words beside these.
NAMED: dict[str, tuple[Iterable[str], ...]] = {
    "loss": (LOSSES,),
    "schedule": (SCHEDULES,),
    "data.augment": (["auto"], AUGMENTATIONS),
}


class Data(Strict):
    """The settings of `data`, of whatever source."""

    source: Text  # of the table in data/sources
    root: Text | None
    name: Text | None
    nested: bool
    split: Literal["auto", "folders", "none"]
    image_column: Text | None
    label_column: Text | Annotated[list[Text], Field(min_length=2)] | None
    label_separator: Text | None
    image_folder: Text | None
    image_suffix: Text | None
    image_size: Annotated[int | str, number_or(8, "pixels, 8 or more, or auto", "auto")]
    augment: Annotated[str, one_of(AUGMENTATIONS, "auto")]
    crop: Literal["center", "squash", "pad"]
    val_fraction: Fraction
    test_fraction: Fraction
    split_seed: Annotated[int, Field(ge=0)] | None
    folds: Annotated[int, Field(ge=2)] | None
    fold: Annotated[int, Field(ge=0)] | None
    group_column: Text | None
    group: Literal["parent"] | None
    bad_images: Literal["error", "skip", "repair"]
    workers: Annotated[int | str, number_or(1, "a number of threads, 1 or more, or auto", "auto")]

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> Data:
        total = self.val_fraction + self.test_fraction
        if total >= 1:
            raise ValueError(
                f"data.val_fraction and data.test_fraction: expected a sum below 1, so that images are left"
                f" to train on, not {total:g}"
            )
        if self.fold is not None and self.fold >= (self.folds or 0):
            raise ValueError(f"data.fold={self.fold}: expected a larger data.folds with it; 0 is the first")
        return self


class Trainer(Strict):
    """The settings of `trainer`: where and in how many processes a run trains."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Annotated[int | str, number_or(1, "a number of devices, 1 or more, or auto", "auto")]
    nodes: Count
    accumulate_batches: Count
    clip_norm: Positive | None
    checkpoint_every: Count | None
    profiler: Literal["simple", "advanced"] | None


MIXING = ("mixup", "cutmix", "erasing")


class Settings(Strict):
    """One run as asked for; every field is a key of configs/config.yaml."""

    model: Text
    weights: Text
    freeze: Patterns
    head: Annotated[int | str, number_or(1, HEAD, "auto", "keep", PYTHON)]
    head_hidden: list[Count]
    head_dropout: Fraction
    standardize: Literal["auto", True, False]
    batchnorm: Literal["pretrained", "adapt", "auto"]
    head_features: Annotated[str | list[str], BeforeValidator(_as_features)]
    loss: Annotated[str, one_of(LOSSES)]
    label_smoothing: Fraction
    class_weights: Literal["none", "balanced"]
    mixup: NotNegative
    cutmix: NotNegative
    erasing: Fraction
    optimizer: Annotated[SerializeAsAny[OptimizerSettings], BeforeValidator(_as_optimizer)]
    schedule: Annotated[str, one_of(SCHEDULES)]
    warmup_epochs: Annotated[int, Field(ge=0)]
    step_epochs: Count
    step_gamma: Positive
    epochs: Count
    max_steps: Count | None
    batch_size: Count
    best: Annotated[str, one_of(BEST)]
    refit: bool
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    patience: Count | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    monitor_gradients: bool
    callbacks: Annotated[list[Annotated[str, one_of(CALLBACKS)]], AS_LIST]
    logger: Annotated[list[Annotated[str, one_of(LOGGERS)]], AS_LIST]
    fast_dev_run: bool
    data: Data
    cache: Literal["auto", "memory", "disk", "none"]
    cache_dir: Text
    cache_max_gb: Positive
    cache_shared: bool
    precision: Annotated[Literal["auto", "32", "bf16", "16"], BeforeValidator(as_text)]
    compile: Literal["auto", True, False]
    trainer: Trainer
    resume: Literal["auto"] | None
    phases: list[dict[str, Any]]
    time_limit: Annotated[str, BeforeValidator(_as_duration)] | None

    @property
    def folded(self) -> bool:
        """Whether a model is trained for every fold of the images, and then one on all of them."""
        return self.data.folds is not None and self.data.fold is None

    @property
    def phased(self) -> bool:
        """Whether a run is made of others, one after the other."""
        return bool(self.phases) or self.freeze == ["auto"]

    @property
    def fresh(self) -> str | None:
        """The setting on account of which every epoch shows other images; None where all show the same."""
        augment = self.data.augment
        if augment != "auto" and AUGMENTATIONS[augment].is_random:
            return f"data.augment={augment}"
        return next((f"{key}={value:g}" for key in MIXING if (value := getattr(self, key))), None)

    @property
    def stages(self) -> str | list[str]:
        """What the head reads; `auto` is `last` for a head that was made for it."""
        made = self.head == "keep" or is_given(self.head)
        return "last" if made and self.head_features == "auto" else self.head_features

    def given(self) -> list[str]:
        """The settings that are Python objects, as key=value."""
        told = flat(self.model_dump()).items()
        return [f"{key}={value}" for key, value in told if PYTHON in str(value)]

    def lightning(self) -> str | None:
        """What of Lightning's own takes part, for which a run must train by itself."""
        parts = {"callbacks": self.callbacks, "logger": [one for one in self.logger if one != "tensorboard"]}
        parts |= {f"trainer.{name}": getattr(self.trainer, name) for name in ("checkpoint_every", "profiler")}
        return next((f"{key}={value}" for key, value in parts.items() if value), None)

    @model_validator(mode="after")
    def _go_together(self) -> Settings:
        for line in conflicts(self):
            raise ValueError(line)
        return self


SECTIONS: dict[str, Callable[[], list[type[BaseModel]]]] = {
    "optimizer": lambda: [entry.settings for entry in OPTIMIZERS.values()],
    "data": lambda: [Data],
    "trainer": lambda: [Trainer],
}


def flat(values: dict[str, Any], above: str = "") -> dict[str, float | str]:
    """Settings by dotted names, what is no number as on the command line."""
    found: dict[str, float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{key}.")
        elif isinstance(value, list):
            found[above + key] = f"[{','.join(map(str, value))}]"
        elif value is None or isinstance(value, bool):
            found[above + key] = json.dumps(value)
        else:
            found[above + key] = value
    return found
