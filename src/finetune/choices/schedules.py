"""The schedules of the learning rate, an entry each: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """What a schedule runs over: optimiser steps after the warm-up, and the settings of `schedule=step`."""

    steps: int
    steps_per_epoch: int
    step_epochs: int = 7
    step_gamma: float = 0.1


@dataclass(frozen=True)
class ScheduleEntry:
    """A schedule.

    factor: what multiplies the learning rate at a step, from 0 on.
    settings: those of `Span` that it heeds and others do not.
    own_warmup: whether it warms up by itself, so that `warmup_epochs` must be 0.
    endless: whether it is the same however many steps follow.
    """

    factor: Callable[[int, Span], float]
    settings: tuple[str, ...] = ()
    own_warmup: bool = False
    endless: bool = False


def constant(step: int, span: Span) -> float:
    """1 throughout."""
    return 1.0


def cosine(step: int, span: Span) -> float:
    """Half a cosine down to 0."""
    return _half_cosine(1.0, 0.0, step / span.steps)


def onecycle(step: int, span: Span) -> float:
    """Up from 1/25 over the first 30 %, down to 1/250,000, both by half a cosine.

    Smith & Topin 2018, with the defaults of torch's OneCycleLR.
    """
    peak = max(0.3 * span.steps - 1, 1.0)
    if step <= peak:
        return _half_cosine(1 / 25, 1.0, step / peak)
    return _half_cosine(1.0, 1 / 250_000, (step - peak) / max(span.steps - 1 - peak, 1.0))


def stairs(step: int, span: Span) -> float:
    """Times step_gamma every step_epochs."""
    return span.step_gamma ** (step // (span.step_epochs * span.steps_per_epoch))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


SCHEDULES: dict[str, ScheduleEntry] = {
    "constant": ScheduleEntry(constant, endless=True),
    "cosine": ScheduleEntry(cosine),
    "onecycle": ScheduleEntry(onecycle, own_warmup=True),
    "step": ScheduleEntry(stairs, settings=("step_epochs", "step_gamma"), endless=True),
}
