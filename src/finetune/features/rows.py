"""Features as rows of bytes, and a store of them in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from mmap import MAP_PRIVATE, mmap

import numpy as np
import torch
from torch import Tensor

from finetune.errors import RunError

BLOCK = 1 << 18  # bytes of neighbouring rows that are read at once
READERS = 8  # threads, as disks answer several at once


@dataclass(frozen=True)
class RowLayout:
    """Shapes and type of the tensors that make up a row."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return sum(map(math.prod, self.shapes)) * self.dtype.itemsize

    def pack(self, tensors: Sequence[Tensor]) -> np.ndarray:
        """Tensors (B, ...) as bytes (B, row_bytes)."""
        flat = [t.detach().cpu().to(self.dtype).reshape(len(t), -1).contiguous() for t in tensors]
        return torch.cat([t.view(torch.uint8) for t in flat], 1).numpy()

    def unpack(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Bytes (B, row_bytes) as tensors (B, ...)."""
        sizes = [math.prod(shape) * self.dtype.itemsize for shape in self.shapes]
        parts = rows.split(sizes, 1)
        return tuple(
            part.contiguous().view(self.dtype).reshape(len(rows), *shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        )


class MemoryStore:
    """The same for one run, in memory."""

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self.place: dict[str, int] = {}
        self.parts = [np.empty((0, layout.row_bytes), dtype=np.uint8)]

    def append(self, digests: Sequence[str], tensors: Sequence[Tensor]) -> None:
        self.parts.append(self.layout.pack(tensors))
        for digest in digests:
            self.place[digest] = len(self.place)

    def verify(self, digests: Sequence[str]) -> list[str]:
        """Nothing is ever damaged here."""
        return []

    def mapped(self) -> np.ndarray:
        self.parts = [np.concatenate(self.parts)]
        return self.parts[0]


def read_rows(file: FileIO, wanted: np.ndarray, size: int) -> np.ndarray:
    """Rows of so many bytes by their ascending numbers; RunError: the file is shorter than it was."""
    count = len(wanted) * size
    buffer = mmap(-1, max(1, count), MAP_PRIVATE)  # goes back at once; what malloc gave may be kept
    rows = np.frombuffer(buffer, np.uint8, count).reshape(-1, size)

    def read(first: int, end: int) -> None:
        start, count = int(wanted[first]), int(wanted[end - 1] - wanted[first]) + 1
        found = os.pread(file.fileno(), count * size, start * size)
        if len(found) < count * size:
            raise RunError("cache_dir: the stored features were cut short by something else; run again")
        rows[first:end] = np.frombuffer(found, np.uint8).reshape(count, size)[wanted[first:end] - start]

    firsts = np.flatnonzero(np.diff(wanted * size // BLOCK, prepend=-1)).tolist()
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, firsts, [*firsts[1:], len(wanted)]))
    return rows
