"""The batches of jobs that train together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from finetune.data.module import Batch, Batches, Loader


class StackedBatches(Batches):
    """The batches of all jobs: each job's own order while training, and the same images to validate and test.

    jobs: the batches of each as it would have them alone; jobs of the same seed take the same.
    """

    def __init__(self, jobs: Sequence[Batches]) -> None:
        first = jobs[0]
        super().__init__(first.examples, first.batch_size, first.seed)
        self.by_seed = {batches.seed: batches for batches in reversed(jobs)}
        self.which = torch.tensor([list(self.by_seed).index(batches.seed) for batches in jobs])

    def train_dataloader(self) -> Any:
        return Zipped(
            [
                Loader(b.examples, "train", b.batch_size, b.seed, epoch=self.epoch)
                for b in self.by_seed.values()
            ]
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        if not isinstance(batch, list):
            return super().on_after_batch_transfer(batch, dataloader_idx)
        inputs = tree_map(lambda *tensors: self._spread(tensors), *(one for one, _ in batch))
        return inputs, self._spread([labels for _, labels in batch])

    def _spread(self, tensors: Sequence[Tensor]) -> Tensor:
        """Each job's (J, B, …) of those that differ."""
        if len(tensors) == 1:
            return tensors[0].expand(len(self.which), *tensors[0].shape)
        return torch.stack(list(tensors))[self.which.to(tensors[0].device)]


class Zipped:
    """Loaders of the same length, a list of a batch of each at a time."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[list[Batch]]:
        return map(list, zip(*self.loaders, strict=True))
