"""One scale of brightness for all images of more than 8 bits: found while they are hashed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from finetune.data import limits
from finetune.data.pixels import FORMATS

STRAY_PIXELS, STRAY_IMAGES = 1000, 100  # one in so many, at either end, does not count
DEEP = (b"II", b"MM", b"P2", b"P5", b"Pf")  # how TIFF and Netpbm begin, which may have more than 8 bits
DEEP_PNG = b"\x10\x00"  # 16 bits, grey


def extent(file: BinaryIO) -> str | None:
    """The darkest and the brightest pixel of an image of more than 8 bits, but for strays, and their kind.

    Returns: JSON, `["I", 0, 4095]` for whole numbers, `["F", 0.1, 0.9]` for floats; else nothing.
        None where memory lacks.
    """
    file.seek(0)
    head = file.read(26)
    if not head.startswith(DEEP) and not (head.startswith(b"\x89PNG") and head[24:] == DEEP_PNG):
        return ""
    try:
        with Image.open(file, formats=tuple(FORMATS)) as image:
            if not image.mode.startswith(("I", "F")):
                return ""
            limits.check_limits(image, b"")
            with limits.DECODING.taking(limits.memory(image)):
                return extent_of(np.asarray(image), image.info.get("transparency"))
    except Exception as error:  # whatever a decoder raises: it is told where the image is used
        return None if limits.of_the_system(error) else ""


def extent_of(image: np.ndarray, transparent: Any = None) -> str:
    """The same of an array (H, W) but for the pixels of one value."""
    if image.dtype == np.uint8:
        return ""
    pixels = image.ravel()
    ends = _ends(pixels[np.isfinite(pixels) & (pixels != transparent)])
    return json.dumps(["F" if pixels.dtype.kind == "f" else "I", *ends]) if ends else ""


def _ends(pixels: np.ndarray) -> tuple[float, float] | None:
    """The lowest and highest value without strays, such as hot pixels."""
    if len(pixels) < 3:
        return None
    stray = max(1, len(pixels) // STRAY_PIXELS)
    ordered = np.partition(pixels, (stray, len(pixels) - 1 - stray))
    return float(ordered[stray]), float(ordered[-1 - stray])


def find_scales(extents: Iterable[str | None]) -> dict[str, tuple[float, float]]:
    """What is to be black and white for each kind of pixels, from the extents of the images of a set."""
    ends: dict[str, list[tuple[float, float]]] = {}
    for kind, low, high in map(json.loads, filter(None, extents)):
        ends.setdefault(kind, []).append((low, high))
    scales = {}
    for kind, some in sorted(ends.items()):
        lows, highs = (sorted(values) for values in zip(*some, strict=True))
        stray = len(some) // STRAY_IMAGES
        scales[kind] = scale(lows[stray], highs[-1 - stray], whole=kind == "I")
    return scales


def scale(low: float, high: float, whole: bool) -> tuple[float, float]:
    """Black and white for values from `low` to `high`: 0 and a power of two, so that few sets differ in it.

    Above 0 is black only where that saves three bits or more, or where there are values below 0.
    """

    def span(bits: int) -> float:
        return 2.0**bits - (whole or bits >= 8)  # 255, 4095; floats up to 1 have 1

    def black(bits: int) -> float:
        step = 2.0 ** (bits - 3)
        return math.floor(low / step) * step

    bits = next(bits for bits in range(1 if whole else -100, 129) if span(bits) >= max(high, -low))
    fewest = range(max(bits - 16, 1) if whole else bits - 16, bits + 3)
    fewer = next(few for few in fewest if black(few) + span(few) >= high)
    if low >= 0 and fewer > bits - 3:
        return 0.0, span(bits)
    return black(fewer), black(fewer) + span(fewer)
