"""Data sets that need no files of the user's."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from finetune.data import splits
from finetune.data.dataset import SPLITS
from finetune.data.sources.found import Found, numbered

CLIPART = Path(__file__).parents[2] / "assets" / "clipart"


def clipart() -> Found:
    """Ten kinds of clip art, split so that no family of drawings is on two sides."""
    with (CLIPART / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes, labels = numbered([row["class"] for row in rows])
    return Found(
        "clipart",
        "data=clipart",
        classes,
        [CLIPART / row["file"] for row in rows],
        labels,
        [row["sha256"] for row in rows],
        [row["split"] for row in rows],
        SPLITS,
    )


def digits() -> Found:
    """scikit-learn's handwritten digits, scaled to eight bits."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = [np.round(image * (255 / 16)).astype(np.uint8) for image in loaded.images]
    digests = [splits.digest(image) for image in images]
    return Found(
        "digits", "data=digits", tuple("0123456789"), images, loaded.target.astype(np.int64), digests
    )


def random() -> Found:
    """One picture of noise with a random label vector, as PyTorch's introduction to autograd has it."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    labels = generator.random((1, 1000), dtype=np.float32)
    classes = tuple(f"output {i}" for i in range(1000))
    return Found("random", "data=random", classes, [image], labels, [splits.digest(image)], ["train"], SPLITS)
