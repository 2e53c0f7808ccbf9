"""The network that fits in a file of weights, which may hold several and much else: found by its names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from finetune.errors import RequestError, brief

State = dict[str, Tensor]

DICT = ":"  # between the name of a dict and the names in it
ENDS = re.compile(f"[.{DICT}]")
# Averaged weights are better than the last step's; of MoCo's encoders one is trained, of DINO's one used.
PREFERRED = re.compile(r"(^|[._:])(ema|teacher|encoder_q)[._:]")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def tensors_in(content: Any) -> State:
    """The tensors in nested dicts, under names such as `state_dict:module.conv1.weight`."""
    found, waiting, seen = State(), [("", content)], set[int]()
    while waiting:
        before, part = waiting.pop(0)
        if not isinstance(part, dict) or id(part) in seen:  # one may hold itself
            continue
        seen.add(id(part))
        found |= {f"{before}{key}": value for key, value in part.items() if isinstance(value, Tensor)}
        waiting += [(f"{before}{key}{DICT}", value) for key, value in part.items()]
    return found


def below(state: State, part: str, requested: str) -> State:
    """The tensors below a name such as `model_ema` or `state_dict.encoder`.

    Raises:
        RequestError: there are none.
    """
    found = {key: value for key, value in state.items() if shown(key).startswith(f"{part}.")}
    if not found:
        tops = dict.fromkeys(ENDS.split(key)[0] for key in state)
        raise RequestError(f"weights={requested}: expected one of {brief([*tops])} after the colon")
    return found


def taken(state: State, model: nn.Module, backbone: State, requested: str) -> tuple[State, list[str]]:
    """The network with all of the backbone's tensors, under the model's names, and notes on what is left out.

    Where none has all of them it is the one that has most.

    Raises:
        RequestError: several have, and neither is to be preferred.
    """
    shares = _shares(state, backbone)
    whole = [prefix for prefix, share in shares.items() if share == len(backbone)]
    prefix, notes = _preferred(whole, requested)
    if not whole:
        dicts = Counter(key[: key.rfind(DICT) + 1] for key in state)
        prefix = (shares or dicts).most_common(1)[0][0]
    network = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    # Constants that a library does not store, but a run's record of what is frozen does.
    constants = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    network = {k: v for k, v in network.items() if k not in constants and not k.startswith(AUXILIARY)}
    if whole:
        tops = {name for name, _ in model.named_children()}
        strange = [key for key in network if "." in key and key.partition(".")[0] not in tops]
        near = prefix[: prefix.rfind(DICT) + 1]
        beside = [
            k
            for k in state
            if k.startswith(near) and not k.startswith(tuple(whole)) and DICT not in k[len(near) :]
        ]
        if others := [*beside, *(prefix + key for key in strange)]:
            notes.append(f"{len(others)} tensors beside the network were left out ({_names(others)})")
        network = {key: value for key, value in network.items() if key not in strange}
    return network, notes


def shown(name: str) -> str:
    """A name as it is written after a file's."""
    return name.replace(DICT, ".")


def _names(keys: list[str]) -> str:
    return brief([shown(key) for key in keys], 3)


def _shares(state: State, backbone: Mapping[str, Tensor]) -> Counter[str]:
    """How many of the backbone's tensors there are, in their shapes, after each prefix."""
    shares = Counter[str]()
    for key, value in state.items():
        for start in (0, *(end.end() for end in ENDS.finditer(key))):
            own = backbone.get(key[start:])
            if own is not None and own.shape == value.shape:
                shares[key[:start]] += 1
    return shares


def _preferred(whole: list[str], requested: str) -> tuple[str, list[str]]:
    """The prefix of the network to take, and what to say of others that fit as well."""
    if len(whole) < 2:
        return "".join(whole), []
    names = {prefix: shown(prefix).rstrip(".") for prefix in whole}
    better = [prefix for prefix in whole if PREFERRED.search(prefix)]
    way = "after the file's name and a colon takes that one"
    if len(better) != 1:
        raise RequestError(
            f"weights={requested}: expected one network that fits; there are {brief([*names.values()])};"
            f" its name {way}"
        )
    others = [names[prefix] for prefix in whole if prefix not in better]
    return better[0], [f"{names[better[0]]} is taken; {brief(others)}, which fits too, {way}"]
