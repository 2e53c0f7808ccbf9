"""Augmentation and normalisation of whole batches, on the device they are on."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.choices.augmentations import AUGMENTATIONS
from finetune.data.images import center_crop
from finetune.model.preprocessing import Preprocessing


class Prepare:
    """uint8 images (B, 3, R, R) to normalised float inputs (B, 3, C, C).

    While training a random augmentation makes new images; else the central C pixels are taken (images are
    mirrored before, by `Views`). The draw of a batch depends on the seed and the batch's number alone: a
    resumed run sees the same images.
    """

    def __init__(self, preprocessing: Preprocessing, augment: str, seed: int) -> None:
        self.crop, self.normalise = preprocessing.crop_size, preprocessing.normalise
        self.augment, self.seed = AUGMENTATIONS[augment].function, seed

    def __call__(self, images: Tensor, training: bool, number: int) -> Tensor:
        if self.augment is None or not training:
            return self.normalise(center_crop(images, self.crop))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return self.normalise(self.augment(images, self.crop, generator))

    def turned(self, images: Tensor) -> Tensor:
        """Mirrored and normalised."""
        return self.normalise(images.flip(3))
