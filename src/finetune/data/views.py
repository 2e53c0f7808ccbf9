"""Inputs by index, and the mirrored view that `augment=flip` alternates with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Inputs = Tensor | tuple[Tensor, ...]
Rows = Callable[[Tensor], Inputs]


@dataclass(frozen=True)
class Views:
    """The inputs of images by their index, (B, ...): uint8 images, or features of the prefix.

    mirrored: gives the same of the mirrored images. While training each image is mirrored in every other
        epoch; a coin says in which, as in Jordan 2024 (airbench). So two stored views serve every epoch, and
        features follow exactly what images would.
    """

    plain: Rows
    mirrored: Rows | None
    coin: Tensor

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


def views(plain: Rows, mirrored: Rows | None, count: int, seed: int) -> Views:
    """Views of so many images; the coins are drawn from the seed."""
    return Views(plain, mirrored, torch.from_numpy(np.random.default_rng([seed, count]).random(count) < 0.5))


def _pick(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.view(-1, *[1] * (yes.ndim - 1)).to(yes.device), yes, no)
