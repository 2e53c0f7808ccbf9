"""How an image becomes a model's input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated

import torch
from pydantic import Field, FiniteFloat, TypeAdapter
from torch import Tensor

# What `data.pixels` has filters for.
FITS = ("center", "squash", "pad")
TEXTS = ("interpolation", "fit")  # of the fields; others are JSON where they are stored as text
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest")

Pixels = Annotated[int, Field(gt=0)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Channels = Field(min_length=3, max_length=3)


@dataclass(frozen=True)
class Preprocessing:
    """Sizes in pixels, mean and standard deviation of each RGB channel in [0, 1].

    `data.images.decode` brings an image to `crop_size`; `normalise` makes a batch of them an input.

    brightness: what is black and what white in images of more than 8 bits, as `data.brightness` finds it.
    fit: how an image becomes a square, of FITS, as `data.pixels.square` does it.
    repair: whether files that are cut off are shown as viewers do.
    """

    crop_size: Pixels = 224
    resize_size: Pixels = 256
    mean: Annotated[tuple[FiniteFloat, ...], Channels] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[Positive, ...], Channels] = (0.229, 0.224, 0.225)
    interpolation: Annotated[str, Field(pattern=f"^({'|'.join(INTERPOLATIONS)})$")] = "bilinear"
    brightness: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    repair: bool = False
    fit: Annotated[str, Field(pattern=f"^({'|'.join(FITS)})$")] = "center"

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 255] as the weights expect them: float32, channels last."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        scaled = images.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)
        return scaled.contiguous(memory_format=torch.channels_last)

    def undo(self, inputs: Tensor) -> Tensor:
        """Inputs (B, 3, H, W) as images in [0, 1] again, on the CPU."""
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in (self.mean, self.std))
        return (inputs.cpu().float() * std + mean).clamp(0, 1)

    def metadata(self) -> dict[str, str]:
        """As the text that safetensors files carry; without what older runs lack, unless it counts."""
        usual = {"brightness": {}, "repair": False, "fit": "center"}
        told = {key: value for key, value in asdict(self).items() if key not in usual or value != usual[key]}
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}

    @staticmethod
    def from_metadata(text: Mapping[str, str]) -> Preprocessing | None:
        """What `metadata` wrote; None where a file says nothing of it. ValueError: it is none."""
        if not {"crop_size", "resize_size", "mean", "std", "interpolation"} <= text.keys():
            return None
        told = {one.name: text[one.name] for one in fields(Preprocessing) if one.name in text}
        plain = {key: value if key in TEXTS else json.loads(value) for key, value in told.items()}
        return TypeAdapter(Preprocessing).validate_python(plain)

    def to(self, image_size: int) -> Preprocessing:
        """The same for another input size, keeping the share of the image that is cropped."""
        resize = round(image_size * self.resize_size / self.crop_size)
        return replace(self, crop_size=image_size, resize_size=resize)
