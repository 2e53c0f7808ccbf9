"""What is frozen: from patterns to parameters and modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as BatchOrInstanceNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from finetune.errors import RequestError, brief
from finetune.model.parameters import NORMS, find_depths, is_below, owners
from finetune.model.stages import stage_ends
from finetune.model.tracing import keep_modes


@dataclass(frozen=True)
class Frozen:
    """What of a model is constant: parameter and buffer names, and the modules held in eval mode."""

    parameters: frozenset[str]
    buffers: frozenset[str]
    eval_modules: frozenset[str]

    def hold(self, model: nn.Module) -> None:
        """Put what is frozen into eval mode; to be called after every `model.train()`."""
        for name, module in model.named_modules():
            if name in self.eval_modules:
                module.training = False

    def others(self, model: nn.Module) -> dict[str, Tensor]:
        """What of the model's state is not frozen, in the model's order."""
        constant = self.parameters | self.buffers
        return {name: value for name, value in model.state_dict().items() if name not in constant}

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        names = self.parameters | self.buffers
        return {name: value.detach() for name, value in everything.items() if name in names}


def freeze(model: nn.Module, patterns: Sequence[str], head: str | None, example: Tensor) -> Frozen:
    """Set `requires_grad` and the modes of a model, its head replaced, as the patterns say.

    patterns: entries read like a .gitignore, later ones win: `all`, `none`, `through:<module>`, a full name
        of a module or parameter with `*` and `?`, `@norm`, `@bias` or `@last`, the
        last stage; a leading `-` takes out.
    head: full name of the replaced head, which always trains; None where the old head was kept.
    example: one batch of images, (N, 3, H, W), to learn the order of execution from.
    RequestError: an entry matches nothing.
    """
    backbone = [name for name, _ in model.named_parameters() if not is_below(name, head)]
    frozen = set(backbone) if patterns[0].startswith("-") else set()
    for pattern in patterns:
        entry = pattern.removeprefix("-")
        if entry in ("all", "none"):
            matched = set(backbone)
        elif entry.startswith("through:"):
            matched = _through(model, pattern, head, example).intersection(backbone)
        elif entry == "@last":
            matched = _last_stage(model, backbone, head, example)
        else:
            matched = _match(model, pattern, backbone, head)
        if pattern == "-none" or (not matched and entry not in ("all", "none")):
            raise RequestError(f"freeze={pattern}: matches nothing; there is {_what_there_is(model, entry)}")
        frozen = frozen - matched if pattern.startswith("-") or pattern == "none" else frozen | matched
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    eval_modules = _eval_modules(model, backbone, frozen, head)
    buffers = frozenset(name for name, _ in model.named_buffers() if name.rpartition(".")[0] in eval_modules)
    result = Frozen(frozenset(frozen), buffers, eval_modules)
    model.train()
    result.hold(model)
    return result


def _match(model: nn.Module, pattern: str, backbone: list[str], head: str | None) -> set[str]:
    """The backbone's parameters that an entry means: of a kind, or by name."""
    entry = pattern.removeprefix("-")
    if entry == "@bias":
        matched = {name for name in backbone if name.endswith("bias")}
    elif entry == "@norm":
        norms = {name for name, module in model.named_modules() if isinstance(module, NORMS)}
        matched = {name for name in backbone if name.rpartition(".")[0] in norms}
    elif entry.startswith("@"):
        raise RequestError(f"freeze={pattern}: expected @norm, @bias or @last")
    else:
        matched = _named(backbone, entry)
    if not matched and head and (is_below(entry, head) or _named([f"{head}.weight"], entry)):
        raise RequestError(
            f"freeze={pattern}: expected a part of the backbone; {head} is the new head, which always"
            f" trains (head=keep keeps the old one, as part of the backbone)"
        )
    return matched


def _last_stage(model: nn.Module, backbone: list[str], head: str | None, example: Tensor) -> set[str]:
    """The backbone from the last reduction before convolutions on, else the last quarter of its layers."""
    for end in stage_ends(model, example):
        after = set(backbone) - _through(model, f"through:{end}", head, example)
        if any(model.get_parameter(name).dim() == 4 for name in after):
            return after
    depths = find_depths(model, head or "")
    least = 0.75 * max((depths[name] for name in backbone), default=0)
    return {name for name in backbone if depths[name] > least}


def _named(names: list[str], entry: str) -> set[str]:
    """The names that match the entry themselves or lie below what matches it."""
    return {name for name in names if any(fnmatchcase(path, entry) for path in [*owners(name)[1:], name])}


class _Uses(TorchFunctionMode):
    """Notes the parameters of a model in the order in which a forward pass first computes with them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.order: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # asking for a dtype is no use
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.names:
                    self.order.setdefault(self.names[id(leaf)])
        return result


def _through(model: nn.Module, pattern: str, head: str | None, example: Tensor) -> set[str]:
    """Parameters that a forward pass uses before the target has first ended."""
    target = pattern.partition(":")[2]
    modules = dict(model.named_modules())
    if not target or target not in modules:
        raise RequestError(
            f"freeze={pattern}: expected the name of a module; there is {_what_there_is(model, target)}"
        )
    if is_below(target, head):
        raise RequestError(
            f"freeze={pattern}: expected a module of the backbone; {head} is the new head, which trains"
        )
    ended: list[set[str]] = []
    with keep_modes(model), torch.no_grad(), _Uses(model) as uses:
        hook = modules[target].register_forward_hook(lambda *_: ended.append(set(uses.order)))
        model.eval()(example[:1])
    hook.remove()
    if ended:
        return ended[0]
    # A module that its parent never calls but whose parameters it hands to a function: attention's out_proj.
    order = list(uses.order)
    own = [index for index, name in enumerate(order) if name.startswith(f"{target}.")]
    if not own:
        raise RequestError(f"freeze={pattern}: expected a module that the forward pass uses")
    return set(order[: own[-1] + 1])


def _eval_modules(
    model: nn.Module, backbone: list[str], frozen: set[str], head: str | None
) -> frozenset[str]:
    """The modules that stay in eval mode while the rest of the model trains."""
    holding = {owner for name in backbone for owner in owners(name)}
    moving = {owner for name in backbone if name not in frozen for owner in owners(name)}

    def trains(name: str, module: nn.Module) -> bool:
        if is_below(name, head):
            return True
        if isinstance(module, BatchOrInstanceNorm) and module.affine:
            return f"{name}.weight" not in frozen and f"{name}.bias" not in frozen
        # Dropout and the like have no parameters: they are active where those around them move. Where there
        # are none but the head's, as beside the last layer of EfficientNet, the next room outwards decides.
        while name not in holding and name:
            name = name.rpartition(".")[0]
        return name in moving

    return frozenset(name for name, module in model.named_modules() if not trains(name, module))


def _what_there_is(model: nn.Module, entry: str) -> str:
    """The names at the place where an entry stops making sense: layer4.2.conv1 → layer4.0, layer4.1."""
    modules = dict(model.named_modules())
    owner = next(name for name in reversed(owners(entry)) if name in modules)
    names = [name for name, _ in modules[owner].named_parameters(recurse=False)]
    names += [name for name, child in modules[owner].named_children() if list(child.parameters())]
    full_names = [f"{owner}.{name}" if owner else name for name in names]
    return f"{brief(full_names, 12)} (finetune inspect --parameters lists all)"
