"""Python objects in the place of names: each becomes an entry of its setting's table."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from finetune.choices.augmentations import AUGMENTATIONS, Augmentation, each_image
from finetune.choices.callbacks import CALLBACKS, LOGGERS
from finetune.choices.given import PYTHON, Table, is_given
from finetune.choices.losses import LOSSES, LossEntry
from finetune.choices.optimizers import OPTIMIZERS, OptimizerEntry, OptimizerSettings
from finetune.config.compose import GROUPS, compose_config
from finetune.config.messages import unknown_setting, validate
from finetune.config.phases import check_phases
from finetune.config.schema import SECTIONS, Settings
from finetune.config.shipped import choices_of
from finetune.data.sources import SOURCES, TABLE, Source
from finetune.data.sources.given import Sides, find_given
from finetune.data.sources.labeled import side_of
from finetune.errors import RequestError, brief
from finetune.model.build import HEADS, MODELS, checked
from finetune.model.hashing import left_out, structure

# Of each setting its table, what an object must be, and the entry that it becomes.
ENTRIES: dict[str, tuple[Table[Any], Any, Callable[[Any], Any]]] = {
    "model": (MODELS, nn.Module, lambda one: partial(copy.deepcopy, one)),
    "head": (HEADS, nn.Module, lambda one: one),
    "loss": (LOSSES, Callable, lambda one: LossEntry(partial(_loss, one), calibrates=True)),
    "optimizer": (OPTIMIZERS, Callable, lambda one: OptimizerEntry(OptimizerSettings, one)),
    "data.augment": (AUGMENTATIONS, Callable, lambda one: Augmentation(partial(_each, one))),
    "data": (SOURCES, object, lambda one: Source(partial(find_given, one), takes=TABLE)),
    "callbacks": (CALLBACKS, Callback, lambda one: lambda *_: one),
    "logger": (LOGGERS, Logger, lambda one: lambda *_: one),
}


def named(setting: str, value: Any, more: str = "") -> Any:
    """A setting's value, names in the place of Python objects; RequestError: it may have none of the kind."""
    if setting in ("callbacks", "logger") and isinstance(value, list | tuple):
        return [named(setting, one, f"-{number}") for number, one in enumerate(value)]
    if setting not in ENTRIES or isinstance(value, str | int | dict | Path | np.generic):
        return value
    table, kind, entry = ENTRIES[setting]
    if not isinstance(value, kind) or (isinstance(value, type) and setting != "optimizer"):
        told = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise RequestError(f"{setting}: expected a name or {kind.__name__}, not {told}")
    value = checked(_unwrapped(value), setting) if isinstance(value, nn.Module) else value
    if (
        setting == "loss"
        and isinstance(value, nn.Module)
        and any(p.requires_grad for p in value.parameters())
    ):
        raise RequestError("loss: expected one without parameters that train; the optimiser has the model's")
    made_of = getattr(value, "func", value)  # a partial's
    name = PYTHON + getattr(made_of, "__name__", type(made_of).__name__)
    if isinstance(value, nn.Module):  # networks of other layers have other names
        name += f"-{hashlib.sha256((structure(value) + left_out(value)).encode()).hexdigest()[:8]}"
    table.objects[name + more] = entry(value)
    return name + more


def _unwrapped(module: nn.Module) -> nn.Module:
    """What DataParallel or torch.compile were given: they say how a network runs."""
    wraps = isinstance(module, nn.DataParallel | DistributedDataParallel)
    inner: Any = module.module if wraps else getattr(module, "_orig_mod", module)
    return module if inner is module else _unwrapped(inner)


def _loss(loss: Any, logits: Tensor, labels: Tensor) -> Tensor:
    found = (loss.to(logits.device) if isinstance(loss, nn.Module) else loss)(logits, labels)
    if not isinstance(found, Tensor) or found.ndim:
        told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise RequestError(f"loss: expected one number for a batch, a tensor, not {told}")
    if logits.requires_grad and not found.requires_grad:
        raise RequestError("loss: expected one that gradients go through; it was made of numbers alone")
    return found


def _each(transform: Any, images: Tensor, size: int, generator: Generator) -> Tensor:
    """A user's transform of each image, of which the central square is shown."""
    found = each_image(transform, images.cpu(), generator)
    if found.dtype != torch.uint8 or found.ndim != 4 or min(found.shape[2:]) < size:
        told = f"{found.dtype} {tuple(found.shape[1:])}"
        raise RequestError(f"transform: expected uint8 (3, {size}, {size}) or larger back, not {told}")
    top, left = ((side - size) // 2 for side in found.shape[2:])
    return found[..., top : top + size, left : left + size].to(images.device)


def settings_from(given: Mapping[str, Any]) -> Settings:
    """The settings that keyword arguments amount to: shipped defaults, chosen groups, then single values."""
    groups, values = [], dict[tuple[str, ...], Any]()
    for name, value in ((name, named(name, value)) for name, value in given.items()):
        choice = "source" if name == "data" else "name"
        chosen = value.get(choice) if isinstance(value, Mapping) else value
        if name in GROUPS and is_given(chosen):
            values |= {(name, choice): chosen} if name == "data" else {(name,): {choice: chosen}}
        elif name in GROUPS and chosen is not None:
            if not isinstance(chosen, str):
                raise RequestError(
                    f"{name}={chosen}: expected the name of a choice, or a dict of its settings"
                )
            groups.append(f"{name}={chosen}")
        if isinstance(value, Mapping) and name in SECTIONS:
            values.update({(name, key): one for key, one in value.items() if key != choice})
        elif name not in GROUPS:
            values[tuple(name.split(".", 1))] = value
    plain: Any = OmegaConf.to_container(compose_config(groups), resolve=True)
    for (*section, name), value in values.items():
        if section and section[0] not in SECTIONS:
            raise RequestError(unknown_setting(".".join((*section, name))))
        (plain[section[0]] if section else plain)[name] = _plain(value)
    return check_phases(validate(plain))


def _plain(value: Any) -> Any:
    """A value as a command line could have it: no tuples, paths or numbers of NumPy's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [*map(_plain, value)]
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return str(value) if isinstance(value, Path) else value


def data_settings(data: Any) -> str | Mapping[str, Any]:
    if isinstance(data, Mapping):
        sides: dict[str, Any] = {str(key): side_of(str(key)) for key in data}
        wanted = "expected train, val and test in a dict, each once at most"
        if any(sides.values()):
            if None in sides.values() or len({*sides.values()}) < len(sides):
                raise RequestError(f"data: {wanted}, not {brief([*sides])}")
            return {"source": named("data", Sides(zip(sides.values(), data.values(), strict=True)))}
        source = {"source": "folder", **data} if "root" in data else dict(data)
        if isinstance(inner := source.get("source", ""), str):
            return source
        if isinstance(inner, Mapping) and not any(side_of(str(key)) for key in inner):
            raise RequestError(f"data.source: {wanted}, not {brief([*map(str, inner)]) or 'none'}")
        return source | data_settings(inner)  # type: ignore[operator]
    if not isinstance(data, str | Path):
        return {"source": named("data", data)}
    names = choices_of("data")
    if data in names:
        return str(data)
    if not Path(data).expanduser().is_dir():
        raise RequestError(f"data={data}: expected a folder of images, or one of {', '.join(names)}")
    return {"source": "folder", "root": str(data)}
