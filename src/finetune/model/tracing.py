"""A model as a graph of nodes, and what each node does beside computing its output."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COPIES = {"aten::cat", "aten::stack", "aten::clone", "aten::_unsafe_view"}


_ALONE = threading.RLock()  # what fx puts in the place of torch's own code is there for all threads


class NotTraceable(ValueError):
    """The model has no graph to split; the one-line message names the module and the reason."""


def trace(model: nn.Module) -> fx.GraphModule:
    """The model's graph, over its own modules, parameters and buffers, right in train and in eval mode.

    Tracing burns in what `self.training` was, so the model is traced in both modes: a module whose two traces
    differ, or that cannot be traced at all, stays whole, and so do all of its class. The graph takes one
    tensor; other arguments of `forward` keep their defaults. Raises NotTraceable if that module is the model.
    """
    whole: set[str | type] = set()
    with _ALONE, keep_modes(model), torch.random.fork_rng(devices=()):
        while True:
            try:
                training, evaluating = (_trace(model, whole, mode) for mode in (True, False))
                _compare(training.graph, evaluating.graph)
                return training
            except _ObstacleError as obstacle:
                if not obstacle.path:
                    raise NotTraceable(f"{type(model).__name__}: {obstacle.reason}") from None
                kind = type(model.get_submodule(obstacle.path))
                whole.add(obstacle.path if kind.__module__.startswith("torch.nn") else kind)


class _ObstacleError(Exception):
    """`path` is the innermost module that cannot be traced into; empty for the model itself."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


class _Proxy(fx.Proxy):
    """Keeps `x += y` in place: fx itself would trace `x = x + y`, and other views of x would not change."""

    __iadd__ = _in_place(operator.iadd)
    __isub__ = _in_place(operator.isub)
    __imul__ = _in_place(operator.imul)
    __itruediv__ = _in_place(operator.itruediv)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # or a buffer changed in forward would be changed by tracing

    def __init__(self, whole: set[str | type]) -> None:
        super().__init__()
        self.whole, self.inside, self.thread = whole, [""], threading.get_ident()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "image", (), {})]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self.inside[-1]
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        chosen = module_qualified_name in self.whole or type(m) in self.whole
        return chosen or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:  # which runs a model meanwhile
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return self._call_whole(m, forward, args, kwargs)
        self.inside.append(name)  # where tracing fails, this stays and tells the place
        with _refuse_random_numbers():
            result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        other = threading.get_ident() != self.thread
        return attr_val if other else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _call_whole(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """The call of a module as one node, with its hooks, which fx itself leaves out."""
        for before in m._forward_pre_hooks.values():
            if (given := before(m, args)) is not None:
                args = given if isinstance(given, tuple) else (given,)
        output = super().call_module(m, forward, args, kwargs)
        for after in m._forward_hooks.values():
            if (changed := after(m, args, output)) is not None:
                output = changed
        return output


@contextmanager
def _refuse_random_numbers() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    if not torch.equal(before, torch.get_rng_state()):
        raise ValueError("forward draws a random number, which tracing would make a constant")


def _trace(model: nn.Module, whole: set[str | type], mode: bool) -> fx.GraphModule:
    for module in model.modules():
        module.training = mode
    tracer = _Tracer(whole)
    before = [(module, {**vars(module)}, {**module._buffers}) for module in model.modules()]
    try:
        with _refuse_random_numbers():
            graph = tracer.trace(model)
        for path, module in model.named_modules():
            if any(isinstance(buffer, fx.Proxy) for buffer in module._buffers.values()):
                raise _ObstacleError(path, "forward assigns a buffer, which no graph would do")
        return fx.GraphModule(model, graph, type(model).__name__)
    except _ObstacleError:
        raise
    except Exception as error:  # a forward given proxies may fail in any way
        reason = str(error).strip() or type(error).__name__
        raise _ObstacleError(tracer.inside[-1], reason.splitlines()[0]) from None
    finally:  # tensors that forward makes from nothing, and proxies that it assigned, are left on the modules
        for module, values, buffers in before:
            vars(module).clear()
            vars(module).update(values)
            module._buffers.update(buffers)


def _compare(training: fx.Graph, evaluating: fx.Graph) -> None:
    for nodes in zip(training.nodes, evaluating.nodes, strict=False):  # both end with the only output node
        a, b = (f"{node.op} {node.target} {node.name} {node.args} {node.kwargs}" for node in nodes)
        if a != b:
            owners = [node.meta["owner"] for node in nodes]
            deepest = max(owners, key=lambda path: len(path.split(".")) if path else 0)
            raise _ObstacleError(deepest, "forward depends on self.training outside its submodules")


class Seen(TorchDispatchMode):
    """What one node did when it was run.

    `varies`: it drew random numbers or used the batch's statistics. `moves`: it only moved data, by views and
    copies. `reads`, `writes`, `aliases`: where its inputs, what it changed, and its output lie in memory.
    `non_tensor`: its output holds no tensor (a size, a bool, None).
    """

    def __init__(self, inputs: list[Any]) -> None:
        super().__init__()
        self.varies, self.moves, self.non_tensor = False, True, True
        self.reads, self.writes, self.aliases = storages(inputs), set[StorageWeakRef](), set[StorageWeakRef]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.writes |= storages(args[i] if i < len(args) else kwargs.get(argument.name))
        # Instance norm is batch norm over one row: there the images share no statistics.
        if "batch_norm" in func.__name__ and any(arg is True for arg in args) and len(args[0]) > 1:
            self.varies = True
        self.moves &= func.is_view or func._schema.name in _COPIES
        return func(*args, **kwargs)


def storages(value: Any) -> set[StorageWeakRef]:
    """Where the tensors of a nested value lie; a freed place is given to no other while its name is kept."""
    return {StorageWeakRef(leaf.untyped_storage()) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}


def observe(traced: fx.GraphModule, images: Tensor) -> dict[fx.Node, Seen]:
    """Run a traced model on two or more images (B, C, H, W) and tell what each of its nodes did."""
    observer = _Observer(traced)
    observer.run(images)
    return observer.seen


class _Observer(fx.Interpreter):
    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.seen: dict[fx.Node, Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = _random_states()
        with Seen([self.env[dep] for dep in n.all_input_nodes]) as seen:
            value = super().run_node(n)
        seen.varies |= not all(map(torch.equal, before, _random_states()))
        seen.aliases = storages(value)
        seen.non_tensor = not seen.aliases
        self.seen[n] = seen
        return value


def _random_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


@contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """Put the modes of each module and parameter back; `model.train(mode)` would give all the same."""
    before = [(module, "training", module.training) for module in model.modules()]
    before += [(one, "requires_grad", one.requires_grad) for one in model.parameters()]  # type: ignore[misc]
    try:
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)


@contextmanager
def undone(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Undo what running a model leaves behind: statistics in its buffers, and the random state."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:  # a model that is refused trains all the same
            for module, name, buffer, value in buffers:
                setattr(module, name, buffer.copy_(value))
