"""Images with labels and a split, wherever they come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from finetune.data import splits
from finetune.data.digests import content_digest
from finetune.errors import RequestError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Stored:
    """An image inside something larger, such as an archive: its name there, and how its file is read.

    read: gives the bytes of an image file, or the pixels as an array where there is no file.
    alone: whether an object gives it that no other process may ask, as both might read from one open file.
    """

    name: str
    read: Callable[[], bytes | np.ndarray]
    alone: bool = False

    def __str__(self) -> str:
        return self.name


RawImage = Path | np.ndarray | Stored


@dataclass(frozen=True)
class Dataset:
    """Images with labels and a split.

    images: files, uint8 arrays (H, W) or (H, W, 3), or images stored in something larger.
    labels: int64 (N,) class indices, or float32 (N, outputs) label vectors.
    split: indices into images for train, val and test.
    digests: SHA-256 of each image's content.
    passed_over: how many files beside the images there are of each extension.
    warnings: what the user should know of them, a line each; notes: what is no fault.
    own_split: whether the data brought sides of their own.
    units: a key of each image, shared by all that stay on one side; none: their digests.
    groups: of each image as the user names it, empty for one of none; none where there are no groups.
    folds: which fold holds out each image (N,), where all are trained and tested.
    brightness: one scale for all images of more than 8 bits, as `brightness.find_scales` gives it.
    """

    name: str
    classes: tuple[str, ...]
    images: Sequence[RawImage]
    labels: np.ndarray
    split: dict[str, np.ndarray]
    digests: Sequence[str]
    passed_over: Counter[str] = field(default_factory=Counter)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    own_split: bool = False
    brightness: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    units: Sequence[str] = ()
    groups: Sequence[str] = ()
    folds: np.ndarray | None = None

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several of the classes, or none: its label is a vector of 0 and 1."""
        return self.labels.ndim == 2 and bool(np.isin(self.labels, (0, 1)).all())

    def counts(self) -> dict[str, int]:
        """How many images there are on each side of the split."""
        return {side: len(self.split[side]) for side in SPLITS}

    def to_train(self) -> dict[str, int]:
        """How many images of each class there are to train on; none where labels are numbers."""
        if self.labels.ndim == 2 and not self.multi_label:
            return {}
        labels = self.labels[self.split["train"]]
        counts = labels.sum(0) if self.multi_label else np.bincount(labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, counts, strict=True)}

    def kept(self, bad: Sequence[int]) -> np.ndarray:
        """The places that stay when some are left out."""
        return np.setdiff1d(np.arange(len(self.images)), bad)

    def without(self, bad: Sequence[int], reason: str = "") -> Dataset:
        """The same without some images, the first for this reason; the rest keep their side.

        Raises:
            RequestError: nothing is left to train on.
        """
        kept = self.kept(bad)
        split = {side: np.flatnonzero(np.isin(kept, indices)) for side, indices in self.split.items()}
        images, digests = [self.images[i] for i in kept], [self.digests[i] for i in kept]
        rest = replace(self, images=images, labels=self.labels[kept], split=split, digests=digests)
        units, groups = ([one[i] for i in kept] if one else () for one in (self.units, self.groups))
        folds = None if self.folds is None else self.folds[kept]
        rest = replace(rest, units=units, groups=groups, folds=folds)
        if not len(split["train"]):
            raise RequestError(
                f"data.root: expected images to train on; {len(bad)} of {len(self.images)} are broken"
                f" ({self.images[bad[0]]} for one{reason and f': {reason}'}), and none of the others falls to"
                " train"
            )
        return rest

    def answered(self, side: str) -> np.ndarray:
        """The images that the answers of a side are for: by folds every one is tested."""
        return self.split["train" if side == "test" and self.folds is not None else side]

    def together(self, rows: np.ndarray) -> np.ndarray | None:
        """Of each of these images the number of its group, whose images say less; None without groups."""
        return np.unique(np.asarray(self.units)[rows], return_inverse=True)[1] if self.groups else None

    def whole(self) -> Dataset:
        """The same with every image to train on."""
        none = np.arange(0)
        return replace(self, split={"train": np.arange(len(self.images)), "val": none, "test": none})

    def in_folds(self, number: int) -> Dataset:
        """The same as it is tested in so many folds, each image in one."""
        folds = splits.number_folds(self.units or self.digests, self.labels, self.classes, number)
        return replace(self, folds=folds, own_split=False)

    def in_fold(self, fold: int, val_fraction: float) -> Dataset:
        """The same where one fold is tested, and a part of the others validates."""
        split = {"train": np.flatnonzero(self.folds != fold), "test": np.flatnonzero(self.folds == fold)}
        split = splits.take_validation(split, self.units or self.digests, self.labels, val_fraction)
        return replace(self, split=split, folds=None)

    def numbered_as(self, names: Sequence[str]) -> Dataset:
        """The same with the classes that a model has, in its order; unchanged where it lacks one of them."""
        if tuple(names) == self.classes or not set(self.classes) <= set(names):
            return self
        place = np.array([names.index(name) for name in self.classes])
        if self.labels.ndim == 1:
            return replace(self, classes=tuple(names), labels=place[self.labels])
        labels = np.zeros((len(self.labels), len(names)), dtype=self.labels.dtype)
        labels[:, place] = self.labels
        return replace(self, classes=tuple(names), labels=labels)

    def fingerprint(self) -> str:
        """SHA-256 that changes when and only when images, labels or split do."""
        side = {int(i): name for name, indices in self.split.items() for i in indices}
        rows = [json.dumps([digest, self.label_of(i), side[i]]) for i, digest in enumerate(self.digests)]
        return content_digest("\n".join(sorted(rows)).encode())

    def label_of(self, index: int) -> str | list[str]:
        """The name of an image's class, or of its labels; of other vectors their bytes."""
        label = self.labels[index]
        if label.ndim == 0:
            return self.classes[label]
        if self.multi_label:
            return sorted(self.classes[i] for i in np.flatnonzero(label))
        return label.tobytes().hex()
