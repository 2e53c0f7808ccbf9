"""What a source hands on, and what all of them need."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune.data.dataset import SPLITS, RawImage
from finetune.errors import RequestError

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
SPLIT_NAMES = {split: split for split in SPLITS} | {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
}


@dataclass(frozen=True)
class LabeledImages:
    """Images with labels, before they are split.

    setting: what asked for them, as an error names it.
    splits: the split of each image, where the data itself brings a split; None: to be split by content.
    declared: the splits that the data brings, where one of them may be empty.
    passed_over: how many files beside the images there are of each extension.
    digests: SHA-256 of each image's content, where they are known.
    """

    name: str
    setting: str
    classes: tuple[str, ...]
    images: Sequence[RawImage]
    labels: np.ndarray
    splits: Sequence[str] | None = None
    declared: Sequence[str] = ()
    passed_over: Counter[str] = field(default_factory=Counter)
    warnings: tuple[str, ...] = ()
    digests: Sequence[str] = ()


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """No progress bar."""
    yield lambda done: None


def own_splits(splits: Sequence[str]) -> Sequence[str] | None:
    """The splits of images, unless all are in the same: a single part is a set to be split."""
    return splits if len(set(splits)) > 1 else None


def expand_home(root: str) -> Path:
    """The path that `data.root` means; `~` is the user's own."""
    return Path(os.path.expanduser(root))


def existing_folder(root: str) -> Path:
    """The folder that `data.root` means.

    Raises:
        RequestError: there is none.
    """
    path = expand_home(root)
    if not os.path.isdir(path):
        there = "this is a file" if os.path.exists(path) else "there is none"
        raise RequestError(f"data.root={root}: expected a folder; {there}")
    return path


def number_classes(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes that occur, numbers in their order, and the index (N,) of each name among them."""
    whole = all(name.isdecimal() for name in names)
    classes = tuple(sorted(set(names), key=(lambda name: (int(name), name)) if whole else None))
    place = {name: index for index, name in enumerate(classes)}
    return classes, np.array([place[name] for name in names], dtype=np.int64)


def label_vectors(names: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], np.ndarray]:
    """The same for several labels an image: float32 (N, classes) of 0 and 1."""
    classes, _ = number_classes([name for some in names for name in some])
    labels = np.zeros((len(names), len(classes)), dtype=np.float32)
    for row, some in zip(labels, names, strict=True):
        row[[classes.index(name) for name in some]] = 1
    return classes, labels
