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

from finetune.model.tracing import NotTraceable, Seen, fingerprint, observe, storages, trace, undone

__all__ = ["Crossing", "NotTraceable", "Split", "fingerprint", "split"]


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

    Raises:
        NotTraceable: the model's forward cannot be made a graph, or mixes the images of a batch.
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
    shapes = [(node.name, (*(k,) * (k > 1), *two[node].shape[1:])) for node, k in rows.items()]
    crossings = tuple(Crossing(name, shape, 4 * math.prod(shape)) for name, shape in shapes)
    return Split(prefix, suffix, crossings, _outermost(traced, cut))


@dataclass(frozen=True)
class _Cut:
    late: set[fx.Node]  # no constants: what trains, and what varies
    prefix: set[fx.Node]
    stored: list[fx.Node]  # the tensors that cross
    again: set[fx.Node]  # constants that the suffix makes for itself, from parameters or from what crosses
    sizes: list[fx.Node]  # constants other than tensors that the suffix needs
    cloned: set[fx.Node]  # stored, and written into by the suffix


def _parameters(traced: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    if node.op not in ("call_module", "get_attr"):
        return []
    value = operator.attrgetter(str(node.target))(traced)
    if isinstance(value, nn.Module):
        return list(value.parameters())
    return [value] if isinstance(value, nn.Parameter) else []


def _late(traced: fx.GraphModule, seen: Mapping[fx.Node, Seen]) -> set[fx.Node]:
    """The nodes whose output is no fixed function of the image; the model's own output counts as one."""
    state = storages([*traced.parameters(), *traced.buffers()])
    late: set[fx.Node] = set()
    reads: set[StorageWeakRef] = set()  # by late nodes: no constant may change it before they have
    writes: set[StorageWeakRef] = set()  # by late nodes: no constant any more
    for node, did in seen.items():
        trains = any(parameter.requires_grad for parameter in _parameters(traced, node))
        disturbed = did.reads & writes or did.writes & (reads | state)
        if node.op == "output" or trains or did.varies or disturbed or late & set(node.all_input_nodes):
            late.add(node)
            reads |= did.reads
            writes |= did.writes
    return late


def _cut(traced: fx.GraphModule, seen: Mapping[fx.Node, Seen]) -> _Cut:
    """Choose what crosses: as little as possible, so nothing that the suffix can make by moving data."""
    late = _late(traced, seen)
    order = {node: i for i, node in enumerate(seen)}
    last_write = {place: order[node] for node in order if node not in late for place in seen[node].writes}
    free: set[fx.Node] = set()  # constants made of parameters and sizes: the suffix can have them for nothing
    for node, did in seen.items():
        made = node.op != "placeholder" and all(dep in free for dep in node.all_input_nodes)
        if node not in late and (did.plain or (made and not did.writes)):
            free.add(node)

    def cost(nodes: set[fx.Node]) -> float:
        return sum(math.prod(shape) if (shape := seen[node].shape) else math.inf for node in nodes)

    def sources(node: fx.Node, stored: set[fx.Node]) -> set[fx.Node]:
        """The smallest tensors beside `stored` from which moving data makes `node`."""
        did = seen[node]
        stale = any(last_write.get(place, -1) > order[node] for place in did.reads)
        if node in stored or node.op == "placeholder" or did.writes or stale or not did.moves:
            return {node}
        below = {source for dep in node.all_input_nodes if dep not in free for source in sources(dep, stored)}
        return below if cost(below - stored) < cost({node}) else {node}

    stored = {dep for node in late for dep in node.all_input_nodes} - late - free
    for node in sorted(stored, key=order.__getitem__, reverse=True):
        stored = (stored - {node}) | sources(node, stored - {node})
    plain = {node for node, did in seen.items() if did.plain} - late
    needed = _upstream(late, stored | plain)
    sizes = {dep for node in needed for dep in node.all_input_nodes} & plain
    effects = {node for node, did in seen.items() if node not in late and (did.writes or not node.users)}
    written = {place for node in late for place in seen[node].writes}
    changed = [place for node in stored for place in seen[node].owns & written]
    if len(changed) > len(set(changed)):
        raise NotTraceable("constants that share memory are written into by what trains")
    return _Cut(
        late=late,
        prefix=_upstream(stored | effects, set()),
        stored=sorted(stored, key=order.__getitem__),
        again=needed - late,
        sizes=sorted(sizes, key=order.__getitem__),
        cloned={node for node in stored if seen[node].owns & written},
    )


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
    rows = len(two) // 2 if isinstance(two, Tensor) and two.dim() else 0
    if rows and three.shape == (3 * rows, *two.shape[1:]):
        again, scale = torch.cat([three[2 * rows :], three[:rows]]), float(two.abs().max().nan_to_num())
        if torch.allclose(two, again, rtol=1e-3, atol=1e-3 * scale, equal_nan=True):
            return rows
    raise NotTraceable(f"{node.meta['owner']}: the constant {node.name} is not computed image by image")


def _copy(traced: fx.GraphModule, nodes: set[fx.Node], graph: fx.Graph, env: dict[fx.Node, Any]) -> None:
    for node in traced.graph.nodes:
        if node in nodes:
            env[node] = graph.node_copy(node, env.__getitem__)


def _constants(traced: fx.GraphModule, cut: _Cut) -> fx.GraphModule:
    """The constant part of the model, returning all that the suffix needs of it."""
    graph, env = fx.Graph(), dict[fx.Node, Any]()
    _copy(traced, set(traced.graph.nodes) - cut.late, graph, env)
    graph.output([env[node] for node in cut.stored + cut.sizes])
    return fx.GraphModule(traced, graph)


def _prefix(traced: fx.GraphModule, cut: _Cut, rows: Mapping[fx.Node, int]) -> fx.GraphModule:
    graph, env = fx.Graph(), dict[fx.Node, Any]()
    _copy(traced, cut.prefix, graph, env)
    for node, k in rows.items():
        if k > 1:
            env[node] = graph.call_method("unflatten", (env[node], 0, (-1, k)))
    outputs = [env[node] for node in rows]
    graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
    return fx.GraphModule(traced, graph, "Prefix")


def _suffix(
    traced: fx.GraphModule, cut: _Cut, rows: Mapping[fx.Node, int], sizes: Mapping[fx.Node, tuple[Any, Any]]
) -> fx.GraphModule:
    graph, env = fx.Graph(), dict[fx.Node, Any]()
    features = graph.placeholder("features")
    alone = len(rows) == 1
    parts = [
        features if alone else graph.call_function(operator.getitem, (features, i)) for i in range(len(rows))
    ]

    def size(two: Any, three: Any) -> Any:
        """The size for any batch, from what it is for two images and for three."""
        if isinstance(two, tuple):
            return tuple(map(size, two, three))
        if two == three:
            return two
        if not isinstance(two, int) or 3 * two != 2 * three:
            raise NotTraceable(
                f"a value that is {two} for two images and {three} for three comes from the prefix"
            )
        return graph.call_function(operator.mul, (graph.call_method("size", (parts[0], 0)), two // 2))

    for part, (node, k) in zip(parts, rows.items(), strict=True):
        env[node] = graph.call_method("flatten", (part, 0, 1)) if k > 1 else part
        if node in cut.cloned:  # what is stored must stay as it is
            env[node] = graph.call_method("clone", (env[node],))
    env |= {node: size(*values) for node, values in sizes.items()}
    _copy(traced, cut.late | cut.again, graph, env)
    return fx.GraphModule(traced, graph, "Suffix")


def _outermost(traced: fx.GraphModule, cut: _Cut) -> tuple[str, ...]:
    """Names of the outermost modules of which every node lies in the prefix."""

    def lineage(node: fx.Node) -> list[str]:
        parts = str(node.target if node.op == "call_module" else node.meta["owner"]).split(".")
        return [".".join(parts[: i + 1]) for i in range(len(parts))]

    late = {path for node in cut.late for path in lineage(node)}
    constant = [node for node in traced.graph.nodes if node in cut.prefix]
    outermost = (next((path for path in lineage(node) if path not in late), "") for node in constant)
    return tuple(filter(None, dict.fromkeys(outermost)))
