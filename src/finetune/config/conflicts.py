"""Which settings do not go together, and which have no effect."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING

from finetune.choices.fields import names_where
from finetune.choices.given import is_given
from finetune.choices.losses import LOSSES
from finetune.choices.optimizers import LBFGS, OPTIMIZERS
from finetune.choices.schedules import SCHEDULES

if TYPE_CHECKING:
    from finetune.config.schema import Settings

# As configs/config.yaml has them.
STEP = {"step_epochs": 7, "step_gamma": 0.1}
SCHEDULED = {
    **{"schedule": "cosine", "warmup_epochs": 0, "epochs": 20, "max_steps": None, "batch_size": 64},
    **{"ema": None, "patience": None, "monitor_gradients": False},
    **{"trainer.clip_norm": None, "trainer.accumulate_batches": 1},
}


def conflicts(settings: Settings) -> Iterator[str]:
    """What does not go together, one line each."""
    loss, schedule = LOSSES[settings.loss], SCHEDULES[settings.schedule]
    one_process = (settings.trainer.devices, settings.trainer.nodes) == (1, 1)
    if not loss.weighs_classes:
        expected = f"expected loss={names_where(LOSSES, lambda one: one.weighs_classes)} with it"
        if settings.label_smoothing:
            yield f"label_smoothing: {expected}"
        if settings.class_weights == "balanced":
            yield f"class_weights=balanced: {expected}"
    if settings.class_weights == "balanced" and (settings.mixup or settings.cutmix):
        yield "class_weights=balanced: expected mixup=0 and cutmix=0, as mixed images have no one class"
    if is_given(settings.loss) and (settings.mixup or settings.cutmix):
        yield f"loss={settings.loss}: expected mixup=0 and cutmix=0, as mixed images have no one class"
    if settings.data.source == "random":
        if settings.class_weights == "balanced":
            yield "class_weights=balanced: expected classes; data=random has label vectors"
        if settings.head not in ("auto", "keep", 1000):
            yield f"head={settings.head}: expected auto, keep or 1000 with data=random, a vector of 1,000"
    for key in ("head_hidden", "head_dropout"):
        if (settings.head == "keep" or is_given(settings.head)) and getattr(settings, key):
            yield f"{key}: expected a new head with it; head={settings.head} has its own layers"
    if settings.head == "keep" and settings.stages != "last":
        yield "head_features: expected last with head=keep, which reads what it was trained on"
    if not loss.is_mean and not one_process:
        yield f"loss={settings.loss}: expected trainer.devices=1 with it, as it is no mean over a batch"
    if settings.fresh and settings.cache in ("memory", "disk"):
        expected = "expected cache=auto or none with it, as it shows other images in every epoch"
        yield f"{settings.fresh}: {expected}, which cache={settings.cache} cannot keep"
    if settings.folded and not (one_process and settings.batchnorm == "pretrained"):
        expected = "expected batchnorm=pretrained and trainer.devices=1 with it, or a data.fold a run"
        yield f"data.folds={settings.data.folds}: {expected}"
    if settings.given() and not one_process:
        yield f"{settings.given()[0]}: expected trainer.devices=1 with a Python object"
    if settings.folded and (wrong := settings.lightning()):
        yield f"{wrong}: expected none with data.folds, or a data.fold a run"
    if settings.ema and (settings.refit or settings.folded):
        yield f"ema={settings.ema:g}: expected refit=false and no data.folds with it"
    yield from conflicts_of_phases(settings)
    if settings.patience and settings.best == "last":
        yield f"patience={settings.patience}: expected another best with it; with best=last none is better"
    if OPTIMIZERS[settings.optimizer.name].solves:
        yield from conflicts_of_solving(settings)
    if settings.warmup_epochs > settings.epochs:
        yield f"warmup_epochs={settings.warmup_epochs}: expected at most epochs={settings.epochs}"
    if settings.warmup_epochs and schedule.own_warmup:
        expected = f"expected 0 with schedule={settings.schedule}, which has its own"
        yield f"warmup_epochs={settings.warmup_epochs}: {expected}"


def conflicts_of_phases(settings: Settings) -> Iterator[str]:
    """What does not go with phases, or only with those of `freeze=auto`."""
    if settings.phases and settings.freeze == ["auto"]:
        yield "phases: expected another freeze than auto, which makes phases of its own"
    if settings.phased and settings.folded:
        yield f"data.folds={settings.data.folds}: expected no phases and no freeze=auto, or a data.fold a run"
    if settings.time_limit and settings.freeze != ["auto"]:
        yield f"time_limit={settings.time_limit}: expected freeze=auto with it, which stops between its rungs"


def conflicts_of_solving(settings: Settings) -> Iterator[str]:
    """What must be so for a linear head to have one best solution that can be found in one process."""
    chosen = f"with optimizer={settings.optimizer.name}, which solves for a linear head"
    processes = settings.trainer.devices, settings.trainer.nodes
    if not LOSSES[settings.loss].convex:
        yield f"loss={settings.loss}: expected {names_where(LOSSES, lambda one: one.convex)} {chosen}"
    for wrong, line in (
        (settings.head_hidden, f"head_hidden: expected [] {chosen}"),
        (settings.head_dropout, f"head_dropout={settings.head_dropout:g}: expected 0 {chosen}"),
        (settings.standardize is False, f"standardize=false: expected auto or true {chosen}"),
        (settings.fresh, f"{settings.fresh}: expected the same images in every epoch {chosen}"),
        (settings.cache == "none", f"cache=none: expected another {chosen} on features"),
        (processes != (1, 1), f"trainer: expected one process {chosen}"),
    ):
        if wrong:
            yield line


def idle(settings: Settings) -> list[str]:
    """What was asked for that has no effect; no error, as a sweep may go over what it depends on."""
    steps = [
        f"{key}={getattr(settings, key):g} has no effect with schedule={settings.schedule}"
        for key, usual in STEP.items()
        if key not in SCHEDULES[settings.schedule].settings and getattr(settings, key) != usual
    ]
    solved = [
        f"{key}={asked} has no effect with optimizer={settings.optimizer.name}"
        for key, usual in SCHEDULED.items()
        if key != "epochs" or not settings.fast_dev_run  # which has one of each
        if OPTIMIZERS[settings.optimizer.name].solves and (asked := attrgetter(key)(settings)) != usual
    ]
    if isinstance(one := settings.optimizer, LBFGS) and not one.chooses_by and one.select != "cv":
        solved.append(f"optimizer.select={one.select} has no effect with optimizer.weight_decay, a number")
    for key in ("backbone_lr_factor", "layer_decay"):
        if settings.freeze == ["all"] and (asked := getattr(settings.optimizer, key, 1)) != 1:
            solved += [f"optimizer.{key}={asked:g} has no effect with freeze=all"] * (not settings.phases)
    if settings.data.folds and (share := settings.data.test_fraction) != 0.15:
        solved.append(f"data.test_fraction={share:g} has no effect with data.folds")
    return [*solved, *steps]
