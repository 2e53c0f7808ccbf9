"""Images that are there twice, byte for byte: on two sides of the split, with two labels; parted groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from finetune.data.dataset import SPLITS, Dataset
from finetune.errors import brief


def leaked(dataset: Dataset) -> dict[str, dict[int, int]]:
    """The images of val that are in train, too, and those of test that are in train or val: where each is."""
    found: dict[str, dict[int, int]] = {}
    before: dict[str, int] = {}
    for side in SPLITS:
        rows = {i: dataset.digests[i] for i in dataset.split[side].tolist()}
        found[side] = {i: before[digest] for i, digest in rows.items() if digest in before}
        before |= {digest: i for i, digest in rows.items() if digest not in before}
    return {side: found[side] for side in SPLITS[1:]}


def labelled_otherwise(dataset: Dataset) -> dict[int, int]:
    """The images whose bytes have another label before, and where."""
    first: dict[str, int] = {}
    twins = {i: first.setdefault(digest, i) for i, digest in enumerate(dataset.digests)}
    return {i: twin for i, twin in twins.items() if (dataset.labels[i] != dataset.labels[twin]).any()}


def told_twice(dataset: Dataset) -> tuple[str, ...]:
    """A line that says what is there twice and should not be, how often, and where one of each is."""
    counted = {
        f"{len(pairs):,} of {len(dataset.split[side]):,} {side} images on another side, too": pairs
        for side, pairs in leaked(dataset).items()
    }
    other = labelled_otherwise(dataset)
    counted[f"{len(other):,} of {len(dataset.labels):,} images with another label elsewhere"] = other
    told = [f"{what} ({_pair(dataset, *pairs.items())})" for what, pairs in counted.items() if pairs]
    return (f"the same bytes twice: {'; '.join(told)}",) if told else ()


def told_groups(groups: Sequence[str], split: Mapping[str, np.ndarray]) -> tuple[str, tuple[str, ...]]:
    """How many groups there are, and a warning of those that the data's own split has parted.

    groups: of each image, empty for one that is of none.
    """
    on = [{groups[i] for i in rows} - {""} for rows in split.values()]
    every, parted = set().union(*on), sorted((on[0] & on[1]) | (on[0] & on[2]) | (on[1] & on[2]))
    if not every:
        told = "no image is of a group: each is split by itself"
        return "0 groups", (f"{told}; data.group=parent reads the folders below those of the classes",)
    told = f"{len(parted):,} of {len(every):,} groups are on two sides of the split ({brief(parted, 3)})"
    return f"{len(every):,} groups; images of none: {groups.count(''):,}", (told,) if parted else ()


def _pair(dataset: Dataset, pair: tuple[int, int], *_: tuple[int, int]) -> str:
    images = [(i, dataset.images[i]) for i in pair]
    return " and ".join(f"array {i}" if isinstance(one, np.ndarray) else str(one) for i, one in images)
