"""Which split an image is in: decided by its content, so that it never changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST = 3  # images of a class that can be split


def split_by_content(
    digests: Sequence[str], labels: np.ndarray, val_fraction: float, test_fraction: float
) -> dict[str, np.ndarray]:
    """Split by thresholds on each image's digest.

    Every class is split in the same proportions up to chance; an image keeps its split whatever is added or
    removed, and byte-identical files share one. Two exceptions leave every class something to learn from: a
    class with fewer than three images goes wholly to train, and one of which nothing would fall there gives
    it the image that comes nearest.

    labels: (N,) class indices or (N, outputs) label vectors.
    """
    place = _places(digests)
    to_train = np.zeros(len(digests), bool)
    for members in _members(labels):
        if 0 < members.sum() < FEWEST:
            to_train |= members
        elif members.any() and place[members].max() < test_fraction + val_fraction:
            to_train[np.flatnonzero(members)[place[members].argmax()]] = True
    if to_train.any():  # and whatever is identical to them
        to_train = np.isin(digests, np.asarray(digests)[to_train])
    test = ~to_train & (place < test_fraction)
    val = ~to_train & ~test & (place < test_fraction + val_fraction)
    return {"train": np.flatnonzero(~test & ~val), "val": np.flatnonzero(val), "test": np.flatnonzero(test)}


def too_few(classes: Sequence[str], labels: np.ndarray) -> list[str]:
    """The classes that have too few images to be split."""
    return [
        name for name, members in zip(classes, _members(labels), strict=False) if 0 < members.sum() < FEWEST
    ]


def take_validation(
    split: dict[str, np.ndarray], digests: Sequence[str], labels: np.ndarray, fraction: float
) -> dict[str, np.ndarray]:
    """Take a part of train for validation, likewise by content."""
    train = split["train"]
    parts = split_by_content([digests[i] for i in train], labels[train], fraction, 0.0)
    return {"train": train[parts["train"]], "val": train[parts["val"]], "test": split["test"]}


def _members(labels: np.ndarray) -> list[np.ndarray]:
    """For each class, which images belong to it."""
    if labels.ndim == 2:
        return list((labels == 1).T)
    return [labels == label for label in range(int(labels.max(initial=-1)) + 1)]


def _places(digests: Sequence[str]) -> np.ndarray:
    """Each digest as a number in [0, 1), uniform over contents."""
    return np.array([int(text[:13], 16) / 16**13 for text in digests])
