"""Features on disk, known by what they were computed with and from; whole or absent, never trusted unread.

A store is a folder: `about.json` says what it holds; `data.bin` has one row of fixed length per picture;
`rows.txt` has one line per row, the SHA-256 of the picture file and the CRC-32 of the row. A row counts once
its line is there, so a killed run leaves all that it had finished.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from finetune.atomic import not_written, write_atomically, write_json
from finetune.errors import RequestError, RunError

VERSION = 2  # to be raised when a row has another form, or a picture decodes to other pixels
GONE = "0" * 64


@dataclass(frozen=True)
class Layout:
    """Shapes and type of the tensors that make up a row."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one picture's features."""
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


class Store:
    """One set of features; use within `opened`."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.data, self.index = folder / "data.bin", folder / "rows.txt"
        self.place: dict[str, int] = {}
        self.sums: list[int] = []

    def load_index(self) -> None:
        """Read which rows there are and drop what a killed run left half-written."""
        text = self.index.read_text(encoding="ascii", errors="replace") if self.index.exists() else ""
        lines = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
        whole = self.data.stat().st_size // self.layout.row_bytes if self.data.exists() else 0
        valid = next((i for i, line in enumerate(lines) if not _is_entry(line)), len(lines))
        lines = lines[: min(valid, whole)]
        self.place = {line[0]: i for i, line in enumerate(lines) if line[0] != GONE}
        self.sums = [int(line[1], 16) for line in lines]
        self._write_index([line[0] for line in lines])
        with self.data.open("ab") as file:
            file.truncate(len(lines) * self.layout.row_bytes)

    def append(self, digests: Sequence[str], tensors: Sequence[Tensor]) -> None:
        """Add rows: the data first, then the lines that make it count."""
        rows = self.layout.pack(tensors)
        sums = [zlib.crc32(row) for row in rows]
        try:
            with self.data.open("ab") as file:
                file.write(rows.tobytes())
            with self.index.open("a", encoding="ascii") as file:
                file.writelines(
                    f"{digest} {total:08x}\n" for digest, total in zip(digests, sums, strict=True)
                )
        except OSError as error:
            raise RunError(
                f"cache_dir: {not_written(self.folder, error)}; cache=memory needs no disk"
            ) from None
        for digest, total in zip(digests, sums, strict=True):
            self.place[digest] = len(self.sums)
            self.sums.append(total)

    def verify(self, digests: Sequence[str]) -> list[str]:
        """Read the rows of these pictures; forget the damaged ones and return their digests."""
        rows = self.mapped()
        bad = [
            d
            for d in dict.fromkeys(digests)
            if d in self.place and zlib.crc32(rows[self.place[d]]) != self.sums[self.place[d]]
        ]
        if bad:
            digest_of = {place: digest for digest, place in self.place.items() if digest not in set(bad)}
            self._write_index([digest_of.get(i, GONE) for i in range(len(self.sums))])
            for digest in bad:
                del self.place[digest]
        return bad

    def mapped(self) -> np.ndarray:
        """All rows as memory-mapped bytes (N, row_bytes); what is written to them stays in this process."""
        if not self.sums:
            return np.empty((0, self.layout.row_bytes), dtype=np.uint8)
        return np.memmap(self.data, dtype=np.uint8, mode="c", shape=(len(self.sums), self.layout.row_bytes))

    def _write_index(self, digests: Sequence[str]) -> None:
        text = "".join(f"{digest} {total:08x}\n" for digest, total in zip(digests, self.sums, strict=True))
        write_atomically(self.index, text.encode("ascii"))


class MemoryStore:
    """The same for one run, in memory."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.place: dict[str, int] = {}
        self.parts = [np.empty((0, layout.row_bytes), dtype=np.uint8)]

    def append(self, digests: Sequence[str], tensors: Sequence[Tensor]) -> None:
        """Add rows."""
        self.parts.append(self.layout.pack(tensors))
        for digest in digests:
            self.place[digest] = len(self.place)

    def verify(self, digests: Sequence[str]) -> list[str]:
        """Nothing is ever damaged here."""
        return []

    def mapped(self) -> np.ndarray:
        """All rows (N, row_bytes)."""
        return np.concatenate(self.parts)


def _is_entry(line: list[str]) -> bool:
    return (
        len(line) == 2
        and len(line[0]) == 64
        and len(line[1]) == 8
        and all(c in "0123456789abcdef" for c in line[1])
    )


def key(about: dict[str, Any]) -> str:
    """What a set of features is known by: SHA-256 of everything that decides its numbers."""
    return hashlib.sha256(json.dumps({"store": VERSION, **about}, sort_keys=True).encode()).hexdigest()


def held(cache: Path, about: dict[str, Any]) -> int:
    """Bytes that the store for `about` has."""
    data = _folder(cache, about) / "data.bin"
    return data.stat().st_size if data.exists() else 0


def _folder(cache: Path, about: dict[str, Any]) -> Path:
    return cache / "features" / key(about)[:32]


@contextmanager
def opened(cache: Path, about: dict[str, Any], layout: Layout, waiting: Any = None) -> Iterator[Store]:
    """The store for `about`, made if need be and locked against other processes.

    waiting: called once where another process holds it.
    Raises:
        RequestError: the folder cannot be made.
    """
    folder = _folder(cache, about)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"cache_dir={cache}: expected a folder that can be written to ({error.strerror})"
        ) from None
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting:
            waiting()
        lock.acquire()
    try:
        row = {"row": [list(shape) for shape in layout.shapes], "dtype": str(layout.dtype)}
        write_json(folder / "about.json", about | row)
        store = Store(folder, layout)
        store.load_index()
        yield store
    finally:
        lock.release()


def size(cache: Path) -> int:
    """Bytes of all stores."""
    return sum(path.stat().st_size for path in (cache / "features").glob("*/data.bin"))


def contents(cache: Path) -> list[dict[str, Any]]:
    """What each store holds, newest last: its description, number of rows and bytes."""
    found = []
    for path in sorted((cache / "features").glob("*/about.json"), key=lambda path: path.stat().st_mtime):
        index = path.with_name("rows.txt")
        rows = index.read_text(encoding="ascii").count("\n") if index.exists() else 0
        data = path.with_name("data.bin")
        found.append(
            {
                "folder": str(path.parent),
                "rows": rows,
                "bytes": data.stat().st_size if data.exists() else 0,
                **json.loads(path.read_text(encoding="utf-8")),
            }
        )
    return found


def clear(cache: Path) -> int:
    """Remove every store; returns the bytes set free."""
    freed = size(cache)
    shutil.rmtree(cache / "features", ignore_errors=True)
    return freed
