"""What a source hands on, and what all of them need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.data.dataset import SPLITS, Picture
from finetune.errors import RequestError

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
SIDES = {side: side for side in SPLITS} | {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
}


@dataclass(frozen=True)
class Found:
    """Pictures with labels, before they are split.

    asked: the knob that asked for them, as an error names it.
    sides: the side of each picture, where the data itself brings a split; None: to be split by content.
    given: the sides that the data brings, where one of them may be empty.
    """

    name: str
    asked: str
    classes: tuple[str, ...]
    images: Sequence[Picture]
    labels: np.ndarray
    digests: Sequence[str]
    sides: Sequence[str] | None = None
    given: Sequence[str] = ()
    ignored_files: int = 0
    warnings: tuple[str, ...] = ()


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """No progress bar."""
    yield lambda done: None


def brought(sides: Sequence[str]) -> Sequence[str] | None:
    """The sides of pictures, unless all are on the same: a single part is a set to be split."""
    return sides if len(set(sides)) > 1 else None


def expanded(root: str) -> Path:
    """The path that `data.root` means; `~` is the user's own."""
    return Path(os.path.expanduser(root))


def existing_folder(root: str) -> Path:
    """The folder that `data.root` means.

    Raises:
        RequestError: there is none.
    """
    path = expanded(root)
    if not os.path.isdir(path):
        there = "this is a file" if os.path.exists(path) else "there is none"
        raise RequestError(f"data.root={root}: expected a folder; {there}")
    return path


def numbered(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes that occur, numbers in their order, and the index (N,) of each name among them."""
    whole = all(name.isdecimal() for name in names)
    classes = tuple(sorted(set(names), key=(lambda name: (int(name), name)) if whole else None))
    place = {name: index for index, name in enumerate(classes)}
    return classes, np.array([place[name] for name in names], dtype=np.int64)


def vectors(names: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], np.ndarray]:
    """The same for several labels a picture: float32 (N, classes) of 0 and 1."""
    classes, _ = numbered([name for some in names for name in some])
    labels = np.zeros((len(names), len(classes)), dtype=np.float32)
    for row, some in zip(labels, names, strict=True):
        row[[classes.index(name) for name in some]] = 1
    return classes, labels
