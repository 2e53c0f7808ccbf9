"""Batches for Lightning: slices of tensors that stand ready, ordered by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from finetune.data.views import Inputs, Views

Batch = tuple[Inputs, Tensor]


class Loader:
    """Batches of one side of the split, as Lightning takes any iterable with a length.

    epoch: says which training epoch a pass is for: it is shuffled by seed and epoch, and a last batch of a
        single image joins the one before, as BatchNorm cannot learn from one. None: in order, as it is.
    part: of each batch where several processes share it, as (which, of how many).
    """

    def __init__(
        self,
        inputs: Views,
        labels: Tensor,
        batch_size: int,
        indices: np.ndarray,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.inputs, self.labels, self.indices, self.seed, self.epoch = inputs, labels, indices, seed, epoch
        self.part = part
        starts = list(range(0, len(indices), batch_size))
        least = part[1] * (2 if epoch else 1)  # images of a batch
        if len(starts) > 1 and len(indices) - starts[-1] < least:
            starts.pop()
        self.ranges = list(zip(starts, [*starts[1:], len(indices)], strict=True))

    def __len__(self) -> int:
        return len(self.ranges)

    def __iter__(self) -> Iterator[Batch]:
        epoch = None if self.epoch is None else self.epoch()
        order = self.indices
        if epoch is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        which, parts = self.part
        for start, end in self.ranges:
            chosen = torch.from_numpy(order[start:end][which::parts])
            yield self.inputs(chosen, epoch), self.labels[chosen]


class Batches(pl.LightningDataModule):
    """The three sides of a data set in batches.

    Args:
        inputs: uint8 images or features by index.
        labels: (N,) class indices or (N, outputs) label vectors.
        prepare: turns a batch of inputs on the device into what the network takes; called with the inputs,
            whether training, and the number of the batch counted over all epochs and processes.
        processes: how many train together, each on its part of every batch.
    """

    def __init__(
        self,
        inputs: Views,
        labels: Tensor,
        split: dict[str, np.ndarray],
        batch_size: int,
        seed: int,
        prepare: Callable[[Inputs, bool, int], Inputs],
        processes: int = 1,
    ) -> None:
        super().__init__()
        self.processes = processes
        self.inputs, self.labels, self.split = inputs, labels, split
        self.batch_size, self.seed, self.prepare = batch_size, seed, prepare

    def _side(self, side: str, epoch: Callable[[], int] | None = None) -> Loader:
        # Once trained, one process alone judges the whole of a side.
        alone = self.trainer is not None and self.trainer.world_size == 1
        part = (self.trainer.global_rank if self.trainer else 0, 1 if alone else self.processes)
        indices = self.split[side]
        return Loader(
            self.inputs, self.labels, self.batch_size, indices, seed=self.seed, epoch=epoch, part=part
        )

    def train_dataloader(self) -> Loader:
        return self._side("train", self.epoch)

    def epoch(self) -> int:
        """The epoch that the batches are for."""
        return self.trainer.current_epoch if self.trainer else 0

    def val_dataloader(self) -> Loader | list[Loader]:
        return self._side("val") if len(self.split["val"]) else []

    def test_dataloader(self) -> Loader:
        return self._side("test")

    def predict_dataloader(self) -> Loader:
        """The validation side, whose logits the temperature is fitted on."""
        return self._side("val")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        inputs, labels = batch
        training = bool(self.trainer and self.trainer.training)
        number = 0
        if training and self.trainer:
            before = self.trainer.fit_loop.total_batch_idx * self.processes
            number = before + self.trainer.global_rank + 1
        return self.prepare(inputs, training, number), labels
