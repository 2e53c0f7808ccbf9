"""Which side of the split a picture is on: decided by its content alone, so that it never changes sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def digest(image: np.ndarray) -> str:
    """SHA-256 of an array's shape and bytes."""
    return hashlib.sha256(f"{image.shape}{image.dtype}".encode() + image.tobytes()).hexdigest()


def digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def by_content(digests: Sequence[str], val_fraction: float, test_fraction: float) -> dict[str, np.ndarray]:
    """Split by thresholds on each picture's digest.

    Every class is split in the same proportions up to chance; a picture keeps its side whatever is added or
    removed, and byte-identical files share one.
    """
    place = _places(digests)
    test = place < test_fraction
    val = ~test & (place < test_fraction + val_fraction)
    return {"train": np.flatnonzero(~test & ~val), "val": np.flatnonzero(val), "test": np.flatnonzero(test)}


def take_validation(
    split: dict[str, np.ndarray], digests: Sequence[str], fraction: float
) -> dict[str, np.ndarray]:
    """Take a part of train for validation, likewise by content."""
    chosen = _places(digests)[split["train"]] < fraction
    return {"train": split["train"][~chosen], "val": split["train"][chosen], "test": split["test"]}


def _places(digests: Sequence[str]) -> np.ndarray:
    """Each digest as a number in [0, 1), uniform over contents."""
    return np.array([int(text[:13], 16) / 16**13 for text in digests])
