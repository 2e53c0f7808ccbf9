"""The augmentations, an entry each; torch is imported where images are changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.choices.given import Table, lacking

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Augmentation:
    """What training does to images.

    function: a batch's new images in every epoch, uint8 (B, 3, R, R) to (B, 3, size, size); neither these nor
        their features can be cached. None: an epoch shows the images as they are.
    mirrored: whether an image alternates with its mirror image from epoch to epoch; both can be cached.
    """

    function: Callable[[Tensor, int, Generator], Tensor] | None = None
    mirrored: bool = False

    @property
    def is_random(self) -> bool:
        """Whether every epoch has other images."""
        return self.function is not None


def standard(images: Tensor, size: int, generator: Generator) -> Tensor:
    """A random resized crop (area 0.08 to 1, aspect 3/4 to 4/3; Szegedy et al. 2015), half of them turned."""
    import torch

    images = random_resized_crop(images, size, generator)
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)


def trivial(images: Tensor, size: int, generator: Generator) -> Tensor:
    """`standard`, then one operation of random strength for each image (Müller and Hutter 2021)."""
    from torchvision.transforms import v2

    return each_image(v2.TrivialAugmentWide(), _in_bytes(standard(images, size, generator)), generator)


def rand(images: Tensor, size: int, generator: Generator) -> Tensor:
    """`standard`, then two operations of medium strength for each image (Cubuk et al. 2020)."""
    from torchvision.transforms import v2

    return each_image(v2.RandAugment(), _in_bytes(standard(images, size, generator)), generator)


def each_image(transform: Callable[[Tensor], Tensor], images: Tensor, generator: Generator) -> Tensor:
    """A transform applied image by image; what it draws from torch follows from the generator."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return torch.stack([transform(image) for image in images])


def _in_bytes(images: Tensor) -> Tensor:
    """As uint8, which on a GPU they are no longer."""
    return images.round().clamp(0, 255).byte()


def random_resized_crop(images: Tensor, size: int, generator: Generator) -> Tensor:
    """A random part of each uint8 image, resized to (size, size).

    Returns uint8 on a CPU, where that is three times as fast, and elsewhere float in [0, 255].
    """
    import torch
    from torch.nn import functional

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
        parts.append(functional.interpolate(part, (size, size), mode="bilinear", antialias=True))
    return torch.cat(parts)


AUGMENTATIONS: Table[Augmentation] = Table(
    none=Augmentation(),
    flip=Augmentation(mirrored=True),
    standard=Augmentation(standard),
    trivial=Augmentation(trivial),
    rand=Augmentation(rand),
)
AUGMENTATIONS.absent = Augmentation(lacking)


def automatic(backbone_trains: bool) -> str:
    """What `data.augment=auto` means: other images in every epoch where the backbone trains on images."""
    return "standard" if backbone_trains else "none"
