"""Optimisers over what trains, in groups built once, and schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from finetune.model.freeze import NORMS

Schedule = Callable[[int], float]


def groups(
    model: nn.Module,
    head: str | None,
    lr: float,
    weight_decay: float,
    backbone_lr_factor: float,
    decay_norm_and_bias: bool,
) -> list[dict[str, Any]]:
    """Parameter groups of what trains: backbone and head, each with and without decay; empty ones left out.

    Frozen parameters are in no group: their gradient is None, so an optimiser would skip them anyway.
    """
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, NORMS)
        for p in module.parameters(recurse=False)
    }
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "head" if head and name.startswith(f"{head}.") else "backbone"
        spared = id(parameter) in norms or name.endswith("bias")
        decay = 0.0 if spared and not decay_norm_and_bias else weight_decay
        key = part if decay == weight_decay else f"{part}_without_decay"
        rate = lr if part == "head" else lr * backbone_lr_factor
        group = {"name": key, "params": [], "lr": rate, "weight_decay": decay}
        found.setdefault(key, group)["params"].append(parameter)
    return list(found.values())


def build(name: str, parameter_groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """SGD (momentum, nesterov) or AdamW over the groups."""
    optimizers: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    return optimizers[name](parameter_groups, **options)


def schedule(
    name: str,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    step_epochs: int = 7,
    step_gamma: float = 0.1,
) -> Schedule:
    """The factor on the learning rate at each optimiser step, from 0 on.

    constant; cosine: half a cosine down to 0; step: times step_gamma every step_epochs; onecycle: up from
    1/25 over the first 30 %, down to 1/250,000, both by cosine (Smith & Topin 2018, PyTorch's defaults).
    `warmup_epochs` goes before each but onecycle, which has its own: in equal stages up to 1.
    """
    warmup = 0 if name == "onecycle" else warmup_epochs * steps_per_epoch
    after = max(total_steps - warmup, 1)

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = step - warmup
        if name == "cosine":
            return cosine(1.0, 0.0, done / after)
        if name == "step":
            return step_gamma ** (done // (step_epochs * steps_per_epoch))
        if name == "onecycle":
            peak = max(0.3 * total_steps - 1, 1.0)
            if done <= peak:
                return cosine(1 / 25, 1.0, done / peak)
            return cosine(1.0, 1 / 250_000, (done - peak) / max(total_steps - 1 - peak, 1.0))
        return 1.0

    return factor
