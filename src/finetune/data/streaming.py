"""Images that memory cannot hold, decoded for each batch anew, ahead of when it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finetune.data.decoding import decode_batches
from finetune.data.digests import forget
from finetune.data.images import BadImage, ChangedImage, center_crop
from finetune.data.reader import Reader
from finetune.errors import RunError


@dataclass(frozen=True)
class Stream:
    """The images of a data set by their indices, as `Reader.all` would hold them.

    places: of each image in the reader. size: the side of all of them.
    memo: of the files' digests, which is told where one is not what it was.
    """

    reader: Reader
    places: Tensor
    size: int
    workers: int | str
    memo: Path

    def __call__(self, chosen: Tensor) -> Tensor:
        """uint8 (B, 3, S, S), S the size: one batch, for which no processes are begun."""
        return next(self.ahead([chosen], alone=True))

    def ahead(self, batches: Iterable[Tensor], alone: bool = False) -> Iterator[Tensor]:
        """Each batch of them in its order.

        Raises:
            ChangedImage: an image is not what it was when it was hashed.
            RunError: one can no longer be decoded.
        """
        rows: Iterator[list[int]] = (self.places[chosen].tolist() for chosen in batches)
        try:
            for _, images in decode_batches(self.reader, rows, self.workers, self.reader.pure and not alone):
                yield self._stacked(images)
        except ChangedImage as error:
            if isinstance(error.image, Path):
                forget(error.image, self.memo)
            raise

    def _stacked(self, images: Sequence[Tensor | BadImage]) -> Tensor:
        pixels = torch.zeros(len(images), 3, self.size, self.size, dtype=torch.uint8)
        for place, image in zip(pixels, images, strict=True):
            if isinstance(image, BadImage):
                raise RunError(f"{image.path}: {image.reason}, though it could be decoded when the run began")
            center_crop(place, image.shape[-1]).copy_(image)
        return pixels
