"""Which split an image is in: decided by its content, so that it never changes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from finetune.errors import RequestError, brief

FEWEST = 3  # images of a class that can be split


def find_units(digests: Sequence[str], groups: Sequence[str], seed: int | None) -> list[str]:
    """For each image a key, SHA-256, of all that stay on its side: identical ones and those of its group.

    groups: of each image, empty for one that is of none; empty: there are none. Groups that share an image
    are one. seed: with another than 0 the keys are others, and so is a split by them.
    """
    keys = digests
    if groups:
        keys = [_sha256(f"group {one}") if one else key for one, key in zip(groups, digests, strict=True)]
    (names, own), (_, same) = (np.unique(one, return_inverse=True) for one in (keys, digests))
    units, before = own, own - 1
    while (units != before).any():  # the smallest of what is joined spreads over all of it
        before = units
        for joined in (own, same):
            least = np.full(len(units), len(names))
            np.minimum.at(least, joined, units)
            units = least[joined]
    return [_sha256(f"{seed} {names[unit]}") if seed else str(names[unit]) for unit in units]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def number_folds(units: Sequence[str], labels: np.ndarray, classes: Sequence[str], number: int) -> np.ndarray:
    """The fold (N,) that holds out each image: stratified by class, what shares a unit in the same.

    Raises:
        RequestError: a fold would be empty, or hold all images of a class, so that none would train.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold  # half a second that few runs need

    order = np.argsort(units, kind="stable")  # by content, whatever the order of the files
    unit, folds = np.unique(units, return_inverse=True)[1], np.zeros(len(order), np.int64)
    kind = GroupKFold if labels.ndim == 2 else StratifiedGroupKFold
    with warnings.catch_warnings(), suppress(ValueError):  # as so many folds cannot be
        warnings.filterwarnings("ignore", "The least populated class")
        parts = kind(number, shuffle=True, random_state=0).split(order, labels[order], unit[order])
        for fold, (_, held) in enumerate(parts):
            folds[order[held]] = fold
    if len(np.unique(folds)) < number:
        there = f"{unit.max() + 1:,} different images or groups of them"
        raise RequestError(f"data.folds={number}: expected fewer folds, each with images; there are {there}")
    members = _members(labels) if labels.ndim == 1 else []
    alone = [classes[i] for i, rows in enumerate(members) if len(np.unique(folds[rows])) == 1]
    if alone:
        expected = "expected at least two different images, or groups, of every class to part"
        raise RequestError(f"data.folds={number}: {expected}; not so with {brief(alone)}")
    return folds


def split_by_content(
    digests: Sequence[str], labels: np.ndarray, val_fraction: float, test_fraction: float
) -> dict[str, np.ndarray]:
    """Split by thresholds on each image's digest, or the key of the unit that it is of.

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


def untested(classes: Sequence[str], labels: np.ndarray, test: np.ndarray) -> list[str]:
    """The classes that have enough images to be split, and none in the test split."""
    tested = np.isin(np.arange(len(labels)), test)
    each = zip(classes, _members(labels), strict=False)
    return [name for name, members in each if members.sum() >= FEWEST and not (members & tested).any()]


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
