"""The modules of a model in order of execution: what each gives, holds and costs, and what of it trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from finetune.model import modes

ROWS = 40  # more modules than this fold into the ones around them


@dataclass
class Executed:
    """What one forward pass showed of a module; start and end count the calls as they begin and end."""

    start: int
    end: int = 0
    calls: int = 0
    macs: float = 0.0
    output: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Row:
    """One module with all that lies below it and has no row of its own, or one parameter of a parent's.

    output: shape for one picture, None for a parameter or a module that is never called.
    macs: multiply-adds for one picture. mode: train, eval, or mixed where the modules below differ.
    groups: the optimiser's groups that hold its parameters, each with its learning rate.
    constant: it lies wholly before the gradient boundary and runs once a picture.
    """

    name: str
    type: str
    output: tuple[int, ...] | None
    calls: int
    parameters: int
    trainable: int
    mode: str
    groups: tuple[tuple[str, float], ...]
    macs: float
    constant: bool

    @property
    def trains(self) -> str:
        """trains, frozen, mixed, or nothing where there is no parameter."""
        if not self.parameters:
            return ""
        return {0: "frozen", self.parameters: "trains"}.get(self.trainable, "mixed")


def execute(model: nn.Module, example: Tensor) -> dict[str, Executed]:
    """Run a model on one picture, (1, C, H, W), in eval mode and tell what its modules did, by name."""
    seen: dict[str, Executed] = {}
    clock = iter(range(2**62))
    begun: list[float] = []

    def before(name: str) -> Any:
        def hook(*_: Any) -> None:
            seen.setdefault(name, Executed(next(clock)))
            begun.append(counter.get_total_flops())

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            one = seen[name]
            one.end, one.calls = next(clock), one.calls + 1
            one.macs += (counter.get_total_flops() - begun.pop()) / 2
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if one.output is None and tensors:
                one.output = tuple(tensors[0].shape[1:])

        return hook

    hooks = [
        hook
        for name, module in model.named_modules()
        for hook in (
            module.register_forward_pre_hook(before(name)),
            module.register_forward_hook(after(name)),
        )
    ]
    try:
        with modes.kept(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def rows(
    model: nn.Module,
    seen: Mapping[str, Executed],
    groups: Iterable[Mapping[str, Any]],
    constant: Sequence[str],
    depth: int | None = None,
) -> list[Row]:
    """The modules in order of execution, folded below a depth; each parameter counts in one row.

    A module that the gradient boundary runs through is unfolded whatever the depth.

    Args:
        seen: what `execute` told.
        groups: the optimiser's parameter groups, with name, params and lr.
        constant: the outermost modules before the boundary (`Split.frozen`).
        depth: 1 for the model's children, 2 for theirs…; None: the deepest with 40 rows at most.
    """
    table = _Table(model, seen, groups, constant)
    if depth is not None:
        return list(table.below("", depth))
    found = list(table.below("", 1))
    for deeper in range(2, table.deepest + 1):
        unfolded = list(table.below("", deeper))
        if len(unfolded) > ROWS:
            break
        found = unfolded
    return found


def boundary_index(found: Sequence[Row]) -> int:
    """The row that the gradient boundary comes before: the first that does not run once a picture.

    A module without parameters that is called again later (a block's only ReLU) does not tell where that is.
    """
    for index, row in enumerate(found):
        if row.calls and not row.constant and (row.calls == 1 or row.parameters):
            return index
    return len(found)


class _Table:
    def __init__(
        self,
        model: nn.Module,
        seen: Mapping[str, Executed],
        groups: Iterable[Mapping[str, Any]],
        constant: Sequence[str],
    ) -> None:
        self.seen, self.constant = seen, constant
        self.modules = dict(model.named_modules())
        self.group = {id(p): (str(one["name"]), float(one["lr"])) for one in groups for p in one["params"]}
        self.deepest = max(name.count(".") + 1 for name in self.modules)
        self.children: dict[str, list[str]] = {name: [] for name in self.modules}
        for name in self.modules:
            if name:
                self.children[name.rpartition(".")[0]].append(name)
        self.first: dict[str, int] = {}  # when a module, or the first below it, began
        for name, one in seen.items():
            while True:
                self.first[name] = min(one.start, self.first.get(name, one.start))
                if not name:
                    break
                name = name.rpartition(".")[0]

    def below(self, name: str, depth: int) -> Iterator[Row]:
        """The rows of what lies below a module."""
        for own, parameter in self.modules[name].named_parameters(recurse=False):
            yield self._parameter(f"{name}.{own}" if name else own, parameter)
        executed = [child for child in self.children[name] if child in self.first]
        for child in self.children[name]:
            if child not in self.first and any(True for _ in self.modules[child].parameters()):
                yield self._module(child)
        for child in sorted(executed, key=self.first.__getitem__):
            inside = any(below in self.first for below in self.children[child])
            if inside and (child.count(".") + 1 < depth or self._split(child)):
                yield from self.below(child, depth)
            else:
                yield self._module(child)

    def _split(self, name: str) -> bool:
        """Whether some but not all of a module lies before the boundary."""
        return not self._is_constant(name) and any(one.startswith(f"{name}.") for one in self.constant)

    def _is_constant(self, name: str) -> bool:
        return any(name == one or name.startswith(f"{one}.") for one in self.constant)

    def _parameter(self, name: str, parameter: nn.Parameter) -> Row:
        numbers = parameter.numel()
        trainable = numbers if parameter.requires_grad else 0
        groups = (self.group[id(parameter)],) if id(parameter) in self.group else ()
        return Row(name, "Parameter", None, 0, numbers, trainable, "", groups, 0.0, False)

    def _module(self, name: str) -> Row:
        module, parameters = self.modules[name], list(self.modules[name].parameters())
        inside = [one for below, one in self.seen.items() if below == name or below.startswith(f"{name}.")]
        called = self.seen.get(name)
        training = {leaf.training for leaf in module.modules() if not any(True for _ in leaf.children())}
        return Row(
            name,
            type(module).__name__,
            called.output if called else max(inside, key=lambda one: one.end).output if inside else None,
            called.calls if called else int(bool(inside)),
            sum(p.numel() for p in parameters),
            sum(p.numel() for p in parameters if p.requires_grad),
            "mixed" if len(training) > 1 else "train" if True in training else "eval",
            tuple(dict.fromkeys(self.group[id(p)] for p in parameters if id(p) in self.group)),
            called.macs if called else self._macs(name),
            self._is_constant(name),
        )

    def _macs(self, name: str) -> float:
        """Multiply-adds of a module that is never called itself, such as a ModuleList."""
        return sum(
            self.seen[child].macs if child in self.seen else self._macs(child)
            for child in self.children[name]
        )
