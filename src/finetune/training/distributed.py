"""Processes that train one run together: which of them this is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from finetune.errors import RequestError
from finetune.training.device import Device

# The first process may compute features for hours while the others wait; one that dies is noticed at once.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Rank:
    """Which process this is, of all and of those on its machine (local_…), in the words of torchrun."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks and writes; the others only compute."""
        return self.rank == 0


SINGLE = Rank()


def find_rank(here: int, nodes: int) -> Rank | None:
    """This process's rank by torchrun's variables; None where the processes are not yet started."""
    size, names = here * nodes, ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if size == 1:
        return SINGLE
    if not all(name in os.environ for name in names):
        if nodes == 1:
            return None
        raise RequestError(
            f"trainer.nodes={nodes}: expected to be started on each machine by torchrun --nnodes {nodes}"
            f" --nproc-per-node {here} --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py …"
        )
    rank, started, local = (int(os.environ[name]) for name in names)
    if started != size:
        raise RequestError(
            f"trainer.devices={here} trainer.nodes={nodes}: expected {size} processes; {started} were started"
        )
    return Rank(rank, size, local, here)


@contextmanager
def joined(rank: Rank, device: Device) -> Iterator[None]:
    """In touch with the other processes; alone there is nothing to do."""
    if rank.world_size == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(rank.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # after an error the others may never come to it: the process just ends


@contextmanager
def one_after_the_other(rank: Rank) -> Iterator[None]:
    """A machine's first process does something before the others, which then find it done."""
    if rank.local_rank:
        dist.barrier()
    yield
    if rank.world_size > 1 and not rank.local_rank:
        dist.barrier()


def gathered(value: Any, size: int) -> list[Any]:
    found: list[Any] = [value]
    if size > 1:
        found = [None] * size
        dist.all_gather_object(found, value)
    return found


def in_common(loss: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch's loss where each process has a part of it: the mean over images that weigh `weight` together.

    Returns the loss to go backward from, whose gradients' mean over the processes is that of the whole batch;
    the whole batch's loss; and what its images weigh.
    """
    sums = torch.stack([loss.detach() * weight, weight]).to(torch.float32)
    dist.all_reduce(sums)
    return loss * (weight * size / sums[1]), sums[0] / sums[1], sums[1]
