"""Which modules' outputs the head reads beside the last: `head_features=last|all|auto|[layer3,layer4]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.errors import RequestError, brief
from finetune.model.hooks import ModuleCall, watch_calls
from finetune.model.staged import add_stages


class _Call(NamedTuple):
    """A module's call that gave a map (1, channels, after, after); `source` had given one `before` wide."""

    name: str
    source: str
    before: int
    after: int
    channels: int


def read_stages(network: nn.Module, head: str, wanted: str | Sequence[str], example: Tensor) -> None:
    """Let the head, before it is replaced, read what `head_features` asks for; eval mode is left behind.

    wanted: `last`: only what it reads anyway. `all`: also the last feature map before each reduction of its
    size, from stride 4 on (C2 to C5 in Lin et al., Feature Pyramid Networks, 2017). `auto`: the same where a
    model has such maps, else `last`. Or names of modules. Each is pooled; what the head reads anyway is
    always there, and no stage twice. The weights play no part.
    example: one image, (1, 3, S, S). RequestError: the model has no such stages, or its head reads maps.
    """
    if wanted == "last":
        return
    layer, calls = network.get_submodule(head), _calls(network.eval(), example)
    said = "head_features=" + (wanted if isinstance(wanted, str) else f"[{','.join(wanted)}]")
    if not isinstance(layer, nn.Linear):
        if wanted == "auto":
            return
        raise RequestError(f"{said}: expected last, as this model's head is a convolution")
    channels = {call.name: call.channels for call in calls}
    steps = _before_reductions(calls, example.shape[-1])
    named = steps if wanted in ("all", "auto") else {*wanted}
    wide = [name for name in steps | named if channels.get(name) == layer.in_features]
    read = {name for name in wide if _is_read(network, head, name, example)}
    if not steps - read:
        if wanted == "auto":
            return
        raise RequestError(f"{said}: expected last, as this model, like transformers, has no stages of maps")
    if strange := sorted(named - channels.keys()):
        there = brief(sorted(channels, key=lambda name: name.count(".")), 12)
        raise RequestError(f"{said}: {strange[0]} gives no feature map; there are {there}")
    if stages := [name for name in channels if name in named - read]:
        width = layer.in_features + sum(channels[name] for name in stages)
        network.set_submodule(head, nn.Linear(width, layer.out_features, bias=layer.bias is not None))
        add_stages(network, head, stages)


def stage_ends(network: nn.Module, example: Tensor) -> list[str]:
    """The modules whose outputs enter a reduction of the maps, the last first; eval mode is left behind."""
    calls = _calls(network.eval(), example)
    steps = _before_reductions(calls, example.shape[-1])
    return list(dict.fromkeys(call.name for call in reversed(calls) if call.name in steps))


def _calls(network: nn.Module, example: Tensor) -> list[_Call]:
    """The calls that gave feature maps, in the order in which they ended."""
    latest, begun, calls = [("", example.shape[-1])], list[tuple[str, int]](), list[_Call]()

    def begin(call: ModuleCall) -> None:
        begun.append(latest[-1])

    def end(call: ModuleCall, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] == output.shape[3]
        latest.append((call.name, output.shape[2]) if is_map else ("", 0))
        before = begun.pop()
        if is_map:
            calls.append(_Call(call.name, *before, output.shape[2], output.shape[1]))

    with torch.no_grad(), watch_calls(network, begin, end):
        network(example)
    return calls


def _before_reductions(calls: Sequence[_Call], side: int) -> set[str]:
    """The modules whose outputs enter one that reduces them, from stride 4 on.

    What reduces in several steps is looked into; what else there is counts as a whole, so that a block's
    inner layers and its pooling for squeeze-and-excitation are no stages.
    """
    whole: list[str] = []
    found = set()
    for call in reversed(calls):  # those around others first
        inner = any(one.before > one.after and one.name.startswith(f"{call.name}.") for one in calls)
        several = inner and call.before > 3 * call.after
        if several or any(call.name.startswith(f"{name}.") for name in whole):
            continue
        whole.append(call.name)
        reduces = call.before >= 1.5 * call.after  # convolutions without padding take off a little
        if reduces and call.source and 3.5 * call.before <= side:
            found.add(call.source)
    return found


def _is_read(network: nn.Module, head: str, stage: str, example: Tensor) -> bool:
    """Whether the head reads just the pooled output of this module already: noise put in its place tells."""
    seen: list[Tensor] = []

    def disturb(call: ModuleCall, output: Tensor) -> Tensor | None:
        if call.name != stage:
            return None
        seen.append(torch.randn(output.shape, generator=torch.Generator().manual_seed(0)))
        return seen[-1].clone()  # what follows may write into it

    hook = network.get_submodule(head).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), watch_calls(network, after=disturb):
        network(example)
    hook.remove()
    pooled, read = seen[-2].mean((2, 3)), seen[-1]
    return pooled.shape == read.shape and torch.allclose(pooled, read, atol=1e-5)
