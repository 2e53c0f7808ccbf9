"""The images of a data set, decoded by their index, and what is said of those that cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from finetune.data.dataset import RawImage
from finetune.data.images import BadImage, BrokenImage, center_crop, decode
from finetune.errors import RequestError, counted
from finetune.model.preprocessing import Preprocessing

NAMED = 10  # bad images in a line


@dataclass(frozen=True)
class Reader:
    """Decodes the images of a data set by their index.

    known: images that are known to be bad, by their index; they are not tried again.
    digests: of the content that each is expected to have; none: whatever is found is taken.
    uncropped: those that keep the whole square of `resize_size`, from which training takes its own crops. The
        others are decoded as every later command does.
    repaired: those that are broken and shown all the same, as far as they have been decoded.
    """

    images: Sequence[RawImage]
    preprocessing: Preprocessing
    known: Mapping[int, BadImage] = field(default_factory=dict)
    digests: Sequence[str] = ()
    uncropped: frozenset[int] = frozenset()
    repaired: dict[int, BadImage] = field(default_factory=dict)

    def __call__(self, index: int) -> Tensor | BadImage:
        """uint8 (3, H, H), or what is wrong with the image.

        Raises:
            ChangedImage: its content is not what was expected.
        """
        if index in self.known:
            return self.known[index]
        image, digest = self.images[index], self.digests[index] if self.digests else None
        wanted = self.preprocessing
        if index in self.uncropped:
            wanted = replace(wanted, crop_size=wanted.resize_size)

        def repaired(reason: str) -> None:
            self.repaired[index] = BadImage(index, str(image), reason)

        try:
            return decode(image, wanted, digest, repaired)
        except BrokenImage as error:
            return BadImage(index, str(image), str(error), error.lasting)

    def all(
        self,
        workers: int | str,
        advance: Callable[[int], None] = lambda _: None,
        room: Callable[[tuple[int, ...]], Tensor] = lambda shape: torch.zeros(shape, dtype=torch.uint8),
    ) -> tuple[Tensor, list[BadImage]]:
        """Decode every image once, in threads.

        room: gives the tensor to fill, for its shape; in memory by default.
        Returns: uint8 (N, 3, S, S), with S the `resize_size` where some are uncropped and else the
            `crop_size`; the cropped ones are in its middle, with zeros around, and a bad one is all zero. And
            the bad ones.
        """
        sizes = self.preprocessing
        size = sizes.resize_size if self.uncropped else sizes.crop_size
        pixels = room((len(self.images), 3, size, size))

        def fill(index: int) -> BadImage | None:
            image = self(index)
            if isinstance(image, BadImage):
                return image
            center_crop(pixels[index], image.shape[-1]).copy_(image)
            return None

        bad = []
        with ThreadPoolExecutor(workers if isinstance(workers, int) else os.cpu_count() or 1) as pool:
            for one in pool.map(fill, range(len(self.images))):
                advance(1)
                if one is not None:
                    bad.append(one)
        return pixels, bad


def refuse_bad_images(bad: Sequence[BadImage], total: int, listed: Path | None = None) -> None:
    """Raise RequestError where images are bad: `data.bad_images=error` wants none to be.

    total: how many images there are. listed: the file that names all the bad ones.
    """
    if not bad:
        return
    shown = "; ".join(f"{one.path} ({one.reason})" for one in bad[:NAMED])
    if len(bad) > NAMED:
        shown += f"; all are listed in {listed}" if listed else f" and {len(bad) - NAMED} more"
    raise RequestError(
        f"data.bad_images=error: {len(bad)} of {counted(total, 'image')} cannot be used: {shown};"
        " mend them, or data.bad_images=skip leaves them out, =repair shows what there is of those cut off"
    )
