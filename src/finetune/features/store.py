"""Features on disk, known by what they were computed with and from; whole or absent, never trusted unread.

A store is a folder: `about.json` says what it holds; `data.bin` has one row of fixed length per image;
`index.bin` has one entry per row, the SHA-256 of the image file and the CRC-32 of both. A row counts once its
entry is there, so a killed run leaves all that it had finished; one that counts is never changed.
Only the holder of the lock on `data.bin` writes, and only into the files that it opened then: a store that is
removed meanwhile still serves its holder, and whoever comes next begins another. Of several processes that
compute at once each has a store of its own beside it, a part, which the next holder takes in.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from torch import Tensor

from finetune import private
from finetune.atomic import not_written, sha256_of
from finetune.errors import RequestError, RunError
from finetune.features.rows import MemoryStore, RowLayout

VERSION = 5  # to be raised when a row has another form, or an image decodes to other pixels
ENTRY = np.dtype([("digest", np.uint8, 32), ("sum", "<u4")])  # of the index; zeros: the row counts no more
WAYS = "another cache_dir, or cache=memory, does without it"
PART = "-part-"  # in the name of a store that another takes in
ROWS = 4096  # that are taken in at once


class Store:
    """One set of features; use within `opened`."""

    def __init__(self, folder: Path, layout: RowLayout, data: FileIO, index: FileIO) -> None:
        self.folder, self.layout, self.data, self.index = folder, layout, data, index
        self.place: dict[str, int] = {}
        self.sums: list[int] = []

    def load_index(self) -> None:
        """Read which rows there are; what a killed run left half-written does not count."""
        rows = os.fstat(self.data.fileno()).st_size // self.layout.row_bytes
        known = entries_in(self.index.read())[:rows]
        entries = np.zeros(rows, ENTRY)  # what the index lacks keeps its place: somebody may still read it
        entries[: len(known)] = known
        digests = entries["digest"].tobytes().hex()
        self.sums = entries["sum"].tolist()
        counting = np.flatnonzero(entries["digest"].any(1)).tolist()
        self.place = {digests[64 * row : 64 * (row + 1)]: row for row in counting}

    def append(self, digests: Sequence[str], tensors: Sequence[Tensor]) -> None:
        """Add rows, the data first; RunError: they cannot be written, or somebody else wrote."""
        self.append_rows(digests, self.layout.pack(tensors))

    def append_rows(self, digests: Sequence[str], rows: np.ndarray) -> None:
        """The same of rows as bytes (B, row_bytes)."""
        start = len(self.sums)
        if os.fstat(self.data.fileno()).st_size // self.layout.row_bytes != start:  # where locks do not hold
            raise self._changed()
        sums = [_sum(digest, row) for digest, row in zip(digests, rows, strict=True)]
        self._write(self.data, start * self.layout.row_bytes, rows.tobytes())
        entries = np.zeros(len(sums), ENTRY)
        entries["digest"] = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)
        entries["sum"] = sums
        self._write(self.index, start * ENTRY.itemsize, entries.tobytes())
        self.place |= zip(digests, range(start, start + len(sums)), strict=True)
        self.sums += sums

    def verify(self, digests: Sequence[str]) -> list[str]:
        """Read the rows of these images; forget the damaged ones and return their digests."""
        rows, place = self.mapped(), self.place
        known = [digest for digest in dict.fromkeys(digests) if digest in place]
        bad = [one for one in known if _sum(one, rows[place[one]]) != self.sums[place[one]]]
        for digest in bad:
            self._write(self.index, place.pop(digest) * ENTRY.itemsize, bytes(ENTRY.itemsize))
        return bad

    def mapped(self) -> np.ndarray:
        """All rows as memory-mapped bytes (N, row_bytes); what is written to them stays in this process."""
        shape = len(self.sums), self.layout.row_bytes
        if not self.sums:
            return np.empty(shape, dtype=np.uint8)
        try:
            mapping = mmap.mmap(self.data.fileno(), math.prod(shape), access=mmap.ACCESS_COPY)
        except ValueError:  # it is shorter now
            raise self._changed() from None
        return np.frombuffer(mapping, dtype=np.uint8).reshape(shape)

    def _changed(self) -> RunError:
        return RunError(f"cache_dir: {self.folder}/data.bin was changed by something else; run again")

    def _write(self, file: FileIO, offset: int, content: bytes) -> None:
        if not file.writable():
            raise RequestError(f"cache_dir: {self.folder} lacks rows and may only be read; {WAYS}")
        try:
            while content:
                done = os.pwrite(file.fileno(), content, offset)
                content, offset = content[done:], offset + done
        except OSError as error:
            raise RunError(f"cache_dir: {not_written(self.folder, error)}; {WAYS}") from None


def _sum(digest: str, row: np.ndarray) -> int:
    return zlib.crc32(row.data, zlib.crc32(digest.encode()))


def entries_in(index: bytes) -> np.ndarray:
    """The entries of an index, of which the last may be half-written."""
    return np.frombuffer(index, ENTRY, len(index) // ENTRY.itemsize)


def key(about: dict[str, Any]) -> str:
    """What a set of features is known by: SHA-256 of everything that decides its numbers."""
    return sha256_of({"store": VERSION, **about})


def store_folder(cache: Path, about: dict[str, Any]) -> Path:
    return cache / "features" / key(about)[:32]


def bytes_of(folder: Path) -> int:
    with suppress(FileNotFoundError, NotADirectoryError):
        return (folder / "data.bin").lstat().st_size
    return 0


@contextmanager
def open_store(
    cache: Path | None, about: dict[str, Any], layout: RowLayout, waiting: Callable[[], None] = lambda: None
) -> Iterator[Store | MemoryStore]:
    """The store for `about`, made if need be and locked; waiting: called where another process holds it.

    cache: None for one in memory.
    """
    if cache is None:
        yield MemoryStore(layout)
        return
    with ExitStack() as stack:
        store = _open(stack, cache, store_folder(cache, about), about, layout=layout, waiting=waiting)
        try:
            _take_in_parts(store, cache)
        except OSError as error:
            raise RequestError(f"cache_dir: {not_written(store.folder, error)}") from None
        yield store


@contextmanager
def open_part(cache: Path, about: dict[str, Any], layout: RowLayout) -> Iterator[Store]:
    """A store of its own beside that for `about`, for one of several processes that compute at once."""
    folder = store_folder(cache, about)
    with ExitStack() as stack:
        part = folder.with_name(f"{folder.name}{PART}{uuid4().hex[:16]}")
        yield _open(stack, cache, part, about, layout=layout)


def _open(
    stack: ExitStack,
    cache: Path,
    folder: Path,
    about: dict[str, Any],
    layout: RowLayout,
    waiting: Callable[[], None] | None = None,
) -> Store:
    try:
        data, index = lock_store(stack, cache, folder, waiting)
        about = {**about, "row": [list(shape) for shape in layout.shapes]}
        with private.open_file(folder / "about.json", cache) as file:
            if file.writable():
                file.truncate()
                file.write(json.dumps({**about, "sha256": sha256_of(about)}, indent=2).encode())
        store = Store(folder, layout, data, index)
        store.load_index()
    except OSError as error:
        told = f"cache_dir={cache}: expected a folder that can be written to"
        raise RequestError(f"{told} ({not_written(folder, error)}); {WAYS}") from None
    return store


def _take_in_parts(store: Store, cache: Path) -> None:
    """Add the rows of every part that nobody writes any more, and remove it."""
    parts = store.folder.parent.glob(f"{store.folder.name}{PART}*") if store.data.writable() else ()
    for folder in sorted(parts):
        with ExitStack() as stack, suppress(BlockingIOError):
            part = Store(folder, store.layout, *lock_store(stack, cache, folder))
            part.load_index()
            part.verify([*part.place])  # forgets what is damaged
            rows = part.mapped()
            lacking = [digest for digest in part.place if digest not in store.place]
            for start in range(0, len(lacking), ROWS):
                digests = lacking[start : start + ROWS]
                store.append_rows(digests, rows[[part.place[digest] for digest in digests]])
            remove_store(folder)


def lock_store(
    stack: ExitStack, cache: Path, folder: Path, waiting: Callable[[], None] | None = None
) -> tuple[FileIO, FileIO]:
    """The data and the index of a store, made where they are missing, until the stack is closed.

    The lock lies on the data file itself, so that it cannot be removed without what it guards. Whoever gets
    one that is no longer in the folder tries again; until that is seen nobody else can have made an index.
    waiting: called where another process holds the lock; None: BlockingIOError is raised then.
    """
    while True:
        with ExitStack() as attempt, suppress(FileNotFoundError):  # the folder was removed at this moment
            private.make_folder(cache, "features", folder.name)
            data = attempt.enter_context(private.open_file(folder / "data.bin", cache))
            kind = fcntl.LOCK_EX if data.writable() else fcntl.LOCK_SH
            try:
                fcntl.flock(data, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    raise
                waiting()
                fcntl.flock(data, kind)
            attempt.callback(fcntl.flock, data, fcntl.LOCK_UN)  # a mapping would keep it
            index = attempt.enter_context(private.open_file(folder / "index.bin", cache))
            if _is_at(data, folder / "data.bin"):
                stack.push(attempt.pop_all())
                return data, index


def _is_at(file: FileIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    return False


def remove_store(folder: Path) -> None:
    """Remove a store whose lock is held, which goes last."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == "data.bin", path)):
        path.unlink()
    with suppress(OSError):  # who comes now finds no lock, and makes another store
        folder.rmdir()
