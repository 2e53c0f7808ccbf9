"""The prefix over the images, once each, as fast as the machine allows."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from finetune.data.dataset import Stored
from finetune.data.decoding import MOST_WORKERS, decode_apart, processes
from finetune.data.images import BadImage
from finetune.machine import cores, has_compiler

# The bits of a feature depend on the batch it is computed in, so all batches are equally large. On a CPU each
# core computes one, and what 16 images make on the way stays in its cache.
BATCHES = {"cpu": 16, "cuda": 64, "mps": 64}
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COMPILE_FROM_MACS = 1e14  # compiling takes up to 40 s; this much work takes minutes on a CPU without it

T = TypeVar("T")
Tensors = tuple[Tensor, ...]
Told = list[tuple[T, BadImage | None]]  # rows, and what is wrong with each
Forward = Callable[[Tensor], Tensors]


@dataclass(frozen=True)
class Form:
    """How the prefix is computed; part of what its features are known by."""

    dtype: str = "fp32"
    folded: bool = True
    compiled: bool = False
    batch: int = BATCHES["cpu"]

    def __str__(self) -> str:
        return ", ".join([self.dtype, *["folded"] * self.folded, *["compiled"] * self.compiled])


def choose_form(precision: str, compile: str | bool, device: str, *, macs: float, bf16: bool) -> Form:
    """The form for a precision, the multiply-adds of all images, and a device with bf16 or without."""
    dtype = "bf16" if precision in ("bf16", "16") or (precision == "auto" and bf16) else "fp32"
    large = macs >= COMPILE_FROM_MACS * (100 if device == "cuda" else 1)
    compiled = bool(has_compiler(device) and (compile is True or (compile == "auto" and large)))
    return Form(dtype, compiled=compiled, batch=BATCHES[device])


def accelerate(prefix: nn.Module, form: Form, device: str) -> Forward:
    """A copy of the prefix in the form: float32 images (B, 3, H, W), B at most its batch, to tensors."""
    dtype = DTYPES[form.dtype]
    network: nn.Module = copy.deepcopy(prefix).eval()
    if form.folded:
        network = fuse(network, inplace=True, no_trace=True)
    network = network.to(device, None if form.dtype == "fp32" else dtype)
    nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
    if form.compiled:
        network.compile(dynamic=False, options={"freezing": True})  # of this network alone: others train

    def forward(images: Tensor) -> Tensors:
        count = len(images)
        padding = images[:1].expand(form.batch - count, -1, -1, -1)
        padded = torch.cat([images, padding]).to(device, dtype, memory_format=torch.channels_last)
        with torch.inference_mode():
            output = network(padded)
        return tuple(tensor[:count] for tensor in (output if isinstance(output, tuple) else (output,)))

    return forward


def difference(exact: Tensors, fast: Tensors) -> float:
    """Relative distance of two sets of features: the largest over the tensors of |a - b| / |a|, or NaN."""
    pairs = [(a.cpu().double(), b.cpu().double()) for a, b in zip(exact, fast, strict=True)]
    return float(torch.stack([(a - b).norm() / a.norm().clamp(min=1e-12) for a, b in pairs]).max())


def settle(prefix: nn.Module, form: Form, device: str, sample: Tensor) -> tuple[Forward, Form, float]:
    """The forward in the form asked for or, where that is too far from plain fp32, in that.

    sample: a few normalised images. Returns, too, its form and how far the one asked for is, or inf.
    """
    plain = Form("fp32", folded=False, batch=form.batch)
    exact, distance = accelerate(prefix, plain, device), math.inf
    threads = torch.get_num_threads()
    if form.compiled and device == "cpu":  # for as many as will compute; for others it is compiled again
        torch.set_num_threads(max(1, cores() // MOST_WORKERS))
    try:
        forward = accelerate(prefix, form, device)
        distance = difference(exact(sample), forward(sample))
    except (RuntimeError, AssertionError, TypeError, ValueError, AttributeError):
        forward = exact  # a model may ask for float32, or for the layers that folding takes away
    finally:
        torch.set_num_threads(threads)
    return (forward, form, distance) if distance <= TOLERANCE[form.dtype] else (exact, plain, distance)


def extract(
    compute: Forward,
    read: Callable[[T], Tensor | BadImage],
    rows: Iterable[T],
    batch: int,
    device: str,
    pure: bool = True,
) -> Iterator[tuple[Told[T], Tensors]]:
    """Yield batches of rows in their order, each with what is wrong with it, and the features of the others.

    They are on the CPU. Decoding and computing overlap. On a CPU each core takes whole batches, decoding and
    computing them on one thread: no thread waits for another, and there are never more at work than cores.

    compute: takes uint8 images (B, 3, H, W) on the device.
    read: decodes the image of a row to uint8 (3, H, W), or tells what is wrong with it.
    rows: taken from no faster than they are computed, so that they may come from a stream without end.
    pure: reading leaves nothing behind but what it returns; then beside a GPU other processes may do it.
    """
    remaining = iter(rows)
    batches = iter(lambda: list(islice(remaining, batch)), [])
    first = list(islice(batches, min(cores(), MOST_WORKERS)))
    every, workers = chain(first, batches), max(len(first), 1)
    result = partial(_result, compute, device)
    sent = pure and not any(isinstance(row, Stored) for row in chain(*first))  # which may hold a whole set
    if device != "cpu" and sent and (apart := processes(len(first))):
        yield from (result(*_sorted(*found)) for found in decode_apart(read, every, apart))
        return

    def task(chosen: list[T]) -> Callable[[], tuple[Told[T], Tensors]]:
        torch.set_num_threads(max(1, cores() // workers))  # counts for this thread only
        found = partial(result, *_sorted(chosen, list(map(read, chosen))))
        if device != "cpu":
            return found
        computed = found()
        return lambda: computed

    threads = torch.get_num_threads()
    waiting: deque[Future[Callable[[], tuple[Told[T], Tensors]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for chosen in every:
                waiting.append(pool.submit(task, chosen))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()()
            while waiting:
                yield waiting.popleft().result()()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            torch.set_num_threads(threads)


def _result(compute: Forward, device: str, told: Told[T], images: list[Tensor]) -> tuple[Told[T], Tensors]:
    stacked = torch.stack(images).to(device) if images else None  # a batch may be of broken ones alone
    return told, () if stacked is None else tuple(tensor.cpu() for tensor in compute(stacked))


def _sorted(chosen: list[T], decoded: list[Tensor | BadImage]) -> tuple[Told[T], list[Tensor]]:
    """Rows with what is wrong with each, and the images of the others."""
    bad = [one if isinstance(one, BadImage) else None for one in decoded]
    return list(zip(chosen, bad, strict=True)), [one for one in decoded if isinstance(one, Tensor)]
