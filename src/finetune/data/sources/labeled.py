"""What a source hands on, and what all of them need."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from unicodedata import category, normalize

import numpy as np

from finetune.data.dataset import RawImage
from finetune.errors import RequestError, brief, near

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SIDES = {spelling: side for side, spellings in SPELLINGS.items() for spelling in spellings}


@dataclass(frozen=True)
class LabeledImages:
    """Images with labels, before they are split.

    setting: what asked for them, as an error names it.
    splits: the split of each image, where the data itself brings a split; None: to be split by content.
    declared: the splits that the data brings, where one of them may be empty.
    passed_over: how many files beside the images there are of each extension.
    digests: SHA-256 of each image's content, where they are known.
    empty: classes that are there without an image. brightness: one scale for all of more than 8 bits.
    groups: of each image the group that stays on one side; empty for one that is of none.
    redrawn: whether another split may be drawn in the place of theirs.
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
    notes: tuple[str, ...] = ()
    digests: Sequence[str] = ()
    empty: tuple[str, ...] = ()
    brightness: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    groups: Sequence[str] = ()
    redrawn: bool = False


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """No progress bar."""
    yield lambda done: None


def side_of(name: str) -> str | None:
    """The side of the split that a name means, in any case; None where it means none."""
    return SIDES.get(name.strip().lower())


def own_splits(splits: Sequence[str]) -> Sequence[str] | None:
    """The splits of images, unless all are to train on: these are a set to be split."""
    return splits if set(splits) - {"train"} else None


def expand_home(root: str) -> Path:
    """The path that `data.root` means; `~` is the user's own."""
    return Path(os.path.expanduser(root))


def existing_folder(root: str, setting: str = "data.root") -> Path:
    """The folder that `data.root`, or another setting, means.

    Raises:
        RequestError: there is none.
    """
    path = expand_home(root)
    if not os.path.isdir(path):
        there = "this is a file" if os.path.exists(path) else f"there is none{near(root)}"
        raise RequestError(f"{setting}={root}: expected a folder; {there}")
    return path


def number_classes(
    names: Sequence[str], known: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes that occur, numbers in their order, and the index (N,) of each name among them.

    known: all classes there are, in an order of their own.
    """
    whole = all(name.isdecimal() for name in names)
    classes = tuple(known or sorted(set(names), key=(lambda name: (int(name), name)) if whole else None))
    place = {name: index for index, name in enumerate(classes)}
    return classes, np.array([place[name] for name in names], dtype=np.int64)


def label_vectors(
    names: Sequence[Sequence[str]], known: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray]:
    """The same for several labels an image: float32 (N, classes) of 0 and 1."""
    classes, _ = number_classes([name for some in names for name in some], known)
    labels = np.zeros((len(names), len(classes)), dtype=np.float32)
    for row, some in zip(labels, names, strict=True):
        row[[classes.index(name) for name in some]] = 1
    return classes, labels


def odd_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Warnings where classes differ in their spelling alone, or are decimals."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(_plain(name), []).append(name)
    told = [" and ".join(map(ascii, names)) for names in alike.values() if len(names) > 1]
    warnings: tuple[str, ...] = ()
    if told:
        warnings = (f"classes that differ in their spelling alone: {brief(told)}",)
    fractions = [name for name in classes if re.search(r"\.0*[1-9]", name)]
    if fractions and all(re.fullmatch(r"[+-]?\d*\.?\d+(e[+-]?\d+)?", name) for name in classes):
        what = f"the labels are decimals ({brief(fractions, 3)})"
        warnings += (f"{what}: each is trained as a class of its own, not as a number",)
    return warnings


def _plain(name: str) -> str:
    """A name without what is spelled in several ways: case, spaces, how letters are coded, 1.0 for 1."""
    try:
        return str(Decimal(name.strip()).normalize())
    except ArithmeticError:
        seen = "".join(one for one in normalize("NFKC", name).casefold() if category(one) != "Cf")
        return " ".join(re.split(r"[\s_-]+", seen.strip()))
