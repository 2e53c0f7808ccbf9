"""SHA-256 of tensors and of graphs, and the proof that what is frozen did not change."""

from __future__ import annotations

import hashlib
import inspect
import marshal
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from finetune.errors import RunError, brief
from finetune.model.freeze import Frozen

PLAIN = (bool, int, float, str, type(None))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """One SHA-256 over names, types, shapes and bytes of all tensors."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(_header(name, value))
        total.update(_bytes(value))
    return total.hexdigest()


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, by name."""
    return {name: hashlib.sha256(_bytes(value)).hexdigest() for name, value in tensors.items()}


def _header(name: str, value: Tensor) -> bytes:
    return f"{name} {value.dtype} {tuple(value.shape)}\n".encode()


def _bytes(value: Tensor) -> Any:
    """A tensor's memory in row-major order, as an array of bytes; no copy where it lies so already."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


class Proof:
    """SHA-256 of each frozen tensor, and one over all, taken before training and compared after it."""

    def __init__(self, network: nn.Module, frozen: Frozen) -> None:
        self.frozen = frozen
        self.tensors = frozen.tensors(network)
        self.sha256, self.each = digest(self.tensors), fingerprints(self.tensors)

    def check_unchanged(self, network: nn.Module) -> None:
        """Raise RunError where anything frozen differs by a bit."""
        after = fingerprints(self.frozen.tensors(network))
        if changed := [name for name in self.each if after[name] != self.each[name]]:
            raise RunError(f"frozen tensors changed in training, which must never happen: {brief(changed)}")


def fingerprint(traced: fx.GraphModule) -> str:
    """SHA-256 of what a graph computes: its code, modules and their settings, but no tensor's values."""
    shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(traced.state_dict().items())]
    return hashlib.sha256("\n".join([*shapes, traced.code, structure(traced)]).encode()).hexdigest()


def own_code(traced: fx.GraphModule) -> str:
    """What a graph runs that is neither in it nor in a library whose version is known; empty of nothing.

    What a user's module or function does is not decided by its name, and no digest sees all that it reads.
    """
    for node in traced.graph.nodes:
        if node.op == "call_function" and not _in_library(node.target):
            return str(node.target.__name__)
        for part in traced.get_submodule(node.target).modules() if node.op == "call_module" else ():
            given = [one for one in vars(part).values() if inspect.isroutine(one)]
            if not all(map(_in_library, (type(part), *given))):
                return f"{node.target} ({type(part).__name__})"
    return ""


def _in_library(code: Any) -> bool:
    root = (getattr(code, "__module__", None) or "torch").partition(".")[0]
    return root in ("torch", "torchvision", "timm", "finetune", "_operator", "operator", "math", "builtins")


def left_out(network: nn.Module) -> str:
    """What a network computes with that neither `structure` nor its state dict tells; empty of nothing.

    Buffers that are not saved, and what a user's module keeps in its attributes: tensors, private values.
    """
    saved, usual = network.state_dict(), vars(nn.Module())
    tensors = {name: one for name, one in network.named_buffers() if name not in saved}
    plain: dict[str, Any] = {}
    for path, part in network.named_modules():
        for name, value in {} if _in_library(type(part)) else vars(part).items():
            leaves = tree_leaves(value)
            if isinstance(value, Tensor):
                tensors[f"{path}.{name}"] = value
            elif name.startswith("_") and name not in usual and all(isinstance(one, PLAIN) for one in leaves):
                plain[f"{path}.{name}"] = value
    return f"{plain} {digest(tensors)}" if plain or tensors else ""


def structure(network: nn.Module) -> str:
    """What a network computes but for its tensors, as text: its modules' classes, attributes and code."""
    return "\n".join(f"{name} {_settings(part)}" for name, part in network.named_modules())


def _settings(module: nn.Module) -> str:
    plain = {
        name: getattr(value, "__qualname__", value)  # a function's repr holds its address
        for name, value in sorted(vars(module).items())
        if name != "training" and not name.startswith("_")
        if not any(isinstance(leaf, Tensor | nn.Module) for leaf in tree_leaves(value))
    }
    code = getattr(type(module).forward, "__code__", None)
    if code and type(module).__module__.partition(".")[0] not in ("torch", "torchvision", "timm", "finetune"):
        plain["forward"] = hashlib.sha256(marshal.dumps(code, 2)).hexdigest()  # a user's own may be edited
    return f"{type(module).__module__}.{type(module).__qualname__} {plain} {module.extra_repr()}"
