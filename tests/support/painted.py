"""Pictures made for one test, and how they are seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from finetune.data.images import decode
from finetune.model.preprocessing import Preprocessing


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height: int, width: int) -> Image.Image:
    """Smooth colours with some edges, as JPEG likes them."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    pixels = np.stack([x, y, (x + y) / 2], axis=-1) * 255
    image = Image.fromarray(pixels.astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width * 0.3, height * 0.3, width * 0.6, height * 0.7), fill=(200, 30, 90))
    return image


def seen(path: Path, size: int) -> np.ndarray:
    """(size, size, 3): a square picture of that size, decoded without resizing."""
    return decode(path, Preprocessing(size, size)).permute(1, 2, 0).numpy()
