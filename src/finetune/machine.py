"""What this machine has: memory, a share of it for which threads wait, compilers, versions."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Condition

import finetune


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def training_here() -> int:
    """How many processes of this machine train one model together."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def ram() -> int:
    """Bytes of memory that this process may take; where several train together, its part of them."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()]) // training_here()


def _limits() -> Iterator[int]:
    """The limits of the control groups that this process is in, as containers and Slurm set them."""
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, kinds, own = line.split(":", 2)
        root, name = Path("/sys/fs/cgroup", kinds), "memory.limit_in_bytes" if kinds else "memory.max"
        if kinds not in ("", "memory"):
            continue
        for folder in (root / own[1:], *(root / own[1:]).parents):
            with suppress(OSError, ValueError):  # as of one that is seen from outside alone, or "max"
                yield int((folder / name).read_text())


def has_compiler(device: str) -> bool:
    """Whether there is what torch.compile builds with: a C++ compiler or, for Triton on a GPU, one of C."""
    if device != "cpu" and os.environ.get("CC"):
        return True
    names = ("c++", "g++", "clang++") if device == "cpu" else ("gcc", "clang")
    return any(shutil.which(name) for name in names)


class Budget:
    """So many bytes for all threads together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.changed = limit, 0, Condition()

    @contextmanager
    def taking(self, size: int) -> Iterator[None]:
        """Wait until so many bytes are free, and hold them; more than there are wait to be alone."""
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + size <= self.limit)
            self.used += size
        try:
            yield
        finally:
            with self.changed:
                self.used -= size
                self.changed.notify_all()


@cache
def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "pillow", "numpy")
    return {
        "finetune": finetune.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
