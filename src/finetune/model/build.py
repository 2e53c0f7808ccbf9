"""A backbone by name, with random weights and without auxiliary heads."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import torchvision
from torch import nn

from finetune.errors import RequestError, brief
from finetune.model import from_timm

# Auxiliary heads return tuples in train mode and serve only training from scratch; all weights of these two
# expect pictures on a scale of their own, which the model itself changes to.
OPTIONS = {name: {"aux_logits": False, "transform_input": True} for name in ("googlenet", "inception_v3")}


def names() -> list[str]:
    """Every classification model of torchvision."""
    return torchvision.models.list_models(module=torchvision.models)


def build(name: str, enum: Any | None = None) -> nn.Module:
    """Build a model by its name in torchvision, or `timm/<name>` in timm; its head has 1,000 outputs.

    `enum` is the entry of torchvision's weights to be loaded: some vision transformers' need another size.

    Raises:
        RequestError: there is no such model, or timm is not installed.
    """
    check(name)
    if name.startswith("timm/"):
        return from_timm.build(name.removeprefix("timm/"))
    extra: dict[str, Any] = {**OPTIONS.get(name, {})}
    if name.startswith("vit_") and enum is not None:
        extra["image_size"] = enum.meta["min_size"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # their note on slow initialisation
        return torchvision.models.get_model(name, weights=None, **extra)


def check(name: str) -> None:
    """Raise RequestError unless torchvision or timm has a model of that name."""
    if name.startswith("timm/"):
        from_timm.check(name.removeprefix("timm/"))
    elif name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        raise RequestError(
            f"model={name}: expected a classification model of torchvision"
            f" ({brief(near or names())}) or timm/<name>"
        )
