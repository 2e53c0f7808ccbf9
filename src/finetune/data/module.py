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
        single picture joins the one before, as BatchNorm cannot learn from one. None: in order, as it is.
    """

    def __init__(
        self,
        inputs: Views,
        labels: Tensor,
        batch_size: int,
        indices: np.ndarray,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
    ) -> None:
        self.inputs, self.labels, self.indices, self.seed, self.epoch = inputs, labels, indices, seed, epoch
        starts = list(range(0, len(indices), batch_size))
        if epoch and len(starts) > 1 and len(indices) - starts[-1] == 1:
            starts.pop()
        self.ranges = list(zip(starts, [*starts[1:], len(indices)], strict=True))

    def __len__(self) -> int:
        return len(self.ranges)

    def __iter__(self) -> Iterator[Batch]:
        epoch = None if self.epoch is None else self.epoch()
        order = self.indices
        if epoch is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        for start, end in self.ranges:
            chosen = torch.from_numpy(order[start:end])
            yield self.inputs(chosen, epoch), self.labels[chosen]


class Batches(pl.LightningDataModule):
    """The three sides of a data set in batches.

    Args:
        inputs: uint8 pictures or features by index.
        labels: (N,) class indices or (N, outputs) label vectors.
        prepare: turns a batch of inputs on the device into what the network takes; called with the inputs,
            whether training, and the number of the batch counted over all epochs.
    """

    def __init__(
        self,
        inputs: Views,
        labels: Tensor,
        split: dict[str, np.ndarray],
        batch_size: int,
        seed: int,
        prepare: Callable[[Inputs, bool, int], Inputs],
    ) -> None:
        super().__init__()
        self.inputs, self.labels, self.split = inputs, labels, split
        self.batch_size, self.seed, self.prepare = batch_size, seed, prepare

    def _side(self, side: str, epoch: Callable[[], int] | None = None) -> Loader:
        return Loader(self.inputs, self.labels, self.batch_size, self.split[side], self.seed, epoch)

    def train_dataloader(self) -> Loader:
        return self._side("train", lambda: self.trainer.current_epoch if self.trainer else 0)

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
        number = self.trainer.fit_loop.total_batch_idx + 1 if training and self.trainer else 0
        return self.prepare(inputs, training, number), labels
