"""The optimiser over what trains, in groups built once, and the schedule of its rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from finetune.choices.optimizers import OPTIMIZERS, SteppedSettings
from finetune.choices.schedules import SCHEDULES, Span
from finetune.errors import RequestError
from finetune.model.head import find_head
from finetune.model.parameters import NORMS, find_depths, is_below

Schedule = Callable[[int], float]


def parameter_groups(model: nn.Module, head: str | None, steps: SteppedSettings) -> list[dict[str, Any]]:
    """Groups of what trains: backbone and head, each with and without decay; empty ones are left out.

    With layer_decay each layer of the backbone is a group: its rate is so often decayed as there are layers
    from it to the head (Clark et al. 2020; Bao et al. 2021).
    """
    depths = find_depths(model, head or find_head(model)) if steps.layer_decay < 1 else {}
    deepest = max(depths.values(), default=0)
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, NORMS)
        for p in module.parameters(recurse=False)
    }
    spares: Any = getattr(model, "no_weight_decay", tuple)  # of timm's models: tokens and positions
    tokens = spares()
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, rate = "head", steps.lr
        if not is_below(name, head):
            depth = depths.get(name, 0)
            part = f"backbone_{depth}" if depths else "backbone"
            rate *= steps.backbone_lr_factor * steps.layer_decay ** (deepest - depth)
        spared = id(parameter) in norms or parameter.ndim < 2 or name in tokens
        decay = 0.0 if spared and not steps.decay_norm_and_bias else steps.weight_decay
        key = part if decay == steps.weight_decay else f"{part}_without_decay"
        group = {"name": key, "params": [], "lr": rate, "weight_decay": decay}
        found.setdefault(key, group)["params"].append(parameter)
    return list(found.values())


def create_optimizer(name: str, groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """The optimiser of that name; RequestError: a Python object makes none."""
    made_by = OPTIMIZERS[name].made_by
    if isinstance(made_by, str):
        return resolve_name(made_by)(groups, **options)
    given = [parameter for group in groups for parameter in group["params"]]
    expected = f"optimizer.name={name}: expected an Optimizer"
    try:
        found = made_by(list(given))
    except ValueError as error:  # of no parameters, or with another lr than there can be
        raise RequestError(f"{expected}: {error}") from None
    if not isinstance(found, torch.optim.Optimizer):
        raise RequestError(f"{expected} from it, not {type(found).__name__}")
    if {id(one) for group in found.param_groups for one in group["params"]} - {*map(id, given)}:
        raise RequestError(f"{expected} of the parameters that it is given, or of some, not of others")
    for number, group in enumerate(found.param_groups):
        group.setdefault("name", f"group {number}")
    return found


def create_schedule(name: str, span: Span, warmup_epochs: int = 0) -> Schedule:
    """The factor on the learning rate at each optimiser step from 0 on; the span is of the whole training."""
    entry = SCHEDULES[name]
    # In equal stages up to 1, before the schedule, unless that has a warm-up of its own.
    warmup = 0 if entry.own_warmup else warmup_epochs * span.steps_per_epoch
    after = replace(span, steps=max(span.steps - warmup, 1))

    def factor(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else entry.factor(step - warmup, after)

    return factor
