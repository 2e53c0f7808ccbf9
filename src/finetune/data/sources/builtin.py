"""Data sets that need no files of the user's."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from finetune.data.dataset import SPLITS
from finetune.data.sources.labeled import LabeledImages, number_classes

CLIPART = Path(__file__).parents[2] / "assets" / "clipart"


def find_clipart() -> LabeledImages:
    """Ten kinds of clip art, split so that no family of drawings is in two splits."""
    with (CLIPART / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes, labels = number_classes([row["class"] for row in rows])
    return LabeledImages(
        name="clipart",
        setting="data=clipart",
        classes=classes,
        images=[CLIPART / row["file"] for row in rows],
        labels=labels,
        digests=[row["sha256"] for row in rows],
        splits=[row["split"] for row in rows],
        declared=SPLITS,
        groups=[row["family"] for row in rows],
        redrawn=True,
    )


def find_digits() -> LabeledImages:
    """scikit-learn's handwritten digits, scaled to eight bits."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = [np.round(image * (255 / 16)).astype(np.uint8) for image in loaded.images]
    return LabeledImages(
        name="digits",
        setting="data=digits",
        classes=tuple("0123456789"),
        images=images,
        labels=loaded.target.astype(np.int64),
    )


def make_noise() -> LabeledImages:
    """One image of noise with a random label vector, as PyTorch's introduction to autograd has it."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    labels = generator.random((1, 1000), dtype=np.float32)
    classes = tuple(f"output {i}" for i in range(1000))
    return LabeledImages(
        name="random",
        setting="data=random",
        classes=classes,
        images=[image],
        labels=labels,
        splits=["train"],
        declared=SPLITS,
    )
