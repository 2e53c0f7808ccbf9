"""Inputs by index, and the mirrored view that `augment=flip` alternates with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee

import numpy as np
import torch
from torch import Tensor

from finetune.data.streaming import Stream

Inputs = Tensor | tuple[Tensor, ...]
Rows = Callable[[Tensor], Inputs]


@dataclass(frozen=True)
class Views:
    """The inputs of images by their index, (B, ...): uint8 images, or features of the prefix.

    mirrored: gives the same of the mirrored images. While training each image is mirrored in every other
        epoch; a coin says in which, as in Jordan 2024 (airbench). So two stored views serve every epoch, and
        features follow exactly what images would.
    stream: decodes images ahead of time, where memory cannot hold them.
    """

    plain: Rows
    mirrored: Rows | None
    coin: Tensor
    stream: Stream | None = None

    def __call__(self, chosen: Tensor, epoch: int | None = None) -> Inputs:
        """The inputs as they are or, in a training epoch, as that epoch has them."""
        if self.mirrored is None or epoch is None:
            return self.plain(chosen)
        turned = self.coin[chosen] ^ bool(epoch % 2)
        plain, mirrored = self.plain(chosen), self.mirrored(chosen)
        if isinstance(plain, tuple):
            assert isinstance(mirrored, tuple)
            return tuple(_pick(turned, a, b) for a, b in zip(mirrored, plain, strict=True))
        assert isinstance(mirrored, Tensor)
        return _pick(turned, mirrored, plain)

    def each(self, batches: Iterable[Tensor], epoch: int | None) -> Iterator[Inputs]:
        """The same of one batch after the other."""
        if self.stream is None:
            yield from (self(chosen, epoch) for chosen in batches)
            return
        ours, streams = tee(batches)
        for chosen, images in zip(ours, self.stream.ahead(streams), strict=True):
            turned = self.coin[chosen] ^ bool((epoch or 0) % 2)
            alone = self.mirrored is None or epoch is None
            yield images if alone else _pick(turned, images.flip(3), images)


def views(plain: Rows, mirrored: Rows | None, count: int, seed: int, stream: Stream | None = None) -> Views:
    """Views of so many images; the coins are drawn from the seed."""
    coin = torch.from_numpy(np.random.default_rng([seed, count]).random(count) < 0.5)
    return Views(plain, mirrored, coin, stream)


def _pick(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.view(-1, *[1] * (yes.ndim - 1)).to(yes.device), yes, no)
