"""The optimisers, an entry each; the defaults of each one's settings are in configs/optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from finetune.choices.fields import Fraction, NotNegative, Positive, Strict
from finetune.choices.given import Table, lacking

if TYPE_CHECKING:
    from torch import Tensor


class OptimizerSettings(Strict):
    """The settings that every optimiser has; a Python object has no others."""

    name: str


class SteppedSettings(OptimizerSettings):
    """Those of every optimiser that takes steps; what an entry has beyond them its class takes by name."""

    lr: Positive
    weight_decay: NotNegative
    backbone_lr_factor: Positive
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    decay_norm_and_bias: bool


# Moves a parameter (J, …) in place by its gradient: with its buffers, which begin with zeros; the optimiser's
# settings of each job, (J,), by their names; and the number of the step, from 1 on.
Move = Callable[["Tensor", Mapping[str, "Tensor"], Mapping[str, "Tensor"], int], None]


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimiser.

    settings: what `optimizer` may have below it. made_by: its class.
    move: how it moves the parameters of many jobs at once; without it each job of a sweep trains alone.
    buffers: the names of its state, as its class has them; counts_steps: whether `step` is part of it, too.
    solves: whether it finds the best head itself, so that nothing that is said of steps and epochs counts.
    """

    settings: type[OptimizerSettings]
    made_by: str | Callable[..., Any]
    buffers: tuple[str, ...] = ()
    move: Move | None = None
    counts_steps: bool = False
    solves: bool = False

    @property
    def together(self) -> bool:
        """Whether jobs of a sweep can share what is prepared."""
        return self.solves or self.move is not None


class SGD(SteppedSettings):
    """The settings of optimizer=sgd."""

    name: Literal["sgd"]
    momentum: Fraction
    nesterov: bool

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov=true: expected optimizer.momentum above 0 with it")
        return self


def _strength(value: Any) -> Any:
    """A number from 0 on, or auto."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "auto" and not (number and 0 <= value < math.inf):
        raise ValueError("a number, 0 or more, or auto (the best of 13)")
    return value


def move_sgd(p: Tensor, buffers: Mapping[str, Tensor], jobs: Mapping[str, Tensor], step: int) -> None:
    """As torch.optim.SGD does."""
    buffer, gradient, momentum = buffers["momentum_buffer"], p.grad, broadcast(jobs["momentum"], p)
    assert gradient is not None
    if jobs["weight_decay"].any():
        gradient = gradient + broadcast(jobs["weight_decay"], p) * p
    buffer.mul_(momentum).add_(gradient)  # it begins with zeros, so the first step sets it
    moved = buffer
    if jobs["nesterov"].any():
        ahead = gradient + momentum * buffer
        moved = ahead.where(broadcast(jobs["nesterov"], p).bool(), buffer)
    p.sub_(broadcast(jobs["lr"], p) * moved)


class AdamW(SteppedSettings):
    """The settings of optimizer=adamw."""

    name: Literal["adamw"]


def move_adamw(p: Tensor, buffers: Mapping[str, Tensor], jobs: Mapping[str, Tensor], step: int) -> None:
    """As torch.optim.AdamW does with its default betas and epsilon."""
    first, second, epsilon = 0.9, 0.999, 1e-8
    unbias = 1 - first**step, (1 - second**step) ** 0.5
    mean, square, gradient = buffers["exp_avg"], buffers["exp_avg_sq"], p.grad
    assert gradient is not None
    p.mul_(broadcast(1 - jobs["lr"] * jobs["weight_decay"], p))
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    p.sub_(broadcast(jobs["lr"] / unbias[0], p) * mean / (square.sqrt() / unbias[1] + epsilon))


class LBFGS(OptimizerSettings):
    """The settings of optimizer=lbfgs."""

    name: Literal["lbfgs"]
    weight_decay: Annotated[float | str, BeforeValidator(_strength)]
    select: Literal["cv", "val"]

    @property
    def chooses_by(self) -> Literal["cv", "val"] | None:
        """What the strength of the penalty is chosen by; None where it is given."""
        return self.select if self.weight_decay == "auto" else None


def broadcast(values: Tensor, like: Tensor) -> Tensor:
    """Numbers (J,) in the shape in which they multiply (J, …)."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))


OPTIMIZERS: Table[OptimizerEntry] = Table(
    sgd=OptimizerEntry(SGD, "torch.optim.SGD", ("momentum_buffer",), move_sgd),
    adamw=OptimizerEntry(
        AdamW, "torch.optim.AdamW", ("exp_avg", "exp_avg_sq"), move_adamw, counts_steps=True
    ),
    lbfgs=OptimizerEntry(LBFGS, "torch.optim.LBFGS", solves=True),
)
OPTIMIZERS.absent = OptimizerEntry(OptimizerSettings, lacking)
