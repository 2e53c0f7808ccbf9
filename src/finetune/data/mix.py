"""What training does to whole batches of images: parts erased, images mixed with each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2


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
