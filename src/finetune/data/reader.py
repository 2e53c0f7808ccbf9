"""The images of a data set, decoded by their index, and what is said of those that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from finetune.data.dataset import RawImage, Stored
from finetune.data.decoding import decode_batches
from finetune.data.images import BadImage, BrokenImage, center_crop, decode
from finetune.errors import RequestError, counted
from finetune.model.preprocessing import Preprocessing

NAMED = 10  # bad images in a line
MANY = 2000  # images: then processes are worth their start
BATCH = 16  # of those one decodes at a time


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

    @property
    def size(self) -> int:
        """The side of all images: the `resize_size` where some are uncropped, else the `crop_size`."""
        return self.preprocessing.resize_size if self.uncropped else self.preprocessing.crop_size

    @property
    def pure(self) -> bool:
        """Whether reading leaves nothing behind but what it returns, so that other processes may do it."""
        alone = any(isinstance(one, Stored) and one.alone for one in self.images)
        return not self.preprocessing.repair and not alone

    def all(
        self, workers: int | str, advance: Callable[[int], None] = lambda _: None
    ) -> tuple[Tensor, list[BadImage]]:
        """Decode every image once, in threads or processes.

        Returns: uint8 (N, 3, S, S), S the `size`; the cropped ones are in its middle, with zeros around, and
            a bad one is all zero. And the bad ones.
        """
        pixels = torch.zeros(len(self.images), 3, self.size, self.size, dtype=torch.uint8)

        def fill(index: int, image: Tensor) -> None:
            center_crop(pixels[index], image.shape[-1]).copy_(image)

        return pixels, self.find_bad(workers, advance, fill)

    def find_bad(
        self,
        workers: int | str,
        advance: Callable[[int], None],
        use: Callable[[int, Tensor], object] = lambda *_: None,
    ) -> list[BadImage]:
        """Decode every image once, the same; use: is called with each that is not bad, and its index."""
        bad, count = [], len(self.images)
        batches = (list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH))
        for rows, images in decode_batches(self, batches, workers, self.pure and count >= MANY):
            for index, image in zip(rows, images, strict=True):
                bad.append(image) if isinstance(image, BadImage) else use(index, image)
                advance(1)
        return bad


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
