"""Inputs by index, and the mirrored view that `augment=flip` alternates with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.streaming import Stream

Inputs = Tensor | tuple[Tensor, ...]
Rows = Callable[[Tensor], Inputs]


@dataclass
class Blocks:
    """How features are read that memory cannot hold: a part of an epoch after the other, each of many blocks.

    size: images of a block, neighbours in the data set and, as a rule, on disk. parts: 1 where all fit.
    read: gives the plain view of some images, in memory, and the mirrored one where both are needed.
    key, held: the part that is in memory now.
    """

    size: int
    parts: int
    read: Callable[[Tensor, bool], dict[str, Any]]
    key: int | None = None
    held: dict[str, Any] = field(default_factory=dict)

    def cuts(self, batches: int) -> list[int]:
        """The first batch of each part, and how many batches there are."""
        return sorted({batches * part // self.parts for part in range(self.parts + 1)})

    def order(self, indices: np.ndarray, starts: Sequence[int], seed: int, epoch: int) -> np.ndarray:
        """Images in the order of an epoch, in which the batches start at these places.

        Of a few neighbouring blocks each part has one, so that it is mixed even where images are sorted by
        class. Which one depends on the epoch alone: jobs with other seeds read the same parts.
        """
        cuts = [starts[first] for first in self.cuts(len(starts))[:-1]]
        blocks, draw = indices // self.size, np.random.default_rng(epoch)
        rounds = np.tile(np.arange(len(cuts)), (blocks.max() // len(cuts) + 1, 1))
        turns = draw.permuted(rounds, axis=1).ravel() + draw.random(rounds.size)
        parts = np.split(indices[turns[blocks].argsort(kind="stable")], cuts[1:])
        own = np.random.default_rng([seed, epoch])
        return np.concatenate([own.permutation(part) for part in parts])

    def hold(self, part: Tensor, key: int, both: bool) -> dict[str, Any]:
        """The views of a part; where another is in memory, that one is dropped first."""
        if self.key != key:
            self.held = {}
            self.held, self.key = self.read(part, both), key
        return self.held


@dataclass(frozen=True)
class Views:
    """The inputs of images by their index, (B, ...): uint8 images, or features of the prefix.

    mirrored: gives the same of the mirrored images. While training each image is mirrored in every other
        epoch; a coin says in which, as in Jordan 2024 (airbench). So two stored views serve every epoch, and
        features follow exactly what images would.
    stream: decodes images ahead of time, where memory cannot hold them.
    blocks: of features, how they are read where memory cannot hold them.
    """

    plain: Rows
    mirrored: Rows | None
    coin: Tensor
    stream: Stream | None = None
    blocks: Blocks | None = None

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

    def order(self, indices: np.ndarray, starts: Sequence[int], seed: int, epoch: int) -> np.ndarray:
        """Images to train on in the order of an epoch, in which its batches begin at these places."""
        if self.blocks and self.blocks.parts > 1:
            return self.blocks.order(indices, starts, seed, epoch)
        return np.random.default_rng([seed, epoch]).permutation(indices)

    def each(self, batches: list[Tensor], epoch: int | None) -> Iterator[Inputs]:
        """The same of one batch after the other."""
        both = self.mirrored is not None and epoch is not None
        if self.stream:
            for chosen, images in zip(batches, self.stream.ahead(batches), strict=True):
                turned = self.coin[chosen] ^ bool((epoch or 0) % 2)
                yield _pick(turned, images.flip(3), images) if both else images
        elif self.blocks and self.blocks.parts > 1:
            for start, end in pairwise(self.blocks.cuts(len(batches))):
                part = torch.cat(batches[start:end]).sort().values
                key = hash((both, part.numpy().tobytes()))
                for chosen in batches[start:end]:
                    # No name is left for a part's views: its memory is free before the next is read.
                    yield replace(self, **self.blocks.hold(part, key, both))(chosen, epoch)
        else:
            yield from (self(chosen, epoch) for chosen in batches)


def coins(count: int, seed: int) -> Tensor:
    """Whether each of so many images is mirrored in even epochs."""
    return torch.from_numpy(np.random.default_rng([seed, count]).random(count) < 0.5)


def views(plain: Rows, mirrored: Rows | None, count: int, seed: int, stream: Stream | None = None) -> Views:
    """Views of so many images; the coins are drawn from the seed."""
    return Views(plain, mirrored, coins(count, seed), stream)


def _pick(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.view(-1, *[1] * (yes.ndim - 1)).to(yes.device), yes, no)
