"""Split a model where gradients begin: a constant prefix, run once per image, and the suffix, which trains.

An output needs a gradient if and only if one of its inputs does. The rule is applied to each node of the
model's graph; what else a node does (draw random numbers, use the batch's statistics, write into a tensor) is
not looked up in a list of modules but observed on random images.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef

from finetune.model.agreement import alike, computes
from finetune.model.parameters import owners
from finetune.model.tracing import NotTraceable, Seen, observe, storages, trace, undone


class Crossing(NamedTuple):
    """One tensor that goes from the prefix to the suffix: its shape and its bytes in float32, per image."""

    name: str
    shape: tuple[int, ...]
    size: int


class Split(NamedTuple):
    """Two halves of a model, made of its own modules and parameters: `suffix(prefix(x))` equals `model(x)`.

    `prefix` maps images (B, C, H, W) to a tensor or a tuple of tensors, each with B first, and `suffix` takes
    exactly that. Where nothing frozen comes first, `prefix` is None and `suffix` is the model. Where nothing
    trains, `suffix` hands its input on. `frozen` names the outermost modules that lie wholly in the prefix.
    """

    prefix: fx.GraphModule | None
    suffix: nn.Module
    crossings: tuple[Crossing, ...]
    frozen: tuple[str, ...]


def split(model: nn.Module, example: Tensor) -> Split:
    """Split `model` at the gradient boundary; its modules are to be in the modes in which they will train.

    Of `example` (B, C, H, W) only shape, dtype and device matter. The model is left as it was. Move it to its
    device first: buffers that `forward` reads directly stay where they are.
    NotTraceable: the model's forward cannot be made a graph, mixes the images of a batch, or is not all that
        calling the model does.
    """
    traced = trace(model)
    with undone(model, example.device):
        images = torch.randn(3, *example.shape[1:], dtype=example.dtype, device=example.device)
        cut = _cut(traced, observe(traced, images[:2]))
        if not any(_parameters(traced, node) for node in _upstream(cut.stored, set())):
            return Split(None, model, (), ())
        constants, needed = _constants(traced, cut), cut.stored + cut.sizes
        two, three = (dict(zip(needed, constants(images[i]), strict=True)) for i in ([0, 1], [1, 2, 0]))
    rows = {node: _rows_per_image(node, two[node], three[node]) for node in cut.stored}
    prefix = _prefix(traced, cut, rows)
    suffix = _suffix(traced, cut, rows, {node: (two[node], three[node]) for node in cut.sizes})
    crossings = tuple(_crossing(node, per_image, two[node]) for node, per_image in rows.items())
    if not computes(model, lambda batch: suffix(prefix(batch)), images[:2]):
        what = "its graph computes something else, or other gradients (hooks, no_grad, a replaced forward)"
        raise NotTraceable(f"{type(model).__name__}: {what}")
    return Split(prefix, suffix, crossings, _outermost(traced, cut))


def _crossing(node: fx.Node, rows: int, value: Tensor) -> Crossing:
    shape = tuple(value.shape[1:]) if rows == 1 else (rows, *value.shape[1:])
    return Crossing(node.name, shape, 4 * math.prod(shape))


@dataclass(frozen=True)
class _Cut:
    needs_grad: set[fx.Node]  # after the boundary: what trains, what varies, and all that follows
    prefix: set[fx.Node]
    stored: list[fx.Node]  # the tensors that cross
    recomputed: set[fx.Node]  # constants that the suffix makes for itself, from parameters or from `stored`
    sizes: list[fx.Node]  # constants other than tensors that the suffix needs
    cloned: set[fx.Node]  # stored, and written into by the suffix


def _parameters(traced: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    if node.op not in ("call_module", "get_attr"):
        return []
    value = operator.attrgetter(str(node.target))(traced)
    if isinstance(value, nn.Module):
        return list(value.parameters())
    return [value] if isinstance(value, nn.Parameter) else []


def _needs_grad(traced: fx.GraphModule, seen: Mapping[fx.Node, Seen]) -> set[fx.Node]:
    """The nodes whose output is no fixed function of the image; the model's own output counts as one."""
    state = storages([*traced.parameters(), *traced.buffers()])
    found: set[fx.Node] = set()
    reads: set[StorageWeakRef] = set()  # by those found: no constant may change it before they have read it
    writes: set[StorageWeakRef] = set()  # by those found: no constant any more
    for node, did in seen.items():
        trains = any(parameter.requires_grad for parameter in _parameters(traced, node))
        disturbed = did.reads & writes or did.writes & (reads | state)
        if node.op == "output" or trains or did.varies or disturbed or found & set(node.all_input_nodes):
            found.add(node)
            reads |= did.reads
            writes |= did.writes
    return found


def _cut(traced: fx.GraphModule, seen: Mapping[fx.Node, Seen]) -> _Cut:
    """Choose what crosses: nothing that the suffix can make of the rest by moving data."""
    needs_grad = _needs_grad(traced, seen)
    stored = _crossing_nodes(seen, needs_grad)
    non_tensor = {node for node, did in seen.items() if did.non_tensor} - needs_grad
    needed = _upstream(needs_grad, stored | non_tensor)
    sizes = {dep for node in needed for dep in node.all_input_nodes} & non_tensor
    effects = {node for node in seen.keys() - needs_grad if seen[node].writes or not node.users}
    written = {storage for node in needs_grad for storage in seen[node].writes}
    changed = [storage for node in stored for storage in seen[node].aliases & written]
    if len(changed) > len(set(changed)):
        raise NotTraceable("constants that share memory are written into by what trains")
    return _Cut(
        needs_grad=needs_grad,
        prefix=_upstream(stored | effects, set()),
        stored=sorted(stored),
        recomputed=needed - needs_grad,
        sizes=sorted(sizes),
        cloned={node for node in stored if seen[node].aliases & written},
    )


