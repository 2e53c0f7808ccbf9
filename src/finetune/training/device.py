"""What `auto` means on this machine: device, number format, compiling. Pure functions, never a timing."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from finetune.errors import RequestError
from finetune.machine import has_compiler

# A step of fewer multiply-adds is quicker on one thread, which waits for no other, and needs no bf16.
LIGHT_MACS = 5e7

Device = Literal["cpu", "cuda", "mps"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def accelerator(requested: str) -> Device:
    """The device that `trainer=auto|cpu|gpu` means here; RequestError for a GPU where there is none."""
    if requested != "cpu" and torch.cuda.is_available():
        return "cuda"
    if requested != "cpu" and torch.backends.mps.is_available():
        return "mps"
    if requested == "gpu":
        raise RequestError("trainer=gpu: expected a GPU that torch can use; there is none (trainer=cpu)")
    return "cpu"


def count(requested: int | str, device: Device) -> int:
    """How many devices of this machine `trainer.devices` means; RequestError for more GPUs than there are."""
    gpus = torch.cuda.device_count() if device == "cuda" else 1
    if not isinstance(requested, int):  # auto
        if device != "cuda":
            raise RequestError(
                "trainer.devices=auto: expected a number of processes, as there are no CUDA GPUs to count"
            )
        return gpus
    if device != "cpu" and requested > gpus:
        raise RequestError(f"trainer.devices={requested}: expected at most {gpus}, as there are so many GPUs")
    return requested


def precision(requested: str, device: Device) -> Precision:
    """Lightning's name for the number format of `precision=…` on a device; RequestError for 16 on a CPU."""
    if requested == "16" and device == "cpu":
        raise RequestError("precision=16: expected a GPU with it; on a CPU use bf16 or 32")
    names: dict[str, Precision] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    auto = "bf16" if multiplies_bf16(device) else "16" if device == "cuda" else "32"
    return names[auto if requested == "auto" else requested]


def multiplies_bf16(device: Device) -> bool:
    """Whether the hardware multiplies bf16, a CPU by AMX or AVX512-BF16; emulated it is slower than fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def compiles(requested: str | bool, device: Device, images: int) -> bool:
    """Whether to compile the network for so many training images over all epochs.

    auto: on a GPU from 200,000 images on, where the saving outweighs the minute that compiling takes.
    RequestError: compile=true without a compiler.
    """
    if requested == "auto":
        return device == "cuda" and images >= 200_000 and has_compiler(device)
    if requested and not has_compiler(device):
        which = "C++ compiler (g++ or clang++)" if device == "cpu" else "C compiler (gcc or clang)"
        raise RequestError(f"compile=true: expected a {which} on the path; there is none")
    return bool(requested)


@contextmanager
def own_cores(which: int, of: int) -> Iterator[None]:
    """Start threads on a part of the cores alone, where others of so many processes have the rest."""
    if of == 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, before[which::of] or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Compute with so many threads; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have the C library keep what a step frees for the next one, and give it back in the end.

    glibc asks the system for each large block again; clearing its pages takes a tenth of a training step on a
    CPU. Other C libraries are left as they are. The numbers are those of malloc.h and glibc's defaults.
    """
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    trim_threshold, most_mapped = -1, -4
    library.mallopt(most_mapped, 0)
    library.mallopt(trim_threshold, -1)
    try:
        yield
    finally:
        library.mallopt(most_mapped, 65536)
        library.mallopt(trim_threshold, 128 * 1024)
        library.malloc_trim(0)
