"""Transformers for images of another size than they were trained with: position embeddings resampled."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from finetune.errors import RequestError

POSITIONS = "encoder.pos_embedding"


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