def _crossing_nodes(seen: Mapping[fx.Node, Seen], needs_grad: set[fx.Node]) -> set[fx.Node]:
    """The constant tensors that the suffix needs, but for what it makes of the others by moving data."""
    parameter_only: set[fx.Node] = set()  # made of parameters and sizes: the suffix has them for nothing
    last_write: dict[StorageWeakRef, fx.Node] = {}
    for node, did in seen.items():
        if node in needs_grad:
            continue
        made = node.op != "placeholder" and parameter_only.issuperset(node.all_input_nodes)
        if did.non_tensor or (made and not did.writes):
            parameter_only.add(node)
        last_write |= dict.fromkeys(did.writes, node)

    stored = {dep for node in needs_grad for dep in node.all_input_nodes} - needs_grad - parameter_only
    for node in sorted(stored, reverse=True):
        did, inputs = seen[node], {*node.all_input_nodes} - parameter_only
        stale = any(last_write.get(storage, node) > node for storage in did.reads)
        if inputs and inputs < stored and did.moves and not (did.writes or stale):
            stored.remove(node)
    return stored


def _upstream(nodes: Iterable[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    """The nodes and all that they need, as far as `stop`."""
    found: set[fx.Node] = set()
    todo = list(nodes)
    while todo:
        if (node := todo.pop()) not in found and node not in stop:
            found.add(node)
            todo += node.all_input_nodes
    return found


def _rows_per_image(node: fx.Node, two: Any, three: Any) -> int:
    """How many rows of a crossing tensor belong to an image, checked on images 0, 1 and again on 1, 2, 0."""
    if isinstance(two, Tensor) and not two.is_floating_point():
        raise NotTraceable(f"{node.meta['owner']}: the constant {node.name} is no real numbers ({two.dtype})")
    rows = len(two) // 2 if isinstance(two, Tensor) and two.dim() else 0
    if rows and three.shape == (3 * rows, *two.shape[1:]):
        same = torch.cat([three[2 * rows :], three[:rows]])
        if alike(two, same):
            return rows
    raise NotTraceable(f"{node.meta['owner']}: the constant {node.name} is not computed image by image")


def _copy(traced: fx.GraphModule, nodes: set[fx.Node], graph: fx.Graph, env: dict[fx.Node, Any]) -> None:
    for node in traced.graph.nodes:
        if node in nodes:
            env[node] = graph.node_copy(node, env.__getitem__)


def _constants(traced: fx.GraphModule, cut: _Cut) -> fx.GraphModule:
    """The constant part of the model, returning all that the suffix needs of it."""
    graph, env = fx.Graph(), dict[fx.Node, Any]()
    _copy(traced, set(traced.graph.nodes) - cut.needs_grad, graph, env)
    graph.output([env[node] for node in cut.stored + cut.sizes])
    return fx.GraphModule(traced, graph)


def _prefix(traced: fx.GraphModule, cut: _Cut, rows: Mapping[fx.Node, int]) -> fx.GraphModule:
    graph, env = fx.Graph(), dict[fx.Node, Any]()
    _copy(traced, cut.prefix, graph, env)
    outputs = []
    for node, per_image in rows.items():
        if per_image > 1:
            env[node] = graph.call_method("unflatten", (env[node], 0, (-1, per_image)))
        outputs.append(env[node])
    graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
    return fx.GraphModule(traced, graph, "Prefix")


def _suffix(
    traced: fx.GraphModule, cut: _Cut, rows: Mapping[fx.Node, int], sizes: Mapping[fx.Node, tuple[Any, Any]]
) -> fx.GraphModule:
    graph, env = fx.Graph(), dict[fx.Node, Any]()
    parts = [graph.placeholder("features")]
    if len(rows) > 1:
        parts = [graph.call_function(operator.getitem, (parts[0], i)) for i in range(len(rows))]
    for part, (node, per_image) in zip(parts, rows.items(), strict=True):
        env[node] = graph.call_method("flatten", (part, 0, 1)) if per_image > 1 else part
        if node in cut.cloned:  # what is stored must stay as it is
            env[node] = graph.call_method("clone", (env[node],))
    for node, (two, three) in sizes.items():
        env[node] = _size(graph, parts[0], two, three)
    _copy(traced, cut.needs_grad | cut.recomputed, graph, env)
    return fx.GraphModule(traced, graph, "Suffix")


def _size(graph: fx.Graph, batch: fx.Node, two: Any, three: Any) -> Any:
    """A size for any batch, from what it is for two images and for three."""
    if isinstance(two, tuple):
        return tuple(_size(graph, batch, *pair) for pair in zip(two, three, strict=True))
    if two == three:
        return two
    if not isinstance(two, int) or 3 * two != 2 * three:
        raise NotTraceable(
            f"a value that is {two} for two images and {three} for three comes from the prefix"
        )
    return graph.call_function(operator.mul, (graph.call_method("size", (batch, 0)), two // 2))


def _outermost(traced: fx.GraphModule, cut: _Cut) -> tuple[str, ...]:
    """Names of the outermost modules of which every node lies in the prefix."""

    def lineage(node: fx.Node) -> list[str]:
        name = str(node.target if node.op == "call_module" else node.meta["owner"])
        return [*owners(name)[1:], name]

    after = {path for node in cut.needs_grad for path in lineage(node)}
    constant = [node for node in traced.graph.nodes if node in cut.prefix]
    outermost = (next((path for path in lineage(node) if path not in after), "") for node in constant)
    return tuple(filter(None, dict.fromkeys(outermost)))
