"""The autograd graph of one training step, from the leaves (image, parameters) to the root (loss).

What carries a gradient is a node of autograd's own graph, by the name that PyTorch prints (`AddmmBackward0`).
What is frozen has no `grad_fn`: there the calls of the forward pass themselves are the nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from finetune.model.tracing import undone

NODES = 26  # more than this fold into the modules around them
Place = tuple[str, int]  # a module's name, and which call of it


@dataclass(frozen=True)
class Leaf:
    """Where the graph begins: a parameter, the picture or the label."""

    name: str
    shape: tuple[int, ...]
    requires_grad: bool


@dataclass
class Call:
    """One call of a torch function. grad_fns: the nodes it added to autograd's graph."""

    places: tuple[Place, ...]
    function: str
    inputs: set[int]
    leaves: list[Leaf]
    grad_fns: list[Any]
    shape: tuple[int, ...]
    late: bool  # it or something before it carries a gradient


@dataclass
class Node:
    """Calls folded into one: those of a module and all below it, or one that a container makes itself.

    grad_fns: names of autograd's nodes in the order in which the forward pass made them, and how many of
    each; empty where nothing carries a gradient. shape: of the output, for one picture.
    """

    name: str
    type: str
    late: bool
    grad_fns: Counter[str] = field(default_factory=Counter)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    shape: tuple[int, ...] = ()


class _Recorder(TorchFunctionMode):
    def __init__(self, leaves: dict[int, Leaf], picture: Tensor) -> None:
        super().__init__()
        self.leaves, self.places = leaves, list[Place]()
        shape = tuple(picture.shape[1:])
        self.calls = [Call((), "image", set(), [], [], shape, False)]
        self.producer = {id(picture): 0}
        self.known: set[Any] = set()
        self.alive: list[Tensor] = [picture]  # or an id would be given twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if outputs:
            given = [id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            leaves = [self.leaves[one] for one in given if one in self.leaves]
            inputs = {self.producer[one] for one in given if one in self.producer}
            made = [node for output in outputs for node in self._new(output.grad_fn)]
            late = bool(made) or any(self.calls[one].late for one in inputs)
            name = getattr(func, "__name__", str(func)).strip("_")
            shape = tuple(outputs[0].shape[1:])
            self.calls.append(Call(tuple(self.places), name, inputs, leaves, made, shape, late))
            for output in outputs:
                self.producer[id(output)] = len(self.calls) - 1
            self.alive += outputs
        return result

    def _new(self, root: Any) -> list[Any]:
        """The nodes from a root backwards that no earlier call has made, the earliest first."""
        found, todo = [], [root]
        while todo:
            node = todo.pop()
            if node is None or node in self.known:
                continue
            self.known.add(node)
            if type(node).__name__ != "AccumulateGrad":  # it stands for the leaf
                found.append(node)
            todo += [before for before, _ in node.next_functions]
        return found[::-1]


def record(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], example: Tensor, label: Tensor
) -> list[Call]:
    """Run one training step's forward pass on two pictures of noise and tell its calls, the loss the last.

    example: (1, C, H, W), of which only the size matters. label: of one picture, (1,) or (1, outputs).
    Calls that the loss does not need are left out. The model is left as it was.
    """
    device = example.device
    with undone(model, device), torch.enable_grad():
        pictures = torch.randn(2, *example.shape[1:], device=device)  # BatchNorm may need more than one
        labels = torch.cat([label, label]).to(device)
        leaves = {id(p): Leaf(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()}
        leaves[id(labels)] = Leaf("labels", tuple(labels.shape[1:]), False)
        recorder = _Recorder(leaves, pictures)
        with _placed(model, recorder.places), recorder:
            logits = model(pictures)
            recorder.places.append(("loss", 0))
            value = loss(logits, labels)
        return _needed(recorder.calls, value)


@contextmanager
def _placed(model: nn.Module, places: list[Place]) -> Iterator[None]:
    """Keep `places` at the modules that the forward pass is in, outermost first."""
    calls: Counter[str] = Counter()

    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1
            places.append((name, calls[name]))

        return hook

    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(enter(name)))
            hooks.append(module.register_forward_hook(lambda *_: places.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _needed(calls: list[Call], loss: Tensor) -> list[Call]:
    """The calls that the loss needs and that the picture or a parameter goes into; numbered anew."""
    reached = set(_walk(loss.grad_fn))
    wanted, fed = {len(calls) - 1}, {0}
    for number in range(len(calls) - 1, -1, -1):
        if number in wanted:
            wanted |= calls[number].inputs
    for number, call in enumerate(calls):
        if call.leaves or call.inputs & fed:
            fed.add(number)
    kept = [number for number in range(len(calls)) if number in wanted & fed]
    place = {number: new for new, number in enumerate(kept)}
    for number in kept:
        call = calls[number]
        call.inputs = {place[one] for one in call.inputs if one in place}
        call.grad_fns = [node for node in call.grad_fns if node in reached]
    return [calls[number] for number in kept]


def _walk(root: Any) -> Iterator[Any]:
    seen, todo = set(), [root]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo += [before for before, _ in node.next_functions]


def fold(calls: list[Call], model: nn.Module, depth: int | None = None) -> list[Node]:
    """Fold the calls below a depth into the modules they belong to, in order of the data.

    depth: 1 for the model's children, 2 for theirs…; None: the deepest with 26 nodes at most.
    A module that carries a gradient only in part gives two nodes.
    """
    if depth is not None:
        return _fold(calls, model, depth)
    found = _fold(calls, model, 1)
    for deeper in range(2, max(name.count(".") + 1 for name, _ in model.named_modules()) + 1):
        unfolded = _fold(calls, model, deeper)
        if len(unfolded) > NODES:
            break
        found = unfolded
    return found


def _fold(calls: list[Call], model: nn.Module, depth: int) -> list[Node]:
    containers = {place[0] for call in calls for place in call.places[:-1]}
    keys: dict[Any, int] = {}
    nodes: list[Node] = []
    for number, call in enumerate(calls):
        place = _shown(call.places, containers, depth)
        key = number if place is None else (place, call.late)
        if key not in keys:
            keys[key] = len(nodes)
            nodes.append(_begun(call, place, model))
    owner = {}
    for number, call in enumerate(calls):
        place = _shown(call.places, containers, depth)
        index = owner[number] = keys[number if place is None else (place, call.late)]
        node = nodes[index]
        node.grad_fns.update(type(one).__name__ for one in call.grad_fns)
        node.leaves.update({leaf.name: leaf for leaf in call.leaves})
        node.shape = call.shape
        inputs = [owner[one] for one in sorted(call.inputs)]
        node.inputs += [one for one in dict.fromkeys(inputs) if one != index and one not in node.inputs]
    return nodes


def _shown(places: tuple[Place, ...], containers: set[str], depth: int) -> Place | None:
    """The module that a call is folded into; None for a call that an unfolded container makes itself."""
    inside = [place for place in places if place[0].count(".") < depth] or list(places[:1])
    if not inside:
        return None
    unfolded = (
        inside[-1] == places[-1] and inside[-1][0] in containers and inside[-1][0].count(".") + 1 < depth
    )
    return None if unfolded else inside[-1]


def _begun(call: Call, place: Place | None, model: nn.Module) -> Node:
    if place is None:
        return Node(call.function, "", call.late)
    name = place[0]
    if place == ("loss", 0):
        return Node("loss", "", call.late)
    return Node(name, type(model.get_submodule(name)).__name__, call.late)
