"""Folders of pictures made for one test, and what was found there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from finetune.data import sources
from finetune.data.dataset import Dataset
from finetune.data.sources import load_dataset


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def fill(folder: Path, count: int = 20, first: int = 0) -> Path:
    """Two classes with so many pictures each."""
    for seed in range(first, first + count):
        save(folder / "cat" / f"{seed}.png", 2 * seed)
        save(folder / "dog" / f"{seed}.png", 2 * seed + 1)
    return folder


def folder(root: Path, val: float = 0.15, test: float = 0.15) -> Dataset:
    return load_dataset("folder", str(root), val, test)


def names(dataset: Dataset, side: str | None = None) -> list[str]:
    chosen = dataset.split[side] if side else range(len(dataset.images))
    return sorted(Path(str(dataset.images[i])).name for i in chosen)


def check(dataset: Dataset) -> None:
    """What holds of every data set."""
    number = len(dataset.images)
    assert len(dataset.labels) == len(dataset.digests) == number
    assert sorted(np.concatenate([dataset.split[side] for side in sources.SPLITS])) == list(range(number))
    assert dataset.counts() == {side: len(dataset.split[side]) for side in ("train", "val", "test")}
