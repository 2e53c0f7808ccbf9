"""The network that fits in a file of weights, which may hold several and much else: found by its names."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from torch import Tensor, nn

from finetune.errors import RequestError, brief

State = dict[str, Tensor]

DICT = ":"  # between the name of a dict and the names in it
# Averaged weights are better than the last step's; of MoCo's encoders one is trained, of DINO's one used.
PREFERRED = re.compile(r"(^|[._:])(ema|teacher|encoder_q)[._:]")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def tensors_in(content: Any) -> State:
    """The tensors in nested dicts, under names such as `state_dict:module.conv1.weight`.

    A dict that has several names is found under the first.
    """
    found, waiting, seen = State(), [("", content)], set[int]()
    while waiting:
        before, content = waiting.pop(0)
        if isinstance(content, dict) and id(content) not in seen:  # one may hold itself
            seen.add(id(content))
            found |= {f"{before}{key}": value for key, value in content.items() if isinstance(value, Tensor)}
            waiting += [(f"{before}{key}{DICT}", one) for key, one in content.items()]
    return found


def below(state: State, part: str, requested: str) -> State:
    """The tensors below a name such as `model_ema` or `state_dict.encoder`; RequestError for none."""
    found = {key: value for key, value in state.items() if _shown(key).startswith(f"{part}.")}
    if not found:
        known = brief([*dict.fromkeys(_shown(key).partition(".")[0] for key in state)])
        raise RequestError(f"weights={requested}: expected one of {known} after the colon")
    return found


def taken(state: State, model: nn.Module, backbone: State, requested: str) -> tuple[State, list[str]]:
    """The network with all of the backbone's tensors, under the model's names, and notes on what is left out.

    Where none has all of them it is the one that has most. RequestError: several have, and none is preferred.
    """
    shares = _shares(state, backbone)
    whole = [prefix for prefix, share in shares.items() if share == len(backbone)]
    prefix, notes = _preferred(whole, requested)
    if not whole:
        prefix = shares.most_common(1)[0][0] if shares else ""  # of none at all the whole names are told
    tops, near = {name for name, _ in model.named_children()}, prefix.rpartition(DICT)[0]
    # Constants that a library does not store, but a run's record of what is frozen does.
    unused = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    network, others = State(), list[str]()
    for key, value in state.items():
        name, inside = key.removeprefix(prefix), key.startswith(prefix)
        if inside and (not whole or "." not in name or name.partition(".")[0] in tops):
            network |= {_shown(name): value} if name not in unused else {}
        elif key.rpartition(DICT)[0] == near and (inside or not key.startswith(tuple(whole))):
            others += [_shown(key)] if not name.startswith(AUXILIARY) else []
    if whole and others:
        notes.append(f"left out beside the network: {brief(others, 3)}")
    return network, notes


def _shares(state: State, backbone: State) -> Counter[str]:
    """How many of the backbone's tensors there are, in their shapes, after each prefix."""
    shares = Counter[str]()
    for key, value in state.items():
        for start in (0, *(end.end() for end in re.finditer(f"[.{DICT}]", key))):
            own = backbone.get(key[start:])
            if own is not None and not value.is_nested and own.shape == value.shape:
                shares[key[:start]] += 1
    return shares


def _preferred(whole: list[str], requested: str) -> tuple[str, list[str]]:
    """The prefix of the network to take, and what to say of others that fit as well."""
    if len(whole) < 2:
        return "".join(whole), []
    better = [prefix for prefix in whole if PREFERRED.search(prefix)]
    others = [_shown(prefix).rstrip(".") for prefix in whole if prefix not in better]
    if len(better) != 1:
        names = brief([_shown(prefix).rstrip(".") for prefix in whole])
        raise RequestError(f"weights={requested}: expected one network, not {names}; FILE:NAME takes one")
    name = _shown(better[0]).rstrip(".")
    return better[0], [f"{name} is taken of what fits; weights=FILE:NAME takes another: {brief(others)}"]


def _shown(name: str) -> str:
    """A name as it is written after a file's."""
    return name.replace(DICT, ".")
