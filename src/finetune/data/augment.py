"""Augmentation and normalisation of whole batches, on the device they are on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.images import center_crop
from finetune.model.preprocessing import Preprocessing


class Prepare:
    """uint8 images (B, 3, R, R) to normalised float inputs (B, 3, C, C), cropped at random while training.

    augment: `standard` takes a random resized crop (area 0.08 to 1, aspect 3/4 to 4/3, as in Szegedy et al.
        2015) and a flip; else the central C pixels are taken (`flip` is done before, by `Views`). The draw of
        a batch depends on the seed and the batch's number alone: a resumed run sees the same images.
    """

    def __init__(self, preprocessing: Preprocessing, augment: str, seed: int) -> None:
        self.crop, self.normalise = preprocessing.crop_size, preprocessing.normalise
        self.augment, self.seed = augment, seed

    def __call__(self, images: Tensor, training: bool, number: int) -> Tensor:
        if not (training and self.augment == "standard"):
            return self.normalise(center_crop(images, self.crop))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        images = random_resized_crop(images, self.crop, generator)
        flip = torch.rand(len(images), generator=generator) < 0.5
        return self.normalise(torch.where(flip.view(-1, 1, 1, 1).to(images.device), images.flip(3), images))

    def turned(self, images: Tensor) -> Tensor:
        """Mirrored and normalised."""
        return self.normalise(images.flip(3))


def random_resized_crop(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random part of each uint8 image, resized to (size, size).

    Returns uint8 on a CPU, where that is three times as fast, and elsewhere float in [0, 255].
    """
    count, _, height, width = images.shape
    area = torch.empty(count).uniform_(0.08, 1, generator=generator)
    ratio = torch.empty(count).uniform_(math.log(3 / 4), math.log(4 / 3), generator=generator).exp()
    w = (area * ratio).sqrt().clamp(max=1)  # as shares of the image's sides
    h = (area / ratio).sqrt().clamp(max=1)
    x = torch.rand(count, generator=generator) * (1 - w)
    y = torch.rand(count, generator=generator) * (1 - h)
    on_cpu, parts = images.device.type == "cpu", []
    for image, left, top, right, bottom in zip(images, x, y, x + w, y + h, strict=True):
        part = image[
            :,
            int(top * height) : max(int(bottom * height), int(top * height) + 1),
            int(left * width) : max(int(right * width), int(left * width) + 1),
        ][None]
        part = part.contiguous(memory_format=torch.channels_last) if on_cpu else part.float()
        parts.append(F.interpolate(part, (size, size), mode="bilinear", antialias=True))
    return torch.cat(parts)
