"""The autograd graph of one training step, from the leaves (image, parameters) to the root (loss).

What carries a gradient is a node of autograd's own graph, by the name that PyTorch prints (`AddmmBackward0`).
What is frozen has no `grad_fn`: there the calls of the forward pass themselves are the nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from finetune.inspection.modules import fold_to
from finetune.model.hooks import ModuleCall, watch_calls
from finetune.model.tracing import undone
from finetune.training.losses import Loss

NODES = 26  # more than this fold into the modules around them
LOSS = ModuleCall("loss", 0)


@dataclass(frozen=True)
class Leaf:
    """Where the graph begins: a parameter, the image or the label."""

    name: str
    shape: tuple[int, ...]
    requires_grad: bool


@dataclass
class Call:
    """One call of a torch function.

    inside: the calls of modules that it is in, outermost first. inputs: the calls that it takes tensors from.
    grad_fns: the nodes it added to autograd's graph. late: it or something before it carries a gradient.
    """

    function: str
    shape: tuple[int, ...]
    inside: tuple[ModuleCall, ...] = ()
    inputs: set[int] = field(default_factory=set)
    leaves: list[Leaf] = field(default_factory=list)
    grad_fns: list[Any] = field(default_factory=list)
    late: bool = False


@dataclass
class Node:
    """Calls folded into one: those of a module and all below it, or one that a container makes itself.

    grad_fns: names of autograd's nodes in the order in which the forward pass made them, and how many of
    each; empty where nothing carries a gradient. shape: of the output, for one image.
    """

    name: str
    type: str
    late: bool
    grad_fns: Counter[str] = field(default_factory=Counter)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    shape: tuple[int, ...] = ()


class _Recorder(TorchFunctionMode):
    """Notes each call of a torch function; the first stands for the image."""

    def __init__(self, leaves: dict[int, Leaf], images: Tensor, inside: list[ModuleCall]) -> None:
        super().__init__()
        self.leaves, self.inside = leaves, inside
        self.calls = [Call("image", tuple(images.shape[1:]))]
        self.producer = {id(images): 0}
        self.known: set[Any] = set()
        self.alive: list[Tensor] = [images]  # or an id would be given twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = _tensors(result)
        if not outputs:
            return result
        given = [id(tensor) for tensor in _tensors((args, kwargs))]
        inputs = {self.producer[one] for one in given if one in self.producer}
        made: list[Any] = []
        for output in outputs:
            nodes = list(_walk(output.grad_fn, self.known))
            # AccumulateGrad stands for the leaf
            made += [node for node in nodes[::-1] if type(node).__name__ != "AccumulateGrad"]
        self.producer |= {id(output): len(self.calls) for output in outputs}
        self.alive += outputs
        call = Call(
            getattr(func, "__name__", str(func)).strip("_"),
            tuple(outputs[0].shape[1:]),
            tuple(self.inside),
            inputs,
            leaves=[self.leaves[one] for one in given if one in self.leaves],
            grad_fns=made,
            late=bool(made) or any(self.calls[one].late for one in inputs),
        )
        self.calls.append(call)
        return result


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def _walk(root: Any, known: set[Any]) -> Iterator[Any]:
    """Autograd's nodes from a root backwards that are not known yet; each is known from then on."""
    todo = [root]
    while todo:
        node = todo.pop()
        if node is not None and node not in known:
            known.add(node)
            yield node
            todo += [before for before, _ in node.next_functions]


def record_step(model: nn.Module, loss: Loss, example: Tensor, label: Tensor) -> list[Call]:
    """Run one training step's forward pass on two images of noise and tell its calls, the loss the last.

    example: (1, C, H, W), of which only the size matters. label: of one image, (1,) or (1, outputs).
    Calls that the loss does not need are left out. The model is left as it was.
    """
    device = example.device
    with undone(model, device), torch.enable_grad(), watch_calls(model) as inside:
        images = torch.randn(2, *example.shape[1:], device=device)  # BatchNorm may need more than one
        labels = torch.cat([label, label]).to(device)
        leaves = {id(p): Leaf(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()}
        leaves[id(labels)] = Leaf("labels", tuple(labels.shape[1:]), False)
        with _Recorder(leaves, images, inside) as recorder:
            logits = model(images)
            inside.append(LOSS)
            value, _ = loss(logits, labels)
        return _needed(recorder.calls, set(_walk(value.grad_fn, set())))


def _needed(calls: list[Call], reached: set[Any]) -> list[Call]:
    """The calls that the loss needs and that the image or a parameter goes into, renumbered."""
    fed, needed = set[int](), {len(calls) - 1}
    for number, call in enumerate(calls):  # what a call takes comes before it
        if not number or call.leaves or call.inputs & fed:
            fed.add(number)
    for number in reversed(range(len(calls))):
        if number in needed:
            needed |= calls[number].inputs
    kept = sorted(fed & needed)
    new = {number: index for index, number in enumerate(kept)}
    for number in kept:
        call = calls[number]
        call.inputs = {new[one] for one in call.inputs if one in new}
        call.grad_fns = [node for node in call.grad_fns if node in reached]
    return [calls[number] for number in kept]


def fold_calls(calls: list[Call], model: nn.Module, depth: int | None = None) -> list[Node]:
    """Fold the calls below a depth into the modules they belong to, in order of the data.

    depth: 1 for the model's children, 2 for theirs…; None: the deepest with 26 nodes at most.
    A module that carries a gradient only in part gives two nodes.
    """
    containers = {call.name for one in calls for call in one.inside[:-1]}
    return fold_to(depth, NODES, model, lambda depth: _folded(calls, model, containers, depth))


def _folded(calls: list[Call], model: nn.Module, containers: set[str], depth: int) -> list[Node]:
    nodes: list[Node] = []
    indices: dict[Any, int] = {}
    owner: list[int] = []  # the node of each call
    for number, call in enumerate(calls):
        module = _folds_into(call.inside, containers, depth)
        index = indices.setdefault((module, call.late) if module else number, len(nodes))
        if index == len(nodes):
            name, kind = call.function, ""
            if module:
                name = module.name
                kind = "" if module == LOSS else type(model.get_submodule(name)).__name__
            nodes.append(Node(name, kind, call.late))
        owner.append(index)
        node = nodes[index]
        node.grad_fns.update(type(one).__name__ for one in call.grad_fns)
        node.leaves.update({leaf.name: leaf for leaf in call.leaves})
        node.shape = call.shape
        for source in sorted(call.inputs):
            if owner[source] != index and owner[source] not in node.inputs:
                node.inputs.append(owner[source])
    return nodes


def _folds_into(inside: tuple[ModuleCall, ...], containers: set[str], depth: int) -> ModuleCall | None:
    """The module that a call is folded into; None for a call that an unfolded container makes itself."""
    shown = [call for call in inside if call.name.count(".") < depth] or inside[:1]
    if not shown:
        return None
    innermost = shown[-1]
    unfolded = innermost.name in containers and innermost.name.count(".") + 1 < depth
    return None if unfolded and innermost == inside[-1] else innermost
