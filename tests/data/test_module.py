"""Batches: every image once an epoch, in an order that seed and epoch decide; two views that alternate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.data.module import Batches, Examples, Loader
from finetune.data.views import Blocks, Views, views

COUNT = 103


def rows(chosen: Tensor) -> Tensor:
    """Inputs that tell their index: positive as they are."""
    return chosen[:, None].float() + 1


def mirrored(chosen: Tensor) -> Tensor:
    return -rows(chosen)


def loader(
    batch_size: int, seed: int = 0, epoch: int | None = 0, count: int = COUNT, inputs: Views | None = None
) -> Loader:
    labels = torch.arange(COUNT) * 10
    indices = np.arange(COUNT)[::-1][:count].copy()
    chosen = inputs or views(rows, None, COUNT, 0)
    examples = Examples(chosen, labels, {"train": indices}, lambda inputs, *_: inputs)
    return Loader(examples, "train", batch_size, seed, None if epoch is None else lambda: epoch)


def order(of: Loader) -> list[int]:
    found: list[int] = []
    for inputs, labels in of:
        assert isinstance(inputs, Tensor)
        index = inputs.flatten().abs().long() - 1
        assert torch.equal(labels, index * 10)
        found += index.tolist()
    return found


@pytest.mark.parametrize("batch_size", [1, 7, 51, 102, 103, 1000])
@pytest.mark.parametrize("epoch", [None, 0])
def test_every_picture_comes_once(batch_size: int, epoch: int | None) -> None:
    made = loader(batch_size, epoch=epoch)
    assert sorted(order(made)) == list(range(COUNT))
    assert len(list(made)) == len(made)


def test_without_an_epoch_the_order_is_the_given_one() -> None:
    assert order(loader(10, epoch=None)) == list(range(COUNT))[::-1]


def test_seed_and_epoch_alone_decide_the_order() -> None:
    once = order(loader(10, seed=1, epoch=2))
    np.random.seed(0)
    torch.manual_seed(0)
    assert order(loader(10, seed=1, epoch=2)) == once
    assert order(loader(33, seed=1, epoch=2)) == once  # the batch size cuts it, nothing else
    assert order(loader(10, seed=1, epoch=3)) != once
    assert order(loader(10, seed=2, epoch=2)) != once


def test_each_pass_asks_for_its_epoch() -> None:
    now = iter(range(3))
    made = loader(10)
    made.epoch = lambda: next(now)
    assert [order(made) for _ in range(3)] == [order(loader(10, epoch=epoch)) for epoch in range(3)]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (21, 10, [10, 11]),
        (22, 10, [10, 10, 2]),
        (20, 10, [10, 10]),
        (1, 10, [1]),
        (3, 1, [1, 1, 1]),
        (11, 10, [11]),
    ],
)
def test_a_last_single_picture_joins_the_batch_before(count: int, batch_size: int, sizes: list[int]) -> None:
    assert [len(labels) for _, labels in loader(batch_size, count=count)] == sizes


def test_where_nothing_is_learnt_a_single_picture_stays_alone() -> None:
    assert [len(labels) for _, labels in loader(10, epoch=None, count=21)] == [10, 10, 1]


# Features that memory cannot hold


def in_parts(read: list[list[int]], size: int = 3, parts: int = 4) -> Views:
    def held(chosen: Tensor, both: bool) -> dict[str, Callable[[Tensor], Tensor]]:
        read.append(chosen.tolist())
        inside = set(chosen.tolist())

        def of_these(asked: Tensor) -> Tensor:
            assert inside.issuperset(asked.tolist())
            return rows(asked)

        return {"plain": of_these}

    return replace(views(rows, None, COUNT, 0), blocks=Blocks(size, parts, held))


@pytest.mark.parametrize(("batch_size", "count"), [(1, 4), (7, 4), (52, 2), (1000, 1)])
@pytest.mark.parametrize("epoch", [None, 0, 1])
def test_each_part_of_an_epoch_is_read_once(batch_size: int, count: int, epoch: int | None) -> None:
    read: list[list[int]] = []
    found = order(loader(batch_size, epoch=epoch, inputs=in_parts(read)))
    assert [len(read), sorted(found)] == [count, list(range(COUNT))]
    assert [sorted(part) for part in read] == read  # as they lie on disk
    assert sorted(index for part in read for index in part) == list(range(COUNT))
    assert (found == list(range(COUNT))[::-1]) == (epoch is None)


def test_the_order_of_parts_is_decided_by_seed_and_epoch_and_what_is_read_by_the_epoch_alone() -> None:
    def told(seed: int, epoch: int) -> tuple[list[int], list[list[int]]]:
        read: list[list[int]] = []
        return order(loader(7, seed=seed, epoch=epoch, inputs=in_parts(read))), read

    once, read = told(1, 2)
    assert told(1, 2) == (once, read)
    other, same = told(2, 2)
    assert same == read
    assert other != once
    assert all(told(1, epoch)[1] != read for epoch in (0, 1, 3))


def test_every_part_has_of_each_class_where_images_lie_class_by_class() -> None:
    for epoch in range(5):
        read: list[list[int]] = []
        order(loader(1, epoch=epoch, inputs=in_parts(read)))
        for start in range(0, 96, 24):  # two blocks for each part, but for those that fill up another
            assert all(3 <= len({*range(start, start + 24)} & {*part}) <= 9 for part in read)
        assert max(map(len, read)) - min(map(len, read)) <= 2


def test_loaders_in_step_read_a_part_once_for_all() -> None:
    read: list[list[int]] = []
    shared = in_parts(read)
    loaders = [loader(7, seed=seed, inputs=shared) for seed in range(3)]
    for batches in zip(*loaders, strict=True):
        assert len({tuple(labels.tolist()) for _, labels in batches}) == 3
    assert len(read) == 4


# Two views


def signs(epoch: int | None, seed: int = 0) -> dict[int, float]:
    made = loader(10, epoch=epoch, inputs=views(rows, mirrored, COUNT, seed))
    return {int(abs(x)): float(x.sign()) for inputs, _ in made for x in inputs.flatten()}


def test_each_picture_is_mirrored_in_every_other_epoch() -> None:
    even, odd = signs(0), signs(1)
    assert {number: -sign for number, sign in even.items()} == odd
    assert signs(2) == even
    assert 30 < list(even.values()).count(-1.0) < 73


def test_the_seed_decides_which_epochs_those_are() -> None:
    assert signs(0, seed=0) == signs(0, seed=0) != signs(0, seed=1)


def test_evaluation_sees_pictures_as_they_are() -> None:
    assert set(signs(None).values()) == {1.0}


def test_views_of_several_tensors_are_mirrored_together() -> None:
    def pair(chosen: Tensor) -> tuple[Tensor, Tensor]:
        return rows(chosen), rows(chosen).view(-1, 1, 1, 1)

    def turned(chosen: Tensor) -> tuple[Tensor, Tensor]:
        return mirrored(chosen), mirrored(chosen).view(-1, 1, 1, 1)

    first, second = views(pair, turned, COUNT, 0)(torch.arange(COUNT), 0)
    assert torch.equal(first.flatten(), second.flatten())
    assert set(first.sign().flatten().tolist()) == {1.0, -1.0}


# The module that Lightning asks


def batches(split: dict[str, list[int]]) -> Batches:
    def prepare(inputs: Tensor, training: bool, number: int) -> Tensor:
        return inputs * 0 + (number if training else -1)

    arrays = {side: np.array(indices, dtype=np.int64) for side, indices in split.items()}
    examples = Examples(views(rows, None, COUNT, 0), torch.arange(COUNT) * 10, arrays, prepare)
    return Batches(examples, batch_size=4, seed=0)


def test_each_side_has_its_own_pictures() -> None:
    module = batches({"train": [1, 2, 3, 4, 5], "val": [7, 6], "test": [9, 8, 10]})
    assert sorted(order(module.train_dataloader())) == [1, 2, 3, 4, 5]
    assert order(module.test_dataloader()) == [9, 8, 10]
    validation = module.val_dataloader()
    assert isinstance(validation, Loader)
    assert order(validation) == [7, 6]


def test_without_pictures_to_validate_there_is_no_loader() -> None:
    assert batches({"train": [1], "val": [], "test": []}).val_dataloader() == []


def test_the_trainers_epoch_decides_the_order() -> None:
    module = batches({"train": list(range(50)), "val": [], "test": []})
    first = order(module.train_dataloader())
    module.trainer = SimpleNamespace(current_epoch=1, world_size=1, global_rank=0)
    second = order(module.train_dataloader())
    module.trainer = SimpleNamespace(current_epoch=0, world_size=1, global_rank=0)
    assert order(module.train_dataloader()) == first != second


@pytest.mark.parametrize(("count", "sizes"), [(22, [10, 12]), (26, [10, 10, 6])])
def test_processes_share_every_batch(count: int, sizes: list[int]) -> None:
    """A last batch of which a process would get a single image joins the one before."""
    parts = [loader(10, count=count) for _ in range(3)]
    for which, one in enumerate(parts):
        one.__init__(one.examples, "train", 10, 0, lambda: 0, (which, 3))  # type: ignore[misc]
    shares = [[labels for _, labels in one] for one in parts]
    assert [sum(map(len, batch)) for batch in zip(*shares, strict=True)] == sizes
    joined = torch.cat([label for one in shares for label in one])
    assert sorted(joined.tolist()) == sorted(index * 10 for index in order(loader(10, count=count)))
