"""What an image may cost, seen before it is decoded."""

from __future__ import annotations

import re

from PIL import Image

from finetune.machine import Budget, ram

BYTES = 1 << 30  # of a file, which is held as a whole
SCANS = 100  # of a JPEG, each a pass over all its pixels; programs write about ten
TILES = 50_000  # of a TIFF, each decoded by itself
THINNEST = 2  # pixels: a line shows nothing
PIXEL_BYTES = {"JPEG": 10, "MPO": 10, "WEBP": 28}  # of memory a pixel while it is decoded; others: 20
DECODING = Budget(ram() // 4)
MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")


def check_limits(image: Image.Image, content: bytes) -> None:
    """Raise an error where decoding a file's content would take more than an image is worth.

    image: the same, opened but not yet decoded.
    """
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):  # Pillow itself allows twice that
        raise Image.DecompressionBombError
    if min(image.size) < THINNEST:
        raise ValueError(f"{image.width} x {image.height} pixels, too thin to show anything")
    if len(getattr(image, "tile", ())) > TILES:
        raise ValueError("more tiles than is safe to decode")
    if image.format in ("JPEG", "MPO") and scans(content) > SCANS:
        raise ValueError("more scans than is safe to decode")


def scans(content: bytes) -> int:
    """The scans of a JPEG up to its end, or somewhat more where these are few enough."""
    if (found := content.count(b"\xff\xda")) <= SCANS:
        return found
    found, place = 0, 2
    while (marker := MARKER.search(content, place)) and marker[1] != b"\xd9":
        found += marker[1] == b"\xda"
        length = int.from_bytes(content[marker.end() : marker.end() + 2])
        place = marker.end() + max(2, length)  # of what belongs to the marker; a scan's pixels follow it
    return found


def memory(image: Image.Image) -> int:
    """The bytes that decoding takes at most, whatever is kept of it."""
    return image.width * image.height * PIXEL_BYTES.get(image.format or "", 20)
