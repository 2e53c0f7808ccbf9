"""Frozen BatchNorm layers with the statistics of the training images (`batchnorm=adapt`).

Li et al. 2016, Revisiting Batch Normalization For Practical Domain Adaptation; Schneider et al. 2020.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from finetune import signals
from finetune.data.dataset import Dataset
from finetune.data.digests import content_digest
from finetune.data.images import BadImage
from finetune.data.reader import Reader
from finetune.errors import RequestError
from finetune.features.load import LoadSettings, plain_reader
from finetune.features.plan import known_by
from finetune.features.rows import RowLayout
from finetune.features.store import open_store
from finetune.model.assemble import Model
from finetune.model.hashing import digest

SAMPLE, BATCH = 2_000, 64  # images
KINDS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Statistics:
    """Means and variances by the names of BatchNorm's buffers; told: what a stopped run said of them."""

    tensors: dict[str, Tensor]
    images: int
    told: dict[str, Any] | None = None

    def put_into(self, model: Model) -> dict[str, Any]:
        """Give them to the frozen layers, in place; returns what the summary says of it."""
        for name in (names := batchnorm_buffers(model)):
            model.network.get_buffer(name).copy_(self.tensors[name])
        return self.told or {"adapted": len(names) // len(KINDS), "images": self.images}


def batchnorm_buffers(model: Model) -> list[str]:
    """The buffers of the layers that go by stored statistics: BatchNorm held in eval mode."""
    return [
        f"{name}.{kind}"
        for name, layer in model.network.named_modules()
        if isinstance(layer, BatchNorm) and layer.track_running_stats and name in model.frozen.eval_modules
        for kind in KINDS
    ]


def find_statistics(
    model: Model, dataset: Dataset, device: str, cache: Path | None, loading: LoadSettings
) -> Statistics:
    """The statistics of at most 2,000 training images for the frozen layers; none where there are no such.

    The images are those with the smallest digests: one more seldom changes which. Labels play no part.
    cache: the folder where they are kept for the next run, if they are. ChangedImage: an image is not what it
    was when it was hashed. RequestError: there are too few.
    """
    if not (names := batchnorm_buffers(model)):
        return Statistics({}, 0)
    reader = plain_reader(model, dataset, loading.memo)
    first = {dataset.digests[index]: index for index in reversed(dataset.split["train"].tolist())}
    sample = [first[one] for one in sorted(first)[:SAMPLE]]  # one of each content
    sizes = [1, *(len(model.network.get_buffer(name)) for name in names)]
    layout, bad = RowLayout(((sum(sizes),),), torch.float32), set(reader.known)
    tensors = {**model.network.state_dict(), **dict(model.network.named_buffers())}
    backbone = {name: one for name, one in tensors.items() if not name.startswith(f"{model.head}.")}
    about = {"boundary": ["BatchNorm"], "view": "statistics", "dtype": "fp32", "batch": BATCH}
    about |= {**known_by(model, device), "names": names, "weights": digest(backbone)}
    with open_store(cache, about, layout, loading.on_wait) as store:
        store.verify([key := _key(dataset, sample, bad)])
        if key not in store.place:
            row = _compute(model, device, names, _batches(reader, sample, bad, loading))
            store.append([key := _key(dataset, sample, bad)], [row[None]])
        (rows,) = layout.unpack(torch.from_numpy(store.mapped()[[store.place[key]]]))
    number, *tensors = rows[0].split(sizes)
    return Statistics(dict(zip(names, tensors, strict=True)), int(number))


def _key(dataset: Dataset, sample: Iterable[int], bad: Collection[int]) -> str:
    each = [f"{dataset.digests[index]}{' broken' * (index in bad)}" for index in sample]
    return content_digest("\n".join(each).encode())


def _batches(reader: Reader, sample: list[int], bad: set[int], loading: LoadSettings) -> Iterator[Tensor]:
    """The sample in uint8 (B, 3, H, W), without broken images, which are added to `bad`."""
    with loading.progress("adapting BatchNorm to", len(sample)) as advance, ThreadPoolExecutor() as pool:
        for start in range(0, len(sample), BATCH):
            signals.check()
            read = list(pool.map(reader, sample[start : start + BATCH]))
            bad |= {one.index for one in read if isinstance(one, BadImage)}
            images = [one for one in read if isinstance(one, Tensor)]
            if len(images) > 1:  # a single one has no variance of its own
                yield torch.stack(images)
            advance(len(read))


def _compute(model: Model, device: str, names: list[str], batches: Iterable[Tensor]) -> Tensor:
    """The number of images, then their statistics: one pass in fp32, in which layers normalise by the batch.

    Over the batches they are pooled: a variance is that of all a layer takes in, not the batches' mean.
    """
    network, sums, number = copy.deepcopy(model.network).to(device).eval(), dict[str, Tensor](), 0
    for name, layer in network.named_modules():
        if isinstance(layer, BatchNorm):
            layer.training, layer.momentum = True, 1.0  # its buffers are then those of the last batch
            layer.register_forward_hook(partial(_add, sums, name))
    with torch.no_grad():
        for images in batches:
            network(model.preprocessing.normalise(images.to(device)))
            number += len(images)
    if not number:
        raise RequestError("batchnorm=adapt: expected two images to train on, or more, that can be read")
    for name, (count, total, squares) in sums.items():
        mean = total / count
        network.get_buffer(f"{name}.running_mean").copy_(mean.float())
        network.get_buffer(f"{name}.running_var").copy_(((squares - total * mean) / (count - 1)).float())
    return torch.cat([torch.tensor([float(number)]), *(network.get_buffer(name).cpu() for name in names)])


def _add(sums: dict[str, Tensor], name: str, layer: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
    """Add the batch's count, sum and sum of squares of each channel, in float64 on the CPU."""
    if layer.track_running_stats:
        mean, variance = layer.running_mean.cpu().double(), layer.running_var.cpu().double()
        count = inputs[0].numel() // len(mean)
        batch = [torch.full_like(mean, count), count * mean, (count - 1) * variance + count * mean**2]
        sums[name] = sums.get(name, 0) + torch.stack(batch)
