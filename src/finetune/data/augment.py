"""Augmentation and normalisation of whole batches, on the device they are on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Prepare:
    """uint8 pictures (B, 3, R, R) to normalised float inputs (B, 3, C, C), cropped at random while training.

    augment: `standard` takes a random resized crop (area 0.08 to 1, aspect 3/4 to 4/3, as in Szegedy et al.
        2015) and a flip; else the central C pixels are taken (`flip` is done before, by `Views`). The draw of
        a batch depends on the seed and the batch's number alone: a resumed run sees the same pictures.
    """

    def __init__(
        self, crop: int, mean: Sequence[float], std: Sequence[float], augment: str, seed: int
    ) -> None:
        self.crop, self.augment, self.seed = crop, augment, seed
        self.mean = torch.tensor(mean).view(1, 3, 1, 1)
        self.std = torch.tensor(std).view(1, 3, 1, 1)

    def __call__(self, pictures: Tensor, training: bool, number: int) -> Tensor:
        if not (training and self.augment == "standard"):
            return self.normalise(center_crop(pictures, self.crop))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        pictures = random_resized_crop(pictures, self.crop, generator)
        flip = torch.rand(len(pictures), generator=generator) < 0.5
        return self.normalise(
            torch.where(flip.view(-1, 1, 1, 1).to(pictures.device), pictures.flip(3), pictures)
        )

    def normalise(self, pictures: Tensor) -> Tensor:
        """(B, 3, C, C) in [0, 255] to what the weights were trained with, channels last."""
        mean, std = self.mean.to(pictures.device), self.std.to(pictures.device)
        scaled = pictures.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)
        return scaled.contiguous(memory_format=torch.channels_last)

    def turned(self, pictures: Tensor) -> Tensor:
        """The same, mirrored."""
        return self.normalise(pictures.flip(3))


def center_crop(pictures: Tensor, size: int) -> Tensor:
    """The central square of `size` pixels."""
    top = (pictures.shape[-2] - size) // 2
    left = (pictures.shape[-1] - size) // 2
    return pictures[..., top : top + size, left : left + size]


def random_resized_crop(pictures: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random part of each uint8 picture, resized to (size, size).

    Returns uint8 on a CPU, where that is three times as fast, and elsewhere float in [0, 255].
    """
    count, _, height, width = pictures.shape
    area = torch.empty(count).uniform_(0.08, 1, generator=generator)
    ratio = torch.empty(count).uniform_(math.log(3 / 4), math.log(4 / 3), generator=generator).exp()
    w = (area * ratio).sqrt().clamp(max=1)  # as shares of the picture's sides
    h = (area / ratio).sqrt().clamp(max=1)
    x = torch.rand(count, generator=generator) * (1 - w)
    y = torch.rand(count, generator=generator) * (1 - h)
    on_cpu, parts = pictures.device.type == "cpu", []
    for picture, left, top, right, bottom in zip(pictures, x, y, x + w, y + h, strict=True):
        part = picture[
            :,
            int(top * height) : max(int(bottom * height), int(top * height) + 1),
            int(left * width) : max(int(right * width), int(left * width) + 1),
        ][None]
        part = part.contiguous(memory_format=torch.channels_last) if on_cpu else part.float()
        parts.append(F.interpolate(part, (size, size), mode="bilinear", antialias=True))
    return torch.cat(parts)
