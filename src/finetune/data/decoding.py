"""Images decoded ahead, in threads or, as these wait for Python's lock from about four on, in processes."""

from __future__ import annotations

import ctypes
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune.data import limits
from finetune.data.images import BadImage, ChangedImage
from finetune.errors import RunError
from finetune.machine import Budget, cores, ram, training_here

MOST_WORKERS = 16  # that decode
LEAST = 4  # processes; fewer decode no more than threads do
MEMORY = 1 << 30  # bytes for each: what an image of 50 million pixels takes
AHEAD = 2  # batches that threads decode before they are asked for
SET_PDEATHSIG = 1  # of prctl(2)
T = TypeVar("T")
Read = Callable[[T], Tensor | BadImage]
Decoded = Iterator[tuple[list[T], list[Tensor | BadImage]]]


def processes(cores: int) -> int:
    """How many processes decode on a machine of so many cores; 0: threads are as good.

    Where processes cannot be forked each would import torch anew.
    """
    number = min(cores // training_here(), MOST_WORKERS, ram() // 4 // MEMORY)
    return number if sys.platform == "linux" and number >= LEAST else 0


def decode_batches(read: Read[T], batches: Iterable[list[T]], workers: int | str, apart: bool) -> Decoded[T]:
    """Yield batches of rows in their order, each with its images, uint8 (3, H, W), or what is wrong.

    workers: how many images are decoded at a time; auto, as many as there are cores.
    apart: whether processes may do it, where they are quicker than threads.
    """
    number = workers if isinstance(workers, int) else cores()
    if apart and (several := processes(number)):
        return decode_apart(read, batches, several)
    return _decode_in_threads(read, batches, number)


def _decode_in_threads(read: Read[T], batches: Iterable[list[T]], workers: int) -> Decoded[T]:
    waiting: deque[tuple[list[T], list[Future[Tensor | BadImage]]]] = deque()

    def first() -> tuple[list[T], list[Tensor | BadImage]]:
        rows, images = waiting.popleft()
        return rows, [one.result() for one in images]

    with ThreadPoolExecutor(workers) as pool:
        try:
            for rows in batches:
                waiting.append((rows, [pool.submit(read, row) for row in rows]))
                if len(waiting) > AHEAD:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def decode_apart(read: Read[T], batches: Iterable[list[T]], workers: int) -> Decoded[T]:
    """Yield batches of rows in their order, each with its images, uint8 (3, H, W), or what is wrong.

    read: called in other processes: only what it returns is seen, or that an image has changed.
    batches: taken from ahead of time, two for each process.

    Raises:
        ChangedImage: an image is not what was expected.
        RunError: a process was killed, as it is by a machine whose memory is full.
    """
    taken: deque[list[T]] = deque()

    def noted() -> Iterator[list[T]]:
        for batch in batches:
            taken.append(batch)
            yield batch

    with warnings.catch_warnings(action="ignore"):  # that more were asked for than there are cores
        loader = DataLoader(
            _Rows(read),
            batch_sampler=noted(),
            num_workers=workers,
            collate_fn=_as_they_are,
            worker_init_fn=_begin,
            multiprocessing_context="fork",
            generator=torch.Generator(),  # else the numbers drawn from torch's own would be others
        )
    try:
        for found in loader:
            if isinstance(found, ChangedImage):
                raise found
            yield taken.popleft(), [torch.from_numpy(o) if isinstance(o, np.ndarray) else o for o in found]
    except RuntimeError as error:
        told = str(error).partition("\n")[0]
        if not any(what in told for what in ("killed by signal", "exited unexpectedly")):
            raise
        raise RunError(f"a process that decodes images was killed; is memory full? ({told})") from None


class _Rows(Dataset[Any]):
    def __init__(self, read: Read[Any]) -> None:
        self.read = read

    def __getitems__(self, rows: list[Any]) -> list[np.ndarray | BadImage] | ChangedImage:
        try:  # a tensor would travel through shared memory, of which containers have little
            return [one if isinstance(one, BadImage) else one.numpy() for one in map(self.read, rows)]
        except ChangedImage as error:
            return error


def _as_they_are(found: T) -> T:
    return found


def _begin(worker: int) -> None:
    # With a process that is killed its locks go, which these have inherited.
    ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):  # which may reach all of them: the first one ends these
        signal.signal(number, signal.SIG_IGN)
    limits.DECODING = Budget(MEMORY)
