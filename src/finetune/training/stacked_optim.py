"""The optimiser of many networks at once: every tensor has the jobs (J) as its first dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.choices.optimizers import OPTIMIZERS
from finetune.training.optim import Schedule

Tensors = dict[str, Tensor]


class StackedOptimizer(torch.optim.Optimizer):
    """An optimiser whose numbers differ from job to job.

    groups: of one parameter (J, …) each, with its `lr` and `weight_decay` (J,).
    schedules: each job's factor on its rates, by the optimiser step.
    """

    def __init__(
        self,
        name: str,
        groups: list[dict[str, Any]],
        options: Sequence[dict[str, Any]],
        schedules: Sequence[Schedule],
    ) -> None:
        super().__init__(groups, {})
        self.entry, self.schedules, self.steps = OPTIMIZERS[name], schedules, 0
        self.options = {
            key: torch.tensor([one[key] for one in options], dtype=torch.float64) for key in options[0]
        }
        for group in groups:
            for p in group["params"]:
                self.state[p] = {buffer: torch.zeros_like(p) for buffer in self.entry.buffers}

    def factors(self) -> Tensor:
        """What the schedules multiply each job's rates by in the next step, (J,)."""
        return torch.tensor([schedule(self.steps) for schedule in self.schedules], dtype=torch.float64)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        assert self.entry.move is not None
        factors = self.factors()
        self.steps += 1
        for group in self.param_groups:
            (p,) = group["params"]
            if p.grad is not None:
                jobs = {"lr": group["lr"] * factors, "weight_decay": group["weight_decay"], **self.options}
                self.entry.move(p, self.state[p], jobs, self.steps)
        return loss
