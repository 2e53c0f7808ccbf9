"""`phases`: runs one after the other, each with settings of its own; `freeze=auto`: a ladder of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from finetune.choices.optimizers import OPTIMIZERS
from finetune.config.messages import unknown_choice, unknown_setting, validate
from finetune.config.schema import MIXING, SECTIONS, Settings
from finetune.config.shipped import choices_of, shipped
from finetune.errors import RequestError

# What makes a run's phases one run: the model, the images, what is kept and where.
SHARED = (
    *("model", "weights", "head", "head_hidden", "head_dropout", "head_features", "best", "refit", "resume"),
    *("seed", "logger", "fast_dev_run", "cache_dir", "cache_max_gb", "cache_shared", "phases", "time_limit"),
)
OF_DATA = ("data.augment", "data.image_size", "data.workers")
PROCESSES = ("trainer.devices", "trainer.nodes")
JUDGED = dict.fromkeys(("loss", "label_smoothing", "class_weights"), " with best=loss")  # what losses are of
SECONDS = {"s": 1, "min": 60, "h": 3600}


def deltas(settings: Settings) -> list[dict[str, Any]]:
    """What each phase changes; of `freeze=auto` the rungs, from the cheapest to the dearest."""
    if settings.phases:
        return settings.phases
    first: dict[str, Any] = {"freeze": "all", **dict.fromkeys(MIXING, 0), "ema": None}
    if settings.data.augment != "flip":
        first["data.augment"] = "none"
    if settings.batchnorm == "pretrained":
        first["batchnorm"] = "auto"
    solves = OPTIMIZERS[settings.optimizer.name].solves
    steps: dict[str, Any] = {"optimizer": "sgd"} if solves else {}
    stepped = shipped("optimizer/sgd.yaml") if solves else settings.optimizer.model_dump()
    if "lr" not in stepped:
        expected = "expected optimizer=sgd or adamw with it, of which it takes a tenth of the rate"
        raise RequestError(f"optimizer.name={stepped['name']}: {expected}")
    # A solved head was made for the statistics of frozen norms; where these move, or quickly, it is lost.
    steps = {**steps, "optimizer.lr": stepped["lr"] / 10, "batchnorm": "pretrained"}
    return [
        first if solves else {**first, "optimizer": "lbfgs"},
        {"freeze": ["all", "-@last", "@norm"], **steps},
        {"freeze": "@norm", **steps},
    ]


def phase_settings(settings: Settings, number: int) -> Settings:
    """The settings of a phase: the run's own with what the phase changes; RequestError of what it may not."""
    changes = deltas(settings)
    values = settings.model_dump() | {"phases": [], "time_limit": None}
    chosen_first = sorted(changes[number].items(), key=lambda one: one[0] not in SECTIONS)
    with named_phase(settings, number):
        for key, value in chosen_first:
            _change(values, key, value)
        found = validate(values)
        for key in (*PROCESSES, *(JUDGED if settings.best == "loss" else ())):
            if attrgetter(key)(found) != attrgetter(key)(settings):
                raise RequestError(f"{key}: expected outside phases, as all share it" + JUDGED.get(key, ""))
    return found


@contextmanager
def named_phase(settings: Settings, number: int) -> Iterator[None]:
    """Say of a wrong request of which phase it is."""
    try:
        yield
    except RequestError as error:
        name = f"phases, number {number}" if settings.phases else "freeze=auto"
        raise RequestError(f"{name}: {error}") from None


def _change(values: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    if key in SHARED or ((section or key) == "data" and key not in OF_DATA):
        raise RequestError(f"{key}: expected outside phases, as all of them share it")
    if key == "freeze" and value in ("auto", ["auto"]):
        raise RequestError("freeze=auto: expected outside phases, as it makes phases of its own")
    if (section and section not in SECTIONS) or (key not in values and not section):
        raise RequestError(unknown_setting(key))
    try:
        json.dumps(value)
    except TypeError:
        raise RequestError(f"{key}: expected a name or a number, and Python objects outside phases") from None
    if key in SECTIONS and isinstance(value, str):
        if value not in choices_of(key):
            raise RequestError(unknown_choice(key, value, choices_of(key)))
        values[key] = shipped(f"{key}/{value}.yaml")
    elif key in SECTIONS and isinstance(value, dict):
        chosen = value.get("name", values[key].get("name"))
        other = chosen != values[key].get("name") and chosen in choices_of(key)
        values[key] = {**(shipped(f"{key}/{chosen}.yaml") if other else values[key]), **value}
    else:
        (values[section] if section else values)[name] = value


def check_phases(settings: Settings) -> Settings:
    """The settings, of which each phase can be had; RequestError names the first that cannot."""
    for number in range(len(deltas(settings)) if settings.phased else 0):
        phase_settings(settings, number)
    return settings


def seconds(duration: str) -> float:
    """A time such as 10min in seconds."""
    number = duration.rstrip("sminh")
    return float(number) * SECONDS[duration.removeprefix(number)]
