"""The LightningModule of batched jobs: many small networks, each step one forward and backward of all.

Whatever a job computes depends on its own numbers only, so a job whose loss is no longer finite stays in the
stack and disturbs nobody; it is no longer looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from finetune.choices.losses import LOSSES
from finetune.choices.optimizers import broadcast
from finetune.data.module import Batch
from finetune.errors import RunError
from finetune.model.freeze import Frozen
from finetune.training.learner import Learner, Measured
from finetune.training.losses import Loss, create_loss
from finetune.training.optim import Schedule, create_optimizer
from finetune.training.stacked_optim import StackedOptimizer, Tensors

# Stacked tensors (J, …) by what they are, `state` or an optimiser's buffer, and the name of the parameter.
Snapshot = dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class JobConfig:
    """How one job trains, alone or over the parameters of a model that it shares with others.

    groups, options: as `parameter_groups` makes and `create_optimizer` takes them.
    """

    loss: str
    optimizer: str
    groups: list[dict[str, Any]]
    options: dict[str, Any]
    schedule: Schedule
    label_smoothing: float
    class_weights: Tensor | None

    def create_loss(self) -> Loss:
        return create_loss(self.loss, self.label_smoothing, self.class_weights)

    def create_optimizer(self) -> torch.optim.Optimizer:
        return create_optimizer(self.optimizer, [dict(group) for group in self.groups], **self.options)


@dataclass(frozen=True)
class Network:
    """What all jobs share: the model that names the parameters, and its suffix, which the batches pass."""

    model: nn.Module
    suffix: nn.Module
    frozen: Frozen

    @cached_property
    def inside(self) -> dict[str, str]:
        """The suffix's name of each tensor of the state that it uses."""
        own = {**dict(self.suffix.named_parameters()), **dict(self.suffix.named_buffers())}
        places = {id(value): name for name, value in own.items()}
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        names = self.frozen.others(self.model)
        return {name: places[id(named[name])] for name in names if id(named[name]) in places}

    def forward(self, state: Tensors, inputs: Any, shared: bool) -> Tensor:
        """Logits (J, B, outputs) of inputs (J, B, …) or (B, …); RuntimeError for what cannot be stacked."""

        def one(tensors: Tensors, batch: Any) -> Tensor:
            return functional_call(self.suffix, tensors, (batch,))

        tensors = {inner: state[name] for name, inner in self.inside.items()}
        logits = vmap(one, in_dims=(0, None if shared else 0), randomness="error")(tensors, inputs)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def why_not_stacked(network: Network, inputs: Any) -> str | None:
    """Why networks of this kind cannot be stacked, tried on a batch; None where they can."""
    state = network.frozen.others(network.model)
    two = {name: torch.stack([value.detach()] * 2) for name, value in state.items()}
    network.model.train()
    network.suffix.train()
    network.frozen.hold(network.model)
    try:
        network.forward(two, inputs, True)
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


class StackedClassifier(Learner):
    """Trains the jobs of a group, each with its own numbers and its own order of the images.

    states: what of the model is not frozen, as each job begins with it. failed: called when a job fails.
    """

    def __init__(
        self,
        network: Network,
        configs: Sequence[JobConfig],
        states: Sequence[Tensors],
        failed: Callable[[int, RunError], None],
    ) -> None:
        super().__init__()
        self.network, self.configs, self.failed = network, configs, failed
        self.model, self.suffix, self.frozen = network.model, network.suffix, network.frozen
        inside = network.inside
        learn = {name for name, p in self.model.named_parameters() if p.requires_grad} & inside.keys()
        self.names = list(states[0])
        self.tensors = nn.ParameterList(
            nn.Parameter(torch.stack([state[name] for state in states]), requires_grad=name in learn)
            for name in self.names
        )
        self.train()

    @property
    def state(self) -> Tensors:
        """What of the model is not frozen, by name, stacked (J, …)."""
        return dict(zip(self.names, self.tensors, strict=True))

    def measure(self, batch: Batch) -> Measured:
        inputs, labels = batch
        shared = labels.ndim == 1
        logits = self.network.forward(self.state, inputs, shared)
        if shared:
            labels = labels.expand(len(self.configs), -1)
        loss, ones = LOSSES[self.configs[0].loss].stacked, torch.ones(logits.shape[2])
        assert loss is not None
        smoothing = torch.tensor([config.label_smoothing for config in self.configs], dtype=torch.float64)
        classes = [ones if config.class_weights is None else config.class_weights for config in self.configs]
        losses, weights = loss(logits, labels, smoothing.to(logits), torch.stack(classes).to(logits))
        return Measured(losses.sum(), losses, weights, logits=logits, labels=labels)

    def configure_optimizers(self) -> StackedOptimizer:
        rates, decays = self._per_parameter("lr"), self._per_parameter("weight_decay")
        groups = [
            {"params": [p], "lr": rates[name], "weight_decay": decays[name]}
            for name, p in self.state.items()
            if p.requires_grad
        ]
        schedules = [config.schedule for config in self.configs]
        options = [config.options for config in self.configs]
        return StackedOptimizer(self.configs[0].optimizer, groups, options, schedules)

    def _per_parameter(self, number: str) -> Tensors:
        """A number of the parameter groups for each parameter, (J,)."""
        named = {id(p): name for name, p in self.model.named_parameters()}
        each = [{named[id(p)]: g[number] for g in c.groups for p in g["params"]} for c in self.configs]
        return {name: torch.tensor([one[name] for one in each], dtype=torch.float64) for name in each[0]}

    @property
    def optimizer(self) -> StackedOptimizer:
        (optimizer,) = self.trainer.optimizers
        assert isinstance(optimizer, StackedOptimizer)
        return optimizer

    def rates(self) -> list[dict[str, float]]:
        factors = self.optimizer.factors().tolist()
        return [
            {f"lr/{group['name']}": group["lr"] * factor for group in config.groups}
            for config, factor in zip(self.configs, factors, strict=True)
        ]

    def gradient_norms(self) -> Tensor:
        each = [p.grad.flatten(1).norm(dim=1) for p in self.tensors if p.grad is not None]
        return torch.stack(each).norm(dim=0)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Each job's own gradient is clipped, as torch.nn.utils.clip_grad_norm_ does."""
        most = kwargs.get("gradient_clip_val") or (args[0] if args else None)
        if most is None:
            return
        factors = (most / (self.gradient_norms() + 1e-6)).clamp(max=1.0)
        for p in self.tensors:
            if p.grad is not None:
                p.grad.mul_(broadcast(factors, p))

    def values(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.state.items():
            yield name, value.detach().abs().flatten(1).amax(1) if value.ndim > 1 else value.detach().abs()

    def fail(self, job: int, error: RunError) -> None:
        self.jobs[job].error = told = RunError(f"{error}; {self.jobs[job].best}")
        self.failed(job, told)
        if not self.live:
            self.trainer.should_stop = True

    def snapshot(self) -> Snapshot:
        """All tensors that training changes, as they are."""
        found: Snapshot = {("state", name): value.detach() for name, value in self.state.items()}
        for name, p in self.state.items():
            for buffer, value in self.optimizer.state.get(p, {}).items():
                found[buffer, name] = value
        return found
