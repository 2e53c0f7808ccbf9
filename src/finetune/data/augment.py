"""What training does to whole batches, on the device they are on: augmentation, normalisation, mixing."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

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


class Mix:
    """Mixes the images of a batch in pairs, with their labels, and erases rectangles, by torchvision.

    mixup, cutmix: the alpha of the Beta distribution that a batch's share is drawn from (Zhang et al. 2018;
        Yun et al. 2019), 0 for none; with both, a coin decides batch by batch.
    erasing: the probability that a rectangle of an image becomes the mean colour (Zhong et al. 2020).
    outputs: the width of the label vectors.
    """

    def __init__(self, mixup: float, cutmix: float, erasing: float, *, outputs: int, seed: int) -> None:
        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self.mixes = [kind(alpha=float(alpha), num_classes=outputs) for kind, alpha in kinds if alpha]
        self.erase, self.seed = v2.RandomErasing(erasing), seed

    def __call__(self, images: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) and labels (B,) or (B, outputs), mixed: labels (B, outputs).

        The draw depends on the seed and the batch's number alone.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + number)
            if self.erase.p:
                images = torch.stack([self.erase(image) for image in images])
            if self.mixes:
                images, labels = v2.RandomChoice(self.mixes)(images, labels)
        return images, labels
