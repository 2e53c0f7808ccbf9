"""Batches for Lightning: slices of tensors that stand ready, ordered by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from finetune.data.augment import Mix
from finetune.data.views import Inputs, Views

Batch = tuple[Inputs, Tensor]


@dataclass(frozen=True)
class Examples:
    """The images of a data set as training takes them.

    inputs: uint8 images or features by index.
    labels: (N,) class indices or (N, outputs) label vectors.
    split: indices for train, val and test.
    prepare: turns a batch of inputs on the device into what the network takes; called with the inputs,
        whether training, and the number of the batch counted over all epochs and processes.
    mix: changes such a batch of images and its labels while training.
    """

    inputs: Views
    labels: Tensor
    split: dict[str, np.ndarray]
    prepare: Callable[[Inputs, bool, int], Inputs]
    mix: Mix | None = None


def for_choosing(examples: Examples) -> Examples:
    """The same without test images, which only the refitted model sees."""
    return replace(examples, split={**examples.split, "test": np.array([], np.int64)})


def for_refit(examples: Examples) -> Examples:
    """The same with validation images among those to train on."""
    train = np.concatenate([examples.split["train"], examples.split["val"]])
    return replace(examples, split={**examples.split, "train": np.sort(train), "val": np.array([], np.int64)})


class Loader:
    """Batches of a split, as Lightning takes any iterable with a length.

    epoch: says which training epoch a pass is for: it is shuffled by seed and epoch, and a last batch of a
        single image, unless all are, joins the one before, as BatchNorm cannot learn from it. None: as it is.
    part: of each batch where several processes share it, as (which, of how many).
    """

    def __init__(
        self,
        examples: Examples,
        split: str,
        batch_size: int,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.examples, self.seed, self.epoch, self.part = examples, seed, epoch, part
        self.indices = indices = examples.split[split]
        starts = list(range(0, len(indices), batch_size))
        least = part[1] * (2 if epoch and batch_size >= 2 * part[1] else 1)  # images of a batch
        if len(starts) > 1 and len(indices) - starts[-1] < least:
            starts.pop()
        self.ranges = list(zip(starts, [*starts[1:], len(indices)], strict=True))

    def __len__(self) -> int:
        return len(self.ranges)

    def __iter__(self) -> Iterator[Batch]:
        epoch = None if self.epoch is None else self.epoch()
        order = self.indices
        if epoch is not None:
            starts = [start for start, _ in self.ranges]
            order = self.examples.inputs.order(order, starts, self.seed, epoch)
        which, parts = self.part
        batches = [torch.from_numpy(order[start:end][which::parts]) for start, end in self.ranges]
        for chosen, inputs in zip(batches, self.examples.inputs.each(batches, epoch), strict=True):
            yield inputs, self.examples.labels[chosen]


class Batches(pl.LightningDataModule):
    """The three splits in batches; each batch is shared by so many processes."""

    def __init__(self, examples: Examples, batch_size: int, seed: int, processes: int = 1) -> None:
        super().__init__()
        self.examples, self.batch_size, self.seed, self.processes = examples, batch_size, seed, processes
        self.split = examples.split
        self.val_passes = 1  # two where averages are measured, too

    @property
    def train_labels(self) -> Tensor:
        """The labels that are trained on."""
        return self.examples.labels[self.split["train"]]

    def _loader(self, split: str, epoch: Callable[[], int] | None = None) -> Loader:
        # Once trained, one process alone evaluates the whole of a split.
        alone = self.trainer is not None and self.trainer.world_size == 1
        part = (self.trainer.global_rank if self.trainer else 0, 1 if alone else self.processes)
        return Loader(self.examples, split, self.batch_size, self.seed, epoch=epoch, part=part)

    def train_dataloader(self) -> Loader:
        return self._loader("train", self.epoch)

    def epoch(self) -> int:
        """The epoch that the batches are for."""
        return self.trainer.current_epoch if self.trainer else 0

    def val_dataloader(self) -> Loader | list[Loader]:
        if not len(self.split["val"]):
            return []
        return self._loader("val") if self.val_passes == 1 else [self._loader("val")] * self.val_passes

    def test_dataloader(self) -> Loader:
        return self._loader("test")

    def predict_dataloader(self) -> Loader:
        """The validation split, whose logits the temperature is fitted on."""
        return self._loader("val")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        inputs, labels = batch
        training = bool(self.trainer and self.trainer.training)
        number = 0
        if training and self.trainer:
            before = self.trainer.fit_loop.total_batch_idx * self.processes
            number = before + self.trainer.global_rank + 1
        inputs = self.examples.prepare(inputs, training, number)
        if training and self.examples.mix and isinstance(inputs, Tensor):
            return self.examples.mix(inputs, labels, number)
        return inputs, labels


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
        # Lightning takes a batch of each at a time, in a list.
        return [
            Loader(b.examples, "train", b.batch_size, b.seed, epoch=self.epoch) for b in self.by_seed.values()
        ]

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
