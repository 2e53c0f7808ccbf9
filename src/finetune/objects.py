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
from torch import Generator, Tensor, nn

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
from finetune.data.dataset import SPLITS
from finetune.data.sources import SOURCES, TABLE, Source
from finetune.data.sources.given import Sides, find_given
from finetune.errors import RequestError
from finetune.model.build import HEADS, MODELS
from finetune.model.hashing import structure

# Of each setting its table, what an object must be, and the entry that it becomes.
ENTRIES: dict[str, tuple[Table[Any], Any, Callable[[Any], Any]]] = {
    "model": (MODELS, nn.Module, lambda one: partial(copy.deepcopy, one)),
    "head": (HEADS, nn.Module, lambda one: one),
    "loss": (LOSSES, Callable, lambda one: LossEntry(partial(_loss, one), calibrates=True)),
    "optimizer": (OPTIMIZERS, Callable, lambda one: OptimizerEntry(OptimizerSettings, one)),
    "data.augment": (AUGMENTATIONS, Callable, lambda one: Augmentation(partial(_each, one))),
    "data": (SOURCES, object, lambda one: Source(partial(find_given, one), takes=TABLE)),
    "callbacks": (CALLBACKS, object, lambda one: lambda *_: one),
    "logger": (LOGGERS, object, lambda one: lambda *_: one),
}


def named(setting: str, value: Any, more: str = "") -> Any:
    """A setting's value, names in the place of Python objects; RequestError: it may have none of the kind."""
    if setting in ("callbacks", "logger") and isinstance(value, list | tuple):
        return [named(setting, one, f"-{number}") for number, one in enumerate(value)]
    if setting not in ENTRIES or isinstance(value, str | int | dict | Path):
        return value
    table, kind, entry = ENTRIES[setting]
    if not isinstance(value, kind):
        raise RequestError(f"{setting}: expected a name or {kind.__name__}, not {type(value).__name__}")
    if setting == "loss" and any(one.requires_grad for one in getattr(value, "parameters", list)()):
        raise RequestError("loss: expected one without parameters that train; the optimiser has the model's")
    made_of = getattr(value, "func", value)  # a partial's
    name = PYTHON + getattr(made_of, "__name__", type(made_of).__name__)
    if isinstance(value, nn.Module):  # networks of other layers have other names
        name += f"-{hashlib.sha256(structure(value).encode()).hexdigest()[:8]}"
    table.objects[name + more] = entry(value)
    return name + more


def _loss(loss: Any, logits: Tensor, labels: Tensor) -> Tensor:
    found = (loss.to(logits.device) if isinstance(loss, nn.Module) else loss)(logits, labels)
    if found.ndim:
        raise RequestError(f"loss: expected one number for a batch, not {tuple(found.shape)}")
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
    return str(value) if isinstance(value, Path) else value


def data_settings(data: Any) -> str | Mapping[str, Any]:
    if isinstance(data, Mapping) and not (data and data.keys() <= {*SPLITS}):
        source = {"source": "folder", **data} if "root" in data else dict(data)
        object_given = not isinstance(source.get("source", ""), str)
        return source | data_settings(source["source"]) if object_given else source  # type: ignore[operator]
    if not isinstance(data, str | Path):
        return {"source": named("data", Sides(data) if isinstance(data, Mapping) else data)}
    names = choices_of("data")
    if data in names:
        return str(data)
    if not Path(data).expanduser().is_dir():
        raise RequestError(f"data={data}: expected a folder of images, or one of {', '.join(names)}")
    return {"source": "folder", "root": str(data)}
