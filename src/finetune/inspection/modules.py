"""The modules of a model in order of execution: what each gives, holds and costs, and what of it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from finetune.model.hooks import ModuleCall, watch_calls
from finetune.model.parameters import owners
from finetune.model.tracing import keep_modes

T = TypeVar("T")
ROWS = 40  # more modules than this fold into the ones around them


@dataclass
class Executed:
    """What one forward pass showed of a module: calls, multiply-adds, and its first output's shape."""

    calls: int = 0
    macs: float = 0.0
    output: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Group:
    name: str
    lr: float


@dataclass(frozen=True)
class ModuleRow:
    """One module with all that lies below it and has no row of its own, or one parameter of a parent's.

    output: shape for one image, None where a module is never called. trainable: how many parameters train.
    mode: train, eval, or mixed where the modules below differ. macs: multiply-adds for one image.
    constant: it lies wholly before the gradient boundary and runs once an image.
    """

    name: str
    type: str
    output: tuple[int, ...] | None = None
    calls: int = 0
    parameters: int = 0
    trainable: int = 0
    mode: str | None = None
    groups: tuple[Group, ...] = ()
    macs: float = 0.0
    constant: bool = False


def execute_modules(model: nn.Module, example: Tensor) -> dict[str, Executed]:
    """Run a model on one image, (1, C, H, W), in eval mode and tell what its modules did.

    Returns: by name, in the order in which they begin. A container that is never called itself, such as a
    ModuleList, has what the modules in it did, and the output of the last.
    """
    seen: dict[str, Executed] = {}
    flops: list[float] = []

    def begin(call: ModuleCall) -> None:
        for name in [*owners(call.name)[1:], call.name]:
            seen.setdefault(name, Executed())
        flops.append(counter.get_total_flops())

    def end(call: ModuleCall, output: Any) -> None:
        macs = (counter.get_total_flops() - flops.pop()) / 2
        shapes = [tuple(leaf.shape[1:]) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        module = seen[call.name]
        module.calls, module.macs = module.calls + 1, module.macs + macs
        if module.output is None and shapes:
            module.output = shapes[0]
        called = {name for name, _ in inside}
        for name in reversed(owners(call.name)[1:]):
            if name in called:
                break
            container = seen[name]
            container.calls, container.macs, container.output = 1, container.macs + macs, module.output

    counter = FlopCounterMode(display=False)
    with keep_modes(model), torch.no_grad(), counter, watch_calls(model, begin, end) as inside:
        model.eval().requires_grad_(False)(example)
    return seen


def module_rows(
    model: nn.Module,
    seen: Mapping[str, Executed],
    groups: Iterable[Mapping[str, Any]],
    constant: Sequence[str],
    depth: int | None = None,
) -> list[ModuleRow]:
    """The modules in order of execution, folded below a depth; each parameter counts in one row.

    A module that the gradient boundary runs through is unfolded whatever the depth.

    groups: the optimiser's. constant: the outermost modules before the boundary (`Split.frozen`).
    depth: 1 for the model's children, 2 for theirs…; None: the deepest with 40 rows at most.
    """
    by_parameter = {id(p): Group(one["name"], float(one["lr"])) for one in groups for p in one["params"]}
    table = _Table(dict(model.named_modules()), seen, by_parameter, constant)
    return fold_to(depth, ROWS, model, lambda depth: list(table.rows(depth)))


def fold_to(depth: int | None, most: int, model: nn.Module, rows_at: Callable[[int], list[T]]) -> list[T]:
    """The rows at a depth; None: at the deepest with `most` rows at most."""
    if depth is not None:
        return rows_at(depth)
    rows = rows_at(1)
    for deeper in range(2, max(name.count(".") for name, _ in model.named_modules()) + 2):
        unfolded = rows_at(deeper)
        if len(unfolded) > most:
            break
        rows = unfolded
    return rows


def boundary_index(rows: Sequence[ModuleRow]) -> int:
    """The row that the gradient boundary comes before: the first that does not run once an image.

    A module without parameters that is called again later (a block's only ReLU) does not tell where that is.
    """
    for index, row in enumerate(rows):
        if row.calls and not row.constant and (row.calls == 1 or row.parameters):
            return index
    return len(rows)


@dataclass
class _Table:
    modules: dict[str, nn.Module]
    seen: Mapping[str, Executed]
    groups: Mapping[int, Group]
    constant: Sequence[str]

    def rows(self, depth: int) -> Iterator[ModuleRow]:
        """Of an unfolded module: its own parameters, the modules in it that never run, then the others."""
        holders = {name.rpartition(".")[0] for name in self.seen}
        unfolded = {""}
        for name in ["", *self.seen]:  # modules begin after those around them
            if name and name.rpartition(".")[0] not in unfolded:
                continue
            if name and (name not in holders or not self._unfolds(name, depth)):
                yield self._module(name)
                continue
            unfolded.add(name)
            prefix = f"{name}." if name else ""
            for own, parameter in self.modules[name].named_parameters(recurse=False):
                yield ModuleRow(name=prefix + own, type="Parameter", **self._held([parameter]))
            for own, child in self.modules[name].named_children():
                idle = prefix + own in self.modules and prefix + own not in self.seen
                if idle and any(True for _ in child.parameters()):
                    yield self._module(prefix + own)

    def _unfolds(self, name: str, depth: int) -> bool:
        """Whether the depth asks for it, or some but not all of the module lies before the boundary."""
        inside = any(one.startswith(f"{name}.") for one in self.constant)
        return name.count(".") + 1 < depth or (inside and not self._is_constant(name))

    def _is_constant(self, name: str) -> bool:
        return any(one in self.constant for one in (*owners(name), name))

    def _module(self, name: str) -> ModuleRow:
        module = self.modules[name]
        leaves = [leaf for leaf in module.modules() if not any(leaf.children())]
        found = {"train" if leaf.training else "eval" for leaf in leaves}
        return ModuleRow(
            name=name,
            type=type(module).__name__,
            mode="mixed" if len(found) > 1 else found.pop(),
            constant=self._is_constant(name),
            **self._held(list(module.parameters())),
            **vars(self.seen.get(name, Executed())),
        )

    def _held(self, parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
        groups = [self.groups[id(p)] for p in parameters if id(p) in self.groups]
        return {
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "groups": tuple(dict.fromkeys(groups)),
        }
