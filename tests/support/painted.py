"""Pictures made for one test, and how they are seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from finetune.data.images import decode
from finetune.data.pixels import FORMATS
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


def save_as(image: Image.Image, path: Path) -> None:
    """Save an image in the format that its extension says, also where Pillow does not know that."""
    name = next(name for name, extensions in FORMATS.items() if path.suffix in extensions)
    (image.convert("F") if path.suffix == ".pfm" else image).save(path, name)


def display_p3() -> bytes:
    """An ICC profile, version 2, of Display P3's primaries (D50-adapted) and a gamma of 2.2."""

    def xyz(*values: float) -> bytes:
        return (
            b"XYZ " + bytes(4) + b"".join(round(value * 65536).to_bytes(4, signed=True) for value in values)
        )

    text = b"Display P3\0"
    tags = {
        b"desc": b"desc" + bytes(4) + len(text).to_bytes(4) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.5151, 0.2412, -0.0011),
        b"gXYZ": xyz(0.2920, 0.6922, 0.0419),
        b"bXYZ": xyz(0.1571, 0.0666, 0.7841),
        **{
            name: b"curv" + bytes(4) + (1).to_bytes(4) + (563).to_bytes(2)
            for name in (b"rTRC", b"gTRC", b"bTRC")
        },
    }
    table, data = len(tags).to_bytes(4), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + (132 + 12 * len(tags) + len(data)).to_bytes(4) + len(content).to_bytes(4)
        data += content
    size = 132 + 12 * len(tags) + len(data)
    header = size.to_bytes(4) + bytes(4) + bytes([2, 0x40, 0, 0]) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + xyz(0.9642, 1.0, 0.8249)[8:] + bytes(48)
    return header + table + data
