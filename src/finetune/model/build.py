"""A backbone by name, without auxiliary heads, for images of any size; timm is imported only on demand."""

from __future__ import annotations

import difflib
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from finetune.choices.given import Table, is_given
from finetune.errors import RequestError, brief

# Auxiliary heads return tuples in train mode and serve only training from scratch; all weights of these two
# expect images on a scale of their own, which the model itself changes to.
OPTIONS = {name: {"aux_logits": False, "transform_input": True} for name in ("googlenet", "inception_v3")}

LITE0 = "efficientnet_lite0"  # timm builds it; a package carries its weights
# Models of plugins and Python objects: what makes each, with weights; heads that are Python objects.
MODELS: Table[Callable[[], nn.Module]] = Table()
HEADS: Table[nn.Module] = Table()

POSITIONS = "encoder.pos_embedding"
RANDOM = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "erfinv_")


class _Zeros(TorchFunctionMode):
    """Zeros in place of random numbers: drawing them takes most of the time in which a model is built.

    torch's truncated normal draws until all its numbers lie within its bounds, as zeros do.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in RANDOM:
            return (args[0] if args else kwargs["tensor"]).data.zero_()
        return func(*args, **kwargs)


def model_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def brought(name: str) -> bool:
    """Whether a model is a plugin's or a Python object, which brings its own weights."""
    return name in MODELS or is_given(name)


def build_model(name: str, enum: Any | None = None, initialised: bool = True) -> nn.Module:
    """Build a model by its name in torchvision, or `timm/<name>` in timm; its head has 1,000 outputs.

    enum: the entry of torchvision's weights to be loaded; some vision transformers' need another size.
    initialised: False where weights will be loaded, so that none need be drawn.
    RequestError: there is no such model, or timm is not installed.
    """
    check_model_name(name)
    if brought(name):
        return checked(MODELS[name](), f"model={name}")
    if theirs := timm_name(name):
        import timm

        with nullcontext() if initialised else _Zeros():
            return timm.create_model(theirs, pretrained=False, num_classes=1000)
    options: dict[str, Any] = {**OPTIONS.get(name, {})}
    if name.startswith("vit_") and enum is not None:
        options["image_size"] = enum.meta["min_size"][0]
    with warnings.catch_warnings(), nullcontext() if initialised else _Zeros():
        warnings.simplefilter("ignore", FutureWarning)  # their note on slow initialisation
        return torchvision.models.get_model(name, weights=None, **options)


def checked(network: nn.Module, setting: str) -> nn.Module:
    """A user's network; RequestError: it is TorchScript, or a layer, but of a head, is lazy."""
    lazy = setting != "head" and any(map(nn.parameter.is_lazy, [*network.parameters(), *network.buffers()]))
    if lazy or any(isinstance(layer, torch.jit.ScriptModule) for layer in network.modules()):
        raise RequestError(f"{setting}: expected layers of Python, not TorchScript; lazy ones must have run")
    return network


def resize(network: nn.Module, size: int) -> None:
    """Let a model take images of S x S pixels, in place; one without position embeddings stays as it is.

    As torchvision's helper and timm's `set_input_size` do it. RequestError: the model has no such size.
    """
    timms: Any = network
    try:
        if isinstance(network, VisionTransformer) and network.image_size != size:
            state = OrderedDict({POSITIONS: network.get_parameter(POSITIONS).data})
            if size % network.patch_size:
                raise ValueError(f"no multiple of its patches' size, {network.patch_size}")
            positions = interpolate_embeddings(size, network.patch_size, state)[POSITIONS]
            network.encoder.pos_embedding = nn.Parameter(positions)
            network.image_size, network.seq_length = size, positions.shape[1]
        elif hasattr(network, "set_input_size") and size != built_for(network):
            timms.set_input_size(img_size=size)
    except (AssertionError, ValueError) as error:
        why = str(error).splitlines()[0]
        wrong = f"data.image_size={size}: this model cannot take images of that size ({why})"
        raise RequestError(f"{wrong}; expected another, or auto") from None


def built_for(network: Any) -> int:
    """The size that a timm model takes now."""
    now = getattr(getattr(network, "patch_embed", None), "img_size", None)
    return (now or network.pretrained_cfg["input_size"][1:])[0]


def timm_name(name: str) -> str | None:
    """What timm calls a model; None for one of torchvision's."""
    return f"tf_{LITE0}" if name == LITE0 else name[5:] if name.startswith("timm/") else None


def check_model_name(name: str) -> None:
    """Raise RequestError unless torchvision or timm has a model of that name."""
    if brought(name):
        return
    theirs = timm_name(name)
    if theirs is None:
        if name not in model_names():
            raise RequestError(
                f"model={name}: expected a classification model of torchvision"
                f" ({_similar(name, [*model_names(), LITE0])}) or timm/<name>"
            )
        return
    try:
        import timm
    except ImportError:
        raise RequestError(
            f"model={name}: expected timm to be installed: pip install"
            f" 'finetune-toolkit[{'lite0' if name == LITE0 else 'timm'}]'"
        ) from None
    if not timm.is_model(theirs):
        near = _similar(theirs, timm.list_models())
        raise RequestError(f"model={name}: timm has no such model; near are {near}")


def _similar(name: str, known: list[str]) -> str:
    return brief(difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known)
